"""Released models: the facts, and that each builds with exactly the released parameters."""

import dataclasses
import functools
import hashlib
import json

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from ktn_jax.checkpoints import named, torch_names, weights, zoo
from ktn_jax.modeling.detector import build_model
from ktn_jax.runtime import downloads

_CHARTS = [name for name, model in zoo.models().items() if model.family in ("charts", "evolution")]
_EMBEDDING = [name for name, model in zoo.models().items() if model.family == "embedding"]
_KTN = [name for name, model in zoo.models().items() if model.family == "KTN"]


@pytest.fixture(scope="module")
def facts(zoo_dir):
    return json.loads((zoo_dir / "detectron2_densepose.json").read_text())["models"]


@pytest.fixture(scope="module")
def state_shapes(zoo_dir):
    return json.loads((zoo_dir / "state_shapes.json").read_text())


@functools.cache
def _shapes(model):
    """Names and shapes of PyTorch's state dict of the model of a FrozenConfigDict."""
    variables = weights.abstract_variables(build_model(model))
    empty = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), variables)
    return {name: list(x.shape) for name, x in torch_names.to_torch(empty).items()}


def _shapes_of(name):
    return _shapes(FrozenConfigDict(named.load_config(name).model))


def test_facts_are_those_of_the_published_tables(facts):
    assert (len(_CHARTS), len(_EMBEDDING)) == (27, 14)
    by_name = {row["name"]: row for row in facts}
    assert list(zoo.models())[: len(facts)] == list(by_name)
    for name, row in by_name.items():
        model, published = zoo.find(name), row["published"]
        assert model.url == row["weights_url"] and model.file in model.url
        assert f"_{model.sha256_start}.pkl" in model.url
        assert model.box == float(published["box AP"])
        assert model.GPS == float(published["dp. AP GPS"])
        assert model.GPSm == float(published["dp. AP GPSm"])
        assert model.licence == "CC BY-SA 3.0"
        assert (model.family == "embedding") == (row["table"] == "DENSEPOSE_CSE")


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_settings_are_those_of_the_yaml_files(facts):
    for row in facts:
        settings = zoo.find(row["name"]).settings
        wanted = dict(_flat(row["config"]))
        assert settings.keys() == wanted.keys()
        for key, value in wanted.items():
            literal = isinstance(value, str) and value.startswith(("(", "["))
            value = eval(value) if literal else value  # of our own file
            assert settings[key] == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize(
    "name",
    [
        # A ResNet-101 differs in its depth only, which one of them shows.
        pytest.param(name, marks=pytest.mark.extended if "R_101_FPN_" in name else ())
        for name in [*_CHARTS, *_EMBEDDING]
        if name != "densepose_rcnn_R_101_FPN_s1x"
    ]
    + ["densepose_rcnn_R_101_FPN_s1x"],
)
def test_the_model_has_exactly_the_released_parameters(name, state_shapes):
    shapes = _shapes_of(name)
    assert shapes == state_shapes["shapes"][state_shapes["same_as"][name]]
    assert zoo.find(name).num_values == sum(np.prod(s, dtype=int) for s in shapes.values())


@pytest.mark.extended
@pytest.mark.parametrize("name", _KTN)
def test_the_models_of_ktn_can_be_built(name):
    values = sum(np.prod(shape, dtype=int) for shape in _shapes_of(name).values())
    assert zoo.find(name).num_values in (None, values)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("densepose_rcnn_R50_FPN_s1x", "did you mean densepose_rcnn_R_50_FPN_s1x or "),
        ("DENSEPOSE_RCNN_R_101_FPN_DL_S1X", "densepose_rcnn_R_101_FPN_DL_s1x"),
        ("?", "no model is called '[?]': `ktn models` lists all"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=near):
        zoo.find(name)


def test_a_model_is_recognised_by_its_parameters(state_shapes):
    found = {}
    for name in [*_CHARTS, *_EMBEDDING]:
        shapes = state_shapes["same_as"][name]
        found[name] = zoo.recognise(state_shapes["shapes"][shapes])
        assert name in found[name]
        # Nothing else has them.
        assert {
            state_shapes["same_as"][other].replace("M_s1x", "_s1x") for other in found[name]
        } == {shapes.replace("M_s1x", "_s1x")}
    plain = "densepose_rcnn_R_101_FPN_DL_s1x"
    assert found[plain] == [plain]
    assert zoo.recognise({"backbone.bottom_up.stem.conv1.weight": [64, 3, 7, 7]}) == []
    assert zoo.recognise({"roi_heads.box_predictor.cls_score.weight": []}) == []


@pytest.fixture
def mirror(file_server, monkeypatch, tmp_path):
    monkeypatch.setenv("KTN_CACHE", str(tmp_path))
    monkeypatch.setenv("KTN_MODELS_URL", file_server.url + "/mirror/")
    monkeypatch.setattr(downloads, "_PAUSE", 0.001)
    return file_server


def test_weights_are_fetched_into_the_cache_and_checked(mirror, tmp_path, monkeypatch):
    model = zoo.find("densepose_rcnn_R_50_FPN_s1x")
    path = "/mirror" + model.url.removeprefix(downloads.SERVER)
    mirror.files[path] = b"something else"
    assert not model.is_here
    with pytest.raises(downloads.DownloadError, match="SHA-256 does not start 162be9"):
        model.weights()
    assert not model.is_here
    content = b"weights"
    file = f"model_final_{hashlib.sha256(content).hexdigest()[:6]}.pkl"
    own = dataclasses.replace(model, file=file)
    mirror.files[path] = content
    assert own.weights() == tmp_path / "models" / model.name / file
    assert own.weights().read_bytes() == content and own.is_here
    assert len(mirror.requests) == 2
    # Once converted, the other file is not needed any more.
    own.cached.rename(own.cached.with_suffix(".safetensors"))
    assert own.weights().suffix == ".safetensors" and len(mirror.requests) == 2


def test_where_a_program_cannot_fetch_it_says_where_people_can(mirror, tmp_path):
    model = zoo.find("densepose_rcnn_R_50_KTNv2")
    place = tmp_path / "models" / model.name / "KTNv2_R50.pth"
    with pytest.raises(FileNotFoundError, match=f"pan.baidu.com.*Put the file at {place}"):
        model.weights()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"by hand")
    assert model.weights() == place
    with pytest.raises(FileNotFoundError, match="no file is known to be released"):
        zoo.find("densepose_rcnn_X_101_KTNv2").weights()
    assert not mirror.requests
