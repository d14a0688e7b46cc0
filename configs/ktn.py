"""Knowledge Transfer Networks: `--config configs/ktn.py:r50`.

Variants: r50 and hrnet_w32 (KTNv2 with MID and KTM), mid_only (MID, a surface classifier of its
own), ktm_only (KTM on the plain pyramid), tiny (small enough for a laptop and for tests).
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("r50", "hrnet_w32", "mid_only", "ktm_only", "tiny")


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: one of {list(VARIANTS)}")
    config = base.get_config()
    config.name = f"ktn_{variant}"
    model = config.model
    model.decoder.name = "none" if variant == "ktm_only" else "multi_instance"
    model.densepose_head.name = "ktn"
    model.densepose_head.norm = "GN"
    model.predictor.name = "chart" if variant == "mid_only" else "ktn"
    model.predictor.mask_threshold = 0.3
    config.loss.coarse_segm_weight = 2.0
    config.loss.densepose_iou_threshold = 0.65
    if variant == "hrnet_w32":
        model.backbone.name = "hrnet"
        model.backbone.norm = "BN"
        model.backbone.freeze_at = 0
        model.predictor.name = "ktn_auxiliary"
    if variant == "tiny":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Cuts widths, depths and image sizes; the structure stays."""
    model = config.model
    model.backbone.num_blocks = (1, 1, 1, 1)
    model.backbone.stem_channels = 16
    model.backbone.width = 16
    model.backbone.res2_channels = 64
    model.neck.channels = model.decoder.channels = model.decoder.out_channels = 64
    model.box_head.hidden_features = 128
    model.box_head.max_detections = 20
    model.rpn.pre_nms_top_k_test = model.rpn.post_nms_top_k_test = 200
    model.densepose_head.channels = 64
    model.densepose_head.num_convs = 2
    model.densepose_head.pooled_size = 14
    model.rpn.pre_nms_top_k_train = model.rpn.post_nms_top_k_train = 200
    model.rpn.batch_size_per_image = model.box_head.batch_size_per_image = 64
    config.loss.densepose_rois_per_image = 8
    config.test.short_side, config.test.max_side = 256, 384
    config.test.size_buckets = ((256, 256), (256, 384), (384, 256))
