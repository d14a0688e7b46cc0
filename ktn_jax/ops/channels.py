"""What is done to the channels of every cell alike."""

import jax
from jax import Array


def per_channel(vector: Array, x: Array) -> Array:
    """Shapes vector [C] to broadcast over x [..., C], in the dtype of x."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


def add_bias(x: Array, bias: Array | None, is_rectified: bool) -> Array:
    """Adds bias [C] or None to x [..., C], and then takes what is below 0 for 0 if told to."""
    if bias is not None:
        x = x + per_channel(bias, x)
    return jax.nn.relu(x) if is_rectified else x
