"""The masks of a person's coarse parts, `dp_masks`, on the 256x256 grid over the person's box."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.runtime import rle


def decode_part_mask(dp_masks: Sequence[Any]) -> np.ndarray:
    """Decodes the part masks of one person.

    Args:
        dp_masks: up to 14 run-length masks of 256x256, empty entries for parts that are not seen.

    Returns:
        [256, 256] uint8 labels 0..14. Where masks overlap the later part wins, as in the original.

    Raises:
        RleError: an entry that is not such a mask.
        ValueError: more than 14 entries.
    """
    if len(dp_masks) > parts.NUM_COARSE:
        raise ValueError(f"dp_masks must have at most 14 entries, got {len(dp_masks)}")
    labels = np.zeros((PART_GRID, PART_GRID), np.uint8)
    for index, entry in enumerate(dp_masks):
        if entry:
            labels[rle.decode_rle(entry, (PART_GRID, PART_GRID))] = index + 1
    return labels


def resample_part_labels(coarse: np.ndarray) -> np.ndarray:
    """Resamples the part labels within a box [h, w] to [256, 256]: the nearest pixel of each."""
    height, width = coarse.shape
    centres = np.arange(PART_GRID) + 0.5
    column = (centres * width / PART_GRID).astype(int)
    row = (centres * height / PART_GRID).astype(int)
    # Column by column in memory, as masks are encoded.
    cells: np.ndarray = np.ascontiguousarray(coarse.T)[column[:, None], row].T
    return cells


def encode_part_masks(labels: np.ndarray) -> list[Any]:
    """Encodes part labels [256, 256] uint8 as 14 entries, compressed run lengths or []."""
    masks: list[Any] = []
    present = np.bincount(labels.ravel(order="K"), minlength=parts.NUM_COARSE + 1)
    for part in range(1, parts.NUM_COARSE + 1):
        if not present[part]:
            masks.append([])
            continue
        encoded = coco_mask.encode(np.asfortranarray(labels == part).view(np.uint8))
        masks.append({"counts": encoded["counts"].decode("ascii"), "size": [PART_GRID, PART_GRID]})
    return masks
