import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from ktn_jax.ops import interpolate

FIXED = settings(deadline=None, derandomize=True, max_examples=30)
RESIZE = {
    "bilinear": jax.jit(interpolate.resize_bilinear, static_argnums=1),
    "nearest": jax.jit(interpolate.resize_nearest, static_argnums=1),
}
read_points = jax.jit(interpolate.read_points)
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


class TestReadPoints:
    """Reads of estimated boxes' maps at points annotated in ground-truth boxes."""

    @staticmethod
    def padded(golden, fill):
        """The recorded points as rows per box, filled up to 32 with points of value `fill`."""
        owner = golden["points/index_bbox"]
        slots = np.full((3, 32), -1)
        for box in range(3):
            members = np.flatnonzero(owner == box)
            slots[box, : len(members)] = members
        is_real = slots >= 0
        columns = [golden[f"points/{name}"][slots] for name in ("x_norm", "y_norm", "index_gt")]
        x, y, channel = [np.where(is_real, column, fill) for column in columns]
        arrays = x.astype(np.float32), y.astype(np.float32), channel.astype(np.int32)
        return arrays, slots, is_real

    @staticmethod
    def boxes(golden):
        both = [golden[f"points/bbox_xywh_{which}"] for which in ("gt", "est")]
        return [np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1) for xywh in both]

    @pytest.mark.parity
    @pytest.mark.parametrize("fill", [0, 999])
    def test_matches_pytorch(self, golden, fill):
        (x, y, channel), slots, is_real = self.padded(golden, fill)
        maps, boxes = nhwc(golden["points/z"]), self.boxes(golden)
        values, is_valid = read_points(maps, x, y, *boxes, channel)
        every, is_valid_too = read_points(maps, x, y, *boxes)
        np.testing.assert_array_equal(is_valid, is_valid_too)
        np.testing.assert_array_equal(
            np.asarray(is_valid)[is_real], golden["points/j_valid"][slots[is_real]]
        )
        used = np.asarray(is_valid) & is_real
        assert 0 < used.sum() < is_real.sum()  # the recording has points outside, too
        for actual, name in ((values, "extracted"), (every, "extracted_all")):
            expected = golden[f"points/{name}"][slots[used]]
            np.testing.assert_allclose(np.asarray(actual)[used], expected, atol=1e-5)
        assert not np.asarray(values)[~np.asarray(is_valid)].any()

    def test_one_channel_is_a_column_of_all(self):
        maps, boxes = normal(2, 6, 8, 5), np.array([[0, 0, 10, 20], [5, 5, 30, 40]], np.float32)
        x, y = np.random.default_rng(3).uniform(0, 256, (2, 2, 7)).astype(np.float32)
        channel = np.random.default_rng(4).integers(0, 5, (2, 7)).astype(np.int32)
        one, _ = read_points(maps, x, y, boxes, boxes, channel)
        every, _ = read_points(maps, x, y, boxes, boxes)
        np.testing.assert_allclose(
            one, np.take_along_axis(np.asarray(every), channel[..., None], 2)[..., 0], atol=1e-6
        )

    def test_a_linear_map_is_read_without_a_half_pixel_shift(self):
        maps = np.tile(np.arange(8, dtype=np.float32)[None, None, :, None], (1, 8, 1, 1))
        box = np.array([[10, 20, 50, 60]], np.float32)
        x = np.array([[0, 32, 80, 224, 255, 256]], np.float32)
        values, is_valid = read_points(maps, x, np.full_like(x, 100), box, box)
        # 256 is the right border: outside, as the box is half-open. Past cell 7, cell 7.
        np.testing.assert_allclose(values[0, :, 0], [0, 1, 2.5, 7, 7, 0], atol=1e-5)
        np.testing.assert_array_equal(is_valid[0], [1, 1, 1, 1, 1, 0])

    def test_gradient_reaches_four_cells_of_one_channel_and_skips_what_is_outside(self):
        box = np.array([[0, 0, 8, 8], [0, 0, 0, 0]], np.float32)  # the second is padding
        x = np.array([[48, 300], [0, 0]], np.float32)  # 1.5 cells; outside
        channel = np.array([[2, 1], [0, 0]], np.int32)
        gradient = jax.jit(jax.grad(lambda m: read_points(m, x, x, box, box, channel)[0].sum()))(
            np.zeros((2, 8, 8, 3), np.float32)
        )
        expected = np.zeros((2, 8, 8, 3))
        expected[0, 1:3, 1:3, 2] = 0.25
        np.testing.assert_allclose(gradient, expected)
        maps = normal(2, 8, 8, 3)
        by_box = jax.jit(jax.grad(lambda b: read_points(maps, x, x, b, b, channel)[0].sum()))(box)
        assert np.isfinite(by_box).all()

    def test_no_boxes_and_wrong_shapes(self):
        values, is_valid = read_points(
            jnp.zeros((0, 8, 8, 3)), *[jnp.zeros((0, 5))] * 2, *[jnp.zeros((0, 4))] * 2
        )
        assert values.shape == (0, 5, 3) and is_valid.shape == (0, 5)
        maps, points, boxes = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 5)), jnp.zeros((2, 4))
        for arguments, message in (
            ((maps, points[0], points, boxes, boxes), "points"),
            ((maps, points, points, boxes[:1], boxes), "boxes"),
            ((maps, points, points, boxes, boxes, jnp.zeros((2, 4), int)), "channel"),
        ):
            with pytest.raises(ValueError, match=message):
                interpolate.read_points(*arguments)


class TestResampleChart:
    """Annotated 256 x 256 charts, read on a grid over an estimated box."""

    nearest = staticmethod(jax.jit(interpolate.resample_chart_nearest, static_argnums=3))

    @pytest.mark.parity
    @pytest.mark.parametrize("size", [56, 112])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_nearest_matches_pytorch(self, golden, size, dtype):
        charts = golden["resample/segm"][:, 0].astype(dtype)
        actual = self.nearest(charts, *TestReadPoints.boxes(golden), (size, size))
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, golden[f"resample/nearest_zeros_{size}"])

    @FIXED
    @given(st.integers(-100, 100), st.integers(-100, 100))
    def test_outside_the_source_is_background(self, dx, dy):
        charts = np.full((1, 16, 16), 3, np.uint8)
        source = np.array([[0, 0, 64, 64]], np.float32)
        shift = np.array([[dx, dy, dx, dy]], np.float32)
        actual = np.asarray(self.nearest(charts, source, source + shift, (8, 8)))[0]
        # Half a source cell (64 / 15 / 2) beyond the border still rounds to the border's cell.
        cells = np.arange(8) * 8
        inside = [(cells + d > -64 / 30) & (cells + d < 64 + 64 / 30) for d in (dy, dx)]
        np.testing.assert_array_equal(actual, 3 * (inside[0][:, None] & inside[1]))

    def test_padding_is_finite_and_shapes_are_checked(self):
        charts, boxes = jnp.ones((2, 16, 16)), jnp.zeros((2, 4))
        assert np.isfinite(self.nearest(charts, boxes, boxes, (8, 8))).all()
        with pytest.raises(ValueError, match="charts"):
            self.nearest(charts, boxes[:1], boxes, (8, 8))
