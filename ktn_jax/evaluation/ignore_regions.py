"""Regions of an image without annotations, where detections are neither right nor wrong.

Image entries may list them as polygons (`ignore_regions_x`, `ignore_regions_y`). People and
detections inside are left out before matching.
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.evaluation.masks import decode

_PERSON_LIMIT = 0.7  # of the box
_DETECTION_LIMIT = 0.9  # of the body pixels


def draw(
    regions_x: Sequence[Sequence[float]],
    regions_y: Sequence[Sequence[float]],
    image_size_hw: tuple[int, int],
) -> np.ndarray:
    """Draws polygons: [H, W] bool."""
    polygons = [
        np.stack([x, y], axis=1).ravel().tolist() for x, y in zip(regions_x, regions_y, strict=True)
    ]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *image_size_hw))
    return decode([rle])[..., 0].astype(bool)


def is_kept(region: np.ndarray, box_xywh: Sequence[float], body: np.ndarray | None = None) -> bool:
    """Decides whether a person or a detection counts.

    Args:
        region: [H, W] bool, true where nothing counts.
        box_xywh: in pixels of the image.
        body: [h, w] bool, the body pixels of a detection; None for an annotated person.

    Returns:
        False for a person with at least 70 % of the box inside, for a detection with at least
        90 % of the body inside, and for an empty box.
    """
    left, top, width, height = (int(x) for x in box_xywh)
    if width * height == 0:
        return False
    # Sliced as the reference does: a box that begins left of the image wraps around.
    right, bottom = min(left + width, region.shape[1]), min(top + height, region.shape[0])
    inside = region[top:bottom, left:right]
    if not inside.any():
        return True
    if body is None:
        return bool(inside.sum() / width / height < _PERSON_LIMIT)
    if inside.shape != body.shape or not body.any():
        return True  # cut by the image border: the reference cannot compare the two, and keeps it
    return bool(np.count_nonzero(body & inside) / np.count_nonzero(body) < _DETECTION_LIMIT)
