"""Precision, recall and their averages (AP, AP50, ..., AR_L) from matched images."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ktn_jax.evaluation.assignment import AREA_NAMES, ImageMatches

RECALL_LEVELS = np.linspace(0.0, 1.0, 101, endpoint=True)
LAST_THRESHOLD = 0.95


@dataclasses.dataclass(frozen=True)
class Curves:
    """Precision and recall of every measure.

    Attributes:
        precision: [M, T, R, A] at the 101 recall levels; -1 where there is nobody to find.
        recall: [M, T, A], the highest reached; -1 where there is nobody to find.
        thresholds: [T] of the similarity.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


def similarity_thresholds(min_threshold: float = 0.5) -> np.ndarray:
    """Returns the thresholds min_threshold, ..., 0.95 in steps of 0.05."""
    if not 0 < min_threshold <= LAST_THRESHOLD:
        raise ValueError(f"the lowest threshold must be in (0, 0.95], got {min_threshold}")
    count = int(np.round((LAST_THRESHOLD - min_threshold) / 0.05)) + 1
    return np.linspace(min_threshold, LAST_THRESHOLD, count, endpoint=True)


def accumulate(
    matches: Sequence[ImageMatches], scores: Sequence[np.ndarray], thresholds: np.ndarray
) -> Curves:
    """Pools the matches of all images.

    Args:
        matches: of every image, in ascending order of image id, which decides ties of scores.
        scores: [D] of every image's detections, in the order of its matches.
        thresholds: [T] that the matches were made with.

    Returns:
        The curves of the dataset.
    """
    measures = matches[0].detection_match.shape[0] if matches else 0
    areas, levels = len(AREA_NAMES), len(thresholds)
    precision = -np.ones((measures, levels, len(RECALL_LEVELS), areas))
    recall = -np.ones((measures, levels, areas))
    if not matches:
        return Curves(precision, recall, thresholds)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    is_matched = np.concatenate([m.detection_match >= 0 for m in matches], axis=-1)[..., order]
    is_counted = ~np.concatenate([m.is_detection_ignored for m in matches], axis=-1)[..., order]
    num_people = np.sum([(~m.is_person_ignored).sum(axis=1) for m in matches], axis=0)
    true_positives = np.cumsum(is_matched & is_counted, axis=-1).astype(np.float64)
    false_positives = np.cumsum(~is_matched & is_counted, axis=-1).astype(np.float64)
    for measure, area, level in np.ndindex(measures, areas, levels):
        if num_people[area] == 0:
            continue
        found = true_positives[measure, area, level]
        wrong = false_positives[measure, area, level]
        reached = found / num_people[area]
        recall[measure, level, area] = reached[-1] if len(reached) else 0
        precision[measure, level, :, area] = _interpolate(reached, found, wrong)
    return Curves(precision, recall, thresholds)


def _interpolate(reached: np.ndarray, found: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    values = found / (wrong + found + np.spacing(1))
    envelope = np.maximum.accumulate(values[::-1])[::-1]
    # One extra zero: recall levels that were never reached.
    return np.append(envelope, 0.0)[np.searchsorted(reached, RECALL_LEVELS, side="left")]


def metric_names(thresholds: np.ndarray) -> tuple[str, ...]:
    """Names the numbers of `summarise`, in the order of the reference's `stats`."""
    extra = tuple(f"AP{p}" for p in (20, 30, 40) if thresholds.min() <= p / 100 + 0.001)
    return ("AP", *extra, "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")


def summarise(curves: Curves, measure: int, exact_thresholds: bool = False) -> dict[str, float]:
    """Condenses the curves of one measure to its numbers.

    Args:
        curves: of the dataset.
        measure: row of the curves.
        exact_thresholds: True picks a threshold only where it equals 0.5, ... to the last bit, as
            the KTNv2 evaluator does; False allows 0.001.

    Returns:
        Values in [0, 1] by name; -1 where there is nobody to find, or no such threshold.
    """
    summary = {}
    for name in metric_names(curves.thresholds):
        area = AREA_NAMES.index({"M": "medium", "L": "large"}.get(name[-1], "all"))
        values = curves.precision[measure, :, :, area]
        if name.startswith("AR"):
            values = curves.recall[measure, :, area]
        if name[2:].isdigit():
            wanted = int(name[2:]) / 100
            tolerance = 0.0 if exact_thresholds else 0.001
            is_wanted = np.abs(wanted - curves.thresholds) <= tolerance
            values = values[is_wanted]
        values = values[values > -1]
        summary[name] = float(values.mean()) if values.size else -1.0
    return summary
