"""`ktn data inpaint`: labels every pixel of annotated people with a teacher."""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this action."""
    from ktn_jax import commands

    commands.add_config_arguments(parser)
    parser.add_argument(
        "--weights",
        required=True,
        help="the teacher's: work folder of `ktn train`, orbax folder, .pth, .safetensors file",
    )
    parser.add_argument(
        "--annotations", required=True, type=pathlib.Path, help="DensePose-COCO JSON"
    )
    parser.add_argument(
        "--images", required=True, type=pathlib.Path, metavar="DIR", help="image folder"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        metavar="FILE.json",
        help="new annotation file; pictures of all labels go to FILE_iuv/ beside it",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=180,
        metavar="N",
        help="fill every person up to so many points (default 180; training takes "
        "data.max_points, 200)",
    )
    parser.add_argument(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="write points only, no pictures for data.dense_points",
    )
    parser.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="bad annotations and images that cannot be read: stop and name them (default), or "
        "keep their people as they are",
    )
    commands.add_verify_argument(parser)
    commands.add_process_arguments(parser)
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Labels the people; the exit code is 75 if it was stopped and can be resumed."""
    from ktn_jax import commands

    return commands.run_resumable("data inpaint", lambda: _inpaint(arguments))


def _inpaint(arguments: argparse.Namespace) -> int:
    from ktn_jax import commands
    from ktn_jax.checkpoints import named, weights
    from ktn_jax.inference import dataset, inpainted_files
    from ktn_jax.inference.inpainting import Inpainter
    from ktn_jax.inference.symmetries import load_symmetry

    request = inpainted_files.InpaintRequest(
        annotations=arguments.annotations,
        images=arguments.images,
        output=arguments.output,
        points=arguments.points,
        with_pictures=arguments.pictures,
        on_bad=arguments.on_bad,
    )
    inpainted_files.check_request(request)
    config = named.load_config(arguments.config, arguments.changes)
    processes = commands.join_processes(arguments)
    symmetry = load_symmetry(config)
    variables = weights.load(config, arguments.weights, verify=arguments.verify)
    run = dataset.describe_run(
        config,
        variables,
        data=arguments.annotations.read_bytes(),
        augmented=True,
        symmetry=symmetry,
    )
    run["crops"] = [*config.data.person_crops.size_hw, config.data.person_crops.margin]
    inpainter = Inpainter(config, variables, symmetry)
    counts = inpainted_files.inpaint_file(inpainter, request, run, processes)
    if counts is not None:
        print(  # noqa: T201
            f"{counts.people} people labelled: {counts.points} points, {counts.annotated} of them "
            f"the annotator's; {counts.others} records kept as they are; written to "
            f"{arguments.output}"
        )
        if counts.without_parts:
            print(  # noqa: T201
                f"note: {counts.without_parts} people were not labelled: they have one mask of the "
                "whole body, and this teacher needs those of the parts (model.sees_parts)"
            )
    return 0
