"""When XLA computes things: it allocates constants before what needs them is there."""

import jax.numpy as jnp
from jax import Array


def zero_after(x: Array) -> Array:
    """0, but unknown to XLA before an array, which must not be empty, is computed.

    XLA fills buffers with constants, and computes what depends on parameters alone, at the start of
    a program, and keeps all of it in memory until it is needed. What is added to this waits.

    Args:
        x: of any shape and floating type.

    Returns:
        float32 [].
    """
    return jnp.where(x[(0,) * x.ndim] > jnp.inf, jnp.float32(1), jnp.float32(0))
