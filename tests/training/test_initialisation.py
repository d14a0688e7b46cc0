"""What training starts from: every kind of weights, and every kind that does not fit."""

import re

import jax
import numpy as np
import pytest

from ktn_jax.body.graph import body_graph
from ktn_jax.checkpoints import files, imagenet, torch_names, weights
from ktn_jax.configs import keypoint_mid, ktn
from ktn_jax.modeling.detector import build_model
from ktn_jax.training import initialisation

# What a torchvision ResNet needs, beside its stride in the 3x3.
TORCHVISION = {
    "pixel_std_bgr": (57.375, 57.12, 58.395),
    "stride_in_1x1": False,
}


def make_config(**changes):
    """The tiny detector with an ImageNet backbone's frozen norms."""
    config = ktn.get_config("tiny")
    config.model.backbone.norm, config.model.backbone.freeze_at = "FrozenBN", 2
    for name, value in changes.items():
        (config.model.backbone if name in config.model.backbone else config.model)[name] = value
    return config


@pytest.fixture
def quick(monkeypatch):
    """Initial values that cost nothing, where a test is about what replaces them."""

    def draw(model, seed):
        return jax.tree.map(
            lambda leaf: np.full(leaf.shape, 0.25, leaf.dtype), weights.abstract_variables(model)
        )

    monkeypatch.setattr(weights, "draw_variables", draw)


@pytest.fixture(scope="module")
def state():
    """A state dict of the tiny detector, in the original's names."""
    rng = np.random.default_rng(5)
    shapes = weights.abstract_variables(build_model(make_config().model))
    return torch_names.to_torch(
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    )


@pytest.fixture(scope="module")
def caffe2(state, tmp_path_factory):
    """Its backbone as MSRA's file names it, with norms folded to scale and shift."""
    table = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    blobs = {"fc1000_w": np.zeros((2, 2), np.float32), "conv1_b": np.zeros(16, np.float32)}
    rng = np.random.default_rng(0)
    for name, array in state.items():
        match = re.fullmatch(r"backbone\.bottom_up\.(.*)\.(weight|bias)", name)
        if not match:
            continue
        module, end = match.groups()
        is_norm = module.endswith(".norm")
        ends = {"weight": "bn_s" if is_norm else "w", "bias": "bn_b"}
        module = module.removesuffix(".norm")
        if module == "stem.conv1":
            key = f"res_conv1_{ends[end]}" if is_norm else "conv1_w"
        else:
            stage, block, conv = module.split(".")
            key = f"{stage}_{block}_branch{table[conv]}_{ends[end]}"
        blobs[key] = rng.normal(size=array.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("caffe2") / "R-50.pkl"
    files.write_state_dict(path, blobs)
    return path, blobs


@pytest.fixture(scope="module")
def torchvision(state, tmp_path_factory):
    """Its backbone as torchvision names it."""
    rng = np.random.default_rng(1)
    arrays = {"fc.weight": np.zeros((3, 4), np.float32)}
    for name, array in state.items():
        if not name.startswith("backbone.bottom_up."):
            continue
        key = name.removeprefix("backbone.bottom_up.").removeprefix("stem.")
        key = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", key)
        key = re.sub(r"conv(\d)\.norm", r"bn\1", key)
        key = key.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        values = rng.normal(size=array.shape).astype(np.float32)
        arrays[key] = np.abs(values) if key.endswith("var") else values
    path = tmp_path_factory.mktemp("torchvision") / "resnet50.safetensors"
    files.write_state_dict(path, arrays)
    return path, arrays


def test_from_scratch_needs_norms_that_train(quick):
    with pytest.raises(ValueError, match="norm=BN .* and --set model.backbone.freeze_at=0"):
        initialisation.make_initial(make_config())
    initial = initialisation.make_initial(ktn.get_config("tiny"))
    assert initial.report() == ["all weights are new: training from scratch"]


def test_the_body_graph_is_the_configurations(tmp_path):
    config = ktn.get_config("tiny")
    default = initialisation.initial_edges(config)
    np.testing.assert_array_equal(default["part"], body_graph.build_graph().part.T)
    edges = {
        source: np.full((25, rows), 0.5)
        for source, rows in (("keypoint", 17), ("part", 15), ("box", 6))
    }
    graph = body_graph.BodyGraph(**{source: np.float32(m.T) for source, m in edges.items()})
    config.training.graph = str(tmp_path / "graph.npz")
    body_graph.save_graph(config.training.graph, graph)
    np.testing.assert_array_equal(initialisation.initial_edges(config)["box"], edges["box"])
    config.training.graph = "centred"
    centred = initialisation.initial_edges(config)
    for source, matrix in default.items():
        np.testing.assert_allclose(centred[source][1:].mean(axis=0), 0, atol=1e-6)
        difference = matrix[1:] - centred[source][1:]
        np.testing.assert_allclose(difference, np.broadcast_to(difference[0], difference.shape))
        np.testing.assert_array_equal(centred[source][0], matrix[0])
    config.training.graph = "noise"
    assert initialisation.initial_edges(config) is None
    assert initialisation.initial_edges(ktn.get_config("mid_only")) is None


def test_msra_weights(quick, caffe2):
    path, blobs = caffe2
    initial = initialisation.make_initial(make_config(), path)
    backbone = initial.variables["params"]["backbone"]
    stats = initial.variables["batch_stats"]["backbone"]
    kernel = blobs["res3_0_branch2b_w"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(backbone["res3_0"]["conv2"]["conv"]["kernel"], kernel)
    np.testing.assert_array_equal(backbone["stem_conv1"]["norm"]["bias"], blobs["res_conv1_bn_b"])
    # Scale and shift act as they are: scale / sqrt(var + eps) = scale.
    var = stats["res2_0"]["shortcut"]["norm"]["var"]
    np.testing.assert_allclose(np.sqrt(var + 1e-5), 1, rtol=1e-6)
    assert (stats["res2_0"]["shortcut"]["norm"]["mean"] == 0).all()
    # BGR in both: the first kernel is as it was.
    np.testing.assert_array_equal(
        backbone["stem_conv1"]["conv"]["kernel"], blobs["conv1_w"].transpose(2, 3, 1, 0)
    )
    assert all("/backbone/" in f"/{path}" for path in initial.fit.arrays)
    assert not any(path.startswith("params/backbone") for path in initial.fit.missing)
    assert "params/neck/lateral2/conv/kernel" in initial.fit.missing
    assert initial.fit.dropped == ("conv1_b", "fc1000_w")
    said = "\n".join(initial.report())
    assert "params/box_head/fc1/kernel" in said and "fc1000_w" in said


def test_torchvision_weights(quick, torchvision):
    path, arrays = torchvision
    initial = initialisation.make_initial(make_config(**TORCHVISION), path)
    backbone = initial.variables["params"]["backbone"]
    stem = backbone["stem_conv1"]["conv"]["kernel"]
    # Their kernel reads RGB, the model feeds BGR: the same sum over channels.
    rgb = np.random.default_rng(0).normal(size=(7, 7, 3))
    theirs = np.einsum("oihw,hwi->o", arrays["conv1.weight"], rgb)
    np.testing.assert_allclose(np.einsum("hwio,hwi->o", stem, rgb[..., ::-1]), theirs, rtol=1e-5)
    norm = initial.variables["batch_stats"]["backbone"]["res4_0"]["shortcut"]["norm"]
    np.testing.assert_array_equal(norm["var"], arrays["layer3.0.downsample.1.running_var"])
    scale = backbone["res5_0"]["conv3"]["norm"]["scale"]
    np.testing.assert_array_equal(scale, arrays["layer4.0.bn3.weight"])
    assert initial.fit.dropped == ("fc.weight",)


def test_a_configuration_that_does_not_fit_imagenet_weights_is_told_what_to_set(
    caffe2, torchvision
):
    with pytest.raises(ValueError) as caught:
        initialisation.make_initial(make_config(), torchvision[0])
    message = str(caught.value)
    assert "model.pixel_std_bgr=(57.375, 57.12, 58.395)" in message
    assert "model.backbone.stride_in_1x1=False" in message and "mean" not in message
    with pytest.raises(ValueError, match=r"caffe2 ResNet, which needs .*stride_in_1x1=True"):
        initialisation.make_initial(make_config(**TORCHVISION), caffe2[0])
    with pytest.raises(ValueError, match="norm=FrozenBN"):
        initialisation.make_initial(make_config(norm="BN"), caffe2[0])
    resnext = {name: np.zeros((16, 2, 3, 3)) for name in ("conv1_w", "res2_0_branch2b_w")}
    resnext["res2_0_branch2a_w"] = np.zeros((16, 64, 1, 1))
    assert imagenet.find_kind(resnext) == "caffe2_resnext"
    imagenet.check_backbone(ktn.get_config("x101").model, "caffe2_resnext", "X-101.pkl")
    with pytest.raises(ValueError, match="pixel_std_bgr=.57.375, .*stride_in_1x1=False"):
        imagenet.check_backbone(ktn.get_config("r50").model, "caffe2_resnext", "X-101.pkl")
    hrnet = ktn.get_config("hrnet_w32")
    with pytest.raises(ValueError, match="is a ResNet, but model.backbone.name=hrnet"):
        imagenet.check_backbone(hrnet.model, "caffe2", "R-50.pkl")
    # Twice the depth: blocks have no counterpart, which the report lists; widths are an error.
    with pytest.raises(ValueError, match=r"arrays are of another shape\n.*res2_0"):
        initialisation.make_initial(make_config(width=32), caffe2[0])


def test_a_part_of_a_model_is_loaded_and_the_rest_listed(quick, state, tmp_path):
    kept = {name: array for name, array in state.items() if "densepose_predictor" not in name}
    kept["roi_heads.mask_point_head.fc1.weight"] = np.zeros((2, 2), np.float32)
    path = tmp_path / "keypoints.safetensors"
    files.write_state_dict(path, kept)
    initial = initialisation.make_initial(make_config(), path)
    assert initial.fit.dropped == ("roi_heads.mask_point_head.fc1.weight",)
    assert initial.fit.missing and all("/predictor/" in name for name in initial.fit.missing)
    assert (initial.variables["params"]["predictor"]["u_kernel"] == 0.25).all()
    expected = torch_names.to_flax(state)["params"]["box_head"]["fc1"]["kernel"]
    np.testing.assert_array_equal(
        initial.variables["params"]["box_head"]["fc1"]["kernel"], expected
    )


def test_parts_of_a_model_are_drawn_anew(quick, state, tmp_path):
    path = tmp_path / "model.safetensors"
    files.write_state_dict(path, state)
    config = make_config()
    config.training.redraw = ("predictor/keypoint_", "predictor/transfer/edges_")
    initial = initialisation.make_initial(config, path)
    drawn = sorted(name.rpartition("/")[2] for name in initial.fit.missing)
    edges = ["edges_box", "edges_keypoint", "edges_part"]
    assert drawn == [*edges, "keypoint_bias", "keypoint_kernel"]
    predictor = initial.variables["params"]["predictor"]
    assert (predictor["keypoint_kernel"] == 0.25).all()
    assert (predictor["transfer"]["edges_part"] == 0.25).all()
    assert (predictor["u_kernel"] != 0.25).all()
    config.training.redraw = ("predictor/keypoint_", "predictor/nowhere")
    with pytest.raises(ValueError, match=r"training\.redraw: \['predictor/nowhere'\] match no"):
        initialisation.make_initial(config, path)


@pytest.mark.extended
def test_the_keypoint_model_is_of_the_same_parameters():
    """So that a keypoint training starts KTN with nothing new and nothing left over."""
    for variant in ("hrnet_w32", "tiny"):
        shapes = [
            weights.flatten(
                weights.abstract_variables(initialisation.build_trained_model(config, "cpu"))
            )
            for config in (keypoint_mid.get_config(variant), ktn.get_config(variant))
        ]
        assert {k: v.shape for k, v in shapes[0].items()} == {
            k: v.shape for k, v in shapes[1].items()
        }


def test_files_that_do_not_fit(state, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at .*none.pkl"):
        initialisation.make_initial(make_config(), tmp_path / "none.pkl")
    path = tmp_path / "other.safetensors"
    files.write_state_dict(path, {"transformer.h.0.weight": np.zeros(3)})
    with pytest.raises(ValueError, match="has no weights of this model"):
        initialisation.make_initial(make_config(), path)
    means = {"pixel_mean": np.float32([1, 2, 3]).reshape(3, 1, 1)}
    files.write_state_dict(path, state | means)
    with pytest.raises(ValueError, match=r"pixel_mean is \[1.0, 2.0, 3.0\], but"):
        initialisation.make_initial(make_config(), path)
