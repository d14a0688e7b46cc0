"""ROIAlign over one map or a pyramid.

A bin averages bilinear reads. With a fixed sampling_ratio, all corners of all reads of a bin are
fetched by one gather and reduced by one weighted sum. With sampling_ratio 0 a box has as many reads
as its bins have cells, which is no static shape: a loop fetches one read of every bin at a time, as
often as the box with the most reads needs. Boxes are pooled in chunks if the caller asks for it,
which pays where memory traffic costs more than launches (CPU). The backward pass adds into one
accumulator, in place.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from ktn_jax.ops.ordering import zero_after
from ktn_jax.ops.roi_reads import Bins, axis_reads, check_maps, levels_of_strides, most_reads

# Gathered corners held at once, in elements: about what stays in the caches of a CPU.
_CHUNK_ELEMENTS = 2_000_000

_Windows = dict[str, Array]


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
        canonical_size: Side of a box that belongs on stride 16, see `roi_reads.assign_levels`.

    Returns:
        [R, P, P, C] in the dtype of `features`. Reads more than one cell outside the map count as
        0. Gradients reach `features` only: the position of a box is not differentiated.

    Raises:
        ValueError: shapes or strides do not fit, or `sampling_ratio` is negative.
    """
    check_maps(features, strides, sampling_ratio, valid_hw)
    batch, channels, number = features[0].shape[0], features[0].shape[-1], boxes.shape[0]
    if boxes.shape != (number, 4) or batch_index.shape != (number,):
        raise ValueError(
            f"want boxes [R, 4] and batch_index [R], got {boxes.shape}, {batch_index.shape}"
        )
    level = levels_of_strides(boxes, strides, canonical_size)
    if number == 0:
        return jnp.zeros((0, output_size, output_size, channels), features[0].dtype)
    # The levels become one table of cells, image by image, and a box knows where its own map starts
    # in it. Nothing of this depends on how many images there are, which may be unknown.
    table = jnp.concatenate(
        [level_map.reshape(batch, -1, channels) for level_map in features], axis=1
    ).reshape(-1, channels)
    cells = np.array([level_map.shape[1] * level_map.shape[2] for level_map in features])
    starts = np.cumsum(cells) - cells
    if valid_hw is None:
        sizes = np.array([level_map.shape[1:3] for level_map in features])
        limits = jnp.broadcast_to(jnp.asarray(sizes)[:, None, :], (len(features), batch, 2))
    else:
        limits = jnp.stack([jnp.asarray(size) for size in valid_hw])
    batch_index = batch_index.astype(jnp.int32)
    windows = {
        "start": _per_level(starts, level) + batch_index * int(cells.sum()),
        "row_stride": _per_level([level_map.shape[2] for level_map in features], level),
        "limit_hw": limits.astype(jnp.int32)[level, batch_index],
        "boxes": boxes * jnp.asarray(1 / np.asarray(strides, np.float32))[level][:, None],
    }
    windows = lax.stop_gradient(windows)
    chunk_size = number if chunk_size is None else chunk_size
    return _pool(Bins(output_size, sampling_ratio, aligned), chunk_size, table, windows)


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


def _per_level(values: npt.ArrayLike, level: Array) -> Array:
    return jnp.asarray(np.asarray(values, np.int32))[level]


def _num_reads(windows: _Windows, bins: Bins) -> tuple[Array, Array]:
    """The most reads of a bin along y and x that a box has, int32 scalars."""
    boxes = windows["boxes"]
    return most_reads(boxes[:, 1], boxes[:, 3], bins), most_reads(boxes[:, 0], boxes[:, 2], bins)


def _reads(
    windows: _Windows, bins: Bins, read_yx: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Table rows int32 and weights float32 [R, P * P, K] of all K corner reads of every bin.

    With `read_yx`, of that one read of each bin.
    """
    boxes, limit_hw = windows["boxes"], windows["limit_hw"]
    read_y, read_x = (None, None) if read_yx is None else read_yx
    y, weight_y = axis_reads(boxes[:, 1], boxes[:, 3], limit_hw[:, 0], bins, read_y)
    x, weight_x = axis_reads(boxes[:, 0], boxes[:, 2], limit_hw[:, 1], bins, read_x)
    row = windows["start"][:, None, None] + y * windows["row_stride"][:, None, None]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    shape = (index.shape[0], index.shape[1] * index.shape[2], -1)
    return index.reshape(shape), weight.reshape(shape)


def _add_reads(
    add: Callable[[Array, Array, Array], Array],
    total: Array,
    windows: _Windows,
    bins: Bins,
) -> Array:
    """Applies add(total, index, weight) to one read of every bin after the other."""
    rows, columns = _num_reads(windows, bins)

    def add_read(number: Array, total: Array) -> Array:
        return add(total, *_reads(windows, bins, (number // columns, number % columns)))

    total = lax.fori_loop(0, rows * columns, add_read, total)
    return total


def _chunked(values: Array, chunk_size: int) -> Array:
    """Cuts [R, ...] into [ceil(R / chunk_size), chunk_size, ...], padded by zeros."""
    padding = -values.shape[0] % chunk_size
    values = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))
    return values.reshape(-1, chunk_size, *values.shape[1:])


def _pool_chunk(table: Array, windows: _Windows, bins: Bins) -> Array:
    def sums(index: Array, weight: Array) -> Array:
        corners = table.at[index].get(mode="promise_in_bounds")
        return jnp.einsum(
            "rbk,rbkc->rbc", weight, corners.astype(weight.dtype), precision=lax.Precision.HIGHEST
        )

    if bins.sampling_ratio:
        return sums(*_reads(windows, bins)).astype(table.dtype)
    boxes = windows["boxes"]
    zeros = jnp.zeros((boxes.shape[0], bins.output_size**2, table.shape[-1]), boxes.dtype)
    pooled = _add_reads(lambda total, *read: total + sums(*read), zeros, windows, bins)
    return pooled.astype(table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pool(bins: Bins, chunk_size: int, table: Array, windows: _Windows) -> Array:
    """Pools windows into [R, P, P, C] from a table of cells [T, C]."""
    output_size = bins.output_size
    number, channels = windows["start"].shape[0], table.shape[-1]
    if number <= chunk_size:
        pooled = _pool_chunk(table, windows, bins)
    else:
        chunks = jax.tree.map(lambda values: _chunked(values, chunk_size), windows)

        def write_chunk(index: Array, pooled: Array) -> Array:
            chunk = jax.tree.map(lambda values: values[index], chunks)
            chunk = _pool_chunk(table, chunk, bins)
            return lax.dynamic_update_slice_in_dim(pooled, chunk, index * chunk_size, axis=0)

        # Every element is overwritten. XLA would allocate a constant before there are boxes.
        start = windows["boxes"][0, 0].astype(table.dtype)
        num_chunks = -(-number // chunk_size)
        shape = (num_chunks * chunk_size, output_size**2, channels)
        pooled = lax.fori_loop(0, num_chunks, write_chunk, jnp.full(shape, start))
        pooled = pooled[:number]
    return pooled.reshape(number, output_size, output_size, channels)


def _pool_forward(
    bins: Bins, chunk_size: int, table: Array, windows: _Windows
) -> tuple[Array, tuple[Array, _Windows]]:
    return _pool(bins, chunk_size, table, windows), (table, windows)


def _pool_backward(
    bins: Bins, chunk_size: int, residuals: tuple[Array, _Windows], cotangent: Array
) -> tuple[Array, dict[str, Array | np.ndarray]]:
    """Scatters into one carried accumulator; plain autodiff would make a full table per chunk."""
    table, windows = residuals
    number, channels = windows["start"].shape[0], table.shape[-1]
    cotangent = cotangent.reshape(number, -1, channels)

    def add_chunk(total: Array, chunk: tuple[_Windows, Array]) -> tuple[Array, None]:
        chunk_windows, chunk_cotangent = chunk

        def add(total: Array, index: Array, weight: Array) -> Array:
            updates = weight[..., None] * chunk_cotangent[:, :, None, :].astype(weight.dtype)
            return total.at[index].add(updates, mode="promise_in_bounds")

        if bins.sampling_ratio:
            return add(total, *_reads(chunk_windows, bins)), None
        return _add_reads(add, total, chunk_windows, bins), None

    total = jnp.full(table.shape, zero_after(cotangent), windows["boxes"].dtype)
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
