"""Resampling of maps: transposed convolution, pooling, resizing.

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


def require_maps(x: Array) -> None:
    """Refuses what is no map [B, H, W, C], by ValueError."""
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
    require_maps(x)
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
    require_maps(x)
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
    require_maps(x)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _double_linear(x: Array, axis: int) -> Array:
    """Doubles one axis bilinearly: a weighted sum of two shifts, with no product by zeros."""
    size = x.shape[axis]
    first = lax.slice_in_dim(x, 0, 1, axis=axis)
    last = lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = jnp.concatenate([first, lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
    pair = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _double_linear_forward(x: Array, axis: int) -> tuple[Array, None]:
    return _double_linear(x, axis), None


def _double_linear_backward(axis: int, _: None, cotangent: Array) -> tuple[Array]:
    """The transpose, again a sum of two shifts: XLA pads a map for each of five slices instead."""
    shape = cotangent.shape
    size = shape[axis] // 2
    pair = cotangent.reshape(*shape[:axis], size, 2, *shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pair, i, axis + 1, keepdims=False) for i in (0, 1))

    def cut(x: Array, start: int, stop: int) -> Array:
        return lax.slice_in_dim(x, start, stop, axis=axis)

    # The first and the last cell are their own neighbours.
    of_before = jnp.concatenate([cut(even, 1, size), cut(odd, size - 1, size)], axis=axis)
    of_after = jnp.concatenate([cut(even, 0, 1), cut(odd, 0, size - 1)], axis=axis)
    return (0.75 * (even + odd) + 0.25 * (of_before + of_after),)


_double_linear.defvjp(_double_linear_forward, _double_linear_backward)


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
    require_maps(x)
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
    require_maps(x)
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"want even sides, got {x.shape}: pad the input to a multiple of 2")
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
