import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.ops import keypoints


@pytest.mark.parity
@pytest.mark.parametrize("size", [56, 112])
def test_matches_pytorch(golden, size):
    index, is_valid = keypoints.keypoints_to_heatmap_index(
        golden["keypoint/keypoints"], golden["keypoint/rois"], size
    )
    np.testing.assert_array_equal(index, golden[f"keypoint/heatmap{size}"])
    np.testing.assert_array_equal(is_valid, golden[f"keypoint/valid{size}"])
    assert index.dtype == jnp.int32 and is_valid.dtype == bool


def test_borders_and_outside():
    points = jnp.array(
        [
            [10.0, 20.0, 2.0],  # top-left corner: first cell
            [30.0, 60.0, 1.0],  # bottom-right corner: moved into the last cell
            [30.0, 20.0, 2.0],  # right border, first row
            [20.0, 40.0, 2.0],  # the middle belongs to the cell after it
            [9.9, 40.0, 2.0],
            [20.0, 60.1, 2.0],
            [20.0, 40.0, 0.0],  # not annotated
        ]
    )
    index, is_valid = keypoints.keypoints_to_heatmap_index(
        points[None], jnp.array([[10.0, 20.0, 30.0, 60.0]]), 4
    )
    np.testing.assert_array_equal(index[0], [0, 15, 3, 2 * 4 + 2, 0, 0, 0])
    np.testing.assert_array_equal(is_valid[0], [1, 1, 1, 1, 0, 0, 0])


def _rows(heights, size, **options):
    """Heatmap rows of the points y = 0, 1, ... of boxes (0, 0, 1, h): [boxes, points]."""
    boxes = np.stack([heights * 0, heights * 0, heights * 0 + 1, heights], axis=-1)
    y = np.broadcast_to(
        np.arange(heights.max(), dtype=np.float32), (len(heights), int(heights.max()))
    )
    points = np.stack([y * 0, y, y * 0 + 2], axis=-1)
    convert = jax.jit(keypoints.keypoints_to_heatmap_index, static_argnums=2, **options)
    index, is_valid = convert(points, boxes, size)
    return np.where(is_valid, np.asarray(index) // size, -1)


# (height, y) of points on the border of two cells, and their row with S = 56: stored from torch.
BORDERS = {(49, 28): 31, (49, 7): 7, (82, 41): 27, (98, 91): 51, (134, 67): 27}


@pytest.mark.parametrize("size", [56, 112])
def test_whole_number_points_fall_in_torchs_cells(size):
    heights = np.arange(1, 400, dtype=np.float32)
    rows = _rows(heights, size, compiler_options={"xla_backend_optimization_level": 2})
    if size == 56:
        assert {place: rows[place[0] - 1, place[1]] for place in BORDERS} == BORDERS
    torch = pytest.importorskip("torch")
    y = torch.arange(399.0)
    for height, ours in zip(heights, rows, strict=True):
        theirs = (y * (size / torch.tensor(height))).floor()
        inside = np.arange(399) < height
        np.testing.assert_array_equal(ours[inside], np.minimum(theirs.numpy(), size - 1)[inside])


def test_padding_is_never_valid_even_where_it_meets_its_box():
    points = jnp.array([[[0.0, 0.0, 2.0]]])
    index, is_valid = jax.jit(keypoints.keypoints_to_heatmap_index, static_argnums=2)(
        points, jnp.zeros((1, 4)), 56
    )
    assert not is_valid.any() and not index.any()


def test_no_boxes():
    index, is_valid = keypoints.keypoints_to_heatmap_index(
        jnp.zeros((0, 17, 3)), jnp.zeros((0, 4)), 56
    )
    assert index.shape == is_valid.shape == (0, 17)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="rois"):
        keypoints.keypoints_to_heatmap_index(jnp.zeros((2, 17, 3)), jnp.zeros((3, 4)), 56)
    with pytest.raises(ValueError, match="heatmap_size"):
        keypoints.keypoints_to_heatmap_index(jnp.zeros((2, 17, 3)), jnp.zeros((2, 4)), 0)
