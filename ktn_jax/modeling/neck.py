"""Feature pyramids: FPN over ResNet stages, HRFPN over HRNet branches; one kind of output.

A pyramid is {"p2": [B, H/4, W/4, C], ...} with the valid sizes under the same names; the levels'
strides double from the first to the last.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import (
    BatchNorm,
    Conv,
    ConvNorm,
    parameter,
    strided_size,
    xavier_init,
    zero_invalid,
)
from ktn_jax.ops import interpolate

Array = jax.Array
Pyramid = Mapping[str, Array]
Sizes = Mapping[str, Array | None]


class FPN(nn.Module):
    """Feature Pyramid Network (Lin et al., CVPR 2017), with p6 a stride-2 subsample of p5."""

    features: int = 256
    norm: str = ""
    compute: Compute = PLAIN

    @nn.compact
    def __call__(self, stages: Pyramid, sizes: Sizes, train: bool = False) -> tuple[Pyramid, Sizes]:
        """Maps {"res2": [B, H/4, W/4, C_2], ...} to {"p2": [B, H/4, W/4, features], ... "p6"}."""
        outputs, output_sizes, top_down = {}, {}, None
        for level in (5, 4, 3, 2):
            x, valid_hw = stages[f"res{level}"], sizes[f"res{level}"]

            def conv(name: str, size: int) -> ConvNorm:
                return ConvNorm(
                    self.features,
                    size,
                    norm=self.norm,
                    kernel_init=xavier_init,
                    compute=self.compute,
                    name=name,
                )

            lateral = conv(f"lateral{level}", 1)(x, valid_hw, train)
            if top_down is not None:
                lateral = lateral + interpolate.upsample_nearest_x2(top_down)
            top_down = lateral
            outputs[f"p{level}"] = conv(f"output{level}", 3)(lateral, valid_hw, train)
            output_sizes[f"p{level}"] = valid_hw
        outputs["p6"] = outputs["p5"][:, ::2, ::2]
        output_sizes["p6"] = strided_size(output_sizes["p5"], 2)
        return dict(sorted(outputs.items())), output_sizes


class HRFPN(nn.Module):
    """High-resolution FPN: branches upsampled to stride 4 and concatenated, then pooled down.

    The upsampling deconvolutions have kernel 4, stride 2^i and no padding, so maps grow by a few
    cells and are shifted against each other; all are cut to the smallest. The levels are then cut
    so that each is twice the next: sizes that are no multiple of 64 lose a border.
    """

    features: int = 256
    num_levels: int = 5
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self, branches: Pyramid, sizes: Sizes, train: bool = False
    ) -> tuple[Pyramid, Sizes]:
        """Maps {"branch0": [B, H/4, W/4, C_0], ...} to {"p1": [B, ~H/4, ~W/4, features], ...}."""

        def norm(name: str) -> BatchNorm:
            return BatchNorm(batch_axis=self.compute.batch_axis, name=name)

        maps, map_sizes = [], []
        for index in range(len(branches)):
            x, valid_hw = branches[f"branch{index}"], sizes[f"branch{index}"]
            channels = x.shape[-1]
            kernel = parameter(
                self, f"interp{index}_kernel", xavier_init, (4, 4, channels, channels)
            )
            x = interpolate.conv_transpose(
                zero_invalid(x, valid_hw),
                kernel.astype(self.compute.dtype),
                stride=2**index,
                padding=0,
            )
            valid_hw = None if valid_hw is None else (valid_hw - 1) * 2**index + 4
            maps.append(nn.relu(norm(f"interp{index}_norm")(x, train, valid_hw)))
            if valid_hw is not None:
                map_sizes.append(valid_hw)
        height = min(x.shape[1] for x in maps)
        width = min(x.shape[2] for x in maps)
        fused = jnp.concatenate([x[:, :height, :width] for x in maps], axis=-1)
        fused_hw = jnp.stack(map_sizes).min(axis=0) if map_sizes else None
        levels = []
        for index in range(self.num_levels):
            size = 2**index
            x = Conv(
                self.features,
                size,
                size,
                padding=0,
                compute=self.compute,
                name=f"reduction{index}_conv",
            )(fused, fused_hw)
            valid_hw = None if fused_hw is None else fused_hw // size
            levels.append(nn.relu(norm(f"reduction{index}_norm")(x, train, valid_hw)))
        last = self.num_levels - 1
        last_hw = None if fused_hw is None else fused_hw // 2**last
        outputs, output_sizes = {}, {}
        for index, x in enumerate(levels):
            factor = 2 ** (last - index)
            x = x[:, : levels[last].shape[1] * factor, : levels[last].shape[2] * factor]
            valid_hw = None if last_hw is None else last_hw * factor
            conv = Conv(self.features, 3, compute=self.compute, name=f"fpn{index}_conv")
            outputs[f"p{index + 1}"] = conv(x, valid_hw)
            output_sizes[f"p{index + 1}"] = valid_hw
        return outputs, output_sizes
