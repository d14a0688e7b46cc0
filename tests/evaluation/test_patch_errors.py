"""Errors by patch: who takes which box, what is booked where."""

import dataclasses
import types

import numpy as np
import pytest

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import patch_errors
from ktn_jax.evaluation.ground_truth import PersonTruth


def _person(number, patches):
    points = None
    if patches is not None:
        points = np.zeros((5, len(patches)))
        points[2] = patches
    return PersonTruth(number, (0, 0, 10, 10), 100.0, False, points, None, None)


def _pair(patches, metres):
    return types.SimpleNamespace(patch=np.array(patches), distances=np.array(metres, np.float32))


def _detections(count, mesh=""):
    return [types.SimpleNamespace(detection_id=10 + index, mesh=mesh) for index in range(count)]


def _measure(people, pairs, box_iou, mesh=""):
    box_iou = np.array(box_iou)
    gps = np.arange(box_iou.size).reshape(box_iou.shape) / 10
    return patch_errors.measure_patches(
        3, people, _detections(len(box_iou), mesh), pairs, gps, box_iou
    )


def test_points_are_booked_to_their_true_patch():
    people = [_person(1, [1, 1, 1, 24, 0])]  # the last was annotated as background
    pair = _pair([1, 1, 1, 24], [0.04, 0.06, 0.21, np.inf])
    total, records = _measure(people, {(0, 0): pair}, [[0.9]])
    rows = total.rows(PATCH_NAMES)
    back = rows["torso_back"]
    assert (back["points"], back["on_body_percent"]) == (3, 100)
    assert back["mean_cm"] == pytest.approx((4 + 6 + 21) / 3, rel=1e-6)
    within = [back[f"within_{limit}cm_percent"] for limit in (5, 10, 20)]
    assert within == pytest.approx([100 / 3, 200 / 3, 200 / 3])
    assert rows["left_head"]["on_body_percent"] == 0
    assert rows["left_head"]["mean_cm"] is None  # nothing to average, not an error of zero
    assert rows["left_head"]["within_20cm_percent"] == 0
    assert rows["torso_front"]["within_20cm_percent"] is None  # no points at all
    assert rows["all"]["points"] == 4 and rows["all"]["on_body_percent"] == 75
    assert records[0].num_points == 4


def test_every_person_takes_one_box_and_every_box_one_person():
    people = [_person(1, [1]), _person(2, [2]), _person(3, None)]
    pairs = {
        (0, 0): _pair([1], [0.01]),
        (1, 0): _pair([1], [0.5]),
        (1, 1): _pair([2], [0.02]),
        (2, 1): _pair([2], [0.5]),
    }
    # The second box fits the first person best, who is taken: it goes to the other one.
    total, records = _measure(people, pairs, [[0.8, 0.6, 1], [0.9, 0.55, 1], [0.7, 0.7, 1]])
    assert [record.detection_id for record in records] == [10, 11]  # nobody without annotation
    assert [record.gps for record in records] == [0.0, 0.4]
    assert [record.box_iou for record in records] == [0.8, 0.55]
    np.testing.assert_allclose(total.sum_cm[[1, 2]], [1, 2], rtol=1e-6)
    assert total.points.sum() == 2


def test_nobody_takes_a_box_that_overlaps_less_than_half():
    total, records = _measure([_person(7, [1])], {(0, 0): _pair([1], [0.1])}, [[0.49]])
    assert total.points.sum() == 0
    assert (records[0].annotation_id, records[0].detection_id, records[0].gps) == (7, 0, 0.0)


def test_a_box_without_any_point_misses_them_all():
    total, _ = _measure([_person(1, [5, 5, 0])], {}, [[0.6]])
    row = total.rows(PATCH_NAMES)["left_foot"]
    assert (row["points"], row["on_body_percent"], row["mean_cm"]) == (2, 0, None)


@pytest.mark.parametrize("mesh,count", [("", 2), ("body", 3)])
def test_the_points_that_count_do_not_depend_on_what_is_predicted(mesh, count):
    person = dataclasses.replace(_person(1, [5, 0, 7]), vertices=np.array([3, 4, 5]), mesh="body")
    person.points[3:] = 0.5
    patches = [5, 0, 7] if mesh else [5, 7]
    near = {(0, 0): _pair(patches, np.zeros(count))}
    for pairs, on_body in ((near, count), ({}, 0)):
        total, (record,) = _measure([person], pairs, [[0.6]], mesh)
        assert total.points.sum() == record.num_points == count
        assert total.on_body.sum() == on_body


def test_images_add_up():
    one, _ = _measure([_person(1, [1])], {(0, 0): _pair([1], [0.1])}, [[0.6]])
    two, _ = _measure([_person(1, [2])], {(0, 0): _pair([2], [0.3])}, [[0.6]])
    total = patch_errors.add_up([one, two, two])
    assert total.rows(PATCH_NAMES)["all"]["mean_cm"] == pytest.approx((10 + 30 + 30) / 3, rel=1e-6)
    assert one.points.sum() == 1  # the parts are left as they were
