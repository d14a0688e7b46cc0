"""From the charts of views to labels inside the part masks, with a network that reads pictures."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.body import parts
from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.configs import teacher
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, PersonRecord
from ktn_jax.inference import inpainting
from ktn_jax.inference.inpainting import AnnotatedPerson, DenseLabels, Inpainter
from ktn_jax.ops.chart_reads import read_points
from ktn_jax.structures import DensePoseOutputs

HEAD = parts.COARSE_NAMES.index("head")
RIGHT_HEAD, LEFT_HEAD = (parts.PATCH_NAMES.index(f"{side}_head") for side in ("right", "left"))
TORSO_FRONT = parts.PATCH_NAMES.index("torso_front")


def _charts(patch_logit, u=0.5, v=0.25, size_hw=(4, 3)):
    fine = np.zeros((1, *size_hw, 25), np.float32)
    for patch, logit in patch_logit.items():
        fine[..., patch] = logit
    shape = (1, *size_hw, 25)
    maps = (np.full(shape, value, np.float32) for value in (u, v))
    return DensePoseOutputs(np.zeros((1, *size_hw, 15), np.float32), fine, *maps)


def test_grids_are_read_where_training_reads_points():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(12, 9, 4)).astype(np.float32)
    box, crop_hw, cells_hw = np.array([5.0, 2.5, 30.0, 40.0], np.float32), (48, 36), (7, 5)
    grid = inpainting.read_grid(maps, box, crop_hw, cells_hw)
    y, x = ((np.arange(cells) + 0.5).astype(np.float32) * 256 / cells for cells in cells_hw)
    y, x = (values.reshape(1, -1) for values in np.meshgrid(y, x, indexing="ij"))
    whole = np.array([[0, 0, 36, 48]], np.float32)
    expected, is_valid = read_points(maps[None], x, y, box[None], whole)
    assert is_valid.all()
    np.testing.assert_allclose(grid.reshape(-1, 4), expected[0], atol=1e-5)


def test_labels_are_inside_the_part_masks_and_of_their_part():
    mask = np.zeros((256, 256), np.uint8)
    mask[:128, :170] = HEAD  # two of four rows and of three columns
    labels = inpainting.merge_views(mask, [_charts({TORSO_FRONT: 9.0, LEFT_HEAD: 2.0})])
    expected = np.zeros((4, 3), np.uint8)
    expected[:2, :2] = LEFT_HEAD
    np.testing.assert_array_equal(labels.patch, expected)
    is_off = expected == 0
    assert not labels.confidence[is_off].any() and not labels.uv[:, is_off].any()
    # Sure of another part, the network is not sure of this one: the softmax of all 25.
    sure = np.exp(2) / (np.exp(9) + np.exp(2) + 23)
    np.testing.assert_allclose(labels.confidence[~is_off], sure, rtol=1e-5)


def test_any_patch_may_be_in_a_mask_of_the_whole_body():
    mask = np.full((256, 256), parts.UNKNOWN_PART, np.uint8)
    mask[:128] = 0
    labels = inpainting.merge_views(mask, [_charts({0: 9.0, LEFT_HEAD: 2.0, TORSO_FRONT: 1.0})])
    assert not labels.patch[:2].any() and (labels.patch[2:] == LEFT_HEAD).all()


def test_views_are_averaged_and_doubt_each_other():
    mask = np.full((256, 256), HEAD, np.uint8)
    views = [_charts({LEFT_HEAD: 3.0}, u=0.4), _charts({RIGHT_HEAD: 1.0}, u=0.5)]
    labels = inpainting.merge_views(mask, views)
    assert (labels.patch == LEFT_HEAD).all()
    np.testing.assert_allclose(labels.uv[0], 0.45, rtol=1e-6)
    np.testing.assert_allclose(labels.uv[1], 0.25, rtol=1e-6)
    left = (np.exp(3) / (np.exp(3) + 24) + 1 / (np.exp(1) + 24)) / 2
    # Both are 0.05 from their mean, a quarter of what leaves no confidence.
    np.testing.assert_allclose(labels.confidence, left * 0.75, rtol=1e-5)
    alone = inpainting.merge_views(mask, views[:1])
    np.testing.assert_allclose(alone.confidence, np.exp(3) / (np.exp(3) + 24), rtol=1e-5)


def _predict_places(variables, crops, masks, boxes):
    """Charts of a head seen from the front: its right on the picture's left, U from left to right.

    A mirrored view has the same charts, of the other side: what it says of the person is the same.
    """
    del variables, masks, boxes
    rows, width = len(crops), crops.shape[2] // 2
    fraction = np.broadcast_to((np.arange(width) / width), (rows, crops.shape[1] // 2, width))
    fine = np.zeros((*fraction.shape, 25), np.float32)
    fine[..., RIGHT_HEAD] = np.where(fraction < 0.5, 20, 0)
    fine[..., LEFT_HEAD] = np.where(fraction < 0.5, 0, 20)
    u = np.repeat(fraction[..., None], 25, -1).astype(np.float32)
    v = np.full_like(u, 0.3)
    return DensePoseOutputs(np.zeros((*fraction.shape, 15), np.float32), fine, u, v)


@pytest.fixture
def inpainter():
    config = teacher.get_config("tiny")
    cells = (np.minimum((np.arange(256) + 0.5) / 255, 1))[None, None]
    mirrored_u = np.broadcast_to(1 - cells, (24, 256, 256))
    symmetry = UVSymmetry(mirrored_u, np.broadcast_to(cells.swapaxes(1, 2), (24, 256, 256)))
    made = Inpainter(config, {}, symmetry)
    made._predict = _predict_places
    return made


def test_mirrored_views_and_scales_say_the_same(inpainter):
    # The crop of a person in the middle of the image is the image: U is the place in it.
    image = np.zeros((80, 80, 3), np.uint8)
    mask = np.full((256, 256), HEAD, np.uint8)
    people = [AnnotatedPerson(image, np.array([8.0, 8.0, 64.0, 64.0]), mask)] * 5  # over a batch
    found = inpainter(people)
    assert len(found) == 5
    place = (8 + np.arange(64) + 0.5) / 80
    sides = np.where(place < 0.5, RIGHT_HEAD, LEFT_HEAD)
    is_clear = np.abs(place - 0.5) > 0.04
    for labels in found:
        assert (labels.patch == sides)[:, is_clear].all()
        np.testing.assert_allclose(labels.uv[0], np.tile(place, (64, 1)), atol=0.01)
        np.testing.assert_allclose(labels.uv[1], 0.3, atol=0.005)
        # The views agree but for the levels of the tables.
        assert labels.confidence[:, is_clear].min() > 0.9


def test_a_detector_is_no_teacher():
    config = teacher.get_config("tiny")
    with pytest.raises(ValueError, match="symmetry"):
        Inpainter(config, {})
    config.model.kind = "detector"
    with pytest.raises(ValueError, match="teacher_tiny is no teacher"):
        Inpainter(config, {})


def test_points_go_where_none_are():
    line = np.stack([np.arange(11.0), np.zeros(11)], -1)
    assert inpainting.farthest_points(line, line[:1], 3).tolist() == [10, 5, 2]
    assert sorted(inpainting.farthest_points(line, np.zeros((0, 2)), 99)) == list(range(11))
    assert len(inpainting.farthest_points(line, line, 0)) == 0


def test_people_are_filled_up_with_points_around_the_annotators():
    columns = {
        "x": np.array([64.0, 200.0], np.float32),
        "y": np.array([64.0, 10.0], np.float32),
        "i": np.array([24.0, 1.0], np.float32),
        "u": np.array([0.1, 0.2], np.float32),
        "v": np.array([0.3, 0.4], np.float32),
    }
    dense = DensePoseRecord(
        **columns,
        part_mask=np.full((256, 256), HEAD, np.uint8),
        is_annotated=np.array([True, False]),
        confidence=np.ones(2, np.float32),
    )
    box = np.array([0.0, 0, 40, 20])
    person = PersonRecord(3, box, False, 1.0, np.zeros((17, 3), np.float32), densepose=dense)
    patch = np.zeros((20, 40), np.uint8)
    patch[2:18, 4:36] = LEFT_HEAD
    rng = np.random.default_rng(0)
    labels = DenseLabels(
        patch, rng.random((2, 20, 40), np.float32), rng.random((20, 40), np.float32)
    )
    filled = inpainting.add_points(person, labels, 12)
    assert filled.is_annotated.tolist() == [True] + [False] * 11
    assert (filled.x[0], filled.u[0]) == (np.float32(64.0), np.float32(0.1))
    column, row = (filled.x[1:] * 40 / 256).astype(int), (filled.y[1:] * 20 / 256).astype(int)
    assert (patch[row, column] == filled.i[1:]).all() and (filled.i[1:] == LEFT_HEAD).all()
    np.testing.assert_array_equal(filled.u[1:], labels.uv[0, row, column])
    np.testing.assert_array_equal(filled.confidence[1:], labels.confidence[row, column])
    # Spread over the inner cells: none within a few pixels of another, or of the annotator's.
    assert ((row >= 3) & (row <= 16) & (column >= 5) & (column <= 34)).all()
    places = np.stack([filled.x * 40 / 256, filled.y * 20 / 256], -1)
    gaps = np.linalg.norm(places[:, None] - places, axis=-1) + 99 * np.eye(12)
    assert gaps.min() > 5
    assert len(inpainting.add_points(person, labels, 1).x) == 1
    with pytest.raises(ValueError, match="annotation 3"):
        inpainting.add_points(dataclasses.replace(person, densepose=None), labels, 5)
