"""score a results file, or a model on annotated images: AP on the body's surface"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ktn_jax.data_pipelines.synthetic.held_out import HeldOutPeople
    from ktn_jax.evaluation.metrics import Metrics
    from ktn_jax.evaluation.options import ScoringOptions
    from ktn_jax.inference.model_evaluation import AnnotatedFiles
    from ktn_jax.runtime.processes import Processes

EXAMPLES = """
  ktn eval --results results.json --annotations densepose_minival2014.json --template eval_data/
  ktn eval --config ktn:r50 --weights R.pth --template eval_data/ --tta \\
      --annotations densepose_minival2014.json --images val2014/ --output out/
  ktn eval --model densepose_rcnn_R_50_FPN_s1x --template eval_data/ \\
      --annotations densepose_minival2014.json --images val2014/
  ktn eval --config ktn:demo --weights WORKDIR --data synthetic --num-images 200
  ktn eval --config cse:animals --weights W --data animals/
  ktn eval --config cse:animals --weights W --key-vertices keyvertices.json

Prints the table of scores and writes results.json, metrics.json and report.html to OUTPUT. The
same command resumes a stopped run. `ktn data template` makes a template; results with vertices need
none where vertices are annotated (dp_vertex). For a model, OUTPUT is
ktn_eval/NAME-DIGEST by default.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    folder = commands.folder_or_address
    parser.add_argument("--results", type=folder, help="score this results file, of any system")
    commands.add_model_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="DIR|synthetic",
        help="folder with annotations.json and images/, or people rendered for the purpose",
    )
    parser.add_argument("--annotations", type=folder, help="DensePose-COCO JSON")
    parser.add_argument("--images", type=folder, metavar="DIR", help="image folder")
    parser.add_argument("--template", type=folder, metavar="DIR", help="evaluation template")
    parser.add_argument(
        "--mesh",
        dest="meshes",
        action="append",
        metavar="FILE",
        help="NAME.npz, a mesh of your own on which vertices are annotated; may be repeated",
    )
    parser.add_argument(
        "--category",
        dest="categories",
        action="append",
        metavar="NAME",
        help="what is scored: a category of the annotations (default person; of a model of several "
        "classes all its data.categories); may be repeated",
    )
    parser.add_argument(
        "--output",
        type=folder,
        metavar="DIR",
        help="folder to write into, or, as for the other files, an address, gs://bucket/out",
    )
    parser.add_argument(
        "--mode",
        choices=("upstream", "ktn"),
        default="upstream",
        help="score as today's detectron2 (default) or as the KTNv2 code",
    )
    parser.add_argument(
        "--min-iou", type=commands.finite, default=0.5, help="lowest threshold of AP (default 0.5)"
    )
    parser.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="annotations with errors: stop and name them (default), or leave bad records out",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="scoring processes (default: one per core)"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over the scales of test.augmentation and "
        "mirrored images",
    )
    parser.add_argument(
        "--true-boxes",
        action="store_true",
        help="describe the annotated people in their annotated boxes instead of finding people: "
        "scores without the detector's errors",
    )
    parser.add_argument(
        "--confidences",
        action="store_true",
        help="write the confidences of a model that predicts them to results.json",
    )
    group = parser.add_argument_group("--data synthetic")
    group.add_argument("--num-images", type=int, default=100, metavar="N", help="default 100")
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="decides the people (default: a seed that no training uses)",
    )
    group.add_argument(
        "--scene",
        help="default, frontal, busy, large, everyday, easy or hard (default: the configuration's)",
    )
    group.add_argument(
        "--fine-template",
        action="store_true",
        help="split the edges of the template's mesh, as the official one is: takes minutes",
    )
    parser.add_argument(
        "--key-vertices",
        type=pathlib.Path,
        metavar="FILE",
        help="of a model of several meshes: measure how well they are aligned, and nothing else; "
        "JSON of {mesh: {meaning: vertex}}",
    )
    commands.add_process_arguments(parser)
    commands.add_quiet_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; the exit code is 75 if it was stopped and can be resumed."""
    from ktn_jax import commands

    _check(arguments)
    commands.fetch_inputs(arguments, "results", "annotations", "images", "template", "data")
    if arguments.results:
        return _score_file(arguments)
    if arguments.key_vertices:
        return _measure_alignment(arguments)
    return commands.run_resumable("eval", lambda: _evaluate_model(arguments))


def _check(arguments: argparse.Namespace) -> None:
    """Checks that the arguments fit together, before anything is loaded.

    Raises:
        ValueError: an argument is missing, or does not go with another one.
    """
    from ktn_jax.checkpoints import zoo

    has_model = arguments.model is not None or arguments.config is not None
    has_weights = arguments.weights is not None or arguments.random_weights
    if arguments.results:
        if has_model or has_weights or arguments.tta or arguments.changes:
            raise ValueError(
                "--results scores a file and runs no model: leave out --model, --config, "
                "--weights, --set, --tta"
            )
        for name in ("confidences", "true_boxes", "key_vertices"):
            if getattr(arguments, name):
                option = name.replace("_", "-")
                raise ValueError(f"--results runs no model: leave out --{option}")
        if arguments.data == "synthetic" or not (arguments.annotations or arguments.data):
            raise ValueError(
                "--results needs --annotations (or --data) with the images of the file"
            )
    elif not has_model and arguments.weights is None:
        raise ValueError(
            "give --results FILE to score a file, or --model, or --config and --weights, to run "
            "a model"
        )
    elif not has_weights and arguments.model is None and arguments.config not in zoo.models():
        raise ValueError(f"{arguments.config} has no weights of its own: name them with --weights")
    elif arguments.key_vertices:
        return
    elif not arguments.data and not (arguments.annotations and arguments.images):
        raise ValueError("give --data DIR, --data synthetic, or --annotations and --images")
    if arguments.tta and arguments.true_boxes:
        raise ValueError("--tta averages people who are found: leave out --true-boxes")
    if arguments.data == "synthetic" and (arguments.annotations or arguments.images):
        raise ValueError("--data synthetic makes its own annotations and images")


def _locate(arguments: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Finds the annotation file and, if there is one, the image folder."""
    annotations, images = arguments.annotations, arguments.images
    if arguments.data:
        folder = pathlib.Path(arguments.data)
        if not folder.is_dir():
            raise ValueError(
                f"--data {folder}: no such folder; for rendered people write --data synthetic"
            )
        annotations = annotations or folder / "annotations.json"
        if images is None and (folder / "images").is_dir():
            images = folder / "images"
        if not arguments.results and images is None:
            raise ValueError(f"--data {folder}: it has no images/; name them with --images")
    return annotations, images


def _options(arguments: argparse.Namespace, config: "ConfigDict | None" = None) -> "ScoringOptions":
    from ktn_jax.evaluation.options import ScoringOptions

    categories = ["person"]
    if config is not None and len(config.data.categories) > 1:
        categories = config.data.categories
    return ScoringOptions(
        arguments.mode,
        arguments.min_iou,
        arguments.workers,
        on_bad=arguments.on_bad,
        mesh_files=tuple(arguments.meshes or ()),
        categories=tuple(arguments.categories or categories),
    )


def _score_file(arguments: argparse.Namespace) -> int:
    from ktn_jax.evaluation import evaluator
    from ktn_jax.runtime.progress import Progress

    annotations, images = _locate(arguments)
    with _output(arguments, None) as (folder, _), Progress("score", "images") as progress:
        metrics = evaluator.evaluate_files(
            arguments.results,
            annotations,
            arguments.template,
            _options(arguments),
            output_dir=folder,
            images_dir=images,
            progress=progress.set,
        )
    _show(metrics, arguments.output)
    return 0


def _data(arguments: argparse.Namespace, config: "ConfigDict") -> "AnnotatedFiles | HeldOutPeople":
    from ktn_jax.inference.model_evaluation import AnnotatedFiles

    if arguments.data == "synthetic":
        return _held_out_people(arguments, config)
    annotations, images = _locate(arguments)
    if images is None:
        raise ValueError("a model needs images: name them with --images")
    return AnnotatedFiles(annotations, images)


def _evaluate_model(arguments: argparse.Namespace) -> int:
    from ktn_jax import commands
    from ktn_jax.evaluation.errors import TEMPLATE_ADVICE
    from ktn_jax.inference import model_evaluation
    from ktn_jax.modeling.person_branches import has_embeddings
    from ktn_jax.runtime.progress import Progress

    config = commands.load_model_config(arguments)
    options = _options(arguments, config)
    # Vertices may be annotated: the evaluation says if they are not.
    needs_template = not has_embeddings(config.model)
    if needs_template and arguments.data != "synthetic" and arguments.template is None:
        raise ValueError(TEMPLATE_ADVICE)
    processes = commands.join_processes(arguments)
    with (
        _output(arguments, processes) as (folder, sharing),
        Progress("score", "images", is_shown=processes.is_first) as progress,
    ):
        output, metrics = model_evaluation.evaluate_weights(
            config,
            # Not kept here: the predictor keeps what it needs.
            commands.load_model_variables(arguments, config),
            data=_data(arguments, config),
            template_dir=arguments.template,
            options=options,
            output_dir=folder,
            augmented=arguments.tta,
            with_true_boxes=arguments.true_boxes,
            fine_template=arguments.fine_template,
            processes=sharing,
            progress=progress.set,
            with_confidences=arguments.confidences,
        )
    if metrics is not None:
        _show(metrics, arguments.output or output)
    return 0


def _measure_alignment(arguments: argparse.Namespace) -> int:
    import numpy as np

    from ktn_jax import commands
    from ktn_jax.evaluation import mesh_alignment
    from ktn_jax.evaluation.mesh_distances import MeshDistances
    from ktn_jax.inference.stages import Stages

    key_vertices = mesh_alignment.read_key_vertices(arguments.key_vertices)
    config = commands.load_model_config(arguments)
    stages = Stages(config, commands.load_model_variables(arguments, config))
    embeddings = {name: np.asarray(table) for name, table in stages.vertex_embeddings.items()}
    distances = MeshDistances(arguments.meshes or ())
    alignment = mesh_alignment.measure_alignment(embeddings, key_vertices, distances)
    print(alignment.table())  # noqa: T201
    return 0


@contextlib.contextmanager
def _output(
    arguments: argparse.Namespace, processes: "Processes | None"
) -> "Iterator[tuple[pathlib.Path | None, Processes | None]]":
    """The local folder for what --output names, None without it, and who shares it."""
    from ktn_jax.runtime import mirrors

    if arguments.output is None:
        yield None, processes
        return
    with mirrors.output_folder(arguments.output, processes) as opened:
        yield opened


def _held_out_people(arguments: argparse.Namespace, config: "ConfigDict") -> "HeldOutPeople":
    from ktn_jax.data_pipelines.loading.configured import make_scene
    from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED, HeldOutPeople

    seed = HELD_OUT_SEED if arguments.seed is None else arguments.seed
    if seed == config.data.synthetic.seed and config.data.source == "synthetic":
        print(  # noqa: T201
            f"note: --seed {seed} is the configuration's training seed: the model knows "
            "these people",
            file=sys.stderr,
        )
    scene = make_scene(config.data.synthetic, arguments.scene)
    return HeldOutPeople(scene, arguments.num_images, seed)


def _show(metrics: "Metrics", output: pathlib.Path | str | None) -> None:
    print(metrics.table())  # noqa: T201
    if output is not None:
        print(f"metrics.json and report.html written to {output}")  # noqa: T201
