"""detectron2 configurations as ours, and errors that name what is not supported."""

import json
import re

import numpy as np
import pytest

from ktn_jax.checkpoints import named
from ktn_jax.checkpoints.detectron2_config import from_detectron2
from ktn_jax.runtime.configuration import load_config


@pytest.fixture
def tree(golden_dir):
    return json.loads(str(np.load(golden_dir / "ktnv2_r50_tiny.npz")["config"]))


def test_values_arrive(tree):
    tree["TEST"]["AUG"] |= {"MIN_SIZES": [300, 400], "ROTATION_ANGLES": [-10, 10.5], "FLIP": False}
    config = from_detectron2(tree)
    views = config.test.augmentation
    assert (views.short_sides, views.rotation_degrees) == ((300, 400), (-10, 10.5))
    assert not views.flip and views.max_side == 4000
    model = config.model
    assert model.backbone.res2_channels == 16
    assert model.rpn.post_nms_top_k_train == 60
    assert model.box_head.max_detections == 5
    assert model.decoder.name == "multi_instance" and model.decoder.is_multi_scale
    assert model.densepose_head.name == "ktn" and model.densepose_head.norm == "GN"
    assert model.predictor.name == "ktn" and model.predictor.mask_threshold == 0.3


def _problems(tree):
    with pytest.raises(ValueError) as caught:
        from_detectron2(tree)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_groups_and_the_first_version_arrive(golden_dir):
    trees = {
        case: json.loads(str(np.load(golden_dir / f"{case}.npz")["config"]))
        for case in ("ktnv2_x101_tiny", "ktnv1_r50_tiny")
    }
    resnext = from_detectron2(trees["ktnv2_x101_tiny"]).model
    # Eight groups of two channels.
    assert (resnext.backbone.groups, resnext.backbone.width) == (8, 16)
    assert not resnext.backbone.stride_in_1x1 and resnext.predictor.name == "ktn_auxiliary"
    first = from_detectron2(trees["ktnv1_r50_tiny"])
    assert (first.model.predictor.name, first.model.decoder.name) == ("ktn_first", "panoptic")
    assert (first.model.densepose_head.name, first.model.densepose_head.norm) == ("conv_stack", "")
    assert (first.loss.coarse_segm_weight, first.loss.keypoint_weight) == (5.0, 0.05)
    assert first.loss.keypoint_head_weight == 1.0  # of another head
    # Keypoint maps of another size than ours.
    trees["ktnv1_r50_tiny"]["MODEL"]["ROI_DENSEPOSE_HEAD"]["KPT_UP_SCALE"] = 4
    (problem,) = _problems(trees["ktnv1_r50_tiny"])
    assert "KPT_UP_SCALE 4 is not supported" in problem


def test_embeddings_arrive(golden_dir):
    tree = json.loads(str(np.load(golden_dir / "densepose_cse_r50_animals_tiny.npz")["config"]))
    embedding = tree["MODEL"]["ROI_DENSEPOSE_HEAD"]["CSE"]
    embedding |= {"FEATURES_LR_FACTOR": 2.0, "EMBED_SIZE": 8}
    config = from_detectron2(tree)
    meshes = config.model.meshes
    assert (meshes.names, meshes.num_vertices) == (("beast_b", "body_a"), (280, 300))
    assert (meshes.num_features, meshes.trains_features) == ((0, 20), (True, True))
    assert meshes.of_classes == ("beast_b", "body_a") and config.model.box_head.num_classes == 2
    assert config.model.predictor.name == "embedding"
    assert config.model.predictor.embedding_channels == 8
    assert config.optimizer.rate_factors == (("embedder/[^/]+/features", 2.0),)
    loss = config.loss
    assert loss.embedding.has_soft_targets and loss.embedding.sigma == 0.1
    assert (loss.pixel_cycle.weight, loss.shape_cycle.weight) == (0.01, 0.025)
    assert loss.shape_cycle.max_vertices == 290 and config.data.with_person_masks
    # A cycle that is off, a mesh that nobody knows, values of another type, a kind that is unknown.
    embedding["PIX_TO_SHAPE_CYCLE_LOSS"]["ENABLED"] = False
    assert from_detectron2(tree).loss.pixel_cycle.weight == 0
    tree["DATASETS"]["CLASS_TO_MESH_NAME_MAPPING"]["1"] = "cat"
    embedding["EMBEDDERS"]["beast_b"] |= {"NUM_VERTICES": "many", "TYPE": "vertex_wise"}
    problems = " ".join(_problems(tree))
    for part in ("MAPPING.1 'cat'", "beast_b.NUM_VERTICES 'many'", "beast_b.TYPE 'vertex_wise'"):
        assert part in problems
    embedding["EMBEDDERS"] = {}
    assert any("names no mesh" in problem for problem in _problems(tree))


RELEASED = {
    "R_50_KTNv1": "ktn:v1_r50",
    "X_101_KTNv1": "ktn:v1_x101",
    "HRFPN_w32_KTNv1": "ktn:v1_hrnet_w32",
    "HRFPN_w48_KTNv1": "ktn:v1_hrnet_w48",
    "R_50_KTNv2": "ktn:r50",
    "X_101_KTNv2": "ktn:x101",
    "HRFPN_w32_KTNv2": "ktn:hrnet_w32",
    "HRFPN_w48_KTNv2": "ktn:hrnet_w48",
    "R_50_FPN_s1x": "densepose_rcnn:r50",
    "R_50_FPN_s1x_legacy": "densepose_rcnn:r50_legacy",
    "R_101_FPN_DL_s1x": "densepose_rcnn:r101_dl",
    "cse/R_50_FPN_s1x": "cse:r50",
    "cse/R_101_FPN_DL_soft_s1x": "cse:r101_dl_soft",
    "cse/R_50_FPN_soft_animals_I0_finetune_i2m_16k": "cse:animals",
}


@pytest.mark.parametrize("name", RELEASED)
def test_our_configurations_are_the_released_ones(name):
    folder, _, model = name.rpartition("/")
    released = named.load_config(f"{folder}/densepose_rcnn_{model}".lstrip("/"))
    ours = load_config(f"configs/{RELEASED[name].replace(':', '.py:')}")
    if ours.model.decoder.name != "multi_instance":  # which alone has an option of that name
        released.model.decoder.is_multi_scale = ours.model.decoder.is_multi_scale
    assert ours.model.to_dict() == released.model.to_dict()

    def comparable(config):
        # The original takes all of the foreground; ours has room for a quarter of it.
        return {k: v for k, v in config.loss.to_dict().items() if not k.endswith("rois_per_image")}

    assert comparable(ours) == comparable(released)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("MODEL.ROI_DENSEPOSE_HEAD", "KPT_ON", False),
        ("MODEL.RESNETS", "DEPTH", 18),
        ("MODEL.ROI_HEADS", "NUM_CLASSES", 80),
        ("MODEL.ROI_HEADS", "IN_FEATURES", ["p3", "p4", "p5"]),
        ("MODEL.RPN", "IN_FEATURES", ["p2", "p3"]),
        ("MODEL.ROI_BOX_HEAD", "POOLER_TYPE", "ROIPool"),
        ("MODEL.ROI_DENSEPOSE_HEAD", "PREDICTOR", "DensePoseEmbeddingPredictor"),
        ("MODEL.ROI_DENSEPOSE_HEAD", "DECODER_COMMON_STRIDE", 8),
        ("MODEL.BACKBONE", "NAME", "build_vit_backbone"),
        ("INPUT", "FORMAT", "RGB"),
    ],
)
def test_what_we_do_not_have_is_named(tree, section, key, value):
    node = tree
    for part in section.split("."):
        node = node[part]
    node[key] = value
    with pytest.raises(ValueError, match=re.escape(f"{section}.{key}")):
        from_detectron2(tree)
    assert len(_problems(tree)) == 1
    del node[key]
    with pytest.raises(ValueError, match=key):
        from_detectron2(tree)


def test_all_that_we_do_not_have_is_named_at_once(tree):
    model = tree["MODEL"]
    model["RESNETS"] |= {"DEFORM_MODULATED": True, "DEPTH": "50"}
    model["ROI_BOX_HEAD"]["USE_FED_LOSS"] = True
    model["ROI_DENSEPOSE_HEAD"] |= {"HEATMAP_SIZE": 64, "NAME": "DensePoseEmbeddingHead"}
    model["RPN"]["NMS_TRESH"] = 0.5
    del model["FPN"]["OUT_CHANNELS"]
    # Of another architecture, and of this machine: of no effect.
    model["RETINANET"]["NUM_CONVS"] = 2
    model["DEVICE"] = "mps"
    problems = _problems(tree)
    assert [re.search(r"[A-Z]\w+(\.\w+)*", line)[0] for line in problems] == [
        "MODEL.RESNETS.DEPTH",
        "MODEL.FPN.OUT_CHANNELS",
        "MODEL.ROI_DENSEPOSE_HEAD.NAME",
        "MODEL.ROI_DENSEPOSE_HEAD.HEATMAP_SIZE",
        "MODEL.RPN.NMS_TRESH",
        "MODEL.RESNETS.DEFORM_MODULATED",
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
    ]
    assert "of another type than wanted, such as 50" in problems[0]
    assert "did you mean MODEL.RPN.NMS_THRESH?" in problems[4]


def test_settings_without_end_are_refused():
    repeated = {"A": 1}
    for _ in range(10):
        repeated = {str(name): repeated for name in range(10)}
    for tree in (repeated, {"MODEL": {7.5: 1}}):
        with pytest.raises(ValueError, match="more than 20000 settings|a key must be text"):
            from_detectron2(tree)
