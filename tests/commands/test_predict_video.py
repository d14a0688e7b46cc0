"""The command ktn predict on videos, around a predictor that needs no network."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.commands import predict_video
from ktn_jax.results.frame_lines import read_frame_lines
from ktn_jax.results.records import PersonResult


class _Predictor:
    """Finds one person in each frame."""

    stops_at = None  # frames until Ctrl-C

    configs = []

    def __init__(self, config):
        self.configs.append(config)

    def __call__(self, images):
        for number, _ in enumerate(images):
            if number == self.stops_at:
                raise KeyboardInterrupt
            yield [PersonResult(np.float32([2, 3, 12, 18]), 0.9, np.ones((3, 15, 10), np.uint8))]


@pytest.fixture(autouse=True)
def _no_network(use_predictor):
    use_predictor(_Predictor)


@pytest.fixture
def clip(tmp_path, write_clip):
    write_clip(tmp_path / "clip.mp4", 30)
    return tmp_path / "clip.mp4"


def _predict(*arguments):
    return cli.main(["predict", *map(str, arguments), "--config=ktn:tiny", "--random-weights"])


def test_a_stopped_command_resumes_and_is_refused_afterwards(clip, tmp_path, monkeypatch, capsys):
    arguments = (clip, "--output", tmp_path / "out", "--style", "u", "--every", "2")
    monkeypatch.setattr(_Predictor, "stops_at", 9)
    assert _predict(*arguments) == 75
    assert "the same command resumes it" in capsys.readouterr().err
    monkeypatch.setattr(_Predictor, "stops_at", 6)
    assert _predict(*arguments) == 0
    captured = capsys.readouterr()
    assert f"15 people in 15 frames of 1 videos, written to {tmp_path / 'out'}" in captured.out
    assert "predict clip: 15 of 15 frames (100%)" in captured.err
    lines = list(read_frame_lines(tmp_path / "out" / "clip.jsonl"))
    assert [line.frame for line in lines] == list(range(0, 30, 2))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip.jsonl", "clip_overlay.mp4", "clip_u.mp4"
    }  # fmt: skip
    assert _predict(*arguments) == 1
    error = capsys.readouterr().err
    assert "holds files that this would replace" in error and "--overwrite" in error


def test_options_say_which_frames_and_people(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = ("--start", "0.2", "--end", "0:00:00.6", "--max-fps", "12.5")
    assert _predict(clip, "--output", "a", *part, "--smooth", "0.5", "--quiet") == 0
    lines = list(read_frame_lines("a/clip.jsonl"))
    assert [line.frame for line in lines] == [5, 7, 9, 11, 13]
    assert {line.smoothed_over_s for line in lines} == {0.5}
    assert {record["track_id"] for line in lines for record in line.records} == {1}
    assert _predict(clip, "--output", "b", "--only-track", "2,7") == 0
    assert all(not line.records for line in read_frame_lines("b/clip.jsonl"))
    assert _predict(clip, "--output", "c", "--no-track") == 0
    assert all("track_id" not in line.records[0] for line in read_frame_lines("c/clip.jsonl"))
    (tmp_path / "walk").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 24)).save(tmp_path / "walk" / f"{number}.png")
    assert _predict("walk", "--as-video", "--fps", "30", "--output", "d") == 0
    assert [line.time for line in read_frame_lines("d/walk.jsonl")][3] == pytest.approx(0.1)
    assert _predict("walk/%d.png", "--output", "e") == 0
    assert len(list(read_frame_lines("e/walk.jsonl"))) == 4


def test_people_who_are_left_out_are_not_described(clip, tmp_path):
    for score, threshold in (("0.3", 0.3), ("0", 0.05)):
        assert _predict(clip, "--output", tmp_path / score, "--min-score", score) == 0
        assert _Predictor.configs[-1].model.box_head.score_threshold == pytest.approx(threshold)
    assert 0.3 > _Predictor.configs[-2].model.box_head.score_threshold


def test_what_cannot_be_is_said(clip, tmp_path, capsys):
    photo = tmp_path / "a.png"
    Image.new("RGB", (32, 24)).save(photo)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    for arguments, message in (
        ((), "give photos, videos or --camera N"),
        ((clip, photo), "a.png is not: give videos and photos to commands of their own"),
        ((photo, "--every", "2"), "--every is for videos, and these are photos"),
        ((photo, "--no-track"), "--no-track is for videos"),
        ((clip, "--dump"), "--dump is for photos: the JSON lines of a video have its people"),
        ((clip, "--annotations", photo), "--annotations is for photos"),
        ((clip, "--template", tmp_path), "--template is for photos: the JSON lines"),
        ((clip, "--vertices", "procedural"), "--vertices is for photos"),
        ((clip, "--body", photo), "--body is for photos"),
        ((clip, "--every", "0"), "every must be at least 1, got 0"),
        ((clip, "--start", "5", "--end", "1"), "the end, 1.0 s, is not after the start, 5.0 s"),
        ((clip, "--style", "iuv"), "iuv is a map of numbers"),
        ((clip, "--style", "vertex"), "the style vertex needs a model with vertices"),
        ((tmp_path / "none.mp4",), "none.mp4: there is no such file"),
        ((bad,), "bad.mp4: not a video, or a damaged one"),
        (("--camera", "77"), "camera 77: there is no"),
    ):
        assert _predict(*arguments, "--output", tmp_path / "out") == 1, arguments
        assert message in capsys.readouterr().err
    for wrong in (("--start", "x"), ("--max-fps", "0"), ("--only-track", "1;2"), ("--fps", "1/0")):
        with pytest.raises(SystemExit):
            _predict(clip, *wrong)
    content = clip.read_bytes()
    clip.write_bytes(content[:-300])
    assert _predict(clip, bad, "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err.count("not a video, or a damaged one") == 2


def test_times_are_seconds_or_hours_minutes_and_seconds():
    for text, expected in (("1:02:03.5", Fraction("3723.5")), ("2:05", 125), ("90", 90)):
        assert predict_video.seconds(text) == expected
