"""A clip of pedestrians, 795 frames, from Debian's opencv-doc: count, times, memory, a kill.

The network's part is a stand-in here; `experiments/bench/video.py` measures with a real one.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from ktn_jax.results.frame_lines import read_frame_lines
from ktn_jax.runtime.video_sources import open_video

_PLACES = (
    os.environ.get("KTN_VTEST", ""),
    "/usr/share/doc/opencv-doc/examples/data/vtest.avi",
    "/usr/share/opencv4/samples/data/vtest.avi",
)
_CODE = """
import os, pathlib, resource, sys
from fractions import Fraction
import numpy as np
from ktn_jax.inference import video, video_inputs
from ktn_jax.inference.video_options import VideoOptions
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.video_frames import Selection

clip, out, end, dies_at = sys.argv[1:]

def predict(images):
    for number, _ in enumerate(images):
        if number == int(dies_at):
            os._exit(9)
        boxes = np.float32([[x, 200, x + 60, 360] for x in (40, 300, 600)])
        iuv = np.full((3, 160, 60), number % 25, np.uint8)
        yield [PersonResult(box, 0.9, iuv) for box in boxes]

options = VideoOptions(selection=Selection(end=Fraction(end) if end else None))
video.predict_videos(predict, video_inputs.find_videos([clip]), out, options, run={})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture
def clip():
    for place in filter(None, _PLACES):
        if pathlib.Path(place).is_file():
            return place
    pytest.skip("no vtest.avi: install Debian's opencv-doc, or say where it is in KTN_VTEST")


def _run(clip, out, end="", dies_at=-1):
    return subprocess.run(
        [sys.executable, "-c", _CODE, clip, str(out), end, str(dies_at)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


@pytest.mark.extended
def test_a_real_clip_in_constant_memory_and_after_a_kill(clip, tmp_path):
    with open_video(clip) as video:
        times = [frame.time for frame in video.decode()]
    assert len(times) == 795
    short = _run(clip, tmp_path / "short", end="10")
    killed = _run(clip, tmp_path / "out", dies_at=300)
    assert killed.returncode == 9, killed.stderr
    assert not (tmp_path / "out" / "vtest_overlay.mp4").exists()
    resumed = _run(clip, tmp_path / "out")
    whole = _run(clip, tmp_path / "whole")
    short_peak, whole_peak = (1024 * int(done.stdout) for done in (short, whole))
    # One picture of each further frame would be a gigabyte; malloc's arenas settle slowly.
    assert whole_peak - short_peak < 0.2 * (795 - 100) * 576 * 768 * 3, (short_peak, whole_peak)
    assert resumed.returncode == 0, resumed.stderr
    for folder in ("out", "whole"):
        lines = list(read_frame_lines(tmp_path / folder / "vtest.jsonl"))
        assert [line.frame for line in lines] == list(range(795))
        assert [line.time for line in lines] == [float(time) for time in times]
        assert {len(line.records) for line in lines} == {3}
        with open_video(tmp_path / folder / "vtest_overlay.mp4") as video:
            assert [frame.time for frame in video.decode()] == times
            assert video.failure is None and video.num_frames == 795
