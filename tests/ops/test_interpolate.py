import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from jax import lax

from ktn_jax.ops import interpolate

FIXED = settings(deadline=None, derandomize=True, max_examples=30)
RESIZE = {
    "bilinear": jax.jit(interpolate.resize_bilinear, static_argnums=1),
    "nearest": jax.jit(interpolate.resize_nearest, static_argnums=1),
}
conv_transpose = jax.jit(interpolate.conv_transpose, static_argnums=(2, 3))
max_pool = jax.jit(interpolate.max_pool, static_argnums=(1, 2, 3))


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parity
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (2, 1), (4, 0), (8, 0)])
def test_conv_transpose_matches_pytorch(golden, assert_rounding, stride, padding):
    case = f"deconv/k4s{stride}p{padding}"
    actual = conv_transpose(
        nhwc(golden[f"{case}/input"]),
        golden[f"{case}/weight"].transpose(2, 3, 0, 1),
        stride,
        padding,
        bias=golden[f"{case}/bias"],
    )
    assert_rounding(actual, nhwc(golden[f"{case}/output"]))


@pytest.mark.parametrize(
    ("kernel_hw", "stride", "padding"), [((4, 4), 2, 1), ((3, 5), 2, 1), ((2, 2), 3, 0)]
)
@pytest.mark.parametrize(("size", "channels"), [((7, 9), 3), ((8, 8), 60)])  # both its forms
def test_conv_transpose_is_the_adjoint_of_convolution(kernel_hw, stride, padding, size, channels):
    """<T x, y> = <x, C y>, in value and, as T is linear, in both gradients."""
    x, kernel = normal(2, *size, channels), normal(*kernel_hw, channels, 5, seed=1)

    def transpose(x, kernel):
        return conv_transpose(x, kernel, stride, padding)

    def convolution(y, kernel):
        return lax.conv_general_dilated(
            y,
            kernel.transpose(0, 1, 3, 2),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    y = normal(*jax.eval_shape(transpose, x, kernel).shape, seed=2)
    gradients = jax.jit(
        lambda x, kernel: (
            jax.grad(lambda x, k: jnp.vdot(transpose(x, k), y), (0, 1))(x, kernel),
            jax.grad(lambda x, k: jnp.vdot(x, convolution(y, k)), (0, 1))(x, kernel),
        )
    )
    for actual, expected in zip(*gradients(x, kernel), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "stride", "padding", "dilation"),
    [("k3_d6", 1, 6, 6), ("k3_s2", 2, 1, 1), ("k16_s16", 16, 0, 1), ("k7_s2", 2, 3, 1)],
)
def test_explicit_padding_is_pytorch_s_convolution(
    golden, assert_rounding, case, stride, padding, dilation
):
    """What modules rely on: XLA correlates, as PyTorch does, when padding is given in numbers."""
    actual = lax.conv_general_dilated(
        nhwc(golden[f"conv/{case}/input"]),
        golden[f"conv/{case}/weight"].transpose(2, 3, 1, 0),
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert_rounding(actual, nhwc(golden[f"conv/{case}/output"]))


@pytest.mark.parity
@pytest.mark.parametrize("size", [(33, 51), (5, 9), (1, 1), (14, 100), (1, 37)])
def test_resizing_matches_pytorch(golden, assert_rounding, size):
    actual = RESIZE["bilinear"](nhwc(golden["interp/input"]), size)
    assert_rounding(actual, nhwc(golden[f"interp/bilinear_{size[0]}x{size[1]}"]))


@pytest.mark.parity
def test_doubling_matches_pytorch(golden, assert_rounding):
    x = nhwc(golden["interp/input"])
    assert_rounding(interpolate.resize_bilinear(x, (28, 28)), nhwc(golden["interp/bilinear_x2"]))
    nearest = nhwc(golden["interp/nearest_x2"])
    np.testing.assert_array_equal(interpolate.upsample_nearest_x2(x), nearest)
    np.testing.assert_array_equal(interpolate.resize_nearest(x, (28, 28)), nearest)


@pytest.mark.parametrize("size", [(10, 14), (10, 7), (5, 14), (13, 3)])
def test_bilinear_equals_the_library(size):
    x = normal(2, 5, 7, 3)
    expected = jax.image.resize(x, (2, *size, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(interpolate.resize_bilinear(x, size), expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(10, 14), (3, 11), (1, 1)])
def test_gradients_of_resizing_are_the_transposed_weights(kind, size):
    """The gradient of a sum counts how much each cell was used: for constants, out / in each."""
    gradient = jax.jit(jax.grad(lambda x: RESIZE[kind](x, size).sum()))(normal(1, 5, 7, 2))
    np.testing.assert_allclose(gradient.sum(), 2 * size[0] * size[1], rtol=1e-5)
    shifted = RESIZE[kind](jnp.full((1, 5, 7, 2), 3.0), size)
    np.testing.assert_allclose(shifted, 3, rtol=1e-6)


@pytest.mark.parametrize("height", [1, 2, 5])
def test_gradients_of_doubling_are_the_librarys(height):
    x, cotangent = normal(2, height, 7, 3), normal(2, 2 * height, 14, 3)

    def gradient(resize):
        return jax.grad(lambda x: (resize(x) * cotangent).sum())(x)

    shape = cotangent.shape
    expected = gradient(lambda x: jax.image.resize(x, shape, "bilinear", antialias=False))
    actual = gradient(lambda x: interpolate.resize_bilinear(x, shape[1:3]))
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.parametrize(("size", "rows"), [(3, [0, 1, 3]), (7, [0, 0, 1, 2, 2, 3, 4])])
def test_nearest_floors(size, rows):
    x = jnp.arange(5.0)[None, :, None, None]
    np.testing.assert_array_equal(interpolate.resize_nearest(x, (size, 1))[0, :, 0, 0], rows)


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
def test_impossible_sizes_are_named(kind):
    with pytest.raises(ValueError, match="at least 1"):
        RESIZE[kind](jnp.zeros((1, 4, 4, 1)), (0, 3))
    with pytest.raises(ValueError, match="B, H, W, C"):
        RESIZE[kind](jnp.zeros((4, 4, 1)), (3, 3))


@pytest.mark.parity
def test_max_pool_matches_pytorch(golden):
    x = nhwc(golden["interp/input"])
    expected = nhwc(golden["interp/maxpool_k3s2p1"])
    np.testing.assert_array_equal(max_pool(x, 3, 2, 1), expected)
    expected = nhwc(golden["interp/maxpool_k1s2p0"])
    np.testing.assert_array_equal(max_pool(x, 1, 2, 0), expected)


@pytest.mark.parametrize("size", [(7, 9), (8, 8)])
def test_padding_never_wins_a_maximum(size):
    pooled = max_pool(jnp.full((1, *size, 1), -5.0), 3, 2, 1)
    assert pooled.shape == (1, (size[0] + 1) // 2, (size[1] + 1) // 2, 1)
    np.testing.assert_array_equal(pooled, jnp.full_like(pooled, -5))


@pytest.mark.parity
def test_moving_channels_matches_pytorch(golden):
    shuffled = interpolate.pixel_shuffle(nhwc(golden["pixel_shuffle/input"]))
    np.testing.assert_array_equal(shuffled, nhwc(golden["pixel_shuffle/output"]))
    folded = interpolate.space_to_depth(nhwc(golden["interp/input"]))
    np.testing.assert_array_equal(folded, nhwc(golden["space_to_depth/output"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpolate.conv_transpose(jnp.zeros((1, 4, 4, 2)), jnp.zeros((4, 4, 3, 1))), "2"),
        (
            lambda: interpolate.conv_transpose(
                jnp.zeros((1, 1, 1, 2)), jnp.zeros((2, 2, 2, 1)), 1, 1
            ),
            "nothing",
        ),
        (lambda: interpolate.max_pool(jnp.zeros((1, 4, 4, 2)), 3, 2, 2), "half"),
        (lambda: interpolate.pixel_shuffle(jnp.zeros((1, 4, 4, 6))), "divide"),
        (lambda: interpolate.space_to_depth(jnp.zeros((1, 4, 5, 2))), "even"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
