"""Losses of masks and of keypoint heatmaps, and masks as their targets.

N ROIs in a flat batch. Boxes are xyxy in pixels of the padded network input.
"""

import flax.struct
import jax
import jax.numpy as jnp

from ktn_jax.body.parts import PART_GRID
from ktn_jax.losses.elementwise import (
    binary_cross_entropy,
    softmax_cross_entropy,
    weighted_sum,
)
from ktn_jax.losses.terms import LossTerm, quotient, weighted_mean
from ktn_jax.ops.keypoints import keypoints_to_heatmap_index

Array = jax.Array


@flax.struct.dataclass
class KeypointTargets:
    """Training targets of keypoint heatmaps."""

    boxes: Array  # [N, 4] the ROIs, which the heatmaps cover
    weight: Array  # [N] 0 for padding, more than 1 for an ROI that represents others too
    keypoints: Array  # [N, 17, 3] x, y in pixels, visibility


@flax.struct.dataclass
class MaskTargets:
    """Training targets of masks."""

    labels: Array  # bool [N, S, S]: cells of the ROI that are the person's
    weight: Array  # [N] as in `KeypointTargets`


def keypoint_loss(heatmaps: Array, targets: KeypointTargets, normaliser: float | None) -> LossTerm:
    """Computes the cross-entropy of keypoints over the cells of their heatmaps.

    Args:
        heatmaps: [N, S, S, 17] logits over each ROI.
        targets: those not annotated or outside their ROI do not count.
        normaliser: divides the sum; None for the weighted number of keypoints that count.

    Returns:
        A term; 0 where no keypoint counts.
    """
    size = heatmaps.shape[1]
    cells, is_valid = keypoints_to_heatmap_index(targets.keypoints, targets.boxes, size)
    logits = heatmaps.reshape(heatmaps.shape[0], size * size, -1)
    entropy = softmax_cross_entropy(logits, cells, axis=1)
    weight = jnp.where(is_valid, targets.weight[:, None], 0)
    if normaliser is None:
        return weighted_mean(entropy, weight)
    return quotient(weighted_sum(entropy, weight), normaliser)


def mask_loss(logits: Array, targets: MaskTargets) -> LossTerm:
    """Computes the mean binary cross-entropy of masks over ROIs and cells.

    Args:
        logits: [N, S, S] of the class of each ROI's person.
        targets: of the same side.

    Returns:
        A term; 0 where all ROIs are padding.
    """
    entropy = binary_cross_entropy(logits, targets.labels).mean((1, 2))
    return weighted_mean(entropy, targets.weight)


def mask_labels(masks: Array, mask_boxes: Array, rois: Array, size: int) -> Array:
    """Cuts ROIs out of masks: cells of which at least half is the person's.

    detectron2 makes such targets from polygons or from masks of the image's resolution; they differ
    from each other, and from these, in about half a per cent of the cells.

    Args:
        masks: uint8 [N, 256, 256], 0 or 1 on a grid over `mask_boxes`. Nothing is outside.
        mask_boxes: [N, 4].
        rois: [N, 4].
        size: S.

    Returns:
        bool [N, S, S]; False in an empty ROI or box.
    """
    rows, columns = (_shares(mask_boxes, rois, size, axis) for axis in (1, 0))
    covered = jnp.einsum(
        "nsr,nrc,ntc->nst",
        rows,
        masks.astype(jnp.float32),
        columns,
        precision=jax.lax.Precision.HIGHEST,
    )
    return covered >= 0.5


def _shares(mask_boxes: Array, rois: Array, size: int, axis: int) -> Array:
    """Share of each of an ROI's `size` bins along an axis that each cell covers, [N, size, 256]."""
    low, high = mask_boxes[:, axis], mask_boxes[:, axis + 2]
    scale = PART_GRID / jnp.where(high > low, high - low, 1)
    start, end = ((rois[:, axis + 2 * i] - low) * scale for i in (0, 1))
    width = jnp.maximum(end - start, 0) / size
    first = start[:, None] + width[:, None] * jnp.arange(size, dtype=width.dtype)[None]
    cells = jnp.arange(PART_GRID, dtype=width.dtype)[None, None]
    last = (first + width[:, None])[..., None]
    overlap = jnp.minimum(last, cells + 1) - jnp.maximum(first[..., None], cells)
    overlap = jnp.maximum(overlap, 0)
    has_size = (width > 0) & (high > low)
    return jnp.where(
        has_size[:, None, None], overlap / jnp.where(has_size, width, 1)[:, None, None], 0
    )
