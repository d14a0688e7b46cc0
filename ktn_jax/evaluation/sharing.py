"""Shares the scoring of a results file between processes.

Processes exchange scores as files of JSON lines beside the shards of the detections: numbers keep
all their digits, and nothing is unpickled.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ktn_jax.evaluation import evaluator
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.evaluation.options import DEFAULT_OPTIONS, ScoringOptions
from ktn_jax.evaluation.patch_errors import PatchErrors, PersonScore
from ktn_jax.evaluation.result_files import index_results
from ktn_jax.evaluation.scorer import ImageScores, score_images
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.processes import Processes

_ARRAYS = {
    "annotation_ids": np.int64,
    "is_crowd": bool,
    "is_ignored": bool,
    "person_area": np.float64,
    "detection_ids": np.int64,
    "scores": np.float64,
    "detection_area": np.float64,
    "gps": np.float64,
    "mask_iou": np.float64,
    "box_iou": np.float64,
}


def evaluate_shared(
    results_path: pathlib.Path,
    truth: GroundTruth,
    template_dir: pathlib.Path | None,
    processes: Processes,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    output_dir: pathlib.Path | None = None,
    images_dir: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics | None:
    """Scores a results file as `evaluator.evaluate_results` does, shared between processes.

    Args:
        results_path: detections, in a folder that all processes see.
        truth: the annotations.
        template_dir: evaluation template, already converted if it is of the official files; None
            where vertices are compared with annotated vertices.
        processes: those that share the images; each calls this.
        options: how to score; each process starts `workers` scoring processes.
        output_dir: where `metrics.json` and `report.html` go.
        images_dir: pictures for the report.
        progress: called with (images scored, number of images) of this process's share.

    Returns:
        All scores in process 0, None in the others.

    Raises:
        EvaluationError: a file cannot be scored.
    """
    if processes.count == 1:
        return evaluator.evaluate_results(
            results_path,
            truth,
            template_dir,
            options,
            output_dir=output_dir,
            images_dir=images_dir,
            progress=progress,
        )
    results = index_results(results_path, truth)
    if template_dir is None:
        evaluator.check_no_template(results, truth)
    share = dataclasses.replace(truth, images=truth.images[processes.index :: processes.count])
    scores = score_images(share, results, template_dir, options, progress=progress)
    folder = results_path.parent
    _write_scores(_scores_file(folder, processes.index), scores)
    processes.wait("scored")
    if not processes.is_first:
        processes.wait("evaluated")
        return None
    parts = [list(_read_scores(_scores_file(folder, index))) for index in range(processes.count)]
    joined = evaluator.combine_scores(parts)
    if len(joined) != len(truth.images):
        raise EvaluationError(
            f"{folder}: scores of {len(joined)} images, {len(truth.images)} wanted; do all "
            "processes see the same folder?"
        )
    metrics = evaluator.evaluate_scores(
        joined,
        truth=truth,
        results=results,
        template_dir=template_dir,
        options=options,
        output_dir=output_dir,
        images_dir=images_dir,
    )
    for index in range(processes.count):
        _scores_file(folder, index).unlink()
    # The others wait until the end: to JAX a process that exits early is a failure.
    processes.wait("evaluated")
    return metrics


def _scores_file(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"scores-{index:05d}.jsonl"


def _write_scores(path: pathlib.Path, scores: Iterator[ImageScores]) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="ascii") as target:
        for image in scores:
            target.write(json.dumps(to_json(image)) + "\n")


def _read_scores(path: pathlib.Path) -> Iterator[ImageScores]:
    with open(path, encoding="ascii") as source:
        for line in source:
            yield from_json(json.loads(line))


def to_json(scores: ImageScores) -> dict[str, Any]:
    """Converts the scores of an image to JSON values; `from_json` gives back the same numbers."""
    content: dict[str, Any] = {
        name: np.asarray(getattr(scores, name)).tolist() for name in ("image_id", *_ARRAYS)
    }
    content["patches"] = {
        field.name: np.asarray(getattr(scores.patches, field.name)).tolist()
        for field in dataclasses.fields(PatchErrors)
    }
    content["people"] = [
        [np.asarray(value).item() for value in dataclasses.astuple(person)]
        for person in scores.people
    ]
    content["segmentations"] = [
        [int(number), list(rle["size"]), _as_text(rle["counts"])]
        for number, rle in scores.segmentations.items()
    ]
    return content


def from_json(content: dict[str, Any]) -> ImageScores:
    """Reads what `to_json` made."""
    num_people, num_detections = len(content["is_crowd"]), len(content["scores"])
    arrays = {name: np.array(content[name], dtype) for name, dtype in _ARRAYS.items()}
    for name in ("gps", "mask_iou", "box_iou"):  # a list of no rows has lost its columns
        arrays[name] = arrays[name].reshape(num_detections, num_people)
    return ImageScores(
        image_id=content["image_id"],
        **arrays,
        patches=PatchErrors(**{name: np.array(v) for name, v in content["patches"].items()}),
        people=tuple(PersonScore(*values) for values in content["people"]),
        segmentations={
            number: {"size": size, "counts": counts}
            for number, size, counts in content["segmentations"]
        },
    )


def _as_text(counts: str | bytes | Sequence[int]) -> str | Sequence[int]:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
