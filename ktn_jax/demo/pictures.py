"""Test pictures beside their truth and what the model found."""

import os
from collections.abc import Iterable

import cv2
import numpy as np

from ktn_jax.data_pipelines.synthetic.render import DenseTruth
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.results import drawing, maps, records
from ktn_jax.results.records import PersonResult

TITLES = ("input", "true parts", "found parts", "found keypoints", "true IUV", "found IUV")

_MIN_SCORE = 0.5
_MIN_KEYPOINT_SCORE = 0.02  # after so short a training the maps are flat
_ENLARGED_SIDE = 240  # pixels: small pictures are shown at least so large


def test_pictures(
    people: SyntheticSource, results_path: str | os.PathLike[str], indices: Iterable[int]
) -> list[np.ndarray]:
    """Draws test images: input, truth and result, as parts over the image and as IUV.

    Args:
        people: the test set, rendered again for its dense truth.
        results_path: what was found in it.
        indices: images to draw.

    Returns:
        One row of pictures for each image, uint8 RGB.
    """
    found = records.records_to_people(records.read_results(results_path))
    rows = []
    for index in indices:
        picture = people.picture(index)
        image_id = people.example(index, picture).image_record["id"]
        detected = [p for p in found.get(image_id, []) if p.score >= _MIN_SCORE]
        true = true_people(picture.truth)
        size_hw = picture.image.shape[:2]
        columns = (
            picture.image,
            drawing.draw_people(picture.image, true, show_scores=False),
            drawing.draw_people(picture.image, detected),
            drawing.draw_people(
                picture.image,
                detected,
                show_parts=False,
                show_scores=False,
                show_keypoints=True,
                min_keypoint_score=_MIN_KEYPOINT_SCORE,
            ),
            drawing.draw_iuv(maps.paste_iuv(true, size_hw)[0]),
            drawing.draw_iuv(maps.paste_iuv(detected, size_hw)[0]),
        )
        rows.append(drawing.side_by_side([_enlarge(column) for column in columns], TITLES))
    return rows


def true_people(truth: DenseTruth) -> list[PersonResult]:
    """Cuts a rendered picture's dense truth into people, as if they had been found."""
    people = []
    for number in range(1, len(truth.people) + 1):
        mask = truth.instance == number
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        charts = [truth.patch[box], np.rint(255 * truth.u[box]), np.rint(255 * truth.v[box])]
        iuv = np.stack([np.where(mask[box], chart, 0) for chart in charts]).astype(np.uint8)
        corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        people.append(PersonResult(np.array(corners, np.float32), 1.0, iuv))
    return people


def _enlarge(image: np.ndarray) -> np.ndarray:
    factor = -(-_ENLARGED_SIDE // min(image.shape[:2]))
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
