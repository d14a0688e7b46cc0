"""Winograd convolution against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.ops import winograd


def _plain(x, kernel, dilation, bias=None, is_rectified=False):
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = x if bias is None else x + bias[None, None, None]
    return jnp.maximum(x, 0) if is_rectified else x


def _assert_same(batch, height, width, dilation, channels=5, features=3):
    rng = np.random.default_rng(height * 100 + width)
    x = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, features)).astype(np.float32)
    expected = _plain(x, kernel, dilation)
    actual = jax.jit(winograd.convolve_3x3, static_argnums=2)(x, kernel, dilation)
    assert actual.shape == expected.shape
    # Rounding of sums of 45 products, amplified by transforms with factors up to 8.
    np.testing.assert_allclose(actual, expected, atol=2e-5 * float(jnp.abs(expected).max()))


def _assert_same_gradients(batch, height, width, dilation):
    rng = np.random.default_rng(height * 100 + width)
    x = rng.normal(size=(batch, height, width, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    cotangent = rng.normal(size=(batch, height, width, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)

    def gradients(convolve):
        def of_sum(x, kernel, bias):
            plain = convolve(x, kernel, dilation)
            rectified = convolve(x, kernel, dilation, bias, True)
            return ((plain + 0.5 * rectified) * cotangent).sum()

        return jax.jit(jax.grad(of_sum, argnums=(0, 1, 2)))(x, kernel, bias)

    pairs = zip(gradients(winograd.convolve_3x3), gradients(_plain), strict=True)
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected, atol=3e-5 * float(jnp.abs(expected).max()))


@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    dilation=st.integers(1, 4),
)
@settings(max_examples=12, deadline=None)
def test_equals_the_plain_convolution(batch, height, width, dilation):
    _assert_same(batch, height, width, dilation)


@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    dilation=st.integers(1, 4),
)
@settings(max_examples=6, deadline=None)
def test_gradients_equal_those_of_the_plain_convolution(batch, height, width, dilation):
    _assert_same_gradients(batch, height, width, dilation)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_maps_that_go_through_in_bands(monkeypatch, batch, dilation):
    monkeypatch.setattr(winograd, "_TILES_AT_ONCE", 12)
    jax.clear_caches()
    _assert_same(batch, 41, 13, dilation)
    _assert_same_gradients(batch, 41, 13, dilation)


def test_bands_waste_no_rows_where_they_can():
    assert winograd._rows_at_once(46, 84) == 2  # 3 and 4 would make 48
    assert winograd._rows_at_once(23, 42) == 8  # 3 bands: 24, as with 6
    assert winograd._rows_at_once(7, 56) == 7
    assert winograd._rows_at_once(5, 10_000) == 1


def test_small_maps_and_wide_dilations_are_left_to_the_plain_form():
    assert winograd.is_worth_while((1, 184, 336, 256), 256, 3)
    assert not winograd.is_worth_while((8, 28, 28, 256), 256, 12)  # mostly surplus
    assert not winograd.is_worth_while((1, 23, 42, 512), 512, 1)  # few tiles
    assert not winograd.is_worth_while((1, 184, 336, 3), 64, 1)


def test_refuses_other_kernels():
    with pytest.raises(ValueError, match="kernel"):
        winograd.convolve_3x3(jnp.ones((1, 4, 4, 2)), jnp.ones((5, 5, 2, 2)))
