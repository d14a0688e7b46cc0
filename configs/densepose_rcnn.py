"""DensePose R-CNN as detectron2 ships it: `--config densepose_rcnn:r50`.

Variants: r50_legacy (no decoder, 15 coarse channels), r50, r101, r50_dl, r101_dl (DeepLab head),
hrnet_w32, hrnet_w40, hrnet_w48; and r50 with other branches beside DensePose: masks, keypoints,
multitask (both) and cascade (keypoints, in two stages that read each other's predictions). Training
starts from ImageNet: `--weights R-50.pkl`. cascade_tiny and cascade_demo are small: for tests, and
for rendered people on a CPU, from scratch.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import base, ktn

BRANCHES = {
    "masks": ("densepose", "masks"),
    "keypoints": ("densepose", "keypoints"),
    "multitask": ("densepose", "keypoints", "masks"),
    "cascade": ("densepose", "keypoints"),
    "cascade_tiny": ("densepose", "keypoints", "masks"),
    "cascade_demo": ("densepose", "keypoints"),
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
        base.use_hrnet(config, HRNET_WIDTHS[variant])
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
    if variant.startswith("cascade"):
        config.model.cascade.num_stages = 2
    if variant == "cascade_tiny":
        ktn.shrink(config)
        _narrow_branches(config)
    if variant == "cascade_demo":
        ktn.fit_rendered_people(config)
        config.loss.densepose_rois_per_image = 3  # the branches share them
        _narrow_branches(config)
    if variant.endswith("_dl"):
        config.model.densepose_head.name = "deeplab"
        config.model.densepose_head.norm = "GN"
    return config


def _narrow_branches(config: ConfigDict) -> None:
    """Sets for all branches and stages what the DensePose head of a small model has."""
    model = config.model
    for head in (model.keypoint_head, model.mask_head):
        head.canonical_box_size = model.densepose_head.canonical_box_size
    channels, num_convs = model.densepose_head.channels, model.densepose_head.num_convs
    model.keypoint_head.channels = (channels,) * num_convs
    model.mask_head.channels, model.mask_head.num_convs = channels, num_convs
    model.cascade.channels, model.cascade.num_convs = channels, num_convs
    model.cascade.embedded_channels = channels // 4
    rois = config.loss.densepose_rois_per_image
    config.loss.keypoint_rois_per_image = config.loss.mask_rois_per_image = rois
