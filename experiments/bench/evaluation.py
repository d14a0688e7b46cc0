"""Times the scoring of a results file, and measures its memory.

    python experiments/bench/evaluation.py --images 1500 --people 5000 --points 100 --processes 2

People, detections and a template of 27,554 vertices are made in a temporary folder (or in --folder,
which is kept). The distances of the template are straight lines between made-up vertices: all 380
million of them are written, in blocks, as float32 (1.5 GB), so that lookups touch as much of the
file as with the published one. Detections: a good one for each person, and half as many again
beside people. All detections use sixty different pictures of people, each decoded separately.
"""

import argparse
import cProfile
import json
import os
import pathlib
import pstats
import tempfile
import threading
import time

import common
import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.body.parts import FINE_TO_COARSE
from ktn_jax.evaluation import boxes_keypoints, evaluator, scorer, template_files
from ktn_jax.evaluation.ground_truth import read_ground_truth
from ktn_jax.evaluation.options import ScoringOptions
from ktn_jax.evaluation.result_files import index_results, read_payload
from ktn_jax.results.iuv_pictures import encode_iuv

_SIZE_HW = (480, 640)
_NUM_PICTURES = 60
_PATCH_METRES = 0.3


def _write_template(folder: pathlib.Path, vertices: int) -> None:
    rng = np.random.default_rng(0)
    part = np.sort(np.arange(vertices) % 24 + 1)
    uv = rng.random((vertices, 2))
    centres = rng.random((25, 3)) * [0.8, 1.6, 0.3]
    points = (centres[part] + _PATCH_METRES * np.c_[uv, uv[:, 0] * uv[:, 1]]).astype(np.float32)

    def rows():
        for row in range(1, vertices):
            offsets = points[:row] - points[row]
            yield np.sqrt(np.einsum("ij,ij->i", offsets, offsets))

    template_files.write_template(
        folder,
        u=uv[:, 0],
        v=uv[:, 1],
        part=part,
        row=np.arange(vertices),
        geodesics=rows(),
        num_distances=vertices * (vertices - 1) // 2,
        origin="made for timing",
        vertices=points,
    )


def _picture(rng: np.random.Generator) -> np.ndarray:
    """An IUV picture: an ellipse of vertical bands of patches with smooth U and V."""
    height = int(np.clip(rng.lognormal(5.1, 0.6), 24, 460))
    width = int(np.clip(height * rng.uniform(0.35, 0.8), 12, 600))
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    cell = (np.minimum(y * 6, 5.99), np.minimum(x * 4, 3.99))
    patch = 1 + cell[0].astype(int) * 4 + cell[1].astype(int)
    iuv = np.stack([patch, cell[1] % 1 * 245, cell[0] % 1 * 245])
    iuv[1:] += rng.uniform(0, 4, (2, height, width))  # a network's are not smooth: it costs bytes
    iuv[:, (y - 0.5) ** 2 + (x - 0.5) ** 2 > 0.25] = 0
    return iuv.astype(np.uint8)


def _annotation(rng: np.random.Generator, iuv: np.ndarray, points: int) -> dict:
    """What one picture's person was annotated with: noisy points, coarse masks, an outline."""
    _, height, width = iuv.shape
    body = np.argwhere(iuv[0])
    y, x = body[rng.choice(len(body), points, replace=len(body) < points)].T
    patch, u, v = iuv[:, y, x]
    u, v = np.clip(np.stack([u, v]) / 255 + rng.normal(0, 0.05, (2, points)), 0, 1)
    rows, columns = np.arange(256) * height // 256, np.arange(256) * width // 256
    coarse = FINE_TO_COARSE[iuv[0][rows][:, columns]]
    masks = []
    for label in range(1, 15):
        rle = coco_mask.encode(np.asfortranarray((coarse == label).astype(np.uint8)))
        masks.append({"size": rle["size"], "counts": rle["counts"].decode()})
    angle = np.linspace(0, 2 * np.pi, 30)
    outline = np.c_[(1 + np.cos(angle)) * width / 2, (1 + np.sin(angle)) * height / 2]
    return {
        "dp_x": (x / width * 255).tolist(),
        "dp_y": (y / height * 255).tolist(),
        "dp_I": patch.tolist(),
        "dp_U": u.tolist(),
        "dp_V": v.tolist(),
        "dp_masks": masks,
        "outline": outline,
    }


def _write_dataset(folder: pathlib.Path, images: int, people: int, points: int) -> None:
    rng = np.random.default_rng(1)
    pictures = [_picture(rng) for _ in range(_NUM_PICTURES)]
    encoded = [encode_iuv(iuv) for iuv in pictures]
    annotated = [_annotation(rng, iuv, points) for iuv in pictures]
    entries, annotations = [], []
    for number in range(people):
        image_id, which = number % images + 1, number % _NUM_PICTURES
        height, width = pictures[which].shape[1:]
        corner = rng.uniform(0, [_SIZE_HW[1] - width, _SIZE_HW[0] - height])
        person = dict(annotated[which])
        outline = (person.pop("outline") + corner).ravel().tolist()
        keypoints = np.c_[corner + rng.random((17, 2)) * [width, height], np.full(17, 2)]
        annotations.append(
            person
            | {
                "id": number + 1,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [*corner, float(width), float(height)],
                "area": 0.7 * width * height,
                "segmentation": [outline],
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": 17,
            }
        )
        for scale, score in ((0.02, 0.9), (0.4, 0.4))[: 1 + number % 2]:
            offset = rng.normal(0, scale, 2) * [width, height]
            moved = keypoints + [*offset, 0]
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "score": score * rng.random(),
                    "bbox": [*(corner + offset), width + 0.5, height + 0.5],
                    "uv_shape": list(pictures[which].shape),
                    "uv_data": encoded[which],
                    "keypoints": moved.ravel().tolist(),
                }
            )
    size = {"height": _SIZE_HW[0], "width": _SIZE_HW[1]}
    content = {
        "images": [{"id": i + 1, "file_name": f"{i + 1}.jpg", **size} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(entries))


class _MemoryWatch:
    """Samples the memory of this process and its children (Linux), pages in common counted once."""

    def __init__(self) -> None:
        self.peak_kb = self.peak_anonymous_kb = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.3):
            total = anonymous = 0
            for process in (os.getpid(), *_children(os.getpid())):
                try:
                    text = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text()
                except OSError:
                    continue  # it ended, or this is not Linux
                sizes = {line.split(":")[0]: line.split() for line in text.splitlines()[1:]}
                total += int(sizes["Pss"][1])
                anonymous += int(sizes["Anonymous"][1])
            self.peak_kb = max(self.peak_kb, total)
            self.peak_anonymous_kb = max(self.peak_anonymous_kb, anonymous)


def _children(process: int) -> list[int]:
    found = []
    for task in pathlib.Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found + [c for child in found for c in _children(child)]


def _run(folder: pathlib.Path, processes: int) -> dict[str, float]:
    """One evaluation, in the order of `evaluate_files`: seconds of each stage."""
    stages, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        stages[name] = time.perf_counter() - start
        start = time.perf_counter()

    truth = read_ground_truth(folder / "annotations.json")
    lap("read annotations")
    results = index_results(folder / "results.json", truth)
    lap("index results")
    scores = list(scorer.score_images(truth, results, folder, ScoringOptions(workers=processes)))
    lap(f"score images ({processes} processes)")
    segmentations = {number: rle for one in scores for number, rle in one.segmentations.items()}
    boxes_keypoints.evaluate_coco(truth, results, segmentations)
    lap("COCO boxes, masks, keypoints")
    evaluator.summarise_scores(scores)
    lap("match and accumulate")
    return stages


def _profile(folder: pathlib.Path, images: int) -> list[common.Row]:
    """Seconds of the parts of scoring, of some images in this process."""
    truth = read_ground_truth(folder / "annotations.json")
    results = index_results(folder / "results.json", truth)
    template = template_files.load_evaluation_template(folder)
    image_scorer = scorer.ImageScorer(template)
    profile = cProfile.Profile()
    with open(results.path, "rb") as handle, profile:
        for image in truth.images[:images]:
            found = results.by_image.get(image.image_id, ())
            image_scorer.score(image, found, lambda detection: read_payload(handle, detection))
    wanted = (
        *(
            "score",
            "read_payload",
            "annotated_mask",
            "stretch",
            "mask_iou",
            "to_rle",
            "find",
            "find_quantised",
        ),
        *("distance", "sample", "person_similarity", "measure_patches"),
    )
    stats = pstats.Stats(profile).stats
    rows = [
        common.Row(f"{pathlib.Path(key[0]).stem}.{key[2]}", [value[3]])
        for key, value in stats.items()
        if key[2] in wanted and "ktn_jax" in key[0]
    ]
    return sorted(rows, key=lambda row: -row.median)


def main() -> None:
    """Runs the benchmark and writes its figures to standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=3)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--people", type=int, default=5000)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--vertices", type=int, default=template_files.OFFICIAL_VERTICES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", help="keep the made files here, and use them if they are there")
    parser.add_argument("--cold", action="store_true", help="table not in the page cache (Linux)")
    arguments = parser.parse_args()
    report = common.Report("evaluation", arguments.output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / template_files.SURFACE_FILE).exists():
            report.say(f"making a template of {arguments.vertices} vertices")
            _write_template(folder, arguments.vertices)
        _write_dataset(folder, arguments.images, arguments.people, arguments.points)
        _report_runs(folder, arguments, report)
        rows = _profile(folder, min(150, arguments.images))
        report.section("parts of scoring, cumulative, one process, 150 images, profiled", rows)
    report.close()


def _report_runs(
    folder: pathlib.Path, arguments: argparse.Namespace, report: common.Report
) -> None:
    runs, processor = [], []
    with _MemoryWatch() as memory:
        for _ in range(arguments.repeats):
            if arguments.cold:
                _forget(folder / template_files.GEODESICS_FILE)
            before = _processor_seconds()
            runs.append(_run(folder, arguments.processes))
            processor.append(_processor_seconds() - before)
    totals = [sum(run.values()) for run in runs]
    whole = common.Row("all", totals, arguments.images, peak_bytes=1024 * memory.peak_kb)
    rows = [whole, common.Row("processor time of all processes", processor)]
    rows += [common.Row(name, [run[name] for run in runs], whole=whole.median) for name in runs[0]]
    size = (folder / "results.json").stat().st_size / 2**20
    title = f"{arguments.images} images, {arguments.people} people, results of {size:.0f} MB"
    # The rest of the memory is the mapped table, which the system may drop.
    report.section(title, rows, gib_not_backed_by_a_file=memory.peak_anonymous_kb / 2**20)


def _forget(path: pathlib.Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
