"""The training forward pass on a minute model: edges, padding, keys and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.configs import ktn
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.training import distributed, forward, objective

SIZE, PEOPLE, POINTS = 64, 3, 6
OF_IMAGES = ("image", "image_size_hw", "image_id")
DENSE = ("u", "v", "fine_segm", "coarse_segm", "body_mask", "keypoints")


def _config(norm="FrozenBN"):
    config = ktn.get_config("tiny")
    model = config.model
    model.backbone.norm, model.backbone.freeze_at = norm, 2
    model.backbone.stem_channels = model.backbone.width = 8
    model.backbone.res2_channels = 16
    model.neck.channels = model.decoder.channels = model.decoder.out_channels = 32
    model.box_head.hidden_features = 16
    model.densepose_head.channels, model.densepose_head.num_convs = 32, 1
    model.densepose_head.pooled_size = 7
    model.rpn.anchor_sizes = ((8,), (16,), (32,), (48,), (64,))
    model.rpn.pre_nms_top_k_train = model.rpn.post_nms_top_k_train = 30
    model.rpn.batch_size_per_image = model.box_head.batch_size_per_image = 16
    config.loss.densepose_rois_per_image = 4
    return config


def _batch(images=2, seed=0):
    """Noise with two people an image and an empty slot; the second person lacks DensePose."""
    rng = np.random.default_rng(seed)
    people, points = (images, PEOPLE), (images, PEOPLE, POINTS)
    corner = rng.uniform(0, 20, (*people, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 40, (*people, 2))], axis=-1)
    xy = rng.uniform(boxes[..., None, :2], boxes[..., None, 2:], (*people, 17, 2))
    is_valid = np.broadcast_to(np.arange(PEOPLE) < 2, people)
    batch = {
        "image": rng.integers(0, 255, (images, SIZE, SIZE, 3)).astype(np.uint8),
        "image_id": np.arange(images, dtype=np.int32),
        "image_size_hw": np.full((images, 2), SIZE, np.int32),
        "is_valid": is_valid,
        "boxes": boxes.astype(np.float32),
        "keypoints": np.concatenate([xy, np.ones((*people, 17, 1))], -1).astype(np.float32),
        "has_densepose": np.broadcast_to(np.arange(PEOPLE) < 1, people),
        "point_is_valid": np.ones(points, bool),
        "point_i": rng.integers(0, 25, points).astype(np.int32),
        "part_mask": rng.integers(0, 15, (*people, 256, 256)).astype(np.uint8),
        **{f"point_{name}": rng.uniform(0, 255, points).astype(np.float32) for name in "xy"},
        **{f"point_{name}": rng.random(points).astype(np.float32) for name in "uv"},
    }
    for name in ("boxes", "keypoints", "part_mask"):
        batch[name] = batch[name] * is_valid.reshape(*people, *[1] * (batch[name].ndim - 2))
    return batch


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(_config())


def _compile(variables, num_devices, more=(), **settings):
    """A function of a batch, with `more` in it, and a key: (total, losses, gradients), compiled."""
    config = _config()
    config.training.update(settings)
    mesh = distributed.make_mesh(num_devices)
    loss_fn = objective.make_loss_fn(build_model(config.model), config.loss, mesh, config.training)

    def run(batch, key):
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        (total, (losses, _)), gradients = differentiate(
            variables["params"], variables["batch_stats"], batch, key
        )
        return total, losses, gradients

    placed = (distributed.over_batch(mesh), distributed.replicated(mesh))
    return (
        jax.jit(run, in_shardings=placed).lower(_batch() | dict(more), jax.random.key(0)).compile()
    )


@pytest.fixture(scope="module")
def step(variables):
    """On two devices."""
    return _compile(variables, 2)


def _norms(gradients):
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    # Operations of JAX would be compiled for every shape.
    return {
        name: float(np.abs(np.asarray(x)).max()) for name, (_, x) in zip(names, leaves, strict=True)
    }


@pytest.mark.slow
def test_every_loss_teaches(step):
    total, losses, gradients = step(_batch(), jax.random.key(1))
    assert set(losses) == {"rpn_objectness", "rpn_deltas", "box_class", "box_deltas", *DENSE}
    assert all(loss > 0 for loss in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-6)
    norms = _norms(gradients)
    assert np.isfinite(list(norms.values())).all()
    untrained = {path for path, norm in norms.items() if norm == 0}
    # The stem and res2 are frozen, and so are the norms of the backbone.
    assert untrained == {
        path
        for path in norms
        if path.startswith(("backbone/stem", "backbone/res2"))
        or (path.startswith("backbone") and "/norm/" in path)
    }


@pytest.mark.extended
def test_labels_of_a_model_teach_by_their_weight(variables, step):
    """Full weight and no open region are the losses of an annotator's labels; half is less."""
    batch, key = _batch(), jax.random.key(1)
    _, expected, _ = step(batch, key)
    shape = batch["point_i"].shape
    own = {
        "point_is_annotated": np.ones(shape, bool),
        "point_confidence": np.zeros(shape, np.float32),
        "ignored_boxes": np.zeros_like(batch["boxes"]),
    }
    step = _compile(variables, 2, more=own)
    _, losses, _ = step(batch | own, key)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected[name], rtol=1e-5)
    own["point_is_annotated"][:], own["point_confidence"][:] = False, 0.5
    _, losses, _ = step(batch | own, key)
    for name in ("u", "v"):
        np.testing.assert_allclose(losses[name], expected[name] / 2, rtol=1e-5)
    for name in ("fine_segm", "coarse_segm", "body_mask", "keypoints", "box_class"):
        np.testing.assert_allclose(losses[name], expected[name], rtol=1e-5)
    own["ignored_boxes"][:, 0] = [-500, -500, 500, 500]  # beyond all anchors
    _, losses, _ = step(batch | own, key)
    # No background is left. Objectness is a sum over what is sampled, so it falls.
    assert 0 < losses["rpn_objectness"] < expected["rpn_objectness"]
    np.testing.assert_allclose(losses["rpn_deltas"], expected["rpn_deltas"], rtol=1e-5)


@pytest.mark.slow
def test_devices_exchange_sums_only(step, hlo):
    """test_collectives.py has other models, on more devices."""
    found = list(hlo.collectives(step.as_text()))
    assert {collective.kind for collective in found} == {"all-reduce"}
    assert {kind for collective in found for kind, _ in collective.arrays} == {"f32"}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["nobody", "nobody with DensePose", "one pixel", "empty boxes"])
def test_batches_at_the_edge_are_finite(step, case):
    batch = _batch()
    if case == "nobody":
        batch["is_valid"] = np.zeros_like(batch["is_valid"])
    if case == "nobody with DensePose":
        batch["has_densepose"] = np.zeros_like(batch["has_densepose"])
    if case == "one pixel":
        batch["boxes"][..., 2:] = batch["boxes"][..., :2] + 1
    if case == "empty boxes":
        batch["boxes"][..., 2] = batch["boxes"][..., 0]
    total, losses, gradients = step(batch, jax.random.key(1))
    norms = _norms(gradients)
    assert np.isfinite(total) and np.isfinite(list(norms.values())).all()
    assert losses["rpn_objectness"] > 0 and losses["box_class"] > 0
    has_people = case in ("nobody with DensePose", "one pixel")
    for name in ("rpn_deltas", "box_deltas"):
        assert (losses[name] > 0) == has_people, name
    has_densepose = case == "one pixel"
    for name in DENSE:
        assert (losses[name] > 0) == has_densepose or (has_densepose and name == "keypoints"), name
    assert (norms["predictor/u_kernel"] > 0) == has_densepose
    assert (norms["predictor/transfer/fc2/kernel"] > 0) == has_densepose


@pytest.mark.slow
def test_a_step_follows_its_key(step):
    one, again, other = (step(_batch(), jax.random.key(key))[0] for key in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.extended
def test_one_device_that_takes_one_image_at_a_time_is_two_devices(variables, step):
    """Though the images have other numbers of people, points and ROIs; maps are computed twice."""
    in_parts = _compile(variables, 1, accumulate=2, remat=True)
    batch = _batch()
    batch["is_valid"] = batch["is_valid"] & (np.arange(2)[:, None] < [[2, 1, 2]])
    batch["point_is_valid"][0, :, 2:] = False
    key = jax.random.key(1)
    (total, losses, gradients), (theirs, others, expected) = (
        run(batch, key) for run in (in_parts, step)
    )
    np.testing.assert_allclose(total, theirs, rtol=1e-5)
    _assert_equal(losses, others)
    norms = _norms(expected)
    for name, difference in _norms(
        jax.tree.map(jnp.subtract, *jax.device_get((gradients, expected)))
    ).items():
        assert difference <= 1e-4 * norms[name] + 1e-6, name


@pytest.mark.slow
def test_a_step_does_not_depend_on_the_order_of_the_images(step):
    """Which on a pod is that of its chips; samples drawn by the row would change a loss by 1e-2."""
    batch = _batch()
    swapped = {name: rows[::-1] for name, rows in batch.items()}
    (_, losses, gradients), (_, others, theirs) = (
        step(one, jax.random.key(1)) for one in (batch, swapped)
    )
    _assert_equal(others, losses)
    for name, norm in _norms(gradients).items():
        np.testing.assert_allclose(_norms(theirs)[name], norm, rtol=1e-4, atol=1e-6, err_msg=name)


@functools.partial(jax.jit, static_argnames=("norm", "ignore_padding"))
def _evaluate(variables, batch, samples, norm="FrozenBN", ignore_padding=False):
    """Losses, new statistics, and what they were computed from."""
    config = _config(norm)
    config.loss.ignore_padding = ignore_padding
    model = build_model(config.model)
    outputs, stats = forward.apply(
        model,
        config.loss,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        batch=batch,
        key=jax.random.key(3),
        samples=samples,
    )
    losses = forward.compute_losses(config.model, config.loss, outputs, batch)
    return losses, stats, outputs.samples, outputs.anchors


def _assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=2e-5, err_msg=name)


def _lengthen(tree, extra):
    """Pads the second axis."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)), tree)


@pytest.mark.extended
def test_more_slots_for_people_and_points_change_nothing(variables):
    batch = _batch()
    expected, _, samples, _ = _evaluate(variables, batch, None)
    more = dict(batch)
    for name, x in batch.items():
        if name not in OF_IMAGES:
            more[name] = _lengthen(x, 2)
        if name.startswith("point_"):
            more[name] = jnp.pad(more[name], [(0, 0), (0, 0), (0, 3)])
    people = {task: _lengthen(people, 2) for task, people in samples.people.items()}
    fixed = samples.replace(people=people, rois=_lengthen(samples.rois, 3))
    actual, *_ = _evaluate(variables, more, fixed)
    _assert_equal(actual, expected)


@pytest.mark.extended
def test_a_larger_canvas_changes_nothing_where_padding_is_ignored():
    settings = {"norm": "BN", "ignore_padding": True}
    model = build_model(_config("BN").model)
    images = jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images, jnp.full((1, 2), SIZE))
    # The lower half of the canvas is padding.
    batch = _batch()
    batch["image_size_hw"] = np.array([[32, 64], [32, 50]], np.int32)
    batch["boxes"][..., 3] = np.minimum(batch["boxes"][..., 3], 32)
    expected, stats, samples, anchors = _evaluate(variables, batch, None, **settings)
    centres = (np.asarray(anchors)[:, 1] + np.asarray(anchors)[:, 3]) / 2
    trains = np.asarray(samples.anchors.labels) >= 0
    assert trains.any() and (centres[trains.any(0)] < 32).all()
    larger = dict(batch, image=np.pad(batch["image"], [(0, 0), (0, 32), (0, 64), (0, 0)]))
    # The same anchors, at other places of a longer list.
    levels = {f"p{k}": np.zeros((1, -(-96 // 2**k), -(-128 // 2**k))) for k in range(2, 7)}
    more = np.concatenate(model.bind(variables).anchors(levels))
    place = {tuple(anchor): index for index, anchor in enumerate(more.tolist())}
    index = np.array([place[tuple(anchor)] for anchor in np.asarray(anchors).tolist()])
    labels = np.full((2, len(more)), -1, np.int32)
    labels[:, index] = samples.anchors.labels
    boxes = np.zeros((2, len(more), 4), np.float32)
    boxes[:, index] = samples.anchors.boxes
    fixed = samples.replace(anchors=samples.anchors.replace(labels=labels, boxes=boxes))
    actual, larger_stats, *_ = _evaluate(variables, larger, fixed, **settings)
    _assert_equal(actual, expected)
    for ours, theirs in zip(jax.tree.leaves(larger_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_surface_classifier_gives_no_gradient_to_the_box_head(variables):
    model = build_model(_config().model)

    def energy(params):
        (kernel,) = model.apply({"params": params}, method=Detector.surface_kernels)
        return jnp.square(kernel).sum()

    norms = _norms(jax.grad(energy)(variables["params"]))
    learners = {path for path, norm in norms.items() if norm > 0}
    assert {path.rsplit("/", 1)[0] for path in learners} == {
        "predictor",
        "predictor/transfer",
        "predictor/transfer/fc1",
        "predictor/transfer/fc2",
    }
    assert {"predictor/keypoint_kernel", "predictor/coarse_kernel"} <= learners


@pytest.mark.extended
def test_branches_beside_densepose_learn_and_padding_changes_nothing():
    """Masks and keypoints, with more slots for people and ROIs."""
    config = _config()
    config.model.predictor.name, config.model.densepose_head.name = "chart", "conv_stack"
    config.model.tasks = ("densepose", "keypoints", "masks")
    config.model.keypoint_head.channels, config.model.mask_head.channels = (16, 16), 16
    config.loss.ignore_padding = True
    model = build_model(config.model)
    images = jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images, jnp.full((1, 2), SIZE))
    batch = _batch()
    batch["person_mask"] = (batch["part_mask"] > 7).astype(np.uint8)
    batch["has_person_mask"] = batch["is_valid"]

    def total(params, batch, samples):
        outputs, _ = forward.apply(
            model,
            config.loss,
            params=params,
            batch_stats=variables["batch_stats"],
            batch=batch,
            key=jax.random.key(3),
            samples=samples,
        )
        losses = forward.compute_losses(config.model, config.loss, outputs, batch)
        return sum(losses.values()), (losses, outputs.samples)

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (expected, samples)), gradients = run(variables["params"], batch, None)
    assert {"keypoint_head", "mask_head", "u", "fine_segm"} <= expected.keys()
    assert all(loss > 0 for loss in expected.values())
    norms = _norms(gradients)
    assert all(norms[name] > 0 for name in norms if name.startswith(("mask_head", "keypoint_head")))
    more = {name: x if name in OF_IMAGES else _lengthen(x, 2) for name, x in batch.items()}
    people = {task: _lengthen(people, 2) for task, people in samples.people.items()}
    fixed = samples.replace(people=people, rois=_lengthen(samples.rois, 3))
    (_, (actual, _)), _ = run(variables["params"], more, fixed)
    _assert_equal(actual, expected)
