"""The backbone and its pyramid, as a configuration describes them, and what images become first."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.hrnet import HRNet
from ktn_jax.modeling.neck import FPN, HRFPN
from ktn_jax.modeling.resnet import BLOCKS_OF_DEPTH, ResNet
from ktn_jax.ops.channels import per_channel

Array = jax.Array


def normalise(images: Array, config: ConfigDict) -> Array:
    """Turns RGB uint8 images [..., H, W, 3] into float32 BGR, as a `model` configuration says."""
    mean = jnp.asarray(config.pixel_mean_bgr, jnp.float32)
    std = jnp.asarray(config.pixel_std_bgr, jnp.float32)
    images = images[..., ::-1].astype(jnp.float32)
    return (images - per_channel(mean, images)) / per_channel(std, images)


def build_backbone(config: ConfigDict, compute: Compute) -> tuple[nn.Module, nn.Module]:
    """Builds the backbone of a `model` configuration, and the neck that makes its pyramid.

    Raises:
        ValueError: an unknown name, or a depth without a standard.
    """
    backbone, neck = config.backbone, config.neck
    if backbone.name == "resnet":
        if not backbone.num_blocks and backbone.depth not in BLOCKS_OF_DEPTH:
            raise ValueError(f"backbone.depth {backbone.depth}: one of {list(BLOCKS_OF_DEPTH)}")
        resnet = ResNet(
            num_blocks=tuple(backbone.num_blocks) or BLOCKS_OF_DEPTH[backbone.depth],
            stem_channels=backbone.stem_channels,
            width=backbone.width,
            groups=backbone.groups,
            res2_channels=backbone.res2_channels,
            norm=backbone.norm,
            stride_in_1x1=backbone.stride_in_1x1,
            res5_dilation=backbone.res5_dilation,
            freeze_at=backbone.freeze_at,
            compute=compute,
        )
        return resnet, FPN(neck.channels, norm=neck.norm, compute=compute)
    if backbone.name == "hrnet":
        hrnet = HRNet(
            channels=tuple(backbone.hrnet_channels),
            num_blocks=tuple(backbone.hrnet_num_blocks),
            num_modules=tuple(backbone.hrnet_num_modules),
            norm=backbone.norm,
            compute=compute,
        )
        return hrnet, HRFPN(neck.channels, compute=compute)
    raise ValueError(f"unknown backbone.name {backbone.name!r}: resnet or hrnet")
