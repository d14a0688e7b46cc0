"""The videos of `ktn predict`: their arguments, and the run."""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktn_jax.inference.video import VideoSummary
    from ktn_jax.inference.video_options import VideoOptions
    from ktn_jax.runtime.video_frames import Selection

_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")
# Options of photos that have no meaning for a video, and why.
_NOT_FOR_VIDEOS = {
    "dump": "the JSON lines of a video have its people",
    "vertices": "they go into the dump of a photo",
    "body": "it goes with --vertices",
    "template": "the JSON lines of a video have its vertices",
    "annotations": "frames of a video are numbered",
    "recursive": "name the videos",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that are for videos only."""
    from ktn_jax import commands

    group = parser.add_argument_group(
        "videos",
        "Video files, addresses of streams (rtsp://...) and image files that a pattern names\n"
        "(frames/%05d.png) are predicted frame by frame; docs/video.md has more.",
    )
    group.add_argument(
        "--as-video",
        action="store_true",
        help="take inputs for videos whatever their names; a folder is one of its image files",
    )
    group.add_argument("--camera", type=int, metavar="N", help="a camera, by its number from 0")
    group.add_argument(
        "--fps",
        type=_positive,
        metavar="RATE",
        help="frames a second of image files (default 25)",
    )
    add_selection_arguments(group)
    group.add_argument(
        "--max-fps", type=_positive, metavar="RATE", help="at most so many frames a second"
    )
    group.add_argument(
        "--no-track",
        dest="track",
        action="store_const",
        const=False,
        help="do not number people through the video",
    )
    group.add_argument(
        "--smooth",
        type=_positive,
        metavar="SECONDS",
        help="average boxes, U and V of each person over about this time",
    )
    group.add_argument(
        "--only-track",
        type=commands.track_numbers,
        metavar="ID[,ID]",
        help="only people of these numbers (track_id)",
    )


def add_selection_arguments(group: "argparse._ActionsContainer") -> None:
    """Adds --every, --start and --end, which `read_selection` reads."""
    group.add_argument("--every", type=int, metavar="N", help="every N-th frame only")
    for name, what in (("start", "from"), ("end", "up to")):
        group.add_argument(
            f"--{name}",
            type=seconds,
            metavar="TIME",
            help=f"frames {what} this time only: seconds, or hh:mm:ss",
        )


def read_selection(arguments: argparse.Namespace) -> "Selection":
    """Which frames the arguments of `add_selection_arguments`, and --max-fps, choose.

    Raises:
        ValueError: a number out of range.
    """
    from ktn_jax.runtime.video_frames import Selection

    return Selection(
        1 if arguments.every is None else arguments.every,
        arguments.start or Fraction(0),
        arguments.end,
        getattr(arguments, "max_fps", None),
    )


_OPTIONS = (
    *("as_video", "camera", "fps", "every", "start", "end", "max_fps"),
    *("track", "smooth", "only_track"),
)


def seconds(text: str) -> Fraction:
    """The type of arguments that are times.

    Raises:
        argparse.ArgumentTypeError: neither seconds nor hh:mm:ss.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"wanted seconds or hh:mm:ss, got {text!r:.50}")
    hours, minutes, rest = match.groups(default="0")
    return Fraction(int(hours) * 3600 + int(minutes) * 60) + Fraction(rest)


def _positive(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"wanted a number above 0, got {text!r:.50}")
    return value


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether the inputs are videos.

    Raises:
        ValueError: there are no inputs, photos and videos, or options of the other kind.
    """
    from ktn_jax.inference import video_inputs

    if not arguments.inputs and arguments.camera is None:
        raise ValueError("give photos, videos or --camera N")
    if arguments.as_video or arguments.camera is not None:
        is_video = True
    else:
        is_video = video_inputs.has_videos(arguments.inputs)
    if is_video:
        for name, why in _NOT_FOR_VIDEOS.items():
            if getattr(arguments, name):
                raise ValueError(f"--{name} is for photos: {why}")
        return True
    used = [name for name in _OPTIONS if getattr(arguments, name) not in (None, False)]
    if arguments.track is False:
        used.append("no_track")
    if used:
        raise ValueError(f"--{used[0].replace('_', '-')} is for videos, and these are photos")
    return False


def run(arguments: argparse.Namespace, folder: pathlib.Path | None) -> int:
    """Predicts into a local folder, None chooses one; the exit code is 1 if a video broke off."""
    import numpy as np

    from ktn_jax import commands
    from ktn_jax.checkpoints import zoo
    from ktn_jax.inference import charts, dataset, video, video_inputs
    from ktn_jax.runtime.video_frames import DEFAULT_RATE

    config = commands.load_model_config(arguments, zoo.DEFAULT)
    if arguments.confidences:
        charts.check_confidences(config)
    options = _options(arguments)
    charts.check_pictures(config, options.pictures, options.settings)
    # Whoever is left out need not be described: the others are the same, and come sooner.
    box_head = config.model.box_head
    least = float(np.nextafter(np.float32(options.min_score), np.float32(-1)))
    box_head.score_threshold = max(box_head.score_threshold, least)
    rate = arguments.fps or DEFAULT_RATE
    videos = video_inputs.find_videos(arguments.inputs, rate, arguments.camera)
    if folder:  # before the weights are read, which takes long
        video.check_output(folder, videos, options, arguments.overwrite)
    predictor, described = commands.load_described_predictor(arguments, config, zoo.DEFAULT)
    named = {**described, "videos": [one.name for one in videos]}
    folder = folder or dataset.default_folder(named, "ktn_predict")
    summaries = video.predict_videos(
        predictor, videos, folder, options, run=described, overwrite=arguments.overwrite
    )
    _report(summaries)
    frames = sum(summary.num_frames for summary in summaries)
    print(  # noqa: T201
        f"{sum(summary.num_people for summary in summaries)} people in {frames} frames of "
        f"{len(summaries)} videos, written to {arguments.output or folder}"
    )
    return 1 if any(summary.failure for summary in summaries) else 0


def _options(arguments: argparse.Namespace) -> "VideoOptions":
    from ktn_jax.commands import draw
    from ktn_jax.inference.video_options import VideoOptions

    return VideoOptions(
        pictures=tuple(arguments.styles or ()),
        settings=draw.read_settings(arguments),
        selection=read_selection(arguments),
        min_score=arguments.min_score,
        with_confidences=arguments.confidences,
        is_tracked=arguments.track is not False,
        smooth_s=float(arguments.smooth or 0),
        only_tracks=arguments.only_track or (),
    )


def _report(summaries: "Sequence[VideoSummary]") -> None:
    for summary in summaries:
        for note in summary.notes:
            print(f"{summary.name}: {note}", file=sys.stderr)  # noqa: T201
        if summary.failure is not None:
            kept = f" ({summary.num_frames} frames are kept)" if summary.num_frames else ""
            print(f"{summary.name}: {summary.failure}{kept}", file=sys.stderr)  # noqa: T201
