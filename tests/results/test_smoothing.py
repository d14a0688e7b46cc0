"""Smoothing over time: what trembles is calmer, what moves is not left behind."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.results.records import PersonResult
from ktn_jax.results.smoothing import Smoother

SIDE, MARGIN = 40, 4


def _person(x, y=10.0, u=0.5, patch=3, side=SIDE, **fields):
    pixels = int(np.float32(x + side) - np.float32(x)), int(np.float32(y + side) - np.float32(y))
    uv = np.full((2, pixels[1], pixels[0]), u, np.float32)
    iuv = np.full((3, pixels[1], pixels[0]), patch, np.uint8)
    iuv[0, :MARGIN] = iuv[0, -MARGIN:] = iuv[0, :, :MARGIN] = iuv[0, :, -MARGIN:] = 0
    iuv[1:] = (uv * 255).astype(np.uint8)
    return PersonResult([x, y, x + side, y + side], 0.9, iuv, uv=uv, track_id=1, **fields)


def _run(people, seconds=0.3, rate=25):
    smoother = Smoother(seconds)
    return [smoother.update([p], n / rate)[0] for n, p in enumerate(people)]


def test_boxes_at_rest_tremble_less():
    noise = np.random.default_rng(0).normal(0, 0.4, 200)
    smoothed = _run([_person(50 + x) for x in noise])
    left = np.array([person.box_xyxy[0] for person in smoothed])[50:]
    assert left.std() < 0.5 * noise.std()
    assert left.mean() == pytest.approx(50, abs=0.1)


def test_boxes_that_move_are_not_left_behind():
    # A body height a second, after a start from rest.
    at = [10 + max(step - 10, 0) * SIDE / 25 for step in range(60)]
    trails = np.array([x - p.box_xyxy[0] for x, p in zip(at, _run(map(_person, at)), strict=True)])
    assert 0 < trails[-1] < 0.03 * SIDE
    assert trails.max() < 0.15 * SIDE


def test_pixels_stay_where_they_are():
    def placed(person):
        canvas = np.zeros((80, 200), int)
        x, y = person.box_xyxy[:2].astype(int)
        canvas[y : y + person.iuv.shape[1], x : x + person.iuv.shape[2]] = person.iuv[0]
        return canvas

    people = []
    for step in range(12):
        person = _person(20.3 + 7 * step, 12.8)
        person.iuv[0] = np.arange(SIDE) // 2 + 1  # no margin: none of it may be cut off
        sigma = person.iuv[0].astype(np.float32)
        people.append(dataclasses.replace(person, confidences={"sigma": sigma}))
    for found, smoothed in zip(people, _run(people), strict=True):
        now, before = placed(smoothed), placed(found)
        np.testing.assert_array_equal(now, before)
        assert smoothed.iuv.shape[1:] == smoothed.confidences["sigma"].shape
        np.testing.assert_array_equal(smoothed.confidences["sigma"], smoothed.iuv[0])


def test_vertices_stay_where_they_are():
    noise = np.random.default_rng(1).normal(0, 1.5, 20)
    people = []
    for x in 20 + noise:
        whole = _person(x, y=10 + x / 7)
        vertices = np.where(whole.is_body, np.arange(whole.iuv[0].size).reshape(whole.size_hw), -1)
        vertices = vertices.astype(np.int32)
        people.append(dataclasses.replace(whole, iuv=None, uv=None, vertices=vertices, mesh="m"))
    sizes = set()
    for found, smoothed in zip(people, _run(people), strict=True):
        placed = []
        for person in (found, smoothed):
            (x, y), (height, width) = person.box_xyxy[:2].astype(int), person.size_hw
            canvas = np.full((80, 80), -1)
            canvas[y : y + height, x : x + width] = person.vertices
            placed.append(canvas)
        np.testing.assert_array_equal(*placed)
        assert smoothed.mesh == "m"
        sizes.add((found.size_hw, smoothed.size_hw))
    assert any(before != after for before, after in sizes)


def test_u_and_v_are_averaged_exponentially_where_the_patch_agrees():
    people = [_person(50, u=u) for u in (0.50, 0.56, 0.56)]
    people[2].iuv[0, :, :20] = 4  # another patch: as found
    smoothed = _run(people, seconds=0.06)  # frames are 0.04 s: a share of 0.4 is new
    body = np.s_[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    first, second = smoothed[1].uv[body], smoothed[2].uv[body]
    np.testing.assert_allclose(first, 0.5 + 0.4 * 0.06, atol=1e-6)
    middle = 20 - MARGIN
    np.testing.assert_allclose(second[:, :, middle:], 0.524 + 0.4 * 0.036, atol=1e-6)
    np.testing.assert_allclose(second[:, :, :middle], 0.56, atol=1e-6)
    np.testing.assert_array_equal(smoothed[1].iuv[body][1:], int(0.524 * 255))
    jump = _run([_person(50, u=u) for u in (0.2, 0.8)])  # another place of the patch: as found
    np.testing.assert_array_equal(jump[1].uv, people[0].uv * 0 + np.float32(0.8))
    levels = [dataclasses.replace(_person(50, u=u), uv=None) for u in (0.50, 0.56)]
    of_levels = _run(levels, seconds=0.06)[1]
    assert of_levels.uv is None
    assert np.abs(of_levels.iuv[body][1:] / 255 - 0.524).max() < 1 / 255


def test_who_was_away_begins_anew_and_who_has_no_number_is_refused():
    smoother = Smoother(0.1)
    smoother.update([_person(50)], 0.0)
    smoother.update([], 0.3)
    person = _person(60)
    assert smoother.update([person], 0.6)[0] is person
    with pytest.raises(ValueError, match="track them first"):
        smoother.update([dataclasses.replace(person, track_id=None)], 0.7)
    with pytest.raises(ValueError, match="cannot follow one at 0.6 s"):
        smoother.update([person], 0.6)
    for seconds in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="a time in seconds above 0"):
            Smoother(seconds)
