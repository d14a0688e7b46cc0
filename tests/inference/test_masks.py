"""Masks brought to the pixels of the photo."""

import numpy as np
import pytest

from ktn_jax.inference.masks import paste_mask

SIZE = (40, 50)


@pytest.mark.parametrize("box", [(10, 5, 30, 25), (10.3, 5.8, 30.6, 24.7), (-8, 20, 12, 60)])
def test_a_full_mask_covers_the_pixels_whose_middle_is_well_inside(box):
    """Beyond the middles of its outer cells a mask fades: to one half at the border of the box."""
    whole = paste_mask(np.ones((28, 28), np.float32), np.float32(box), SIZE).whole()
    x0, y0, x1, y1 = box
    columns, rows = np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5
    inside = ((rows >= y0) & (rows <= y1))[:, None] & ((columns >= x0) & (columns <= x1))[None]
    near = np.zeros(SIZE, bool)  # the corners fade twice
    half = ((x1 - x0) / 56, (y1 - y0) / 56)
    near |= (np.minimum(abs(rows - y0), abs(rows - y1)) < half[1])[:, None]
    near |= (np.minimum(abs(columns - x0), abs(columns - x1)) < half[0])[None]
    assert whole.shape == SIZE and not (whole & ~inside).any()
    np.testing.assert_array_equal(whole[~near], inside[~near])


def test_the_border_of_a_mask_is_where_it_is_one_half():
    """A mask that falls linearly along x, from 1 in the first cell to 0 in the last."""
    mask = np.tile(np.linspace(1, 0, 11, dtype=np.float32), (11, 1))
    placed = paste_mask(mask, np.float32([3, 2, 25, 24]), SIZE)
    assert (placed.left, placed.top) == (3, 2)
    # The middle cell's middle, at 3 + 22 / 2 = 14, is one half; the outer rows fade.
    columns = placed.whole()[13]
    assert columns[4:14].all() and not columns[14:].any()


def test_boxes_outside_and_without_size_have_no_mask():
    ones = np.ones((4, 4), np.float32)
    for box in ([60, 10, 80, 20], [10, 10, 10, 30], [-20, 5, -3, 20]):
        assert not paste_mask(ones, np.float32(box), SIZE).mask.any()
