"""3x3 convolutions with a quarter of the products: Winograd's F(4x4, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). A tile of 4 x 4
outputs reads 6 x 6 inputs; both are transformed so that 36 products a channel pair make what the
definition takes 144 for. It is the same sum in exact arithmetic. In float32 its rounding is larger
than the definition's: about 4e-6 of the standard deviation of the result, root mean square. On
CPUs, whose convolutions are bound by products, it halves the time of wide layers on large maps.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_TILE = 4  # outputs of a tile along an axis
_READS = 6  # inputs of a tile: _TILE + 3 - 1

# Tiles transformed at once: enough for the matrix products, and their 36 planes stay in the caches.
_TILES_AT_ONCE = 600

# The interpolation points are 0, 1, -1, 2, -2 and infinity.
_FROM_INPUT = np.float32(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_FROM_KERNEL = (
    np.float64([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
)
_TO_OUTPUT = np.float32(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def convolve_3x3(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """Convolves maps with a 3x3 kernel at stride 1, zero padded by `dilation` on each side.

    Args:
        x: [B, H, W, C_in] float32.
        kernel: [3, 3, C_in, C_out] float32.
        dilation: of both axes.

    Returns:
        [B, H, W, C_out] float32.

    Raises:
        ValueError: shapes do not fit.
    """
    if x.ndim != 4 or kernel.shape[:3] != (3, 3, x.shape[-1]) or dilation < 1:
        raise ValueError(
            f"want x [B, H, W, C], a kernel [3, 3, C, C_out] and a dilation of at least 1, "
            f"got {x.shape}, {kernel.shape}, {dilation}"
        )
    batch, height, width, _ = x.shape
    # Outputs of a tile, and its inputs, lie `dilation` cells apart, so that tiles of neighbouring
    # phases interleave: `dilation` of them share a span of cells along an axis.
    span = _TILE * dilation
    columns = -(-width // span)
    rows = -(-height // span)
    band = _rows_at_once(rows, batch * columns * dilation**2)
    num_bands = -(-rows // band)
    x = jnp.pad(
        x,
        (
            (0, 0),
            (dilation, num_bands * band * span - height + dilation),
            (dilation, columns * span - width + dilation),
            (0, 0),
        ),
    )
    transform = np.kron(_FROM_KERNEL, _FROM_KERNEL).astype(np.float32)
    weights = jnp.matmul(
        jnp.asarray(transform),
        kernel.transpose(1, 0, 2, 3).reshape(9, -1),
        precision=lax.Precision.HIGHEST,
    ).reshape(_READS**2, *kernel.shape[2:])

    def convolve_band(index: Array | int) -> Array:
        start = index * (band * span)
        part = lax.dynamic_slice_in_dim(x, start, band * span + 2 * dilation, axis=1)
        return _convolve_tiles(part, weights, band, columns, dilation)

    if num_bands == 1:
        out = convolve_band(0)
    else:
        out = lax.map(convolve_band, jnp.arange(num_bands))
        out = jnp.moveaxis(out, 0, 1) if batch > 1 else out
        out = out.reshape(batch, num_bands * band * span, *out.shape[-2:])
    return out[:, :height, :width]


def is_worth_while(x_shape: tuple[int, ...], features: int, dilation: int) -> bool:
    """Whether `convolve_3x3` saves time on a CPU: enough channels and tiles, and little surplus."""
    batch, height, width, channels = x_shape
    span = _TILE * dilation
    tiles = batch * math.ceil(height / span) * math.ceil(width / span) * dilation**2
    surplus = tiles * _TILE**2 / max(batch * height * width, 1)
    return min(channels, features) >= 64 and tiles >= 150 and surplus < 1.3


def _rows_at_once(rows: int, tiles_in_row: int) -> int:
    """How many rows of tiles go through together: the fewest surplus ones, then the most."""
    most = min(max(_TILES_AT_ONCE // tiles_in_row, 1), rows)
    least = max(most // 2, 1)
    return min(range(least, most + 1), key=lambda band: (math.ceil(rows / band) * band, -band))


def _convolve_tiles(x: Array, weights: Array, rows: int, columns: int, dilation: int) -> Array:
    """Convolves padded x [B, rows * span + 2 d, columns * span + 2 d, C], with span = 4 d."""
    batch, channels, features = x.shape[0], x.shape[-1], weights.shape[-1]
    tiles = batch * rows * dilation * columns * dilation
    # Barriers: a fused second pass would repeat the first one for each of its reads.
    x = lax.optimization_barrier(_weighted(_FROM_INPUT, _reads(x, 1, rows, dilation)))
    # [6, B, rows, d, columns * span + 2 d, C]
    x = _weighted(_FROM_INPUT, _reads(x, 4, columns, dilation))
    # [6 along columns, 6 along rows, B, rows, d, columns, d, C]
    x = lax.optimization_barrier(x.reshape(_READS**2, tiles, channels))
    x = lax.dot_general(
        x, weights, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    x = x.reshape(_READS, _READS, batch, rows, dilation, columns, dilation, features)
    x = lax.optimization_barrier(x)
    outputs = [_sum(weights, list(x)) for weights in _TO_OUTPUT]
    # [6, B, rows, d, columns, 4, d, C_out]: the four outputs go before the phase
    x = lax.optimization_barrier(jnp.stack(outputs, axis=5))
    outputs = [_sum(weights, list(x)) for weights in _TO_OUTPUT]
    x = jnp.stack(outputs, axis=2)  # [B, rows, 4, d, columns, 4, d, C_out]
    span = _TILE * dilation
    return x.reshape(batch, rows * span, columns * span, features)


def _reads(x: Array, axis: int, tiles: int, dilation: int) -> list[Array]:
    """The 6 inputs of every tile along an axis, each with [tiles, dilation] in the axis' place."""
    span = _TILE * dilation
    shape = (*x.shape[:axis], tiles, _TILE, dilation, *x.shape[axis + 1 :])
    reads = []
    for index in range(_READS):
        # Whole spans from the read's first cell on, of which the first `dilation` cells count.
        first = index * dilation
        stop = first + (tiles - 1) * span + dilation
        if dilation == 1:
            read = lax.slice_in_dim(x, first, stop, span, axis=axis)
            reads.append(jnp.expand_dims(read, axis + 1))
            continue
        missing = max(first + tiles * span - x.shape[axis], 0)
        pads = [(0, 0)] * x.ndim
        pads[axis] = (0, missing)
        spans = lax.slice_in_dim(jnp.pad(x, pads), first, first + tiles * span, axis=axis)
        reads.append(lax.index_in_dim(spans.reshape(shape), 0, axis + 1, keepdims=False))
    return reads


def _weighted(matrix: np.ndarray, parts: list[Array]) -> Array:
    """Sums parts by each row of a matrix, stacked in front, as one pass over memory."""
    total = None
    for column, part in zip(matrix.T, parts, strict=True):
        term = jnp.asarray(column).reshape(-1, *(1,) * part.ndim) * part[None]
        total = term if total is None else total + term
    return total


def _sum(weights: np.ndarray, parts: list[Array]) -> Array:
    """Sums parts, leaving out those without weight."""
    total = None
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            term = part if weight == 1 else np.float32(weight) * part
            total = term if total is None else total + term
    return total
