"""Training in several stages: losses and gradients of each, padding, and what one stage shares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ktn_jax.checkpoints import torch_names, weights
from ktn_jax.configs import densepose_rcnn
from ktn_jax.losses.detection import RoiTargets
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.runtime.configuration import load_config
from ktn_jax.training import distributed, forward, objective, targets

SIZE, PEOPLE, POINTS = 64, 3, 6
TASKS = ("densepose", "keypoints", "masks")


def _config(num_stages=2, **cascade):
    config = densepose_rcnn.get_config("cascade_tiny")
    model = config.model
    model.backbone.norm = "FrozenBN"
    model.backbone.stem_channels = model.backbone.width = 8
    model.backbone.res2_channels = 16
    model.neck.channels = model.decoder.channels = model.decoder.out_channels = 16
    model.box_head.hidden_features = 16
    model.densepose_head.channels = model.mask_head.channels = 16
    model.densepose_head.num_convs = model.mask_head.num_convs = 1
    model.keypoint_head.channels = (16,)
    # Sides that are no multiples of each other are resampled too.
    model.densepose_head.pooled_size = 7
    model.mask_head.pooled_size, model.keypoint_head.pooled_size = 5, 7
    model.rpn.anchor_sizes = ((8,), (16,), (32,), (48,), (64,))
    model.rpn.pre_nms_top_k_train = model.rpn.post_nms_top_k_train = 30
    model.rpn.batch_size_per_image = model.box_head.batch_size_per_image = 16
    model.cascade.num_stages = num_stages
    model.cascade.channels, model.cascade.embedded_channels, model.cascade.num_convs = 16, 4, 1
    for name, value in cascade.items():
        model.cascade[name] = value
    for task in ("densepose", "keypoint", "mask"):
        config.loss[f"{task}_rois_per_image"] = 4
    return config


def _batch(seed=0):
    """Noise with two people an image and an empty slot; each lacks what another one has."""
    rng = np.random.default_rng(seed)
    people, points = (2, PEOPLE), (2, PEOPLE, POINTS)
    corner = rng.uniform(0, 20, (*people, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 40, (*people, 2))], axis=-1)
    xy = rng.uniform(boxes[..., None, :2], boxes[..., None, 2:], (*people, 17, 2))
    slot = np.broadcast_to(np.arange(PEOPLE), people)
    is_valid = slot < 2
    visible = np.broadcast_to((slot != 1)[..., None, None], (*people, 17, 1))
    batch = {
        "image": rng.integers(0, 255, (2, SIZE, SIZE, 3)).astype(np.uint8),
        "image_size_hw": np.full((2, 2), SIZE, np.int32),
        "image_id": np.arange(2, dtype=np.int32),
        "is_valid": is_valid,
        "boxes": boxes.astype(np.float32),
        "keypoints": np.concatenate([xy, visible], -1).astype(np.float32),
        "has_densepose": slot < 1,
        "has_person_mask": is_valid,
        "point_is_valid": np.ones(points, bool),
        "point_i": rng.integers(0, 25, points).astype(np.int32),
        "part_mask": rng.integers(0, 15, (*people, 256, 256)).astype(np.uint8),
        "person_mask": rng.integers(0, 2, (*people, 256, 256)).astype(np.uint8),
        **{f"point_{name}": rng.uniform(0, 255, points).astype(np.float32) for name in "xy"},
        **{f"point_{name}": rng.random(points).astype(np.float32) for name in "uv"},
    }
    for name in ("boxes", "keypoints", "part_mask", "person_mask"):
        batch[name] = batch[name] * is_valid.reshape(*people, *[1] * (batch[name].ndim - 2))
    return batch


def _losses(config, params, batch_stats, batch, samples):
    outputs, _ = forward.apply(
        build_model(config.model),
        config.loss,
        params=params,
        batch_stats=batch_stats,
        batch=batch,
        key=jax.random.key(3),
        samples=samples,
    )
    return forward.compute_losses(config.model, config.loss, outputs, batch), outputs.samples


@pytest.fixture(scope="module")
def variables():
    return weights.draw_variables(build_model(_config().model), seed=0)


@pytest.fixture(scope="module")
def step(variables):
    """(total, (losses, samples)), gradients of the two stages."""
    config = _config()

    def total(params, batch, samples):
        losses, samples = _losses(config, params, variables["batch_stats"], batch, samples)
        return sum(losses.values()), (losses, samples)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.fixture(scope="module")
def drawn(step, variables):
    (total, (losses, samples)), gradients = step(variables["params"], _batch(), None)
    return float(total), jax.device_get(losses), samples, gradients


def _later(name):
    return name.startswith("stage2/")


@pytest.mark.extended
def test_every_task_has_a_loss_in_every_stage_and_trains_all_of_it(drawn):
    _, losses, samples, gradients = drawn
    own = {"u", "v", "fine_segm", "coarse_segm", "keypoint_head", "mask_head"}
    assert {name for name in losses if _later(name)} == {f"stage2/{name}" for name in own}
    assert own <= losses.keys() and all(loss > 0 for loss in losses.values())
    norms = traverse_util.flatten_dict(
        jax.tree.map(lambda x: float(np.abs(np.asarray(x)).max()), gradients)
    )
    stage = {path: norm for path, norm in norms.items() if path[0] == "cascade_stage2"}
    assert len(stage) == 2 * (9 + 3 + 7)  # kernels and biases of embeddings, heads and predictors
    assert min(stage.values()) > 0
    first = samples.people["densepose"]
    for people in samples.people.values():
        np.testing.assert_array_equal(people.boxes, first.boxes)
        np.testing.assert_array_equal(people.gt_index, first.gt_index)
    # The second person has neither surface points nor visible keypoints.
    second = np.asarray(first.gt_index) == 1
    assert second.any() and not np.asarray(first.weight)[second].any()
    assert not np.asarray(samples.people["keypoints"].weight)[second].any()
    assert np.asarray(samples.people["masks"].weight)[second].all()


@pytest.mark.extended
@pytest.mark.parametrize(
    "part",
    ["densepose_head", "predictor", "keypoint_head", "mask_head", "cascade_stage2", "decoder"],
)
def test_gradients_are_the_slopes_of_the_loss(step, variables, drawn, part):
    """Central differences along the gradient, its entries scaled at random."""
    _, _, samples, gradients = drawn
    leaves, tree = jax.tree.flatten(gradients[part])
    rng = np.random.default_rng(1)
    ways = [np.asarray(x) * rng.uniform(0.2, 1, x.shape).astype(np.float32) for x in leaves]
    length = np.sqrt(sum(float((way**2).sum()) for way in ways))
    ways = [way / length for way in ways]
    slope = sum(float((way * np.asarray(x)).sum()) for way, x in zip(ways, leaves, strict=True))
    way = jax.tree.unflatten(tree, ways)
    side = {}
    for sign in (-1, 1):
        moved = jax.tree.map(lambda x, d, s=sign: x + s * 2e-3 * d, variables["params"][part], way)
        params = {**variables["params"], part: moved}
        side[sign] = float(step(params, _batch(), samples)[0][0])
    np.testing.assert_allclose((side[1] - side[-1]) / 4e-3, slope, rtol=0.02)


def _lengthen(tree, extra):
    """Pads the second axis."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)), tree)


@pytest.mark.extended
def test_one_stage_is_the_first_of_two_and_padding_changes_nothing(variables, drawn):
    """The first stage by itself, with more slots for people and ROIs, and other weights of two."""
    _, expected, samples, _ = drawn
    batch = _batch()
    more = {
        name: x if name in ("image", "image_size_hw", "image_id") else _lengthen(x, 2)
        for name, x in batch.items()
    }
    people = {task: _lengthen(people, 2) for task, people in samples.people.items()}
    fixed = samples.replace(people=people, rois=_lengthen(samples.rois, 3))
    stats = variables["batch_stats"]
    one, two = _config(1), _config()
    two.loss.stage_weights = (0.5, 2.0)
    params = {name: x for name, x in variables["params"].items() if name != "cascade_stage2"}

    @jax.jit
    def run(params, batch, samples, later):
        first, _ = _losses(one, params, stats, batch, samples)
        both, _ = _losses(two, params | later, stats, batch, samples)
        return first, both

    later = {"cascade_stage2": variables["params"]["cascade_stage2"]}
    first, both = run(params, more, fixed, later)
    assert first.keys() == {name for name in expected if not _later(name)}
    branches = {name.removeprefix("stage2/") for name in expected if _later(name)}
    for name, value in expected.items():
        weight = 2.0 if _later(name) else 0.5 if name in branches else 1.0
        np.testing.assert_allclose(both[name], weight * value, rtol=2e-5, err_msg=name)
        if not _later(name):
            np.testing.assert_allclose(first[name], value, rtol=2e-5, err_msg=name)


def test_stages_of_pooled_people():
    """The heads alone: one stage is the first of two, and other people change nothing."""
    config = _config()
    abstract = weights.abstract_variables(build_model(config.model))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), abstract)
    pooled = {
        task: rng.normal(size=(3, side, side, 16)).astype(np.float32)
        for task, side in (("densepose", 7), ("keypoints", 7), ("masks", 5))
    }

    @functools.partial(jax.jit, static_argnums=0)
    def run(num_stages, pooled):
        model = build_model(_config(num_stages).model)
        classes = jnp.zeros(3, jnp.int32)
        return model.apply({"params": params}, pooled, classes, method=Detector.run_stages)

    stages = run(2, pooled)
    assert len(stages) == 2
    jax.tree.map(np.testing.assert_array_equal, run(1, pooled)[0], stages[0])
    shapes = [jax.tree.map(jnp.shape, dataclasses.replace(x, features={})) for x in stages]
    assert shapes[0] == shapes[1]
    other = {task: np.concatenate([x[:2], 5 * x[2:]]) for task, x in pooled.items()}
    for ours, theirs in zip(jax.tree.leaves(run(2, other)), jax.tree.leaves(stages), strict=True):
        np.testing.assert_array_equal(ours[:2], theirs[:2])
        assert (ours[2] != theirs[2]).any()
    # Every branch reads what the others predicted: their features, and so all of a later stage.
    for task in pooled:
        moved = run(2, {**pooled, task: 2 * pooled[task]})
        for other_task in pooled:
            is_same = [
                np.array_equal(a.features[other_task], b.features[other_task])
                for a, b in zip(moved, stages, strict=True)
            ]
            assert is_same == [task != other_task, False]


def test_weights_of_stages_are_one_for_each():
    config = _config()
    config.loss.stage_weights = (1.0,)
    with pytest.raises(ValueError, match=r"stage_weights \(1\.0,\): one for each .*num_stages 2"):
        mesh = distributed.make_mesh(1)
        objective.make_loss_fn(build_model(config.model), config.loss, mesh, config.training)
    config.loss.stage_weights = ()
    assert forward.stage_weights(config.model, config.loss) == (1.0, 1.0)


@pytest.mark.extended
def test_gradients_stop_at_predictions_where_that_is_wished(variables):
    """The second stage's losses then train the first only through features, not its predictors."""
    norms = {}
    for stop in (False, True):
        config = _config(stop_gradient=stop)
        config.loss.stage_weights = (0.0, 1.0)

        @jax.jit
        def energy(params, config=config):
            stats = variables["batch_stats"]
            losses, _ = _losses(config, params, stats, _batch(), None)
            return sum(loss for name, loss in losses.items() if _later(name))

        gradients = jax.grad(energy)(variables["params"])
        norms[stop] = {
            name: max(float(np.abs(np.asarray(x)).max()) for x in jax.tree.leaves(gradients[name]))
            for name in ("predictor", "densepose_head", "keypoint_head")
        }
    assert norms[False]["predictor"] > 0 and norms[True]["predictor"] == 0
    assert norms[True]["densepose_head"] > 0 and norms[True]["keypoint_head"] > 0


@pytest.mark.extended
def test_a_stage_may_add_to_the_maps_of_the_one_before(variables):
    """Predictors of zeros then change nothing, and otherwise give zeros."""
    params = traverse_util.flatten_dict(variables["params"])
    ends = ("predictor", "scores_kernel", "scores_bias", "logits")
    for path, value in params.items():
        if path[0] == "cascade_stage2" and set(path) & set(ends):
            params[path] = np.zeros_like(value)
    silent = variables | {"params": traverse_util.unflatten_dict(params)}
    rng = np.random.default_rng(0)
    sides = {"densepose": 7, "keypoints": 7, "masks": 5}
    pooled = {t: rng.normal(size=(2, p, p, 16)).astype(np.float32) for t, p in sides.items()}
    for adds in (False, True):
        model = build_model(_config(adds_to_previous=adds).model)
        run = jax.jit(functools.partial(model.apply, method=Detector.run_stages))
        stages = run(silent, pooled, np.zeros(2, np.int32))
        first, second = (
            jax.tree.leaves(dataclasses.replace(stage, features={})) for stage in stages
        )
        assert len(first) == 4 + 4 + 1 + 1 and all(np.ptp(x) > 0 for x in first)
        for before, after in zip(first, second, strict=True):
            np.testing.assert_array_equal(after, before if adds else np.zeros_like(before))


def test_shared_rois_stand_for_all_that_qualify():
    """Over many images, the weights of a task sum to its number of ROIs; one task is as before."""
    place = (500, 12)
    index = jnp.broadcast_to(jnp.arange(12), place)
    rois = RoiTargets(
        boxes=jnp.ones((*place, 4)),
        is_valid=jnp.ones(place, bool),
        is_foreground=jnp.ones(place, bool),
        gt_boxes=jnp.ones((*place, 4)),
        gt_index=index,
    )
    qualifies = {"densepose": index < 3, "masks": (index > 1) & (index < 9)}

    @jax.jit
    def choose(key):
        keys = jax.random.split(key, place[0])
        masks = qualifies["masks"]
        one = targets.choose_people(keys, rois, masks, 4)
        same = targets.choose_shared_people(keys, rois, {"masks": masks}, 4)["masks"]
        return targets.choose_shared_people(keys, rois, qualifies, 4), one, same

    people, one, same = choose(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (people["densepose"].gt_index == people["masks"].gt_index).all()
    chosen = np.asarray(people["masks"].gt_index)
    assert chosen.max() == 8
    assert set(np.unique(people["densepose"].weight)) == {0.0, np.float32(9 / 4)}
    for task, number in (("densepose", 3), ("masks", 7)):
        sums = np.asarray(people[task].weight.sum(-1))
        assert abs(sums.mean() - number) < 4 * sums.std() / np.sqrt(len(sums)), task


def test_a_cascade_starts_from_one_stage(tmp_path):
    """`load_partly` takes the first stage of a model without a cascade, and draws the rest."""
    config, single = _config(3), _config(1)
    rng = np.random.default_rng(0)
    flat = weights.flatten(weights.abstract_variables(build_model(config.model)))
    shapes = weights.flatten(weights.abstract_variables(build_model(single.model)))
    first = {name: rng.normal(size=x.shape).astype(x.dtype) for name, x in shapes.items()}
    assert {name: flat[name].shape for name in first} == {k: x.shape for k, x in shapes.items()}
    variables = traverse_util.unflatten_dict(first, sep="/")
    weights.write_variables(tmp_path / "one.safetensors", variables)
    fit = weights.load_partly(config, tmp_path / "one.safetensors")
    assert fit.arrays.keys() == first.keys() and not fit.dropped
    assert set(fit.missing) == flat.keys() - first.keys()
    assert all("cascade_stage" in name for name in fit.missing)
    names = torch_names.torch_names(list(flat)).values()
    assert "roi_heads.cascade_stage3.densepose_predictor.u_lowres.weight" in names
    assert "roi_heads.cascade_stage2.masks_reads_keypoints.bias" in names


@pytest.mark.parametrize(
    "change",
    ["num_stages=0", "num_convs=0", "inputs='scores'"],
)
def test_cascades_that_cannot_be_are_refused(change):
    config = load_config("densepose_rcnn:cascade_tiny", [f"model.cascade.{change}"])
    with pytest.raises(ValueError, match=rf"model\.cascade.*{change.split('=')[1]}"):
        weights.abstract_variables(build_model(config.model))
