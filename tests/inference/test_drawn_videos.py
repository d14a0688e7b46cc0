"""People of a video's JSON lines, drawn over its frames."""

import av
import numpy as np
import pytest

from ktn_jax import cli
from ktn_jax.inference import drawn_videos
from ktn_jax.results import styles
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.frame_lines import FrameLine, read_frame_lines
from ktn_jax.results.records import PersonResult, people_to_records
from ktn_jax.runtime.video_files import VideoWriter
from ktn_jax.runtime.video_sources import open_video

FRAMES = (2, 5, 6, 9)  # that have a line, as with --every or --start


def _person(number, x0, score=0.9):
    iuv = np.full((3, 20, 16), 128, np.uint8)
    iuv[0] = 9
    return PersonResult([x0, 10, x0 + 16, 30], score, iuv, track_id=number)


@pytest.fixture
def folder(tmp_path, write_clip):
    """A clip of ten frames, and lines of four of them."""
    write_clip(tmp_path / "clip.mp4", 10, sound="aac", crf="1")
    people = [_person(1, 4), _person(3, 30), _person(4, 40, score=0.2)]
    with open(tmp_path / "clip.jsonl", "wb") as file:
        for frame in FRAMES:
            found = people_to_records(frame, people, file_name=str(tmp_path / "clip.mp4"))
            file.write(FrameLine(frame, frame / 25, found).encode())
    return tmp_path


def _draw(folder, *arguments):
    given = [folder / "clip.jsonl", "--output", folder / "out", *arguments]
    return cli.main(["draw", *map(str, given)])


def _frames(path):
    with open_video(path) as opened:
        return list(opened.frames())


def test_frames_that_have_lines_are_drawn_with_their_times_and_sound(folder, capsys):
    style = ("--style", "fine_segm", "--style", "contour+bbox", "--background", "black")
    assert _draw(folder, *style, "--images", folder / "clip.mp4") == 0
    assert "8 people drawn on 4 frames" in capsys.readouterr().out
    written = sorted(path.name for path in (folder / "out").iterdir())
    assert written == ["clip_contour+bbox.mp4", "clip_fine_segm.mp4"]
    frames = _frames(folder / "out" / "clip_fine_segm.mp4")
    assert [float(frame.time) for frame in frames] == [(n - FRAMES[0]) / 25 for n in FRAMES]
    (line, *_) = read_frame_lines(folder / "clip.jsonl")
    settings = styles.StyleSettings("black")
    image = _frames(folder / "clip.mp4")[2].image
    expected = styles.draw_styles(image, line.people()[:2], ("fine_segm",), settings)
    error = np.abs(frames[0].image.astype(int) - expected)
    assert np.median(error) <= 2 and error.mean() < 6  # chroma of edges is halved
    with av.open(str(folder / "out" / "clip_fine_segm.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    assert _draw(folder, *style) == 1
    assert "holds files that this would replace" in capsys.readouterr().err
    # Without --images the video is the one that the people's file_name is.
    assert _draw(folder, "--only-track", "3", "--overwrite") == 0
    assert "4 people drawn on 4 frames" in capsys.readouterr().out
    plain = _frames(folder / "clip.mp4")[2].image.astype(int)
    drawn = _frames(folder / "out" / "clip_overlay.mp4")[0].image
    changed = np.abs(drawn - plain).max(-1) > 40
    assert changed[10:30, 30:46].mean() > 0.5 and not changed[:, :24].any()


def test_mistakes_are_named_and_nothing_is_written(folder, write_clip, capsys):
    write_clip(folder / "short.mp4", 6)
    content = (folder / "clip.jsonl").read_bytes()
    for arguments, message in (
        (("--images", folder / "short.mp4"), "frame 6 is not in"),
        (("--images", folder / "none.mp4"), "none.mp4"),
        (("--style", "labels"), "labels is a map of numbers"),
        (("--annotations", "a.json"), "--annotations is for photos"),
    ):
        assert _draw(folder, *arguments) == 1
        assert message in capsys.readouterr().err
    (folder / "clip.jsonl").write_bytes(content.replace(b'"score":0.9', b'"score":"x"'))
    assert _draw(folder) == 1
    assert "clip.jsonl: line 1: record 0: score must be" in capsys.readouterr().err
    first = content.splitlines()[0]
    (folder / "clip.jsonl").write_bytes(first.replace(b"iVBORw0KGgo", b"iVBORw0KGgoX") + b"\n")
    assert _draw(folder) == 1
    assert "clip.jsonl" in capsys.readouterr().err
    assert not any((folder / "out").glob("*"))


def test_a_damaged_line_leaves_no_file_open(folder, monkeypatch):
    lines = folder / "clip.jsonl"
    whole = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(b"".join([*whole[:2], b"{}\n"]))
    closed = []
    close = VideoWriter.close
    monkeypatch.setattr(VideoWriter, "close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(ResultsError, match="line 3: frame must be"):
        drawn_videos.draw_video(lines, folder / "out", ("overlay", "u"))
    assert len(closed) == 2
    assert not any((folder / "out").iterdir())
