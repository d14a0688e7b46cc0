"""Masks on the image: placing, overlap, the two ways of drawing a person, ignore regions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy.ndimage import zoom

from ktn_jax.evaluation import ignore_regions, masks

SIZE = (40, 60)


def _random_placed(rng):
    height, width = rng.integers(1, 30, 2)
    box = [*rng.uniform(-8, 60, 2), width + rng.random(), height + rng.random()]
    return masks.place(rng.random((height, width)) < 0.6, box, SIZE)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_overlap_equals_pycocotools_on_whole_images(seed):
    rng = np.random.default_rng(seed)
    detections = [_random_placed(rng) for _ in range(4)]
    people = [_random_placed(rng) for _ in range(3)]
    crowd = rng.random(3) < 0.4
    rles = [[mask.to_rle() for mask in group] for group in (detections, people)]
    expected = coco_mask.iou(*rles, crowd.astype(int).tolist())
    np.testing.assert_array_equal(masks.mask_iou(detections, people, crowd), expected)


def test_place_truncates_towards_zero_and_cuts_at_the_image():
    mask = np.ones((10, 20), bool)
    placed = masks.place(mask, [-2.7, 35.9, 20.4, 10.2], SIZE)
    # int(-2.7) is -2, and the right edge int(-2.7 + 20.4) = 17 lies left of -2 + 20.
    assert (placed.left, placed.top, placed.mask.shape) == (0, 35, (5, 17))
    assert masks.place(mask, [70, 5, 20, 10], SIZE).mask.size == 0
    assert masks.place(mask, [-30, 5, 20, 10], SIZE).mask.size == 0


def _rle(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def test_later_parts_lie_on_top_and_missing_ones_are_empty():
    left, middle = np.zeros((2, 256, 256), bool)
    left[:, :150], middle[:, 100:200] = True, True
    labels = masks.part_labels([_rle(left), [], _rle(middle)])
    np.testing.assert_array_equal(labels[0, [0, 120, 180, 220]], [1, 3, 3, 0])
    flat = {"size": [256, 256], "counts": [0, 256 * 150, 256 * 106]}
    np.testing.assert_array_equal(masks.part_labels([flat]), left)


def test_person_without_dense_masks_is_drawn_from_the_segmentation():
    square = [[10, 5, 20, 5, 20, 15, 10, 15]]
    drawn = masks.annotated_mask([10, 5, 10, 10], SIZE, None, square).mask
    assert drawn.sum() == 100 and drawn[5:15, 10:20].all()
    uncompressed = {"size": list(SIZE), "counts": [40, 40, 2320]}
    assert masks.annotated_mask([1, 0, 1, 40], SIZE, None, uncompressed).mask[:, 1].all()
    compressed = coco_mask.frPyObjects(uncompressed, *SIZE)
    assert masks.annotated_mask([1, 0, 1, 40], SIZE, None, compressed).mask.sum() == 40
    for nothing in (None, []):
        assert masks.annotated_mask([1, 1, 5, 5], SIZE, None, nothing).mask.sum() == 0


def test_labels_resized_before_the_threshold_grow():
    half = np.zeros((256, 256), bool)
    half[:, :128] = True
    dp_masks = [[]] * 13 + [_rle(half)]  # part 14: 0.5 is passed at 4 % of the way, not half
    box = [0, 0, 777, 256]  # between two grid columns lie about three pixels
    widths = [
        masks.annotated_mask(box, (256, 777), dp_masks, None, fork).mask.sum(axis=1).max()
        for fork in (False, True)
    ]
    assert widths == [388, 390]


@pytest.mark.parametrize("scale", [0.002, 0.3, 1.0, 1.37, 2.0])
def test_stretched_labels_are_scipys_bit_for_bit(scale):
    rng = np.random.default_rng(0)
    whole = np.kron(rng.integers(0, 15, (16, 16)) * (rng.random((16, 16)) < 0.5), np.ones((16, 16)))
    noise = rng.integers(0, 2, (256, 256))
    for labels in (whole, noise):
        for height, width in 256 * scale * rng.uniform(0.7, 1.3, (4, 2)):
            expected = zoom(labels * 1.0, (height / 256, width / 256), order=1, prefilter=False)
            drawn = masks.stretch(labels.astype(np.uint8), expected.shape)
            np.testing.assert_array_equal(drawn, expected > 0.5)


def test_stretched_labels_end_as_scipys_do():
    labels = np.ones((256, 256), np.uint8)
    places = [size for size in range(2, 600) if (size - 1) * (255 / (size - 1)) > 255]
    assert places  # rounded to beyond the grid, where SciPy has 0
    for size in places[:3]:
        expected = zoom(labels * 1.0, (size / 256, 1), order=1, prefilter=False) > 0.5
        assert not expected[-1].any()
        np.testing.assert_array_equal(masks.stretch(labels, (size, 256)), expected)


REGION = np.zeros(SIZE, bool)
REGION[:, 30:] = True


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ([0, 0, 10, 10], True),
        ([24, 0, 20, 10], False),  # 14 of 20 columns inside: 70 %
        ([25, 0, 16, 10], True),  # 11 of 16: less
        ([40, 0, 0.9, 10], False),  # an empty box
    ],
)
def test_people_in_ignore_regions(box, kept):
    assert bool(ignore_regions.is_kept(REGION, box)) == kept


def test_detections_in_ignore_regions_go_by_their_body():
    body = np.zeros((10, 20), bool)
    body[:, 8:18] = True
    box = [20, 0, 20, 10]  # body columns 28..37: eight of ten inside
    assert ignore_regions.is_kept(REGION, box, body)
    assert not ignore_regions.is_kept(REGION, [21, 0, 20, 10], body)  # nine of ten
    assert ignore_regions.is_kept(REGION, [50, 0, 20, 10], body)  # cut by the image: kept


def test_regions_are_drawn_from_polygons():
    drawn = ignore_regions.draw([[5, 15, 15, 5], [30, 40, 40, 30]], [[2, 2, 8, 8]] * 2, SIZE)
    assert drawn.sum() == 2 * 60 and drawn[2:8, 5:15].all() and drawn[2:8, 30:40].all()
