"""Labels that a model made instead of an annotator: how much they weigh, and what they leave open.

B images, G people an image, P points a person, N anchors or proposals. Boxes are xyxy in pixels of
the padded network input.
"""

import jax
import jax.numpy as jnp

from ktn_jax.ops.boxes import pairwise_coverage, pairwise_iou
from ktn_jax.training.distributed import Batch

Array = jax.Array

_LARGEST_COVERAGE = 0.5  # of a box by a region in which nobody knows who there is


def point_weights(batch: Batch, dense_weight: float) -> Array | None:
    """Weighs points: 1 where an annotator set them, else `dense_weight` times their confidence.

    Args:
        batch: a training batch.
        dense_weight: `loss.dense_weight`.

    Returns:
        [B, G, P], or None where annotators set all points of the training data.
    """
    if "point_confidence" not in batch:
        return None
    return jnp.where(batch["point_is_annotated"], 1, dense_weight * batch["point_confidence"])


def label_weights(batch: Batch, dense_weight: float) -> Array | None:
    """Weighs the parts and masks of people: the largest weight of their points, 1 without points.

    An annotator who set points also drew the masks, which then count fully; masks of a model count
    as much as its surest point.

    Args:
        batch: a training batch.
        dense_weight: `loss.dense_weight`.

    Returns:
        [B, G], or None where annotators set all points of the training data.
    """
    weights = point_weights(batch, dense_weight)
    if weights is None:
        return None
    is_valid = batch["has_densepose"][..., None] & batch["point_is_valid"]
    return jnp.where(is_valid.any(-1), jnp.where(is_valid, weights, 0).max(-1), 1)


def are_ignored(boxes: Array, regions: Array, iou_threshold: float) -> Array:
    """Marks boxes that are no background, though they match no person: in a region left open.

    Args:
        boxes: [N, 4] of one image.
        regions: [M, 4] `ignored_boxes` of the image: people that a model was not sure of. Padding
            rows are all zero.
        iou_threshold: IoU with a person from which a box is not background.

    Returns:
        bool [N]: the box would not be background if the region were a person, or at least half of
        it lies in the region.
    """
    is_inside = pairwise_coverage(regions, boxes) >= _LARGEST_COVERAGE
    return (is_inside | (pairwise_iou(regions, boxes) >= iou_threshold)).any(0)
