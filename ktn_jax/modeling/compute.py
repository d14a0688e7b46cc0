"""How a model computes: types, and faster forms of the same layers.

Every module takes a `Compute` as an attribute, and hands it to its parts. So it is a part of what
jit looks programs up by, and a model of another `Compute` is another program.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Compute:
    """What the plain definition of a layer may be replaced by; the default is that definition.

    Attributes:
        dtype: of maps and products, "float32" or "bfloat16"; parameters stay float32.
        winograd: 3x3 convolutions of float32 maps through `ops.winograd` where that pays.
        bands: 1x1 convolutions of normalised branches a few rows at a time: fewer whole maps
            are held, unless gradients keep them again.
        chunks: boxes pooled from the maps a cache's worth at a time.
        matmul_dtype: what the float32 factors of matrix products are rounded to; sums stay
            float32.
    """

    dtype: str = "float32"
    winograd: bool = False
    bands: bool = False
    chunks: bool = False
    matmul_dtype: str = "float32"

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
        """Chooses what a configuration asks for, as far as it pays on a platform.

        Args:
            dtype: `model.dtype`.
            platform: what the program is compiled for, as `jax.default_backend()` names it.
            winograd: `test.winograd` or `training.winograd`.
            bands: whether nobody asks for gradients.
            matmul_dtype: `test.matmul_dtype`.

        Returns:
            A Compute, without Winograd's, bands and chunks where the platform is not "cpu".
        """
        # Other devices bring libraries that choose for themselves, and have no use for small
        # pieces.
        is_cpu = platform == "cpu"
        return cls(
            dtype=dtype,
            winograd=winograd and is_cpu,
            bands=bands and is_cpu,
            chunks=is_cpu,
            matmul_dtype=matmul_dtype,
        )


PLAIN = Compute()


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
