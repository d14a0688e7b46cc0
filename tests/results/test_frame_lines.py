"""People of video frames as JSON lines: what is written is read, and damage is named."""

import json

import numpy as np
import pytest

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.frame_lines import FrameLine, read_frame_lines
from ktn_jax.results.records import PersonResult, people_to_records

PERSON = PersonResult(
    np.float32([2, 3, 12, 18]), 0.75, np.full((3, 15, 10), 7, np.uint8), track_id=4
)


def test_lines_are_read_as_they_were_written(tmp_path):
    records = people_to_records(12, [PERSON], file_name="clip.mp4")
    lines = [FrameLine(12, 0.48, records), FrameLine(13, 0.52, [], True, 0.5)]
    path = tmp_path / "clip.jsonl"
    path.write_bytes(b"".join(line.encode() for line in lines))
    assert list(read_frame_lines(path)) == lines
    first, second = map(json.loads, path.read_text().splitlines())
    assert list(first) == ["frame", "time", "results"] and first["results"][0]["track_id"] == 4
    assert second == {
        "frame": 13, "time": 0.52, "is_repeated": True, "smoothed_over_s": 0.5, "results": []
    }  # fmt: skip
    (person,) = next(read_frame_lines(path)).people()
    np.testing.assert_array_equal(person.iuv, PERSON.iuv)
    assert (person.track_id, person.score) == (4, 0.75)
    # A line that is being written is not there yet.
    path.write_bytes(path.read_bytes()[:-20])
    assert list(read_frame_lines(path)) == lines[:1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1: wanted an object, got a list"),
        ('{"time": 0, "results": []}', "frame must be a number from 0, got None"),
        ('{"frame": true, "time": 0, "results": []}', "frame must be a number from 0"),
        ('{"frame": 1, "time": NaN, "results": []}', "time must be a finite number"),
        (f'{{"frame": 1, "time": 1{"0" * 400}, "results": []}}', "time must be a finite number"),
        ('{"frame": 1, "time": 0, "results": {}}', "results must be a list, got dict"),
        (
            '{"frame": 1, "time": 0, "results": [], "smoothed_over_s": "x"}',
            "smoothed_over_s must be a number",
        ),
        ('{"frame": 1, "time": 0, "results": [{}]}', "line 1: record 0"),
    ],
)
def test_damage_is_named(tmp_path, line, message):
    path = tmp_path / "clip.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ResultsError, match=rf"clip\.jsonl: .*{message}"):
        list(read_frame_lines(path))
