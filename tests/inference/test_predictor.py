"""Whole photos through the detector: batches, padding and counts change nothing."""

import numpy as np
import pytest

from ktn_jax.inference import stages
from ktn_jax.inference.known_boxes import BoxedPhoto, KnownBoxPredictor
from ktn_jax.inference.predictor import Predictor
from ktn_jax.inference.stages import Stages
from ktn_jax.runtime.configuration import load_config

# Boxes of an untrained model score about one half each, so all rows hold someone.
FAST = [
    "test.short_side=128",
    "test.max_side=192",
    "model.box_head.max_detections=5",
    "model.densepose_head.channels=32",
    "model.neck.channels=32",
    "model.decoder.channels=32",
    "model.decoder.out_channels=32",
]


def _predictor(draw_variables, *changes):
    config = load_config("configs/ktn.py:tiny", [*FAST, *changes])
    return Predictor(Stages(config, draw_variables(config)))


@pytest.fixture(scope="module")
def predictor(draw_variables):
    return _predictor(draw_variables, "test.size_buckets=((160, 160),)", "test.batch_size=2")


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((120, 160), (160, 120))]


@pytest.fixture(scope="module")
def people(predictor, photos):
    return predictor.find(photos)


def _assert_same_people(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.box_xyxy, b.box_xyxy, atol=1e-2)
        np.testing.assert_allclose(a.score, b.score, atol=1e-4)
        for name in ("coarse_segm", "fine_segm", "u", "v"):
            left, right = (getattr(person.maps.charts, name) for person in (a, b))
            np.testing.assert_allclose(left, right, atol=1e-3 * max(right.std(), 1e-6))


def test_padding_and_batching_change_nothing(draw_variables, photos, people):
    changes = "test.size_buckets=((256, 224),)", "test.batch_size=1"
    wide = _predictor(draw_variables, *changes).find(photos)
    for one, other in zip(people, wide, strict=True):
        _assert_same_people(one, other)


def test_results_are_in_the_photo_and_fit_their_boxes(predictor, photos):
    (found,) = predictor(photos[:1])
    assert len(found) == 5
    for person in found:
        x0, y0, x1, y1 = person.box_xyxy
        assert 0 <= x0 < x1 <= photos[0].shape[1] and 0 <= y0 < y1 <= photos[0].shape[0]
        assert person.iuv.shape == (3, max(int(y1 - y0), 1), max(int(x1 - x0), 1))
        assert person.iuv[0].max() <= 24
        assert person.keypoints.shape == (17, 3)
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


def test_nobody_found_is_an_empty_list(predictor, photos, monkeypatch):
    pyramid, found = predictor.stages.detect(
        np.zeros((2, 160, 160, 3), np.uint8), np.full((2, 2), 160, np.int32)
    )
    nobody = found.replace(is_valid=np.zeros(found.is_valid.shape, bool))
    monkeypatch.setattr(predictor.stages, "detect", lambda *_: (pyramid, nobody))
    assert predictor(photos) == [[], []]


def test_more_people_than_a_call_takes(predictor, photos, people, monkeypatch):
    monkeypatch.setattr(stages, "PEOPLE_BUCKETS", (1, 2))
    for one, other in zip(predictor.find(photos), people, strict=True):
        _assert_same_people(one, other)


@pytest.mark.extended  # test_stages.py has the maps of any boxes
def test_in_the_boxes_of_people_who_were_found_the_same_is_found(predictor, photos):
    expected = predictor(photos)
    boxes = [np.stack([person.box_xyxy for person in people]) for people in expected]
    boxes[1] = boxes[1][:2]
    actual = KnownBoxPredictor(predictor.stages)(list(map(BoxedPhoto, photos, boxes)))
    assert [len(people) for people in actual] == [5, 2]
    for ours, theirs in zip(actual, expected, strict=True):
        for one, other in zip(ours, theirs, strict=False):
            np.testing.assert_allclose(one.box_xyxy, other.box_xyxy, atol=1e-3)
            assert one.score == 1
            assert one.iuv.shape == other.iuv.shape
            # Boxes that are rounded differently may move a pixel over a border.
            assert (one.iuv != other.iuv).mean() < 0.02
    nobody = [BoxedPhoto(photo, np.zeros((0, 4), np.float32)) for photo in photos]
    assert KnownBoxPredictor(predictor.stages)(nobody) == [[], []]


def test_transfer_is_freed_once_its_kernel_is_made(predictor, people):
    assert "transfer" not in predictor.stages.variables["params"]["predictor"]
    assert [kernel.shape for kernel in predictor.stages.surface_kernels] == [(4, 4, 32, 25)]
    assert len(people[0]) == 5  # found without it
