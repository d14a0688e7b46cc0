"""The compiled step by itself: what it keeps, what it reports, what it leaves in place."""

import re

import jax
import numpy as np
import pytest

from ktn_jax.runtime.program_store import ProgramStore
from ktn_jax.training import distributed, step


@pytest.fixture(scope="module")
def ready(stand_in):
    """A step on two devices, and a maker of states to begin with."""
    config = stand_in.make_config(**{"optimizer.ema_decay": 0.9})
    mesh = distributed.make_mesh(2)
    abstract = jax.eval_shape(stand_in.initialise)
    prepared = step.prepare_step(config, stand_in.loss_fn, abstract, mesh)
    sharding = distributed.over_batch(mesh)

    def take(current, batch):
        on_devices = distributed.to_devices(batch, sharding)
        return prepared.take(current, on_devices, (), prepared.numbers)

    create = jax.jit(prepared.create, out_shardings=prepared.shardings)
    return take, lambda: create(stand_in.initialise())


def same(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_after_a_bad_batch_nothing_changes_any_more(stand_in, ready, bad):
    """Also not by the good batches that the host has begun before it knows."""
    take, create = ready
    current, _ = take(create(), stand_in.make_batch(0))
    before = jax.device_get(current)
    spoilt = stand_in.make_batch(1)
    spoilt["target"][5, 0] = bad
    current, metrics = take(current, spoilt)
    assert not metrics.is_finite
    assert same(jax.device_get(current), before.replace(is_finite=np.bool_(False)))
    current, metrics = take(current, stand_in.make_batch(2))
    assert metrics.is_finite  # of its own; the state stays as it was
    assert same(jax.device_get(current), before.replace(is_finite=np.bool_(False)))


def test_a_good_batch_changes_all_that_trains(stand_in, ready):
    take, create = ready
    before = jax.device_get(create())
    after, metrics = take(create(), stand_in.make_batch(0))
    after = jax.device_get(after)
    assert metrics.is_finite and after.is_finite and after.step == 1
    for name in ("params", "opt_state", "ema_params", "batch_stats"):
        assert not same(getattr(after, name), getattr(before, name)), name
    assert same(after.params["backbone"]["frozen"], before.params["backbone"]["frozen"])


def test_the_old_state_is_given_up(stand_in, ready):
    take, create = ready
    old = create()
    take(old, stand_in.make_batch(0))
    assert old.params["backbone"]["conv"]["kernel"].is_deleted()


@pytest.mark.parametrize("is_nesterov", [False, True])
@pytest.mark.parametrize("is_stored", [False, True])
def test_parameters_and_momentum_are_replaced_in_place(stand_in, tmp_path, is_nesterov, is_stored):
    """XLA copies what two operations read and replace: that would be all of both."""
    config = stand_in.make_config(**{"optimizer.nesterov": is_nesterov})
    abstract, mesh = jax.eval_shape(stand_in.initialise), distributed.make_mesh(1)
    programs = ProgramStore(tmp_path) if is_stored else None
    prepared = step.prepare_step(config, stand_in.loss_fn, abstract, mesh, programs)
    arguments = (prepared.shapes, stand_in.make_batch(0), (), prepared.numbers)
    program = prepared.take.lower(*arguments).compile()
    copied = re.findall(r"= f32\[\d\S* copy\(%(state_\w+)", program.as_text())
    assert not [text for text in copied if "params" in text or "trace" in text]


def test_a_stored_step_is_the_same(stand_in, tmp_path, count_traces):
    """On one device a later process finds it traced; another configuration has another."""

    def train(workdir, programs, **changes):
        config = stand_in.make_config(total_steps=3, **{"optimizer.ema_decay": 0.9}, **changes)
        with count_traces() as traced:
            outcome = stand_in.train(config, tmp_path / workdir, programs=programs)
        return jax.device_get(outcome.state), "train_step" in traced

    expected, is_traced = train("own", None)
    assert is_traced
    for number in range(2):
        state, is_traced = train(f"stored{number}", ProgramStore(tmp_path / "programs"))
        for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
        assert is_traced == (number == 0)
    state, _ = train("resumed", ProgramStore(tmp_path / "programs"), **{"optimizer.nesterov": True})
    assert not same(state.params, expected.params)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_among_many_is_found(bad):
    tree = {"a": np.ones((3, 4), np.float32), "n": np.int32(2), "b": np.float32(3e38)}
    check = jax.jit(step.all_finite)
    assert check(tree)
    tree["a"][1, 2] = bad
    assert not check(tree)
