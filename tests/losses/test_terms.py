"""Terms of losses: means that leave out what has no weight, and add up over parts."""

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.losses import terms


def mean(values, weights):
    return terms.weighted_mean(values, weights).value


def test_a_mean_does_not_read_what_has_no_weight():
    values = jnp.array([1.0, 4.0, jnp.nan])
    weights = jnp.array([1.0, 3.0, 0.0])
    value, gradient = jax.value_and_grad(mean)(values, weights)
    assert value == 13 / 4
    np.testing.assert_allclose(gradient, [0.25, 0.75, 0])


def test_a_mean_of_nothing_is_zero_with_zero_gradient():
    value, gradient = jax.value_and_grad(mean)(jnp.ones(3), jnp.zeros(3))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_parts_of_different_weight_add_up_to_the_whole():
    """The mean of the parts' means would be 2.75, and a part without evidence would count 0."""
    values, weights = jnp.array([1.0, 1.0, 4.0, 9.0]), jnp.array([2.0, 1.0, 1.0, 0.0])
    parts = [
        terms.weighted_mean(values[rows], weights[rows])
        .scaled(3.0)
        .learnt_from(weights[rows].sum())
        for rows in (slice(0, 2), slice(2, 3), slice(3, 4))
    ]
    whole = jax.tree.map(lambda *fields: sum(fields), *parts)
    np.testing.assert_allclose(whole.value, 3 * 7 / 4, rtol=1e-6)
    assert whole.learnt_from(jnp.zeros(())).value == 0
