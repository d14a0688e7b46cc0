"""Charts of estimated boxes, read where annotations in ground-truth boxes are.

Maps are NHWC. A chart's cells and an annotation's grid have the reference's geometry, which trained
weights depend on: see each function.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ktn_jax.body.parts import PART_GRID
from ktn_jax.ops.interpolate import require_maps
from ktn_jax.ops.ordering import zero_after


def read_points(
    maps: Array,
    point_x: Array,
    point_y: Array,
    boxes_gt: Array,
    boxes_est: Array,
    channel: Array | None = None,
) -> tuple[Array, Array]:
    """Reads maps of estimated boxes bilinearly at points annotated in ground-truth boxes.

    Cell (i, j) of a map is read at grid coordinate (j, i): coordinates carry no half-pixel shift,
    and an annotation grid has 256 units a side. Both follow the reference, and trained weights
    depend on them.

    Args:
        maps: [R, H, W, C], one per box.
        point_x: [R, P] in [0, 256), in units of 1/256 of the ground-truth box's width.
        point_y: [R, P] likewise, of its height.
        boxes_gt: [R, 4] xyxy, the boxes that the points were annotated in.
        boxes_est: [R, 4] xyxy in the same frame, the boxes that the maps cover.
        channel: int [R, P], the one channel to read at each point, or None to read all.

    Returns:
        values: [R, P], or [R, P, C] without `channel`; 0 where not valid, with a zero gradient.
        is_valid: bool [R, P], whether the point is in the estimated box (half-open). It says
            nothing about whether the point itself is padding.

    Raises:
        ValueError: shapes do not fit.
    """
    require_maps(maps)
    rois, height, width, channels = maps.shape
    points = point_x.shape
    if points[:1] != (rois,) or len(points) != 2 or point_y.shape != points:
        raise ValueError(f"want points [{rois}, P], got {point_x.shape} and {point_y.shape}")
    if boxes_gt.shape != (rois, 4) or boxes_est.shape != (rois, 4):
        raise ValueError(f"want boxes [{rois}, 4], got {boxes_gt.shape} and {boxes_est.shape}")
    if channel is not None and channel.shape != points:
        raise ValueError(f"want channel {points}, got {channel.shape}")
    is_valid = are_points_inside(point_x, point_y, boxes_gt, boxes_est)
    x_reads = _point_reads(point_x, boxes_gt[:, 0::2], boxes_est[:, 0::2], width)
    y_reads = _point_reads(point_y, boxes_gt[:, 1::2], boxes_est[:, 1::2], height)
    values = jnp.zeros(points if channel is not None else (*points, channels), maps.dtype)
    if channel is not None:
        channel = jnp.clip(channel.astype(jnp.int32), 0, channels - 1)

    # Each map by itself: devices that share the ROIs then need not see each other's maps.
    read = jax.vmap(functools.partial(_read_cells, maps.shape[1:]))
    for y, weight_y in y_reads:
        for x, weight_x in x_reads:
            weight = jnp.where(is_valid, weight_y * weight_x, 0).astype(maps.dtype)
            if channel is not None:
                values += weight * read(maps, y, x, channel)
            else:
                values += weight[..., None] * read(maps, y, x)
    return values, is_valid


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read_cells(shape: tuple[int, ...], chart: Array, *index: Array) -> Array:
    """Reads a map of a shape [H, W, C] at int32 indices [P] of rows, columns and maybe channels."""
    return chart[index]


def _read_cells_forward(
    shape: tuple[int, ...], chart: Array, *index: Array
) -> tuple[Array, tuple[Array, ...]]:
    return _read_cells(shape, chart, *index), index


def _read_cells_backward(
    shape: tuple[int, ...], index: tuple[Array, ...], cotangent: Array
) -> tuple[Array | np.ndarray, ...]:
    # Zeros of its own: those of JAX's gradient would be in memory from the start of a program.
    zeros = jnp.full(shape, zero_after(cotangent), cotangent.dtype)
    none = [np.zeros(numbers.shape, jax.dtypes.float0) for numbers in index]
    return zeros.at[index].add(cotangent), *none


_read_cells.defvjp(_read_cells_forward, _read_cells_backward)


def are_points_inside(point_x: Array, point_y: Array, boxes_gt: Array, boxes_est: Array) -> Array:
    """Says which points are in their estimated box, bool [R, P].

    Args:
        point_x: [R, P], as for `read_points`.
        point_y: [R, P] likewise.
        boxes_gt: [R, 4] xyxy, the boxes that the points were annotated in.
        boxes_est: [R, 4] xyxy in the same frame. They are half-open, so an empty one (padding) has
            no point inside.
    """
    x_inside = _place(point_x, boxes_gt[:, 0::2], boxes_est[:, 0::2])[1]
    return x_inside & _place(point_y, boxes_gt[:, 1::2], boxes_est[:, 1::2])[1]


def _place(point: Array, range_gt: Array, range_est: Array) -> tuple[Array, Array]:
    """Pixels [R, P] from the start of the estimated boxes along one axis, and whether inside."""
    start_gt, extent_gt = range_gt[:, :1], range_gt[:, 1:] - range_gt[:, :1]
    offset = start_gt + point * extent_gt / PART_GRID - range_est[:, :1]
    return offset, (offset >= 0) & (offset < range_est[:, 1:] - range_est[:, :1])


def _point_reads(
    point: Array, range_gt: Array, range_est: Array, size: int
) -> list[tuple[Array, Array]]:
    """Cells and weights [R, P] that points read along one axis."""
    offset, is_inside = _place(point, range_gt, range_est)
    extent = range_est[:, 1:] - range_est[:, :1]
    position = jnp.where(is_inside, offset, 0) * size / jnp.where(extent > 0, extent, 1)
    return _neighbours(position, size)


def _neighbours(position: Array, size: int) -> list[tuple[Array, Array]]:
    """The cells (int32) on both sides of positions that are not negative, and their weights."""
    before = jnp.minimum(jnp.floor(position), size - 1)
    after = jnp.minimum(before + 1, size - 1)
    # On the last cell both neighbours are that cell and the weights (1, 0).
    share = jnp.minimum(position, after) - before
    return [(before.astype(jnp.int32), 1 - share), (after.astype(jnp.int32), share)]


def _chart_positions(size_in: int, size_out: int, range_src: Array, range_dst: Array) -> Array:
    """Positions [R, size_out] of a destination grid's cells on a grid over the source box.

    Grid cell i of size_out is at i / size_out of the destination box, without half a cell; the
    source's first and last cells are on the borders of its box. Both are the reference's.
    """
    start_src, extent_src = range_src[:, :1], range_src[:, 1:] - range_src[:, :1]
    extent_src = jnp.where(extent_src > 0, extent_src, 1)
    # In the order of the reference, whose rounding decides ties between cells.
    low = 2 * (range_dst[:, :1] - start_src) / extent_src - 1
    high = 2 * (range_dst[:, 1:] - start_src) / extent_src - 1
    step = jnp.asarray(np.arange(size_out, dtype=np.float32) / np.float32(size_out))[None, :]
    position = step * (high - low) + low
    return (position + 1) / 2 * (size_in - 1)


def resample_chart_nearest(
    charts: Array, boxes_src: Array, boxes_dst: Array, size_hw: tuple[int, int]
) -> Array:
    """Reads label maps annotated over one box on a grid over another, at the nearest cell.

    Args:
        charts: [R, H, W] labels of any dtype over `boxes_src`; in annotations H = W = 256.
        boxes_src: [R, 4] xyxy, ground truth.
        boxes_dst: [R, 4] xyxy in the same frame, estimated boxes.
        size_hw: Rows and columns of the grid laid over each destination box.

    Returns:
        [R, *size_hw] in the dtype of `charts`; 0, background, outside the source box.

    Raises:
        ValueError: shapes do not fit.
    """
    rois = charts.shape[0]
    if charts.ndim != 3 or boxes_src.shape != (rois, 4) or boxes_dst.shape != (rois, 4):
        raise ValueError(
            "want charts [R, H, W] and boxes [R, 4], "
            f"got {charts.shape}, {boxes_src.shape}, {boxes_dst.shape}"
        )
    height, width = charts.shape[1:]
    x = jnp.round(_chart_positions(width, size_hw[1], boxes_src[:, 0::2], boxes_dst[:, 0::2]))
    y = jnp.round(_chart_positions(height, size_hw[0], boxes_src[:, 1::2], boxes_dst[:, 1::2]))
    x_inside, y_inside = (x >= 0) & (x <= width - 1), (y >= 0) & (y <= height - 1)
    x = jnp.clip(x, 0, width - 1).astype(jnp.int32)
    y = jnp.clip(y, 0, height - 1).astype(jnp.int32)
    # Each chart by itself: devices that share the ROIs then need not see each other's charts. Whole
    # rows and then whole columns: cells one by one would be a hundred times as many reads.
    labels = jax.vmap(lambda chart, y, x: chart[y][:, x])(charts, y, x)
    is_inside = y_inside[:, :, None] & x_inside[:, None, :]
    return jnp.where(is_inside, labels, jnp.zeros((), charts.dtype))
