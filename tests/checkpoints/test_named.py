"""Configurations by name: released models and detectron2's yaml files, with its defaults."""

import json

import numpy as np
import pytest

from ktn_jax.checkpoints import detectron2_tree, detectron2_yaml, named, zoo
from ktn_jax.runtime.configuration import ConfigurationError

# What Base-DensePose-RCNN-FPN.yaml and densepose_rcnn_R_50_FPN_s1x.yaml set, in their syntax.
_BASE = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
  DENSEPOSE_ON: True
  ROI_HEADS: {NAME: "DensePoseROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"], NUM_CLASSES: 1}
  ROI_BOX_HEAD:
    NAME: "FastRCNNConvFCHead"
    NUM_FC: 2
    POOLER_RESOLUTION: 7
    POOLER_SAMPLING_RATIO: 2
    POOLER_TYPE: "ROIAlign"
  ROI_DENSEPOSE_HEAD: {NAME: "DensePoseV1ConvXHead", POOLER_TYPE: "ROIAlign"}
DATASETS:
  TRAIN: ("densepose_coco_2014_train", "densepose_coco_2014_valminusminival")
  TEST: ("densepose_coco_2014_minival",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.01
  STEPS: (60000, 80000)
  MAX_ITER: 90000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
"""
_MODEL = """
_BASE_: "base/Base-DensePose-RCNN-FPN.yaml"
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
SOLVER:
  MAX_ITER: 130000
  STEPS: (100000, 120000)
  WARMUP_FACTOR: 1e-1
"""


@pytest.fixture
def yaml_file(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "Base-DensePose-RCNN-FPN.yaml").write_text(_BASE)
    path = tmp_path / "densepose_rcnn_R_50_FPN_s1x.yaml"
    path.write_text(_MODEL)
    return path


def test_a_yaml_file_is_the_model_of_its_name(yaml_file):
    ours = named.load_config(str(yaml_file))
    assert ours.to_dict() == named.load_config("densepose_rcnn_R_50_FPN_s1x").to_dict()
    assert ours.is_locked and ours.name == "densepose_rcnn_R_50_FPN_s1x"


def test_defaults_are_those_of_the_recorded_configurations(golden_dir):
    # The recorded ones are small models: what they and their yaml files set differs.
    varied, seen = set(), {}
    for path in golden_dir.glob("densepose_*_tiny.npz"):
        tree = json.loads(str(np.load(path)["config"]))
        for key, value in detectron2_tree.flatten(tree).items():
            varied |= {key} if seen.setdefault(key, value) != value else set()
    common = detectron2_tree.defaults({})
    set_there = {
        key
        for name in zoo.models()
        if name.startswith("densepose_rcnn_R")
        for key in zoo.find(name).settings
    }
    others = [k for k in seen if k in common and k not in varied and seen[k] != common[k]]
    small = (
        "_CHANNELS",
        "_TOPK_",
        "_PER_IMAGE",
        "_DIM",
        "_DIMS",
        "_CONVS",
        "WIDTH_",
        "NUM_CLASSES",
    )
    assert {key for key in others if key not in set_there} <= {
        key for key in others if any(part in key for part in small)
    } | {"MODEL.DEVICE", "SOLVER.CLIP_GRADIENTS.ENABLED", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE"}
    assert len(common) > 250 and set(seen) - set(common) <= {
        key for key in seen if key.startswith(detectron2_tree._OPEN_SECTIONS)
    }


def test_training_settings_are_translated(yaml_file):
    config = named.load_config(
        str(yaml_file),
        [
            "SOLVER.CLIP_GRADIENTS.ENABLED=True",
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE=full_model",
            "SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR",
            "INPUT.RANDOM_FLIP=none",
            "TEST.AUG.MIN_SIZES=(400, 500)",
        ],
    )
    assert (config.total_steps, config.batch_size) == (130_000, 16)
    optimizer, data = config.optimizer, config.data
    assert (optimizer.learning_rate, optimizer.decay_steps) == (0.01, (100_000, 120_000))
    assert (optimizer.warmup_factor, optimizer.weight_decay_bias) == (0.1, 1e-4)
    assert (optimizer.clip, optimizer.schedule) == ("global_norm", "cosine")
    assert data.annotations[1] == "data/coco/annotations/densepose_valminusminival2014.json"
    assert data.images == ("data/coco/train2014", "data/coco/val2014")
    assert data.evaluation.annotations == "data/coco/annotations/densepose_minival2014.json"
    assert (data.short_sides[0], data.flip_probability) == (640, 0.0)
    assert config.test.augmentation.short_sides == (400, 500)


def test_what_training_leaves_out_is_said(yaml_file):
    assert named.training_notes(str(yaml_file)) == named.training_notes("ktn:r50") == []
    notes = named.training_notes(
        str(yaml_file),
        ["DATASETS.TRAIN=('mine',)", "SOLVER.AMP.ENABLED=True", "INPUT.RANDOM_FLIP=vertical"],
    )
    assert [note.split()[0].rstrip(":") for note in notes] == [
        "INPUT.RANDOM_FLIP",
        "DATASETS.TRAIN",
        "SOLVER.AMP.ENABLED",
    ]


def test_bootstrapping_is_explained(yaml_file):
    entry = {
        "DATASET": "chimpnsee",
        "RATIO": 0.5,
        "DATA_SAMPLER": {"TYPE": "densepose_UV_confidence", "COUNT_PER_CLASS": 4},
        "FILTER": {"TYPE": "detection_score", "MIN_VALUE": 0.7},
    }
    for wrong in ({"DATA_SAMPLER": {"TYPE": "other"}}, {"FILTER": {"TYPE": "size"}}):
        (note,) = named.training_notes(
            str(yaml_file), [f"BOOTSTRAP_DATASETS={[entry | wrong]!r}", "BOOTSTRAP_MODEL.WEIGHTS=a"]
        )
        assert "no counterpart here" in note
    (note,) = named.training_notes(str(yaml_file), [f"BOOTSTRAP_DATASETS={[entry]!r}"])
    options = "--sampler uv_confidence --search-proportion 0.5 --points-per-patch 4 --min-score 0.7"
    assert f"'chimpnsee': label its images with `ktn data bootstrap {options}`" in note
    assert "data.weights the RATIO 0.5" in note


def test_changes_of_both_kinds(yaml_file):
    for name in (str(yaml_file), "densepose_rcnn_R_50_FPN_s1x"):
        config = named.load_config(
            name,
            ["MODEL.ROI_HEADS.NMS_THRESH_TEST=0.4", "test.short_side=400", "TEST.AUG.FLIP=False"],
        )
        assert config.model.box_head.nms_threshold == 0.4 and config.test.short_side == 400
        assert not config.test.augmentation.flip
        with pytest.raises(ValueError, match=r"\n.*NUM_GROUPS 'x'.*\n.*setting MODEL.RPN.NMS"):
            named.load_config(name, ["MODEL.RPN.NMS=1", "MODEL.RESNETS.NUM_GROUPS='x'"])
        with pytest.raises(ConfigurationError, match="no key 'test.shortside'"):
            named.load_config(name, ["test.shortside=1"])
        with pytest.raises(ValueError, match="no KEY=VALUE"):
            named.load_config(name, ["MODEL"])
        # A section in place of a value, and the reverse.
        for change, problem in (
            ("MODEL.DEVICE.X=1", "unknown setting MODEL.DEVICE.X"),
            ("MODEL.RPN=3", "has no MODEL.RPN.IN_FEATURES"),
        ):
            with pytest.raises(ValueError, match=problem):
                named.load_config(name, [change])
    with pytest.raises(ConfigurationError, match="'MODEL.X=1' is a setting of detectron2"):
        named.load_config("ktn:r50", ["MODEL.X=1"])


def test_names_that_nothing_has_are_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean densepose_rcnn_R_50_FPN_s1x"):
        named.load_config("densepose_rcnn_R50_FPN_s1x")
    with pytest.raises(FileNotFoundError, match="none.yaml: there is no such"):
        named.load_config("none.yaml")
    with pytest.raises(ValueError, match="ktn:r50 has no weights of its own"):
        named.find_weights("ktn:r50")


def test_settings_of_ktn_choose_its_defaults(yaml_file):
    yaml_file.write_text(
        '_BASE_: "base/Base-DensePose-RCNN-FPN.yaml"\n'
        "MODEL:\n  KEYPOINT_ON: True\n  ROI_HEADS: {NAME: DensePoseKTNv2Heads}\n"
        "  ROI_DENSEPOSE_HEAD: {NAME: DensePoseKTNHead, PREDICTOR: KTNv2Predictor, KPT_ON: True,\n"
        "    FG_MASK_THRESHOLD: 0.3}\n"
    )
    model = named.load_config(str(yaml_file)).model
    assert (model.predictor.name, model.predictor.mask_threshold) == ("ktn", 0.3)
    assert not model.decoder.is_multi_scale  # that code's default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: x.yaml\n", "x.yaml files? name each other|name each other without end"),
        ("_BASE_: none.yaml\n", "_BASE_ file .*none.yaml is not there"),
        ("_BASE_: https://example.com/x.yaml\n", "_BASE_ 'https.* is not supported"),
        ("_BASE_: [a, b]\n", "_BASE_ .* is not supported"),
        ("A: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("A: [1, 2", "not a yaml file that can be read"),
        ("- 1\n", "a list, not settings by name"),
        ("MODEL: {1.5: 2}\n", "a key must be text"),
        ("MODEL: {DEVICE: {X: 1}}\n", "unknown setting MODEL.DEVICE.X"),
        ("? " + "." * 200_000 + "\n: 1\n", "a key of more than 1000 characters"),
        ("A: &a [*a]\n", "unknown setting A"),
        ("A: &a {B: *a}\n", "sections within each other"),
        ("[" * 5000, "not a"),
        ("A: " + "x" * (1 << 18), "more than any configuration"),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(
                f"a{n}: &a{n} {{{', '.join(f'k{m}: *a{n - 1}' for m in range(9))}}}\n"
                for n in range(1, 9)
            ),
            "more than 20000 settings",
        ),
        (
            f"a: &a {{{', '.join(f'k{n}: 1' for n in range(100))}}}\n"
            f"b: {{{', '.join(f'k{n}: *a' for n in range(150))}}}\n",
            "15000 more unknown settings",
        ),
    ],
)
def test_files_that_are_no_configuration_are_named(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=f"x.yaml.*(?s:.)*{message}"):
        named.load_config(str(path))


def test_a_section_replaces_a_value_of_its_base(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {RPN: 3}\nSEED: {X: 1}\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\nMODEL: {RPN: {NMS_THRESH: 0.5}}\nSEED: 4\n")
    tree = detectron2_yaml.read_tree(tmp_path / "b.yaml")
    assert tree["MODEL"]["RPN"]["NMS_THRESH"] == 0.5 and tree["SEED"] == 4


def test_embedding_models_train_on_their_own_data():
    animals = named.load_config("cse/densepose_rcnn_R_50_FPN_soft_animals_I0_finetune_16k")
    assert animals.data.categories[:3] == ("bear", "cow", "cat")
    meshes = [name.rpartition("_")[0] for name in animals.model.meshes.of_classes]
    assert tuple(meshes) == animals.data.categories  # in the order of detectron2's classes
    assert animals.data.annotations == ("data/lvis/densepose_lvis_v1_ds2_train_v1.json",)
    start = "https://dl.fbaipublicfiles.com/densepose/data/cse/lbo/phi_"
    files = [f"{start}{name}_256.pkl" for name in animals.model.meshes.names]
    assert animals.training.vertex_init == tuple(files)
    name = "cse/densepose_rcnn_R_50_FPN_soft_animals_CA_finetune_4k"
    (note,) = named.training_notes(name)
    assert "several cannot be joined into one class" in note
