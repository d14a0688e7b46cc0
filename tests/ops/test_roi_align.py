import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.ops import roi_align, roi_reads

FIXED = settings(deadline=None, derandomize=True, max_examples=30)
STRIDES = (4, 8, 16, 32)


@functools.partial(
    jax.jit, static_argnums=(2, 3), static_argnames=("chunk_size", "stride", "ratio")
)
def pool(features, rois, output_size, aligned, valid_hw=None, chunk_size=None, stride=4, ratio=2):
    """ROIAlign of rois [R, 5] (image, x0, y0, x1, y1) with `ratio` samples a bin and axis."""
    batch_index = rois[:, 0].astype(jnp.int32)
    return roi_align.multilevel_roi_align(
        [features],
        [stride],
        rois[:, 1:],
        batch_index,
        output_size,
        ratio,
        aligned,
        valid_hw=None if valid_hw is None else [valid_hw],
        chunk_size=chunk_size,
    )


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def ramp(height, width):
    """A map whose two channels hold the column and the row of each cell: [1, H, W, 2]."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([columns, rows], axis=-1)[None]


@pytest.mark.parity
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("output_size", [7, 14, 28])
@pytest.mark.parametrize("chunk_size", [None, 3])  # 3 does not divide the ten boxes
def test_matches_torchvision(golden, assert_rounding, aligned, output_size, chunk_size):
    features, rois = nhwc(golden["roi_align/input"]), golden["roi_align/rois"]
    pooled = pool(features, rois, output_size, aligned, chunk_size=chunk_size)
    expected = golden[f"roi_align/aligned{int(aligned)}_sr2_out{output_size}"]
    assert_rounding(pooled, nhwc(expected))


@pytest.mark.parity
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 3, 10])
def test_gradient_matches_torchvision(golden, assert_rounding, aligned, chunk_size):
    features, rois = nhwc(golden["roi_align/input"]), golden["roi_align/rois"]
    cotangent = np.linspace(-1, 1, 10 * 3 * 7 * 7, dtype=np.float32).reshape(10, 3, 7, 7)

    def total(features):
        return jnp.sum(pool(features, rois, 7, aligned, chunk_size=chunk_size) * nhwc(cotangent))

    gradient = jax.jit(jax.grad(total))(features)
    expected = golden[f"roi_align/aligned{int(aligned)}_sr2_out7_grad_input"]
    assert_rounding(gradient, nhwc(expected))


@pytest.mark.parity
@pytest.mark.parametrize(("name", "aligned"), [("ROIAlign", False), ("ROIAlignV2", True)])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_pyramid_pooling_matches_detectron2(golden, assert_rounding, name, aligned, chunk_size):
    features = [nhwc(golden[f"pooler/feature{level}"]) for level in range(4)]
    boxes = np.concatenate([golden["pooler/boxes0"], golden["pooler/boxes1"]])
    batch_index = np.repeat(np.arange(2, dtype=np.int32), [12, 9])
    pooled = jax.jit(
        lambda maps: roi_align.multilevel_roi_align(
            maps, STRIDES, boxes, batch_index, 7, 2, aligned, chunk_size=chunk_size
        )
    )(features)
    assert_rounding(pooled, nhwc(golden[f"pooler/{name}_out7_sr2"]))


@pytest.mark.parity
def test_levels_match_detectron2(golden):
    boxes = np.concatenate([golden["pooler/boxes0"], golden["pooler/boxes1"]])
    level = roi_reads.assign_levels(jnp.asarray(boxes), 2, 5)
    np.testing.assert_array_equal(level, golden["pooler/level"])


def test_levels_at_their_borders():
    sides = jnp.array([0.0, 1.0, 111.0, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0])
    boxes = jnp.stack([sides * 0, sides * 0, sides, sides], axis=-1)
    level = roi_reads.assign_levels(boxes, 2, 5)
    np.testing.assert_array_equal(level, [0, 0, 0, 1, 1, 2, 2, 3, 3])
    assert level.dtype == jnp.int32


def test_boxes_are_pooled_from_the_level_of_the_canonical_size():
    sides = jnp.array([27.0, 28.0, 55.0, 56.0, 111.0, 112.0])
    boxes = jnp.stack([sides * 0, sides * 0, sides, sides], axis=-1)
    maps = [jnp.full((1, 128 >> level, 128 >> level, 1), float(level)) for level in range(3)]
    for canonical_size, levels in ((224, [0, 0, 0, 0, 0, 1]), (112, [0, 0, 0, 1, 1, 2])):
        pooled = roi_align.multilevel_roi_align(
            maps, [4, 8, 16], boxes, jnp.zeros(6), 2, 2, True, canonical_size=canonical_size
        )
        np.testing.assert_allclose(pooled[:, 0, 0, 0], levels, atol=1e-6)


@FIXED
@given(
    st.floats(3, 10),
    st.floats(3, 10),
    st.floats(0.5, 6),
    st.floats(0.5, 6),
    st.booleans(),
)
def test_a_ramp_is_read_at_the_bin_centres(x, y, width, height, aligned):
    """A mean of bilinear reads of a linear function is its value at the mean position."""
    box = np.array([[0, x, y, x + width, y + height]], np.float32)
    pooled = pool(ramp(20, 20), box, 4, aligned, stride=1)[0]
    if not aligned:
        width, height = max(width, 1), max(height, 1)
    shift = 0.5 if aligned else 0
    centres = (np.arange(4) + 0.5) / 4
    np.testing.assert_allclose(pooled[0, :, 0], x + width * centres - shift, atol=1e-4)
    np.testing.assert_allclose(pooled[:, 0, 1], y + height * centres - shift, atol=1e-4)


@pytest.mark.parametrize("aligned", [False, True])
def test_padding_a_map_changes_nothing(aligned):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 9, 13, 3)).astype(np.float32)
    # In cells x 4: inside, over each border, far outside, empty, and all over the map.
    boxes = np.array(
        [
            [4, 4, 30, 20],
            [-20, -9, 12, 8],
            [40, 28, 60, 44],
            [300, 300, 400, 400],
            [0, 0, 0, 0],
            [-30, -30, 99, 77],
        ],
        np.float32,
    )
    rois = np.concatenate([np.tile([[0], [1]], (3, 1)).astype(np.float32), boxes], axis=1)
    expected = pool(features, rois, 7, aligned)
    padded = np.full((2, 16, 16, 3), 1e3, np.float32)
    padded[:, :9, :13] = features
    valid_hw = np.array([[9, 13], [9, 13]], np.int32)
    np.testing.assert_allclose(pool(padded, rois, 7, aligned, valid_hw), expected, atol=1e-6)

    gradient = jax.jit(jax.grad(lambda x: (pool(x, rois, 7, aligned, valid_hw) ** 2).sum()))(padded)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:, :9, :13]).max() > 0
    assert not gradient[:, 9:].any() and not gradient[:, :, 13:].any()


@functools.partial(jax.jit, static_argnames=("chunk_size",))
def pool_pyramid(maps, boxes, batch_index, valid_hw=None, chunk_size=None):
    strides = STRIDES[: len(maps)]
    return roi_align.multilevel_roi_align(
        maps, strides, boxes, batch_index, 7, 2, False, valid_hw=valid_hw, chunk_size=chunk_size
    )


def test_each_image_of_a_pyramid_has_its_own_valid_part():
    """Two images of different size, padded to one: as if each were pooled alone."""
    rng = np.random.default_rng(1)
    sizes = [(32, 48), (64, 40)]  # at stride 4
    boxes = np.array([[3, 5, 40, 60], [2, 8, 190, 120], [9, 9, 500, 500]], np.float32)
    padded = [np.full((2, 64 >> i, 48 >> i, 2), np.nan, np.float32) for i in range(2)]
    alone = []
    for image, (height, width) in enumerate(sizes):
        maps = [
            rng.normal(size=(1, height >> i, width >> i, 2)).astype(np.float32) for i in range(2)
        ]
        for level_map, part in zip(padded, maps, strict=True):
            level_map[image, : part.shape[1], : part.shape[2]] = part[0]
        alone.append(pool_pyramid(maps, boxes, np.zeros(3, np.int32)))
    valid_hw = [np.array(sizes, np.int32) >> i for i in range(2)]
    batch_index = np.repeat(np.arange(2, dtype=np.int32), 3)
    together = pool_pyramid(padded, np.tile(boxes, (2, 1)), batch_index, valid_hw)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


def test_reads_outside_count_as_zero_and_near_the_border_as_the_border():
    features = np.ones((1, 8, 8, 1), np.float32)
    rois = np.array([[0, -40, 8, -20, 16], [0, -3, 8, 1, 16]], np.float32)
    pooled = np.asarray(pool(features, rois, 2, False))
    assert not pooled[0].any()
    np.testing.assert_allclose(pooled[1], 1, rtol=1e-6)


OPTIMISED = {"xla_backend_optimization_level": 2}  # the tests compile without, which fuses nothing


def _counted_reads(low, high, size, limit, aligned):
    """How many of a bin's two reads along one axis are within a cell of the map, [R, size].

    torchvision's arithmetic, in NumPy: every operation is rounded once, to float32.
    """
    half, one = np.float32(0.5), np.float32(1)
    if aligned:
        low, high = low - half, high - half
    extent = high - low if aligned else np.maximum(high - low, one)
    bin_size = (extent / np.float32(size))[:, None, None]
    bins = np.arange(size, dtype=np.float32)[None, :, None]
    reads = (np.arange(2, dtype=np.float32) + half) * bin_size / np.float32(2)
    position = low[:, None, None] + bins * bin_size + reads
    assert position.dtype == np.float32
    return ((position >= -1) & (position <= limit)).sum(-1)


@pytest.mark.parametrize("aligned", [False, True])
def test_reads_exactly_on_the_border_are_the_references_however_compiled(aligned):
    """On a map of ones a bin is the share of its reads that count; quarters of cells meet it."""
    rng = np.random.default_rng(3)
    low = rng.integers(-12, 20, (3000, 2)) / np.float32(4)
    high = low + rng.integers(1, 60, (3000, 2)) / np.float32(4)
    boxes = np.concatenate([low, high], axis=1, dtype=np.float32)
    boxes[0] = 0.5, 1, 4.5, 7  # read 10 of 14 is at 5 exactly; compiled freely, it was not
    counts = [_counted_reads(boxes[:, i], boxes[:, i + 2], 7, 5, aligned) for i in range(2)]
    expected = counts[1][:, :, None] * counts[0][:, None, :] / 4
    features, rois = np.ones((1, 5, 5, 1), np.float32), np.pad(boxes, ((0, 0), (1, 0)))
    free = jax.jit(
        lambda rois: pool(features, rois, 7, aligned, stride=1), compiler_options=OPTIMISED
    )
    for run in (free, lambda rois: pool(features, rois, 7, aligned, stride=1)):
        # Above half a read's share of a quarter, below it only rounding of bilinear weights.
        np.testing.assert_allclose(run(rois)[..., 0], expected, atol=1e-5)


def test_half_precision_keeps_its_dtype_and_accumulates_in_single():
    features = jnp.asarray(ramp(16, 16), jnp.bfloat16)
    rois = np.array([[0, 4, 4, 40, 40]], np.float32)
    pooled = pool(features, rois, 7, True)
    assert pooled.dtype == jnp.bfloat16
    exact = pool(features.astype(jnp.float32), rois, 7, True)
    np.testing.assert_array_equal(pooled, exact.astype(jnp.bfloat16))
    gradient = jax.jit(jax.grad(lambda x: pool(x, rois, 7, True).astype(jnp.float32).sum()))(
        features
    )
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32).sum(), 98, rtol=1e-2)


def test_boxes_get_no_gradient():
    features = ramp(16, 16)
    rois = jnp.array([[0, 4.0, 4.0, 40.0, 40.0]])
    gradient = jax.grad(lambda r: pool(features, r, 7, True).sum())(rois)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(rois))


def test_vmap_equals_one_by_one():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(3, 1, 10, 12, 2)).astype(np.float32)
    low = rng.uniform(0, 20, (3, 5, 2))
    corners = np.concatenate([np.zeros((3, 5, 1)), low, low + 15], axis=-1).astype(np.float32)
    together = jax.vmap(lambda x, r: pool(x, r, 7, False, chunk_size=2))(features, corners)
    for i in range(3):
        np.testing.assert_allclose(
            together[i], pool(features[i], corners[i], 7, False, chunk_size=2), atol=1e-6
        )


def test_no_boxes():
    assert pool_pyramid([ramp(8, 8), ramp(4, 4)], jnp.zeros((0, 4)), jnp.zeros(0, int)).size == 0
    features = ramp(8, 8)
    assert pool(features, np.zeros((0, 5), np.float32), 7, False).shape == (0, 7, 7, 2)
    gradient = jax.jit(jax.grad(lambda x: pool(x, np.zeros((0, 5), np.float32), 7, False).sum()))(
        features
    )
    assert not gradient.any()


@pytest.mark.parity
@pytest.mark.parametrize(("aligned", "output_size"), [(False, 7), (True, 7), (True, 14)])
def test_adaptive_sampling_matches_torchvision(golden_dir, assert_rounding, aligned, output_size):
    """Boxes of 1 to 27 reads a bin, each with its own number along either axis."""
    with np.load(golden_dir / "ops.npz") as file:
        features, rois = nhwc(file["roi_align/input"]), file["roi_align/rois"]
        name = f"roi_align/aligned{int(aligned)}_sr0_out{output_size}"
        expected = nhwc(file[name])
        expected_gradient = file[f"{name}_grad_input"] if output_size == 7 else None
    for chunk_size in (None, 3):
        pooled = pool(features, rois, output_size, aligned, chunk_size=chunk_size, ratio=0)
        assert_rounding(pooled, expected)
    if expected_gradient is None:
        return
    cotangent = nhwc(np.linspace(-1, 1, 10 * 3 * 49, dtype=np.float32).reshape(10, 3, 7, 7))

    def total(features):
        return jnp.sum(pool(features, rois, 7, aligned, chunk_size=3, ratio=0) * cotangent)

    assert_rounding(jax.jit(jax.grad(total))(features), nhwc(expected_gradient))


def test_adaptive_sampling_of_a_box_as_long_as_the_map():
    """Ten cells a bin are ten reads, in the middles of the cells: their mean."""
    features = ramp(4, 40)[..., :1] ** 2
    rois = np.array([[0, 0, 0, 40, 4], [0, 7, 2, 7, 2]], np.float32)
    pooled = pool(features, rois, 4, True, stride=1, ratio=0)
    cells = (np.arange(40.0) ** 2).reshape(4, 10).mean(-1)
    np.testing.assert_allclose(pooled[0, 0, :, 0], cells, rtol=1e-6)
    assert not pooled[1].any()  # the empty box


@pytest.mark.parametrize(
    ("features", "strides", "rois", "message"),
    [
        ([(1, 8, 8, 1)], (4, 8), 2, "a stride"),
        ([(1, 8, 8, 1), (1, 4, 4, 2)], (4, 8), 2, "of one B and C"),
        ([(1, 8, 8, 1), (1, 4, 4, 1)], (4, 16), 2, "powers of two"),
        ([(1, 8, 8, 1)], (4,), 3, "batch_index"),
    ],
)
def test_wrong_shapes_are_named(features, strides, rois, message):
    maps = [jnp.zeros(shape) for shape in features]
    with pytest.raises(ValueError, match=message):
        roi_align.multilevel_roi_align(
            maps, strides, jnp.zeros((2, 4)), jnp.zeros(rois, int), 7, 2, False
        )


def test_a_negative_sampling_ratio_is_refused():
    features, boxes, batch_index = jnp.zeros((1, 8, 8, 1)), jnp.zeros((2, 4)), jnp.zeros(2, int)
    with pytest.raises(ValueError, match="sampling_ratio must not be negative, got -1"):
        roi_align.multilevel_roi_align([features], [4], boxes, batch_index, 7, -1, False)
