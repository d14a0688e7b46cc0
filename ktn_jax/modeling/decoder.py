"""Decoders: from the pyramid to the one stride-4 map that people are pooled from."""

import functools
import operator
from collections.abc import Mapping

import flax.linen as nn
import jax

from ktn_jax.modeling.branches import Branch, BranchProjection
from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import Conv, ConvNorm, GroupNorm, replicate_edge
from ktn_jax.ops import interpolate

Array = jax.Array

TRIDENT_DILATIONS = (0, 1, 2, 3)  # 0 stands for the 1x1 branch


class PanopticDecoder(nn.Module):
    """Panoptic FPN's semantic branch (Kirillov et al., CVPR 2019), the baseline's decoder."""

    features: int = 256  # of every step
    out_features: int = 256
    norm: str = ""
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, levels: Mapping[str, Array], sizes: Mapping[str, Array | None]) -> Array:
        """Maps levels, finest first, i-th [B, H / 2^i, W / 2^i, C], to [B, H, W, out_features]."""
        refined = []
        for index, (level, x) in enumerate(levels.items()):
            valid_hw = sizes[level]
            for step in range(max(index, 1)):
                conv = ConvNorm(
                    self.features,
                    3,
                    norm=self.norm,
                    is_rectified=True,
                    compute=self.compute,
                    name=f"{level}_{step}",
                )
                x = conv(x, valid_hw)
                if index > 0:
                    x = replicate_edge(x, valid_hw)
                    x = interpolate.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
                    valid_hw = None if valid_hw is None else 2 * valid_hw
            refined.append(x)
        total = functools.reduce(operator.add, refined)
        return Conv(self.out_features, compute=self.compute, name="predictor")(total)


class MultiInstanceDecoder(nn.Module):
    """KTN's refined pyramid (MID): resolution kept, background suppressed."""

    features: int = 256
    out_features: int = 256
    is_multi_scale: bool = True
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, levels: Mapping[str, Array], sizes: Mapping[str, Array | None]) -> Array:
        """Maps levels, finest first, i-th [B, H / 2^i, W / 2^i, C], to [B, H, W, out_features].

        Raises:
            ValueError: a level is not half the size of the one before.
        """
        refined: list[Array] = []
        finer: tuple[str, Array] | None = None
        for index, (level, x) in enumerate(levels.items()):
            if finer is not None:
                x = x + self._adapt(*finer, x, sizes[level])
            finer = (level, x)
            refined.append(self._to_first_resolution(index, level, x, sizes[level]))
        total = functools.reduce(operator.add, refined)
        if not self.is_multi_scale:
            return Conv(self.out_features, compute=self.compute, name="predictor")(total)
        branches = self._multi_scale(total, next(iter(sizes.values())))
        return BranchProjection(self.out_features, compute=self.compute, name="predictor")(branches)

    def _adapt(self, level: str, finer: Array, x: Array, valid_hw: Array | None) -> Array:
        """Folds the finer map of `level` to the resolution of x, for the bottom-up path."""
        expected = (2 * x.shape[1], 2 * x.shape[2])
        if finer.shape[1:3] != expected:
            raise ValueError(
                f"{level} must be {expected}, twice the next level, got {finer.shape[1:3]}: "
                "pad images to a multiple of the coarsest stride"
            )
        folded = interpolate.space_to_depth(finer)
        conv = Conv(x.shape[-1], 3, is_rectified=True, compute=self.compute, name=f"adapt_{level}")
        return conv(folded, valid_hw)

    def _to_first_resolution(
        self, index: int, level: str, x: Array, valid_hw: Array | None
    ) -> Array:
        """Doubles the resolution of the `index`-th level until it is the first's."""
        for step in range(max(index, 1)):
            conv = Conv(
                self.features,
                3,
                is_rectified=True,
                compute=self.compute,
                name=f"{level}_{step}_conv",
            )
            x = conv(x, valid_hw)
            if index > 0:
                expand = Conv(
                    4 * self.features, compute=self.compute, name=f"{level}_{step}_expand"
                )
                x = interpolate.pixel_shuffle(nn.relu(expand(x)), 2)
                valid_hw = None if valid_hw is None else 2 * valid_hw
        return x

    def _multi_scale(self, x: Array, valid_hw: Array | None) -> list[Branch]:
        """Four parallel branches of growing dilation."""
        branches = []
        for index, dilation in enumerate(TRIDENT_DILATIONS):
            conv = Conv(
                self.features,
                3 if dilation else 1,
                dilation=max(dilation, 1),
                use_bias=False,
                compute=self.compute,
                name=f"trident{index}_conv",
            )
            norm = GroupNorm(name=f"trident{index}_norm")
            y = conv(x, valid_hw)
            branches.append(Branch(y, *norm.affine(y, valid_hw)))
        return branches
