"""`ktn data bootstrap`: labels photos or a video without annotations with a trained model."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktn_jax.inference.bootstrapped_files import BootstrapSummary
    from ktn_jax.inference.video_inputs import VideoInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this action."""
    from ktn_jax import commands
    from ktn_jax.commands import predict_video

    commands.add_model_arguments(parser)
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        metavar="FILE",
        help="label with the people of a results file (`ktn predict --min-score 0.1`, with "
        "--confidences where there are any) instead of running a model",
    )
    parser.add_argument(
        "--images",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="folder of the photos; with --video the frames are written there",
    )
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="label frames of this video instead of photos: they become DIR/NAME/000123.jpg",
    )
    predict_video.add_selection_arguments(parser.add_argument_group("a video"))
    parser.add_argument(
        "--output", required=True, type=pathlib.Path, metavar="FILE.json", help="new file"
    )
    parser.add_argument(
        "--min-score",
        type=commands.finite,
        default=0.8,
        help="lowest score of people who are labelled (default 0.8)",
    )
    parser.add_argument(
        "--ignore-score",
        type=commands.finite,
        default=0.1,
        help="from here up to --min-score, people are neither labelled nor background (default "
        "0.1)",
    )
    parser.add_argument(
        "--sampler",
        default="uniform",
        help="how points are drawn: uniform (default), or among the surest by uv_confidence, "
        "fine_segm_confidence or coarse_segm_confidence",
    )
    parser.add_argument(
        "--points-per-patch",
        type=int,
        default=8,
        metavar="N",
        help="most points of each of the 24 patches of a person (default 8)",
    )
    search = parser.add_mutually_exclusive_group()
    search.add_argument(
        "--search-multiplier",
        type=commands.finite,
        metavar="M",
        help="draw N points among the M x N surest pixels of a patch (default: take the N surest)",
    )
    search.add_argument(
        "--search-proportion",
        type=commands.finite,
        metavar="P",
        help="draw them among this share of the patch's pixels, the surest",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default 0)")
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Labels the photos; the exit code is 1 if some were left out, 75 if it can be resumed."""
    from ktn_jax import commands

    return commands.run_resumable("data bootstrap", lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> int:
    from ktn_jax.inference import bootstrapped_files

    summary = _bootstrap(arguments)
    for failure in summary.failures:
        print(f"left out: {failure}", file=sys.stderr)  # noqa: T201
    print(bootstrapped_files.describe(summary, arguments.output))  # noqa: T201
    return 1 if summary.failures else 0


def _bootstrap(arguments: argparse.Namespace) -> "BootstrapSummary":
    from ktn_jax import commands
    from ktn_jax.checkpoints import zoo
    from ktn_jax.commands import predict_video
    from ktn_jax.inference import bootstrapped_files, charts
    from ktn_jax.inference.bootstrapping import SAMPLERS, BootstrapSettings
    from ktn_jax.modeling.person_branches import has_charts

    settings = BootstrapSettings(
        min_score=arguments.min_score,
        ignore_score=arguments.ignore_score,
        sampler=arguments.sampler,
        points_per_patch=arguments.points_per_patch,
        search_multiplier=arguments.search_multiplier,
        search_proportion=arguments.search_proportion,
        seed=arguments.seed,
    )
    bootstrapped_files.check_output(arguments.output)
    if not arguments.images.is_dir():
        raise FileNotFoundError(f"--images {arguments.images}: no such folder")
    video = _video(arguments)
    if arguments.results is not None:
        named = (arguments.model, arguments.config, arguments.weights)
        if any(name is not None for name in named) or arguments.random_weights:
            raise ValueError("--results and a model: give one of them")
        return bootstrapped_files.bootstrap_results(
            arguments.results, arguments.images, arguments.output, settings
        )
    config = commands.load_model_config(arguments, zoo.DEFAULT)
    if not has_charts(config.model):
        raise ValueError(f"the model of {config.name} has no charts: take one with densepose")
    if SAMPLERS[settings.sampler] is not None:
        charts.check_confidences(config)
    predictor, described = commands.load_described_predictor(arguments, config, zoo.DEFAULT)
    if video is None:
        return bootstrapped_files.bootstrap_photos(
            predictor, arguments.images, arguments.output, settings, described
        )
    return bootstrapped_files.bootstrap_video(
        predictor,
        video,
        predict_video.read_selection(arguments),
        arguments.images,
        arguments.output,
        settings,
        described,
    )


def _video(arguments: argparse.Namespace) -> "VideoInput | None":
    """The video whose frames are labelled; None of photos.

    Raises:
        ValueError: it is no file, or options of a video without one.
    """
    from ktn_jax.commands import predict_video
    from ktn_jax.inference import video_inputs

    if arguments.video is None:
        for name in ("every", "start", "end"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} chooses frames of a video: name it with --video")
        return None
    if arguments.results is not None:
        raise ValueError(
            "--video needs a model: the photos of --results are those that it was predicted on"
        )
    predict_video.read_selection(arguments)  # wrong numbers are found before the weights are read
    if not pathlib.Path(arguments.video).is_file():
        raise ValueError(
            f"--video {arguments.video}: must be a video file; streams can be recorded first, and "
            "image files are photos (--images)"
        )
    video = video_inputs.find_videos([arguments.video])[0]
    with video.open():  # what is no video is found too
        return video
