"""draw results of any system over their photos or video, in detectron2's styles or ours"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktn_jax.results.styles import StyleSettings

EXAMPLES = """
  ktn draw results.json --images photos/ --output drawn/
  ktn draw results.json --images photos/ --style fine_segm --style contour+bbox \\
      --background grey --output drawn/
  ktn draw out/clip.jsonl --images clip.mp4 --style contour --only-track 1,3 --output drawn/

A picture for each photo and style: NAME_overlay.jpg, NAME_fine_segm.png. Photos are found by
file_name in the results, or by the image id that is their name. Of the JSON lines of a video:
NAME_fine_segm.mp4, with its times and sound.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument(
        "results",
        type=pathlib.Path,
        help="JSON list or JSON lines, as ktn eval takes them, or NAME.jsonl of a video",
    )
    parser.add_argument(
        "--images",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of the photos, or the video (default: file_name in the results is a path)",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write into")
    parser.add_argument(
        "--annotations",
        type=pathlib.Path,
        metavar="FILE",
        help="COCO JSON that gives the file names of image ids",
    )
    parser.add_argument(
        "--min-score",
        type=commands.finite,
        default=0.5,
        help="lowest score of people to draw (default 0.5)",
    )
    parser.add_argument(
        "--only-track",
        type=commands.track_numbers,
        default=(),
        metavar="ID[,ID]",
        help="only people of these numbers (track_id)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace pictures that are there (never photos)"
    )
    add_style_arguments(parser, "overlay")
    commands.add_quiet_argument(parser)


def add_style_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds --style and what says how styles are drawn, which `read_settings` reads."""
    usual = "" if default is None else f" (default {default})"
    parser.add_argument(
        "--style",
        dest="styles",
        action="append",
        metavar="STYLE",
        help="another picture: fine_segm, u, v, contour, bbox or texture as detectron2 draws them, "
        "several in one joined by + (contour+bbox); of models with vertices vertex or "
        f"mesh_texture; or overlay, labels, iuv, instances; may be repeated{usual}",
    )
    parser.add_argument(
        "--background",
        default="photo",
        metavar="WHAT",
        help="under detectron2's styles: photo (default), grey (as apply_net show has it), black, "
        "or lowest, the colour map's lowest colour",
    )
    parser.add_argument(
        "--colormap",
        metavar="NAME",
        help="of detectron2's styles: parula, viridis, jet and others (default as detectron2: "
        "parula, of vertex jet)",
    )
    parser.add_argument(
        "--opacity",
        type=float,
        default=0.7,
        help="of the colours of fine_segm, u, v and vertex (default 0.7, as detectron2)",
    )
    parser.add_argument(
        "--atlas",
        type=pathlib.Path,
        metavar="FILE",
        help="of the style texture: picture of 6 rows and 4 columns of square tiles",
    )
    parser.add_argument(
        "--mesh-texture",
        type=pathlib.Path,
        metavar="FILE",
        help="of the style mesh_texture: picture that the mesh's texture coordinates refer to",
    )
    parser.add_argument(
        "--mesh",
        dest="meshes",
        action="append",
        metavar="FILE",
        help="NAME.npz, a mesh of your own, for vertex and mesh_texture; may be repeated",
    )


def read_settings(arguments: argparse.Namespace) -> "StyleSettings":
    """Reads what `add_style_arguments` added.

    Raises:
        ValueError: an unknown name, an opacity outside 0 to 1, or a file that is no atlas.
    """
    from ktn_jax.results.atlas import read_atlas, read_texture
    from ktn_jax.results.styles import StyleSettings

    atlas = None if arguments.atlas is None else read_atlas(arguments.atlas)
    texture = None if arguments.mesh_texture is None else read_texture(arguments.mesh_texture)
    return StyleSettings(
        arguments.background,
        arguments.colormap,
        arguments.opacity,
        atlas,
        texture,
        tuple(arguments.meshes or ()),
    )


def run(arguments: argparse.Namespace) -> int:
    """Draws; an image that cannot be is reported, and the exit code is 1."""
    from ktn_jax.evaluation.ground_truth import ImageTruth, read_ground_truth
    from ktn_jax.inference.drawn_results import draw_results
    from ktn_jax.inference.drawn_videos import draw_video
    from ktn_jax.results.frame_lines import are_frame_lines

    names, settings = arguments.styles or ("overlay",), read_settings(arguments)
    is_video = arguments.results.is_file() and are_frame_lines(arguments.results)
    if is_video:
        if arguments.annotations is not None:
            raise ValueError("--annotations is for photos: frames of a video are numbered")
        summary = draw_video(
            arguments.results,
            arguments.output,
            names,
            settings,
            video=arguments.images,
            min_score=arguments.min_score,
            only_tracks=arguments.only_track,
            overwrite=arguments.overwrite,
        )
    else:
        annotated: Sequence[ImageTruth] = ()
        if arguments.annotations is not None:
            annotated = read_ground_truth(arguments.annotations, on_bad="skip").images
        summary = draw_results(
            arguments.results,
            arguments.output,
            names,
            settings,
            images_dir=arguments.images,
            annotated=annotated,
            min_score=arguments.min_score,
            only_tracks=arguments.only_track,
            overwrite=arguments.overwrite,
        )
    for failure in summary.failures:
        print(f"{'' if is_video else 'skipped '}{failure}", file=sys.stderr)  # noqa: T201
    print(  # noqa: T201
        f"{summary.num_people} people drawn on {summary.num_images} "
        f"{'frames' if is_video else 'photos'}, written to {arguments.output}"
    )
    return 1 if summary.failures else 0
