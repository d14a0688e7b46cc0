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
