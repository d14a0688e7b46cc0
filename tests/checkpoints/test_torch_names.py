"""The table of PyTorch names, both ways."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from ktn_jax.checkpoints import torch_names, weights
from ktn_jax.checkpoints.detectron2_config import from_detectron2
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.results.detection_checks import CONFIDENCES
from ktn_jax.runtime.configuration import load_config

CASES = (
    "ktnv2_r50_tiny",
    "ktnv2_hrnet_tiny",
    "ktnv2_hrnet_v3_tiny",
    "densepose_r50_tiny",
    "densepose_r50_dl_tiny",
    "densepose_r50_dl_nonlocal_tiny",
    "densepose_r50_wc1_tiny",
    "densepose_r50_wc2_tiny",
    "densepose_r50_legacy_tiny",
    "ktnv1_r50_tiny",
    "ktnv1_r50_kptktn_tiny",
    "ktnv1_hrnet_tiny",
    "ktnv2_x101_tiny",
    "densepose_hrfpn_w32_tiny",
    "keypoint_mask_rcnn_r50_tiny",
    "densepose_r50_multitask_tiny",
    "densepose_cse_r50_tiny",
    "densepose_cse_r50_soft_tiny",
    "densepose_cse_r50_animals_tiny",
)


def _state(path):
    with np.load(path) as file:
        return {key[6:]: file[key] for key in file.files if key.startswith("state/")}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_original_state_comes_back_bit_for_bit(golden_dir, case):
    state = _state(golden_dir / f"{case}.npz")
    back = torch_names.to_torch(torch_names.to_flax(state))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].dtype == array.dtype, name
        assert back[name].shape == array.shape, name
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize(
    "name",
    [
        "configs/ktn.py:r50",
        "configs/ktn.py:x101",
        pytest.param("configs/ktn.py:hrnet_w32", marks=pytest.mark.extended),
        pytest.param("configs/ktn.py:hrnet_w48", marks=pytest.mark.extended),
        "configs/ktn.py:v1_r50",
        pytest.param("configs/ktn.py:v1_hrnet_w32", marks=pytest.mark.extended),
        "configs/ktn.py:mid_only",
        "configs/ktn.py:ktm_only",
        "configs/ktn.py:cascade",
        "configs/ktn.py:tiny",
        "configs/densepose_rcnn.py:r50_legacy",
        "configs/densepose_rcnn.py:r50",
        pytest.param("configs/densepose_rcnn.py:r101", marks=pytest.mark.extended),
        "configs/densepose_rcnn.py:r50_dl",
        pytest.param("configs/densepose_rcnn.py:r101_dl", marks=pytest.mark.extended),
        pytest.param("configs/densepose_rcnn.py:hrnet_w40", marks=pytest.mark.extended),
        "configs/cse.py:tiny",
        "configs/cse.py:animals",
    ],
)
def test_every_parameter_of_every_configuration_has_its_own_torch_name(name):
    abstract = weights.abstract_variables(build_model(load_config(name).model))
    paths = list(traverse_util.flatten_dict(abstract, sep="/"))
    names = torch_names.torch_names(paths)
    assert names.keys() == set(paths)
    assert len(set(names.values())) == len(paths)
    if "hrnet" in name:  # as many as the original counts, whatever the width
        assert sum(torch.startswith("backbone.") for torch in names.values()) == 1899


@pytest.mark.parity
@pytest.mark.parametrize("has_segm", [False, True])
@pytest.mark.parametrize("uv", ["", "iid_iso", "indep_aniso"])
def test_every_combination_of_confidences_has_its_own_parameters(golden_dir, uv, has_segm):
    with np.load(golden_dir / "densepose_r50_wc2_tiny.npz") as file:
        tree = json.loads(str(file["config"]))
    state = _state(golden_dir / "densepose_r50_wc2_tiny.npz")
    head = tree["MODEL"]["ROI_DENSEPOSE_HEAD"]
    head["UV_CONFIDENCE"] |= {"ENABLED": bool(uv), "TYPE": uv or "iid_iso"}
    head["SEGM_CONFIDENCE"]["ENABLED"] = has_segm
    dropped = {"": "sigma_2 kappa_u kappa_v", "iid_iso": "kappa_u kappa_v"}.get(uv, "").split()
    dropped += [] if has_segm else ["fine_segm_confidence", "coarse_segm_confidence"]
    kept = {
        name: array
        for name, array in state.items()
        if not any(f".{output}_lowres." in name for output in dropped)
    }
    assert len(kept) == len(state) - 2 * len(dropped)
    config = from_detectron2(tree)
    model = build_model(config.model)
    variables = weights.fit(config, torch_names.to_flax(kept), "the reduced state")
    maps = jax.eval_shape(
        lambda variables: model.apply(
            variables, np.zeros((1, 14, 14, 32), np.float32), method=Detector.predict_charts
        ),
        variables,
    )
    found = [name for name in CONFIDENCES if getattr(maps, name) is not None]
    gone = {name.replace("sigma_2", "sigma") for name in dropped}
    assert found == [name for name in CONFIDENCES if name not in gone]
    extra = {**kept, "roi_heads.densepose_predictor.other_lowres.bias": np.zeros(3)}
    with pytest.raises(ValueError, match="1 unexpected keys.*other_lowres"):
        torch_names.to_flax(extra)


def test_fully_connected_weights_follow_the_flattening():
    # One ROI of 2 x 2 cells and 3 channels: torch flattens channels first, Flax channels last.
    pooled = np.arange(12.0).reshape(2, 2, 3)
    weight = np.random.default_rng(0).normal(size=(5, 12))
    state = {
        "roi_heads.box_head.fc1.weight": weight,
        "backbone.fpn_output2.weight": np.zeros((3, 3, 1, 1)),
    }
    kernel = torch_names.to_flax(state)["params"]["box_head"]["fc1"]["kernel"]
    expected = weight @ pooled.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(pooled.ravel() @ kernel, expected, rtol=1e-12)


def test_unknown_names_are_all_listed():
    state = {"backbone.fpn_lateral2.bias": np.zeros(3), "a.b": np.zeros(1), "c.d": np.zeros(1)}
    with pytest.raises(ValueError, match=r"2 unexpected keys.*a\.b, c\.d"):
        torch_names.to_flax(state)
    with pytest.raises(ValueError, match=r"1 unexpected parameters.*params/x/y"):
        torch_names.to_torch({"params": {"x": {"y": np.zeros(1)}}})


def test_either_name_of_the_scale_convolutions_is_read_and_both_are_written():
    array = np.ones((2, 2, 3, 3), np.float32)
    names = [f"roi_heads.densepose_head.{name}.weight" for name in ("ScaleConvs", "ScaleConv")]
    for name in names:
        written = torch_names.to_torch(torch_names.to_flax({name: array}))
        assert set(written) == set(names)
    with pytest.raises(ValueError, match="one parameter, but their values differ"):
        torch_names.to_flax({names[0]: array, names[1]: array + 1})


def test_pooled_features_that_are_no_square_are_refused():
    state = {
        "roi_heads.box_head.fc1.weight": np.zeros((5, 13)),
        "backbone.fpn_output2.weight": np.zeros((3, 3, 1, 1)),
    }
    with pytest.raises(ValueError, match="13 features"):
        torch_names.to_flax(state)
