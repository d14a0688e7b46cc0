"""Resampling of maps: transposed convolution, pooling, resizing, reads at points and in boxes.

Maps are NHWC. Geometry is PyTorch's where a checkpoint depends on it: explicit padding, half-pixel
centres (`align_corners=False`) and no anti-aliasing. Weights of resizing are static, so gradients
are matrix products or shifts, never scatters.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ktn_jax.body.parts import PART_GRID


def _require_maps(x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"want a map [B, H, W, C], got {x.shape}")


def conv_transpose(
    x: Array,
    kernel: Array,
    stride: int = 2,
    padding: int = 1,
    bias: Array | None = None,
    matmul: Callable[[Array, Array], Array] = jnp.matmul,
) -> Array:
    """Applies a transposed convolution with PyTorch's geometry.

    One matrix product does it, and no product meets an inserted zero; the gradients are matrix
    products too: XLA's convolution gradients take 30 times as long on CPU. Either the product gives
    what every input cell adds to every output cell it reaches, and the parts are then summed where
    they overlap; or it multiplies the input cells that an output cell depends on, side by side. Of
    the two the one is taken that makes fewer numbers.

    Args:
        x: [B, H, W, Ci].
        kernel: [kH, kW, Ci, Co]: PyTorch's (Ci, Co, kH, kW) with its axes moved, not flipped.
        stride: Output cells per input cell.
        padding: Rows and columns cut from each side of the full output.
        bias: [Co] or None.
        matmul: what multiplies [N, Ci] by [Ci, M].

    Returns:
        [B, (H - 1) * stride + kH - 2 * padding, (W - 1) * stride + kW - 2 * padding, Co].

    Raises:
        ValueError: ranks or channels do not fit, or nothing would be left of the output.
    """
    _require_maps(x)
    if kernel.ndim != 4 or kernel.shape[2] != x.shape[-1] or stride < 1 or padding < 0:
        raise ValueError(
            f"want a kernel [kH, kW, {x.shape[-1]}, Co], stride >= 1 and padding >= 0, "
            f"got {kernel.shape}, {stride}, {padding}"
        )
    batch, height, width, _ = x.shape
    kernel_h, kernel_w, in_channels, out_channels = kernel.shape
    out_h = (height - 1) * stride + kernel_h - 2 * padding
    out_w = (width - 1) * stride + kernel_w - 2 * padding
    if out_h < 1 or out_w < 1:
        raise ValueError(f"padding {padding} leaves nothing of an output {out_h} x {out_w}")
    # Tap stride * t + r of the kernel joins input q to output stride * (q + t) + r.
    taps_h, taps_w = -(-kernel_h // stride), -(-kernel_w // stride)
    missing = (taps_h * stride - kernel_h, taps_w * stride - kernel_w)
    taps = jnp.pad(kernel, ((0, missing[0]), (0, missing[1]), (0, 0), (0, 0)))
    taps = taps.reshape(taps_h, stride, taps_w, stride, in_channels, out_channels)
    if in_channels < stride**2 * out_channels:
        full = _product_of_windows(x, taps, matmul)
    else:
        full = _sum_of_parts(x, taps, matmul)
    rows, columns = full.shape[1:3]
    full = full.reshape(batch, rows, columns, stride, stride, out_channels)
    full = full.transpose(0, 1, 3, 2, 4, 5)
    full = full.reshape(batch, rows * stride, columns * stride, out_channels)
    out = full[:, padding : padding + out_h, padding : padding + out_w]
    return out if bias is None else out + bias[None, None, None, :]


def _sum_of_parts(x: Array, taps: Array, matmul: Callable[[Array, Array], Array]) -> Array:
    """Adds x [B, H, W, Ci] up in the blocks that it reaches, see `conv_transpose`.

    Args:
        x: the input.
        taps: [tH, s, tW, s, Ci, Co] the kernel by block and place in it.
        matmul: what multiplies matrices.

    Returns:
        [B, H + tH - 1, W + tW - 1, s * s * Co], the blocks of the full output.
    """
    batch, height, width, in_channels = x.shape
    taps_h, _, taps_w = taps.shape[:3]
    matrix = taps.transpose(4, 0, 2, 1, 3, 5).reshape(in_channels, -1)
    parts = matmul(x.reshape(-1, in_channels), matrix).reshape(
        batch, height, width, taps_h, taps_w, -1
    )
    moved = (
        jnp.pad(parts[:, :, :, i, j], ((0, 0), (i, taps_h - 1 - i), (j, taps_w - 1 - j), (0, 0)))
        for i in range(taps_h)
        for j in range(taps_w)
    )
    return functools.reduce(operator.add, moved)


def _product_of_windows(x: Array, taps: Array, matmul: Callable[[Array, Array], Array]) -> Array:
    """As `_sum_of_parts`, from all the cells of x that reach a block at once."""
    taps_h, stride, taps_w = taps.shape[:3]
    beyond = ((0, 0), (taps_h - 1, taps_h - 1), (taps_w - 1, taps_w - 1), (0, 0))
    batch, height, width, _ = x.shape
    rows, columns = height + taps_h - 1, width + taps_w - 1
    x = jnp.pad(x, beyond)
    # Block q of the output reads cells q - i of the input.
    windows = jnp.concatenate(
        [
            x[:, i : i + rows, j : j + columns]
            for i in reversed(range(taps_h))
            for j in reversed(range(taps_w))
        ],
        axis=-1,
    )
    matrix = taps.transpose(0, 2, 4, 1, 3, 5).reshape(windows.shape[-1], -1)
    return matmul(windows.reshape(-1, len(matrix)), matrix).reshape(batch, rows, columns, -1)


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
    """Takes maxima over square windows; padding never wins, whatever the sign of the values.

    Args:
        x: [B, H, W, C] floating point.
        window: Side of the window.
        stride: Step of the window.
        padding: Rows and columns of -inf on each side.

    Returns:
        [B, (H + 2 * padding - window) // stride + 1, likewise W, C].

    Raises:
        ValueError: `x` is not a map, or the padding is more than half the window.
    """
    _require_maps(x)
    if 2 * padding > window:
        raise ValueError(f"padding {padding} is more than half of window {window}")
    if window == 1:
        return x[:, ::stride, ::stride]
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    steps = (1, stride, stride, 1)
    pooled: Array = lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), steps, pads)
    return pooled


def _bilinear_weights(size_in: int, size_out: int) -> np.ndarray:
    """Weights [size_out, size_in] of half-pixel resizing, positions beyond the edge clamped."""
    position = np.maximum((np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5, 0)
    before = np.floor(position).astype(int)
    matrix = np.zeros((size_out, size_in))
    for neighbour in (before, before + 1):
        weight = 1 - np.abs(position - neighbour)
        np.add.at(matrix, (np.arange(size_out), np.minimum(neighbour, size_in - 1)), weight)
    return matrix.astype(np.float32)


def _require_resizable(x: Array, size_hw: tuple[int, int]) -> None:
    _require_maps(x)
    if min(*size_hw, *x.shape[1:3]) < 1:
        raise ValueError(f"cannot resize {x.shape} to {size_hw}: sizes must be at least 1")


def resize_bilinear(x: Array, size_hw: tuple[int, int]) -> Array:
    """Resizes maps [B, H, W, C] to [B, *size_hw, C] bilinearly, in full float32 precision.

    Half-pixel centres, edge values repeated, no anti-aliasing: PyTorch's `align_corners=False`.
    Rows, then columns, are multiplied by static weights.

    Raises:
        ValueError: `x` is not a map, or a size is below 1.
    """
    _require_resizable(x, size_hw)
    for axis, size_out, formula in (
        (1, size_hw[0], "oh,bhwc->bowc"),
        (2, size_hw[1], "ow,bhwc->bhoc"),
    ):
        size_in = x.shape[axis]
        if size_in == size_out:
            continue
        if size_out == 2 * size_in:
            x = _double_linear(x, axis)
            continue
        matrix = jnp.asarray(_bilinear_weights(size_in, size_out), x.dtype)
        x = jnp.einsum(formula, matrix, x, precision=lax.Precision.HIGHEST)
    return x


def _double_linear(x: Array, axis: int) -> Array:
    """Doubles one axis bilinearly: a weighted sum of two shifts, with no product by zeros."""
    size = x.shape[axis]
    first = lax.slice_in_dim(x, 0, 1, axis=axis)
    last = lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = jnp.concatenate([first, lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
    pair = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def resize_nearest(x: Array, size_hw: tuple[int, int]) -> Array:
    """Resizes maps [B, H, W, C] to [B, *size_hw, C]: output i reads input floor(i * in / out).

    Raises:
        ValueError: `x` is not a map, or a size is below 1.
    """
    _require_resizable(x, size_hw)
    for axis, size_out in zip((1, 2), size_hw, strict=True):
        size_in = x.shape[axis]
        if size_out % size_in == 0:
            x = _repeat(x, axis, size_out // size_in)
        else:
            x = jnp.take(x, np.arange(size_out) * size_in // size_out, axis=axis)
    return x


def _repeat(x: Array, axis: int, times: int) -> Array:
    """Repeats entries by broadcasting, whose gradient is a sum and not a scatter."""
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    repeated = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape)
    return repeated.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def upsample_nearest_x2(x: Array) -> Array:
    """Repeats every cell of [B, H, W, C] twice along both axes: [B, 2H, 2W, C]."""
    return resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))


def pixel_shuffle(x: Array, factor: int = 2) -> Array:
    """Moves channels into space.

    Args:
        x: [B, H, W, C * factor^2]; channel (c, dy, dx), dx fastest, goes to cell offset (dy, dx) of
            channel c, as in PyTorch.
        factor: Cells made of one, along each axis.

    Returns:
        [B, H * factor, W * factor, C].

    Raises:
        ValueError: the channels do not divide by factor^2.
    """
    _require_maps(x)
    batch, height, width, channels = x.shape
    if channels % factor**2:
        raise ValueError(f"{channels} channels do not divide by {factor}^2")
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)
    x = x.transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * factor, width * factor, channels // factor**2)


def space_to_depth(x: Array) -> Array:
    """Moves every 2 x 2 cells into channels, halving both axes.

    Not the inverse of `pixel_shuffle`: here whole blocks of channels follow one another, in the
    order (even row, even column), (even, odd), (odd, even), (odd, odd) that checkpoints fix.

    Args:
        x: [B, 2H, 2W, C].

    Returns:
        [B, H, W, 4C].

    Raises:
        ValueError: a side is odd.
    """
    _require_maps(x)
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"want even sides, got {x.shape}: pad the input to a multiple of 2")
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


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
    _require_maps(maps)
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

    def read_one(chart: Array, *index: Array) -> Array:
        return chart[index]

    # Each map by itself: devices that share the ROIs then need not see each other's maps.
    read = jax.vmap(read_one)
    for y, weight_y in y_reads:
        for x, weight_x in x_reads:
            weight = jnp.where(is_valid, weight_y * weight_x, 0).astype(maps.dtype)
            if channel is not None:
                values += weight * read(maps, y, x, channel)
            else:
                values += weight[..., None] * read(maps, y, x)
    return values, is_valid


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
