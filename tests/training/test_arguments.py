"""Numbers that change nothing in a step's shape are arguments of its program, not constants."""

import jax
import numpy as np
import pytest

from ktn_jax.configs import ktn
from ktn_jax.data_pipelines.loading.configured import training_batch_spec
from ktn_jax.training import abstract_step, distributed, loss_numbers, step

# Other values of every number that is an argument, but for those of embedding models.
_NUMBERS = {
    "seed": 7,
    "total_steps": 50,
    "optimizer.learning_rate": 0.123,
    "optimizer.weight_decay": 0.0321,
    "optimizer.momentum": 0.5,
    "optimizer.clip_value": 3.0,
    "optimizer.warmup_steps": 2,
    "optimizer.warmup_factor": 0.25,
    "optimizer.decay_steps": (3, 11),
    "optimizer.decay_factor": 0.7,
    "optimizer.ema_decay": 0.6,
    "optimizer.rate_factors": (("backbone/", 0.125),),
}
_BASE = {
    "optimizer.clip": "norm",
    "optimizer.ema_decay": 0.9,
    "optimizer.rate_factors": (("backbone/", 0.5),),
}


def _text(stand_in, **changes):
    config = stand_in.make_config(**{**_BASE, **changes})
    abstract, mesh = jax.eval_shape(stand_in.initialise), distributed.make_mesh(1)
    prepared = step.prepare_step(config, stand_in.loss_fn, abstract, mesh)
    batch = stand_in.make_batch(0)
    return prepared.take.lower(prepared.shapes, batch, (), prepared.numbers).as_text()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_other_numbers_of_an_optimizer_need_no_other_program(stand_in, name):
    chosen = {"optimizer.name": name}
    assert _text(stand_in, **chosen, **_NUMBERS) == _text(stand_in, **chosen)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.nesterov": True},
        {"optimizer.clip": "value"},
        {"optimizer.schedule": "cosine"},
        {"optimizer.weight_decay": 0.0},
        {"optimizer.ema_decay": 0.0},
        {"optimizer.rate_factors": ()},
    ],
)
def test_other_operations_need_another_program(stand_in, changes):
    assert _text(stand_in, **changes) != _text(stand_in)


def test_a_step_with_the_numbers_of_another_configuration_is_that_configurations(stand_in):
    """One program, given the numbers of either, does what each one's own program does."""
    mesh, abstract = distributed.make_mesh(1), jax.eval_shape(stand_in.initialise)
    first, second = (
        step.prepare_step(stand_in.make_config(**changes), stand_in.loss_fn, abstract, mesh)
        for changes in (_BASE, {**_BASE, **_NUMBERS, "seed": 0})
    )

    def train(take, numbers):
        state = jax.jit(second.create)(stand_in.initialise())
        for number in range(4):
            state, _ = take(state, stand_in.make_batch(number), (), numbers)
        return jax.device_get(state)

    borrowed, own = (train(take, second.numbers) for take in (first.take, second.take))
    jax.tree.map(np.testing.assert_array_equal, borrowed, own)
    others = train(first.take, first.numbers)
    kernel = others.params["backbone"]["conv"]["kernel"]
    assert np.abs(kernel - own.params["backbone"]["conv"]["kernel"]).max() > 1e-3


@pytest.mark.extended  # traces a detector twice
def test_other_weights_of_losses_need_no_other_program():
    config = ktn.get_config("tiny")
    other = ktn.get_config("tiny")
    for number, key in enumerate(sorted(loss_numbers.loss_numbers(config.loss))):
        section, _, name = key.rpartition(".")
        parent = other.loss[section] if section else other.loss
        if isinstance(parent[name], float):
            parent[name] = 0.01 * (number + 2)
    other.loss.images_per_device = 7
    mesh = distributed.make_mesh(1)
    texts = []
    for each in (config, other):
        spec = training_batch_spec(each, (64, 64))
        prepared = abstract_step.abstract_step(each, mesh, spec)
        texts.append(prepared.take.lower(*prepared.arguments).as_text())
    assert texts[0] == texts[1]


def test_arguments_replace_the_numbers_of_a_configuration():
    loss = ktn.get_config("tiny").loss
    loss.pixel_cycle.weight, loss.stage_weights = 0.25, (1.0, 0.5)
    numbers = loss_numbers.loss_numbers(loss)
    assert numbers["pixel_cycle.weight"] == np.float32(0.25)
    assert "shape_cycle.weight" not in numbers  # 0: the loss is not computed
    np.testing.assert_array_equal(numbers["stage_weights"], [1, 0.5])
    doubled = {key: 2 * value for key, value in numbers.items()}
    replaced = loss_numbers.with_numbers(loss, doubled)
    assert replaced.point_weight == np.float32(0.02) and loss.point_weight == 0.01
    assert replaced.pixel_cycle.weight == 0.5 and replaced.pixel_cycle.norm == 2
    assert loss_numbers.with_numbers(loss, None) is loss
