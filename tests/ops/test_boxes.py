import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktn_jax.ops import boxes

FIXED = settings(deadline=None, derandomize=True, max_examples=30)
encode_deltas = jax.jit(boxes.encode_deltas, static_argnums=2)
decode_deltas = jax.jit(boxes.decode_deltas, static_argnums=2)
clip_boxes = jax.jit(boxes.clip_boxes)
pairwise_iou = jax.jit(boxes.pairwise_iou)
PADDING = [0.0, 0.0, 0.0, 0.0]
WEIGHTS = [("1_1_1_1", (1.0, 1.0, 1.0, 1.0)), ("10_10_5_5", (10.0, 10.0, 5.0, 5.0))]

# Corners on a coarse grid, so that touching, equal, empty and inverted boxes all come up.
corner_grids = hnp.arrays(np.float32, (6, 4), elements=st.integers(-8, 8).map(np.float32))


def naive_iou(a, b):
    """One pair, in Python floats."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    area_a = max(a[2] - a[0], 0) * max(a[3] - a[1], 0)
    area_b = max(b[2] - b[0], 0) * max(b[3] - b[1], 0)
    return overlap / (area_a + area_b - overlap) if overlap else 0.0


@pytest.mark.parity
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("level", range(5))
def test_anchors_match_pytorch(golden, offset, level):
    cell = boxes.cell_anchors(32.0 * 2**level, (0.5, 1.0, 2.0))
    np.testing.assert_allclose(cell, golden[f"anchors/offset{offset}/cell{level}"], rtol=1e-6)
    expected = golden[f"anchors/offset{offset}/level{level}"]
    stride = 4 * 2**level
    height, width = [(8, 9), (5, 6), (3, 4), (2, 3), (1, 2)][level]
    actual = boxes.grid_anchors((height, width), stride, cell, offset)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-5)


def test_several_sizes_vary_slower_than_ratios():
    actual = boxes.cell_anchors([32, 64], (1.0, 4.0))
    np.testing.assert_allclose(
        actual,
        [[-16, -16, 16, 16], [-8, -32, 8, 32], [-32, -32, 32, 32], [-16, -64, 16, 64]],
    )


@pytest.mark.parity
@pytest.mark.parametrize(("name", "weights"), WEIGHTS)
def test_box_coding_matches_pytorch(golden, assert_rounding, name, weights):
    source, target = golden["box_coding/src"], golden["box_coding/gt"]
    encoded = encode_deltas(source, target, weights)
    assert_rounding(encoded, golden[f"box_coding/{name}/encode"])
    decoded = decode_deltas(golden["box_coding/raw_deltas"], source, weights)
    np.testing.assert_allclose(decoded, golden[f"box_coding/{name}/decode"], rtol=1e-5, atol=1e-4)


@pytest.mark.parity
def test_pairwise_iou_matches_pytorch(golden, assert_rounding):
    actual = pairwise_iou(golden["box_coding/src"], golden["box_coding/gt"])
    assert_rounding(actual, golden["box_coding/pairwise_iou"])
    assert_rounding(jnp.diagonal(actual), golden["box_coding/matched_iou"])


@FIXED
@given(corner_grids, corner_grids)
def test_pairwise_iou_equals_the_definition(a, b):
    expected = [[naive_iou(row, column) for column in b.tolist()] for row in a.tolist()]
    np.testing.assert_allclose(pairwise_iou(a, b), expected, rtol=1e-6)


def test_pairwise_iou_rounds_every_operation_on_its_own():
    """As in NumPy, which fuses nothing. Where the compiler may fuse, 7 % of these are others."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (2, 1000, 2)).astype(np.float32)
    a = np.concatenate(
        [corners[0], corners[0] + rng.uniform(1, 300, (1000, 2))], 1, dtype=np.float32
    )
    b = np.concatenate(
        [corners[1], corners[1] + rng.uniform(1, 300, (1000, 2))], 1, dtype=np.float32
    )
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    overlap = np.maximum(sides, 0).prod(axis=-1)
    area_a, area_b = (np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (a, b))
    expected = overlap / (area_a[:, None] + area_b[None] - overlap)
    # The tests compile without optimising, which is what fuses.
    optimised = jax.jit(boxes.pairwise_iou, compiler_options={"xla_backend_optimization_level": 2})
    np.testing.assert_array_equal(optimised(a, b), expected)


def test_pairwise_iou_never_matches_padding():
    padded = jnp.array([PADDING, [0.0, 0.0, 2.0, 2.0]])
    np.testing.assert_array_equal(pairwise_iou(padded, padded), [[0, 0], [0, 1]])
    gradient = jax.jit(jax.grad(lambda x: pairwise_iou(x, padded).sum()))(padded)
    assert np.isfinite(gradient).all()


def test_coverage_is_the_share_of_the_second_box():
    some = jnp.array([[0.0, 0, 4, 4], [2, 0, 6, 2], PADDING])
    expected = [[1, 0.5, 0], [0.25, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(boxes.pairwise_coverage(some, some), expected)


def test_pairwise_iou_takes_leading_axes_and_empty_sets():
    batch = jnp.ones((2, 3, 4))
    assert pairwise_iou(batch, batch[:, :2]).shape == (2, 3, 2)
    assert pairwise_iou(jnp.zeros((0, 4)), batch[0]).shape == (0, 3)


def test_area_of_inverted_boxes_is_zero():
    corners = jnp.array([[1.0, 2.0, 4.0, 7.0], [4.0, 7.0, 1.0, 2.0], [3.0, 0.0, 1.0, 5.0], PADDING])
    np.testing.assert_array_equal(boxes.box_area(corners), [15, 0, 0, 0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float16", "bfloat16"])
def test_areas_of_narrow_types_do_not_overflow(dtype):
    corners = jnp.array([[0, 0, 100, 100], [50, 0, 100, 100]], dtype)
    area = boxes.box_area(corners)
    assert area.dtype == jnp.float32
    np.testing.assert_array_equal(area, [10_000, 5_000])
    large = corners if "int" in dtype else corners * 8  # 640,000: beyond float16
    np.testing.assert_array_equal(boxes.pairwise_iou(large, large), [[1, 0.5], [0.5, 1]])


def test_clip_uses_each_image_s_own_size():
    batch = jnp.tile(jnp.array([[[-3.0, -4.0, 50.0, 60.0], [20.0, 30.0, 25.0, 35.0]]]), (2, 1, 1))
    clipped = clip_boxes(batch, jnp.array([[40, 30], [32, 22]], jnp.int32))
    np.testing.assert_array_equal(
        clipped,
        [[[0, 0, 30, 40], [20, 30, 25, 35]], [[0, 0, 22, 32], [20, 30, 22, 32]]],
    )
    np.testing.assert_array_equal(clip_boxes(batch[0], jnp.array([40, 30], jnp.int32)), clipped[0])


def test_a_box_outside_the_image_becomes_empty():
    clipped = clip_boxes(jnp.array([[70.0, 80.0, 90.0, 99.0]]), jnp.array([40.0, 30.0]))
    np.testing.assert_array_equal(clipped, [[30, 40, 30, 40]])
    assert boxes.box_area(clipped)[0] == 0


@FIXED
@given(st.integers(0, 2**32 - 1), st.sampled_from(WEIGHTS))
def test_decode_undoes_encode(seed, named_weights):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(-50, 50, (2, 9, 2)), rng.uniform(2, 80, (2, 9, 2))
    source, target = np.concatenate([low, low + size], -1).astype(np.float32)
    deltas = encode_deltas(source, target, named_weights[1])
    decoded = decode_deltas(deltas, source, named_weights[1])
    # exp(log(x)) at sizes of 100 pixels: a few float32 roundings.
    np.testing.assert_allclose(decoded, target, atol=2e-4)


def test_decode_limits_growth_but_not_shrinkage():
    deltas = jnp.array([[0.0, 0.0, 100.0, -100.0]])
    decoded = decode_deltas(deltas, jnp.array([[0.0, 0.0, 16.0, 16.0]]), (1, 1, 1, 1))
    np.testing.assert_allclose(decoded, [[8 - 500, 8, 8 + 500, 8]], rtol=1e-5)


def test_encode_is_finite_on_padding_in_value_and_gradient():
    source = jnp.array([PADDING, [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    target = jnp.array([PADDING, PADDING, [1.0, 0.0, 3.0, 2.0]])
    np.testing.assert_allclose(
        encode_deltas(source, target, (1, 1, 1, 1)), [[0] * 4, [0] * 4, [0.5, 0, 0, 0]]
    )
    gradients = jax.grad(lambda a, b: encode_deltas(a, b, (1, 1, 1, 1)).sum(), argnums=(0, 1))(
        source, target
    )
    assert np.isfinite(gradients).all()


def test_decode_takes_batches():
    deltas, source = jnp.zeros((2, 5, 8)), jnp.tile(jnp.array([[[1.0, 2.0, 3.0, 5.0]]]), (2, 5, 1))
    decoded = decode_deltas(deltas, source, (10, 10, 5, 5))
    np.testing.assert_allclose(decoded, jnp.tile(source, (1, 1, 2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: boxes.box_area(jnp.zeros((2, 5))),
        lambda: boxes.clip_boxes(jnp.zeros((2, 4)), jnp.zeros(3)),
        lambda: boxes.pairwise_iou(jnp.zeros((2, 4)), jnp.zeros((2, 3))),
        lambda: boxes.encode_deltas(jnp.zeros((2, 4)), jnp.zeros((3, 4)), (1, 1, 1, 1)),
        lambda: boxes.decode_deltas(jnp.zeros((2, 6)), jnp.zeros((2, 4)), (1, 1, 1, 1)),
    ],
)
def test_wrong_shapes_are_named(call):
    with pytest.raises(ValueError, match=r"want|must be"):
        call()
