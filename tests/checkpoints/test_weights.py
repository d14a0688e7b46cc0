"""Reading, writing and fitting weights."""

import itertools

import jax
import numpy as np
import pytest
from flax import traverse_util

from ktn_jax import cli
from ktn_jax.checkpoints import files, torch_names, weights
from ktn_jax.modeling.networks import build_network
from ktn_jax.runtime.configuration import load_config


@pytest.fixture(scope="module")
def config():
    return load_config("configs/ktn.py:tiny")


@pytest.fixture(scope="module")
def variables(config, draw_variables):
    return draw_variables(config)


def _equal(a, b):
    a, b = (traverse_util.flatten_dict(tree, sep="/") for tree in (a, b))
    assert a.keys() == b.keys()
    for key, array in a.items():
        np.testing.assert_array_equal(array, b[key], err_msg=key)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pkl", "w.pth", "folder"])
def test_weights_survive_every_format(tmp_path, config, variables, name):
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="PyTorch reads and writes .pth")
    weights.write_variables(tmp_path / name, variables)
    _equal(weights.load(config, tmp_path / name), variables)


@pytest.mark.parametrize(
    "name,changes",
    [
        ("teacher:tiny", ()),
        # The structure of ktn:cascade.
        (
            "ktn:tiny",
            (
                "model.tasks=('densepose','keypoints')",
                "model.cascade.num_stages=2",
                "model.cascade.channels=16",
                "model.keypoint_head.channels=(16,)",
            ),
        ),
        pytest.param(
            "densepose_rcnn:cascade_tiny",
            ("model.cascade.num_stages=3",),
            marks=pytest.mark.extended,
        ),
    ],
)
def test_other_kinds_of_models_convert_there_and_back(tmp_path, capsys, name, changes):
    pytest.importorskip("torch", reason="PyTorch writes .pth")
    config = load_config(name, list(changes))
    rng = np.random.default_rng(0)
    shapes = weights.abstract_variables(build_network(config.model))
    drawn = jax.tree.map(lambda x: (100 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
    weights.write_variables(tmp_path / "trained", drawn)
    formats = ["trained", "a.safetensors", "b.pth", "c.safetensors"]
    for source, target in itertools.pairwise(formats):
        assert cli.main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 0
    count = weights.count_parameters(drawn)
    assert capsys.readouterr().out.count(f"{count:,} parameters written") == len(formats) - 1
    # safetensors are written in one way only, so that equal files are equal weights.
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    _equal(weights.load(config, tmp_path / "c.safetensors"), drawn)


def test_constants_of_the_original_survive_our_own_folder(tmp_path, config, variables):
    with_constants = {**variables, "constants": weights.constants(config.model)}
    weights.write_variables(tmp_path / "folder", with_constants)
    _equal(weights.read_variables(tmp_path / "folder"), with_constants)
    state = torch_names.to_torch(with_constants)
    assert state["pixel_mean"].shape == (3, 1, 1)
    assert state["proposal_generator.anchor_generator.cell_anchors.4"].shape == (3, 4)


def test_every_misfit_is_listed_at_once(tmp_path, config, variables):
    state = torch_names.to_torch(variables)
    del state["proposal_generator.rpn_head.conv.bias"]
    state["backbone.fpn_lateral2.bias"] = np.zeros(7, np.float32)
    state["roi_heads.densepose_predictor.index_uv_lowres.bias"] = np.zeros(25, np.float32)
    files.write_state_dict(tmp_path / "w.safetensors", state)
    with pytest.raises(ValueError) as error:
        weights.load(config, tmp_path / "w.safetensors")
    message = str(error.value)
    assert "w.safetensors does not fit the model (3 keys)" in message
    assert "missing: proposal_generator.rpn_head.conv.bias" in message
    assert "unexpected: roi_heads.densepose_predictor.index_uv_lowres.bias" in message
    assert "mis-shaped: backbone.fpn_lateral2.bias" in message
    assert "(64,), the file's (7,)" in message


def test_weights_of_another_normalisation_are_refused(tmp_path, config, variables):
    state = torch_names.to_torch(variables)
    state["pixel_mean"] = np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    files.write_state_dict(tmp_path / "w.safetensors", state)
    with pytest.raises(ValueError, match="pixel_mean is .* but the configuration says"):
        weights.load(config, tmp_path / "w.safetensors")


def test_cell_anchors_of_the_original_are_ours(golden_dir):
    with np.load(golden_dir / "ktnv2_r50_tiny.npz") as file:
        stored = [
            file[f"state/proposal_generator.anchor_generator.cell_anchors.{i}"] for i in range(5)
        ]
    ours = weights.constants(load_config("configs/ktn.py:r50").model)
    for level, anchors in enumerate(stored):
        np.testing.assert_array_equal(ours[f"cell_anchors{level}"], anchors)


def test_missing_files_and_foreign_folders_are_named(tmp_path, config):
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        weights.load(config, tmp_path / "none.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        weights.load(config, tmp_path / "empty")
    with pytest.raises(FileExistsError, match="empty exists"):
        weights.write_variables(tmp_path / "empty", {"params": {}})


def test_old_checkpoints_without_batch_counts_load(tmp_path, draw_variables):
    changes = ["model.backbone.norm='BN'", "model.backbone.freeze_at=0"]
    config = load_config("configs/ktn.py:tiny", changes)
    state = torch_names.to_torch(draw_variables(config))
    state = {name: array for name, array in state.items() if not name.endswith("tracked")}
    files.write_state_dict(tmp_path / "w.safetensors", state)
    loaded = traverse_util.flatten_dict(weights.load(config, tmp_path / "w.safetensors"), sep="/")
    counts = [array for key, array in loaded.items() if key.endswith("/count")]
    assert counts and all(count == 0 for count in counts)
