"""Reads detectron2 configuration trees (upstream DensePose's and the KTNv2 fork's) as ours."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ktn_jax.body.parts import NUM_KEYPOINTS
from ktn_jax.checkpoints import detectron2_embeddings
from ktn_jax.checkpoints.detectron2_training import translate_training
from ktn_jax.checkpoints.detectron2_tree import Tree, short
from ktn_jax.configs import base
from ktn_jax.modeling.chart_predictor import LOW_RESOLUTION_KEYPOINTS
from ktn_jax.modeling.person_branches import (
    EMBEDDING,
    has_charts,
    has_embeddings,
    transfer_sources,
)

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
    "DensePoseKptRelationPredictor": "ktn_first",
}
# Both are the same without confidences, and with them there is no choice.
_LOSSES = dict.fromkeys(("DensePoseChartLoss", "DensePoseChartWithConfidenceLoss"))
# The decoder of each kind of heads.
_ROI_HEADS = {
    "DensePoseROIHeads": "panoptic",
    "DensePoseKTNHeads": "panoptic",
    "DensePoseKTNv2Heads": "multi_instance",
    "StandardROIHeads": "none",
}
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

_AUGMENTATION_KEYS = {
    "short_sides": "MIN_SIZES",
    "max_side": "MAX_SIZE",
    "flip": "FLIP",
    "rotation_degrees": "ROTATION_ANGLES",
}
# Settings that the models here do not depend on.
_NO_EFFECT = (
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    # Of other architectures.
    "MODEL.RETINANET.",
    "MODEL.PANOPTIC_FPN.",
    "MODEL.SEM_SEG_HEAD.",
    "MODEL.ROI_BOX_CASCADE_HEAD.",
    # Of KTN: files of initial values, and settings that its code does not read.
    "MODEL.ROI_DENSEPOSE_HEAD.KPT_UP_SCALE",
    "MODEL.ROI_DENSEPOSE_HEAD.KPT_CLASSIFIER_WEIGHT_DIR",
    "MODEL.ROI_DENSEPOSE_HEAD.KPT_SURF_RELATION_DIR",
    "MODEL.ROI_DENSEPOSE_HEAD.BBOX_SURF_RELATION_DIR",
    "MODEL.ROI_DENSEPOSE_HEAD.PART_SURF_RELATION_DIR",
    "MODEL.ROI_DENSEPOSE_HEAD.RES2.",
    "MODEL.ROI_DENSEPOSE_HEAD.MIXUP.",
    "MODEL.ROI_DENSEPOSE_HEAD.TRIPLET_LOSS.",
    "MODEL.ROI_DENSEPOSE_HEAD.LOWRES_LOSS.",
    "MODEL.ROI_DENSEPOSE_HEAD.UV_LOSS_WITH_WEIGHTS.",
)

# Settings of a branch have no effect where it is off.
_SECTIONS = {
    "densepose": "MODEL.ROI_DENSEPOSE_HEAD.",
    "keypoints": "MODEL.ROI_KEYPOINT_HEAD.",
    "masks": "MODEL.ROI_MASK_HEAD.",
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
        ValueError: keys are missing or unknown, or ask for something this project does not have;
            the message lists all of them, of unknown ones the first hundred.
    """
    return _translated(tree)[0]


def training_notes(tree: Mapping[str, Any]) -> list[str]:
    """What a configuration says of training that `from_detectron2` leaves out, one line each.

    Raises:
        ValueError: as `from_detectron2`.
    """
    return _translated(tree)[1]


def _translated(tree: Mapping[str, Any]) -> tuple[ConfigDict, list[str]]:
    settings = Tree(tree)
    config = base.get_config()
    config.name = "detectron2"
    notes: list[str] = []
    try:
        _translate(settings, config)
        notes = translate_training(settings, config)
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        settings.problems.append(f"a value is of another type than wanted: {error}")
    problems = [*settings.problems, *settings.unknown(), *_ignored(settings, config.model)]
    if problems:
        lines = "\n  ".join(dict.fromkeys(problems))
        raise ValueError(f"not supported in the detectron2 configuration:\n  {lines}")
    return config, notes


def _translate(tree: Tree, config: ConfigDict) -> None:
    model = config.model
    model.tasks = _tasks(tree)
    _backbone(tree, model)
    _detector(tree, model)
    if "densepose" in model.tasks:
        _densepose(tree, model)
    if has_charts(model):
        tree.require(MODEL__ROI_HEADS__NUM_CLASSES=1)
    if "keypoints" in model.tasks:
        _keypoint_head(tree, model.keypoint_head)
    if "masks" in model.tasks:
        _mask_head(tree, model.mask_head)
    _loss(tree, config)
    config.test.short_side = tree.get("INPUT.MIN_SIZE_TEST")
    config.test.max_side = tree.get("INPUT.MAX_SIZE_TEST")
    for ours, theirs in _AUGMENTATION_KEYS.items():
        default = config.test.augmentation[ours]
        config.test.augmentation[ours] = tree.find(f"TEST.AUG.{theirs}", default)
    tree.find("TEST.AUG.ENABLED", False)  # ours is asked for by name


def _tasks(tree: Tree) -> tuple[str, ...]:
    """The branches that a configuration switches on."""
    key, is_on = "MODEL.ROI_HEADS.NAME", {True: True, False: False}
    tree.choose(key, _ROI_HEADS)
    # KTN's code takes keypoints from its DensePose heads, and builds no others.
    is_fork = tree.has("MODEL.ROI_DENSEPOSE_HEAD.PREDICTOR")
    switches = {"keypoints": "MODEL.KEYPOINT_ON", "masks": "MODEL.MASK_ON"}
    if tree.find(key, "") != "StandardROIHeads":
        switches = {"densepose": "MODEL.DENSEPOSE_ON"} | switches
    chosen = {task: tree.choose(switch, is_on) for task, switch in switches.items()}
    if is_fork:
        chosen["keypoints"] = False
    return tuple(task for task, on in chosen.items() if on)


def _ignored(tree: Tree, model: ConfigDict) -> list[str]:
    """Settings of the model that were changed and that nothing here reads, one line each."""
    is_hrnet = "hrfpn" in tree.find("MODEL.BACKBONE.NAME", "")
    no_effect = [*_NO_EFFECT]
    no_effect += ["MODEL.RESNETS.", "MODEL.FPN."] if is_hrnet else ["MODEL.HRNET."]
    if not has_embeddings(model):
        no_effect.append(detectron2_embeddings.SECTION)
    no_effect += [section for task, section in _SECTIONS.items() if task not in model.tasks]
    return [
        f"{key} {short(value)} is not supported"
        for key, value in tree.unread().items()
        if key.startswith("MODEL.") and not key.startswith(tuple(no_effect))
    ]


def _backbone(tree: Tree, model: ConfigDict) -> None:
    backbone = model.backbone
    model.pixel_mean_bgr = tree.get("MODEL.PIXEL_MEAN")
    model.pixel_std_bgr = tree.get("MODEL.PIXEL_STD")
    tree.require(INPUT__FORMAT="BGR")
    backbone.name = tree.choose("MODEL.BACKBONE.NAME", _BACKBONES)
    if backbone.name == "hrnet":
        stages = [f"MODEL.HRNET.STAGE{i}" for i in (2, 3, 4)]
        backbone.hrnet_channels = tuple(tree.get(f"{stage}.NUM_CHANNELS") for stage in stages)
        backbone.hrnet_num_blocks = tuple(tree.get(f"{stage}.NUM_BLOCKS") for stage in stages)
        backbone.hrnet_num_modules = tuple(tree.get(f"{stage}.NUM_MODULES") for stage in stages)
        backbone.norm, backbone.freeze_at = "BN", 0
        model.neck.channels = tree.get("MODEL.HRNET.HRFPN.OUT_CHANNELS")
        return
    tree.require(MODEL__RESNETS__DEFORM_ON_PER_STAGE=(False,) * 4)
    levels = ("res2", "res3", "res4", "res5")
    tree.require(MODEL__RESNETS__OUT_FEATURES=levels, MODEL__FPN__IN_FEATURES=levels)
    tree.require(MODEL__FPN__FUSE_TYPE="sum")
    backbone.depth = tree.choose("MODEL.RESNETS.DEPTH", {50: 50, 101: 101, 152: 152})
    backbone.stem_channels = tree.get("MODEL.RESNETS.STEM_OUT_CHANNELS")
    backbone.groups = tree.get("MODEL.RESNETS.NUM_GROUPS")
    backbone.width = backbone.groups * tree.get("MODEL.RESNETS.WIDTH_PER_GROUP")
    backbone.res2_channels = tree.get("MODEL.RESNETS.RES2_OUT_CHANNELS")
    backbone.norm = tree.choose(
        "MODEL.RESNETS.NORM", {"FrozenBN": "FrozenBN", "BN": "BN", "SyncBN": "BN", "GN": "GN"}
    )
    backbone.stride_in_1x1 = tree.get("MODEL.RESNETS.STRIDE_IN_1X1")
    backbone.res5_dilation = tree.get("MODEL.RESNETS.RES5_DILATION")
    backbone.freeze_at = tree.get("MODEL.BACKBONE.FREEZE_AT")
    model.neck.channels = tree.get("MODEL.FPN.OUT_CHANNELS")
    model.neck.norm = tree.choose("MODEL.FPN.NORM", {"": "", "GN": "GN"})


def _detector(tree: Tree, model: ConfigDict) -> None:
    rpn, box = model.rpn, model.box_head
    levels = _LEVELS[model.backbone.name]
    tree.require(MODEL__RPN__IN_FEATURES=levels["rpn"])
    tree.require(MODEL__ROI_HEADS__IN_FEATURES=levels["roi_heads"])
    ratios = tree.get("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
    if len(set(ratios)) != 1:
        tree.problems.append("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS must be the same on every level")
    rpn.aspect_ratios = ratios[0]
    sizes = tree.get("MODEL.ANCHOR_GENERATOR.SIZES")
    num_levels = len(tree.get("MODEL.RPN.IN_FEATURES"))
    sizes = sizes * num_levels if len(sizes) == 1 else sizes
    rpn.anchor_sizes = sizes
    rpn.anchor_offset = tree.get("MODEL.ANCHOR_GENERATOR.OFFSET")
    rpn.delta_weights = tree.get("MODEL.RPN.BBOX_REG_WEIGHTS")
    rpn.nms_threshold = tree.get("MODEL.RPN.NMS_THRESH")
    rpn.batch_size_per_image = tree.get("MODEL.RPN.BATCH_SIZE_PER_IMAGE")
    rpn.positive_fraction = tree.get("MODEL.RPN.POSITIVE_FRACTION")
    rpn.iou_thresholds = tree.get("MODEL.RPN.IOU_THRESHOLDS")
    for ours, theirs in (("pre_nms_top_k", "PRE_NMS_TOPK"), ("post_nms_top_k", "POST_NMS_TOPK")):
        for phase in ("train", "test"):
            rpn[f"{ours}_{phase}"] = tree.get(f"MODEL.RPN.{theirs}_{phase.upper()}")
    tree.require(
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_CONV=0,
        MODEL__RPN__HEAD_NAME="StandardRPNHead",
        MODEL__PROPOSAL_GENERATOR__NAME="RPN",
    )
    box.num_classes = tree.get("MODEL.ROI_HEADS.NUM_CLASSES")
    box.is_class_agnostic = tree.get("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    _pooler(tree, box, "MODEL.ROI_BOX_HEAD")
    box.hidden_features = tree.get("MODEL.ROI_BOX_HEAD.FC_DIM")
    box.num_layers = tree.get("MODEL.ROI_BOX_HEAD.NUM_FC")
    box.delta_weights = tree.get("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")
    box.score_threshold = tree.get("MODEL.ROI_HEADS.SCORE_THRESH_TEST")
    box.nms_threshold = tree.get("MODEL.ROI_HEADS.NMS_THRESH_TEST")
    box.max_detections = tree.get("TEST.DETECTIONS_PER_IMAGE")
    box.batch_size_per_image = tree.get("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE")
    box.positive_fraction = tree.get("MODEL.ROI_HEADS.POSITIVE_FRACTION")
    box.iou_threshold = tree.get("MODEL.ROI_HEADS.IOU_THRESHOLDS")[0]


def _pooler(tree: Tree, head: ConfigDict, section: str) -> None:
    head.pooled_size = tree.get(f"{section}.POOLER_RESOLUTION")
    head.sampling_ratio = tree.get(f"{section}.POOLER_SAMPLING_RATIO")
    head.aligned = tree.choose(f"{section}.POOLER_TYPE", _POOLERS)


def _keypoint_head(tree: Tree, head: ConfigDict) -> None:
    tree.require(
        MODEL__ROI_KEYPOINT_HEAD__NAME="KRCNNConvDeconvUpsampleHead",
        MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS=NUM_KEYPOINTS,
    )
    _pooler(tree, head, "MODEL.ROI_KEYPOINT_HEAD")
    head.channels = tree.get("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS")


def _mask_head(tree: Tree, head: ConfigDict) -> None:
    tree.require(MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead")
    _pooler(tree, head, "MODEL.ROI_MASK_HEAD")
    head.channels = tree.get("MODEL.ROI_MASK_HEAD.CONV_DIM")
    head.num_convs = tree.get("MODEL.ROI_MASK_HEAD.NUM_CONV")
    head.norm = tree.choose("MODEL.ROI_MASK_HEAD.NORM", {"": "", "GN": "GN"})
    head.is_class_agnostic = tree.get("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK")


def _densepose(tree: Tree, model: ConfigDict) -> None:
    def get(key: str) -> Any:
        return tree.get(f"MODEL.ROI_DENSEPOSE_HEAD.{key}")

    def find(key: str, default: Any) -> Any:  # only KTN's code has these
        return tree.find(f"MODEL.ROI_DENSEPOSE_HEAD.{key}", default)

    decoder_kind = tree.choose("MODEL.ROI_HEADS.NAME", _ROI_HEADS)
    model.decoder.name = decoder_kind if get("DECODER_ON") else "none"
    model.decoder.channels = get("DECODER_CONV_DIMS")
    model.decoder.out_channels = get("DECODER_NUM_CLASSES")
    model.decoder.norm = get("DECODER_NORM")
    model.decoder.is_multi_scale = find("DECODER_MULTI_SCALE_ON", False)
    if model.decoder.name != "none":
        tree.require(MODEL__ROI_DENSEPOSE_HEAD__DECODER_COMMON_STRIDE=4)
    head = model.densepose_head
    head.name = tree.choose("MODEL.ROI_DENSEPOSE_HEAD.NAME", _HEADS)
    _pooler(tree, head, "MODEL.ROI_DENSEPOSE_HEAD")
    head.channels = get("CONV_HEAD_DIM")
    head.num_convs = get("NUM_STACKED_CONVS")
    head.kernel_size = get("CONV_HEAD_KERNEL")
    head.norm = "" if head.name == "conv_stack" else get("DEEPLAB.NORM")
    head.use_non_local = bool(get("DEEPLAB.NONLOCAL_ON"))
    predictor = model.predictor
    # Upstream and the fork spell the key differently; the fork has no embeddings.
    key, choices = "MODEL.ROI_DENSEPOSE_HEAD.PREDICTOR", _PREDICTORS
    if not tree.has(key):
        key, choices = f"{key}_NAME", _PREDICTORS | detectron2_embeddings.PREDICTORS
    predictor.name = tree.choose(key, choices)
    if predictor.name in ("chart", EMBEDDING):
        find("KPT_ON", False)
    else:
        tree.require(MODEL__ROI_DENSEPOSE_HEAD__KPT_ON=True)
    if predictor.name in LOW_RESOLUTION_KEYPOINTS and get("KPT_UP_SCALE") > 2:
        tree.problems.append(
            f"MODEL.ROI_DENSEPOSE_HEAD.KPT_UP_SCALE {get('KPT_UP_SCALE')} is not supported, only 2"
        )
    predictor.num_coarse_channels = get("NUM_COARSE_SEGM_CHANNELS")
    predictor.num_patches = get("NUM_PATCHES")
    predictor.kernel_size = get("DECONV_KERNEL")
    predictor.up_scale = get("UP_SCALE")
    side = 2 * predictor.up_scale * head.pooled_size
    if get("HEATMAP_SIZE") != side:
        tree.problems.append(
            f"MODEL.ROI_DENSEPOSE_HEAD.HEATMAP_SIZE {get('HEATMAP_SIZE')} is not supported, only "
            f"the side of the outputs, {side}"
        )
    kinds = {"iid_iso": "iid_iso", "indep_aniso": "indep_aniso"}
    kind = tree.choose("MODEL.ROI_DENSEPOSE_HEAD.UV_CONFIDENCE.TYPE", kinds)
    predictor.uv_confidence = kind if get("UV_CONFIDENCE.ENABLED") else ""
    predictor.has_segm_confidence = get("SEGM_CONFIDENCE.ENABLED")
    predictor.segm_confidence_epsilon = get("SEGM_CONFIDENCE.EPSILON")
    predictor.mask_threshold = find("FG_MASK_THRESHOLD", 0.5)


def _loss(tree: Tree, config: ConfigDict) -> None:
    loss, box = config.loss, config.model.box_head
    loss.rpn_weight = tree.get("MODEL.RPN.LOSS_WEIGHT")
    loss.rpn_delta_weight = tree.get("MODEL.RPN.BBOX_REG_LOSS_WEIGHT")
    loss.rpn_smooth_l1_beta = tree.get("MODEL.RPN.SMOOTH_L1_BETA")
    loss.box_delta_weight = tree.get("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT")
    loss.box_smooth_l1_beta = tree.get("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA")
    if "densepose" in config.model.tasks:
        _densepose_loss(tree, loss, has_embeddings(config.model))
    if has_embeddings(config.model):
        detectron2_embeddings.translate_embeddings(tree, config)
    keypoint_weight = tree.get("MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT")
    if transfer_sources(config.model):  # KTN has no keypoint head and takes it for its heatmaps
        loss.keypoint_weight = keypoint_weight
    if "keypoints" in config.model.tasks:
        loss.keypoint_head_weight = keypoint_weight
    key = "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
    loss.normalise_keypoints_by_visible = tree.get(key)
    # The reference takes all of the foreground.
    foreground = int(box.batch_size_per_image * box.positive_fraction)
    loss.densepose_rois_per_image = foreground
    loss.keypoint_rois_per_image = foreground
    loss.mask_rois_per_image = foreground


def _densepose_loss(tree: Tree, loss: ConfigDict, is_embedding: bool) -> None:
    for ours, theirs in _LOSS_KEYS.items():
        loss[ours] = tree.get(f"MODEL.ROI_DENSEPOSE_HEAD.{theirs}")
    if tree.has("MODEL.ROI_DENSEPOSE_HEAD.LOSS_NAME"):
        losses = dict.fromkeys(detectron2_embeddings.LOSSES) if is_embedding else _LOSSES
        tree.choose("MODEL.ROI_DENSEPOSE_HEAD.LOSS_NAME", losses)
    key = "MODEL.ROI_DENSEPOSE_HEAD.BODY_MASK_WEIGHTS"
    loss.body_mask_weight = tree.find(key, loss.body_mask_weight)
