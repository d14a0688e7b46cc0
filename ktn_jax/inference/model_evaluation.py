"""From a model and annotated images to its scores."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ktn_jax.data_pipelines.synthetic import dataset_files
from ktn_jax.data_pipelines.synthetic.held_out import HeldOutPeople
from ktn_jax.evaluation import categories, sharing, template_files
from ktn_jax.evaluation.errors import TEMPLATE_ADVICE, EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth, read_ground_truths
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.evaluation.options import DEFAULT_OPTIONS, ScoringOptions
from ktn_jax.inference import charts, dataset
from ktn_jax.inference.augmentation import AugmentedPredictor
from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.inference.known_boxes import KnownBoxPredictor
from ktn_jax.inference.predictor import Predictor
from ktn_jax.inference.stages import Stages
from ktn_jax.inference.symmetries import load_symmetry
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.program_store import ProgramStore

PEOPLE_FOLDER, TEMPLATE_FOLDER = "people", "template"
_FINE_TEMPLATE_FOLDER = "template-fine"
# Description of a run that is never resumed: its shards are removed before the next one.
_UNNAMED_RUN = {"name": "not to be resumed"}


@dataclasses.dataclass(frozen=True)
class AnnotatedImages:
    """Images to evaluate on.

    Attributes:
        truths: their annotations, of each category that is scored.
        folder: image folder, to which the annotations' file names are relative.
    """

    truths: tuple[GroundTruth, ...]
    folder: pathlib.Path


@dataclasses.dataclass(frozen=True)
class AnnotatedFiles:
    """The files of images to evaluate on.

    Attributes:
        annotations: DensePose-COCO annotations.
        images: the folder of their images.
    """

    annotations: pathlib.Path
    images: pathlib.Path

    def __post_init__(self) -> None:
        """Takes paths of any kind."""
        for name in ("annotations", "images"):
            object.__setattr__(self, name, pathlib.Path(getattr(self, name)))

    @classmethod
    def in_folder(cls, folder: pathlib.Path) -> "AnnotatedFiles":
        """Names the files of a folder with annotations.json and images/, as of `ktn data synth`."""
        return cls(folder / dataset_files.ANNOTATION_FILE, folder / dataset_files.IMAGE_FOLDER)

    def read(self, options: ScoringOptions = DEFAULT_OPTIONS) -> AnnotatedImages:
        """Reads the annotations, see `ground_truth.read_ground_truths`.

        Raises:
            EvaluationError: they are missing or cannot be scored.
        """
        truths = read_ground_truths(self.annotations, options.on_bad, options.categories)
        return AnnotatedImages(truths, self.images)

    def describe(self) -> bytes:
        """The annotations and the folder of the images, as `dataset.describe_run` takes it."""
        return self.annotations.read_bytes() + b"\0" + os.fsencode(self.images.resolve())


def evaluate_model(
    predictor: CallablePredictor | KnownBoxPredictor,
    data: AnnotatedFiles | AnnotatedImages,
    template_dir: str | os.PathLike[str] | None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    run: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
    with_confidences: bool = False,
) -> Metrics | None:
    """Finds the people of annotated images and scores them.

    Without `run` every call predicts all images, as the predictor's weights may have changed. With
    it, detections that an earlier call with the same `run` left in `output_dir` are reused.

    Args:
        predictor: with weights.
        data: the images and their annotations; files are read in every call.
        template_dir: evaluation template, see `template_files.load_evaluation_template`; None for a
            model with vertices, where vertices are annotated.
        options: how to score.
        output_dir: folder for `results.json`, `metrics.json`, `report.html` and the detections of
            an unfinished run; all processes must see it. None leaves nothing on disk.
        run: describes what the detections depend on, see `dataset.describe_run`.
        processes: those that share the work; each calls this.
        progress: called with (images scored, images in all) of this process's share.
        with_confidences: write the confidences of a model that predicts them to `results.json`.

    Returns:
        All scores in process 0, None in the others.

    Raises:
        ValueError: `run`, or several processes, without an `output_dir`.
        EvaluationError: images or the template are missing or do not fit.
        ktn_jax.results.shards.ShardError: `output_dir` holds another run.
        FolderInUseError: another process writes into `output_dir`.
        ktn_jax.runtime.images.ImageError: an image file cannot be read, and `options.on_bad` is
            "raise"; with "skip" it is left out, and the scores' notes name it.
    """
    processes = processes or Processes()
    images = data.read(options) if isinstance(data, AnnotatedFiles) else data
    output_dir = None if output_dir is None else pathlib.Path(output_dir)
    if output_dir is None and (run is not None or processes.count > 1):
        raise ValueError("a run to be resumed, or of several processes, needs an output_dir")
    with contextlib.nullcontext() if output_dir is None else processes.hold(output_dir):
        return _evaluate(
            predictor,
            images,
            template_dir,
            options,
            output_dir=output_dir,
            run=run,
            processes=processes,
            progress=progress,
            with_confidences=with_confidences,
        )


def _evaluate(
    predictor: CallablePredictor | KnownBoxPredictor,
    images: AnnotatedImages,
    template_dir: str | os.PathLike[str] | None,
    options: ScoringOptions,
    *,
    output_dir: pathlib.Path | None,
    run: Mapping[str, Any] | None,
    processes: Processes,
    progress: Callable[[int, int], None] | None,
    with_confidences: bool,
) -> Metrics | None:
    """What `evaluate_model` does in a folder that nobody else writes into."""
    classes = classes_of(predictor.config, [truth.category for truth in images.truths])
    with _folder_for_results(output_dir, run is not None, processes) as folder:
        results, truths = dataset.predict_dataset(
            predictor,
            truths=dict(zip(classes, images.truths, strict=True)),
            images_dir=images.folder,
            output_dir=folder,
            run=run or _UNNAMED_RUN,
            processes=processes,
            on_bad=options.on_bad,
            with_confidences=with_confidences,
        )
        found = {
            truth.category: sharing.evaluate_shared(
                results,
                truth=truth,
                template_dir=None if template_dir is None else pathlib.Path(template_dir),
                processes=processes,
                options=options,
                output_dir=own_folder,
                images_dir=images.folder,
                progress=progress,
            )
            for truth, own_folder in categories.with_folders(truths, output_dir)
        }
        metrics = {name: scored for name, scored in found.items() if scored is not None}
        return categories.combine(metrics, output_dir) if metrics else None


def classes_of(config: ConfigDict, names: Sequence[str]) -> list[int]:
    """The classes of a model that are scored.

    Args:
        config: its whole configuration, whose `data.categories` are those of the classes.
        names: of their categories. The single class of a model may be called anything.

    Raises:
        ValueError: a model of several classes has none of that name, or a model of one is to be
            scored on several.
    """
    known = tuple(config.data.categories)
    if len(known) == 1 and len(names) == 1:
        return [0]
    for name in names:
        if name not in known:
            raise ValueError(
                f"the model's classes are {', '.join(known)}, and none of them is {name!r}: name "
                "those to score (--category)"
            )
    return [known.index(name) for name in names]


@contextlib.contextmanager
def _folder_for_results(
    output_dir: pathlib.Path | None, is_resumed: bool, processes: Processes
) -> Iterator[pathlib.Path]:
    if output_dir is None:
        with tempfile.TemporaryDirectory(prefix="ktn-evaluation-") as folder:
            yield pathlib.Path(folder)
        return
    if not is_resumed:
        if processes.is_first:
            shutil.rmtree(output_dir / dataset.SHARD_FOLDER, ignore_errors=True)
            (output_dir / dataset.RESULTS_FILE).unlink(missing_ok=True)
        processes.wait("cleared")
    yield output_dir


def evaluate_weights(
    config: ConfigDict,
    variables: Mapping[str, Any],
    data: AnnotatedFiles | HeldOutPeople,
    template_dir: pathlib.Path | None = None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    output_dir: pathlib.Path | None = None,
    augmented: bool = False,
    with_true_boxes: bool = False,
    fine_template: bool = False,
    processes: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
    with_confidences: bool = False,
) -> tuple[pathlib.Path, Metrics | None]:
    """Evaluates weights as `ktn eval` does; the same call resumes a stopped run.

    Args:
        config: a whole configuration.
        variables: of its model.
        data: the files of annotated images, or people to render into `output_dir`.
        template_dir: evaluation template; None makes that of the project's own body, but where a
            model's vertices are compared with annotated ones.
        options: how to score.
        output_dir: see `evaluate_model`; None for a folder in the current one, named after the run.
        augmented: average over the views of `test.augmentation`.
        with_true_boxes: describe the annotated people in their annotated boxes instead of finding
            people, so that the detector's errors do not count.
        fine_template: split the edges of the template that is made; takes minutes.
        processes: those that share the work; each calls this.
        progress: see `evaluate_model`.
        with_confidences: see `evaluate_model`.

    Returns:
        The output folder, and what `evaluate_model` returns.

    Raises:
        ValueError: a file is missing or does not fit, the model predicts no confidences that are
            wanted, or views are to be averaged in true boxes; see `evaluate_model`.
    """
    processes = processes or Processes()
    classes = classes_of(config, options.categories)
    if augmented and with_true_boxes:
        raise ValueError("views are averaged of people who are found, not in true boxes")
    if with_confidences:
        charts.check_confidences(config)
    symmetry = load_symmetry(config) if augmented else None
    images = None if isinstance(data, HeldOutPeople) else data.read(options)
    description = data.describe()
    run = dataset.describe_run(
        config, variables, data=description, augmented=augmented, symmetry=symmetry
    )
    if with_confidences:  # other files: what was written without cannot be resumed
        run["confidences"] = True
    if with_true_boxes:
        run["true_boxes"] = True
    if classes != [0]:
        run["categories"] = list(options.categories)
    folder = output_dir or dataset.default_folder(run)
    with processes.hold(folder):
        if processes.is_first and isinstance(data, HeldOutPeople):
            data.write(folder / PEOPLE_FOLDER)
        processes.wait("rendered")
        if images is None:
            images = AnnotatedFiles.in_folder(folder / PEOPLE_FOLDER).read()
        template = template_dir
        has_vertices = any(truth.has_vertices for truth in images.truths)
        on_meshes = has_embeddings(config.model) and has_vertices
        if template is None and not on_meshes:
            if has_embeddings(config.model) and not isinstance(data, HeldOutPeople):
                raise EvaluationError(TEMPLATE_ADVICE)
            template = folder / (_FINE_TEMPLATE_FOLDER if fine_template else TEMPLATE_FOLDER)
        if processes.is_first and template is not None:
            if template_dir is None:
                template_files.ensure_own_template(template, fine_template)
            template_files.load_evaluation_template(template)  # converts official files now, once
        processes.wait("prepared")
        stages = Stages(config, variables, ProgramStore())
        del variables  # the stages keep those that they need
        predictor: CallablePredictor | KnownBoxPredictor = Predictor(stages)
        if augmented:
            predictor = AugmentedPredictor(stages, symmetry)
        elif with_true_boxes:
            predictor = KnownBoxPredictor(stages)
        metrics = _evaluate(
            predictor,
            images,
            template,
            options,
            output_dir=folder,
            run=run,
            processes=processes,
            progress=progress,
            with_confidences=with_confidences,
        )
    return folder, metrics
