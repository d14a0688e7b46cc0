"""How a model computes: types, and faster forms of the same layers.

Every module takes a `Compute` as an attribute and passes it to its submodules. It is thereby part
of the key of jit's cache: models that differ in their `Compute` are compiled separately.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Compute:
    """Which faster forms may replace the plain definition of a layer; by default none.

    Attributes:
        dtype: of maps and products, "float32" or "bfloat16"; parameters stay float32.
        winograd: compute 3x3 convolutions of float32 maps with `ops.winograd` where it is faster.
        bands: compute 1x1 convolutions of normalised branches a few rows at a time. Without
            gradients this keeps fewer whole maps in memory.
        chunks: pool boxes in chunks that fit a CPU's caches.
        products: pool boxes of whole images with `ops.roi_products`, without gathers.
        split_groups: compute a convolution of groups of channels as ordinary ones, one after the
            other.
        stem_blocks: compute a large convolution of stride 2 from few to few channels, such as the
            first one of a small model, on blocks of 2 x 2 pixels.
        matmul_dtype: type to which the float32 factors of matrix products are rounded; sums stay
            float32.
        batch_axis: mesh axis over which a batch is split, where each device runs the model on its
            own images: batch norms take their moments over all of them. Empty for one device, or
            where the compiler splits the program.
    """

    dtype: str = "float32"
    winograd: bool = False
    bands: bool = False
    chunks: bool = False
    products: bool = False
    split_groups: bool = False
    stem_blocks: bool = False
    matmul_dtype: str = "float32"
    batch_axis: str = ""

    @classmethod
    def choose(
        cls,
        dtype: str,
        *,
        platform: str,
        winograd: bool = False,
        bands: bool = False,
        matmul_dtype: str = "float32",
    ) -> Self:
        """Chooses how a configured model computes on a platform.

        Args:
            dtype: `model.dtype`.
            platform: what the program is compiled for, as `jax.default_backend()` names it.
            winograd: `test.winograd` or `training.winograd`.
            bands: whether the model runs without gradients.
            matmul_dtype: `test.matmul_dtype`.

        Returns:
            A Compute. On "tpu" boxes are pooled by products; all other forms but matmul_dtype are
            off unless the platform is "cpu".
        """
        # The libraries of other devices choose algorithms themselves and gain nothing from small
        # pieces.
        is_cpu = platform == "cpu"
        return cls(
            dtype=dtype,
            winograd=winograd and is_cpu,
            bands=bands and is_cpu,
            chunks=is_cpu,
            products=platform == "tpu",
            split_groups=is_cpu,
            stem_blocks=is_cpu,
            matmul_dtype=matmul_dtype,
        )


PLAIN = Compute()
REMEMBERED = "remembered"


def remember(x: Array) -> Array:
    """Marks a map that the backward pass keeps where it computes other maps again; the map."""
    marked: Array = checkpoint_name(x, REMEMBERED)
    return marked


def dot_general(
    a: Array, b: Array, dimension_numbers: Any, compute: Compute, **options: Any
) -> Array:
    """`lax.dot_general`, its float32 factors rounded to `compute.matmul_dtype`."""
    dtype = jnp.dtype(compute.matmul_dtype)
    if a.dtype != jnp.float32 or b.dtype != jnp.float32 or dtype == jnp.float32:
        return lax.dot_general(a, b, dimension_numbers, **options)
    options["preferred_element_type"] = jnp.float32
    return lax.dot_general(a.astype(dtype), b.astype(dtype), dimension_numbers, **options)


def matmul(a: Array, b: Array, compute: Compute) -> Array:
    """Multiplies a [..., K] by b [K, N] with `dot_general`."""
    return dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())), compute)
