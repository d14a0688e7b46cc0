"""Fixed-size greedy non-maximum suppression."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ktn_jax.ops import boxes as box_ops

_TILE = 256


# Under its own jit, levels of one size are traced and lowered once.
@functools.partial(jax.jit, static_argnums=(3, 4))
def nms(
    boxes: Array,
    scores: Array,
    is_valid: Array,
    iou_threshold: float,
    max_outputs: int,
    groups: Array | None = None,
) -> tuple[Array, Array]:
    """Keeps the best of every group of overlapping boxes.

    The result equals the greedy algorithm's (take the best box, drop all that overlap it by more
    than the threshold, repeat). Boxes are visited in tiles: each tile is checked against the boxes
    kept before it at once, then against itself, so that no step waits for one single box.

    Args:
        boxes: [N, 4] xyxy in pixels.
        scores: [N] higher is better. NaN is not supported: mark such rows invalid.
        is_valid: [N] bool; other rows neither survive nor suppress.
        iou_threshold: A box is dropped where its IoU with a better kept box is greater than this.
            The IoU is float32 and the threshold float64, as in torchvision: an IoU of one fifth is
            greater than 0.2.
        max_outputs: How many boxes to return at most.
        groups: int [N], such as classes: a box suppresses those of its own group only. None for one
            group.

    Returns:
        indices: int32 [max_outputs] into `boxes`, best first, equal scores by lower index; 0 in
            slots that stay empty.
        is_kept: bool [max_outputs], false in empty slots, which all come last.

    Raises:
        ValueError: shapes do not fit, or `max_outputs` is negative.
    """
    number = boxes.shape[0]
    if boxes.shape != (number, 4) or scores.shape != (number,) or is_valid.shape != (number,):
        raise ValueError(
            "want boxes [N, 4], scores [N], is_valid [N], "
            f"got {boxes.shape}, {scores.shape}, {is_valid.shape}"
        )
    if max_outputs < 0:
        raise ValueError(f"max_outputs must not be negative, got {max_outputs}")
    if number == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    # What is kept is a discrete choice: no gradient, and no cost of preparing one.
    boxes, scores = lax.stop_gradient((boxes, scores))
    # Invalid rows are sorted along, wherever that puts them, and are never alive.
    order = jnp.argsort(scores, stable=True, descending=True)
    groups = None if groups is None else groups[order]
    limit = _largest_float32(iou_threshold)
    is_kept = _keep_sorted(boxes[order], is_valid[order], limit, groups)
    # The k-th kept box moves to slot k; what does not fit, or is not kept, is written nowhere.
    slot = jnp.where(is_kept, jnp.cumsum(is_kept) - 1, max_outputs)
    indices = jnp.zeros(max_outputs, jnp.int32).at[slot].set(order.astype(jnp.int32), mode="drop")
    return indices, jnp.arange(max_outputs) < jnp.sum(is_kept)


def _largest_float32(limit: float) -> np.float32:
    """The largest float32 that is not above a float64: no float32 lies between the two."""
    rounded = np.float32(limit)
    return np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > limit else rounded


def _keep_sorted(
    boxes: Array, is_valid: Array, iou_threshold: np.float32, groups: Array | None
) -> Array:
    """Says which boxes [N, 4], best first, greedy suppression keeps: bool [N]."""
    number = boxes.shape[0]
    tile = min(_TILE, number)
    num_tiles = -(-number // tile)
    padding = num_tiles * tile - number
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    is_valid = jnp.pad(is_valid, (0, padding))
    groups = None if groups is None else jnp.pad(groups, (0, padding))
    is_earlier = jnp.arange(tile)[:, None] < jnp.arange(tile)[None, :]

    def overlaps(start_a: Array, start_b: Array) -> Array:
        a = lax.dynamic_slice_in_dim(boxes, start_a, tile)
        b = lax.dynamic_slice_in_dim(boxes, start_b, tile)
        hit = box_ops.pairwise_iou(a, b) > iou_threshold
        if groups is None:
            return hit
        group_a = lax.dynamic_slice_in_dim(groups, start_a, tile)
        group_b = lax.dynamic_slice_in_dim(groups, start_b, tile)
        return hit & (group_a[:, None] == group_b[None, :])

    def visit_tile(index: Array, is_kept: Array) -> Array:
        start = index * tile

        def suppress_by_earlier_tile(earlier: Array, alive: Array) -> Array:
            kept_earlier = lax.dynamic_slice_in_dim(is_kept, earlier * tile, tile)
            hit = overlaps(earlier * tile, start) & kept_earlier[:, None]
            return alive & ~jnp.any(hit, axis=0)

        alive = lax.dynamic_slice_in_dim(is_valid, start, tile)
        alive = lax.fori_loop(0, index, suppress_by_earlier_tile, alive)
        alive = _keep_within_tile(overlaps(start, start) & is_earlier, alive)
        return lax.dynamic_update_slice_in_dim(is_kept, alive, start, axis=0)

    is_kept: Array = lax.fori_loop(0, num_tiles, visit_tile, jnp.zeros(num_tiles * tile, bool))
    return is_kept[:number]


def _keep_within_tile(suppresses: Array, alive: Array) -> Array:
    """Solves kept[j] = alive[j] and no kept[i] suppresses j, for suppresses [T, T] with i < j.

    Each row depends on earlier rows alone, so the solution is unique and repeated substitution
    reaches it: in as many rounds as the longest chain of suppressions, a few in practice.
    """

    def substitute(state: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, _ = state
        updated = alive & ~jnp.any(suppresses & kept[:, None], axis=0)
        return updated, jnp.any(updated != kept)

    kept, _ = lax.while_loop(lambda state: state[1], substitute, (alive, jnp.any(alive)))
    return kept
