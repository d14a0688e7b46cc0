"""Where ROIAlign reads: the pyramid level of a box, and the cells and weights of its bins.

Separable: a bin's weight of a cell is that of the cell's row times that of its column.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Bins(NamedTuple):
    """The grid that is laid over each box; see `roi_align.multilevel_roi_align`."""

    output_size: int
    sampling_ratio: int
    aligned: bool


def assign_levels(
    boxes: Array,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Array:
    """Chooses the pyramid level that each box is pooled from (Lin et al., CVPR 2017, equation 1).

    Args:
        boxes: [..., 4] xyxy in pixels of the network input.
        min_level: Finest level, as the log2 of its stride.
        max_level: Coarsest level.
        canonical_size: Side in pixels of a box that belongs on `canonical_level`.
        canonical_level: Level of a box of the canonical size.

    Returns:
        int32 [...] relative to `min_level`: 0 for the finest. Empty boxes go to 0.

    Raises:
        ValueError: `boxes` are not [..., 4], or the levels are in the wrong order.
    """
    if boxes.shape[-1] != 4 or min_level > max_level:
        raise ValueError(
            f"want boxes [..., 4] and min <= max, got {boxes.shape}, {min_level}, {max_level}"
        )
    size = boxes[..., 2:] - boxes[..., :2]
    side = jnp.sqrt(jnp.maximum(size[..., 0] * size[..., 1], 0))
    # The reference adds its epsilon inside the logarithm; borders between levels depend on it.
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size + 1e-8))
    return jnp.clip(level, min_level, max_level).astype(jnp.int32) - min_level


def levels_of_strides(boxes: Array, strides: Sequence[float], canonical_size: float) -> Array:
    """`assign_levels` among levels of some strides: int32 [...], 0 where there is only one.

    Raises:
        ValueError: the strides are not consecutive powers of two.
    """
    if len(strides) == 1:
        return jnp.zeros(boxes.shape[:-1], jnp.int32)
    exponents = [math.log2(stride) for stride in strides]
    finest = round(exponents[0])
    if exponents != [finest + index for index in range(len(strides))]:
        raise ValueError(f"want strides that are consecutive powers of two, got {strides}")
    return assign_levels(boxes, finest, finest + len(strides) - 1, canonical_size)


def check_maps(
    features: Sequence[Array],
    strides: Sequence[float],
    sampling_ratio: int,
    valid_hw: Sequence[Array] | None,
) -> None:
    """Checks the maps [B, H_l, W_l, C] that boxes are pooled from.

    Raises:
        ValueError: shapes or their numbers do not fit, or `sampling_ratio` is negative.
    """
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio must not be negative, got {sampling_ratio}")
    if not features or len(features) != len(strides) or len(valid_hw or features) != len(features):
        raise ValueError(
            f"want a stride (and valid_hw) per level, got {len(features)} maps, strides {strides}"
        )
    batch, channels = features[0].shape[0], features[0].shape[-1]
    for level_map in features:
        fits = level_map.ndim == 4 and level_map.shape[0] == batch
        if not fits or level_map.shape[-1] != channels or 0 in level_map.shape[:3]:
            raise ValueError(
                "want non-empty maps [B, H, W, C] of one B and C, "
                f"got {[level_map.shape for level_map in features]}"
            )


def axis_reads(
    low: Array, high: Array, limit: Array, bins: Bins, read: Array | None = None
) -> tuple[Array, Array]:
    """Positions and weights of the reads along one axis.

    Args:
        low: [R] where the box starts, in cells.
        high: [R] where it ends.
        limit: int32 [R], the number of cells that count.
        bins: of each box.
        read: of adaptive sampling, the number of the one read of each bin that is wanted.

    Returns:
        int32 and float32 [R, P, 2 * S]: the two neighbours of each of a bin's S reads, weighted so
        that a bin is the mean of all its reads. A read that a box does not have weighs 0.
    """
    low, bin_size = _starts_and_bins(low, high, bins)
    low, bin_size = low[:, None, None], bin_size[:, None, None]
    places = jnp.arange(bins.output_size, dtype=low.dtype)[None, :, None]
    count: Array | int = bins.sampling_ratio
    if read is None:
        reads = (jnp.arange(count, dtype=low.dtype) + 0.5)[None, None, :]
    else:
        count = jnp.maximum(_reads_of_bin(bin_size), 1)
        reads = (read.astype(low.dtype) + 0.5).reshape(1, 1, 1)
    offset = _rounded_quotient(_rounded_product(reads, bin_size), count)
    position = low + _rounded_product(places, bin_size) + offset
    limit = limit[:, None, None]
    is_inside = (position >= -1) & (position <= limit.astype(low.dtype))
    if read is not None:
        is_inside &= reads < _reads_of_bin(bin_size)
    last = (limit - 1).astype(low.dtype)
    position = jnp.clip(position, 0, jnp.maximum(last, 0))
    before = jnp.floor(position)
    share = position - before
    scale = jnp.where(is_inside, 1 / count, 0).astype(low.dtype)
    weights = jnp.concatenate([(1 - share) * scale, share * scale], axis=-1)
    cells = jnp.concatenate([before, jnp.minimum(before + 1, jnp.maximum(last, 0))], axis=-1)
    return cells.astype(jnp.int32), weights


def axis_weights(low: Array, high: Array, limit: Array, bins: Bins, size: int) -> Array:
    """Weights of all cells along one axis, float32 [R, P, size]; arguments as of `axis_reads`."""
    numbers = jnp.arange(size)[None, None, :]

    def weigh(cells: Array, weights: Array) -> Array:
        # Over a bin's reads one by one: an array of all of them would be the largest of a step.
        columns = range(cells.shape[-1])
        return sum(
            (jnp.where(cells[..., k, None] == numbers, weights[..., k, None], 0) for k in columns),
            start=jnp.zeros((), weights.dtype),
        )

    if bins.sampling_ratio:
        return weigh(*axis_reads(low, high, limit, bins))
    most = most_reads(low, high, bins)

    def add_read(read: Array, total: Array) -> Array:
        return total + weigh(*axis_reads(low, high, limit, bins, read))

    zeros = jnp.zeros((low.shape[0], bins.output_size, size), low.dtype)
    weights: Array = lax.fori_loop(0, most, add_read, zeros)
    return weights


def most_reads(low: Array, high: Array, bins: Bins) -> Array:
    """The most adaptive reads of a bin along one axis that a box [R] has, int32 []."""
    _, bin_size = _starts_and_bins(low, high, bins)
    most: Array = _reads_of_bin(bin_size).max().astype(jnp.int32)
    return most


def _starts_and_bins(low: Array, high: Array, bins: Bins) -> tuple[Array, Array]:
    """Where boxes [R] start along an axis, and how long their bins are, in cells.

    The order of operations is the reference's here and in `axis_reads`, and each is rounded on
    its own: a read that meets the border of the map counts or not by the last bit.
    """
    if bins.aligned:
        low, high = low - 0.5, high - 0.5
    extent = high - low
    if not bins.aligned:
        extent = jnp.maximum(extent, 1)
    return low, _rounded_quotient(extent, bins.output_size)


def _rounded_product(a: Array, b: Array) -> Array:
    """Multiplies, rounding before a sum that a compiler may fuse the product with; NaN gives 0."""
    product = a * b
    return jnp.where(jnp.isnan(product), 0, product)


def _rounded_quotient(values: Array, divisor: Array | int) -> Array:
    """Divides: a compiler multiplies with the reciprocal of a constant, which rounds twice."""
    return values / jnp.where(jnp.isnan(values), 1, divisor).astype(values.dtype)


def _reads_of_bin(bin_size: Array) -> Array:
    """How often adaptive sampling reads a bin of so many cells along an axis: never if empty."""
    return jnp.maximum(jnp.ceil(bin_size), 0)
