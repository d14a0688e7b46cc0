"""score a results file, or a model on annotated images: AP on the body's surface"""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ktn_jax.body.symmetry import UVSymmetry
    from ktn_jax.data_pipelines.synthetic.scene import Scene
    from ktn_jax.evaluation.metrics import Metrics
    from ktn_jax.inference.predictor import Predictor
    from ktn_jax.runtime.processes import Processes

# Beyond the seeds that people train with: other images than any of theirs.
HELD_OUT_SEED = 1_000_000

EXAMPLES = """
  ktn eval --results results.json --annotations densepose_minival2014.json --template eval_data/
  ktn eval --config configs/ktn.py:r50 --weights R.pth --template eval_data/ --tta \\
      --annotations densepose_minival2014.json --images val2014/ --output out/
  ktn eval --config configs/ktn.py:demo --weights WORKDIR --data synthetic --num-images 200

Prints the table of scores and writes results.json, metrics.json and report.html to OUTPUT. A run
that was stopped goes on when the same command is given again. `ktn data template` makes a template.
Without --results, OUTPUT is ktn_eval/NAME-DIGEST if it is not given.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    parser.add_argument("--results", type=pathlib.Path, help="score this file, of any system")
    commands.add_config_arguments(parser, required=False)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", help="file of weights, orbax folder, or work folder")
    source.add_argument("--random-weights", action="store_true", help="untrained, to try things")
    parser.add_argument(
        "--data",
        metavar="DIR|synthetic",
        help="folder with annotations.json and images/, or people rendered for the purpose",
    )
    parser.add_argument("--annotations", type=pathlib.Path, help="DensePose-COCO JSON")
    parser.add_argument("--images", type=pathlib.Path, metavar="DIR", help="of the annotations")
    parser.add_argument("--template", type=pathlib.Path, metavar="DIR", help="evaluation template")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="folder to write into")
    parser.add_argument(
        "--mode",
        choices=("upstream", "ktn"),
        default="upstream",
        help="score as today's detectron2 (default) or as the KTNv2 code",
    )
    parser.add_argument(
        "--min-iou", type=float, default=0.5, help="lowest threshold of AP (default 0.5)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="that score (default: all cores)")
    parser.add_argument(
        "--tta", action="store_true", help="average over test.augmentation: scales and the mirror"
    )
    group = parser.add_argument_group("--data synthetic")
    group.add_argument("--num-images", type=int, default=100, metavar="N", help="default 100")
    group.add_argument(
        "--seed", type=int, default=HELD_OUT_SEED, help=f"decides them (default {HELD_OUT_SEED})"
    )
    group.add_argument(
        "--scene",
        help="default, frontal, busy, easy or hard; if not given, that of the configuration",
    )
    group.add_argument(
        "--fine-template", action="store_true", help="split the template's edges: takes minutes"
    )
    commands.add_process_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; the exit code is 75 if it was stopped and can go on."""
    from ktn_jax.commands import train

    _check(arguments)
    if arguments.results:
        return _score_file(arguments)
    try:
        return _evaluate_model(arguments)
    except KeyboardInterrupt:
        print("ktn eval: stopped; the same command goes on", file=sys.stderr)  # noqa: T201
        return train.EXIT_INTERRUPTED


def _check(arguments: argparse.Namespace) -> None:
    """Checks which arguments come together, before anything is loaded.

    Raises:
        ValueError: something is missing or too much.
    """
    has_weights = arguments.weights is not None or arguments.random_weights
    if arguments.results:
        if arguments.config or has_weights or arguments.tta or arguments.changes:
            raise ValueError(
                "--results scores a file that is there: leave out --config, --weights, --set, --tta"
            )
        if arguments.data == "synthetic" or not (arguments.annotations or arguments.data):
            raise ValueError("--results needs the --annotations that its image ids are of")
    elif not arguments.config or not has_weights:
        raise ValueError(
            "give --results FILE to score a file, or --config and --weights to run a model"
        )
    elif not arguments.data and not (arguments.annotations and arguments.images):
        raise ValueError("give --data DIR, --data synthetic, or --annotations and --images")
    if arguments.data == "synthetic" and (arguments.annotations or arguments.images):
        raise ValueError("--data synthetic makes its own annotations and images")
    if arguments.data != "synthetic" and arguments.template is None:
        raise ValueError(
            "--template is needed: the folder with the three official files, or one made by "
            "`ktn data template --output template/`, on which scores do not compare with "
            "published ones"
        )


def _locate(arguments: argparse.Namespace) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Finds annotations and, if there are any, images."""
    annotations, images = arguments.annotations, arguments.images
    if arguments.data:
        folder = pathlib.Path(arguments.data)
        if not folder.is_dir():
            raise ValueError(f"--data {folder}: no such folder, nor is it `synthetic`")
        annotations = annotations or folder / "annotations.json"
        if images is None and (folder / "images").is_dir():
            images = folder / "images"
        if not arguments.results and images is None:
            raise ValueError(f"--data {folder}: it has no images/; name them with --images")
    return annotations, images


def _score_file(arguments: argparse.Namespace) -> int:
    from ktn_jax.evaluation import evaluator

    annotations, images = _locate(arguments)
    with _progress(True) as progress:
        metrics = evaluator.evaluate_files(
            arguments.results,
            annotations,
            arguments.template,
            arguments.mode,
            arguments.output,
            arguments.min_iou,
            arguments.workers,
            images,
            progress,
        )
    _show(metrics, arguments.output)
    return 0


def _evaluate_model(arguments: argparse.Namespace) -> int:
    from ktn_jax.checkpoints import weights
    from ktn_jax.evaluation import sharing
    from ktn_jax.evaluation.ground_truth import read_ground_truth
    from ktn_jax.evaluation.precision_recall import similarity_thresholds
    from ktn_jax.inference import dataset
    from ktn_jax.runtime import configuration

    similarity_thresholds(arguments.min_iou)  # a wrong one is found out before hours of work
    config = configuration.load_config(arguments.config, arguments.changes)
    processes = _join_processes(arguments)
    if arguments.random_weights:
        variables = weights.initialise(config, seed=0)
    else:
        variables = weights.load(config, arguments.weights)
    data = _describe_data(arguments, config)
    symmetry = _load_symmetry(arguments, config)
    run = dataset.describe_run(config, variables, data, arguments.tta, symmetry)
    output = arguments.output or _default_output(run)
    template = arguments.template or output / _own_template_name(arguments)
    if processes.is_first:
        _prepare_files(arguments, config, output, template)
    processes.wait("prepared")
    if arguments.data == "synthetic":
        annotations, images = _rendered_files(output)
    else:
        annotations, images = _locate(arguments)
    predictor = _make_predictor(arguments, config, variables, symmetry)
    del variables  # the predictor keeps those that it needs
    results = dataset.predict_dataset(
        predictor, read_ground_truth(annotations), images, output, run, processes
    )
    with _progress(processes.is_first) as progress:
        metrics = sharing.evaluate_shared(
            results,
            annotations,
            template,
            processes,
            arguments.mode,
            output,
            arguments.min_iou,
            arguments.workers,
            images,
            progress,
        )
    if metrics is not None:
        _show(metrics, output)
    return 0


def _join_processes(arguments: argparse.Namespace) -> "Processes":
    """Joins the processes of the run; without any of their arguments there is one."""
    from ktn_jax import commands
    from ktn_jax.runtime.processes import Processes

    if not commands.join_processes(arguments):
        return Processes()
    import jax
    from jax.experimental import multihost_utils

    return Processes(jax.process_index(), jax.process_count(), multihost_utils.sync_global_devices)


def _describe_data(arguments: argparse.Namespace, config: "ConfigDict") -> bytes:
    """What decides the images and their annotations; errors in naming them come here."""
    import json

    from ktn_jax.evaluation.ground_truth import read_ground_truth

    if arguments.data != "synthetic":
        annotations, _ = _locate(arguments)
        read_ground_truth(annotations)
        return annotations.read_bytes()
    from ktn_jax.data_pipelines.synthetic.source import dataset_header

    header = dataset_header(_scene(arguments, config), arguments.num_images, arguments.seed)
    return json.dumps(header["info"], sort_keys=True).encode()


def _scene(arguments: argparse.Namespace, config: "ConfigDict") -> "Scene":
    import dataclasses

    from ktn_jax.data_pipelines.loading.configured import make_scene
    from ktn_jax.data_pipelines.synthetic.scene import PRESETS

    synthetic = config.data.synthetic
    if arguments.scene is None:
        return make_scene(synthetic)
    if arguments.scene not in PRESETS:
        raise ValueError(f"--scene {arguments.scene!r}: one of {sorted(PRESETS)}")
    size = tuple(synthetic.image_size_hw)
    return dataclasses.replace(PRESETS[arguments.scene], image_size_hw=size)


def _load_symmetry(arguments: argparse.Namespace, config: "ConfigDict") -> "UVSymmetry | None":
    from ktn_jax.inference.augmentation import load_symmetry

    if not arguments.tta or not config.test.augmentation.flip:
        return None
    return load_symmetry(config.data)


def _make_predictor(
    arguments: argparse.Namespace,
    config: "ConfigDict",
    variables: Mapping[str, Any],
    symmetry: "UVSymmetry | None",
) -> "Predictor":
    import jax

    from ktn_jax.inference.augmentation import AugmentedPredictor
    from ktn_jax.inference.predictor import Predictor

    variables = jax.device_put(variables)  # once, not with every batch
    if arguments.tta:
        return AugmentedPredictor(config, variables, symmetry)
    return Predictor(config, variables)


def _default_output(run: Mapping[str, Any]) -> pathlib.Path:
    """A folder of this run alone, so that the same command finds it again."""
    import hashlib
    import json

    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return pathlib.Path("ktn_eval") / f"{run['name']}-{digest[:8]}"


def _own_template_name(arguments: argparse.Namespace) -> str:
    return "template-fine" if arguments.fine_template else "template"


def _rendered_files(output: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Annotations and images of the people rendered for this run."""
    from ktn_jax.data_pipelines.synthetic import dataset_files

    folder = output / "people"
    return folder / dataset_files.ANNOTATION_FILE, folder / dataset_files.IMAGE_FOLDER


def _prepare_files(
    arguments: argparse.Namespace,
    config: "ConfigDict",
    output: pathlib.Path,
    template: pathlib.Path,
) -> None:
    """Makes what is missing: the output folder, and for synthetic people these and the template."""
    from ktn_jax.evaluation import template_files

    output.mkdir(parents=True, exist_ok=True)
    if arguments.data == "synthetic":
        from ktn_jax.body.procedural import assembly
        from ktn_jax.data_pipelines.synthetic import dataset_files

        if arguments.seed == config.data.synthetic.seed and config.data.source == "synthetic":
            _note(f"--seed {arguments.seed} is the configuration's: people that it trains on")
        annotations, _ = _rendered_files(output)
        scene = _scene(arguments, config)
        dataset_files.write_dataset(annotations.parent, arguments.num_images, arguments.seed, scene)
        if not arguments.template and not (template / template_files.SURFACE_FILE).is_file():
            template_files.write_body_template(
                template,
                assembly.make_body().template,
                "the project's procedural body",
                subdivided=arguments.fine_template,
            )
    template_files.load_template(template)  # converts official files now, once


@contextlib.contextmanager
def _progress(show: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of the images that are scored."""
    from tqdm import tqdm

    with tqdm(desc="score", unit="image", disable=not show) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _show(metrics: "Metrics", output: pathlib.Path | None) -> None:
    print(metrics.table())  # noqa: T201
    if output is not None:
        print(f"metrics.json and report.html written to {output}")  # noqa: T201


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)  # noqa: T201
