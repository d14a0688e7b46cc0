"""Measures how many images a second the input pipeline makes, and what bounds it.

    python experiments/bench/pipeline.py --workers 2
    python experiments/bench/pipeline.py --parse 26000 --repeats 1   # reads annotations alone

JPEGs of 640x480 are made in a temporary folder, decoded, brought to a short side of 800, flipped
half of the time and batched with annotations, as in training. The loaders take turns on the same
batches, so that other load on the machine slows all alike; the processor time an image costs does
not depend on it. The steps of one image are timed alone, on one core. With --parse a file of
annotations of so many images, two people each, is read, as every process of a run does.
"""

import argparse
import functools
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import common
import numpy as np
from PIL import Image

from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.data_pipelines.loading import transforms
from ktn_jax.data_pipelines.loading.pipeline import DataSettings, make_training_data
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import FolderSource
from ktn_jax.runtime.images import decode_image

_HEIGHT, _WIDTH = 480, 640


def _identity_symmetry() -> UVSymmetry:
    steps = np.broadcast_to(np.arange(256) / 255, (24, 256, 256))
    return UVSymmetry(steps, np.swapaxes(steps, 1, 2))


def _photo(rng: np.random.Generator) -> bytes:
    """A JPEG of about the size of COCO's: smooth shapes with some noise."""
    coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, 12, (_HEIGHT, _WIDTH, 1))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _person(rng: np.random.Generator, annotation_id: int, image_id: int) -> dict:
    points = 120
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [100.0, 80.0, 200.0, 300.0],
        "area": 30000.0,
        "iscrowd": 0,
        "dp_x": rng.uniform(0, 255, points).tolist(),
        "dp_y": rng.uniform(0, 255, points).tolist(),
        "dp_I": rng.integers(1, 25, points).tolist(),
        "dp_U": rng.uniform(0, 1, points).tolist(),
        "dp_V": rng.uniform(0, 1, points).tolist(),
        "dp_masks": [
            {"size": [256, 256], "counts": [1000 * k, 2000, 63536 - 1000 * k]} for k in range(1, 9)
        ],
    }


def _write_folder(folder: pathlib.Path, images: int) -> annotations.Dataset:
    rng = np.random.default_rng(0)
    photos = [_photo(rng) for _ in range(min(images, 64))]
    raw = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number in range(images):
        name = f"{number:06d}.jpg"
        (folder / name).write_bytes(photos[number % len(photos)])
        raw["images"].append({"id": number, "file_name": name, "height": _HEIGHT, "width": _WIDTH})
        raw["annotations"] += [_person(rng, 2 * number + k, number) for k in range(2)]
    return annotations.parse_dataset(raw)


def _time_parsing(file: pathlib.Path, images: int, repeats: int) -> common.Row:
    rng = np.random.default_rng(0)
    with file.open("w") as opened:  # not all at once, which would be what is measured
        sizes = {"height": _HEIGHT, "width": _WIDTH}
        listed = [{"id": n, "file_name": f"{n}.jpg", **sizes} for n in range(images)]
        opened.write('{"categories": [{"id": 1, "name": "person"}], "images": ')
        opened.write(json.dumps(listed) + ', "annotations": [')
        for number in range(2 * images):
            opened.write(", " * bool(number) + json.dumps(_person(rng, number, number // 2)))
        opened.write("]}")
    seconds = common.take_turns(
        {"parse": lambda: _drop(lambda: annotations.parse_dataset(file))}, repeats, warm_up=0
    )["parse"]
    size = f"{file.stat().st_size / 1e6:.0f} MB, {images} images"
    return common.Row("parse annotations", seconds, peak_bytes=common.peak_memory(), note=size)


def _time_stages(
    dataset: annotations.Dataset,
    source: FolderSource,
    folder: pathlib.Path,
) -> list[common.Row]:
    content = (folder / "000000.jpg").read_bytes()
    image, record = source[0]
    labelled = transforms.label_image(image, record)
    size = (800, 1067)
    large = transforms.resize(labelled, size)
    matrix = transforms.rotation_and_zoom(size, 10, 1.1)
    stages = {
        f"decode JPEG ({len(content) // 1024} kB)": lambda: decode_image(content, "photo"),
        "parse two people, decode part masks": lambda: dataset.images[0],
        "resize to 800x1067": lambda: transforms.resize(labelled, size),
        "flip": lambda: transforms.flip(large, _SYMMETRY),
        "rotate and zoom (off by default)": lambda: transforms.warp(large, matrix),
    }
    seconds = common.take_turns(
        {name: functools.partial(_drop, stage) for name, stage in stages.items()}, repeats=15
    )
    return [common.Row(name, values) for name, values in seconds.items()]


def _drop(call: Callable[[], object]) -> None:
    call()


_SYMMETRY = _identity_symmetry()


def _measure(loader: str, source: FolderSource, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and processor seconds of this process's threads for some batches."""
    batches = _start(loader, source, arguments)
    for _ in range(3):  # start the workers and fill what is made ahead
        next(batches)
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(arguments.steps):
        next(batches)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    batches.close()
    return {"seconds": seconds, "processor": processor}


def main() -> None:
    """Runs the benchmark and writes its figures to standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=7)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="batches in one measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-people", type=int, default=20)
    parser.add_argument("--short-sides", type=int, nargs="+", default=[800])
    parser.add_argument(
        "--loaders", nargs="+", default=["tf_data", "threads", "processes"], help="which to run"
    )
    parser.add_argument("--parse", type=int, metavar="IMAGES", help="time reading annotations only")
    arguments = parser.parse_args()
    report = common.Report("pipeline", arguments.output)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if arguments.parse:
            row = _time_parsing(folder / "annotations.json", arguments.parse, arguments.repeats)
            report.section("Annotations, one core", [row])
            report.close()
            return
        dataset = _write_folder(folder, arguments.images)
        source = FolderSource(dataset, folder)
        report.section("One image, one core", _time_stages(dataset, source, folder))
        calls = {
            loader: functools.partial(_measure, loader, source, arguments)
            for loader in arguments.loaders
        }
        answers = common.take_turns(calls, arguments.repeats, warm_up=0)
    images, rows = arguments.steps * arguments.batch_size, []
    for loader, results in answers.items():
        rows.append(common.Row(loader, [result["seconds"] for result in results], images))
        if loader != "processes":  # theirs is spent elsewhere
            processor = [result["processor"] / images for result in results]
            rows.append(common.Row(f"{loader}: processor time an image", processor))
    title = f"{arguments.workers} workers, {arguments.steps} batches of {arguments.batch_size}"
    report.section(title, rows)
    report.close()


def _start(loader: str, source: FolderSource, arguments: argparse.Namespace) -> Iterator:
    settings = DataSettings(
        batch_size=arguments.batch_size,
        loader=loader,
        workers=arguments.workers,
        max_people=arguments.max_people,
        augmentation=Augmentation(short_sides=tuple(arguments.short_sides)),
    )
    return make_training_data(settings, source, _SYMMETRY).batches_from(0)


if __name__ == "__main__":
    main()
