"""Keypoints as cells of a heatmap laid over a box."""

import jax.numpy as jnp
from jax import Array


def keypoints_to_heatmap_index(
    keypoints: Array, rois: Array, heatmap_size: int
) -> tuple[Array, Array]:
    """Finds the heatmap cell that each keypoint falls in.

    Args:
        keypoints: [R, K, 3] (x, y, visibility) in pixels; visibility 0 means not annotated.
        rois: [R, 4] xyxy in the same frame; the heatmap covers the box.
        heatmap_size: Side S of the square heatmap, in cells.

    Returns:
        index: int32 [R, K], row * S + column; 0 where not valid.
        is_valid: bool [R, K], annotated and inside the box. The right and bottom border count as
            inside and belong to the last column and row. Never true for an empty box (padding).

    Raises:
        ValueError: shapes do not fit, or the size is below 1.
    """
    if keypoints.ndim != 3 or keypoints.shape[-1] != 3 or rois.shape != (keypoints.shape[0], 4):
        raise ValueError(
            f"want keypoints [R, K, 3] and rois [R, 4], got {keypoints.shape}, {rois.shape}"
        )
    if heatmap_size < 1:
        raise ValueError(f"heatmap_size must be at least 1, got {heatmap_size}")
    is_valid = keypoints[..., 2] > 0
    cells = []
    for axis in range(2):
        low, high = rois[:, axis, None], rois[:, axis + 2, None]
        is_full = high > low
        # torch divides a number by a tensor by taking the reciprocal first. It rounds twice, and
        # many whole-number points of whole-number boxes lie on the border of a cell.
        scale = 1 / jnp.where(is_full, high - low, 1) * heatmap_size
        position = keypoints[..., axis]
        cell = jnp.floor((position - low) * scale)
        cell = jnp.where(position == high, heatmap_size - 1, cell)
        is_valid &= (cell >= 0) & (cell < heatmap_size) & is_full
        cells.append(cell)
    index = jnp.where(is_valid, cells[1] * heatmap_size + cells[0], 0)
    return index.astype(jnp.int32), is_valid
