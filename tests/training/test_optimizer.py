"""The optimizer against PyTorch's SGD and closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from ktn_jax.checkpoints import weights
from ktn_jax.configs import base, keypoint_mid, ktn
from ktn_jax.modeling.detector import build_model
from ktn_jax.training import optimizer


def make_config(**changes):
    config = base.get_config()
    config.total_steps = 1000
    config.model.backbone.freeze_at = 0
    for name, value in changes.items():
        config.optimizer[name] = value
    return config


def draw_tree(rng):
    """A layer, a norm that trains, and a norm with fixed statistics."""
    norm = {"scale": rng.normal(size=3), "bias": rng.normal(size=3)}
    frozen = {"scale": rng.normal(size=3), "bias": rng.normal(size=3)}
    tree = {
        "head": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "norm": norm,
        "fixed": frozen,
    }
    return jax.tree.map(np.float32, tree)


STATS = {
    "norm": {"mean": np.zeros(3), "var": np.ones(3), "count": np.int32(0)},
    "fixed": {"mean": np.zeros(3), "var": np.ones(3)},
}


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.001),
        (500, 0.0055),
        (1000, 0.01),
        (99_999, 0.01),
        (100_000, 0.001),
        (119_999, 0.001),
        (120_000, 0.0001),
    ],
)
def test_the_default_schedule_is_the_papers(step, rate):
    config = base.get_config()
    schedule = optimizer.make_schedule(config)
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_the_rate_follows_the_batch_where_a_reference_is_given():
    config = make_config(reference_batch=16, warmup_steps=0, learning_rate=0.01)
    config.batch_size = 512
    assert float(optimizer.make_schedule(config)(0)) == pytest.approx(0.32)
    config.optimizer.reference_batch = 0
    assert float(optimizer.make_schedule(config)(0)) == pytest.approx(0.01)


@pytest.mark.parametrize(("step", "factor"), [(100, 0.975528), (500, 0.5), (1000, 0), (2000, 0)])
def test_cosine_goes_to_zero(step, factor):
    config = make_config(schedule="cosine", warmup_steps=100, learning_rate=2.0)
    config.total_steps = 1000
    schedule = optimizer.make_schedule(config)
    assert float(schedule(step)) == pytest.approx(2 * factor, abs=1e-5)


def _detectron2_rate(step, warmup, total, decay):
    """fvcore's composition: the ramp is rescaled to its share of the training, then the decay."""
    length = min(warmup / total, 1.0)
    where = step / total
    if where < length:
        start, end = 0.1 * decay(0.0), decay(length)
        return start + (end - start) * where / length
    return decay(where)


@pytest.mark.parametrize("kind", ["cosine", "multi_step"])
@pytest.mark.parametrize(("warmup", "total"), [(100, 1000), (500, 1000), (50, 40)])
def test_the_warm_up_ends_on_the_schedule(kind, warmup, total):
    """Not below a product of both; over decay steps at 300 and 500, and longer than the run."""
    settings = {"schedule": kind, "warmup_steps": warmup, "learning_rate": 1.0}
    config = make_config(decay_steps=(300, 500), **settings)
    config.total_steps = total
    schedule = jax.jit(optimizer.make_schedule(config))

    def decay(where):
        if kind == "cosine":
            return (1 + np.cos(np.pi * where)) / 2
        return 0.1 ** sum(where * total + 1e-6 >= boundary for boundary in (300, 500))

    for step in (0, 20, 39, 50, 99, 100, 299, 300, 400, 499, 500, 900):
        if step < total:
            expected = _detectron2_rate(step, warmup, total, decay)
            assert float(schedule(step)) == pytest.approx(expected, abs=1e-6), step


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_rate_factors_scale_the_updates_of_what_they_match(name):
    """The momentum is that of the unscaled gradients, as with a rate of its own in PyTorch."""
    params = draw_tree(np.random.default_rng(0))
    gradients = draw_tree(np.random.default_rng(1))

    def updates(**settings):
        config = make_config(name=name, learning_rate=0.1, weight_decay=0.01, **settings)
        transformation = optimizer.make_optimizer(config, params, STATS)
        state = transformation.init(params)
        for _ in range(2):
            found, state = transformation.update(gradients, state, params)
        return traverse_util.flatten_dict(found, sep="/")

    factors = (("head/k", 10.0), ("head/", 0.5))
    plain, scaled = updates(), updates(rate_factors=factors)
    for path, update in plain.items():
        factor = {"head/kernel": 10.0, "head/bias": 0.5}.get(path, 1.0)
        np.testing.assert_allclose(scaled[path], factor * np.asarray(update), rtol=1e-6)
    with pytest.raises(ValueError, match=r"optimizer.rate_factors: \['tail/'\] match no parameter"):
        updates(rate_factors=(("tail/", 2.0),))


@pytest.mark.parity
@pytest.mark.parametrize("clip", optimizer.CLIPS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_thirty_steps_are_pytorchs(clip, nesterov):
    """Across a warm-up and a decay, with groups as detectron2 makes them."""
    torch = pytest.importorskip("torch")
    config = make_config(
        clip=clip,
        clip_value=0.7,
        nesterov=nesterov,
        learning_rate=0.3,
        warmup_steps=10,
        decay_steps=(20, 25),
        weight_decay=0.03,
        weight_decay_bias=0.01,
        weight_decay_norm=0.002,
    )
    rng = np.random.default_rng(0)
    params = draw_tree(rng)
    gradients = [draw_tree(rng) for _ in range(30)]
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in flat.items()}
    decays = {"head/kernel": 0.03, "head/bias": 0.01, "norm/scale": 0.002, "norm/bias": 0.01}
    groups = [{"params": [tensors[name]], "weight_decay": d} for name, d in decays.items()]
    sgd = torch.optim.SGD(groups, lr=0.3, momentum=0.9, nesterov=nesterov)
    transformation = optimizer.make_optimizer(config, params, STATS)
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    ours = params
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        warm = min(step / 10, 1)
        rate = 0.3 * (0.1 * (1 - warm) + warm) * 0.1 ** ((step >= 20) + (step >= 25))
        trained = [tensors[name] for name in decays]
        for name, value in traverse_util.flatten_dict(gradient, sep="/").items():
            tensors[name].grad = torch.tensor(value)
        if clip == "value":
            torch.nn.utils.clip_grad_value_(trained, 0.7)
        elif clip == "norm":
            for tensor in trained:
                torch.nn.utils.clip_grad_norm_([tensor], 0.7)
        elif clip == "global_norm":
            torch.nn.utils.clip_grad_norm_(trained, 0.7)
        for group in sgd.param_groups:
            group["lr"] = rate
        sgd.step()
    for name, value in traverse_util.flatten_dict(ours, sep="/").items():
        # Thirty sums in float32; without the decay of biases it is off by 1e-2.
        np.testing.assert_allclose(
            value, tensors[name].detach().numpy(), rtol=2e-5, atol=2e-5, err_msg=name
        )


def test_frozen_parameters_get_neither_update_nor_state():
    config = make_config(frozen=("head/b",))
    params = draw_tree(np.random.default_rng(0))
    transformation = optimizer.make_optimizer(config, params, STATS)
    state = transformation.init(params)
    # Momenta of head/kernel, norm/scale, norm/bias, and the count of the schedule.
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state))
    assert shapes == [(), (3,), (3,), (4, 3)]
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = transformation.update(ones, state, params)
    for name in ("fixed/scale", "fixed/bias", "head/bias"):
        module, leaf = name.split("/")
        np.testing.assert_array_equal(updates[module][leaf], np.zeros(3))
    assert (updates["head"]["kernel"] != 0).all() and (updates["norm"]["scale"] != 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": ("haed/",)}, r"\['haed/'\] match no parameter"),
        ({"frozen": (".*",)}, "leaves nothing to train"),
        ({"schedule": "linear"}, "optimizer.schedule 'linear'"),
        ({"decay_steps": (9, 5)}, "must ascend"),
        ({"clip": "l1"}, "optimizer.clip 'l1'"),
        ({"clip": "norm", "clip_value": 0.0}, "clip_value must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    params = draw_tree(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        optimizer.make_optimizer(make_config(**changes), params, STATS)


def test_a_detector_decays_and_freezes_as_the_original():
    config = ktn.get_config("tiny")
    config.model.backbone.norm, config.model.backbone.freeze_at = "FrozenBN", 2
    variables = weights.abstract_variables(build_model(config.model))
    params, stats = variables["params"], variables["batch_stats"]
    patterns = optimizer.frozen_patterns(config)
    labels = traverse_util.flatten_dict(
        optimizer.label_parameters(params, stats, patterns), sep="/"
    )
    frozen = {path for path, label in labels.items() if label == optimizer.FROZEN}
    stages = ("backbone/stem_conv1/", "backbone/res2_")
    assert all(path.startswith(stages) for path in frozen if not path.endswith(("scale", "bias")))
    assert {path for path in labels if path.startswith(stages)} <= frozen
    assert {path for path in labels if path.startswith("backbone/") and "/norm/" in path} <= frozen
    assert "backbone/res3_0/conv1/conv/kernel" not in frozen
    assert not any(path.startswith(("neck", "decoder", "densepose_head")) for path in frozen)
    keys = traverse_util.flatten_dict(optimizer.decay_keys(params, config.optimizer), sep="/")
    assert keys["densepose_head/scale_convs/norm0/bias"] == "weight_decay_norm"
    assert keys["decoder/trident1_norm/scale"] == "weight_decay_norm"
    assert keys["box_head/delta_bias"] == "weight_decay"
    config.optimizer.weight_decay_bias = 0.5  # detectron2's WEIGHT_DECAY_BIAS
    keys = traverse_util.flatten_dict(optimizer.decay_keys(params, config.optimizer), sep="/")
    biases = {"densepose_head/scale_convs/norm0/bias", "box_head/delta_bias"}
    assert {keys[name] for name in biases} == {"weight_decay_bias"}
    assert keys["decoder/trident1_norm/scale"] == "weight_decay_norm"
    assert keys["predictor/transfer/edges_part"] == "weight_decay"


def test_keypoint_training_leaves_alone_what_it_has_no_labels_for():
    config = keypoint_mid.get_config("tiny")
    variables = weights.abstract_variables(build_model(config.model))
    labels = optimizer.label_parameters(
        variables["params"], variables["batch_stats"], optimizer.frozen_patterns(config)
    )
    labels = traverse_util.flatten_dict(labels, sep="/")
    frozen = {path for path, label in labels.items() if label == optimizer.FROZEN}
    trained = {path for path in labels if path.startswith("predictor/")} - frozen
    assert trained == {"predictor/keypoint_kernel", "predictor/keypoint_bias"}
    assert all(path.startswith("predictor/") for path in frozen)


@pytest.mark.parametrize(
    ("name", "moments"), [("sgd", {"[2].trace"}), ("adam", {"[1].count", "[1].mu", "[1].nu"})]
)
def test_the_state_is_that_of_earlier_checkpoints(name, moments):
    """Names are those of orbax's files: another structure could not resume a run."""
    config = make_config(name=name, weight_decay_norm=0.1, clip="norm")
    state = optimizer.make_optimizer(config, draw_tree(np.random.default_rng(0)), STATS).init(
        draw_tree(np.random.default_rng(0))
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    prefix = ".inner_states['trained'].inner_state"
    assert all(path.startswith(prefix) for path in paths)
    found = {re.match(r"(\[\d\]\.\w+)", path.removeprefix(prefix))[1] for path in paths}
    assert found == moments | {f"[{4 + (name == 'adam')}].count"}
