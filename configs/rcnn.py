"""Mask R-CNN and Keypoint R-CNN as detectron2 ships them: `--config rcnn:mask_r50`.

Without DensePose. Variants: mask_r50, mask_r101 (COCO's 80 classes), keypoint_r50, keypoint_r101
(people), person_r50 (masks and keypoints of people). The weights of detectron2's
mask_rcnn_R_50_FPN_3x, keypoint_rcnn_R_50_FPN_3x and their R101 forms fit. Training data here are
people, the first class.
"""

from ml_collections import ConfigDict

from ktn_jax.configs import base

TASKS = {
    "mask_r50": ("masks",),
    "mask_r101": ("masks",),
    "keypoint_r50": ("keypoints",),
    "keypoint_r101": ("keypoints",),
    "person_r50": ("keypoints", "masks"),
}
_NUM_COCO_CLASSES = 80


def get_config(variant: str = "mask_r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in TASKS:
        raise ValueError(f"unknown variant {variant!r}: one of {list(TASKS)}")
    config = base.get_config()
    config.name = f"rcnn_{variant}"
    model = config.model
    model.tasks = TASKS[variant]
    model.backbone.depth = 101 if variant.endswith("r101") else 50
    model.box_head.sampling_ratio, model.box_head.aligned = 0, True
    if variant.startswith("mask"):
        model.box_head.num_classes = _NUM_COCO_CLASSES
    else:
        model.rpn.post_nms_top_k_train = 1500
        config.loss.box_smooth_l1_beta = 0.5
    config.optimizer.learning_rate = 0.02
    config.total_steps, config.optimizer.decay_steps = 270_000, (210_000, 250_000)
    config.training.best_metric = "box"
    return config
