"""Upsampling of pooled maps: how the heads end."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ktn_jax.modeling.compute import Compute, matmul
from ktn_jax.ops import interpolate

Array = jax.Array


def upsample_twice(x: Array, kernel: Array, bias: Array, compute: Compute) -> Array:
    """Doubles the sides of x by a transposed convolution of stride 2, padded by k / 2 - 1.

    Args:
        x: [B, H, W, C_in].
        kernel: [k, k, C_in, C_out] of even k, see `interpolate.conv_transpose`.
        bias: [C_out].
        compute: how to compute; its dtype is that of the result.

    Returns:
        [B, 2 H, 2 W, C_out].

    Raises:
        ValueError: channels do not fit.
    """
    dtype = compute.dtype
    return interpolate.conv_transpose(
        x.astype(dtype),
        kernel.astype(dtype),
        stride=2,
        padding=kernel.shape[0] // 2 - 1,
        bias=bias.astype(dtype),
        matmul=functools.partial(matmul, compute=compute),
    )


def upsample_twice_each(
    x: Array, kernels: Mapping[str, Array], biases: Mapping[str, Array], compute: Compute
) -> dict[str, Array]:
    """Runs several `upsample_twice` of the same x as one.

    Args:
        x: [B, H, W, C_in].
        kernels: [k, k, C_in, channels] by name, all of one k.
        biases: [channels] by the same names.
        compute: how to compute.

    Returns:
        [B, 2 H, 2 W, channels] by name.
    """
    names = list(kernels)
    joined = upsample_twice(
        x,
        jnp.concatenate([kernels[name] for name in names], axis=-1),
        jnp.concatenate([biases[name] for name in names]),
        compute,
    )
    outputs, start = {}, 0
    for name in names:
        channels = kernels[name].shape[-1]
        outputs[name] = joined[..., start : start + channels]
        start += channels
    return outputs


def upsample_bilinearly(x: Array, scale: int) -> Array:
    """Upsamples maps [B, H, W, C] to [B, scale H, scale W, C], float32."""
    size = (x.shape[1] * scale, x.shape[2] * scale)
    return interpolate.resize_bilinear(x.astype(jnp.float32), size)
