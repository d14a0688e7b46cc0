"""Adam against what its first step must be, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.configs import base
from ktn_jax.training import optimizer


def _first_step(params, gradients, **settings):
    config = base.get_config()
    config.optimizer.update(
        {"name": "adam", "learning_rate": 0.5, "warmup_steps": 0, "schedule": "cosine", **settings}
    )
    config.model.backbone.freeze_at = 0
    rule = optimizer.make_optimizer(config, params, {})
    updates, _ = rule.update(gradients, rule.init(params), params)
    return updates


def test_the_first_step_is_the_rate_whatever_the_gradient():
    params = {"layer": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
    gradients = {"layer": {"kernel": jnp.full((4, 2), 1e-3), "bias": jnp.float32([5, -7])}}
    updates = _first_step(params, gradients, weight_decay=0.0, weight_decay_bias=0.0)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.5, rtol=1e-4)
    np.testing.assert_allclose(updates["layer"]["bias"], [-0.5, 0.5], rtol=1e-4)


def test_decay_is_decoupled_from_the_moments():
    params = {"layer": {"kernel": jnp.full((4, 2), 3.0), "bias": jnp.zeros(2)}}
    gradients = {"layer": {"kernel": jnp.full((4, 2), 1e-3), "bias": jnp.ones(2)}}
    updates = _first_step(params, gradients, weight_decay=0.1, weight_decay_bias=0.1)
    # Coupled, the decay would only change the sign that Adam follows: -0.5.
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.5 * (1 + 0.1 * 3), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "factor"), [((3, 3, 2, 5), 1), ((64, 5), 0.5), ((3, 3, 64, 8), 32 / 576)]
)
def test_kernels_of_many_inputs_move_in_proportion(shape, factor):
    params = {"layer": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}}
    gradients = {"layer": {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[-1])}}
    updates = _first_step(params, gradients, full_rate_inputs=32)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.5 * factor, rtol=1e-4)
    np.testing.assert_allclose(updates["layer"]["bias"], -0.5, rtol=1e-4)


def test_unknown_optimizers_are_refused():
    config = base.get_config()
    config.optimizer.name = "lion"
    params = {"layer": {"kernel": jnp.zeros((2, 2))}}
    with pytest.raises(ValueError, match="optimizer.name 'lion'"):
        optimizer.make_optimizer(config, params, {})
