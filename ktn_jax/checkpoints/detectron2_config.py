"""Reads detectron2 configuration trees (upstream DensePose's and the KTNv2 fork's) as ours."""

import reprlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ktn_jax.configs import base

_HEADS = {
    "DensePoseV1ConvXHead": "conv_stack",
    "DensePoseDeepLabHead": "deeplab",
    "DensePoseKTNHead": "ktn",
}
_PREDICTORS = {
    "DensePoseChartPredictor": "chart",
    "DensePoseChartWithConfidencePredictor": "chart",
    "DensePosePredictor": "chart",
    "KTNv2Predictor": "ktn",
    "KptKTNPredictor": "ktn_keypoints",
    "DensePoseKTNv2PredictorV3": "ktn_auxiliary",
}
_ROI_HEADS = {"DensePoseROIHeads": "panoptic", "DensePoseKTNv2Heads": "multi_instance"}
_POOLERS = {"ROIAlign": False, "ROIAlignV2": True}
_BACKBONES = {
    "build_resnet_fpn_backbone": "resnet",
    "build_hrfpn_backbone": "hrnet",
    "build_hrnet_fpn_backbone": "hrnet",
}
# Losses with a weight of their own in MODEL.ROI_DENSEPOSE_HEAD, by detectron2's names.
_LOSS_KEYS = {
    "point_weight": "POINT_REGRESSION_WEIGHTS",
    "fine_segm_weight": "PART_WEIGHTS",
    "coarse_segm_weight": "INDEX_WEIGHTS",
    "min_uv_variance": "UV_CONFIDENCE.EPSILON",
    "coarse_segm_from_masks": "COARSE_SEGM_TRAINED_BY_MASKS",
    "densepose_iou_threshold": "FG_IOU_THRESHOLD",
}

_LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "resnet": {"rpn": ("p2", "p3", "p4", "p5", "p6"), "roi_heads": ("p2", "p3", "p4", "p5")},
    "hrnet": dict.fromkeys(("rpn", "roi_heads"), ("p1", "p2", "p3", "p4", "p5")),
}


def from_detectron2(tree: Mapping[str, Any]) -> ConfigDict:
    """Translates a complete detectron2 configuration.

    Args:
        tree: nested mappings with the names of detectron2's yaml files, defaults filled in.

    Returns:
        A configuration of the kind that `configs/base.py` describes.

    Raises:
        ValueError: a key is missing or asks for something this project does not have; the message
            names it.
    """
    config = base.get_config()
    config.name = "detectron2"
    try:
        _translate(tree, config)
    except (TypeError, AttributeError, LookupError, OverflowError) as error:
        raise ValueError(
            f"a value of the detectron2 configuration is of another type than wanted: {error}"
        ) from error
    return config


def _translate(tree: Mapping[str, Any], config: ConfigDict) -> None:
    _backbone(tree, config.model)
    _detector(tree, config.model)
    _densepose(tree, config.model)
    _loss(tree, config)
    config.test.short_side = _get(tree, "INPUT.MIN_SIZE_TEST")
    config.test.max_side = _get(tree, "INPUT.MAX_SIZE_TEST")


def _get(tree: Mapping[str, Any], key: str) -> Any:
    """Looks up a dotted key.

    Raises:
        ValueError: it is not there.
    """
    value = tree
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"the detectron2 configuration has no {key}")
        value = value[part]
    return tuple(value) if isinstance(value, list) else value


def _choose(tree: Mapping[str, Any], key: str, choices: Mapping[Any, Any]) -> Any:
    value = _get(tree, key)
    if value not in choices:
        raise ValueError(f"{key} {reprlib.repr(value)} is not supported: one of {list(choices)}")
    return choices[value]


def _require(tree: Mapping[str, Any], **wanted: Any) -> None:
    """Refuses values other than those `wanted` (dots of the keys written as "__")."""
    for name, value in wanted.items():
        key = name.replace("__", ".")
        actual = _get(tree, key)
        if actual != value:
            raise ValueError(f"{key} {reprlib.repr(actual)} is not supported, only {value!r}")


def _backbone(tree: Mapping[str, Any], model: ConfigDict) -> None:
    backbone = model.backbone
    model.pixel_mean_bgr = _get(tree, "MODEL.PIXEL_MEAN")
    model.pixel_std_bgr = _get(tree, "MODEL.PIXEL_STD")
    _require(tree, INPUT__FORMAT="BGR")
    backbone.name = _choose(tree, "MODEL.BACKBONE.NAME", _BACKBONES)
    if backbone.name == "hrnet":
        stages = [_get(tree, f"MODEL.HRNET.STAGE{i}") for i in (2, 3, 4)]
        backbone.hrnet_channels = tuple(tuple(s["NUM_CHANNELS"]) for s in stages)
        backbone.hrnet_num_blocks = tuple(tuple(s["NUM_BLOCKS"]) for s in stages)
        backbone.hrnet_num_modules = tuple(s["NUM_MODULES"] for s in stages)
        backbone.norm, backbone.freeze_at = "BN", 0
        model.neck.channels = _get(tree, "MODEL.HRNET.HRFPN.OUT_CHANNELS")
        return
    _require(tree, MODEL__RESNETS__NUM_GROUPS=1, MODEL__RESNETS__DEFORM_ON_PER_STAGE=(False,) * 4)
    _require(tree, MODEL__FPN__FUSE_TYPE="sum")
    backbone.depth = _choose(tree, "MODEL.RESNETS.DEPTH", {50: 50, 101: 101, 152: 152})
    backbone.stem_channels = _get(tree, "MODEL.RESNETS.STEM_OUT_CHANNELS")
    backbone.width = _get(tree, "MODEL.RESNETS.WIDTH_PER_GROUP")
    backbone.res2_channels = _get(tree, "MODEL.RESNETS.RES2_OUT_CHANNELS")
    backbone.norm = _choose(
        tree, "MODEL.RESNETS.NORM", {"FrozenBN": "FrozenBN", "BN": "BN", "SyncBN": "BN", "GN": "GN"}
    )
    backbone.stride_in_1x1 = _get(tree, "MODEL.RESNETS.STRIDE_IN_1X1")
    backbone.res5_dilation = _get(tree, "MODEL.RESNETS.RES5_DILATION")
    backbone.freeze_at = _get(tree, "MODEL.BACKBONE.FREEZE_AT")
    model.neck.channels = _get(tree, "MODEL.FPN.OUT_CHANNELS")
    model.neck.norm = _choose(tree, "MODEL.FPN.NORM", {"": "", "GN": "GN"})


def _detector(tree: Mapping[str, Any], model: ConfigDict) -> None:
    rpn, box = model.rpn, model.box_head
    levels = _LEVELS[model.backbone.name]
    _require(tree, MODEL__RPN__IN_FEATURES=levels["rpn"])
    _require(tree, MODEL__ROI_HEADS__IN_FEATURES=levels["roi_heads"])
    ratios = _get(tree, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
    if len({tuple(level) for level in ratios}) != 1:
        raise ValueError("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS must be the same on every level")
    rpn.aspect_ratios = tuple(ratios[0])
    sizes = _get(tree, "MODEL.ANCHOR_GENERATOR.SIZES")
    num_levels = len(_get(tree, "MODEL.RPN.IN_FEATURES"))
    sizes = sizes * num_levels if len(sizes) == 1 else sizes
    rpn.anchor_sizes = tuple(tuple(level) for level in sizes)
    rpn.anchor_offset = _get(tree, "MODEL.ANCHOR_GENERATOR.OFFSET")
    rpn.delta_weights = _get(tree, "MODEL.RPN.BBOX_REG_WEIGHTS")
    rpn.nms_threshold = _get(tree, "MODEL.RPN.NMS_THRESH")
    rpn.batch_size_per_image = _get(tree, "MODEL.RPN.BATCH_SIZE_PER_IMAGE")
    rpn.positive_fraction = _get(tree, "MODEL.RPN.POSITIVE_FRACTION")
    rpn.iou_thresholds = _get(tree, "MODEL.RPN.IOU_THRESHOLDS")
    for ours, theirs in (("pre_nms_top_k", "PRE_NMS_TOPK"), ("post_nms_top_k", "POST_NMS_TOPK")):
        for phase in ("train", "test"):
            rpn[f"{ours}_{phase}"] = _get(tree, f"MODEL.RPN.{theirs}_{phase.upper()}")
    _require(
        tree,
        MODEL__ROI_HEADS__NUM_CLASSES=1,
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_CONV=0,
        MODEL__RPN__HEAD_NAME="StandardRPNHead",
        MODEL__PROPOSAL_GENERATOR__NAME="RPN",
    )
    box.pooled_size = _get(tree, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION")
    box.sampling_ratio = _get(tree, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO")
    box.aligned = _choose(tree, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", _POOLERS)
    box.hidden_features = _get(tree, "MODEL.ROI_BOX_HEAD.FC_DIM")
    box.num_layers = _get(tree, "MODEL.ROI_BOX_HEAD.NUM_FC")
    box.delta_weights = _get(tree, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")
    box.score_threshold = _get(tree, "MODEL.ROI_HEADS.SCORE_THRESH_TEST")
    box.nms_threshold = _get(tree, "MODEL.ROI_HEADS.NMS_THRESH_TEST")
    box.max_detections = _get(tree, "TEST.DETECTIONS_PER_IMAGE")
    box.batch_size_per_image = _get(tree, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE")
    box.positive_fraction = _get(tree, "MODEL.ROI_HEADS.POSITIVE_FRACTION")
    box.iou_threshold = _get(tree, "MODEL.ROI_HEADS.IOU_THRESHOLDS")[0]


def _densepose(tree: Mapping[str, Any], model: ConfigDict) -> None:
    def get(key: str) -> Any:
        return _get(tree, f"MODEL.ROI_DENSEPOSE_HEAD.{key}")

    section = _get(tree, "MODEL.ROI_DENSEPOSE_HEAD")
    decoder_kind = _choose(tree, "MODEL.ROI_HEADS.NAME", _ROI_HEADS)
    model.decoder.name = decoder_kind if get("DECODER_ON") else "none"
    model.decoder.channels = get("DECODER_CONV_DIMS")
    model.decoder.out_channels = get("DECODER_NUM_CLASSES")
    model.decoder.norm = get("DECODER_NORM")
    model.decoder.is_multi_scale = section.get("DECODER_MULTI_SCALE_ON", False)
    if model.decoder.name != "none":
        _require(tree, MODEL__ROI_DENSEPOSE_HEAD__DECODER_COMMON_STRIDE=4)
    head = model.densepose_head
    head.name = _choose(tree, "MODEL.ROI_DENSEPOSE_HEAD.NAME", _HEADS)
    head.pooled_size = get("POOLER_RESOLUTION")
    head.sampling_ratio = get("POOLER_SAMPLING_RATIO")
    head.aligned = _choose(tree, "MODEL.ROI_DENSEPOSE_HEAD.POOLER_TYPE", _POOLERS)
    head.channels = get("CONV_HEAD_DIM")
    head.num_convs = get("NUM_STACKED_CONVS")
    head.kernel_size = get("CONV_HEAD_KERNEL")
    head.norm = "" if head.name == "conv_stack" else get("DEEPLAB.NORM")
    head.use_non_local = bool(get("DEEPLAB.NONLOCAL_ON"))
    predictor = model.predictor
    # Upstream and the fork spell the key differently.
    key = "PREDICTOR_NAME" if "PREDICTOR_NAME" in section else "PREDICTOR"
    predictor.name = _choose(tree, f"MODEL.ROI_DENSEPOSE_HEAD.{key}", _PREDICTORS)
    predictor.num_coarse_channels = get("NUM_COARSE_SEGM_CHANNELS")
    predictor.num_patches = get("NUM_PATCHES")
    predictor.kernel_size = get("DECONV_KERNEL")
    predictor.up_scale = get("UP_SCALE")
    if get("UV_CONFIDENCE.ENABLED"):
        kinds = {"iid_iso": "iid_iso", "indep_aniso": "indep_aniso"}
        predictor.uv_confidence = _choose(
            tree, "MODEL.ROI_DENSEPOSE_HEAD.UV_CONFIDENCE.TYPE", kinds
        )
    predictor.has_segm_confidence = get("SEGM_CONFIDENCE.ENABLED")
    predictor.segm_confidence_epsilon = get("SEGM_CONFIDENCE.EPSILON")
    predictor.mask_threshold = section.get("FG_MASK_THRESHOLD", 0.5)


def _loss(tree: Mapping[str, Any], config: ConfigDict) -> None:
    loss, box = config.loss, config.model.box_head
    loss.rpn_weight = _get(tree, "MODEL.RPN.LOSS_WEIGHT")
    loss.rpn_delta_weight = _get(tree, "MODEL.RPN.BBOX_REG_LOSS_WEIGHT")
    loss.rpn_smooth_l1_beta = _get(tree, "MODEL.RPN.SMOOTH_L1_BETA")
    loss.box_delta_weight = _get(tree, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT")
    loss.box_smooth_l1_beta = _get(tree, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA")
    head = _get(tree, "MODEL.ROI_DENSEPOSE_HEAD")
    for ours, theirs in _LOSS_KEYS.items():
        loss[ours] = _get(tree, f"MODEL.ROI_DENSEPOSE_HEAD.{theirs}")
    loss.body_mask_weight = head.get("BODY_MASK_WEIGHTS", loss.body_mask_weight)
    loss.keypoint_weight = _get(tree, "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT")
    key = "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
    loss.normalise_keypoints_by_visible = _get(tree, key)
    # The reference takes all of the foreground.
    loss.densepose_rois_per_image = int(box.batch_size_per_image * box.positive_fraction)
