"""Masks on the 256x256 grid over a person's box: of the coarse parts, `dp_masks`, or of it all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.runtime import rle

# Polygons or a run-length mask in pixels of the image, as in annotation files.
Segmentation = Sequence[Sequence[float]] | Mapping[str, Any] | None

# Cells from the box beyond which polygons are cut off, 390 times its side. pycocotools takes memory
# for every cell along an edge, and crashes where they are more than 32 bits hold: of tiny boxes.
_FARTHEST = 1e5
_SMALLEST_CELL = 1e-9  # pixels; a box may be so small that 256 of its cells are none


def decode_part_mask(dp_masks: Sequence[Any] | Mapping[str, Any]) -> np.ndarray:
    """Decodes the part masks of one person.

    Args:
        dp_masks: up to 14 run-length masks of 256x256, empty entries for parts that are not seen;
            or one such mask, of the whole body.

    Returns:
        [256, 256] uint8 labels 0..14. Where masks overlap the later part wins, as in the original.
        A mask of the whole body has the label `parts.UNKNOWN_PART`, 15.

    Raises:
        RleError: an entry that is not such a mask.
        ValueError: more than 14 entries.
    """
    labels = np.zeros((PART_GRID, PART_GRID), np.uint8)
    if isinstance(dp_masks, Mapping):
        labels[rle.decode_rle(dp_masks, labels.shape)] = parts.UNKNOWN_PART
        return labels
    if len(dp_masks) > parts.NUM_COARSE:
        raise ValueError(f"dp_masks must have at most 14 entries, got {len(dp_masks)}")
    for index, entry in enumerate(dp_masks):
        if entry:
            labels[rle.decode_rle(entry, labels.shape)] = index + 1
    return labels


def grid_mask(segmentation: Segmentation, box_xywh: np.ndarray) -> np.ndarray | None:
    """Rasterises a segmentation on the 256x256 grid over a person's box.

    Args:
        segmentation: polygons or a run-length mask in pixels of the image, or None.
        box_xywh: [4] in the same frame.

    Returns:
        [256, 256] uint8, 1 on the person, or None where there is no segmentation.
    """
    if not segmentation:
        return None
    cell = np.maximum(box_xywh[2:] / PART_GRID, _SMALLEST_CELL)
    if not isinstance(segmentation, Mapping):
        rings = [
            ((np.reshape(ring, (-1, 2)) - box_xywh[:2]) / cell).clip(-_FARTHEST, _FARTHEST)
            for ring in segmentation
        ]
        rings = [ring.ravel().tolist() for ring in rings]
        runs = coco_mask.frPyObjects(rings, PART_GRID, PART_GRID)
        # pycocotools' own decode warns under NumPy 2.
        inside: np.ndarray = np.any([rle.decode_rle(ring) for ring in runs], axis=0)
        return inside.astype(np.uint8)
    mask = rle.decode_rle(segmentation)
    middles = (np.arange(PART_GRID) + 0.5)[:, None] * cell + box_xywh[:2]
    columns, rows = np.clip(np.floor(middles).astype(int), 0, np.array(mask.shape)[::-1] - 1).T
    return mask[np.ix_(rows, columns)].astype(np.uint8)


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
