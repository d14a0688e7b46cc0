"""Mask and keypoint heads, a model of several classes, and the names of detectron2's models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ktn_jax.checkpoints import detectron2_tree, torch_names, weights
from ktn_jax.checkpoints.detectron2_config import from_detectron2
from ktn_jax.modeling.box_head import select_detections
from ktn_jax.modeling.detector import build_model
from ktn_jax.modeling.person_heads import MaskHead, masks_of_classes, upsample_scores
from ktn_jax.ops.nms import nms
from ktn_jax.runtime.configuration import load_config
from ktn_jax.structures import Proposals
from ktn_jax.verification import intermediates
from ktn_jax.verification.dump import Dump, format_rows

# What the yaml files of detectron2's standard models set over its defaults.
_FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
_MASKS = {"MODEL.MASK_ON": True}
_KEYPOINTS = {
    "MODEL.KEYPOINT_ON": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
}


def _conv(name, channels_in, channels_out, size=3):
    return {
        f"{name}.weight": (channels_out, channels_in, size, size),
        f"{name}.bias": (channels_out,),
    }


def _box_head(classes):
    return {
        "roi_heads.box_predictor.cls_score.weight": (classes + 1, 1024),
        "roi_heads.box_predictor.cls_score.bias": (classes + 1,),
        "roi_heads.box_predictor.bbox_pred.weight": (4 * classes, 1024),
        "roi_heads.box_predictor.bbox_pred.bias": (4 * classes,),
        "roi_heads.box_head.fc1.weight": (1024, 256 * 7 * 7),
        "roi_heads.box_head.fc1.bias": (1024,),
        "roi_heads.box_head.fc2.weight": (1024, 1024),
        "roi_heads.box_head.fc2.bias": (1024,),
    }


def _mask_head():
    names = _conv("roi_heads.mask_head.predictor", 256, 80, size=1)
    for index in range(1, 5):
        names |= _conv(f"roi_heads.mask_head.mask_fcn{index}", 256, 256)
    deconv = {"weight": (256, 256, 2, 2), "bias": (256,)}
    return names | {f"roi_heads.mask_head.deconv.{k}": shape for k, shape in deconv.items()}


def _keypoint_head():
    names = {}
    for index in range(1, 9):
        name = f"roi_heads.keypoint_head.conv_fcn{index}"
        names |= _conv(name, 256 if index == 1 else 512, 512)
    scores = {"weight": (512, 17, 4, 4), "bias": (17,)}
    return names | {f"roi_heads.keypoint_head.score_lowres.{k}": v for k, v in scores.items()}


def _plain(value):
    return value.to_dict() if isinstance(value, ConfigDict) else value


@pytest.mark.parametrize(
    ("settings", "depth", "variant", "heads"),
    [
        (_MASKS, 50, "mask_r50", _box_head(80) | _mask_head()),
        (_MASKS, 101, "mask_r101", _box_head(80) | _mask_head()),
        (_KEYPOINTS, 50, "keypoint_r50", _box_head(1) | _keypoint_head()),
        (_KEYPOINTS, 101, "keypoint_r101", _box_head(1) | _keypoint_head()),
    ],
)
def test_detectron2s_standard_models_have_its_names_and_shapes(settings, depth, variant, heads):
    given = _FPN | settings | {"MODEL.RESNETS.DEPTH": depth}
    tree = detectron2_tree.nest(detectron2_tree.defaults(given) | given)
    config = from_detectron2(tree)
    ours = load_config(f"rcnn:{variant}")
    for section in ("tasks", "box_head", "mask_head", "keypoint_head", "rpn", "backbone"):
        assert _plain(config.model[section]) == _plain(ours.model[section]), section
    assert config.loss.box_smooth_l1_beta == ours.loss.box_smooth_l1_beta
    abstract = weights.abstract_variables(build_model(ours.model))
    paths = weights.flatten(abstract)
    names = torch_names.torch_names(list(paths))
    assert names.keys() == paths.keys()
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)
    shapes = {name: array.shape for name, array in torch_names.to_torch(zeros).items()}
    assert {name: shape for name, shape in shapes.items() if "roi_heads" in name} == heads
    blocks = sum(name.endswith("conv3.weight") for name in shapes)
    assert blocks == {50: 16, 101: 33}[depth]


@pytest.mark.parity
def test_heads_equal_the_original_on_stored_features(golden_dir):
    """The heads alone, also in models with more of their ROIs' class: cheap to compile."""
    dump = Dump(golden_dir / "densepose_r50_multitask_tiny.npz")
    run = intermediates.Runner(dump)
    with jax.default_matmul_precision("highest"):
        rows = [
            *intermediates.compare_masks(dump, run),
            *intermediates.compare_keypoints(dump, run),
        ]
    assert len(rows) == 8
    failed = [row for row in rows if not row.is_ok]
    assert not failed, format_rows(failed)


def test_masks_are_those_of_the_class():
    logits = np.arange(2 * 3 * 3 * 4, dtype=np.float32).reshape(2, 3, 3, 4)
    own = masks_of_classes(jnp.asarray(logits), jnp.array([2, 0]))
    np.testing.assert_array_equal(own, [logits[0, ..., 2], logits[1, ..., 0]])
    shared = masks_of_classes(jnp.asarray(logits[..., :1]), jnp.array([2, 0]))
    np.testing.assert_array_equal(shared, logits[..., 0])


def test_a_mask_head_without_convolutions_reads_the_features():
    head = MaskHead(num_classes=3, in_features=8, features=4, num_convs=0)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 5, 5, 8)))["params"]
    assert shapes["deconv_kernel"].shape == (2, 2, 8, 4)
    out = jax.eval_shape(head.apply, {"params": shapes}, jnp.zeros((2, 5, 5, 8)))
    assert out.shape == (2, 10, 10, 3)
    scores = jax.eval_shape(upsample_scores, jnp.zeros((2, 14, 14, 17)))
    assert scores.shape == (2, 28, 28, 17)


@pytest.mark.parametrize("is_class_agnostic", [False, True])
def test_classes_are_suppressed_one_by_one(is_class_agnostic):
    """Against a loop over classes; a row of padding, and boxes of all classes at one place."""
    rng = np.random.default_rng(0)
    rows, classes, threshold = 30, 3, 0.2
    corner = rng.uniform(0, 60, (rows, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (rows, 2))], 1).astype(np.float32)
    logits = rng.normal(0, 2, (1, rows, classes + 1)).astype(np.float32)
    deltas = rng.normal(0, 0.5, (1, rows, 4 if is_class_agnostic else 4 * classes))
    is_valid = np.arange(rows) != 4
    proposals = Proposals(boxes[None], np.zeros((1, rows), np.float32), is_valid[None])
    select = jax.jit(
        lambda logits, deltas: select_detections(
            logits,
            deltas,
            jax.tree.map(jnp.asarray, proposals),
            jnp.array([[90, 80]]),
            score_threshold=threshold,
            nms_threshold=0.5,
            max_detections=rows * classes,
            delta_weights=(10.0, 10.0, 5.0, 5.0),
        )
    )
    found = jax.device_get(select(logits, deltas.astype(np.float32)))
    probabilities = np.asarray(jax.nn.softmax(logits[0]))
    expected = []
    for index in range(classes):
        own = deltas[0] if is_class_agnostic else deltas[0][:, 4 * index : 4 * index + 4]
        size = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + size / 2 + own[:, :2] / 10 * size
        half = size * np.exp(own[:, 2:] / 5) / 2
        moved = np.concatenate([centre - half, centre + half], 1).clip(0, [80, 90, 80, 90])
        moved = moved.astype(np.float32)
        is_candidate = is_valid & (probabilities[:, index] > threshold)
        kept, is_kept = nms(moved, probabilities[:, index], is_candidate, 0.5, rows)
        expected += [(probabilities[i, index], index, *moved[i]) for i in kept[np.asarray(is_kept)]]
    expected = np.array(sorted(expected, reverse=True))
    valid = found.is_valid[0]
    assert len(expected) == valid.sum() > 15 and len(set(expected[:, 1])) == classes
    np.testing.assert_allclose(found.scores[0][valid], expected[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.classes[0][valid], expected[:, 1])
    np.testing.assert_allclose(found.boxes[0][valid], expected[:, 2:], atol=1e-4)
    assert not found.classes[0][~valid].any() and not found.boxes[0][~valid].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.tasks=('densepose','hands')", "model.tasks .*'hands'"),
        ("model.tasks=('masks','masks')", "model.tasks"),
        ("model.box_head.num_classes=2", "'ktn' transfers from the classifier of one class"),
    ],
)
def test_tasks_that_cannot_be_are_refused(change, message):
    config = load_config("ktn:tiny", [change])
    with pytest.raises(ValueError, match=message):
        weights.abstract_variables(build_model(config.model))
