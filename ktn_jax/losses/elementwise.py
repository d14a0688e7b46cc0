"""Elementwise losses, and sums that leave padding out."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

_LOG_2_PI = math.log(2 * math.pi)


def smooth_l1(prediction: Array, target: Array, beta: float) -> Array:
    """Computes the smooth L1 distance: quadratic below `beta`, linear above.

    Args:
        prediction: [...].
        target: the same shape.
        beta: where the two join; 0 gives the plain L1, 1 is PyTorch's `smooth_l1_loss`.

    Returns:
        [...], not reduced.

    Raises:
        ValueError: `beta` is negative.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    difference = prediction - target
    # PyTorch's slope at 0 is 0; that of jnp.abs is 1.
    distance = difference * jax.lax.stop_gradient(jnp.sign(difference))
    if beta == 0:
        return distance
    return jnp.where(distance < beta, 0.5 * difference**2 / beta, distance - 0.5 * beta)


def binary_cross_entropy(logits: Array, is_positive: Array) -> Array:
    """Computes the binary cross-entropy of logits [...] and labels of the same shape: [...]."""
    return jax.nn.softplus(logits) - jnp.where(is_positive, logits, 0)


def softmax_cross_entropy(logits: Array, labels: Array, axis: int = -1) -> Array:
    """Computes -log softmax(logits)[labels].

    Args:
        logits: [..., C, ...], the classes at `axis`.
        labels: int, the shape of `logits` without `axis`, in [0, C). Beyond it no logit is read,
            and the result is the log of the sum of the exponentials.
        axis: of the classes.

    Returns:
        The shape of `labels`, not reduced.

    Raises:
        ValueError: shapes do not fit.
    """
    axis %= logits.ndim
    if labels.shape != logits.shape[:axis] + logits.shape[axis + 1 :]:
        raise ValueError(f"labels {labels.shape} do not fit logits {logits.shape}, axis {axis}")
    # Reading by comparison keeps the gradient free of scatters.
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis)
    is_label = classes == jnp.expand_dims(labels.astype(jnp.int32), axis)
    own = jnp.where(is_label, logits, 0).sum(axis)
    return jax.nn.logsumexp(logits, axis=axis) - own


def isotropic_gaussian_nll(
    delta_u: Array, delta_v: Array, sigma: Array, min_variance: float
) -> Array:
    """Negative log-likelihood of residuals with one variance for U and V.

    Neverova et al., "Correlated Uncertainty for Learning Dense Correspondences from Noisy Labels",
    NeurIPS 2019, the model of independent, identically distributed isotropic residuals.

    Args:
        delta_u: [...] predicted minus annotated U.
        delta_v: [...] the same of V.
        sigma: [...] the variance before softplus.
        min_variance: added to the variance, so that its logarithm is bounded below.

    Returns:
        [...], not reduced. It can be negative.
    """
    variance = jax.nn.softplus(sigma) + min_variance
    distance = delta_u**2 + delta_v**2
    return 0.5 * (_LOG_2_PI + 2 * jnp.log(variance) + distance / variance)


def anisotropic_gaussian_nll(
    delta_u: Array,
    delta_v: Array,
    sigma: Array,
    kappa_u: Array,
    kappa_v: Array,
    min_variance: float,
) -> Array:
    """Negative log-likelihood of residuals that vary more along (kappa_u, kappa_v).

    The same paper's model of independent anisotropic residuals: the covariance is
    variance * I + k k^T with k = (kappa_u, kappa_v).

    Args:
        delta_u: [...] predicted minus annotated U.
        delta_v: [...] the same of V.
        sigma: [...] the variance before softplus.
        kappa_u: [...].
        kappa_v: [...].
        min_variance: added to the variance.

    Returns:
        [...], not reduced.
    """
    variance = jax.nn.softplus(sigma) + min_variance
    determinant = variance * (variance + kappa_u**2 + kappa_v**2)
    distance = delta_u**2 + delta_v**2
    along = (delta_u * kappa_u + delta_v * kappa_v) ** 2
    return 0.5 * (_LOG_2_PI + jnp.log(determinant) + distance / variance - along / determinant)


def weighted_sum(values: Array, weights: Array) -> Array:
    """Sums values [...] times weights of the same shape; values of weight 0 may be NaN."""
    return jnp.where(weights != 0, values * weights, 0).sum()
