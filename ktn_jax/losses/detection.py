"""Losses of the region proposal network and of the box head.

B images, A anchors of all levels, S sampled ROIs an image. Boxes are xyxy in pixels of the padded
network input.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from ktn_jax.losses.elementwise import (
    binary_cross_entropy,
    smooth_l1,
    softmax_cross_entropy,
)
from ktn_jax.losses.terms import LossTerm, quotient, weighted_mean
from ktn_jax.ops import boxes as box_ops

Array = jax.Array


@flax.struct.dataclass
class AnchorTargets:
    """Training targets of the region proposal network."""

    labels: Array  # int32 [B, A]: 1 person, 0 background, -1 ignored
    boxes: Array  # [B, A, 4] the matched person's, read where the label is 1


@flax.struct.dataclass
class RoiTargets:
    """Training targets of the box head: sampled proposals."""

    boxes: Array  # [B, S, 4]
    is_valid: Array  # bool [B, S]; other rows are padding
    is_foreground: Array  # bool [B, S]
    gt_boxes: Array  # [B, S, 4] the matched person's, read where foreground
    gt_index: Array  # int32 [B, S] the matched person, read where foreground
    classes: Array | None = None  # int32 [B, S] the person's, read there; None for the first class


def rpn_losses(
    logits: Array,
    deltas: Array,
    anchors: Array,
    targets: AnchorTargets,
    *,
    batch_size_per_image: int,
    delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    smooth_l1_beta: float = 0.0,
) -> dict[str, LossTerm]:
    """Computes the losses of the proposal network.

    Both are sums, divided by the number of anchors that could have been sampled and not by the
    number that were, as in the reference.

    Args:
        logits: [B, A] objectness before the sigmoid.
        deltas: [B, A, 4].
        anchors: [A, 4].
        targets: labels and boxes of the anchors.
        batch_size_per_image: most anchors that are sampled in an image.
        delta_weights: of the box coding.
        smooth_l1_beta: 0 for L1.

    Returns:
        {"rpn_objectness", "rpn_deltas"}.
    """
    is_person = targets.labels == 1
    entropy = binary_cross_entropy(logits, is_person)
    wanted = jax.lax.stop_gradient(
        box_ops.encode_deltas(
            jnp.broadcast_to(anchors[None], targets.boxes.shape), targets.boxes, delta_weights
        )
    )
    distance = smooth_l1(deltas, wanted, smooth_l1_beta).sum(-1)
    normaliser = batch_size_per_image * logits.shape[0]
    return {
        "rpn_objectness": quotient(jnp.where(targets.labels >= 0, entropy, 0).sum(), normaliser),
        "rpn_deltas": quotient(jnp.where(is_person, distance, 0).sum(), normaliser),
    }


def box_losses(
    logits: Array,
    deltas: Array,
    targets: RoiTargets,
    *,
    delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
    smooth_l1_beta: float = 0.0,
) -> dict[str, LossTerm]:
    """Computes the losses of the box head.

    Args:
        logits: [B, S, C + 1] of the classes and of the background.
        deltas: [B, S, 4 * C], or [B, S, 4] of boxes that all classes share.
        targets: the ROIs and what they matched.
        delta_weights: of the box coding.
        smooth_l1_beta: 0 for L1.

    Returns:
        {"box_class": mean over all ROIs, "box_deltas": sum over the foreground divided by the
        number of all ROIs}; 0 without ROIs.
    """
    is_foreground = targets.is_foreground
    num_classes = logits.shape[-1] - 1
    classes = jnp.zeros_like(targets.gt_index) if targets.classes is None else targets.classes
    labels = jnp.where(is_foreground, classes, num_classes)
    entropy = softmax_cross_entropy(logits, labels)
    if deltas.shape[-1] > 4:
        by_class = deltas.reshape(*deltas.shape[:2], num_classes, 4)
        own = jnp.where(is_foreground, classes, 0)[..., None, None]
        deltas = jnp.take_along_axis(by_class, own, axis=2)[..., 0, :]
    wanted = jax.lax.stop_gradient(
        box_ops.encode_deltas(targets.boxes, targets.gt_boxes, delta_weights)
    )
    distance = smooth_l1(deltas, wanted, smooth_l1_beta).sum(-1)
    is_valid = targets.is_valid.astype(jnp.float32)
    return {
        "box_class": weighted_mean(entropy, is_valid),
        "box_deltas": weighted_mean(jnp.where(is_foreground, distance, 0), is_valid),
    }
