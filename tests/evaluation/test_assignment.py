"""The vectorised matching against the rules followed one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.evaluation import assignment, precision_recall

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def _match_slowly(similarity, box_iou, crowd, ignored, outside):
    """One measure and one area range; people are visited with the ignored ones last."""
    order = np.argsort(ignored, kind="stable")
    detections, people = similarity.shape
    detection_match = np.full((len(THRESHOLDS), detections), -1)
    person_match = np.full((len(THRESHOLDS), people), -1)
    flags = np.full((len(THRESHOLDS), detections), bool(ignored.all()))
    for level, threshold in enumerate(THRESHOLDS):
        for detection in range(detections):
            best, best_value = -1, min(threshold, 1 - 1e-10)
            for person in order:
                if person_match[level, person] >= 0 and not crowd[person]:
                    continue
                if best >= 0 and not ignored[best] and ignored[person]:
                    break
                value = similarity[detection, person]
                if value >= best_value and value != 0:
                    best, best_value = person, value
            if best >= 0:
                detection_match[level, detection] = best
                person_match[level, best] = detection
                flags[level, detection] = ignored[best]
    for detection in range(detections):
        if not people or detection_match[-1, detection] >= 0:
            continue
        best, best_value = -1, 0.8
        for person in order:
            is_free = person_match[-1, person] < 0 or crowd[person]
            if is_free and box_iou[detection, person] >= best_value:
                best, best_value = person, box_iou[detection, person]
        if best >= 0:
            flags[:, detection] = ignored[best]
            if ignored[best]:
                detection_match[-1, detection], person_match[-1, best] = best, detection
    return detection_match, person_match, flags | ((detection_match < 0) & outside)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), detections=st.integers(0, 6), people=st.integers(0, 5))
def test_every_rule_holds_for_random_images(seed, detections, people):
    rng = np.random.default_rng(seed)
    # Coarse values: ties, exact thresholds, zeros and ones all happen.
    similarity = rng.integers(0, 21, (3, detections, people)) / 20
    box_iou = rng.integers(12, 21, (detections, people)) / 20
    crowd = rng.random(people) < 0.3
    ignored = rng.random((3, people)) < 0.4
    outside = rng.random((3, detections)) < 0.3
    found = assignment.match_image(similarity, box_iou, crowd, ignored, outside, THRESHOLDS)
    for measure, area in np.ndindex(3, 3):
        expected = _match_slowly(similarity[measure], box_iou, crowd, ignored[area], outside[area])
        names = ("detection_match", "person_match", "is_detection_ignored")
        for name, wanted in zip(names, expected, strict=True):
            np.testing.assert_array_equal(getattr(found, name)[measure, area], wanted, name)


def test_areas_on_the_border_belong_to_both_ranges():
    outside = assignment.is_outside(np.array([1024.0, 9216.0, 9216.5, 10.0]))
    np.testing.assert_array_equal(outside[1], [False, False, True, True])
    np.testing.assert_array_equal(outside[2], [True, False, False, True])
    assert not outside[0].any()


def _curves(hits, scores, people):
    """One image a detection; every image has `people` people."""
    matches = []
    for hit in hits:
        similarity = np.zeros((1, 1, people))
        similarity[0, 0, 0] = hit
        matches.append(
            assignment.match_image(
                similarity,
                np.zeros((1, people)),
                np.zeros(people, bool),
                np.zeros((3, people), bool),
                np.zeros((3, 1), bool),
                THRESHOLDS,
            )
        )
    return precision_recall.accumulate(matches, [np.array([s]) for s in scores], THRESHOLDS)


def test_average_precision_of_a_small_case_by_hand():
    # Three images with one person each. By falling score: hit, miss, hit.
    curves = _curves([0.91, 0.0, 0.71], [0.9, 0.8, 0.7], people=1)
    at_half = curves.precision[0, 0, :, 0]
    np.testing.assert_allclose(at_half[:34], 1)
    np.testing.assert_allclose(at_half[34:67], 2 / 3)
    np.testing.assert_allclose(at_half[67:], 0)
    summary = precision_recall.summarise(curves, 0)
    assert summary["AP50"] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert summary["AR50"] == pytest.approx(2 / 3)
    assert summary["AP75"] == pytest.approx(34 / 101)
    # The first passes nine of ten thresholds (up to 0.90), the last five (up to 0.70).
    assert summary["AR"] == pytest.approx((5 * 2 / 3 + 4 * 1 / 3) / 10)


def test_nobody_to_find_is_not_zero():
    curves = precision_recall.accumulate([], [], THRESHOLDS)
    assert curves.precision.shape[0] == 0
    match = assignment.match_image(
        np.zeros((1, 1, 0)),
        np.zeros((1, 0)),
        np.zeros(0, bool),
        np.zeros((3, 0), bool),
        np.zeros((3, 1), bool),
        THRESHOLDS,
    )
    curves = precision_recall.accumulate([match], [np.array([0.5])], THRESHOLDS)
    assert precision_recall.summarise(curves, 0)["AP"] == -1
    assert match.is_detection_ignored.all()


def test_the_fork_picks_thresholds_by_equality():
    thresholds = precision_recall.similarity_thresholds(0.2)
    curves = precision_recall.Curves(np.ones((1, 16, 101, 3)), np.ones((1, 16, 3)), thresholds)
    exact = precision_recall.summarise(curves, 0, exact_thresholds=True)
    assert precision_recall.summarise(curves, 0)["AP30"] == 1
    assert exact["AP50"] == (1 if 0.5 in thresholds else -1)
    assert -1 in exact.values()  # some of 0.2, 0.25, ... miss the decimal by a rounding error


@pytest.mark.parametrize("lowest", [0.0, 0.96, -1, float("nan")])
def test_thresholds_out_of_range_are_refused(lowest):
    with pytest.raises(ValueError, match="lowest threshold"):
        precision_recall.similarity_thresholds(lowest)
