"""find people in photos and videos and write which point of the body each pixel shows"""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktn_jax.body.surface import Template
    from ktn_jax.inference.vertex_charts import VertexCharts

EXAMPLES = """
  ktn predict photo.jpg
  ktn predict photos/ '2024/*.png' --model densepose_rcnn_R_101_FPN_DL_s1x --output out/
  ktn predict photo.jpg --config densepose_rcnn_R_50_FPN_s1x.yaml --weights model_final_162be9.pkl
  ktn predict photo.jpg --config ktn:r50 --weights R.pth
  ktn predict photo.jpg --style fine_segm --style contour+bbox --background black --dump
  ktn predict clip.mp4 --style fine_segm --background lowest --output out/
  ktn predict --camera 0 --output out/

The model is densepose_rcnn_R_50_FPN_DL_s1x where none is named; `ktn models` lists all. OUTPUT is
ktn_predict/MODEL-DIGEST by default.

For each photo: NAME_iuv.png (red I, green 255 U, blue 255 V), NAME_instances.png (people numbered
from 1 by score), NAME_overlay.jpg, and NAME_STYLE.png for each --style; for all of them
results.json (DensePose-COCO results format). For each video: NAME_overlay.mp4, NAME_STYLE.mp4 and
NAME.jsonl, a line for each frame. The same command resumes a stopped run.

Photos go through the network one by one: on two CPU cores batches of R50 models save no time
(docs/performance.md). On a GPU try --set test.batch_size=8.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands
    from ktn_jax.commands import draw, predict_video

    parser.add_argument(
        "inputs", nargs="*", metavar="PHOTO", help="files, folders or globs; or videos"
    )
    commands.add_model_arguments(parser)
    parser.add_argument(
        "--output",
        type=commands.folder_or_address,
        metavar="DIR",
        help="folder to write into, or an address, gs://bucket/out",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the files of another run in the folder (never the photos)",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="search the subfolders of folders too"
    )
    parser.add_argument(
        "--annotations",
        type=commands.folder_or_address,
        metavar="FILE",
        help="COCO JSON that lists the photos: results get its image ids and person category",
    )
    parser.add_argument(
        "--min-score",
        type=commands.finite,
        default=0.5,
        help="lowest score of people to draw and list (default 0.5)",
    )
    parser.add_argument(
        "--confidences",
        action="store_true",
        help="of a model that predicts them: confidences in results.json and NAME_confidence.jpg",
    )
    parser.add_argument(
        "--dump",
        action="store_true",
        help="NAME_dump.npz and .json with all numbers: boxes, scores, patches, U and V as the "
        "network gives them, confidences",
    )
    parser.add_argument(
        "--vertices",
        metavar="CHARTS",
        help="with --dump: which pixel shows each vertex, and the body point of each pixel; the "
        "charts are UV_Processed.mat, with --body, or the word procedural, for models of rendered "
        "people",
    )
    parser.add_argument(
        "--body",
        type=pathlib.Path,
        metavar="NPY",
        help="with --vertices: the vertices of SMPL's rest pose, metres, y up",
    )
    parser.add_argument(
        "--template",
        type=pathlib.Path,
        metavar="DIR",
        help="of a model with vertices: the evaluation template of its mesh, for IUV pictures too",
    )
    draw.add_style_arguments(parser)
    predict_video.add_arguments(parser)
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predicts; a photo that cannot be read or written is reported, and the exit code is 1.

    It is 75 if the command was stopped and can be resumed.
    """
    from ktn_jax import commands
    from ktn_jax.commands import predict_video
    from ktn_jax.runtime import mirrors

    commands.fetch_inputs(arguments, "inputs", "annotations")
    arguments.inputs = [os.fspath(name) for name in arguments.inputs]
    predict = predict_video.run if predict_video.is_wanted(arguments) else _predict

    def run_in_folder() -> int:
        if arguments.output is None:
            return predict(arguments, None)
        with mirrors.output_folder(arguments.output) as (folder, _):
            return predict(arguments, folder)

    return commands.run_resumable("predict", run_in_folder)


def _predict(arguments: argparse.Namespace, folder: pathlib.Path | None) -> int:
    """Predicts photos into a local folder; None chooses one."""
    from ktn_jax import commands
    from ktn_jax.checkpoints import zoo
    from ktn_jax.commands import draw
    from ktn_jax.inference import charts, dataset, photos
    from ktn_jax.inference.photo_products import CONFIDENCE_ENDING, Products
    from ktn_jax.modeling.person_branches import has_embeddings
    from ktn_jax.runtime import image_files

    config = commands.load_model_config(arguments, zoo.DEFAULT)
    if arguments.confidences:
        charts.check_confidences(config)
    if arguments.template is not None and not has_embeddings(config.model):
        raise ValueError("--template is for models with vertices: this one predicts charts itself")
    products = Products(
        tuple(arguments.styles or ()),
        draw.read_settings(arguments),
        with_confidences=arguments.confidences,
        with_dump=arguments.dump,
        template=_template(arguments),
        charts=_charts(arguments),
    )
    charts.check_pictures(
        config,
        products.pictures,
        products.settings,
        with_template=products.charts is not None,
    )
    own_endings = (*products.endings, CONFIDENCE_ENDING, dataset.RESULTS_FILE)
    found = image_files.find_images(arguments.inputs, arguments.recursive, own_endings)
    _say(found.notes)
    if folder:  # before the weights are read, which takes long
        photos.check_output(folder, found.paths, arguments.overwrite, products)
    annotated = _annotated(arguments, folder, found.paths)
    predictor, described = commands.load_described_predictor(arguments, config, zoo.DEFAULT)
    folder = folder or _default_output(described, found.paths)
    summary = photos.predict_files(
        predictor,
        found.paths,
        folder,
        arguments.min_score,
        run=described,
        overwrite=arguments.overwrite,
        products=products,
        **annotated,
    )
    _say([f"{path}: {note}" for path, note in summary.notes])
    _say([f"skipped {path}: {reason}" for path, reason in summary.failures])
    print(  # noqa: T201
        f"{summary.num_people} people in {summary.num_photos} photos, written to "
        f"{arguments.output or folder}"
    )
    return 1 if summary.failures else 0


def _default_output(run: Mapping[str, Any], paths: Sequence[pathlib.Path]) -> pathlib.Path:
    from ktn_jax.inference import dataset

    photos = [os.fsencode(path.absolute()).hex() for path in paths]
    return dataset.default_folder({**run, "photos": photos}, "ktn_predict")


def _template(arguments: argparse.Namespace) -> "Template | None":
    """The body of --vertices and --body."""
    charts, body = arguments.vertices, arguments.body
    if charts is not None and not arguments.dump:
        raise ValueError("--vertices go into the dump: add --dump")
    if (body is None) != (charts in (None, "procedural")):
        raise ValueError("--vertices UV_Processed.mat and --body NPY need each other")
    if charts is None:
        return None
    if charts == "procedural":
        from ktn_jax.body.procedural import assembly

        return assembly.make_body().template
    from ktn_jax.body import loading

    return loading.load_template(charts, body, symmetry_tolerance=None)


def _charts(arguments: argparse.Namespace) -> "VertexCharts | None":
    """The charts of --template."""
    if arguments.template is None:
        return None
    # Here and below: they import parts of SciPy for half a second, which most runs do not need.
    from ktn_jax.evaluation.template_files import load_evaluation_template
    from ktn_jax.inference.vertex_charts import VertexCharts

    return VertexCharts(load_evaluation_template(arguments.template, verify=False))


def _annotated(
    arguments: argparse.Namespace, folder: pathlib.Path | None, paths: Sequence[pathlib.Path]
) -> dict[str, Any]:
    """What --annotations says of the photos, as arguments of `photos.predict_files`."""
    if arguments.annotations is None:
        return {}
    from ktn_jax.evaluation.ground_truth import read_ground_truth
    from ktn_jax.inference import dataset, photo_names

    results = folder and folder / dataset.RESULTS_FILE
    if results and arguments.annotations.resolve() == results.resolve():
        raise ValueError(f"{arguments.annotations} would be written over: give another --output")
    # People are not used: their errors do not matter here.
    truth = read_ground_truth(arguments.annotations, on_bad="skip")
    ids = photo_names.annotated_ids(paths, truth)
    sizes_hw = {image.image_id: image.image_size_hw for image in truth.images}
    return {
        "ids": ids,
        "sizes_hw": [sizes_hw[image_id] for image_id in ids],
        "category_id": truth.category_id,
    }


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201
