"""Videos through a predictor: each frame once, whatever stops the run, and nothing lost."""

import errno
import os
import pathlib
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ktn_jax.inference import video, video_inputs, video_pipeline
from ktn_jax.inference.video_options import VideoOptions
from ktn_jax.inference.video_recording import Recording
from ktn_jax.results.frame_lines import read_frame_lines
from ktn_jax.results.people_over_time import PeopleOverTime
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.video_frames import Selection, Video, VideoError
from ktn_jax.runtime.video_sources import open_video

RUN = {"weights": "a"}
OVERLAY = VideoOptions()


class _Predictor:
    """Finds two people in each frame, who move to the right."""

    def __init__(self, stops_at=None):
        self.seen, self._stops_at = 0, stops_at

    def __call__(self, images):
        for image in images:
            if self.seen == self._stops_at:
                raise KeyboardInterrupt
            self.seen += 1
            x = 2 + _number(image) // 2
            iuv = np.ones((3, 15, 10), np.uint8)
            boxes = np.float32([[x, 3, x + 10, 18], [x, 25, x + 10, 40]])
            scores = (0.9, 0.2)
            yield [PersonResult(*found, iuv) for found in zip(boxes, scores, strict=True)]


def _predict(predictor, paths, out, options=OVERLAY, **others):
    videos = video_inputs.find_videos([str(path) for path in paths])
    return video.predict_videos(predictor, videos, out, options, **({"run": RUN} | others))


def _frames(path):
    with open_video(path) as opened:
        frames = list(opened.frames())
        assert opened.failure is None
    return frames


def _number(image):
    """The number of a frame, by the grey level of `clips.picture`."""
    return round((float(image[44:, 50:].mean()) - 5) / 6)


def _numbers(path):
    return [_number(frame.image) for frame in _frames(path)]


def _assert_whole(out, name="clip", numbers=range(40)):
    """Each frame once, in order, at its time, and its people."""
    lines = list(read_frame_lines(out / f"{name}.jsonl"))
    assert [line.frame for line in lines] == list(numbers)
    assert [line.time for line in lines] == [number / 25 for number in numbers]
    assert _numbers(out / f"{name}_overlay.mp4") == list(numbers)
    times = [frame.time for frame in _frames(out / f"{name}_overlay.mp4")]
    assert times == [Fraction(number, 25) for number in numbers]
    return lines


@pytest.fixture
def clip(tmp_path, write_clip):
    write_clip(tmp_path / "clip.mp4", sound="aac", crf="1")
    return tmp_path / "clip.mp4"


@pytest.fixture
def _short_segments(monkeypatch):
    monkeypatch.setattr(video_pipeline, "_SEGMENT_FRAMES", 7)


def test_a_video_becomes_videos_and_lines(clip, tmp_path):
    out = tmp_path / "out"
    options = VideoOptions(("u", "contour+bbox"), min_score=0.5)
    (summary,) = _predict(_Predictor(), [clip], out, options)
    assert summary == video.VideoSummary(str(clip), 40, 40)
    assert {path.name for path in out.iterdir()} == {
        "clip.jsonl", "clip_overlay.mp4", "clip_u.mp4", "clip_contour+bbox.mp4"
    }  # fmt: skip
    lines = _assert_whole(out)
    assert {record["track_id"] for line in lines for record in line.records} == {1}
    assert lines[3].records[0]["image_id"] == 3
    assert lines[3].records[0]["file_name"] == str(clip)
    overlay, plain = _frames(out / "clip_overlay.mp4")[3].image, _frames(clip)[3].image
    changed = np.abs(overlay.astype(int) - plain).max(-1) > 40
    assert changed[3:18, 3:13].mean() > 0.5 and not changed[:, 30:].any()
    import av

    for path in out.glob("*.mp4"):
        with av.open(str(path)) as container:
            assert [stream.type for stream in container.streams] == ["video", "audio"]


@pytest.mark.usefixtures("_short_segments")
def test_a_stopped_run_is_resumed_and_has_each_frame_once(clip, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _predict(_Predictor(stops_at=24), [clip], out)
    assert len(list(read_frame_lines(out / "clip.jsonl"))) == 24  # all that was found
    assert not (out / "clip_overlay.mp4").exists()
    for others in ({"run": {"weights": "b"}}, {"run": None}, {"options": VideoOptions(("u",))}):
        with pytest.raises(ValueError, match="stopped run with other videos, weights or options"):
            _predict(_Predictor(), [clip], out, **others)
    predictor = _Predictor()
    (summary,) = _predict(predictor, [clip], out)
    assert predictor.seen == 16 and summary == video.VideoSummary(str(clip), 40, 80)
    lines = _assert_whole(out)
    # The people keep their numbers.
    assert [[r["track_id"] for r in line.records] for line in lines] == [[1, 2]] * 40
    assert not (out / "videos.partial").exists()
    with pytest.raises(ValueError, match=r"out holds files.*clip\.jsonl.*overwrite"):
        _predict(_Predictor(), [clip], out)
    assert _predict(_Predictor(), [clip], out, overwrite=True) == [summary]
    with pytest.raises(ValueError, match=r"clip_overlay\.mp4 would be written over"):
        _predict(_Predictor(), [out / "clip_overlay.mp4", clip], out)


_KILLED = """
import os, sys
sys.path.insert(0, {folder!r})
import test_video as here
class Killed(here._Predictor):
    def __call__(self, images):
        for number, people in enumerate(super().__call__(images)):
            if number == 30:
                os._exit(9)
            yield people
here.video_pipeline._SEGMENT_FRAMES = 7
here._predict(Killed(), [{clip!r}], {out!r})
"""


def test_a_killed_run_loses_its_last_segment_only(clip, tmp_path):
    out = tmp_path / "out"
    folder = str(pathlib.Path(__file__).parent)
    code = _KILLED.format(folder=folder, clip=str(clip), out=str(out))
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    # Half a segment and half a line, as the kill has left them.
    with open(out / "clip.jsonl", "ab") as lines:
        lines.write(b'{"frame": 30, "ti')
    predictor = _Predictor()
    _predict(predictor, [clip], out)
    assert 10 < predictor.seen <= 40 - 14  # the network was at most two segments ahead
    _assert_whole(out)


@pytest.mark.usefixtures("_short_segments")
def test_after_a_frame_that_is_lost_none_is_written(clip, tmp_path, monkeypatch):
    update, updated = PeopleOverTime.update, []

    def fail_once(self, people, time_s):
        updated.append(time_s)
        if len(updated) == 17:
            raise ValueError("a bug")
        return update(self, people, time_s)

    monkeypatch.setattr(PeopleOverTime, "update", fail_once)
    with pytest.raises(ValueError, match="a bug"):
        _predict(_Predictor(), [clip], tmp_path / "out")
    monkeypatch.undo()
    assert len(list(read_frame_lines(tmp_path / "out" / "clip.jsonl"))) == 16
    _predict(_Predictor(), [clip], tmp_path / "out")
    _assert_whole(tmp_path / "out")


@pytest.mark.usefixtures("_short_segments")
def test_a_full_disk_stops_the_run_and_loses_nothing(clip, tmp_path, monkeypatch):
    add, added = Recording.add, []

    def fill_up(self, *frame):
        added.append(frame)
        if len(added) == 17:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *frame)

    monkeypatch.setattr(Recording, "add", fill_up)
    with pytest.raises(OSError, match="No space left"):
        _predict(_Predictor(), [clip], tmp_path / "out")
    assert len(added) == 17  # none after it
    monkeypatch.undo()
    predictor = _Predictor()
    _predict(predictor, [clip], tmp_path / "out")
    assert predictor.seen == 40 - 14
    _assert_whole(tmp_path / "out")


def test_several_videos_keep_their_names_and_a_bad_one_stops_none(clip, tmp_path, write_clip):
    out = tmp_path / "out"
    (tmp_path / "other").mkdir()
    write_clip(tmp_path / "other" / "clip.mp4", 9, crf="1")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    frames = tmp_path / "walk"
    frames.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (5 + 6 * number,) * 3).save(frames / f"{number}.png")
    inputs = [bad, clip, tmp_path / "other" / "clip.mp4", clip, frames]
    with pytest.raises(KeyboardInterrupt):
        _predict(_Predictor(stops_at=45), inputs, out)
    predictor = _Predictor()
    summaries = _predict(predictor, inputs, out)
    assert predictor.seen == 40 + 9 + 3 - 45
    assert [summary.num_frames for summary in summaries] == [0, 40, 9, 3]
    assert summaries[0].failure.startswith("not a video")
    _assert_whole(out)
    _assert_whole(out, "clip-2", range(9))
    _assert_whole(out, "walk", range(3))
    assert not (out / "bad.jsonl").exists()


def test_a_part_of_a_video_begins_at_zero_and_keeps_numbers_and_times(clip, tmp_path):
    out = tmp_path / "out"
    options = VideoOptions(selection=Selection(5, Fraction(1, 2), Fraction(6, 5)))
    _predict(_Predictor(), [clip], out, options)
    lines = list(read_frame_lines(out / "clip.jsonl"))
    assert [(line.frame, line.time) for line in lines] == [
        (13, 0.52), (18, 0.72), (23, 0.92), (28, 1.12)
    ]  # fmt: skip
    assert _numbers(out / "clip_overlay.mp4") == [13, 18, 23, 28]
    late = VideoOptions(selection=Selection(start=Fraction(9)))
    (summary,) = _predict(_Predictor(), [clip], tmp_path / "none", late)
    assert summary.failure == "has no frame in the part that was asked for"
    assert os.listdir(tmp_path / "none") == []


def test_what_is_broken_is_said_and_what_was_done_is_kept(clip, tmp_path):
    class NotFinite(_Predictor):
        def __call__(self, images):
            for number, people in enumerate(super().__call__(images)):
                if number == 4:
                    bad = np.full((17, 3), np.inf, np.float32)
                    people[1] = PersonResult(people[1].box_xyxy, 0.2, people[1].iuv, bad)
                yield people

    (summary,) = _predict(NotFinite(), [clip], tmp_path / "out")
    assert summary.num_people == 79 and summary.failure is None
    (note,) = summary.notes
    assert note.startswith("left out: frame 4: person 1: keypoints must be 51 finite numbers")
    _assert_whole(tmp_path / "out")


class _Camera(Video):
    """Shows the same frames each time that it is opened."""

    def __init__(self, clip):
        super().__init__("camera 0")
        self._clip = open_video(clip)
        self.frame_rate, self.time_base = self._clip.frame_rate, self._clip.time_base
        self.is_live = True

    def decode(self):
        return self._clip.decode()

    def close(self):
        self._clip.close()


@pytest.mark.usefixtures("_short_segments")
def test_a_camera_is_ended_by_an_interruption_and_goes_on_after_a_kill(clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    camera = video_inputs.VideoInput("camera 0", "camera0", lambda: _Camera(clip), facts=(0,))

    def predict(predictor, **options):
        return video.predict_videos(predictor, [camera], out, OVERLAY, run=RUN, **options)

    (summary,) = predict(_Predictor(stops_at=9))
    assert summary == video.VideoSummary("camera 0", 9, 18)
    assert len(_frames(out / "camera0_overlay.mp4")) == 9
    joined = Recording.join

    def fail(*_):
        raise OSError("killed")

    monkeypatch.setattr(Recording, "join", fail)
    with pytest.raises(OSError, match="killed"):
        predict(_Predictor(stops_at=9), overwrite=True)
    monkeypatch.setattr(Recording, "join", joined)
    predict(_Predictor(stops_at=3))
    lines = list(read_frame_lines(out / "camera0.jsonl"))
    assert [line.frame for line in lines] == list(range(12))
    assert [line.time for line in lines] == [number / 25 for number in range(12)]
    assert _numbers(out / "camera0_overlay.mp4") == [*range(9), 0, 1, 2]


def test_inputs_are_found(tmp_path, write_clip):
    for name in ("b10.mp4", "b2.mp4"):
        (tmp_path / name).touch()
    found = video_inputs.find_videos([f"{tmp_path}/b*.mp4", f"{tmp_path}/b2.mp4"])
    assert [one.stem for one in found] == ["b2", "b10"]
    assert video_inputs.has_videos([f"{tmp_path}/b2.mp4"])
    assert not video_inputs.has_videos([str(tmp_path)])
    with pytest.raises(VideoError, match="a.jpg is not: give videos and photos to commands"):
        video_inputs.has_videos(["a.mp4", "a.jpg"])
    with pytest.raises(VideoError, match="no file is there"):
        video_inputs.find_videos([f"{tmp_path}/c*.mp4"])
    (stream,) = video_inputs.find_videos(["rtsp://me:secret@host/live/one?key=secret"])
    assert (stream.name, stream.stem) == ("rtsp://host/live/one", "one")
    assert "secret" not in str(stream.facts)
    odd = video_inputs.find_videos(["http://host/..", "http://host/a/.b"])
    assert [one.stem for one in odd] == ["host", "b"]
    (camera,) = video_inputs.find_videos([], camera=77)
    with pytest.raises(VideoError, match="camera 77: there is no"):
        camera.open()


def test_options_are_checked():
    for wrong, message in (
        ({"pictures": ("iuv",)}, "iuv is a map of numbers, which a video's compression changes"),
        ({"pictures": ("dp_u",)}, "unknown style"),
        ({"min_score": float("nan")}, "min_score must be a number"),
        ({"is_tracked": False, "smooth_s": 1.0}, "only people who are tracked"),
        ({"smooth_s": -1.0}, "-1"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoOptions(**wrong)
