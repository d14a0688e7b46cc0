"""find people in photos and write which point of the body each pixel shows"""

import argparse
import pathlib
import sys

EXAMPLES = """
  ktn predict photo.jpg --config ktn:r50 --weights R.pth --output out/
  ktn predict photos/ '2024/*.png' --config densepose_rcnn:r50 --weights R.pkl \\
      --output out/

For each photo: NAME_iuv.png (red I, green 255 U, blue 255 V), NAME_instances.png (people numbered
from 1 by score), NAME_overlay.jpg; for all of them results.json (DensePose-COCO results format).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument("photos", nargs="+", help="files, folders or globs")
    commands.add_config_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help=".pth, .pkl, .safetensors file or an orbax folder")
    source.add_argument(
        "--random-weights",
        action="store_true",
        help="untrained weights, to measure speed and memory",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write into")
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.5,
        help="lowest score of people to draw and list (default 0.5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Predicts; a photo that cannot be read is reported and skipped, and the exit code is 1."""
    from ktn_jax.checkpoints import weights
    from ktn_jax.inference.photos import predict_files
    from ktn_jax.inference.predictor import Predictor
    from ktn_jax.inference.stages import Stages
    from ktn_jax.runtime import configuration, images

    config = configuration.load_config(arguments.config, arguments.changes)
    photos = images.find_images(arguments.photos)
    # Passed without a name, so that weights which inference does not need are freed.
    stages = Stages(
        config,
        weights.initialise(config, seed=0)
        if arguments.random_weights
        else weights.load(config, arguments.weights),
    )
    summary = predict_files(Predictor(stages), photos, arguments.output, arguments.min_score)
    for path, reason in summary.failures:
        print(f"skipped {path}: {reason}", file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        f"{summary.num_people} people in {summary.num_photos} photos, written to {arguments.output}"
    )
    return 1 if summary.failures else 0
