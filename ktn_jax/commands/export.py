"""write a predictor as a program that runs without this package"""

import argparse
import pathlib

EXAMPLES = """
  ktn export --model densepose_rcnn_R_50_FPN_s1x --output exported/
  ktn export --config ktn:r50 --weights R.pth --output exported/ --canvas 800x1216 --platform cuda
  ktn export --config ktn:r50 --weights W --output saved/ --format savedmodel

stablehlo: serialised programs of jax.export, one for each canvas on CPUs and one for other
platforms, and their weights as safetensors. savedmodel: TensorFlow's, which needs pip install
'ktn_jax[tfds]'. Both have a manifest.json that says what goes in and comes out. docs/export.md has
a program that runs them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    commands.add_model_arguments(parser)
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="DIR", help="new folder"
    )
    parser.add_argument(
        "--format",
        default="stablehlo",
        metavar="NAME",
        help="stablehlo (default) or savedmodel; onnx says why it is not written",
    )
    parser.add_argument(
        "--canvas",
        dest="canvases",
        type=commands.size_hw,
        action="append",
        default=[],
        metavar="HxW",
        help="height and width to which images are padded; may be repeated (default: all of "
        "test.size_buckets)",
    )
    parser.add_argument(
        "--platform",
        dest="platforms",
        action="append",
        metavar="NAME",
        help="cpu, cuda or tpu; may be repeated (default: all three)",
    )
    parser.add_argument(
        "--max-people",
        type=commands.positive,
        default=0,
        metavar="N",
        help="best people of an image that come out (default model.box_head.max_detections)",
    )
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder."""
    from ktn_jax import commands
    from ktn_jax.checkpoints import zoo
    from ktn_jax.inference import exported_files
    from ktn_jax.inference.stages import Stages
    from ktn_jax.runtime import atomic_files

    write = exported_files.writer(arguments.format)
    atomic_files.check_new_folder(arguments.output)  # before the weights are read
    config = commands.load_model_config(arguments, zoo.DEFAULT)
    settings = exported_files.make_settings(
        config,
        arguments.canvases,
        arguments.platforms or exported_files.PLATFORMS,
        arguments.max_people,
    )
    variables = commands.load_model_variables(arguments, config, zoo.DEFAULT)
    names = write(Stages(config, variables), arguments.output, settings)
    print(f"{len(names)} files written to {arguments.output}")  # noqa: T201
    return 0
