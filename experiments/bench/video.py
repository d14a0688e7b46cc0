"""Times `ktn predict` on a video against the network alone on the same frames.

    python experiments/bench/video.py --clip vtest.avi            # tiny model, untrained weights
    python experiments/bench/video.py --clip vtest.avi --memory   # peak memory of short and long

The network alone gets frames that are decoded and resized already, and its boxes and maps are not
looked at. The model gets decoded frames, and brings people to their pixels. The video is decoded,
found, followed, drawn, encoded and written as the command does it. All take turns. Random weights
find large people everywhere, whose maps fill their boxes: real ones cost less. Without --clip a
video of moving noise is made.
"""

import argparse
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction

import common
import numpy as np

SIZE_HW = (576, 768)
MODEL = "ktn:tiny"
MIN_SCORE = 0.5


def make_clip(path, num_frames):
    """Writes a video of smooth noise that moves."""
    import cv2

    from ktn_jax.runtime.video_files import VideoWriter

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    large = cv2.resize(coarse, (SIZE_HW[1] + 400, SIZE_HW[0] + 400), interpolation=cv2.INTER_CUBIC)
    writer = VideoWriter(path, SIZE_HW, Fraction(1, 10), Fraction(10))
    for number in range(num_frames):
        x, y = number % 400, (number * 3 // 2) % 400
        writer.add(large[y : y + SIZE_HW[0], x : x + SIZE_HW[1]], number * Fraction(1, 10))
    writer.close()


def measure_speed(clip, arguments, folder, report):
    """The video against the network alone."""
    from ktn_jax.checkpoints import weights
    from ktn_jax.inference import video, video_inputs
    from ktn_jax.inference.loading import load
    from ktn_jax.inference.video_options import VideoOptions
    from ktn_jax.runtime import configuration, images
    from ktn_jax.runtime.video_frames import Selection
    from ktn_jax.runtime.video_sources import open_video

    config = configuration.load_config(arguments.config, arguments.changes)
    config.model.box_head.score_threshold = MIN_SCORE  # as the command sets it
    model = load(config, weights.initialise(config, seed=0))
    with open_video(clip) as opened:
        frames, end = [], None
        for frame in opened.frames():
            if len(frames) == arguments.frames:
                end = frame.time
                break
            frames.append(frame.image)
    test = config.test
    resized = [images.resize_short_side(image, test.short_side, test.max_side) for image in frames]
    options = VideoOptions(selection=Selection(end=end), min_score=MIN_SCORE)
    (source,) = video_inputs.find_videos([os.fspath(clip)])

    def network():
        for image in resized:
            model.find([image])

    def in_memory():
        for _ in model(iter(frames)):
            pass

    def whole():
        (summary,) = video.predict_videos(model, [source], folder / "out", options, overwrite=True)
        if summary.num_frames != len(frames):
            raise RuntimeError(f"{summary.num_frames} frames of {len(frames)}: {summary}")

    calls = {"network alone": network, "model in memory": in_memory, "ktn predict": whole}
    answers = common.take_turns(
        {name: functools.partial(common.time_once, call) for name, call in calls.items()},
        arguments.repeats,
    )
    rows, ratios = common.compare_whole(answers, "ktn predict", len(frames))
    title = f"{config.name}, {len(frames)} frames of {frames[0].shape[:2]}"
    report.section(title, rows, **ratios)


def measure_memory(clip, arguments, folder, report):
    """Peak memory of commands over the first frames, and over all of them."""
    rows = []
    with_end = ("--end", str(arguments.short_seconds))
    for name, part in (("first part", with_end), ("whole clip", ())):
        out = folder / name.replace(" ", "-")
        command = [sys.executable, "-m", "ktn_jax", "predict", os.fspath(clip), "--quiet", *part]
        command += ["--config", arguments.config, "--random-weights", "--output", os.fspath(out)]
        # A process of its own: the largest child so far is what the system tells.
        code = (
            "import resource, subprocess, sys, time; start = time.perf_counter();"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
            "print(used, time.perf_counter() - start)"
        )
        output = subprocess.run(
            [sys.executable, "-c", code, *command], check=True, capture_output=True, text=True
        ).stdout
        kibibytes, seconds = output.split()
        frames = len((out / f"{clip.stem}.jsonl").read_bytes().splitlines())
        rows.append(common.Row(f"{name}, {frames} frames", [float(seconds)], frames))
        rows[-1].peak_bytes = int(kibibytes) * 1024
        shutil.rmtree(out)
    report.section(f"{arguments.config}, memory", rows)


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=5)
    parser.add_argument("--clip", type=pathlib.Path, help="a video file")
    parser.add_argument("--config", default=MODEL)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--frames", type=int, default=60, help="of a repetition")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--short-seconds", type=float, default=10, help="of the part, for memory")
    arguments = parser.parse_args()
    common.prepare()
    report = common.Report("video", arguments.output)
    with tempfile.TemporaryDirectory() as name:
        folder, clip = pathlib.Path(name), arguments.clip
        if clip is None:
            clip = folder / "noise.mp4"
            make_clip(clip, 795 if arguments.memory else arguments.frames + 1)
        measure_speed(clip, arguments, folder, report)
        if arguments.memory:
            measure_memory(clip, arguments, folder, report)
    report.close()


if __name__ == "__main__":
    main()
