"""read the texture of people off photos or a video, and dress people in a texture"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktn_jax.inference.known_people import PeopleOf
    from ktn_jax.inference.texture_files import Person, TextureSummary
    from ktn_jax.inference.video_inputs import VideoInput
    from ktn_jax.results.texture_layouts import Layout

EXAMPLES = """
  ktn texture extract photo.jpg --results out/results.json --output atlas.png
  ktn texture extract photos/ --config ktn:r50 --weights R.pth --output atlas.png
  ktn texture extract clip.mp4 --every 10 --results out/clip.jsonl --output atlas.png
  ktn texture apply atlas.png photo.jpg --results out/results.json --output dressed.jpg
  ktn texture extract photo.jpg --results out/results.json --output smpl.png \\
      --uv-map smpl_uv.obj --charts UV_Processed.mat

An atlas is a PNG of 24 tiles, 6 rows and 4 columns, as the DensePose notebooks have it; alpha is
255 where the texture was seen. People come from a results file (of a video its JSON lines), or from
a model: that of `ktn predict` where none is named.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands
    from ktn_jax.commands import predict_video

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    extract = actions.add_parser("extract", help="photos, or a video, to an atlas")
    apply = actions.add_parser("apply", help="an atlas onto photos")
    apply.add_argument("atlas", type=pathlib.Path, help="image file with the texture")
    extract.add_argument(
        "--blend",
        choices=("median", "best"),
        default="median",
        help="of several views of a place: the median of the 15 that show it largest, or the one "
        "that does (default median)",
    )
    for action, person in ((extract, "1"), (apply, "all")):
        action.add_argument("photos", nargs="+", help="files, folders or globs")
        action.add_argument(
            "--recursive", action="store_true", help="search the subfolders of folders too"
        )
        action.add_argument(
            "--output", required=True, type=pathlib.Path, help=_OUTPUT_HELP[action is apply]
        )
        action.add_argument("--overwrite", action="store_true", help="replace the output")
        action.add_argument(
            "--results", type=pathlib.Path, metavar="FILE", help="the people, as ktn predict wrote"
        )
        commands.add_model_arguments(action)
        action.add_argument(
            "--person",
            type=_number_or_all,
            default=_number_or_all(person),
            metavar="N",
            help="number in NAME_instances.png: 1 has the highest score; or all "
            f"(default {person})",
        )
        action.add_argument(
            "--min-score",
            type=commands.finite,
            default=0.5,
            help="lowest score of people who count (default 0.5)",
        )
        layout = action.add_argument_group("a texture in SMPL's UV layout instead of an atlas")
        layout.add_argument("--uv-map", type=pathlib.Path, metavar="OBJ", help="smpl_uv.obj")
        layout.add_argument(
            "--charts", type=pathlib.Path, metavar="MAT", help="UV_Processed.mat, with --uv-map"
        )
        if action is extract:
            predict_video.add_selection_arguments(action.add_argument_group("a video"))
            layout.add_argument(
                "--size", type=int, default=1024, help="height and width (default 1024)"
            )
        commands.add_quiet_argument(action)


_OUTPUT_HELP = ("PNG file", "PNG or JPEG file; for several photos a folder")


def _number_or_all(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number from 1, or all; got {text!r:.50}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Runs the action; the exit code is 1 if a photo could not be read or written."""
    from ktn_jax.inference import output_files, texture_files

    if (arguments.uv_map is None) != (arguments.charts is None):
        raise ValueError("--uv-map and --charts need each other")
    video = _video(arguments)
    if video is None:
        found = texture_files.find_photos(arguments.photos, arguments.recursive)
        _say(found.notes)
        photos = found.paths
    else:
        photos = list(video.files)
    output = arguments.output
    person = texture_files.Person(arguments.person, arguments.min_score)
    outputs = [output] if arguments.action == "extract" else None
    if outputs and output.suffix.lower() != ".png":
        raise ValueError(f"--output {output}: an atlas is a .png, so that it can say what was seen")
    outputs = outputs or texture_files.dressed_paths(photos, output)
    others = [arguments.results, arguments.uv_map, arguments.charts]
    if arguments.action == "apply":
        others.append(arguments.atlas)
    inputs = [*photos, *(path for path in others if path is not None)]
    output_files.check_targets(output.parent, outputs, inputs, arguments.overwrite)
    if arguments.action == "extract":
        summary = _extract(arguments, photos, video, outputs[0], person)
    else:
        summary = _apply(arguments, photos, outputs, person)
    _say([f"{path}: {note}" for path, note in summary.notes])
    # Of a video the frames before count.
    said = "skipped " if video is None else ""
    _say([f"{said}{path}: {reason}" for path, reason in summary.failures])
    return 1 if summary.failures else 0


def _video(arguments: argparse.Namespace) -> "VideoInput | None":
    """The video that is given; None of photos."""
    from ktn_jax.inference import video_inputs

    if not video_inputs.has_videos(arguments.photos):
        if arguments.action == "extract":
            chosen = {"every": arguments.every, "start": arguments.start, "end": arguments.end}
            for name, value in chosen.items():
                if value is not None:
                    raise ValueError(f"--{name} is for videos, and these are photos")
        return None
    if arguments.action == "apply":
        raise ValueError("ktn predict VIDEO --style texture --atlas FILE dresses people in videos")
    videos = video_inputs.find_videos(arguments.photos)
    if len(videos) > 1:
        raise ValueError(f"give one video, got {len(videos)}")
    return videos[0]


def _extract(
    arguments: argparse.Namespace,
    photos: Sequence[pathlib.Path],
    video: "VideoInput | None",
    output: pathlib.Path,
    person: "Person",
) -> "TextureSummary":
    from ktn_jax.commands import predict_video
    from ktn_jax.inference import texture_files
    from ktn_jax.results import textures

    if arguments.size < 1:
        raise ValueError(f"--size must be at least 1, got {arguments.size}")
    layouts = None
    if arguments.uv_map is not None:
        layouts = _layouts(arguments, (arguments.size, arguments.size), textures.TILE_SIDE)
    people = _people(arguments, photos, video)
    options = {"person": person, "blend": arguments.blend, "layouts": layouts}
    if video is None:
        summary = texture_files.extract_texture(photos, people, output, **options)
    else:
        selection = predict_video.read_selection(arguments)
        with video.open() as opened:
            summary = texture_files.extract_video_texture(
                opened, selection, people, output, **options
            )
    print(  # noqa: T201
        f"views: {summary.num_people}, seen: {summary.seen:.0%} of the picture, written to {output}"
    )
    return summary


def _apply(
    arguments: argparse.Namespace,
    photos: Sequence[pathlib.Path],
    outputs: Sequence[pathlib.Path],
    person: "Person",
) -> "TextureSummary":
    from ktn_jax.inference import texture_files
    from ktn_jax.results import atlas, texture_layouts, textures

    if arguments.uv_map is None:
        texture = atlas.read_atlas(arguments.atlas)
    else:
        source = atlas.read_texture(arguments.atlas)
        tiles, mapped = _layouts(arguments, source.shape[:2], textures.TILE_SIDE)
        texture = texture_layouts.convert_texture(source, mapped, tiles)
    summary = texture_files.apply_texture(
        texture, photos, _people(arguments, photos), outputs, person=person
    )
    print(f"people dressed: {summary.num_people}, written to {arguments.output}")  # noqa: T201
    return summary


def _layouts(
    arguments: argparse.Namespace, size_hw: tuple[int, ...], side: int
) -> "tuple[Layout, Layout]":
    """The layouts of the atlas, and of a texture of a size for --uv-map."""
    from ktn_jax.body import loading
    from ktn_jax.results import texture_layouts

    uv_map = texture_layouts.read_uv_map(arguments.uv_map)
    # Charts and topology are all that is used: the body may be in any pose and unit.
    template = loading.load_template(arguments.charts, uv_map.vertices, symmetry_tolerance=None)
    mapped = texture_layouts.map_layout(uv_map, (size_hw[0], size_hw[1]))
    return texture_layouts.atlas_layout(template, side), mapped


def _people(
    arguments: argparse.Namespace,
    photos: Sequence[pathlib.Path],
    video: "VideoInput | None" = None,
) -> "PeopleOf":
    """People from --results, or from the model that is named, or the default one."""
    from ktn_jax import commands
    from ktn_jax.checkpoints import zoo
    from ktn_jax.inference import known_people
    from ktn_jax.results import records

    if arguments.results is not None:
        has_weights = arguments.weights is not None or arguments.random_weights
        if arguments.model or arguments.config or has_weights or arguments.changes:
            raise ValueError("people come from --results or from a model, not from both")
        if video is not None:
            return known_people.recorded_frames(arguments.results)
        found = records.read_results(arguments.results)
        return known_people.recorded_people(photos, found, str(arguments.results))
    from ktn_jax.modeling.person_branches import has_charts

    arguments.changes = [*arguments.changes, "test.batch_size=1"]  # photos come one by one
    config = commands.load_model_config(arguments, zoo.DEFAULT)
    if not has_charts(config.model):
        raise ValueError(
            f"{config.name} finds no patches, U and V, which textures are made of: take a model of "
            "charts, or --results of ktn predict --template, which makes them of vertices"
        )
    predictor = commands.load_predictor(arguments, config, zoo.DEFAULT)
    return known_people.predicted_people(predictor)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201
