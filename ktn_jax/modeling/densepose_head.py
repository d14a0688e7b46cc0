"""DensePose heads: from pooled ROI features [N, P, P, C] to what the predictor reads."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import Conv, ConvNorm, GroupNorm, convolve, msra_init, parameter
from ktn_jax.ops import interpolate

Array = jax.Array

ASPP_DILATIONS = (6, 12, 56)  # of the DeepLab head
SCALE_DILATIONS = (1, 6, 12)  # of the KTN head


def _stack_convs(x: Array, head: "ConvStackHead | DeepLabHead | KTNHead") -> Array:
    """Applies a head's equal convolutions with ReLU, as submodules of it."""
    for index in range(head.num_convs):
        conv = ConvNorm(
            head.features,
            head.kernel_size,
            norm=head.norm,
            is_rectified=True,
            compute=head.compute,
            name=f"body_conv{index + 1}",
        )
        x = conv(x)
    return x


class ConvStackHead(nn.Module):
    """Equal convolutions with ReLU (Gueler et al., CVPR 2018: 8 of 512 channels)."""

    features: int = 512
    num_convs: int = 8
    kernel_size: int = 3
    norm: str = ""
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, C] to [N, P, P, features]."""
        return _stack_convs(x, self)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (DeepLabv3): 1x1, three dilations, the mean of the map."""

    features: int
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, C] to [N, P, P, features]."""

        def branch(x: Array, index: int, size: int, dilation: int = 1) -> Array:
            conv = ConvNorm(
                self.features,
                size,
                dilation=dilation,
                norm="GN",
                compute=self.compute,
                name=f"branch{index}",
            )
            return nn.relu(conv(x))

        branches = [branch(x, 0, size=1)]
        branches += [
            branch(x, i, size=3, dilation=rate) for i, rate in enumerate(ASPP_DILATIONS, start=1)
        ]
        mean = branch(x.mean((1, 2), keepdims=True), len(branches), size=1)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        x = jnp.concatenate(branches, axis=-1)
        return nn.relu(Conv(self.features, use_bias=False, compute=self.compute, name="project")(x))


class NonLocal(nn.Module):
    """Non-local block (Wang et al., CVPR 2018), embedded Gaussian, keys and values pooled by 2."""

    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Adds to each cell of x [N, P, P, C] a weighted mean of projected cells."""
        batch, height, width, channels = x.shape
        inner = max(channels // 2, 1)

        def embed(name: str) -> Array:
            return Conv(inner, compute=self.compute, name=name)(x)

        def pool(x: Array) -> Array:
            return interpolate.max_pool(x, window=2, stride=2, padding=0).reshape(batch, -1, inner)

        queries = embed("theta").reshape(batch, -1, inner)
        keys, values = pool(embed("phi")), pool(embed("g"))
        attention = nn.softmax(jnp.einsum("nqc,nkc->nqk", queries, keys).astype(jnp.float32))
        y = jnp.einsum("nqk,nkc->nqc", attention.astype(x.dtype), values)
        y = y.reshape(batch, height, width, inner)
        return x + ConvNorm(channels, norm="GN", use_bias=True, compute=self.compute, name="out")(y)


class DeepLabHead(nn.Module):
    """Atrous pyramid, optional non-local block, then the convolution stack."""

    features: int = 512
    num_convs: int = 8
    kernel_size: int = 3
    norm: str = "GN"
    use_non_local: bool = False
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, C] to [N, P, P, features]."""
        x = AtrousPyramid(x.shape[-1], compute=self.compute, name="aspp")(x)
        if self.use_non_local:
            x = NonLocal(compute=self.compute, name="non_local")(x)
        return _stack_convs(x, self)


class ScaleConvs(nn.Module):
    """One 3x3 kernel shared by three dilations, beside a 1x1: several scales, no more weights."""

    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, C] to the same shape."""
        channels = x.shape[-1]
        kernel = parameter(self, "kernel", msra_init, (3, 3, channels, channels))
        branches = []
        for index, dilation in enumerate(SCALE_DILATIONS):
            y = convolve(x, kernel, dilation=dilation, compute=self.compute)
            branches.append(nn.relu(GroupNorm(name=f"norm{index}")(y)))
        pointwise = ConvNorm(channels, norm="GN", compute=self.compute, name="pointwise")(x)
        branches.append(nn.relu(pointwise))
        x = jnp.concatenate(branches, axis=-1)
        return nn.relu(Conv(channels, use_bias=False, compute=self.compute, name="project")(x))


class KTNHead(nn.Module):
    """KTN's head: scale convolutions, then the stack with group norm."""

    features: int = 512
    num_convs: int = 8
    kernel_size: int = 3
    norm: str = "GN"
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, C] to [N, P, P, features]."""
        x = ScaleConvs(compute=self.compute, name="scale_convs")(x)
        return _stack_convs(x, self)
