"""Embeddings as arrays: their lengths, products of many with many, and the nearest of a mesh."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_MIN_NORM = 1e-6  # detectron2's: shorter vectors are divided by this
_GROUP = 64  # vertices that are searched together: a reduction of so many runs as vectors


def normalise(embeddings: Array) -> Array:
    """Divides embeddings [..., D] by their lengths, or by 1e-6 where they are shorter."""
    squares = jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True)
    # The square root has no gradient at 0: there its argument is replaced, not only its value.
    is_long = squares > _MIN_NORM**2
    length = jnp.where(is_long, jnp.sqrt(jnp.where(is_long, squares, 1)), _MIN_NORM)
    return embeddings / length


def products(a: Array, b: Array, dtype: str = "float32") -> Array:
    """Multiplies every row of a [N, D] with every row of b [M, D]: float32 [N, M].

    Args:
        a: float32.
        b: float32.
        dtype: to which the factors are rounded; sums are float32. "float32" is exact on every
            device, also on those whose products are rounded by default.
    """
    return jnp.matmul(
        a.astype(dtype),
        b.T.astype(dtype),
        precision=lax.Precision.HIGHEST if dtype == "float32" else None,
        preferred_element_type=jnp.float32,
    )


def nearest_vertices(pixels: Array, vertices: Array, block: int = 64) -> Array:
    """Finds the vertex whose embedding is nearest to each pixel's.

    The search compares all with all, a block of pixels at a time, so that it needs
    4 * block * V bytes at most. For the largest product of a block, the vertices are searched in
    two steps, in groups and within the best group, which is faster than an argmax of all.

    Args:
        pixels: [N, D], of any length.
        vertices: [V, D], of any length.
        block: pixels in a block. 64 suits a CPU's caches; other devices want a thousand.

    Returns:
        int32 [N], in [0, V); the first of the nearest but for rounding.

    Raises:
        ValueError: the last axes differ, or there are no vertices.
    """
    if pixels.ndim != 2 or vertices.ndim != 2 or pixels.shape[1] != vertices.shape[1]:
        raise ValueError(f"want [N, D] and [V, D], got {pixels.shape} and {vertices.shape}")
    count, (number, depth) = pixels.shape[0], vertices.shape
    if not number:
        raise ValueError("there are no vertices to choose from")
    # |x - v|^2 = |x|^2 - 2 (x.v - |v|^2 / 2): the last is a product with one column more.
    half_squares = -0.5 * jnp.sum(jnp.square(vertices), axis=1, keepdims=True)
    table = jnp.concatenate([vertices, half_squares], axis=1)
    groups = -(-number // _GROUP)
    filling = jnp.zeros((groups * _GROUP - number, depth + 1)).at[:, -1].set(-jnp.inf)
    table = jnp.concatenate([table, filling])
    grouped = table.reshape(groups, _GROUP, depth + 1)

    def search(x: Array) -> Array:
        x = jnp.concatenate([x, jnp.ones((x.shape[0], 1))], axis=1)
        best = products(x, table).reshape(-1, groups, _GROUP).max(axis=2)
        group = jnp.argmax(best, axis=1)
        own = jnp.einsum("nd,ngd->ng", x, grouped[group], precision=lax.Precision.HIGHEST)
        return (group * _GROUP + jnp.argmax(own, axis=1)).astype(jnp.int32)

    blocks = -(-count // block)
    padded = jnp.pad(pixels, ((0, blocks * block - count), (0, 0)))
    found: Array = lax.map(search, padded.reshape(blocks, block, depth))
    return found.reshape(-1)[:count]
