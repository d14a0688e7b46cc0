"""3x3 convolutions with a quarter of the products: Winograd's F(4x4, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). A tile of 4 x 4
outputs reads 6 x 6 inputs; both are transformed so that 36 products a channel pair make what the
definition takes 144 for. It is the same sum in exact arithmetic. In float32 its rounding is larger
than the definition's: about 4e-6 of the standard deviation of the result, root mean square. On
CPUs, whose convolutions are bound by products, it halves the time of wide layers on large maps.
"""

import dataclasses
import functools
import math

import jax
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
_TRANSFORM = np.kron(_FROM_KERNEL, _FROM_KERNEL).astype(np.float32)  # [36, 9]
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
    return _convolve(dilation, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(dilation: int, x: Array, kernel: Array) -> Array:
    batch, height, width, _ = x.shape
    bands = _cut(x.shape, dilation)
    first = x[0, 0, 0, 0]
    # Always 1, but not known before the map is there: transformed kernels, four times the size of
    # plain ones, would be made at the start and wait in memory together.
    one = jnp.where(first > jnp.inf, 0.0, 1.0)
    weights = jnp.matmul(
        jnp.asarray(_TRANSFORM) * one, _taps(kernel), precision=lax.Precision.HIGHEST
    ).reshape(_READS**2, *kernel.shape[2:])

    def convolve_band(index: Array | int) -> Array:
        tiles = _read_tiles(bands.take(x, index, halo=dilation), bands)
        products = lax.dot_general(
            tiles, weights, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
        )
        return _write_tiles(products, batch, bands)

    if bands.number == 1:
        return convolve_band(0)[:, :height, :width]

    def write_band(index: Array | int, out: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(
            out, convolve_band(index), index * bands.height, axis=1
        )

    # All of it is overwritten. A constant would be made, and kept, before it is needed.
    shape = (batch, bands.number * bands.height, bands.columns * bands.span, kernel.shape[-1])
    out = lax.fori_loop(0, bands.number, write_band, jnp.full(shape, first))
    return out[:, :height, :width]


def _convolve_forward(dilation: int, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(dilation, x, kernel), (x, kernel)


def _convolve_backward(
    dilation: int, inputs: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    """Both gradients through the transforms; tiles are read again rather than kept."""
    x, kernel = inputs
    to_x = _convolve(dilation, cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    bands = _cut(x.shape, dilation)

    def of_band(index: Array | int) -> Array:
        tiles = _read_tiles(bands.take(x, index, halo=dilation), bands)
        wanted = _tiles_of_outputs(bands.take(cotangent, index, halo=0), bands)
        return lax.dot_general(
            tiles, wanted, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
        )

    if bands.number == 1:
        to_weights = of_band(0)
    else:
        shape = (_READS**2, *kernel.shape[2:])
        to_weights, _ = lax.scan(
            lambda total, index: (total + of_band(index), None),
            jnp.zeros(shape, jnp.float32),
            jnp.arange(bands.number),
        )
    to_kernel = jnp.matmul(
        jnp.asarray(_TRANSFORM.T),
        to_weights.reshape(_READS**2, -1),
        precision=lax.Precision.HIGHEST,
    ).reshape(3, 3, *kernel.shape[2:])
    return to_x, to_kernel.swapaxes(0, 1)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@dataclasses.dataclass(frozen=True)
class _Bands:
    """How a map is cut: into bands of rows of tiles, which go through one after the other.

    Outputs of a tile, and its inputs, lie `dilation` cells apart, so that tiles of neighbouring
    phases interleave: `dilation` of them share a span of cells along an axis.
    """

    dilation: int
    rows: int  # of spans, in a band
    columns: int  # of spans
    number: int

    @property
    def span(self) -> int:
        """Cells."""
        return _TILE * self.dilation

    @property
    def height(self) -> int:
        """Cells of a band."""
        return self.rows * self.span

    def take(self, x: Array, index: Array | int, halo: int) -> Array:
        """A band of x [B, H, W, C] with zeros around the map: [B, height + 2 halo, ..., C].

        Cut from the map as it is: a padded copy of all of it would double the memory.
        """
        wanted, present = self.height + 2 * halo, x.shape[1]
        above, below = halo, self.number * self.height - present + halo
        start = 0
        if present > wanted:
            first = index * self.height - halo
            start = jnp.clip(first, 0, present - wanted)
            x = lax.dynamic_slice_in_dim(x, start, wanted, axis=1)
            above = below
            start = above + first - start
        elif self.number > 1:
            start = index * self.height
        right = self.columns * self.span - x.shape[2] + halo
        x = jnp.pad(x, ((0, 0), (above, below), (halo, right), (0, 0)))
        return lax.optimization_barrier(lax.dynamic_slice_in_dim(x, start, wanted, axis=1))


def _cut(shape: tuple[int, ...], dilation: int) -> _Bands:
    batch, height, width, _ = shape
    span = _TILE * dilation
    columns = -(-width // span)
    rows = -(-height // span)
    band = _rows_at_once(rows, batch * columns * dilation**2)
    return _Bands(dilation, band, columns, -(-rows // band))


def _taps(kernel: Array) -> Array:
    """A kernel [3, 3, C, D] as [9, C * D], columns before rows like the tiles."""
    return kernel.swapaxes(0, 1).reshape(9, -1)


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


def _read_tiles(x: Array, bands: _Bands) -> Array:
    """Transforms a band [B, height + 2 d, W + 2 d, C] to its tiles, [36, tiles, C]."""
    dilation = bands.dilation
    # Barriers: a fused second pass would repeat the first one for each of its reads.
    x = lax.optimization_barrier(_weighted(_FROM_INPUT, _reads(x, 1, bands.rows, dilation)))
    # [6, B, rows, d, columns * span + 2 d, C]
    x = _weighted(_FROM_INPUT, _reads(x, 4, bands.columns, dilation))
    # [6 along columns, 6 along rows, B, rows, d, columns, d, C]
    return lax.optimization_barrier(x.reshape(_READS**2, -1, x.shape[-1]))


def _write_tiles(products: Array, batch: int, bands: _Bands) -> Array:
    """Transforms products [36, tiles, C] to outputs, [B, height, W, C]."""
    dilation = bands.dilation
    x = products.reshape(_READS, _READS, batch, bands.rows, dilation, bands.columns, dilation, -1)
    x = lax.optimization_barrier(x)
    outputs = [_sum(weights, list(x)) for weights in _TO_OUTPUT]
    # [6, B, rows, d, columns, 4, d, C]: the four outputs go before the phase
    x = lax.optimization_barrier(jnp.stack(outputs, axis=5))
    outputs = [_sum(weights, list(x)) for weights in _TO_OUTPUT]
    x = jnp.stack(outputs, axis=2)  # [B, rows, 4, d, columns, 4, d, C]
    return x.reshape(batch, bands.height, bands.columns * bands.span, -1)


def _tiles_of_outputs(x: Array, bands: _Bands) -> Array:
    """The transpose of `_write_tiles`: a band [B, height, W, C] to [36, tiles, C]."""
    dilation, matrix = bands.dilation, _TO_OUTPUT.T
    x = x.reshape(
        x.shape[0], bands.rows, _TILE, dilation, bands.columns, _TILE, dilation, x.shape[-1]
    )
    parts = [lax.index_in_dim(x, index, 2, keepdims=False) for index in range(_TILE)]
    x = lax.optimization_barrier(_weighted(matrix, parts))  # [6, B, rows, d, columns, 4, d, C]
    parts = [lax.index_in_dim(x, index, 5, keepdims=False) for index in range(_TILE)]
    x = _weighted(matrix, parts)  # [6 along columns, 6 along rows, B, rows, d, columns, d, C]
    return lax.optimization_barrier(x.reshape(_READS**2, -1, x.shape[-1]))


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
