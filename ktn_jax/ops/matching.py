"""Assignment of ground truth to anchors or proposals, and sampling of what is trained on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax


def match(
    iou: Array,
    gt_is_valid: Array,
    thresholds: Sequence[float],
    labels: Sequence[int],
    allow_low_quality_matches: bool,
) -> tuple[Array, Array]:
    """Assigns every candidate its best ground truth and a label that depends on their IoU.

    Args:
        iou: [G, N] of ground truth with candidates, by `boxes.pairwise_iou`: it gives the same bits
            wherever it is computed, so that ties stay ties.
        gt_is_valid: bool [G]; other rows are padding and match nothing.
        thresholds: Ascending borders between labels, e.g. (0.3, 0.7).
        labels: One more than the thresholds, e.g. (0, -1, 1) for background, ignored, foreground:
            labels[k] where thresholds[k - 1] <= IoU < thresholds[k].
        allow_low_quality_matches: Whether the candidates that overlap a ground truth best, ties
            included, become foreground (1) below the threshold too. A ground truth that overlaps
            no candidate promotes none; the reference would promote all it does not touch.

    Returns:
        matches: int32 [N], the row of the best valid ground truth, the first among equals; 0 where
            there is none.
        labels: int32 [N]; labels[0] everywhere where no ground truth is valid.

    Raises:
        ValueError: shapes do not fit, or thresholds are not ascending or not one fewer than labels.
    """
    if iou.ndim != 2 or gt_is_valid.shape != iou.shape[:1]:
        raise ValueError(f"want iou [G, N] and [G], got {iou.shape} and {gt_is_valid.shape}")
    if len(labels) != len(thresholds) + 1 or list(thresholds) != sorted(thresholds):
        raise ValueError(
            f"want ascending thresholds and one label more, got {thresholds} and {labels}"
        )
    number = iou.shape[1]
    lowest = jnp.full(number, labels[0], jnp.int32)
    if iou.shape[0] == 0 or number == 0:
        return jnp.zeros(number, jnp.int32), lowest
    # Below every real IoU, so that padding loses each comparison, ties included.
    quality = jnp.where(gt_is_valid[:, None], iou, -1)
    matches = jnp.argmax(quality, axis=0).astype(jnp.int32)
    # Reading the maximum where argmax found it: XLA reduces the outer axis ten times as slowly.
    best = jnp.take_along_axis(quality, matches[None, :], axis=0)[0]
    assigned = lowest
    for threshold, label in zip(thresholds, labels[1:], strict=True):
        assigned = jnp.where(best >= threshold, label, assigned)
    if allow_low_quality_matches:
        best_of_gt = jnp.max(quality, axis=1, keepdims=True)
        is_promoted = jnp.any((quality == best_of_gt) & (best_of_gt > 0), axis=0)
        assigned = jnp.where(is_promoted, 1, assigned)
    has_gt = jnp.any(gt_is_valid)
    return jnp.where(has_gt, matches, 0), jnp.where(has_gt, assigned, lowest)


def _draw(key: Array, is_member: Array, number: int) -> tuple[Array, Array]:
    """Draws members [N] without replacement: int32 indices and their count, at most `number`.

    The indices come in random order, members first; those beyond the count mean nothing.
    """
    number = min(number, is_member.shape[0])
    priority = jnp.where(is_member, jax.random.uniform(key, is_member.shape), -1)
    _, indices = lax.top_k(priority, number)
    return indices.astype(jnp.int32), jnp.minimum(jnp.sum(is_member), number)


def _check_sampling(num_samples: int, positive_fraction: float) -> None:
    if num_samples < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            "want num_samples >= 1 and positive_fraction in [0, 1], "
            f"got {num_samples} and {positive_fraction}"
        )


def subsample(
    key: Array,
    labels: Array,
    num_samples: int,
    positive_fraction: float,
    background_label: int = 0,
) -> Array:
    """Keeps a random, bounded part of the labels and marks the rest as ignored.

    Args:
        key: PRNG key.
        labels: int [N]; -1 is ignored, `background_label` negative, all else positive.
        num_samples: How many to keep in all. Where positives are too few, negatives fill up; where
            negatives are too few, fewer are kept.
        positive_fraction: The largest part of `num_samples` that may be positive.
        background_label: The negative label.

    Returns:
        [N] in the dtype of `labels`: labels of the kept ones, chosen uniformly without
        replacement, and -1 elsewhere.

    Raises:
        ValueError: `num_samples` or `positive_fraction` is out of range.
    """
    _check_sampling(num_samples, positive_fraction)
    is_background = labels == background_label
    is_positive = (labels != -1) & ~is_background
    key_positive, key_negative = jax.random.split(key)
    max_positives = int(num_samples * positive_fraction)
    positives, num_positives = _draw(key_positive, is_positive, max_positives)
    negatives, num_negatives = _draw(key_negative, is_background, num_samples)
    num_negatives = jnp.minimum(num_negatives, num_samples - num_positives)
    is_kept = jnp.zeros(labels.shape, bool)
    for indices, count in ((positives, num_positives), (negatives, num_negatives)):
        slot = jnp.where(jnp.arange(indices.shape[0]) < count, indices, labels.shape[0])
        is_kept = is_kept.at[slot].set(True, mode="drop")
    return jnp.where(is_kept, labels, jnp.asarray(-1, labels.dtype))


def sample_proposals(
    key: Array, is_foreground: Array, is_valid: Array, num_samples: int, positive_fraction: float
) -> tuple[Array, Array, Array]:
    """Draws a fixed number of proposals to train the box head on.

    Args:
        key: PRNG key.
        is_foreground: bool [N], proposals that match a ground truth.
        is_valid: bool [N]; others are never drawn.
        num_samples: S, the number to draw. Where foreground is too little, background fills up;
            where background is too little, slots stay empty.
        positive_fraction: The largest part of S that may be foreground.

    Returns:
        indices: int32 [S] into the proposals, foreground first, in random order, without
            repetition; 0 in empty slots.
        is_foreground: bool [S], false in empty slots.
        is_valid: bool [S], false in empty slots, which all come last.

    Raises:
        ValueError: shapes do not fit, or `num_samples` or `positive_fraction` is out of range.
    """
    _check_sampling(num_samples, positive_fraction)
    if is_foreground.shape != is_valid.shape or is_valid.ndim != 1:
        raise ValueError(f"want [N] and [N], got {is_foreground.shape} and {is_valid.shape}")
    key_foreground, key_background = jax.random.split(key)
    max_foreground = int(num_samples * positive_fraction)
    foreground, num_foreground = _draw(key_foreground, is_foreground & is_valid, max_foreground)
    background, num_background = _draw(key_background, ~is_foreground & is_valid, num_samples)
    slot = jnp.arange(num_samples)
    # Foreground fills the first slots; background follows, wherever that happens to be.
    drawn = jnp.concatenate([foreground, background, jnp.zeros(1, jnp.int32)])
    from_background = foreground.shape[0] + slot - num_foreground
    sampled_is_foreground = slot < num_foreground
    sampled_is_valid = slot < num_foreground + num_background
    source = jnp.where(sampled_is_foreground, slot, from_background)
    indices = drawn[jnp.where(sampled_is_valid, source, drawn.shape[0] - 1)]
    return indices, sampled_is_foreground, sampled_is_valid
