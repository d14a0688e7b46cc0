"""Rotated views: against NumPy's quarter turns, and linear maps, which come back exactly."""

import numpy as np
import pytest

from ktn_jax.inference.rotation import Rotation


@pytest.mark.parametrize("turns", [-1, 0, 1, 2])
def test_quarter_turns_are_those_of_numpy(turns):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 12, 3), np.uint8)
    rotation = Rotation((7, 12), 90 * turns)
    expected = np.rot90(image, turns)
    assert rotation.canvas_hw == expected.shape[:2]
    np.testing.assert_array_equal(rotation.image(image), expected)
    maps = rng.random((1, 8, 8, 5), np.float32)
    box = np.float32([[2, 1, 6, 6]])
    back = rotation.turn_back(np.rot90(maps, turns, axes=(1, 2)), box, rotation.boxes(box))
    np.testing.assert_allclose(back, maps, atol=1e-5)


def test_a_box_by_hand():
    # Counterclockwise: the top right corner becomes the top left one.
    rotation = Rotation((40, 60), 90)
    np.testing.assert_allclose(rotation.points(np.array([60.0, 0])), [0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation.boxes(np.float32([[50, 0, 60, 30]])), [[0, 0, 30, 10]])
    # A square turned by an eighth stands on its corner: sqrt(2) wider.
    eighth = Rotation((100, 100), 45)
    (box,) = eighth.boxes(np.float32([[40, 40, 60, 60]]))
    side = eighth.canvas_hw[0]
    half = 20 / np.sqrt(2)
    np.testing.assert_allclose(box, side / 2 + half * np.array([-1, -1, 1, 1]), rtol=1e-6)


@pytest.mark.parametrize("degrees", [10, -45, 130, 180])
def test_what_is_linear_on_the_canvas_comes_back_at_its_place(degrees):
    rotation = Rotation((80, 100), degrees)
    boxes = np.float32([[10, 20, 50, 70], [30, 5, 90, 25]])
    canvas_boxes = rotation.boxes(boxes)
    cells = (np.arange(28) + 0.5) / 28

    def places(box):
        x, y = (box[i] + cells * (box[i + 2] - box[i]) for i in (0, 1))
        return np.stack(np.meshgrid(x, y), axis=-1)

    maps = np.stack([places(box) for box in canvas_boxes]).astype(np.float32)
    back = rotation.turn_back(maps, boxes, canvas_boxes)
    expected = np.stack([rotation.points(places(box)) for box in boxes])
    assert back.dtype == np.float32
    # But for the outermost half cell, where values are clamped.
    half = 0.5 * (canvas_boxes[:, 2:] - canvas_boxes[:, :2]).max() / 28
    inner = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_allclose(back[inner], expected[inner], atol=2e-4)
    np.testing.assert_allclose(back, expected, atol=half)


def test_nothing_of_the_image_is_cut_off():
    rotation = Rotation((30, 70), 25)
    picture = rotation.image(np.full((30, 70, 3), 200, np.uint8))
    assert picture.shape[:2] == rotation.canvas_hw
    # The area is kept, up to the blended border.
    assert (picture[..., 0] / 200).sum() == pytest.approx(30 * 70, rel=0.03)
    x0, y0, x1, y1 = rotation.boxes(np.float32([[0, 0, 70, 30]]))[0]
    height, width = rotation.canvas_hw
    np.testing.assert_allclose([x0, y0, x1, y1], [0, 0, width, height], atol=0.5)
