"""How products are computed: faster forms of the same layers.

A form is chosen around `apply`, where the program is traced, and not in the modules, which stay
the plain definition:

    with computing(Forms(has_winograd=True)):
        model.apply(variables, inputs)
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Forms:
    """What may replace the plain definition.

    Attributes:
        has_winograd: 3x3 convolutions of float32 maps through `ops.winograd` where that pays.
        has_bands: 1x1 convolutions of normalised branches a few rows at a time: fewer whole maps
            are held, unless gradients keep them again.
        matmul_dtype: what the factors of matrix products are rounded to; sums stay float32.
    """

    has_winograd: bool = False
    has_bands: bool = False
    matmul_dtype: str = "float32"


PLAIN = Forms()
_current: contextvars.ContextVar[Forms] = contextvars.ContextVar("forms", default=PLAIN)


def choose_forms(
    has_winograd: bool, has_bands: bool = False, matmul_dtype: str = "float32"
) -> Forms:
    """Chooses what a configuration asks for, as far as it pays on the device in use.

    Args:
        has_winograd: `test.winograd` or `training.winograd`.
        has_bands: whether nobody asks for gradients.
        matmul_dtype: `test.matmul_dtype`.

    Returns:
        Forms, without Winograd's and bands where the device is no CPU.
    """
    # Other devices bring libraries that choose for themselves, and have no use for small pieces.
    is_cpu = jax.default_backend() == "cpu"
    return Forms(has_winograd and is_cpu, has_bands and is_cpu, matmul_dtype)


@contextlib.contextmanager
def computing(forms: Forms) -> Iterator[None]:
    """Sets the forms of what is traced inside."""
    token = _current.set(forms)
    try:
        yield
    finally:
        _current.reset(token)


def current_forms() -> Forms:
    """The forms in force."""
    return _current.get()


def dot_general(a: Array, b: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`lax.dot_general`, its float32 factors rounded as the forms in force say."""
    dtype = jnp.dtype(current_forms().matmul_dtype)
    if a.dtype != jnp.float32 or b.dtype != jnp.float32 or dtype == jnp.float32:
        return lax.dot_general(a, b, dimension_numbers, **options)
    options["preferred_element_type"] = jnp.float32
    return lax.dot_general(a.astype(dtype), b.astype(dtype), dimension_numbers, **options)


def matmul(a: Array, b: Array) -> Array:
    """Multiplies a [..., K] by b [K, N] with `dot_general`."""
    return dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())))
