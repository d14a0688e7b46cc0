"""ROIAlign as products: the reference's numbers, and those of the form that gathers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.ops import roi_align, roi_products

STRIDES = (4, 8, 16, 32)


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnames=("size", "ratio", "aligned"))
def pool(maps, boxes, valid_hw=None, size=7, ratio=2, aligned=True):
    return roi_products.multilevel_roi_align_by_products(
        maps, STRIDES[: len(maps)], boxes, size, ratio, aligned, valid_hw=valid_hw
    )


@functools.partial(jax.jit, static_argnames=("size", "ratio", "aligned"))
def gather(maps, boxes, valid_hw=None, size=7, ratio=2, aligned=True):
    batch, number = boxes.shape[:2]
    index = np.repeat(np.arange(batch, dtype=np.int32), number)
    flat = boxes.reshape(-1, 4)
    pooled = roi_align.multilevel_roi_align(
        maps, STRIDES[: len(maps)], flat, index, size, ratio, aligned, valid_hw=valid_hw
    )
    return pooled.reshape(batch, number, *pooled.shape[1:])


@pytest.mark.parity
@pytest.mark.parametrize(("name", "aligned"), [("ROIAlign", False), ("ROIAlignV2", True)])
def test_pyramid_pooling_matches_detectron2(golden, assert_rounding, name, aligned):
    maps = [nhwc(golden[f"pooler/feature{level}"]) for level in range(4)]
    boxes = np.zeros((2, 12, 4), np.float32)
    boxes[0], boxes[1, :9] = golden["pooler/boxes0"], golden["pooler/boxes1"]
    pooled = np.asarray(pool(maps, boxes, aligned=aligned))
    expected = nhwc(golden[f"pooler/{name}_out7_sr2"])
    assert_rounding(np.concatenate([pooled[0], pooled[1, :9]]), expected)


@pytest.mark.parity
def test_adaptive_sampling_matches_torchvision(golden_dir, assert_rounding):
    """Boxes of 1 to 27 reads a bin, and their gradient."""
    with np.load(golden_dir / "ops.npz") as file:
        features, rois = nhwc(file["roi_align/input"]), file["roi_align/rois"]
        expected = nhwc(file["roi_align/aligned1_sr0_out7"])
        expected_gradient = nhwc(file["roi_align/aligned1_sr0_out7_grad_input"])
    image = rois[:, 0].astype(int)
    rank = np.array([(image[:row] == image[row]).sum() for row in range(len(image))])
    boxes = np.zeros((len(features), rank.max() + 1, 4), np.float32)
    boxes[image, rank] = rois[:, 1:]
    cotangent = np.zeros((*boxes.shape[:2], 7, 7, 3), np.float32)
    cotangent[image, rank] = nhwc(np.linspace(-1, 1, 1470, dtype=np.float32).reshape(10, 3, 7, 7))

    def total(features):
        pooled = pool([features], boxes, ratio=0)
        return (pooled * cotangent).sum(), pooled

    gradient, pooled = jax.jit(jax.grad(total, has_aux=True))(features)
    assert_rounding(np.asarray(pooled)[image, rank], expected)
    assert_rounding(gradient, expected_gradient)


def _pyramid(dtype=np.float32):
    """Two images of their own sizes in maps of four levels, and boxes of all kinds."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 64 >> i, 96 >> i, 3)).astype(np.float32) for i in range(4)]
    valid_hw = [np.array([[64, 80], [40, 96]], np.int32) >> i for i in range(4)]
    low = rng.uniform(-20, 200, (2, 30, 2))
    boxes = np.concatenate([low, low + 2 ** rng.uniform(1, 9, (2, 30, 2))], -1).astype(np.float32)
    boxes[:, :3] = [[0, 0, 0, 0], [900, 900, 990, 999], [-9, -9, 700, 500]]
    return [jnp.asarray(level, dtype) for level in maps], boxes, valid_hw


@pytest.mark.parametrize(
    ("ratio", "aligned"), [pytest.param(2, False, marks=pytest.mark.extended), (0, True)]
)
def test_values_and_gradients_are_those_of_gathers(ratio, aligned):
    maps, boxes, valid_hw = _pyramid()
    level = roi_products.levels_of_strides(jnp.asarray(boxes), STRIDES, 224.0)
    assert set(np.unique(level)) == {0, 1, 2, 3}
    cotangent = np.random.default_rng(1).normal(size=(2, 30, 7, 7, 3)).astype(np.float32)

    def differentiate(form):
        def total(maps):
            pooled = form(maps, boxes, valid_hw, ratio=ratio, aligned=aligned)
            return (pooled * cotangent).sum(), pooled

        gradients, pooled = jax.jit(jax.grad(total, has_aux=True))(maps)
        return [pooled, *gradients]

    for actual, expected in zip(differentiate(pool), differentiate(gather), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_half_precision_rounds_weights_too():
    maps, boxes, _ = _pyramid(jnp.bfloat16)
    exact = gather([level.astype(jnp.float32) for level in maps], boxes)
    pooled = pool(maps, boxes)
    assert pooled.dtype == jnp.bfloat16
    # Three roundings, of two weights and a sum, to 8 bits of at most 4.
    np.testing.assert_allclose(pooled.astype(jnp.float32), exact, atol=4 * 3 * 2**-9)


def test_boxes_get_no_gradient_and_shapes_are_checked():
    maps, boxes, _ = _pyramid()
    gradient = jax.grad(lambda boxes: pool(maps, boxes).sum())(boxes)
    assert not np.asarray(gradient).any()
    with pytest.raises(ValueError, match=r"want boxes \[2, R, 4\], got \(60, 4\)"):
        pool(maps, boxes.reshape(-1, 4))
