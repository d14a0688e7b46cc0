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
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ktn_jax.ops.channels import add_bias
from ktn_jax.ops.ordering import zero_after

_TILE = 4  # outputs of a tile along an axis
_READS = 6  # inputs of a tile: _TILE + 3 - 1

# Tiles transformed at once: enough for the matrix products, and their 36 planes stay in the caches.
_TILES_AT_ONCE = 400

# The interpolation points are 0, 1, -1, 2, -2 and infinity.
_FROM_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_FROM_KERNEL = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
)
# [36, 9]: from taps by row and column to planes by column and row, as tiles have them.
_TRANSFORM = np.einsum("ai,bj->abji", _FROM_KERNEL, _FROM_KERNEL).reshape(36, 9).astype(np.float32)
_TO_OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    np.float32,
)


def convolve_3x3(
    x: Array,
    kernel: Array,
    dilation: int = 1,
    bias: Array | None = None,
    is_rectified: bool = False,
) -> Array:
    """Convolves maps with a 3x3 kernel at stride 1, zero padded by `dilation` on each side.

    With bias and ReLU a band of the map is finished before the next one begins, and neither the
    forward nor the backward pass keeps the map before them.

    Args:
        x: [B, H, W, C_in] float32.
        kernel: [3, 3, C_in, C_out] float32.
        dilation: of both axes.
        bias: [C_out] float32, added to every cell; None for none.
        is_rectified: whether what is below 0 then becomes 0.

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
    return _convolve(dilation, is_rectified, x, kernel, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(
    dilation: int, is_rectified: bool, x: Array, kernel: Array, bias: Array | None
) -> Array:
    batch, height, width, _ = x.shape
    bands = _cut(x.shape, dilation)
    first = x[0, 0, 0, 0]
    # Not before the map is computed: XLA would otherwise transform all kernels, to four times their
    # size, at the start and keep them in memory together.
    weights = jnp.matmul(
        jnp.asarray(_TRANSFORM) + zero_after(x),
        kernel.reshape(9, -1),
        precision=lax.Precision.HIGHEST,
    ).reshape(_READS**2, *kernel.shape[2:])

    def convolve_band(index: Array | int) -> Array:
        tiles = _read_tiles(bands.take(x, index, halo=dilation), bands)
        products = lax.dot_general(
            tiles, weights, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
        )
        return add_bias(bands.join(_write_tiles(products, bands)), bias, is_rectified)

    if bands.number == 1:
        return convolve_band(0)[:, :height, :width]

    def write_band(index: Array | int, out: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(
            out, convolve_band(index), index * bands.height, axis=1
        )

    # Every element is overwritten. XLA would allocate a constant early and keep it in memory.
    shape = (batch, bands.number * bands.height, bands.columns * bands.span, kernel.shape[-1])
    out: Array = lax.fori_loop(0, bands.number, write_band, jnp.full(shape, first))
    return out[:, :height, :width]


_Kept = tuple[Array, Array, Array | None, Array | None]


def _convolve_forward(
    dilation: int, is_rectified: bool, x: Array, kernel: Array, bias: Array | None
) -> tuple[Array, _Kept]:
    out = _convolve(dilation, is_rectified, x, kernel, bias)
    return out, (x, kernel, bias, out if is_rectified else None)


def _convolve_backward(
    dilation: int, is_rectified: bool, kept: _Kept, cotangent: Array
) -> tuple[Array, Array, Array | None]:
    """The gradients through the transforms; tiles are read again rather than kept."""
    x, kernel, bias, out = kept
    if out is not None:
        cotangent = jnp.where(out > 0, cotangent, 0)
    to_bias = None if bias is None else cotangent.sum((0, 1, 2))
    to_x = _convolve(dilation, False, cotangent, kernel[::-1, ::-1].swapaxes(2, 3), None)
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
            jnp.full(shape, zero_after(cotangent)),
            jnp.arange(bands.number),
        )
    to_kernel = jnp.matmul(
        jnp.asarray(_TRANSFORM.T),
        to_weights.reshape(_READS**2, -1),
        precision=lax.Precision.HIGHEST,
    ).reshape(kernel.shape)
    return to_x, to_kernel, to_bias


_convolve.defvjp(_convolve_forward, _convolve_backward)


@dataclasses.dataclass(frozen=True)
class _Bands:
    """How a map is cut into bands of rows of tiles, which are computed one after the other.

    A dilated convolution is `dilation`^2 plain ones, each of a phase: the cells that are `dilation`
    apart. Tiles of neighbouring phases interleave and share a span of cells along an axis.
    """

    dilation: int
    rows: int  # of spans, in a band
    columns: int  # of spans
    number: int

    @property
    def span(self) -> int:
        """Cells along an axis that interleaved tiles share."""
        return _TILE * self.dilation

    @property
    def height(self) -> int:
        """Height of a band in cells."""
        return self.rows * self.span

    def take(self, x: Array, index: Array | int, halo: int) -> Array:
        """Reads a band of x [B, H, W, C], zero padded at the map's borders, split into phases.

        Cut from the map as it is: a padded copy of all of it would double the memory. With a halo
        of 0 or `dilation` cells: [B * d * d, 4 rows, 4 columns, C], or 2 more along either axis.
        """
        wanted, present = self.height + 2 * halo, x.shape[1]
        above, below = halo, self.number * self.height - present + halo
        start: Array | int = 0
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
        x = lax.dynamic_slice_in_dim(x, start, wanted, axis=1)
        step = self.dilation
        x = x.reshape(x.shape[0], wanted // step, step, x.shape[2] // step, step, x.shape[3])
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, x.shape[1], x.shape[3], x.shape[5])
        x = lax.optimization_barrier(x)
        return x

    def join(self, x: Array) -> Array:
        """Interleaves a band's phases [B * d * d, 4 rows, 4 columns, C] to [B, height, ..., C]."""
        _, height, width, channels = x.shape
        x = x.reshape(-1, self.dilation, self.dilation, height, width, channels)
        return x.transpose(0, 3, 1, 4, 2, 5).reshape(x.shape[0], self.height, -1, channels)


def _cut(shape: tuple[int, ...], dilation: int) -> _Bands:
    batch, height, width, _ = shape
    span = _TILE * dilation
    columns = -(-width // span)
    rows = -(-height // span)
    band = _rows_at_once(rows, batch * columns * dilation**2)
    return _Bands(dilation, band, columns, -(-rows // band))


def is_worth_while(x_shape: tuple[int, ...], features: int, dilation: int) -> bool:
    """Whether `convolve_3x3` saves time on a CPU: enough channels and tiles, and little surplus."""
    batch, height, width, channels = x_shape
    span = _TILE * dilation
    tiles = batch * math.ceil(height / span) * math.ceil(width / span) * dilation**2
    surplus = tiles * _TILE**2 / max(batch * height * width, 1)
    return min(channels, features) >= 64 and tiles >= 90 and surplus < 1.3


def _rows_at_once(rows: int, tiles_in_row: int) -> int:
    """How many rows of tiles a band has: the number with the fewest surplus rows, then the most."""
    most = min(max(_TILES_AT_ONCE // tiles_in_row, 1), rows)
    least = max(most // 2, 1)
    return min(range(least, most + 1), key=lambda band: (math.ceil(rows / band) * band, -band))


def _read_tiles(x: Array, bands: _Bands) -> Array:
    """Transforms the phases [N, 4 rows + 2, 4 columns + 2, C] of a band to tiles [36, tiles, C]."""
    parts = [_every_fourth(x, 1, first, bands.rows) for first in range(_READS)]
    x = _transformed(_FROM_INPUT, parts)  # [6, N, rows, 4 columns + 2, C]
    parts = [_every_fourth(x, 3, first, bands.columns) for first in range(_READS)]
    x = _transformed(_FROM_INPUT, parts)  # [6 along columns, 6 along rows, N, rows, columns, C]
    return x.reshape(_READS**2, -1, x.shape[-1])


def _write_tiles(products: Array, bands: _Bands) -> Array:
    """Transforms products [36, tiles, C] to the phases of a band, [N, 4 rows, 4 columns, C]."""
    x = products.reshape(_READS, _READS, -1, bands.rows, bands.columns, products.shape[-1])
    # First along columns, to [6, N, rows, columns, 4, C].
    x = _transformed(_TO_OUTPUT, list(lax.optimization_barrier(x)), axis=4)
    x = _transformed(_TO_OUTPUT, list(x), axis=2)  # [N, rows, 4, columns, 4, C]
    return x.reshape(x.shape[0], _TILE * bands.rows, _TILE * bands.columns, -1)


def _tiles_of_outputs(x: Array, bands: _Bands) -> Array:
    """The transpose of `_write_tiles`: phases [N, 4 rows, 4 columns, C] to [36, tiles, C]."""
    parts = [_every_fourth(x, 1, first, bands.rows) for first in range(_TILE)]
    x = _transformed(_TO_OUTPUT.T, parts)  # [6, N, rows, 4 columns, C]
    parts = [_every_fourth(x, 3, first, bands.columns) for first in range(_TILE)]
    x = _transformed(_TO_OUTPUT.T, parts)  # [6 along columns, 6 along rows, N, rows, columns, C]
    return x.reshape(_READS**2, -1, x.shape[-1])


def _every_fourth(x: Array, axis: int, first: int, number: int) -> Array:
    """The cells at one position of each of `number` tiles along an axis."""
    return lax.slice_in_dim(x, first, first + (number - 1) * _TILE + 1, _TILE, axis=axis)


def _transformed(matrix: np.ndarray, parts: list[Array], axis: int = 0) -> Array:
    """Sums parts by each row of a matrix, and stacks the sums along an axis.

    As one broadcast product, XLA would fuse the passes along rows and columns into one that
    repeats the first for each of its reads, whatever barrier stands between them.
    """
    stacked: Array = jnp.stack([_sum(row, parts) for row in matrix], axis=axis)
    stacked = lax.optimization_barrier(stacked)
    return stacked


def _sum(weights: np.ndarray, parts: list[Array]) -> Array:
    """Sums parts, leaving out those without weight."""
    terms = [
        part if weight == 1 else np.float32(weight) * part
        for weight, part in zip(weights, parts, strict=True)
        if weight
    ]
    return functools.reduce(operator.add, terms)
