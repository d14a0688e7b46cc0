"""Scores of several categories, such as animals: each by itself, and their mean.

COCO's rule, which detectron2 follows: detections of a category are matched with the objects of that
category, and a score of all is the mean over the categories that have somebody to find.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ktn_jax.evaluation import patch_errors
from ktn_jax.evaluation.ground_truth import GroundTruth
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.evaluation.precision_recall import Curves


def with_folders(
    truths: Sequence[GroundTruth], output_dir: pathlib.Path | None
) -> list[tuple[GroundTruth, pathlib.Path | None]]:
    """Says where the files of each category go: into a folder of its name, if there are several."""
    if output_dir is None or len(truths) == 1:
        return [(truth, output_dir) for truth in truths]
    # The annotation file gives the names.
    return [(truth, output_dir / re.sub(r"[^\w-]", "_", truth.category)) for truth in truths]


def combine(metrics: Mapping[str, Metrics], output_dir: pathlib.Path | None) -> Metrics:
    """Averages the scores of several categories, and returns those of a single one as they are.

    Args:
        metrics: of each category, by its name.
        output_dir: gets the averages as `metrics.json`; None writes nothing.
    """
    if len(metrics) == 1:
        return next(iter(metrics.values()))
    mean = average(metrics)
    if output_dir is not None:
        (output_dir / "metrics.json").write_text(mean.to_json())
    return mean


def average(metrics: Mapping[str, Metrics]) -> Metrics:
    """Averages the scores of categories.

    Args:
        metrics: of each category, by its name.

    Returns:
        Means over the categories that have a score, with the scores of each beside them; `patches`
        and `people` are those of all together.
    """
    each = list(metrics.values())
    measures = dict.fromkeys(measure for one in each for measure in one.summaries)
    summaries: dict[str, dict[str, float | None]] = {}
    for measure in measures:
        tables = [one.summaries[measure] for one in each if measure in one.summaries]
        summaries[measure] = {
            column: _mean([table[column] for table in tables]) for column in tables[0]
        }
    patches = [one.patches for one in each if one.patches is not None]
    shared = {key: value for key, value in each[0].meta.items() if key != "detections"}
    return Metrics(
        summaries=summaries,
        patches=patch_errors.add_up(patches) if patches else None,
        people=tuple(person for one in each for person in one.people),
        curves=_mean_curves([one.curves for one in each]),
        meta={**shared, "detections": sum(one.meta["detections"] for one in each)},
        notes=(
            "scores are means over the categories that have somebody to find",
            *(f"{name}: {note}" for name, one in metrics.items() for note in one.notes),
        ),
        by_category={name: one.summaries for name, one in metrics.items()},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _mean_curves(curves: Sequence[Curves]) -> Curves:
    """Means of the entries that are not -1; of categories without measures of the surface none."""
    most = max(one.precision.shape[0] for one in curves)
    full = [one for one in curves if one.precision.shape[0] == most]

    def mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
        values = np.stack(arrays)
        is_known = values > -1
        total = np.where(is_known, values, 0).sum(0)
        averaged: np.ndarray = np.where(
            is_known.any(0), total / np.maximum(is_known.sum(0), 1), -1.0
        )
        return averaged

    return Curves(
        mean([one.precision for one in full]),
        mean([one.recall for one in full]),
        full[0].thresholds,
    )
