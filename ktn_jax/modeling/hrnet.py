"""HRNet backbone (Sun et al., CVPR 2019): parallel branches that keep high resolution.

Branch i runs at stride 4 * 2^i. Images need no size multiple: where an upsampled branch comes out
a cell larger than the branch it is added to, the excess is cut off.
"""

import functools
import operator
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax

from ktn_jax.modeling.compute import PLAIN, Compute, remember
from ktn_jax.modeling.layers import ConvNorm, strided_size
from ktn_jax.modeling.resnet import Bottleneck
from ktn_jax.ops import interpolate

Array = jax.Array

STEM_CHANNELS = 64  # the reference fixes both
LAYER1_BLOCKS = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an identity shortcut; channels stay."""

    norm: str = "BN"
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, x: Array, valid_hw: Array | None, train: bool) -> Array:
        """Maps x [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        conv1 = ConvNorm(channels, 3, norm=self.norm, compute=self.compute, name="conv1")
        conv2 = ConvNorm(channels, 3, norm=self.norm, compute=self.compute, name="conv2")
        y = nn.relu(conv1(x, valid_hw, train))
        return remember(nn.relu(x + conv2(y, valid_hw, train)))


class Fuse(nn.Module):
    """Fuses the branches: each becomes the sum of all, resampled to its resolution."""

    norm: str = "BN"
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self, branches: Sequence[Array], sizes: Sequence[Array | None], train: bool
    ) -> list[Array]:
        """Maps branches i [B, H_i, W_i, C_i] of valid `sizes` to the same shapes."""
        fused = []
        for target, own in enumerate(branches):
            maps = []
            for source, x in enumerate(branches):
                if source > target:
                    x = ConvNorm(
                        own.shape[-1],
                        1,
                        norm=self.norm,
                        compute=self.compute,
                        name=f"up{target}_{source}",
                    )(x, sizes[source], train)
                    for _ in range(source - target):
                        x = interpolate.upsample_nearest_x2(x)
                    x = x[:, : own.shape[1], : own.shape[2]]
                elif source < target:
                    x = self._down(
                        x,
                        sizes[source],
                        source=source,
                        target=target,
                        features=own.shape[-1],
                        train=train,
                    )
                maps.append(x)
            fused.append(nn.relu(functools.reduce(operator.add, maps)))
        return fused

    def _down(
        self,
        x: Array,
        valid_hw: Array | None,
        *,
        source: int,
        target: int,
        features: int,
        train: bool,
    ) -> Array:
        """Downsamples x from branch `source` to `target`, by two at each step."""
        steps = target - source
        for step in range(steps):
            is_last = step == steps - 1
            x = ConvNorm(
                features if is_last else x.shape[-1],
                3,
                2,
                norm=self.norm,
                compute=self.compute,
                name=f"down{target}_{source}_{step}",
            )(x, valid_hw, train)
            valid_hw = strided_size(valid_hw, 2)
            x = x if is_last else nn.relu(x)
        return x


class HRNet(nn.Module):
    """Stem to stride 4, then stages of two, three and four branches."""

    channels: tuple[tuple[int, ...], ...] = ((32, 64), (32, 64, 128), (32, 64, 128, 256))
    num_blocks: tuple[tuple[int, ...], ...] = ((4, 4), (4, 4, 4), (4, 4, 4, 4))
    num_modules: tuple[int, ...] = (1, 4, 3)
    norm: str = "BN"
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self, images: Array, valid_hw: Array | None = None, train: bool = False
    ) -> tuple[Mapping[str, Array], Mapping[str, Array | None]]:
        """Computes the features of normalised images.

        Args:
            images: [B, H, W, 3], zero beyond `valid_hw`.
            valid_hw: [B, 2] the part of the images that counts, or None for all.
            train: normalise by the batch.

        Returns:
            {"branch0": [B, ceil(H/4), ceil(W/4), C_0], ...}, the valid sizes under the same names.
        """
        x = images
        for name in ("hr_stem_conv1", "hr_stem_conv2"):
            conv = ConvNorm(STEM_CHANNELS, 3, 2, norm=self.norm, compute=self.compute, name=name)
            x, valid_hw = nn.relu(conv(x, valid_hw, train)), strided_size(valid_hw, 2)
        for block in range(LAYER1_BLOCKS):
            x = Bottleneck(
                features=4 * STEM_CHANNELS,
                width=STEM_CHANNELS,
                has_projection=block == 0,
                norm=self.norm,
                compute=self.compute,
                name=f"layer1_{block}",
            )(x, valid_hw, train)
        branches, sizes = [x], [valid_hw]
        for stage, channels in enumerate(self.channels, start=2):
            branches, sizes = self._transition(
                stage - 1, branches, sizes, channels=channels, train=train
            )
            for module in range(self.num_modules[stage - 2]):
                name = f"stage{stage}_{module}"
                for index, blocks in enumerate(self.num_blocks[stage - 2]):
                    for block in range(blocks):
                        basic = BasicBlock(
                            norm=self.norm,
                            compute=self.compute,
                            name=f"{name}_branch{index}_{block}",
                        )
                        branches[index] = basic(branches[index], sizes[index], train)
                fuse = Fuse(norm=self.norm, compute=self.compute, name=f"{name}_fuse")
                branches = fuse(branches, sizes, train)
        names = [f"branch{index}" for index in range(len(branches))]
        return dict(zip(names, branches, strict=True)), dict(zip(names, sizes, strict=True))

    def _transition(
        self,
        number: int,
        branches: list[Array],
        sizes: list[Array | None],
        channels: Sequence[int],
        train: bool,
    ) -> tuple[list[Array], list[Array | None]]:
        """Adds the new branch of the next stage and adapts the channels of the others."""
        new_branches, new_sizes = [], []
        for index, features in enumerate(channels):
            is_new = index >= len(branches)
            x, valid_hw = (branches[-1], sizes[-1]) if is_new else (branches[index], sizes[index])
            if is_new or x.shape[-1] != features:
                conv = ConvNorm(
                    features,
                    3,
                    2 if is_new else 1,
                    norm=self.norm,
                    compute=self.compute,
                    name=f"transition{number}_{index}",
                )
                x = nn.relu(conv(x, valid_hw, train))
                valid_hw = strided_size(valid_hw, 2) if is_new else valid_hw
            new_branches.append(x)
            new_sizes.append(valid_hw)
        return new_branches, new_sizes
