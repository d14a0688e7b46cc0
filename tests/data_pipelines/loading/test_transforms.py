"""Image and labels move together: recorded numbers, closed forms and involutions."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from ktn_jax.body import parts
from ktn_jax.body.procedural import assembly
from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.data_pipelines.coco import annotations, part_masks
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, ImageRecord, PersonRecord
from ktn_jax.data_pipelines.loading import transforms
from ktn_jax.data_pipelines.loading.transforms import LabelledImage, PersonLabels
from ktn_jax.runtime.images import shortest_edge_size


def _exact_symmetry():
    """Mirrors U about the middle of the chart on grid values, which tables hold exactly."""
    u = np.broadcast_to(1 - np.arange(256) / 255, (24, 256, 256))
    v = np.broadcast_to(np.arange(256)[:, None] / 255, (24, 256, 256))
    return UVSymmetry(u, v)


def _labelled(seed=0, height=60, width=80):
    rng = np.random.default_rng(seed)
    count = 30
    x0, y0 = rng.uniform(5, 20, 2)
    box = np.array([x0, y0, x0 + rng.uniform(20, 50), y0 + rng.uniform(20, 35)])
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[:9] = np.column_stack([rng.uniform(0, 55, (9, 2)), rng.integers(1, 3, 9)])
    mask = np.zeros((256, 256), np.uint8)
    for part in range(1, 15):
        mask[rng.integers(0, 200) :, rng.integers(0, 200) :] = part
    # U, V halfway between grid values would round either way.
    u, v = rng.integers(0, 256, (2, count)) / 255
    dense = DensePoseRecord(
        *(rng.integers(0, 2048, (2, count)) / 8).astype(np.float32),
        rng.integers(0, 25, count).astype(np.float32),
        (u + 1e-4).clip(0, 1).astype(np.float32),
        (v + 1e-4).clip(0, 1).astype(np.float32),
        mask,
        rng.random(count) < 0.5,
        rng.random(count).astype(np.float32),
    )
    corners = box[[[0, 1], [2, 1], [2, 3], [0, 3]]]
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return LabelledImage(image, (PersonLabels(box, keypoints, dense, corners),))


@pytest.mark.parity
def test_vertices_are_read_and_mirrored_as_the_original_does(golden_dir):
    ops = np.load(golden_dir / "ops_vis_cse.npz")
    raw = json.loads(str(ops["annotation_json"]))
    person = annotations.parse_person(raw)
    for name in "xyiuv":
        np.testing.assert_array_equal(
            getattr(person.densepose, name), ops[f"relative/plain/{name}"]
        )
    np.testing.assert_array_equal(person.densepose.vertex, ops["relative/plain/vertex_ids"])
    np.testing.assert_array_equal(person.densepose.part_mask, ops["relative/plain/segm"])
    height, width = ops["image_bgr"].shape[:2]
    image = np.zeros((height, width, 3), np.uint8)
    record = ImageRecord(1, "a.jpg", height, width, (person,))
    labelled = transforms.label_image(image, record)
    tables = scipy.io.loadmat(golden_dir / "uv_symmetry_synthetic.mat")
    symmetry = UVSymmetry(
        *(np.stack(list(tables[f"{name}_transforms"][0])) for name in "UV"),
    )
    mirrors = {raw["ref_model"]: ops["mesh/symmetry"]}
    dense = transforms.flip(labelled, symmetry, mirrors).people[0].densepose
    np.testing.assert_array_equal(dense.vertex, ops["relative/hflip/vertex_ids"])
    np.testing.assert_allclose(dense.x, ops["relative/hflip/x"], rtol=1e-6)
    np.testing.assert_array_equal(dense.i, ops["relative/hflip/i"])
    np.testing.assert_array_equal(dense.part_mask, ops["relative/hflip/segm"])
    # A model of vertices needs no tables of the charts.
    plain = transforms.flip(labelled, None, mirrors).people[0].densepose
    np.testing.assert_array_equal(plain.vertex, dense.vertex)
    assert not plain.i.any()
    with pytest.raises(ValueError, match="symmetry tables"):
        transforms.flip(labelled, None)
    other = transforms.flip(labelled, None, {"another": ops["mesh/symmetry"]}).people[0].densepose
    assert other.vertex is None
    # One mask of the whole body in place of the parts'.
    whole = raw | {"dp_masks": json.loads(str(ops["relative/single_rle/json"]))}
    mask = annotations.parse_person(whole).densepose.part_mask
    # The original says torso, label 1, of all of it.
    np.testing.assert_array_equal(mask, ops["relative/single_rle/segm"] * parts.UNKNOWN_PART)
    np.testing.assert_array_equal(
        transforms.flip_densepose(annotations.parse_person(whole).densepose, None).part_mask,
        mask[:, ::-1],
    )


@pytest.mark.parity
def test_flip_of_annotations_matches_the_original(golden_dir):
    ops = np.load(golden_dir / "ops.npz")
    tables = scipy.io.loadmat(golden_dir / "uv_symmetry_synthetic.mat")
    symmetry = UVSymmetry(
        *(np.stack(list(tables[name][0])) for name in ("U_transforms", "V_transforms"))
    )
    person = annotations.parse_person(json.loads(str(ops["hflip/annotation_json"])))
    flipped = transforms.flip_densepose(person.densepose, symmetry)
    for name in ("x", "y", "i", "u", "v"):
        # Exact: a table lookup, a label swap, and 256 - x in float32.
        np.testing.assert_array_equal(getattr(flipped, name), ops[f"hflip/annotation_{name}"])
    np.testing.assert_array_equal(flipped.part_mask, ops["hflip/annotation_segm"])


@pytest.mark.parity
@pytest.mark.parametrize("short_side,max_side", [(96, 200), (200, 230), (133, 1000)])
def test_resize_matches_the_original(golden_dir, short_side, max_side):
    ops = np.load(golden_dir / "ops.npz")
    image = ops["resize/image"]
    size = shortest_edge_size(image.shape[:2], short_side, max_side)
    resized = transforms.resize_image(image, size)
    np.testing.assert_array_equal(resized, ops[f"resize/short{short_side}_max{max_side}"])


@pytest.mark.parametrize("seed", range(5))
def test_flip_twice_is_the_identity(seed):
    labelled = _labelled(seed)
    symmetry = _exact_symmetry()
    twice = transforms.flip(transforms.flip(labelled, symmetry), symmetry)
    np.testing.assert_array_equal(twice.image, labelled.image)
    before, after = labelled.people[0], twice.people[0]
    np.testing.assert_allclose(after.box_xyxy, before.box_xyxy, atol=1e-12)
    np.testing.assert_allclose(after.outline, before.outline, atol=1e-12)
    np.testing.assert_allclose(after.keypoints, before.keypoints, atol=1e-5)  # float32 pixels
    for name in ("x", "y", "i", "part_mask"):
        np.testing.assert_array_equal(
            getattr(after.densepose, name), getattr(before.densepose, name)
        )
    body = before.densepose.i > 0
    # The tables hold grid values; the points lie 1e-4 above them.
    np.testing.assert_allclose(after.densepose.u[body], before.densepose.u[body], atol=2e-3)
    np.testing.assert_allclose(after.densepose.v[body], before.densepose.v[body], atol=2e-3)
    np.testing.assert_array_equal(after.densepose.u[~body], before.densepose.u[~body])


def test_flip_moves_pixels_boxes_keypoints_and_points_together():
    labelled = _labelled(3)
    flipped = transforms.flip(labelled, _exact_symmetry())
    before, after = labelled.people[0], flipped.people[0]
    np.testing.assert_array_equal(flipped.image[5, 0], labelled.image[5, 79])
    x0, y0, x1, y1 = before.box_xyxy
    np.testing.assert_allclose(after.box_xyxy, [80 - x1, y0, 80 - x0, y1])
    left, right = (parts.KEYPOINT_NAMES.index(f"{side}_eye") for side in ("left", "right"))
    np.testing.assert_allclose(after.keypoints[left, 0], 80 - before.keypoints[right, 0], rtol=1e-6)
    np.testing.assert_array_equal(after.keypoints[left, 1:], before.keypoints[right, 1:])
    unlabelled = after.keypoints[:, 2] == 0
    assert unlabelled.any() and not after.keypoints[unlabelled].any()
    # The same spot of the image: a point's place in the mirrored box is the mirrored place.
    place = x0 + before.densepose.x * (x1 - x0) / 256
    mirrored = after.box_xyxy[0] + after.densepose.x * (x1 - x0) / 256
    np.testing.assert_allclose(mirrored, 80 - place, atol=1e-4)
    hand, other = parts.COARSE_NAMES.index("right_hand"), parts.COARSE_NAMES.index("left_hand")
    np.testing.assert_array_equal(
        after.densepose.part_mask[:, ::-1] == other, before.densepose.part_mask == hand
    )


def _with_crowd(is_annotated):
    """Labels of an image with a person and a crowd region at x 10..30, y 20..26."""
    dense = _labelled().people[0].densepose
    dense = dataclasses.replace(dense, is_annotated=np.full(len(dense.x), is_annotated))
    nothing = np.zeros((17, 3), np.float32)
    people = (
        PersonRecord(1, np.array([5.0, 5, 20, 30]), False, 9.0, nothing, None, dense),
        PersonRecord(2, np.array([10.0, 20, 20, 6]), True, 9.0, nothing),
    )
    record = ImageRecord(1, "a.jpg", 60, 80, people)
    return transforms.label_image(np.zeros((60, 80, 3), np.uint8), record)


def test_crowds_of_images_that_a_model_labelled_move_with_the_image():
    assert len(_with_crowd(True).ignored_boxes) == len(_labelled().ignored_boxes) == 0
    labelled = _with_crowd(False)
    assert len(labelled.people) == 1
    np.testing.assert_array_equal(labelled.ignored_boxes, [[10, 20, 30, 26]])
    larger = transforms.resize(labelled, (120, 240))
    np.testing.assert_allclose(larger.ignored_boxes, [[30, 40, 90, 52]])
    flipped = transforms.flip(larger, _exact_symmetry())
    np.testing.assert_allclose(flipped.ignored_boxes, [[150, 40, 210, 52]])
    # About the middle (120, 60) by a quarter turn, twice as large, and cut at the image.
    matrix = transforms.rotation_and_zoom((120, 240), 90, 2.0)
    corners = np.array([[150, 40], [210, 40], [210, 52], [150, 52]]) @ matrix[:, :2].T
    corners = np.clip(corners + matrix[:, 2], 0, [240, 120])
    expected = [*corners.min(0), *corners.max(0)]
    np.testing.assert_allclose(transforms.warp(flipped, matrix).ignored_boxes, [expected])


def test_flip_without_tables_is_refused_only_where_they_are_needed():
    labelled = _labelled()
    with pytest.raises(ValueError, match="UV symmetry"):
        transforms.flip(labelled, None)
    plain = dataclasses.replace(labelled.people[0], densepose=None)
    assert transforms.flip(LabelledImage(labelled.image, (plain,)), None).people


@pytest.mark.parametrize("size_hw", [(120, 160), (30, 40), (90, 60)])
def test_resize_scales_labels_and_leaves_the_grid(size_hw):
    labelled = _labelled(1)
    resized = transforms.resize(labelled, size_hw)
    before, after = labelled.people[0], resized.people[0]
    assert resized.size_hw == size_hw
    scale = np.array([size_hw[1] / 80, size_hw[0] / 60])
    np.testing.assert_allclose(after.box_xyxy, before.box_xyxy * np.tile(scale, 2))
    np.testing.assert_allclose(after.keypoints[:, :2], before.keypoints[:, :2] * scale, rtol=1e-6)
    assert after.densepose is before.densepose


def _record(keypoints, crowd=False):
    person = PersonRecord(1, np.array([2.0, 1, 4, 3]), crowd, 5.0, keypoints)
    return ImageRecord(9, "a.jpg", 6, 8, (person,))


def test_labels_take_keypoints_to_pixel_centres_and_leave_crowds_out():
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[3] = [4, 2, 2]
    keypoints[5] = [7, 7, 0]  # coordinates without a label mean nothing
    image = np.zeros((6, 8, 3), np.uint8)
    person = transforms.label_image(image, _record(keypoints)).people[0]
    np.testing.assert_array_equal(person.keypoints[3], [4.5, 2.5, 2])
    np.testing.assert_array_equal(person.keypoints[5], [0, 0, 0])
    np.testing.assert_array_equal(person.box_xyxy, [2, 1, 6, 4])
    assert transforms.label_image(image, _record(keypoints, crowd=True)).people == ()
    with pytest.raises(ValueError, match=r"a\.jpg"):
        transforms.label_image(image[:5], _record(keypoints))


def test_warp_by_identity_changes_nothing():
    labelled = _labelled(2)
    warped = transforms.warp(labelled, transforms.rotation_and_zoom((60, 80), 0, 1))
    np.testing.assert_array_equal(warped.image, labelled.image)
    before, after = labelled.people[0], warped.people[0]
    np.testing.assert_allclose(after.box_xyxy, before.box_xyxy)
    np.testing.assert_array_equal(after.densepose.part_mask, before.densepose.part_mask)
    np.testing.assert_allclose(after.densepose.x, before.densepose.x, atol=1e-4)
    np.testing.assert_array_equal(after.densepose.i, before.densepose.i)


def test_quarter_turn_moves_pixels_and_labels_the_same_way():
    labelled = _labelled(0, height=60, width=60)
    warped = transforms.warp(labelled, transforms.rotation_and_zoom((60, 60), 90, 1))
    # Counter-clockwise on the screen; interpolation at exact pixels is exact.
    np.testing.assert_array_equal(warped.image[1:-1, 1:-1], np.rot90(labelled.image)[1:-1, 1:-1])
    before, after = labelled.people[0], warped.people[0]
    x0, y0, x1, y1 = before.box_xyxy
    turned = [y0, 60 - x1, y1, 60 - x0]
    assert min(turned) > 0 and max(turned) < 60  # not cut: the grids turn into each other
    np.testing.assert_allclose(after.box_xyxy, turned)
    np.testing.assert_array_equal(after.densepose.part_mask, np.rot90(before.densepose.part_mask))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(-180, 180), st.floats(0.4, 2.5))
def test_warp_keeps_points_where_the_map_sends_them(seed, degrees, zoom):
    labelled = _labelled(seed)
    matrix = transforms.rotation_and_zoom((60, 80), degrees, zoom)
    people = transforms.warp(labelled, matrix).people
    before = labelled.people[0]
    if not people:
        return
    after = people[0]
    side = before.box_xyxy[2:] - before.box_xyxy[:2]
    place = np.column_stack([before.densepose.x, before.densepose.y]) * side / 256
    place = (place + before.box_xyxy[:2]) @ matrix[:, :2].T + matrix[:, 2]
    side = after.box_xyxy[2:] - after.box_xyxy[:2]
    if after.densepose is not None:
        points = np.column_stack([after.densepose.x, after.densepose.y]) * side / 256
        points = points + after.box_xyxy[:2]
        inside = ((place >= after.box_xyxy[:2]) & (place <= after.box_xyxy[2:])).all(axis=-1)
        # Float32 on a grid of 256 over at most 80 pixels.
        close = np.abs(place - np.clip(place, after.box_xyxy[:2], after.box_xyxy[2:])).max(-1)
        assert abs(int(inside.sum()) - len(points)) <= int((close < 1e-4).sum())
        for point in points:
            assert np.abs(place - point).max(axis=-1).min() < 1e-3
    assert (after.box_xyxy[:2] >= 0).all() and (after.box_xyxy[2:] <= [80, 60]).all()
    labelled_after = after.keypoints[after.keypoints[:, 2] > 0, :2]
    expected = before.keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    for x, y in labelled_after:
        assert np.abs(expected - [x, y]).max(axis=-1).min() < 1e-3


def test_warp_moves_the_image_as_it_moves_points():
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:23, 30:33] = 255  # middle at (31.5, 21.5) in continuous pixels
    matrix = transforms.rotation_and_zoom((60, 80), 30, 1.5)
    warped = transforms.warp(LabelledImage(image, ()), matrix).image[..., 0].astype(float)
    rows, columns = np.mgrid[:60, :80] + 0.5
    found = [(warped * columns).sum() / warped.sum(), (warped * rows).sum() / warped.sum()]
    expected = matrix[:, :2] @ [31.5, 21.5] + matrix[:, 2]
    # The interpolation rounds positions to 1/32 pixel; half a pixel off would be the slip.
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_warp_drops_people_who_leave():
    labelled = _labelled()
    matrix = np.array([[1.0, 0, 500], [0, 1, 0]])
    assert transforms.warp(labelled, matrix).people == ()


def test_resize_is_pillows_own():
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((71, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(transforms.resize_image(image, (20, 71)), expected)


def test_person_mask_is_the_segmentation_on_the_grid_of_the_box():
    box = np.array([10.0, 20.0, 32.0, 64.0])  # a cell is 1/8 wide and 1/4 high
    polygon = [[10.0, 20.0, 26.0, 20.0, 26.0, 84.0, 10.0, 84.0]]  # the left half
    expected = np.zeros((256, 256), np.uint8)
    expected[:, :128] = 1
    np.testing.assert_array_equal(part_masks.grid_mask(polygon, box), expected)
    pixels = np.zeros((100, 60), np.uint8)
    pixels[20:84, 10:26] = 1
    runs = coco_mask.encode(np.asfortranarray(pixels))
    np.testing.assert_array_equal(part_masks.grid_mask(runs, box), expected)
    assert part_masks.grid_mask(None, box) is None and part_masks.grid_mask([], box) is None
    for side in (1e-9, 5e-324):  # pycocotools would end the process
        assert part_masks.grid_mask(polygon, np.array([10.0, 20.0, side, side])).all()


def test_person_mask_moves_with_the_person():
    labelled = _labelled(0, height=60, width=60)
    mask = (labelled.people[0].densepose.part_mask > 5).astype(np.uint8)
    person = dataclasses.replace(labelled.people[0], person_mask=mask)
    labelled = LabelledImage(labelled.image, (person,))
    flipped = transforms.flip(labelled, _exact_symmetry()).people[0]
    np.testing.assert_array_equal(flipped.person_mask, mask[:, ::-1])
    matrix = transforms.rotation_and_zoom((60, 60), 90, 1)
    turned = transforms.warp(labelled, matrix).people[0]
    np.testing.assert_array_equal(turned.person_mask, np.rot90(mask))
    assert transforms.resize(labelled, (30, 30)).people[0].person_mask is mask


def test_flip_by_tables_is_the_mirror_of_the_body():
    template = assembly.make_body().template
    rng = np.random.default_rng(0)
    faces = rng.integers(0, len(template.chart_faces), 2000)
    corners = template.chart_uv[template.chart_faces[faces]]
    u, v = (corners * rng.dirichlet(np.ones(3), 2000)[..., None]).sum(axis=1).T
    patch = template.face_patch[faces]
    columns = (np.zeros(2000), np.zeros(2000), patch, u, v)
    dense = DensePoseRecord(
        *(column.astype(np.float32) for column in columns),
        np.zeros((256, 256), np.uint8),
        is_annotated=np.ones(2000, bool),
        confidence=np.ones(2000, np.float32),
    )
    flipped = transforms.flip_densepose(dense, template.uv_symmetry_tables)
    exact = template.mirror_iuv(patch, u, v)
    np.testing.assert_array_equal(flipped.i, exact.patch)
    # Half a table cell each way is 0.0028.
    assert np.hypot(flipped.u - exact.u, flipped.v - exact.v).max() < 0.004
    twice = transforms.flip_densepose(flipped, template.uv_symmetry_tables)
    np.testing.assert_array_equal(twice.i, dense.i)
    assert np.hypot(twice.u - dense.u, twice.v - dense.v).max() < 0.006
