"""The programs of a model: other weights of the same shapes, and what they may be given."""

import pickle

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ktn_jax.inference.stages import Stages
from ktn_jax.modeling.detector import build_model, to_person_maps
from ktn_jax.runtime.configuration import load_config
from ktn_jax.runtime.program_store import ProgramStore

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
SIZES = np.int32([[60, 90]])
BOXES = np.float32([[5, 5, 40, 60], [30, 2, 80, 50], [0, 0, 90, 60]])


def _config(*changes):
    return load_config("configs/ktn.py:tiny", ["model.box_head.max_detections=3", *changes])


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(_config())


@pytest.fixture(scope="module")
def stages(variables):
    return Stages(_config(), variables)


def _run(stages):
    pyramid, found = stages.detect(IMAGES, SIZES)
    return jax.device_get(found), stages.describe(pyramid, BOXES, np.zeros(3, np.int32)).charts


def _assert_equal(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_stages_give_detections_and_the_maps_of_any_boxes(stages):
    found, maps = _run(stages)
    assert found.boxes.shape == (1, 3, 4) and found.is_valid.any()
    assert maps.u.shape[0] == 3 and maps.u.shape[-1] == 25
    assert isinstance(maps.u, np.ndarray)
    pyramid, _ = stages.detect(IMAGES, SIZES)
    assert stages.describe(pyramid, BOXES[:0], np.zeros(0, np.int32)) is None


@pytest.mark.parametrize("is_spread", [False, True])
def test_other_weights_compile_nothing(stages, variables, draw_variables, count_traces, is_spread):
    before, _ = _run(stages)
    other = draw_variables(_config(), seed=1)
    expected = _run(Stages(_config(), other))
    if is_spread:  # over the devices of a training
        mesh = Mesh(np.array(jax.devices()), ("batch",))
        other = jax.device_put(other, NamedSharding(mesh, PartitionSpec()))
    try:
        with count_traces() as traced:
            stages.replace_variables(other)
            actual = _run(stages)
        assert traced == []
        _assert_equal(actual, expected)
        assert (actual[0].scores != before.scores).any()
    finally:
        stages.replace_variables(variables)
    _assert_equal(_run(stages)[0], before)


def test_stored_programs_give_the_same_and_are_not_traced_again(
    stages, variables, tmp_path, count_traces
):
    expected = _run(stages)
    _assert_equal(_run(Stages(_config(), variables, ProgramStore(tmp_path))), expected)
    again = Stages(_config(), variables, ProgramStore(tmp_path))
    with count_traces() as traced:
        _assert_equal(_run(pickle.loads(pickle.dumps(again))), expected)  # noqa: S301
    assert not {"_apply_detect", "_apply_decode", "_apply_describe"} & set(traced), traced
    other = Stages(_config("model.box_head.max_detections=2"), variables, ProgramStore(tmp_path))
    assert other.detect(IMAGES, SIZES)[1].boxes.shape == (1, 2, 4)


def test_weights_are_copied(stages, variables):
    trained = jax.tree.map(np.array, variables)
    stages.replace_variables(trained)
    expected = _run(stages)
    for value in jax.tree.leaves(trained):
        value[...] = 7
    _assert_equal(_run(stages), expected)


def test_weights_of_another_model_are_refused(stages, draw_variables):
    before = _run(stages)
    with pytest.raises(ValueError, match=r"another model: \d+ differ.*wanted"):
        stages.replace_variables(draw_variables(_config("model.densepose_head.channels=32")))
    with pytest.raises(ValueError, match="missing"):
        stages.replace_variables({"batch_stats": {}})
    _assert_equal(_run(stages), before)


@pytest.mark.extended
def test_a_cascade_gives_its_last_stage_and_frees_every_transfer(draw_variables):
    """KTN with a keypoint branch, in two stages; against the model that keeps its transfers."""
    config = _config(
        "model.tasks=('densepose','keypoints')",
        "model.keypoint_head.channels=(16,)",
        "model.cascade.num_stages=2",
        "model.cascade.channels=32",
        "model.cascade.num_convs=1",
    )
    variables = draw_variables(config)
    stages = Stages(config, variables)
    params = stages.variables["params"]
    for predictor in (params["predictor"], params["cascade_stage2"]["predictor"]):
        assert "keypoint_kernel" in predictor and "transfer" not in predictor
    assert [kernel.shape[2:] for kernel in stages.surface_kernels] == [(64, 25), (32, 25)]
    pyramid, _ = stages.detect(IMAGES, SIZES)
    index = np.zeros(3, np.int32)
    found = stages.describe(pyramid, BOXES, index)

    def run(detector, features):
        boxes = dict.fromkeys(detector.config.tasks, jax.numpy.asarray(BOXES))
        outputs = detector.run_stages(detector.pool(features, boxes, index), index)
        return [to_person_maps(stage) for stage in outputs]

    model = build_model(config.model)
    features = pyramid.roi_features()
    first, last = jax.jit(lambda variables: model.apply(variables, features, method=run))(variables)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(last), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)
    assert np.abs(found.charts.fine_segm - first.charts.fine_segm).max() > 0.1
    # Of three people, padded to four: each as if alone.
    alone = stages.describe(pyramid, BOXES[1:2], index[:1])
    for one, all_of_them in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
        scale = np.abs(all_of_them).max()
        np.testing.assert_allclose(one[0], all_of_them[1], atol=1e-5 * scale)


@pytest.mark.extended
def test_devices_share_a_batch(stages, variables):
    """Three images on two devices, whose people are mixed; more than fit into one call of one."""
    shared = Stages(_config("test.num_devices=2"), variables)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 64, 96, 3), np.uint8)
    sizes = np.int32([[60, 90], [64, 70], [50, 96]])
    owner = rng.permutation(np.int32([2] * 103 + [0, 1, 1]))
    boxes = np.concatenate([corner := rng.uniform(0, 30, (106, 2)), corner + 25], axis=1)
    boxes = boxes.astype(np.float32)
    pyramid, found = shared.detect(images, sizes)
    maps = shared.describe(pyramid, boxes, owner)
    for index in range(3):
        own, people = slice(index, index + 1), owner == index
        pyramid, alone = stages.detect(images[own], sizes[own])
        expected = stages.describe(pyramid, boxes[people], np.zeros(people.sum(), np.int32))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours[own], theirs, rtol=1e-5, atol=1e-4)
        for ours, theirs in zip(jax.tree.leaves(maps), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours[people], theirs, rtol=1e-4, atol=1e-4)


def test_there_must_be_as_many_devices(variables):
    with pytest.raises(ValueError, match="test.num_devices is 9, but there are 4"):
        Stages(_config("test.num_devices=9"), variables)
