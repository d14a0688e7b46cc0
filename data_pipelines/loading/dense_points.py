"""Points drawn from pictures of all labels of a person, anew for every step.

A picture (`dp_iuv`) holds what a teacher filled in. What is drawn is a function of a seed, which a
batch's plan gives, and of the person, so that a resumed run draws the same.
"""

import dataclasses
from typing import Any

import numpy as np

from ktn_jax.body.parts import PART_GRID
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, ImageRecord
from ktn_jax.results.iuv_pictures import read_labels


def draw_points(record: ImageRecord, count: int, seed: int) -> ImageRecord:
    """Replaces the points that a model set by points of the pictures.

    Args:
        record: of an image; people without a picture stay as they are.
        count: points of each person to draw, with replacement, of all cells that have a label and
            some confidence; the annotator's points come first.
        seed: 64 bits.

    Returns:
        The record.

    Raises:
        ktn_jax.results.detection_checks.ResultsError: a picture cannot be read; it is named.
    """
    people = tuple(
        dataclasses.replace(
            person, densepose=_draw(person.densepose, count, seed, person.annotation_id)
        )
        if person.densepose is not None and person.densepose.iuv_file
        else person
        for person in record.people
    )
    return dataclasses.replace(record, people=people)


def _draw(points: DensePoseRecord, count: int, seed: int, annotation_id: int) -> DensePoseRecord:
    kept = points.take(points.is_annotated)
    patch, uv, confidence = read_labels(points.iuv_file)
    rows, columns = np.nonzero((patch > 0) & (confidence > 0))
    if not len(rows):
        return kept
    key = np.array([seed & (2**64 - 1), annotation_id & (2**64 - 1)], np.uint64)
    chosen = np.random.Philox(key=key).random_raw(count) % np.uint64(len(rows))
    rows, columns = rows[chosen], columns[chosen]
    height, width = patch.shape
    drawn = {
        "x": (columns + 0.5) * PART_GRID / width,
        "y": (rows + 0.5) * PART_GRID / height,
        "i": patch[rows, columns],
        "u": uv[0, rows, columns],
        "v": uv[1, rows, columns],
        "confidence": confidence[rows, columns],
    }
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(kept, name), values]).astype(np.float32)
        for name, values in drawn.items()
    }
    is_annotated = np.arange(len(kept.x) + count) < len(kept.x)
    return dataclasses.replace(kept, **joined, is_annotated=is_annotated, vertex=None, mesh="")
