"""Numbers through a video: who crosses, hides, comes and goes, and what is drawn of them."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.results import drawing, dumps, maps, palette, records
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.people_over_time import PeopleOverTime
from ktn_jax.results.records import PersonResult
from ktn_jax.results.tracking import Tracker, TrackingSettings

FRONT, BACK = 2, 1  # patches
HEIGHT, WIDTH = 60, 24


def _person(x, y=20.0, patch=FRONT, score=0.9, **fields):
    """A body of one patch; U falls from left to right, V from top to bottom."""
    iuv = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    iuv[0, 4:-4, 4:-4] = patch
    iuv[1] = np.linspace(0, 255, WIDTH).astype(np.uint8)
    iuv[2] = np.linspace(0, 255, HEIGHT).astype(np.uint8)[:, None]
    return PersonResult([x, y, x + WIDTH, y + HEIGHT], score, iuv, **fields)


def _plain(person):
    return dataclasses.replace(person, iuv=None)


def _numbers(frames, tracker=None, start=0):
    tracker = tracker or Tracker()
    updated = [tracker.update(people, n / 10) for n, people in enumerate(frames, start)]
    return [[person.track_id for person in people] for people in updated]


@pytest.mark.parametrize("of", [lambda person: person, _plain])
def test_people_who_cross_keep_their_numbers(of):
    rng = np.random.default_rng(0)
    frames = []
    for step in range(41):  # they walk through each other, trembling
        jitter = rng.normal(0, 1, 2)
        right = of(_person(10 + 5 * step + jitter[0], patch=FRONT))
        left = of(_person(210 - 5 * step + jitter[1], patch=BACK))
        frames.append([right, left] if step % 2 else [left, right])  # in any order
    numbers = _numbers(frames)
    assert numbers[0] == [1, 2]  # left, right
    assert all(n == ([2, 1] if step % 2 else [1, 2]) for step, n in enumerate(numbers))


def test_people_who_turn_back_where_they_meet_are_told_apart_by_their_surface():
    frames = []
    for step in range(-14, 15):  # seen from front and from behind; they meet, and back away
        distance = 2 + 5 * abs(step)
        frames.append([_person(100 - distance, patch=FRONT), _person(100 + distance, patch=BACK)])
    assert _numbers(frames) == [[1, 2]] * len(frames)
    by_boxes_alone = _numbers(frames, Tracker(TrackingSettings(surface_weight=0.0)))
    assert by_boxes_alone[-1] == [2, 1]  # constant velocity carries them past each other


def test_someone_hidden_for_a_while_keeps_the_number_and_someone_long_away_does_not():
    walk = [[_person(10 + 6 * step)] for step in range(40)]
    hidden = [[] if 10 <= step < 18 else people for step, people in enumerate(walk)]
    assert [n for n in _numbers(hidden) if n] == [[1]] * 32
    away = [[] if 10 <= step < 25 else people for step, people in enumerate(walk)]
    assert [n for n in _numbers(away) if n] == [[1]] * 10 + [[2]] * 15
    patient = Tracker(TrackingSettings(lost_after_s=2.0))
    assert [n for n in _numbers(away, patient) if n] == [[1]] * 25


def test_who_enters_gets_the_next_number_and_none_is_used_twice():
    stays = _person(50)
    frames = [[stays]] * 3 + [[_person(200), stays]] * 3 + [[stays]] * 20 + [[stays, _person(200)]]
    assert _numbers(frames)[2:4] == [[1], [2, 1]]
    assert _numbers(frames)[-1] == [1, 3]
    assert _numbers([[], [], [stays]]) == [[], [], [1]]
    dog = dataclasses.replace(_plain(stays), category_id=18)
    assert _numbers([[stays], [dog], [dog, stays]]) == [[1], [2], [2, 1]]


def test_times_must_rise_and_settings_be_sensible():
    tracker = Tracker()
    tracker.update([], 1.0)
    for time_s in (1.0, 0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="cannot follow one at 1.0 s"):
            tracker.update([], time_s)
    with pytest.raises(ValueError, match="min_overlap must be between 0 and 1, got 0"):
        TrackingSettings(min_overlap=0)
    with pytest.raises(ValueError, match="lost_after_s must be a finite number from 0, got -1"):
        TrackingSettings(lost_after_s=-1)


def test_a_run_that_is_resumed_goes_on_with_the_same_people(tmp_path):
    rng = np.random.default_rng(1)
    frames = [
        [
            _person(20 + 3 * step + rng.normal(), patch=FRONT),
            _plain(_person(150 - 3 * step + rng.normal(), 21.5)),
        ][: 1 if 8 < step < 12 else 2]
        for step in range(20)
    ]
    whole = PeopleOverTime(smooth_s=0.2)
    expected = [whole.update(people, n / 10) for n, people in enumerate(frames)]
    first, second = PeopleOverTime(smooth_s=0.2), PeopleOverTime(smooth_s=0.2)
    for step in range(10):
        first.update(frames[step], step / 10)
    first.write(tmp_path / "state.npz")
    second.read(tmp_path / "state.npz")
    for step in range(10, 20):
        for person, wanted in zip(
            second.update(frames[step], step / 10), expected[step], strict=True
        ):
            assert person.track_id == wanted.track_id
            np.testing.assert_array_equal(person.box_xyxy, wanted.box_xyxy)
            np.testing.assert_array_equal(person.iuv, wanted.iuv)
    assert {person.track_id for person in expected[-1]} == {1, 2}


def test_a_damaged_state_is_refused_by_name(tmp_path):
    path = tmp_path / "state.npz"
    people = PeopleOverTime(smooth_s=0.2)
    people.update([_person(10)], 0.0)
    people.write(path)
    with np.load(path) as file:
        arrays = dict(file)
    without = {n: a for n, a in arrays.items() if n != "tracker/boxes_xyxy"}
    short = arrays | {"tracker/seen_s": np.zeros(0)}
    lost = {n: a for n, a in arrays.items() if n != "smoother/1/speed"}
    for wrong, message in (
        (without, r"must have boxes_xyxy of shape \(1, 4\)"),
        (short, r"must have seen_s of shape \(1,\)"),
        (lost, "must have '1/speed'"),
    ):
        np.savez(path, **wrong)
        with pytest.raises(ResultsError, match=f"state.npz: .*{message}"):
            people.read(path)
    path.write_bytes(b"PK")
    with pytest.raises(ResultsError, match="state.npz: damaged"):
        people.read(path)
    assert people.update([_person(10)], 0.1)[0].track_id == 1  # as before


def test_only_those_wanted_are_kept():
    people = PeopleOverTime(only_tracks=(2, 3))
    kept = people.update([_person(10), _person(100), _person(200)], 0.0)
    assert [person.track_id for person in kept] == [2, 3]
    assert [p.track_id for p in people.update([_person(11), _person(201)], 0.1)] == [3]


def test_numbers_are_in_results_files_and_dumps(tmp_path):
    tracked = _person(10, track_id=7)
    records.write_results(tmp_path / "r.json", records.people_to_records(1, [tracked, _person(5)]))
    entries = records.read_results(tmp_path / "r.json")
    assert [entry.get("track_id") for entry in entries] == [7, None]
    assert [person.track_id for person in records.records_to_people(entries)[1]] == [7, None]
    dumps.write_dump(tmp_path, "a", dumps.Dump("a.jpg", 1, (100, 100), (tracked, _person(5))))
    again = dumps.read_dump(tmp_path / f"a{dumps.ENDINGS[0]}").people
    assert [person.track_id for person in again] == [7, None]
    for wrong in (-1, 1.0, "7", True):
        with pytest.raises(ResultsError, match="record 0: track_id must be a whole number from 0"):
            records.records_to_people([entries[0] | {"track_id": wrong}])


def test_people_keep_their_colour_and_their_number_in_pictures():
    image = np.zeros((100, 100, 3), np.uint8)
    first, second = _person(10, track_id=300), _person(50, track_id=2)
    plain = {"show_parts": False, "show_scores": False}
    for scores in ((0.9, 0.8), (0.3, 0.8)):
        people = [
            dataclasses.replace(person, score=score)
            for person, score in zip((first, second), scores, strict=True)
        ]
        drawn = drawing.draw_people(image, people, **plain)
        assert tuple(drawn[20, 10]) == palette.person_colour(300)
        assert tuple(drawn[20, 50]) == palette.person_colour(2)
        _, instances = maps.paste_iuv(people, (100, 100))
        assert set(np.unique(instances)) == {0, 2, 300} and instances.dtype == np.uint16
    large = PersonResult([0, 0, 100, 100], 0.9, track_id=2)
    untracked = dataclasses.replace(second, track_id=None)
    labels = [
        drawing.draw_people(image, [person], show_boxes=False)
        for person in (large, dataclasses.replace(large, track_id=None))
    ]
    assert np.count_nonzero(labels[0].any(-1)) > np.count_nonzero(labels[1].any(-1)) > 0
    # One number for two people, or some without, name nobody: then they are ranked.
    for mixed in ([first, first], [first, untracked], [first, _person(50, track_id=0)]):
        assert sorted(maps.person_numbers(mixed)) == [1, 2]
