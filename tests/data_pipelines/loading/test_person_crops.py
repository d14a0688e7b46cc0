"""Crops around people: what is in the image at a place is in the crop at the moved place."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.configs import teacher
from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.data_pipelines.coco.annotations import ImageFacts, ImageRecord
from ktn_jax.data_pipelines.loading import configured, pipeline
from ktn_jax.data_pipelines.loading.person_crops import CropShape, PersonCrops, cut_window
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import ConcatenatedSource, FolderSource
from ktn_jax.data_pipelines.loading.transforms import adjust_colours

SHAPE = CropShape((64, 48), margin=1.2)
BOXES = st.tuples(st.floats(-10, 60), st.floats(-10, 60), st.floats(12, 80), st.floats(12, 80)).map(
    np.array
)


class _OnePerson:
    """An image of a single white block, and a person whose point is on its middle."""

    def __init__(self, person, box, block):
        self._image = np.zeros((100, 120, 3), np.uint8)
        row, column = block
        self._image[row - 3 : row + 3, column - 3 : column + 3] = 255
        grid = (np.array([column, row]) - box[:2]) * 256 / box[2:]
        point = {
            name: np.array([value], np.float32)
            for name, value in zip("xyiuv", (*grid, 2, 0.5, 0.5), strict=True)
        }
        dense = dataclasses.replace(person.densepose.take(np.array([0])), **point)
        keypoints = np.zeros((17, 3), np.float32)
        keypoints[0] = column - 0.5, row - 0.5, 2  # of the file: 0 is the middle of a pixel
        self._person = dataclasses.replace(
            person,
            box_xywh=box,
            densepose=dense,
            keypoints=keypoints,
            segmentation=[[column, row, *box[:2], *(box[:2] + box[2:])]],
        )

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self._image, ImageRecord(7, "a.jpg", 100, 120, (self._person,))

    def facts(self):
        ones = np.ones(1, np.int32)
        return ImageFacts(np.array([[100, 120]]), ones, 1, with_surface=ones)


@pytest.fixture(scope="module")
def person(dataset_writer, tmp_path_factory):
    """Somebody with DensePose."""
    root = tmp_path_factory.mktemp("people")
    dataset_writer(root, "annotations.json", "images", [100])
    record = annotations.parse_dataset(root / "annotations.json").images[0]
    return next(person for person in record.people if person.densepose is not None)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(box=BOXES, row=st.integers(10, 90), column=st.integers(10, 110))
def test_points_and_keypoints_stay_on_what_they_mark(person, box, row, column):
    window = SHAPE.window(box)
    scale = 48 / (window[2] - window[0])
    crop, record = PersonCrops(_OnePerson(person, box, (row, column)), SHAPE)[0]
    (moved,) = record.people
    assert crop.shape == (record.height, record.width, 3) == (64, 48, 3)
    points = moved.densepose
    place = moved.box_xywh[:2] + np.array([points.x[0], points.y[0]]) * moved.box_xywh[2:] / 256
    np.testing.assert_allclose(moved.keypoints[0, :2] + 0.5, place, atol=1e-3)
    np.testing.assert_allclose(moved.segmentation[0][:2], place, atol=1e-3)
    expected = (np.array([column, row]) - window[:2]) * scale
    np.testing.assert_allclose(place, expected, atol=1e-3)
    if (place > 1).all() and (place < [47, 63]).all():
        brightest = crop[int(place[1]), int(place[0])]
        # A block of six pixels fills the pixel on its middle, unless it is far smaller than one.
        assert (brightest > (250 if scale > 0.5 else 100)).all()
        far = np.hypot(*np.meshgrid(np.arange(48) + 0.5 - place[0], np.arange(64) + 0.5 - place[1]))
        assert not crop[far > 5 * scale + 2].any()


@given(box=BOXES)
def test_windows_hold_the_enlarged_box_tightly(box):
    window = SHAPE.window(box)
    sides = window[2:] - window[:2]
    np.testing.assert_allclose(sides[0] / sides[1], 48 / 64)
    np.testing.assert_allclose(window[:2] + sides / 2, box[:2] + box[2:] / 2)
    np.testing.assert_allclose((sides / box[2:]).min(), 1.2)


def test_what_is_beyond_the_image_is_black():
    image = np.full((20, 20, 3), 200, np.uint8)
    crop = cut_window(image, np.array([-10.0, 10.0, 10.0, 30.0]), (40, 40))
    assert (crop[1:18, 22:] == 200).all()
    assert not crop[:, :18].any() and not crop[22:].any()
    assert not cut_window(image, np.array([50.0, 50.0, 60.0, 60.0]), (8, 8)).any()


def test_people_with_points_are_rows_of_their_own(folder):
    source = FolderSource(annotations.parse_dataset(folder / "annotations.json"), folder / "images")
    crops = PersonCrops(source, SHAPE)
    dense = [
        person.annotation_id
        for index in range(len(source))
        for person in source[index][1].people
        if person.densepose is not None and person.densepose.i.any()
    ]
    found = [crops[index][1].people for index in range(len(crops))]
    assert [person.annotation_id for (person,) in found] == dense
    facts = crops.facts()
    assert facts.sizes_hw.tolist() == [[64, 48]] * len(dense) and facts.people.sum() == len(dense)
    augmentation = Augmentation((48,), 64, 0.0, 15.0, (0.8, 1.2), 0.4, (64 / 48,), 1)
    settings = pipeline.DataSettings(
        3, max_people=1, max_points=24, loader="threads", workers=0, augmentation=augmentation
    )
    batches = pipeline.make_training_data(settings, crops).batches_from(0)
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (3, 64, 64, 3)  # rounded up to multiples of 32
    assert batch["has_densepose"].all() and batch["point_is_valid"].any(-1).all()


def _batches(data):
    batches = data.batches_from(1)
    taken = list(itertools.islice(batches, 3))
    batches.close()
    return taken


@pytest.mark.parametrize(
    "loader,source",
    [
        ("threads", "densepose_coco"),
        ("tf_data", "densepose_coco"),
        pytest.param("tf_data", "synthetic", marks=pytest.mark.extended),
        pytest.param("processes", "densepose_coco", marks=pytest.mark.slow),
        pytest.param("processes", "synthetic", marks=[pytest.mark.slow, pytest.mark.extended]),
    ],
)
def test_every_loader_makes_the_same_crops(folder, loader, source):
    """Those of a teacher's configuration, from files and of people who are rendered."""
    config = teacher.get_config("tiny")
    data = config.data
    data.source, data.annotations = source, (str(folder / "annotations.json"),)
    data.images, data.flip_probability = (str(folder / "images"),), 0.0
    data.synthetic.num_images = 5
    data.workers = 0
    data.loader = "threads"
    expected = _batches(configured.make_training_data(config))
    data.workers, data.loader = 2, loader
    actual = _batches(configured.make_training_data(config))
    assert expected[0]["image"].shape == (config.batch_size, 64, 64, 3)
    assert len({batch["image"].tobytes() for batch in expected}) == 3
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert values.dtype == other[name].dtype, name
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_crops_have_the_weights_of_their_images(folder):
    dataset = annotations.parse_dataset(folder / "annotations.json")
    twice = [FolderSource(dataset, folder / "images")] * 2
    source = ConcatenatedSource(twice, weights=(1.0, 3.0))
    crops = PersonCrops(source, SHAPE)
    one = len(PersonCrops(twice[0], SHAPE))
    weights = crops.facts().weights
    np.testing.assert_array_equal(weights, [1] * one + [3] * one)
    augmentation = Augmentation((48,), 64, 0.0, aspect_limits=(64 / 48,), canvas_levels=1)
    settings = pipeline.DataSettings(4, 1, 24, loader="threads", augmentation=augmentation)
    assert pipeline.make_training_data(settings, crops).steps_per_epoch == one


def test_people_who_are_rendered_later_are_taken_in_turn(person):
    source = _OnePerson(person, np.array([20.0, 20, 40, 60]), (40, 40))
    facts = dataclasses.replace(source.facts(), with_surface=None, people=np.array([3]))
    source.facts = lambda: facts
    crops = PersonCrops(source, SHAPE)
    assert [len(crops[index][1].people) for index in range(len(crops))] == [1, 1, 1]
    source._person = dataclasses.replace(source._person, densepose=None)
    crop, record = crops[1]
    assert record.people == () and not crop.any()


def test_colours_change_as_the_factors_say():
    image = np.array([[[100, 150, 50], [20, 40, 60]]], np.uint8)
    np.testing.assert_array_equal(adjust_colours(image, (1, 1, 1)), image)
    np.testing.assert_array_equal(adjust_colours(image, (1.5, 1, 1)), image * 1.5)
    grey = image @ np.array([0.299, 0.587, 0.114])
    no_colour = adjust_colours(image, (1, 1, 0))
    np.testing.assert_allclose(no_colour, np.repeat(grey[..., None], 3, -1), atol=0.5)
    flat = adjust_colours(image, (1, 0, 1))
    np.testing.assert_allclose(flat, np.full((1, 2, 3), grey.mean()), atol=0.5)
    assert adjust_colours(image, (2, 1, 1)).max() == 255
