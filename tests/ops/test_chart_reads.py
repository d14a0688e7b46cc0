"""Reads of charts at points, and of part masks in boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.ops import chart_reads

FIXED = settings(deadline=None, derandomize=True, max_examples=30)
read_points = jax.jit(chart_reads.read_points)


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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
                chart_reads.read_points(*arguments)


class TestResampleChart:
    """Annotated 256 x 256 charts, read on a grid over an estimated box."""

    nearest = staticmethod(jax.jit(chart_reads.resample_chart_nearest, static_argnums=3))

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
