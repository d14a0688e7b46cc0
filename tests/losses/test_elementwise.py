"""Losses of single values against numbers of the original and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.losses import elementwise


@pytest.mark.parity
@pytest.mark.parametrize(
    "beta,name",
    [
        (0.0, "fvcore_beta0.0"),
        (0.1, "fvcore_beta0.1"),
        (1.0, "fvcore_beta1.0"),
        (1.0, "torch_none"),
    ],
)
def test_smooth_l1_equals_fvcore_and_torch(golden, beta, name):
    actual = elementwise.smooth_l1(golden["smooth_l1/input"], golden["smooth_l1/target"], beta)
    np.testing.assert_allclose(actual, golden[f"smooth_l1/{name}"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_smooth_l1_has_the_slope_of_its_parts(beta):
    slope = jax.vmap(jax.grad(lambda x: elementwise.smooth_l1(x, 0.0, beta)))
    x = jnp.array([-3.0, -0.05, 0.0, 0.05, 3.0])
    inner = np.sign(x) if beta == 0 else np.asarray(x) / beta
    expected = np.where(np.abs(x) < beta, inner, np.sign(x))
    np.testing.assert_allclose(slope(x), expected, rtol=1e-6)


def test_smooth_l1_refuses_a_negative_beta():
    with pytest.raises(ValueError, match="-1"):
        elementwise.smooth_l1(jnp.ones(2), jnp.ones(2), -1)


def test_binary_cross_entropy_is_the_logarithm_of_the_probability():
    logits = jnp.array([-2.0, 0.0, 3.0])
    probability = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    for is_positive, right in ((True, probability), (False, 1 - probability)):
        actual = elementwise.binary_cross_entropy(logits, jnp.full(3, is_positive))
        np.testing.assert_allclose(actual, -np.log(right), rtol=1e-6)
    sure = elementwise.binary_cross_entropy(jnp.array([1e4, -1e4]), jnp.array([False, True]))
    np.testing.assert_allclose(sure, [1e4, 1e4])


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax_cross_entropy_is_the_logarithm_of_the_probability(axis):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 6)).astype(np.float32) * 3
    labels = rng.integers(0, logits.shape[axis], np.delete(logits.shape, axis))
    powers = np.exp(logits.astype(np.float64))
    probability = powers / powers.sum(axis, keepdims=True)
    right = np.take_along_axis(probability, np.expand_dims(labels, axis), axis).squeeze(axis)
    actual = elementwise.softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), axis)
    np.testing.assert_allclose(actual, -np.log(right), rtol=1e-5, atol=1e-6)


def test_softmax_cross_entropy_has_the_gradient_of_softmax():
    logits, labels = jnp.array([[1.0, 2.0, 0.5], [1e4, 0.0, -1e4]]), jnp.array([2, 1])

    def total(logits):
        return elementwise.softmax_cross_entropy(logits, labels).sum()

    expected = np.asarray(jax.nn.softmax(logits)) - np.eye(3)[labels]
    np.testing.assert_allclose(jax.grad(total)(logits), expected, atol=1e-6)


def test_softmax_cross_entropy_refuses_other_shapes():
    with pytest.raises(ValueError, match="labels"):
        elementwise.softmax_cross_entropy(jnp.ones((2, 3)), jnp.zeros((3,), int))


@pytest.mark.parity
def test_gaussian_likelihoods_equal_the_original(golden):
    u, v, sigma, kappa_u, kappa_v = (
        golden[f"uv_confidence/{name}"] for name in ("u", "v", "sigma", "kappa_u", "kappa_v")
    )
    target_u, target_v = golden["smooth_l1/input"], golden["smooth_l1/target"]
    deltas = (u - target_u, v - target_v)
    isotropic = elementwise.isotropic_gaussian_nll(*deltas, sigma, 0.01).sum()
    np.testing.assert_allclose(isotropic, golden["uv_confidence/iid_iso"], rtol=1e-5)
    anisotropic = elementwise.anisotropic_gaussian_nll(*deltas, sigma, kappa_u, kappa_v, 0.01)
    np.testing.assert_allclose(anisotropic.sum(), golden["uv_confidence/indep_aniso"], rtol=1e-5)


def test_gaussian_likelihoods_are_those_of_the_covariance():
    delta, sigma, kappa = np.array([0.3, -0.2]), -0.5, np.array([0.4, 0.7])
    variance = np.log1p(np.exp(sigma)) + 0.01
    for actual, covariance in (
        (elementwise.isotropic_gaussian_nll(*delta, sigma, 0.01), variance * np.eye(2)),
        (
            elementwise.anisotropic_gaussian_nll(*delta, sigma, *kappa, 0.01),
            variance * np.eye(2) + np.outer(kappa, kappa),
        ),
    ):
        mahalanobis = delta @ np.linalg.inv(covariance) @ delta
        # The paper counts log 2 pi once, and so does the original.
        expected = 0.5 * (np.log(2 * np.pi) + np.log(np.linalg.det(covariance)) + mahalanobis)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
