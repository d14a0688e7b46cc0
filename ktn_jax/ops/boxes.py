"""Axis-aligned boxes: areas, IoU, delta coding and anchor grids.

Boxes are xyxy float32 in continuous pixel coordinates of one frame: the box of a whole image is
(0, 0, width, height), and a box's width is x1 - x0 (no "+1"). Padding rows are all zero.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

# exp() of a width or height delta is limited to 1000 / 16, so that no early training step, when
# the regressor is still random, produces an infinite box.
_MAX_LOG_SCALE = math.log(1000.0 / 16)


def _require_boxes(**named_boxes: Array) -> None:
    for name, boxes in named_boxes.items():
        if boxes.ndim < 1 or boxes.shape[-1] != 4:
            raise ValueError(f"{name} must be [..., 4], got {boxes.shape}")


def _promote(boxes: Array) -> Array:
    """Converts integers and half precision to float32, as areas overflow both."""
    boxes = jnp.asarray(boxes)
    is_wide = jnp.issubdtype(boxes.dtype, jnp.floating) and boxes.dtype.itemsize >= 4
    return boxes if is_wide else boxes.astype(jnp.float32)


def _rectangle_area(width: Array, height: Array) -> Array:
    """Multiplies the sides, and gives 0 where one is not positive.

    A compiler may fuse a product with the sum it enters and round once instead of twice. Then IoUs
    that are equal differ in the last bit, by where in a loop they are computed, and anchors that
    tie for a person do not. The choice after the product keeps them apart.
    """
    return jnp.where((width > 0) & (height > 0), width * height, 0)


def box_area(boxes: Array) -> Array:
    """Computes the area of boxes.

    Args:
        boxes: [..., 4] xyxy in pixels.

    Returns:
        [...] in square pixels; 0 where a box is empty or turned inside out. float32 for boxes of
        integers or half precision, whose areas overflow their own type.

    Raises:
        ValueError: the last axis is not 4.
    """
    _require_boxes(boxes=boxes)
    boxes = _promote(boxes)
    size = boxes[..., 2:] - boxes[..., :2]
    return _rectangle_area(size[..., 0], size[..., 1])


def clip_boxes(boxes: Array, image_size_hw: Array) -> Array:
    """Clips boxes to their image.

    Args:
        boxes: [..., N, 4] xyxy in pixels.
        image_size_hw: [..., 2] height and width in pixels, integer or float; its leading axes are
            those of `boxes`, or absent where all images have one size.

    Returns:
        [..., N, 4]. A box outside the image becomes empty.

    Raises:
        ValueError: the last axes are not 4 and 2.
    """
    _require_boxes(boxes=boxes)
    image_size_hw = jnp.asarray(image_size_hw)
    if image_size_hw.shape[-1:] != (2,):
        raise ValueError(f"image_size_hw must be [..., 2], got {image_size_hw.shape}")
    height, width = image_size_hw[..., 0], image_size_hw[..., 1]
    upper = jnp.stack([width, height, width, height], axis=-1).astype(boxes.dtype)
    upper = jnp.broadcast_to(upper[..., None, :], boxes.shape)
    return jnp.clip(boxes, 0, upper)


def pairwise_iou(boxes_a: Array, boxes_b: Array) -> Array:
    """Computes the IoU of every pair of boxes.

    Args:
        boxes_a: [..., N, 4] xyxy in pixels. Padding rows are all zero.
        boxes_b: [..., M, 4] in the same frame.

    Returns:
        [..., N, M] in [0, 1], and 0 where either box is empty, so padding never matches. Every
        operation is rounded on its own, as in the reference: the bits do not depend on how the
        program around is compiled. float32 for boxes of integers or half precision.

    Raises:
        ValueError: the last axis is not 4. Box values are not checked: they are traced.
    """
    _require_boxes(boxes_a=boxes_a, boxes_b=boxes_b)
    boxes_a, boxes_b = _promote(boxes_a), _promote(boxes_b)
    overlap = _pairwise_overlap(boxes_a, boxes_b)
    union = box_area(boxes_a)[..., :, None] + box_area(boxes_b)[..., None, :] - overlap
    # Guard the divisor too: where() alone hides a NaN in the value but not in the gradient.
    return jnp.where(union > 0, overlap / jnp.where(union > 0, union, 1), 0)


def pairwise_coverage(boxes_a: Array, boxes_b: Array) -> Array:
    """Computes which share of each box of the second kind each of the first covers.

    Args:
        boxes_a: [..., N, 4] xyxy in pixels. Padding rows are all zero.
        boxes_b: [..., M, 4] in the same frame.

    Returns:
        [..., N, M] in [0, 1], and 0 where either box is empty.

    Raises:
        ValueError: the last axis is not 4. Box values are not checked: they are traced.
    """
    _require_boxes(boxes_a=boxes_a, boxes_b=boxes_b)
    boxes_a, boxes_b = _promote(boxes_a), _promote(boxes_b)
    area = box_area(boxes_b)[..., None, :]
    return jnp.where(
        area > 0, _pairwise_overlap(boxes_a, boxes_b) / jnp.where(area > 0, area, 1), 0
    )


def _pairwise_overlap(boxes_a: Array, boxes_b: Array) -> Array:
    # One plane per axis: an inner axis of length two would keep the loop from being vectorised.
    sides = []
    for axis in range(2):
        low_a, high_a = boxes_a[..., :, None, axis], boxes_a[..., :, None, axis + 2]
        low_b, high_b = boxes_b[..., None, :, axis], boxes_b[..., None, :, axis + 2]
        sides.append(jnp.minimum(high_a, high_b) - jnp.maximum(low_a, low_b))
    return _rectangle_area(*sides)


def _centres_and_sizes(boxes: Array) -> tuple[Array, Array]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode_deltas(boxes: Array, targets: Array, weights: Sequence[float]) -> Array:
    """Encodes what moves each box onto its target (R-CNN's parametrisation).

    Args:
        boxes: [..., N, 4] xyxy in pixels: anchors or proposals.
        targets: [..., N, 4] xyxy in the same frame.
        weights: (wx, wy, ww, wh): (1, 1, 1, 1) for proposals, (10, 10, 5, 5) for detections.

    Returns:
        [..., N, 4] (dx, dy, dw, dh), and zeros where the box or its target is empty, so that
        padding gives neither infinities nor NaN gradients.

    Raises:
        ValueError: shapes differ, or `weights` are not four.
    """
    _require_boxes(boxes=boxes, targets=targets)
    if boxes.shape != targets.shape or len(weights) != 4:
        raise ValueError(
            f"want equal shapes and 4 weights, got {boxes.shape}, {targets.shape}, {weights}"
        )
    centres, sizes = _centres_and_sizes(boxes)
    target_centres, target_sizes = _centres_and_sizes(targets)
    is_full = jnp.all((sizes > 0) & (target_sizes > 0), axis=-1, keepdims=True)
    sizes = jnp.where(is_full, sizes, 1)
    target_sizes = jnp.where(is_full, target_sizes, 1)
    offsets = (target_centres - centres) / sizes
    log_scales = jnp.log(target_sizes / sizes)
    columns = (offsets[..., 0], offsets[..., 1], log_scales[..., 0], log_scales[..., 1])
    deltas = jnp.stack([w * column for w, column in zip(weights, columns, strict=True)], axis=-1)
    return jnp.where(is_full, deltas, 0)


def decode_deltas(deltas: Array, boxes: Array, weights: Sequence[float]) -> Array:
    """Moves boxes by predicted deltas: the inverse of `encode_deltas`.

    Args:
        deltas: [..., N, 4 * K] (dx, dy, dw, dh) for each of K classes.
        boxes: [..., N, 4] xyxy in pixels.
        weights: (wx, wy, ww, wh), as in `encode_deltas`.

    Returns:
        [..., N, 4 * K] xyxy, not clipped to the image. dw and dh are limited to log(1000 / 16).

    Raises:
        ValueError: shapes do not fit, or `weights` are not four.
    """
    _require_boxes(boxes=boxes)
    if deltas.shape[:-1] != boxes.shape[:-1] or deltas.shape[-1] % 4 or len(weights) != 4:
        raise ValueError(
            "want deltas [..., N, 4K], boxes [..., N, 4] and 4 weights, "
            f"got {deltas.shape}, {boxes.shape}, {weights}"
        )
    centres, sizes = _centres_and_sizes(boxes)
    ranges = []
    for axis in range(2):
        centre, size = centres[..., axis, None], sizes[..., axis, None]
        log_scale = jnp.minimum(deltas[..., 2 + axis :: 4] / weights[2 + axis], _MAX_LOG_SCALE)
        new_centre = deltas[..., axis::4] / weights[axis] * size + centre
        half_size = 0.5 * jnp.exp(log_scale) * size
        ranges.append((new_centre - half_size, new_centre + half_size))
    (x0, x1), (y0, y1) = ranges
    return jnp.stack([x0, y0, x1, y1], axis=-1).reshape(deltas.shape)


def cell_anchors(size: float | Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """Makes the anchors of one grid cell, centred on (0, 0).

    Args:
        size: Square root of the anchors' area in pixels, or several.
        aspect_ratios: Height / width.

    Returns:
        A NumPy float32 constant [A, 4] xyxy; sizes vary slower than aspect ratios.
    """
    anchors = []
    for side in np.atleast_1d(np.asarray(size, np.float64)):
        for ratio in aspect_ratios:
            width = math.sqrt(side * side / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.asarray(anchors, np.float32).reshape(-1, 4)


def grid_anchors(
    feature_hw: tuple[int, int], stride: int, cell_anchors: np.ndarray, offset: float = 0.0
) -> np.ndarray:
    """Lays one cell's anchors over a feature map.

    Args:
        feature_hw: Height and width of the map in cells.
        stride: Pixels of the network input per cell.
        cell_anchors: [A, 4] xyxy around (0, 0), from `cell_anchors`.
        offset: Where in its cell an anchor is centred, as a part of the stride. The reference's
            0 puts anchor (row, column) on pixel (row * stride, column * stride).

    Returns:
        A NumPy float32 constant [H * W * A, 4] xyxy in pixels, ordered (row, column, anchor).
    """
    height, width = feature_hw
    centre_x = (np.arange(width, dtype=np.float32) + np.float32(offset)) * np.float32(stride)
    centre_y = (np.arange(height, dtype=np.float32) + np.float32(offset)) * np.float32(stride)
    grid_y, grid_x = np.meshgrid(centre_y, centre_x, indexing="ij")
    shifts = np.stack([grid_x, grid_y, grid_x, grid_y], axis=-1)
    anchors = shifts[:, :, None, :] + np.asarray(cell_anchors, np.float32)[None, None]
    return anchors.reshape(-1, 4)
