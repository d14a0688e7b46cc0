"""Renders people, trains on some, finds the others and writes a page of the results.

Every stage leaves its result in the output folder, from which an interrupted run resumes.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from ktn_jax.checkpoints import weights
from ktn_jax.data_pipelines.loading.configured import make_scene, make_training_data
from ktn_jax.data_pipelines.synthetic import dataset_files
from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.demo import page, pictures
from ktn_jax.evaluation import template_files
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.inference import dataset, model_evaluation
from ktn_jax.runtime import atomic_files, configuration, locks
from ktn_jax.training.configured import make_trainer
from ktn_jax.training.tracking import JSON_LINES

WEIGHTS_FILE, REPORT_FILE, RECORD_FILE = "weights.safetensors", "report.html", "demo.json"
TRAINING_PEOPLE, TEST_PEOPLE, TEMPLATE, WORKDIR = "people", "test_people", "template", "training"
RESULTS = "evaluation"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DemoRequest:
    """Settings of a demo.

    Attributes:
        output: folder for everything it makes.
        config_name: as `configuration.load_config` takes it; empty for the one of this device.
        changes: of the configuration, `key=value`.
        steps: training steps; None for those of the configuration.
        seed: decides the people, the initial weights and the order of the images.
        num_test_images: held-out images.
        num_shown: of these, how many pictures the page has.
        shared: folder for what depends on the seed only, people and template, so that several
            models learn from the same; None for `output`.
    """

    output: pathlib.Path
    config_name: str = ""
    changes: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0
    num_test_images: int = 100
    num_shown: int = 10
    shared: pathlib.Path | None = None

    @property
    def data(self) -> pathlib.Path:
        """The folder of people and template."""
        return self.shared or self.output


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a demo ended.

    Attributes:
        is_complete: False where training was asked to stop; the same request resumes it.
        record: of the run: settings, seconds of every stage and, once complete, scores.
        report: the page.
    """

    is_complete: bool
    record: dict[str, Any]
    report: pathlib.Path


def run_demo(request: DemoRequest, say: Say) -> Outcome:
    """Runs the demo, or resumes it.

    Args:
        request: what to do.
        say: called with a sentence at the start of each stage.

    Returns:
        How it ended.

    Raises:
        ValueError: the folder holds a demo of other settings, or a setting does not fit.
        FolderInUseError: another process runs a demo there.
        ktn_jax.training.trainer.NonFiniteError: training diverged.
    """
    with locks.hold(request.output):
        return _run(request, say)


def _run(request: DemoRequest, say: Say) -> Outcome:
    config = make_config(request, say)
    record = _Record(request, config)
    path = request.output / REPORT_FILE
    if record.is_complete and path.is_file():
        say("This demo is done already; give another --output for a new one.")
        return Outcome(True, record.content, path)
    with record.timed("render"):
        test_people = _render(request, config, say)
    with record.timed("train"):
        is_complete = _train(request, config, say)
    if not is_complete:
        return Outcome(False, record.content, path)
    with record.timed("evaluate"):
        metrics = _evaluate(request, config, say)
    with record.timed("report"):
        shown = pictures.test_pictures(
            test_people,
            request.output / RESULTS / dataset.RESULTS_FILE,
            range(min(request.num_shown, len(test_people))),
        )
    record.finish(metrics)
    content = page.render_demo(
        record.content,
        config=config,
        metrics=metrics,
        losses_path=request.output / WORKDIR / JSON_LINES,
        rows=shown,
        commands=_commands(request, record.config_name, config.model.predictor.name),
    )
    with atomic_files.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return Outcome(True, record.content, path)


def make_config(request: DemoRequest, say: Say) -> ConfigDict:
    """Loads the configuration that a demo trains, with its people's folders in place.

    Raises:
        ConfigurationError: an unknown configuration or change.
    """
    name = request.config_name
    platform = jax.devices()[0].platform
    if not name:
        name = "ktn:demo" if platform == "cpu" else "ktn:demo_gpu"
        size = "the small model" if platform == "cpu" else "a larger model"
        say(f"Training {size}, {name}, on this machine's {platform.upper()}.")
    folder = request.data / TRAINING_PEOPLE
    own = {
        "seed": request.seed,
        "data.synthetic.seed": request.seed,
        "data.source": "densepose_coco",
        "data.annotations": (str(folder / dataset_files.ANNOTATION_FILE),),
        "data.images": (str(folder / dataset_files.IMAGE_FOLDER),),
    }
    if request.steps is not None:
        own["total_steps"] = request.steps
    changes = [f"{key}={value!r}" for key, value in own.items()]
    return configuration.load_config(name, [*request.changes, *changes])


class _Record:
    """What the output folder says of its demo: RECORD_FILE."""

    def __init__(self, request: DemoRequest, config: ConfigDict):
        self.config_name = request.config_name or config.name.replace("_", ":", 1)
        self._path = request.output / RECORD_FILE
        settings = {
            "config": self.config_name,
            "changes": list(request.changes),
            "steps": config.total_steps,
            "seed": request.seed,
            "test_images": request.num_test_images,
        }
        request.output.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {
            "settings": settings,
            "seconds": {},
            "cpu_seconds": {},
            "scores": None,
        }
        if self._path.is_file():
            stored = self._read()
            if stored.get("settings") != settings:
                raise ValueError(
                    f"{request.output} holds a demo of other settings ({stored.get('settings')}, "
                    f"wanted {settings}): give another --output, or remove it"
                )
            self.content = stored
        elif not locks.is_empty(request.output):
            raise ValueError(
                f"{request.output} is not empty and holds no demo: give a new --output"
            )
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._path.read_bytes())
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict) or not self.content.keys() <= stored.keys():
            raise ValueError(f"{self._path} is damaged: give another --output, or remove it")
        return stored

    @property
    def is_complete(self) -> bool:
        """Whether the demo is complete."""
        return self.content["scores"] is not None

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds inside to those of the stage, which may run in several parts."""
        start, cpu = time.perf_counter(), _cpu_seconds()
        try:
            yield
        finally:
            spent = {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - cpu}
            for name, value in spent.items():
                self.content[name][stage] = round(self.content[name].get(stage, 0) + value, 1)
            self._write()

    def finish(self, metrics: Metrics) -> None:
        """Adds the scores."""
        self.content["scores"] = metrics.summaries
        self._write()

    def _write(self) -> None:
        with atomic_files.replacing(self._path) as temporary:
            temporary.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


def _cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _render(request: DemoRequest, config: ConfigDict, say: Say) -> SyntheticSource:
    """Renders both sets and returns the test set."""
    synthetic = config.data.synthetic
    scene = make_scene(synthetic)
    sets = (
        ("training", TRAINING_PEOPLE, synthetic.num_images, request.seed),
        ("test", TEST_PEOPLE, request.num_test_images, HELD_OUT_SEED + request.seed),
    )
    for use, folder, count, seed in sets:
        if not (request.data / folder / dataset_files.ANNOTATION_FILE).is_file():
            say(f"Rendering {count} {use} images of people.")
        workers = min(os.cpu_count() or 1, 8) if count > 200 else 1
        dataset_files.write_dataset(
            request.data / folder, count, seed=seed, scene=scene, num_processes=workers
        )
    return SyntheticSource(request.num_test_images, HELD_OUT_SEED + request.seed, scene)


def _train(request: DemoRequest, config: ConfigDict, say: Say) -> bool:
    """Trains or resumes training; returns whether all steps were taken."""
    say(f"Training for {config.total_steps} steps of {config.batch_size} images.")
    data = make_training_data(config)
    with make_trainer(config, request.output / WORKDIR) as trainer:
        return trainer.fit(data.batches_from).is_complete


def _evaluate(request: DemoRequest, config: ConfigDict, say: Say) -> Metrics:
    """Writes the weights, finds the test people with them and scores what was found."""
    output = request.output
    say("Finding the people of the test images.")
    weights.write_variables(output / WEIGHTS_FILE, weights.read_variables(output / WORKDIR))
    template = request.data / TEMPLATE
    template_files.ensure_own_template(template)
    _, metrics = model_evaluation.evaluate_weights(
        config,
        # From the file, so that the scores are those of what the commands on the page load.
        weights.load(config, output / WEIGHTS_FILE),
        data=model_evaluation.AnnotatedFiles.in_folder(request.data / TEST_PEOPLE),
        template_dir=template,
        output_dir=output / RESULTS,
    )
    if metrics is None:
        raise RuntimeError("the demo runs in one process, which should have the scores")
    return metrics


def _commands(request: DemoRequest, config_name: str, predictor: str) -> dict[str, str]:
    """Commands that use the trained weights, by what they do; quoted for a shell."""
    output, test_people = request.output, request.data / TEST_PEOPLE
    model: list[object] = ["--config", config_name]
    for change in request.changes:
        model += ["--set", change]
    model += ["--weights", output / WEIGHTS_FILE]
    images = test_people / dataset_files.IMAGE_FOLDER
    template = request.data / TEMPLATE
    # Vertices become charts by it, which other pictures show.
    charts: list[object] = ["--template", template] if predictor == "embedding" else []
    seed = 2 * HELD_OUT_SEED
    rows: dict[str, list[object]] = {
        "Find people in a photo of yours: put its path in place of photo.jpg (the model has seen "
        "rendered people only)": [
            "predict",
            "photo.jpg",
            *model,
            *charts,
            "--output",
            output / "own_photo",
        ],
        "Find people in the test pictures": ["predict", images, *model, *charts]
        + ["--output", output / "predicted"],
        "Draw them as detectron2 does": ["draw", output / "predicted" / dataset.RESULTS_FILE]
        + ["--style", "fine_segm", "--style", "contour+bbox", "--output", output / "drawn"],
        "Score the test set again": ["eval", *model, "--data", test_people]
        + ["--template", template, "--output", output / "scored"],
        "Score people never rendered before": ["eval", *model, "--data", "synthetic"]
        + ["--seed", seed, "--output", output / "scored_new"],
    }
    return {purpose: _in_lines(["ktn", *map(str, words)]) for purpose, words in rows.items()}


def _in_lines(words: Sequence[str]) -> str:
    """Quotes a command for a shell, every option with its value on a line of its own."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(map(shlex.join, lines))
