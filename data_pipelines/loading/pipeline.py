"""From sources of annotated people to batches for the device.

    source ─ plan (which images, by index arithmetic) ─ rows (transforms) ─ batch ─ device

Everything random is a function of (seed, epoch, image); a batch is a function of (seed, step). The
number of workers and the loader change nothing, and the state of a run's input is its step.
Normalisation is the model's: images travel as uint8, a quarter of the bytes.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.data_pipelines.coco.annotations import ImageFacts
from ktn_jax.data_pipelines.loading import loaders
from ktn_jax.data_pipelines.loading.examples import ArraySpec, Batch, ExampleMaker
from ktn_jax.data_pipelines.loading.known_meshes import KnownMeshes
from ktn_jax.data_pipelines.loading.loaders import Request
from ktn_jax.data_pipelines.loading.plan import Augmentation, TrainingPlan
from ktn_jax.data_pipelines.loading.sources import Source
from ktn_jax.data_pipelines.loading.unreadable import StandIns, UnreadableImages

__all__ = [
    "ArraySpec",
    "Batch",
    "DataSettings",
    "TrainingData",
    "make_training_data",
]

_LOG = logging.getLogger(__name__)

_LOADERS: dict[str, Callable[[Request, int, int], Iterator[Batch]]] = {
    "tf_data": loaders.load_with_tf_data,
    "threads": loaders.load_in_threads,
    "processes": loaders.load_in_processes,
}


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """How batches are made."""

    batch_size: int = 16  # of all processes together
    max_people: int = 20  # per image; of more, those with DensePose and the largest are kept
    # Per person. More of the annotator's are an error before the first batch; of those that a model
    # set, as many are taken as there is space for.
    max_points: int = 200
    dense_points: int = 0  # of a person to draw from the picture of labels; 0 for those in the file
    seed: int = 0
    loader: Literal["tf_data", "threads", "processes"] = "tf_data"
    workers: int = 4
    batches_ahead: int = 2
    skip_images_without_people: bool = True
    with_person_masks: bool = False  # segmentations, for losses that train on them
    needs_surface: bool = False  # annotations without a single surface point are an error
    on_bad: Literal["raise", "skip"] = "raise"  # at images that cannot be read: see `unreadable`
    max_skipped_fraction: float = 0.01  # with "skip": share of images above which the run stops
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Checks the values; ValueError names the field."""
        if self.loader not in _LOADERS:
            raise ValueError(f"loader must be one of {sorted(_LOADERS)}, got {self.loader!r}")
        for name in ("batch_size", "max_people", "max_points", "batches_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dense_points < 0:
            raise ValueError(f"dense_points must be 0 or more, got {self.dense_points}")
        if self.on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad must be 'raise' or 'skip', got {self.on_bad!r}")
        if not 0 <= self.max_skipped_fraction <= 1:
            raise ValueError(f"max_skipped_fraction must be in 0..1: {self.max_skipped_fraction}")
        if self.workers < (1 if self.loader == "processes" else 0):
            raise ValueError(f"workers: {self.workers} is too few for loader {self.loader!r}")


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Training batches of one process."""

    batches_from: Callable[[int], Iterator[Batch]]  # endless, from a step on
    steps_per_epoch: int
    specs: tuple[dict[str, ArraySpec], ...]  # one for each canvas, smallest first
    summary: str = ""  # how many images and people there are, as far as it is known


def make_training_data(
    settings: DataSettings,
    source: Source,
    symmetry: UVSymmetry | None = None,
    process_index: int = 0,
    process_count: int = 1,
    meshes: KnownMeshes | None = None,
) -> TrainingData:
    """Builds the batches that one process trains on.

    Every process plans the same global batches and makes its own rows of them: no image is lost or
    repeated, and all have the same canvas at a step.

    Args:
        settings: how batches are made.
        source: images to train on.
        symmetry: U and V of mirrored points; needed to flip people with DensePose.
        process_index: of this process.
        process_count: how many processes share the batches.
        meshes: those of an embedding model, whose batches have vertices; it needs no `symmetry`.

    Returns:
        The batches.

    Raises:
        ValueError: a batch size that the processes cannot share evenly, a person with more points
            than `max_points`, nobody with points where the surface is trained, flips without
            symmetry tables, a source without usable images; see also `KnownMeshes.check`.
    """
    if settings.batch_size % process_count:
        raise ValueError(
            f"batch_size {settings.batch_size} cannot be shared by {process_count} processes"
        )
    facts = source.facts()
    plan, maker = _plan_training(settings, source, facts, symmetry, meshes)
    share = settings.batch_size // process_count
    rows = slice(process_index * share, (process_index + 1) * share)
    load = _LOADERS[settings.loader]
    unreadable = UnreadableImages(len(maker.source), settings.max_skipped_fraction)

    def batches_from(step: int) -> Iterator[Batch]:
        request = Request(plan.__getitem__, rows, step, maker, unreadable)
        return load(request, settings.workers, settings.batches_ahead)

    specs = tuple(maker.spec(share, canvas_hw) for canvas_hw in plan.canvases)
    return TrainingData(batches_from, plan.steps_per_epoch, specs, _describe(facts))


def _plan_training(
    settings: DataSettings,
    source: Source,
    facts: ImageFacts,
    symmetry: UVSymmetry | None,
    meshes: KnownMeshes | None,
) -> tuple[TrainingPlan, ExampleMaker]:
    _check_facts(settings, facts)
    with_flips = settings.augmentation.flip_probability > 0
    if meshes is not None:
        meshes.check(facts.vertices, with_flips, settings.needs_surface)
    has_points = facts.max_points or not facts.all_annotated
    if symmetry is None and meshes is None and has_points and with_flips:
        raise ValueError(
            "flip_probability > 0 needs the body's UV symmetry tables: pass `symmetry` (the "
            "template's uv_symmetry_tables), or set flip_probability to 0"
        )
    kept = np.arange(len(source))
    if settings.skip_images_without_people:
        kept = kept[facts.people > 0]
        _LOG.info("%d of %d training images show people", len(kept), len(source))
    if not len(kept):
        raise ValueError(f"none of the {len(source)} training images shows a person")
    plan = TrainingPlan(
        facts.sizes_hw[kept],
        settings.augmentation,
        settings.batch_size,
        settings.seed,
        weights=None if facts.weights is None else facts.weights[kept],
    )
    chosen = source if len(kept) == len(source) else _Chosen(source, kept)
    maker = ExampleMaker(
        chosen,
        symmetry,
        settings.max_people,
        settings.max_points,
        settings.with_person_masks,
        # Of people who have points enough of their annotator, a picture's are a model's even so.
        settings.dense_points > 0 or not facts.all_annotated,
        settings.dense_points,
        StandIns(facts.sizes_hw[kept]) if settings.on_bad == "skip" else None,
        meshes,
    )
    return plan, maker


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Some images of a source, renumbered."""

    source: Source
    numbers: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.numbers[index])]

    def facts(self) -> ImageFacts:
        facts = self.source.facts()
        keypoints, surface = facts.with_keypoints, facts.with_surface
        return dataclasses.replace(
            facts,
            sizes_hw=facts.sizes_hw[self.numbers],
            people=facts.people[self.numbers],
            with_keypoints=None if keypoints is None else keypoints[self.numbers],
            with_surface=None if surface is None else surface[self.numbers],
            weights=None if facts.weights is None else facts.weights[self.numbers],
        )


def _describe(facts: ImageFacts) -> str:
    text = f"{len(facts.people):,} images"
    if facts.with_keypoints is None or facts.with_surface is None:
        return text
    empty = int((facts.people == 0).sum())
    text += f" ({empty:,} without people)" if empty else ""
    return (
        f"{text}, {facts.people.sum():,} people: {facts.with_keypoints.sum():,} with keypoints, "
        f"{facts.with_surface.sum():,} with surface points"
    )


def _check_facts(settings: DataSettings, facts: ImageFacts) -> None:
    has_surface = facts.with_surface is None or facts.with_surface.any()
    if settings.needs_surface and facts.people.any() and not has_surface:
        raise ValueError(
            f"0 of {facts.people.sum():,} people have surface points (dp_I above 0, with dp_x, "
            "dp_y, dp_U, dp_V and dp_masks; or dp_vertex and ref_model), so the surface would not "
            "be trained. Annotations of keypoints train `keypoint_mid`; data.needs_surface=False "
            "trains without the surface"
        )
    if facts.max_points > settings.max_points:
        raise ValueError(
            f"max_points is {settings.max_points}, but a person of the training data has "
            f"{facts.max_points} annotated points: raise max_points to that"
        )
    crowded = int((facts.people > settings.max_people).sum())
    if crowded:
        _LOG.warning(
            "%d training images show more than max_people=%d people (at most %d): those with "
            "DensePose, then the largest are kept",
            *(crowded, settings.max_people, int(facts.people.max())),
        )
