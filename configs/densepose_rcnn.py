"""DensePose R-CNN as detectron2 ships it: `--config densepose_rcnn:r50`.

Variants: r50_legacy (no decoder, 15 coarse channels), r50, r101, r50_dl, r101_dl (DeepLab head),
hrnet_w32, hrnet_w40, hrnet_w48; and r50 with other branches beside DensePose: masks, keypoints,
multitask (both). Training starts from ImageNet: `--weights R-50.pkl`.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import base

BRANCHES = {
    "masks": ("densepose", "masks"),
    "keypoints": ("densepose", "keypoints"),
    "multitask": ("densepose", "keypoints", "masks"),
}
DEPTHS = {"r50_legacy": 50, "r50": 50, "r101": 101, "r50_dl": 50, "r101_dl": 101}
DEPTHS |= dict.fromkeys(BRANCHES, 50)
HRNET_WIDTHS = {"hrnet_w32": 32, "hrnet_w40": 40, "hrnet_w48": 48}


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    variants = [*DEPTHS, *HRNET_WIDTHS]
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}: one of {variants}")
    config = base.get_config()
    config.name = f"densepose_rcnn_{variant}"
    if variant in HRNET_WIDTHS:
        use_hrnet(config, HRNET_WIDTHS[variant])
    else:
        config.model.backbone.depth = DEPTHS[variant]
    if variant == "r50_legacy":
        config.model.decoder.name = "none"
        config.model.densepose_head.pooled_size = 14
        config.model.predictor.num_coarse_channels = 15
        config.loss.point_weight = 0.1
        config.loss.fine_segm_weight = 0.3
        config.loss.coarse_segm_weight = 2.0
        config.optimizer.learning_rate = 0.002
    if variant in BRANCHES:
        config.model.tasks = BRANCHES[variant]
        config.loss.keypoint_weight = 1.0
    if variant.endswith("_dl"):
        config.model.densepose_head.name = "deeplab"
        config.model.densepose_head.norm = "GN"
    return config


def use_hrnet(config: ConfigDict, width: int) -> None:
    """Sets HRNet of a width, the channels of its finest branch, as backbone, and its solver."""
    backbone = config.model.backbone
    backbone.name, backbone.norm, backbone.freeze_at = "hrnet", "BN", 0
    channels = tuple(width * 2**branch for branch in range(4))
    backbone.hrnet_channels = tuple(channels[:branches] for branches in (2, 3, 4))
    config.optimizer.learning_rate = 0.03
    config.optimizer.clip = "norm"
