"""ResNet and ResNeXt backbones, with the stride in the 1x1 (MSRA) or the 3x3 convolution.

He et al., CVPR 2016; Xie et al., CVPR 2017, whose 3x3 convolutions are divided into groups.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from ktn_jax.modeling.compute import PLAIN, Compute, remember
from ktn_jax.modeling.layers import ConvNorm, rectify, strided_size, zero_invalid
from ktn_jax.ops import interpolate

Array = jax.Array

BLOCKS_OF_DEPTH = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut, projected where the shape changes."""

    features: int
    width: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1  # of the 3x3 convolution
    stride_in_1x1: bool = True
    has_projection: bool = False
    norm: str = "FrozenBN"
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array, valid_hw: Array | None, train: bool) -> Array:
        """Maps x [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)

        def conv(name: str, features: int, *, size: int, stride: int, **options: Any) -> ConvNorm:
            return ConvNorm(
                features, size, stride, norm=self.norm, compute=self.compute, name=name, **options
            )

        shortcut = x
        if self.has_projection:
            shortcut = conv("shortcut", self.features, size=1, stride=self.stride)(
                x, valid_hw, train
            )
        x = nn.relu(conv("conv1", self.width, size=1, stride=first)(x, valid_hw, train))
        inner_hw = strided_size(valid_hw, first)
        x = nn.relu(
            conv(
                "conv2",
                self.width,
                size=3,
                stride=second,
                dilation=self.dilation,
                groups=self.groups,
            )(x, inner_hw, train)
        )
        x = conv("conv3", self.features, size=1, stride=1, scale_init=self._residual_scale())(
            x, strided_size(inner_hw, second), train
        )
        return remember(rectify(x + shortcut))

    def _residual_scale(self) -> nn.initializers.Initializer:
        """Initial scale of the last norm: training starts from identities (Goyal et al., 2017).

        A fixed norm cannot grow from zero; it only keeps sums of untrained blocks from exploding.
        """
        return nn.initializers.constant(0.2 if self.norm == "FrozenBN" else 0.0)


class ResNet(nn.Module):
    """Stem and four stages of bottlenecks; `res2` .. `res5` at strides 4 .. 32."""

    num_blocks: tuple[int, ...] = BLOCKS_OF_DEPTH[50]
    stem_channels: int = 64
    width: int = 64  # of the 3x3 convolutions of res2; doubles with every stage
    groups: int = 1  # of the 3x3 convolutions; the same number in all stages
    res2_channels: int = 256
    norm: str = "FrozenBN"
    stride_in_1x1: bool = True
    res5_dilation: int = 1
    freeze_at: int = 0  # 1 keeps the stem from training, 2 also res2, ...
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self, images: Array, valid_hw: Array | None = None, train: bool = False
    ) -> tuple[Mapping[str, Array], Mapping[str, Array | None]]:
        """Computes the features of normalised images.

        Args:
            images: [B, H, W, 3], zero beyond `valid_hw`.
            valid_hw: [B, 2] the part of the images that counts, or None for all.
            train: normalise by the batch where the norm is batch norm.

        Returns:
            {"res2": [B, H/4, W/4, res2_channels], ...} and the valid sizes under the same names.
        """
        stem = ConvNorm(
            self.stem_channels, 7, 2, norm=self._norm(1), compute=self.compute, name="stem_conv1"
        )
        x = stem(images, valid_hw, train)
        # After the ReLU nothing is negative, so zeros stand in for the pool's -inf padding.
        x, valid_hw = nn.relu(x), strided_size(valid_hw, 2)
        x = interpolate.max_pool(zero_invalid(x, valid_hw), window=3, stride=2, padding=1)
        valid_hw = strided_size(valid_hw, 2)
        x = lax.stop_gradient(x) if self.freeze_at >= 1 else x
        outputs, sizes = {}, {}
        features, width = self.res2_channels, self.width
        for stage, blocks in enumerate(self.num_blocks, start=2):
            dilation = self.res5_dilation if stage == 5 else 1
            stride = 1 if stage == 2 or dilation == 2 else 2
            for block in range(blocks):
                x = Bottleneck(
                    features=features,
                    width=width,
                    stride=stride if block == 0 else 1,
                    dilation=dilation,
                    groups=self.groups,
                    stride_in_1x1=self.stride_in_1x1,
                    has_projection=block == 0,
                    norm=self._norm(stage),
                    compute=self.compute,
                    name=f"res{stage}_{block}",
                )(x, valid_hw, train)
                valid_hw = strided_size(valid_hw, stride if block == 0 else 1)
            x = lax.stop_gradient(x) if self.freeze_at >= stage else x
            outputs[f"res{stage}"], sizes[f"res{stage}"] = x, valid_hw
            features, width = 2 * features, 2 * width
        return outputs, sizes

    def _norm(self, stage: int) -> str:
        """Batch norm of a frozen stage keeps its statistics."""
        return "FrozenBN" if self.norm == "BN" and self.freeze_at >= stage else self.norm
