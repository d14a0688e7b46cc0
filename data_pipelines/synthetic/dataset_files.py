"""Writes synthetic people to disk: JPEG images and one DensePose-COCO JSON."""

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import cv2

from ktn_jax.data_pipelines.synthetic.scene import Scene
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource, dataset_header
from ktn_jax.runtime import atomic_files, locks
from ktn_jax.runtime.progress import Progress
from ktn_jax.runtime.worker_pool import explained, start_workers

ANNOTATION_FILE = "annotations.json"
IMAGE_FOLDER = "images"
_PARTIAL_FOLDER = ".partial"  # annotations of the images done so far, until all are
_HEADER_FILE = "header.json"
_JPEG_QUALITY = 95


def _write_json(path: pathlib.Path, content: Any) -> None:
    with atomic_files.replacing(path) as temporary:
        temporary.write_bytes(json.dumps(content, separators=(",", ":")).encode("ascii"))


def _prepare(output_dir: pathlib.Path, header: dict[str, Any]) -> bool:
    """Makes the folders, or finds those of the same dataset. Returns whether it is complete.

    Raises:
        ValueError: the folder holds something else.
    """
    finished, partial = output_dir / ANNOTATION_FILE, output_dir / _PARTIAL_FOLDER / _HEADER_FILE
    advice = "give another folder, or remove this one to start over"
    if not output_dir.exists() or locks.is_empty(output_dir):
        (output_dir / IMAGE_FOLDER).mkdir(parents=True)
        partial.parent.mkdir()
        _write_json(partial, header)
        return False
    present = finished if finished.is_file() else partial
    if not present.is_file():
        raise ValueError(f"{output_dir} is not empty and holds no synthetic dataset: {advice}")
    try:
        info = json.loads(present.read_bytes()).get("info")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{present} is no dataset: {advice}") from error
    if info != header["info"]:
        raise ValueError(
            f"{output_dir} holds a dataset of other settings (see info in {present}): {advice}"
        )
    return present == finished


def _partial_file(output_dir: pathlib.Path, index: int) -> pathlib.Path:
    return output_dir / _PARTIAL_FOLDER / f"{index:08d}.json"


def _read_partial(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads the records of one image.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        records = json.loads(path.read_bytes())
        return dict(records["image"]), list(records["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: remove it, and the same command renders that image again"
        ) from error


def _write_image(source: SyntheticSource, output_dir: pathlib.Path, index: int) -> None:
    example = source[index]
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    encoded = cv2.imencode(".jpg", example.image[..., ::-1], quality)[1]
    name = example.image_record["file_name"]
    with atomic_files.replacing(output_dir / IMAGE_FOLDER / name) as temporary:
        temporary.write_bytes(encoded.tobytes())
    # After the image, so that whatever has annotations has its image too.
    records = {"image": example.image_record, "annotations": example.annotations}
    _write_json(_partial_file(output_dir, index), records)


_worker: dict[str, Any] = {}  # what a worker process keeps between images


def _start_worker(num_images: int, seed: int, scene: Scene, output_dir: pathlib.Path) -> None:
    cv2.setNumThreads(1)  # the processes share the cores already
    _worker["source"] = SyntheticSource(num_images, seed, scene)
    _worker["output_dir"] = output_dir


def _work(index: int) -> None:
    _write_image(_worker["source"], _worker["output_dir"], index)


def _write_missing(
    output_dir: pathlib.Path, source: SyntheticSource, num_processes: int
) -> Iterator[None]:
    """Writes the images that have no annotations yet, yielding after each."""
    missing = [i for i in range(len(source)) if not _partial_file(output_dir, i).is_file()]
    if num_processes <= 1 or len(missing) <= 1:
        for index in missing:
            _write_image(source, output_dir, index)
            yield
        return
    arguments = (len(source), source.seed, source.scene, output_dir)
    with (
        explained("--processes 1"),
        start_workers(num_processes, _start_worker, arguments) as pool,
    ):
        futures = [pool.submit(_work, index) for index in missing]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_dataset(
    output_dir: str | os.PathLike[str],
    num_images: int,
    seed: int,
    scene: Scene | None = None,
    num_processes: int = 1,
) -> pathlib.Path:
    """Writes a dataset of synthetic people: OUTPUT/images/*.jpg and OUTPUT/annotations.json.

    The same arguments give the same bytes, whatever the number of processes. An interrupted call
    resumes where it stopped; a complete dataset is left as it is.

    Args:
        output_dir: Folder to write to: new, empty, or of an earlier call with the same arguments.
        num_images: Number of images.
        seed: Decides every image, from 0 on.
        scene: The settings, by default `Scene()`.
        num_processes: Processes that render.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: the folder holds something else, a file of an interrupted call is damaged, or
            num_images or seed is negative.
    """
    output_dir = pathlib.Path(output_dir)
    source = SyntheticSource(num_images, seed, scene)
    dataset = dataset_header(source.scene, num_images, seed)
    annotation_file = output_dir / ANNOTATION_FILE
    if _prepare(output_dir, dataset):
        return annotation_file
    done = sum(_partial_file(output_dir, index).is_file() for index in range(num_images))
    with Progress("render", "images", num_images, done=done) as progress:
        for _ in _write_missing(output_dir, source, num_processes):
            progress.advance()
    images, annotations = [], []
    for index in range(num_images):
        image, people = _read_partial(_partial_file(output_dir, index))
        images.append(image)
        annotations += people
    dataset |= {"images": images, "annotations": annotations}
    _write_json(annotation_file, dataset)
    shutil.rmtree(output_dir / _PARTIAL_FOLDER)
    return annotation_file
