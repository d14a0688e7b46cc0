"""Parallel branches of a map, normalised and merged by one 1x1 convolution."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import Initializer, convolve, msra_init, parameter
from ktn_jax.ops.channels import per_channel

Array = jax.Array

# Size of a band of all branches, small enough to stay in a CPU's caches between the passes.
_BAND_BYTES = 8 * 2**20


class Branch(NamedTuple):
    """A map whose norm and ReLU are still to be applied.

    Attributes:
        x: [B, H, W, C].
        factor: [B, 1, 1, C], of the norm.
        shift: [B, 1, 1, C].
    """

    x: Array
    factor: Array
    shift: Array

    def normalised(self, x: Array) -> Array:
        """Applies norm and ReLU to x, some rows of the branch."""
        return nn.relu(x * self.factor.astype(x.dtype) + self.shift.astype(x.dtype))


class BranchProjection(nn.Module):
    """1x1 convolution of branches concatenated along the channels."""

    features: int
    kernel_init: Initializer = msra_init
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, branches: Sequence[Branch]) -> Array:
        """Maps branches of equal height and width to [B, H, W, features]."""
        channels = sum(branch.x.shape[-1] for branch in branches)
        kernel = parameter(self, "kernel", self.kernel_init, (1, 1, channels, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,))

        def project(*maps: Array) -> Array:
            parts = [branch.normalised(x) for branch, x in zip(branches, maps, strict=True)]
            y = convolve(jnp.concatenate(parts, axis=-1), kernel, compute=self.compute)
            return y + per_channel(bias, y)

        maps = [branch.x for branch in branches]
        return by_bands(project, maps) if self.compute.bands else project(*maps)


def by_bands(function: Callable[..., Array], maps: Sequence[Array]) -> Array:
    """Applies a function of single cells to maps, a band of rows at a time.

    The function's intermediate arrays then have the size of a band, not of a map.

    Args:
        function: maps the same rows of all maps, [B, rows, W, C_i], to [B, rows, W, D], cell by
            cell.
        maps: [B, H, W, C_i] of equal height and width.

    Returns:
        [B, H, W, D].
    """
    batch, height, width, _ = maps[0].shape
    row_bytes = 4 * batch * width * sum(x.shape[-1] for x in maps)
    bands = min(math.ceil(height * row_bytes / _BAND_BYTES), height)
    if bands == 1:
        return function(*maps)
    rows = math.ceil(height / bands)

    def write_band(index: Array, out: Array) -> Array:
        # The last band ends with the map, so it may compute some rows a second time.
        first = jnp.minimum(index * rows, height - rows)
        cut = [lax.dynamic_slice_in_dim(x, first, rows, axis=1) for x in maps]
        return lax.dynamic_update_slice_in_dim(out, function(*cut), first, axis=1)

    shape = jax.eval_shape(function, *maps)
    # Every element is overwritten. XLA would allocate a constant early and keep it in memory.
    out = jnp.full(shape.shape, maps[0][0, 0, 0, 0], shape.dtype)
    joined: Array = lax.fori_loop(0, math.ceil(height / rows), write_band, out)
    return joined
