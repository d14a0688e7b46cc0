"""ROIAlign as products of matrices, for devices whose gathers are slow and whose products are fast.

A bin averages bilinear reads, and is a sum over rows and columns of its map: two products with the
weights of `roi_reads`, over the whole of each level, of which a box has one. That is far more
arithmetic than `roi_align` needs, but its backward pass too is products, and adds to no row at a
place that only a running program knows.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from ktn_jax.ops.roi_reads import Bins, axis_weights, check_maps, levels_of_strides


def multilevel_roi_align_by_products(
    features: Sequence[Array],
    strides: Sequence[float],
    boxes: Array,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    valid_hw: Sequence[Array] | None = None,
    canonical_size: float = 224.0,
) -> Array:
    """`roi_align.multilevel_roi_align` of R boxes of every image.

    Args:
        features: Per level [B, H_l, W_l, C], finest first, one dtype. All of it must be finite, as
            cells that a box does not read are multiplied by 0.
        strides: As there.
        boxes: [B, R, 4] xyxy in pixels of the network input.
        output_size: P, bins per side.
        sampling_ratio: As there.
        aligned: As there.
        valid_hw: As there.
        canonical_size: As there.

    Returns:
        [B, R, P, P, C] in the dtype of `features`, to which weights are rounded too; sums are
        float32. Gradients reach `features` only.

    Raises:
        ValueError: shapes or strides do not fit, or `sampling_ratio` is negative.
    """
    check_maps(features, strides, sampling_ratio, valid_hw)
    batch = features[0].shape[0]
    if boxes.ndim != 3 or boxes.shape[::2] != (batch, 4):
        raise ValueError(f"want boxes [{batch}, R, 4], got {boxes.shape}")
    bins = Bins(output_size, sampling_ratio, aligned)
    limits = valid_hw
    if limits is None:
        limits = [jnp.array([level_map.shape[1:3]] * batch) for level_map in features]
    boxes = lax.stop_gradient(boxes)

    def pool_image(image: tuple[list[Array], list[Array], Array]) -> Array:
        maps, limits, boxes = image
        level = levels_of_strides(boxes, strides, canonical_size)
        limits = [jnp.broadcast_to(limit_hw[None], (boxes.shape[0], 2)) for limit_hw in limits]
        pooled = jnp.zeros((), jnp.float32)
        for index, (level_map, limit_hw) in enumerate(zip(maps, limits, strict=True)):
            scaled = boxes * (1 / strides[index])
            weights = [
                axis_weights(low, high, limit, bins, size)
                for low, high, limit, size in (
                    (scaled[:, 1], scaled[:, 3], limit_hw[:, 0], level_map.shape[0]),
                    (scaled[:, 0], scaled[:, 2], limit_hw[:, 1], level_map.shape[1]),
                )
            ]
            rows = jnp.where((level == index)[:, None, None], weights[0], 0)
            pooled += _weigh(level_map, rows, weights[1])
        return pooled.astype(maps[0].dtype)

    # One image after the other: the products of one take hundreds of megabytes.
    pooled: Array = lax.map(pool_image, (list(features), list(limits), boxes))
    return pooled


def _weigh(level_map: Array, rows: Array, columns: Array) -> Array:
    """Sums a map [H, W, C] under weights [R, P, H] and [R, P, W]: float32 [R, P, P, C]."""
    dtype = level_map.dtype
    rows, columns = rows.astype(dtype), columns.astype(dtype)
    options = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    # Columns first: landscape images have more of them than rows.
    sums = jnp.einsum("hwc,rqw->rhqc", level_map, columns, **options).astype(dtype)
    pooled: Array = jnp.einsum("rhqc,rph->rpqc", sums, rows, **options)
    return pooled
