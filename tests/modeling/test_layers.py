"""Layers against recorded PyTorch numbers, and that padding a map changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.modeling import layers
from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.ops import interpolate, winograd


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "stride", "dilation", "padding"),
    [("k3_d6", 1, 6, 6), ("k3_s2", 2, 1, 1), ("k16_s16", 16, 1, 0), ("k7_s2", 2, 1, 3)],
)
def test_convolve_matches_pytorch(golden, case, stride, dilation, padding):
    x = golden[f"conv/{case}/input"].transpose(0, 2, 3, 1)
    kernel = golden[f"conv/{case}/weight"].transpose(2, 3, 1, 0)
    expected = golden[f"conv/{case}/output"].transpose(0, 2, 3, 1)
    actual = layers.convolve(
        jnp.asarray(x), jnp.asarray(kernel), stride=stride, dilation=dilation, padding=padding
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dilation", [5, 6, 56])  # reaching the edge, just beyond it, far beyond it
def test_dilated_convolution_equals_its_definition(dilation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 2)).astype(np.float32)
    expected = np.zeros((1, 6, 6, 2), np.float32)
    for dy in range(3):
        for dx in range(3):
            for y in range(6):
                for col in range(6):
                    row, column = y + (dy - 1) * dilation, col + (dx - 1) * dilation
                    if 0 <= row < 6 and 0 <= column < 6:
                        expected[0, y, col] += x[0, row, column] @ kernel[dy, dx]
    np.testing.assert_allclose(
        layers.convolve(x, kernel, dilation=dilation), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("channels", "features", "groups", "stride", "dilation"),
    [
        (24, 48, 12, 2, 1),  # 2 channels each, four groups joined
        (40, 80, 2, 1, 9),  # 20 channels each, enough alone; reaching beyond the map
    ],
)
def test_a_convolution_of_groups_is_one_for_each(
    channels, features, groups, stride, dilation, monkeypatch
):
    monkeypatch.setattr(winograd, "is_worth_while", lambda *_: True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 9, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels // groups, features)).astype(np.float32)
    options = {"stride": stride, "dilation": dilation}

    def one_by_one(x, kernel):
        parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([layers.convolve(*part, **options) for part in parts], axis=-1)

    def gradients(function):
        return jax.grad(lambda *arrays: jnp.square(function(*arrays)).sum(), (0, 1))(x, kernel)

    expected, expected_gradients = one_by_one(x, kernel), gradients(one_by_one)
    for compute in (PLAIN, Compute(winograd=True), Compute(winograd=True, split_groups=True)):

        def together(x, kernel, compute=compute):
            return layers.convolve(x, kernel, groups=groups, compute=compute, **options)

        np.testing.assert_allclose(together(x, kernel), expected, rtol=1e-5, atol=1e-4)
        for actual, wanted in zip(gradients(together), expected_gradients, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * np.std(wanted))
    with pytest.raises(ValueError, match="channels in 5 groups do not fit"):
        layers.convolve(x, kernel, groups=5)


def test_a_first_convolution_on_blocks_of_pixels_equals_the_plain_one():
    """In value and gradients; a map of odd sides has no blocks."""
    rng = np.random.default_rng(0)
    x, kernel, weights = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 12, 18, 3), (7, 7, 3, 16), (2, 6, 9, 16))
    )

    def energy(x, kernel, compute):
        return (layers.convolve(x, kernel, stride=2, compute=compute) * weights).sum()

    @functools.partial(jax.jit, static_argnums=2)
    def value_and_gradients(x, kernel, compute):
        maps = layers.convolve(x, kernel, stride=2, compute=compute)
        return maps, jax.grad(energy, (0, 1))(x, kernel, compute)

    blocks = Compute(stem_blocks=True)
    plain, fast = (value_and_gradients(x, kernel, compute) for compute in (PLAIN, blocks))
    for actual, expected in zip(*map(jax.tree.leaves, (fast, plain)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-4)
    texts = [
        jax.jit(functools.partial(layers.convolve, stride=2, compute=blocks))
        .lower(jax.ShapeDtypeStruct((1, side, 18, 3), jnp.float32), kernel)
        .as_text()
        for side in (12, 13)
    ]
    assert ["tensor<4x4x12x16xf32>" in text for text in texts] == [True, False]


def test_strided_pointwise_convolution_equals_the_general_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(1, 1, 3, 5)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layers.convolve(x, kernel, stride=2), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_group_norm_matches_pytorch(golden):
    x = golden["norm/input"].transpose(0, 2, 3, 1)
    params = {"scale": golden["norm/weight"], "bias": golden["norm/bias"]}
    actual = layers.GroupNorm().apply({"params": params}, jnp.asarray(x))
    expected = golden["norm/group32"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("module", [layers.BatchNorm(), layers.FrozenBatchNorm()])
def test_batch_norms_match_pytorch_in_evaluation(golden, module):
    x = golden["norm/input"].transpose(0, 2, 3, 1)
    variables = {
        "params": {"scale": golden["norm/weight"], "bias": golden["norm/bias"]},
        "batch_stats": {
            "mean": golden["norm/running_mean"],
            "var": golden["norm/running_var"],
            "count": np.int32(0),
        },
    }
    actual = module.apply(variables, jnp.asarray(x))
    expected = golden["norm/batch_eval"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
def test_batch_norm_matches_pytorch_in_training(golden):
    x = golden["norm/input"].transpose(0, 2, 3, 1)
    variables = {
        "params": {"scale": golden["norm/weight"], "bias": golden["norm/bias"]},
        "batch_stats": {
            "mean": golden["norm/running_mean"],
            "var": golden["norm/running_var"],
            "count": np.int32(3),
        },
    }
    actual, updated = layers.BatchNorm().apply(
        variables, jnp.asarray(x), True, mutable=["batch_stats"]
    )
    stats = updated["batch_stats"]
    expected = golden["norm/batch_train"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], golden["norm/batch_train_running_mean_after"], 1e-5)
    np.testing.assert_allclose(stats["var"], golden["norm/batch_train_running_var_after"], 1e-5)
    assert stats["count"] == 4


def test_frozen_batch_norm_gets_no_gradient():
    x = jnp.ones((1, 2, 2, 3))
    module = layers.FrozenBatchNorm()
    variables = module.init(jax.random.key(0), x)
    gradient = jax.grad(lambda params: module.apply({**variables, "params": params}, x).sum())(
        variables["params"]
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel_size=st.sampled_from([1, 3, 7]),
    stride=st.sampled_from([1, 2]),
    norm=st.sampled_from(["", "GN", "BN", "FrozenBN"]),
)
@settings(max_examples=12, deadline=None)
def test_conv_norm_is_blind_to_padding(height, width, kernel_size, stride, norm):
    rng = np.random.default_rng(height * 10 + width)
    module = layers.ConvNorm(32, kernel_size, stride, norm=norm)
    small = rng.normal(size=(1, height, width, 2)).astype(np.float32)
    padded = rng.normal(size=(1, height + 3, width + 4, 2)).astype(np.float32)  # garbage outside
    padded[:, :height, :width] = small
    variables = module.init(jax.random.key(0), small)
    expected = module.apply(variables, small)
    actual = module.apply(variables, padded, jnp.array([[height, width]]))
    actual = actual[:, : expected.shape[1], : expected.shape[2]]
    # Sums in another order; the variance of a single cell is 0, which amplifies rounding.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_replicated_edge_makes_interpolation_blind_to_padding():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 6, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=9)
    expected = interpolate.resize_bilinear(x, (10, 12))
    replicated = layers.replicate_edge(jnp.asarray(padded), jnp.array([[5, 6]]))
    actual = interpolate.resize_bilinear(replicated, (16, 16))[:, :10, :12]
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="33 channels"):
        layers.GroupNorm().init(jax.random.key(0), jnp.ones((1, 2, 2, 33)))


def test_rectifying_is_the_librarys_relu():
    x = jnp.array([-2.0, 0.0, 3.0, np.nan, np.inf])
    np.testing.assert_array_equal(layers.rectify(x), jax.nn.relu(x))
    ours, theirs = (jax.vmap(jax.grad(f))(x) for f in (layers.rectify, jax.nn.relu))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(theirs, [0, 0, 1, 0, 1])
