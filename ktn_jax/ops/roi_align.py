"""ROIAlign over one map or a pyramid, and the pyramid level of a box.

A bin averages bilinear reads. With a fixed sampling_ratio, all corners of all reads of a bin are
fetched by one gather and reduced by one weighted sum. With sampling_ratio 0 a box has as many reads
as its bins have cells, which is no static shape: a loop fetches one read of every bin at a time, as
often as the box with the most reads needs. Boxes are pooled in chunks if the caller asks for it,
which pays where memory traffic costs more than launches (CPU). The backward pass adds into one
accumulator, in place.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

# Gathered corners held at once, in elements: about what stays in the caches of a CPU.
_CHUNK_ELEMENTS = 2_000_000

_Settings = tuple[int, int, bool, int]  # output_size, sampling_ratio, aligned, chunk_size
_Windows = dict[str, Array]


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


def multilevel_roi_align(
    features: Sequence[Array],
    strides: Sequence[float],
    boxes: Array,
    batch_index: Array,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    valid_hw: Sequence[Array] | None = None,
    chunk_size: int | None = None,
    canonical_size: float = 224.0,
) -> Array:
    """Pools every box from its own pyramid level, once; with one level, all from that map.

    Args:
        features: Per level [B, H_l, W_l, C], finest first, one dtype.
        strides: Per level, input pixels per cell; with several levels, consecutive powers of two.
        boxes: [R, 4] xyxy in pixels of the network input.
        batch_index: int [R], the image of each box.
        output_size: P, bins per side.
        sampling_ratio: Reads per bin and axis; 0 for ceil(cells of the box / P), the original's
            adaptive number, which each axis has of its own.
        aligned: Whether cell centres are at half-integers (ROIAlignV2). The original without the
            half-pixel shift also widens boxes to at least one cell.
        valid_hw: Per level int [B, 2], rows and columns of each map that hold the image; None for
            all. Reads clamp to this part, so padding a map changes nothing.
        chunk_size: Boxes pooled at once, see `cache_sized_chunk`; None for all.
        canonical_size: Side of a box that belongs on stride 16, see `assign_levels`.

    Returns:
        [R, P, P, C] in the dtype of `features`. Reads more than one cell outside the map count as
        0. Gradients reach `features` only: the position of a box is not differentiated.

    Raises:
        ValueError: shapes or strides do not fit, or `sampling_ratio` is negative.
    """
    _check_arguments(features, strides, boxes, batch_index, sampling_ratio, valid_hw)
    batch, channels, number = features[0].shape[0], features[0].shape[-1], boxes.shape[0]
    if number == 0:
        return jnp.zeros((0, output_size, output_size, channels), features[0].dtype)
    level = jnp.zeros(number, jnp.int32)
    if len(features) > 1:
        finest = round(math.log2(strides[0]))
        level = assign_levels(boxes, finest, finest + len(features) - 1, canonical_size)
    # The levels become one table of cells, and a box knows where its own map starts in it.
    table = jnp.concatenate([level_map.reshape(-1, channels) for level_map in features])
    cells = np.array([level_map.shape[1] * level_map.shape[2] for level_map in features])
    starts = np.concatenate([[0], np.cumsum(batch * cells)[:-1]])
    if valid_hw is None:
        sizes = np.array([level_map.shape[1:3] for level_map in features])
        limits = jnp.asarray(np.broadcast_to(sizes[:, None, :], (len(features), batch, 2)))
    else:
        limits = jnp.stack([jnp.asarray(size) for size in valid_hw])
    batch_index = batch_index.astype(jnp.int32)
    windows = {
        "start": _per_level(starts, level) + batch_index * _per_level(cells, level),
        "row_stride": _per_level([level_map.shape[2] for level_map in features], level),
        "limit_hw": limits.astype(jnp.int32)[level, batch_index],
        "boxes": boxes * jnp.asarray(1 / np.asarray(strides, np.float32))[level][:, None],
    }
    windows = lax.stop_gradient(windows)
    chunk_size = number if chunk_size is None else chunk_size
    return _pool((output_size, sampling_ratio, aligned, chunk_size), table, windows)


def cache_sized_chunk(output_size: int, sampling_ratio: int, channels: int) -> int:
    """How many boxes to pool at once on a CPU: their corners stay in its caches.

    Args:
        output_size: bins per side.
        sampling_ratio: reads per bin and axis; 0 as for one, as adaptive reads come one at a time.
        channels: of the maps.

    Returns:
        At least 1.
    """
    corners = 4 * max(sampling_ratio, 1) ** 2 * output_size**2
    return max(_CHUNK_ELEMENTS // (corners * channels), 1)


def _check_arguments(
    features: Sequence[Array],
    strides: Sequence[float],
    boxes: Array,
    batch_index: Array,
    sampling_ratio: int,
    valid_hw: Sequence[Array] | None,
) -> None:
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio must not be negative, got {sampling_ratio}")
    number = boxes.shape[0]
    if boxes.shape != (number, 4) or batch_index.shape != (number,):
        raise ValueError(
            f"want boxes [R, 4] and batch_index [R], got {boxes.shape}, {batch_index.shape}"
        )
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
    if len(strides) > 1:
        exponents = [math.log2(stride) for stride in strides]
        if exponents != [round(exponents[0]) + i for i in range(len(strides))]:
            raise ValueError(f"want strides that are consecutive powers of two, got {strides}")


def _per_level(values: npt.ArrayLike, level: Array) -> Array:
    return jnp.asarray(np.asarray(values, np.int32))[level]


def _axis_reads(
    low: Array, high: Array, limit: Array, settings: _Settings, read: Array | None
) -> tuple[Array, Array]:
    """Positions and weights of the reads along one axis.

    Args:
        low: [R] where the box starts, in cells.
        high: [R] where it ends.
        limit: int32 [R], the number of cells that count.
        settings: of the pooling.
        read: of adaptive sampling, the number of the one read of each bin that is wanted.

    Returns:
        int32 and float32 [R, P, 2 * S]: the two neighbours of each of a bin's S reads, weighted so
        that a bin is the mean of all its reads. A read that a box does not have weighs 0.
    """
    output_size, ratio, _, _ = settings
    low, bin_size = _starts_and_bins(low, high, settings)
    low, bin_size = low[:, None, None], bin_size[:, None, None]
    bins = jnp.arange(output_size, dtype=low.dtype)[None, :, None]
    count: Array | int = ratio
    if read is None:
        reads = (jnp.arange(ratio, dtype=low.dtype) + 0.5)[None, None, :]
    else:
        count = jnp.maximum(_reads_of_bin(bin_size), 1)
        reads = (read.astype(low.dtype) + 0.5).reshape(1, 1, 1)
    offset = _rounded_quotient(_rounded_product(reads, bin_size), count)
    position = low + _rounded_product(bins, bin_size) + offset
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


def _starts_and_bins(low: Array, high: Array, settings: _Settings) -> tuple[Array, Array]:
    """Where boxes [R] start along an axis, and how long their bins are, in cells.

    The order of operations is the reference's here and in `_axis_reads`, and each is rounded on
    its own: a read that meets the border of the map counts or not by the last bit.
    """
    output_size, _, aligned, _ = settings
    if aligned:
        low, high = low - 0.5, high - 0.5
    extent = high - low
    if not aligned:
        extent = jnp.maximum(extent, 1)
    return low, _rounded_quotient(extent, output_size)


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


def _num_reads(windows: _Windows, settings: _Settings) -> tuple[Array, Array]:
    """The most reads of a bin along y and x that a box has, int32 scalars."""
    boxes = windows["boxes"]
    _, bins = _starts_and_bins(boxes[:, :2], boxes[:, 2:], settings)
    columns, rows = _reads_of_bin(bins).max(0).astype(jnp.int32)
    return rows, columns


def _reads(
    windows: _Windows, settings: _Settings, read_yx: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Table rows int32 and weights float32 [R, P * P, K] of all K corner reads of every bin.

    With `read_yx`, of that one read of each bin.
    """
    boxes, limit_hw = windows["boxes"], windows["limit_hw"]
    read_y, read_x = (None, None) if read_yx is None else read_yx
    y, weight_y = _axis_reads(boxes[:, 1], boxes[:, 3], limit_hw[:, 0], settings, read_y)
    x, weight_x = _axis_reads(boxes[:, 0], boxes[:, 2], limit_hw[:, 1], settings, read_x)
    row = windows["start"][:, None, None] + y * windows["row_stride"][:, None, None]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    shape = (index.shape[0], index.shape[1] * index.shape[2], -1)
    return index.reshape(shape), weight.reshape(shape)


def _add_reads(
    add: Callable[[Array, Array, Array], Array],
    total: Array,
    windows: _Windows,
    settings: _Settings,
) -> Array:
    """Applies add(total, index, weight) to one read of every bin after the other."""
    rows, columns = _num_reads(windows, settings)

    def add_read(number: Array, total: Array) -> Array:
        return add(total, *_reads(windows, settings, (number // columns, number % columns)))

    total = lax.fori_loop(0, rows * columns, add_read, total)
    return total


def _chunked(values: Array, chunk_size: int) -> Array:
    """Cuts [R, ...] into [ceil(R / chunk_size), chunk_size, ...], padded by zeros."""
    padding = -values.shape[0] % chunk_size
    values = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))
    return values.reshape(-1, chunk_size, *values.shape[1:])


def _pool_chunk(table: Array, windows: _Windows, settings: _Settings) -> Array:
    def sums(index: Array, weight: Array) -> Array:
        corners = table.at[index].get(mode="promise_in_bounds")
        return jnp.einsum(
            "rbk,rbkc->rbc", weight, corners.astype(weight.dtype), precision=lax.Precision.HIGHEST
        )

    if settings[1]:
        return sums(*_reads(windows, settings)).astype(table.dtype)
    boxes = windows["boxes"]
    zeros = jnp.zeros((boxes.shape[0], settings[0] ** 2, table.shape[-1]), boxes.dtype)
    pooled = _add_reads(lambda total, *read: total + sums(*read), zeros, windows, settings)
    return pooled.astype(table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(settings: _Settings, table: Array, windows: _Windows) -> Array:
    """Pools windows into [R, P, P, C] from a table of cells [T, C]."""
    output_size, _, _, chunk_size = settings
    number, channels = windows["start"].shape[0], table.shape[-1]
    if number <= chunk_size:
        pooled = _pool_chunk(table, windows, settings)
    else:
        chunks = jax.tree.map(lambda values: _chunked(values, chunk_size), windows)

        def write_chunk(index: Array, pooled: Array) -> Array:
            chunk = jax.tree.map(lambda values: values[index], chunks)
            chunk = _pool_chunk(table, chunk, settings)
            return lax.dynamic_update_slice_in_dim(pooled, chunk, index * chunk_size, axis=0)

        # Every element is overwritten. XLA would allocate a constant before there are boxes.
        start = windows["boxes"][0, 0].astype(table.dtype)
        num_chunks = -(-number // chunk_size)
        shape = (num_chunks * chunk_size, output_size**2, channels)
        pooled = lax.fori_loop(0, num_chunks, write_chunk, jnp.full(shape, start))
        pooled = pooled[:number]
    return pooled.reshape(number, output_size, output_size, channels)


def _pool_forward(
    settings: _Settings, table: Array, windows: _Windows
) -> tuple[Array, tuple[Array, _Windows]]:
    return _pool(settings, table, windows), (table, windows)


def _pool_backward(
    settings: _Settings, residuals: tuple[Array, _Windows], cotangent: Array
) -> tuple[Array, dict[str, Array | np.ndarray]]:
    """Scatters into one carried accumulator; plain autodiff would make a full table per chunk."""
    table, windows = residuals
    chunk_size = settings[-1]
    number, channels = windows["start"].shape[0], table.shape[-1]
    cotangent = cotangent.reshape(number, -1, channels)

    def add_chunk(total: Array, chunk: tuple[_Windows, Array]) -> tuple[Array, None]:
        chunk_windows, chunk_cotangent = chunk

        def add(total: Array, index: Array, weight: Array) -> Array:
            updates = weight[..., None] * chunk_cotangent[:, :, None, :].astype(weight.dtype)
            return total.at[index].add(updates, mode="promise_in_bounds")

        if settings[1]:
            return add(total, *_reads(chunk_windows, settings)), None
        return _add_reads(add, total, chunk_windows, settings), None

    total = jnp.zeros(table.shape, windows["boxes"].dtype)
    if number <= chunk_size:
        total, _ = add_chunk(total, (windows, cotangent))
    else:
        chunks = jax.tree.map(lambda values: _chunked(values, chunk_size), (windows, cotangent))
        total, _ = lax.scan(add_chunk, total, chunks)
    return total.astype(table.dtype), jax.tree.map(_zero_cotangent, windows)


def _zero_cotangent(values: Array) -> Array | np.ndarray:
    if jnp.issubdtype(values.dtype, jnp.inexact):
        return jnp.zeros_like(values)
    return np.zeros(values.shape, jax.dtypes.float0)


_pool.defvjp(_pool_forward, _pool_backward)
