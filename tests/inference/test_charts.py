"""Charts and keypoints on the host, against recorded numbers of both originals."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktn_jax.inference import charts
from ktn_jax.results.iuv_pictures import quantise

pytestmark = pytest.mark.parity


def _maps(arrays, prefix, index):
    return [arrays[f"{prefix}/{name}"][index].transpose(1, 2, 0) for name in "SIUV"]


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("index", range(4))
def test_chart_equals_the_fork(golden, threshold, index):
    expected = golden[f"chart/fork_thresh{threshold}/{index}"]
    x, y, width, height = golden["chart/boxes_xywh"][index]
    box = np.float32([x, y, x + width, y + height])
    assert charts.box_size_hw(box) == expected.shape[1:]
    maps = _maps(golden, "chart", index)
    labels, uv = charts.chart_in_box(*maps, expected.shape[1:], threshold)
    np.testing.assert_array_equal(quantise(labels, uv), expected)


@pytest.mark.parametrize("case", ["coarse2", "coarse15"])
@pytest.mark.parametrize("index", range(4))
def test_chart_equals_upstream(golden_dir, case, index):
    arrays = np.load(golden_dir / "ops_upstream_chart.npz")
    expected = arrays[f"{case}/{index}/quantized"]
    assert charts.box_size_hw(arrays[f"{case}/boxes_xyxy"][index]) == expected.shape[1:]
    labels, uv = charts.chart_in_box(*_maps(arrays, case, index), expected.shape[1:])
    np.testing.assert_array_equal(labels, arrays[f"{case}/{index}/labels"])
    np.testing.assert_allclose(uv, arrays[f"{case}/{index}/uv"], atol=1e-6)
    np.testing.assert_array_equal(quantise(labels, uv), expected)


def test_keypoints_equal_the_original(golden):
    heatmaps = golden["keypoint/maps"].transpose(0, 2, 3, 1)
    actual = charts.decode_keypoints(heatmaps, golden["keypoint/rois"])
    # Positions are exact choices; the logit is a bicubic sum of 16 products in float32.
    np.testing.assert_allclose(actual, golden["keypoint/decoded"], rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("scale", [1e4, 1e6, 1e30, 3e38])
def test_keypoints_of_any_logits_are_finite(golden, scale):
    """Bicubic peaks above a map, and maps above their resized peak, both beyond exp()."""
    heatmaps = golden["keypoint/maps"].transpose(0, 2, 3, 1)
    heatmaps = np.float32(heatmaps / np.abs(heatmaps).max() * scale)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        actual = charts.decode_keypoints(heatmaps, golden["keypoint/rois"])
    assert np.isfinite(actual).all() and (actual[..., 3] >= 0).all()
    if scale < 1e37:  # a change of scale moves no peak
        expected = golden["keypoint/decoded"][..., :2]
        np.testing.assert_allclose(actual[..., :2], expected, rtol=1e-5, atol=5e-5)


def test_keypoints_of_infinite_logits_are_where_these_are():
    heatmaps = np.zeros((1, 4, 4, 2), np.float32)
    heatmaps[0, 1, 2, 0], heatmaps[0, 0, 0, 1] = np.inf, -np.inf
    decoded = charts.decode_keypoints(heatmaps, np.float32([[0, 0, 4, 4]]))
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(decoded[0, 0, :2], [2.5, 1.5])
    np.testing.assert_allclose(decoded[0, :, 3], [1, 1 / 15])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(33, 51), (5, 9), (1, 1), (14, 100), (1, 37)])
def test_resize_maps_equals_pytorch(golden, mode, size):
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
    expected = golden[f"interp/{mode}_{size[0]}x{size[1]}"]
    for image, reference in zip(golden["interp/input"], expected, strict=True):
        actual = charts.resize_maps(np.ascontiguousarray(image.transpose(1, 2, 0)), size, flag)
        np.testing.assert_allclose(actual, reference.transpose(1, 2, 0), atol=1e-5)


def test_threshold_needs_a_two_channel_mask():
    with pytest.raises(ValueError, match="two-channel mask, got 15"):
        charts.person_mask(np.zeros((2, 2, 15)), 0.3)


def test_mask_threshold_is_a_probability():
    logits = np.log(np.array([[[0.69, 0.31], [0.71, 0.29]]]))
    np.testing.assert_array_equal(charts.person_mask(logits, 0.3), [[True, False]])
    np.testing.assert_array_equal(charts.person_mask(logits, 0.5), [[False, False]])


def test_quantise_truncates_and_clips():
    uv = np.float32([[[-0.1, 0.5, 1.2]], [[0.999, 1 / 255, 0.0]]])
    labels = np.uint8([[1, 2, 3]])
    np.testing.assert_array_equal(
        quantise(labels, uv), [[[1, 2, 3]], [[0, 127, 255]], [[254, 1, 0]]]
    )


@given(st.floats(1, 500), st.floats(1, 500), st.floats(1, 2000), st.floats(1, 2000))
def test_rescaled_boxes_stay_in_the_image(width, height, to_width, to_height):
    boxes = np.float32([[0, 0, width, height], [0.25 * width, 0, width * 2, height * 3]])
    scaled, is_left = charts.rescale_boxes(boxes, (height, width), (to_height, to_width))
    np.testing.assert_allclose(scaled[0], [0, 0, to_width, to_height], rtol=1e-5)
    assert is_left.all()
    assert (scaled[1] <= scaled[0].astype(np.float64) * (1 + 1e-5)).all() or scaled[1][0] > 0
    outside, is_left = charts.rescale_boxes(boxes + 2 * width, (height, width), (9, 9))
    assert not is_left.any()
