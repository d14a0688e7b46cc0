"""Scores images: similarities of every detection and person, and errors per patch.

Images are independent, so they are spread over processes; the scores of an image are small.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.evaluation import geodesic_similarity as geodesic
from ktn_jax.evaluation import ignore_regions, masks
from ktn_jax.evaluation.assignment import MAX_DETECTIONS
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth, ImageTruth, PersonTruth
from ktn_jax.evaluation.mesh_distances import MeshDistances
from ktn_jax.evaluation.options import DEFAULT_OPTIONS, ScoringOptions
from ktn_jax.evaluation.pair_distances import PairMeasure
from ktn_jax.evaluation.patch_errors import PatchErrors, PersonScore, measure_patches
from ktn_jax.evaluation.result_files import (
    Detection,
    ResultIndex,
    check_segmentation,
    read_payload,
)
from ktn_jax.evaluation.template_files import load_evaluation_template
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.runtime.worker_pool import explained, start_workers

Template = geodesic.EvaluationTemplate | pathlib.Path | None
Task = Sequence[tuple[ImageTruth, Sequence[Detection]]]

COCO_MAX_DETECTIONS = 100
_IMAGES_PER_TASK = 8
_MIN_IMAGES_FOR_PROCESSES = 64  # below, starting processes takes longer than scoring


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """The scores of one image. D detections by falling score (at most 20), G people.

    Attributes:
        image_id: of the annotation file.
        annotation_ids: [G].
        is_crowd: [G] bool.
        is_ignored: [G] bool, people without dense annotation.
        person_area: [G] square pixels.
        detection_ids: [D], positions in the results file, from 1.
        scores: [D].
        detection_area: [D] square pixels of the box.
        gps: [D, G] in [0, 1]; 0 for people without dense annotation.
        mask_iou: [D, G].
        box_iou: [D, G].
        patches: errors of the people that were found.
        people: score of every person with dense annotation.
        segmentations: COCO RLE by detection id, of up to 100 detections.
    """

    image_id: int
    annotation_ids: np.ndarray
    is_crowd: np.ndarray
    is_ignored: np.ndarray
    person_area: np.ndarray
    detection_ids: np.ndarray
    scores: np.ndarray
    detection_area: np.ndarray
    gps: np.ndarray
    mask_iou: np.ndarray
    box_iou: np.ndarray
    patches: PatchErrors
    people: tuple[PersonScore, ...]
    segmentations: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)


class ImageScorer:
    """Scores single images with one template and one rule for the masks of people."""

    def __init__(
        self,
        template: geodesic.EvaluationTemplate | None,
        mode: str = "upstream",
        name: str = "results",
        distances: MeshDistances | None = None,
    ) -> None:
        """Takes the surfaces, the rule for masks, and the results file's name for messages."""
        self._file_name = name
        self._measure = PairMeasure(template, distances or MeshDistances())
        self._zoom_labels = mode == "ktn"

    def score(
        self,
        image: ImageTruth,
        detections: Sequence[Detection],
        read: Callable[[Detection], tuple[np.ndarray, object]],
    ) -> ImageScores:
        """Scores the detections of an image.

        Args:
            image: with its people.
            detections: of the image, by falling score.
            read: gives a detection's IUV picture or vertices, see `result_files.read_payload`, and
                its segmentation or None.

        Returns:
            The scores, which can be pickled and are small.
        """
        region = image.ignore_regions and ignore_regions.draw(
            *image.ignore_regions, image.image_size_hw
        )
        needed = detections if region is not None else detections[:COCO_MAX_DETECTIONS]
        payloads = [read(detection) for detection in needed]
        placed = [
            masks.place(iuv[0] > 0, detection.box_xywh, image.image_size_hw)
            for (iuv, _), detection in zip(payloads, needed, strict=True)
        ]
        segmentations = {
            detection.detection_id: _as_rle(
                detection, given, mask, image.image_size_hw, self._file_name
            )
            for detection, (_, given), mask in zip(needed, payloads, placed, strict=True)
        }
        pictures = [iuv for iuv, _ in payloads]
        people: Sequence[PersonTruth] = image.people
        kept: Sequence[int] = range(len(needed))
        if region is not None:
            is_kept = ignore_regions.is_kept
            people = [person for person in people if is_kept(region, person.box_xywh)]
            kept = [i for i in kept if is_kept(region, needed[i].box_xywh, pictures[i][0] > 0)]
        kept = kept[:MAX_DETECTIONS]
        scored = self._score_kept(
            image,
            people,
            top=[needed[i] for i in kept],
            pictures=[pictures[i] for i in kept],
            placed=[placed[i] for i in kept],
        )
        return dataclasses.replace(scored, segmentations=segmentations)

    def _score_kept(
        self,
        image: ImageTruth,
        people: Sequence[PersonTruth],
        top: Sequence[Detection],
        pictures: Sequence[np.ndarray],
        placed: Sequence[PlacedMask],
    ) -> ImageScores:
        is_crowd = np.array([person.is_crowd for person in people], bool)
        pairs = self._measure.measure(people, top, pictures)
        gps = np.zeros((len(top), len(people)))
        for place, pair in pairs.items():
            gps[place] = geodesic.person_similarity(
                pair.distances, pair.is_same_row, pair.mean_distance
            )
        person_masks = [
            masks.annotated_mask(
                person.box_xywh,
                image.image_size_hw,
                dp_masks=person.dp_masks,
                segmentation=person.segmentation,
                zoom_labels=self._zoom_labels,
            )
            for person in (people if top else ())
        ]
        mask_iou = masks.mask_iou(placed, person_masks, is_crowd)
        mask_iou = mask_iou.reshape(len(top), len(people))
        box_iou = _box_iou(top, people)
        patches, person_scores = measure_patches(
            image.image_id, people=people, detections=top, pairs=pairs, gps=gps, box_iou=box_iou
        )
        return ImageScores(
            image_id=image.image_id,
            annotation_ids=np.array([person.annotation_id for person in people], np.int64),
            is_crowd=is_crowd,
            is_ignored=np.array([person.points is None for person in people], bool),
            person_area=np.array([person.area for person in people], np.float64),
            detection_ids=np.array([d.detection_id for d in top], np.int64),
            scores=np.array([d.score for d in top], np.float64),
            detection_area=np.array([d.box_xywh[2] * d.box_xywh[3] for d in top], np.float64),
            gps=gps,
            mask_iou=mask_iou,
            box_iou=box_iou,
            patches=patches,
            people=person_scores,
        )


def _box_iou(detections: Sequence[Detection], people: Sequence[PersonTruth]) -> np.ndarray:
    if not detections or not people:
        return np.zeros((len(detections), len(people)))
    iou: np.ndarray = coco_mask.iou(
        [list(detection.box_xywh) for detection in detections],
        [list(person.box_xywh) for person in people],
        [int(person.is_crowd) for person in people],
    )
    return iou


def _as_rle(
    detection: Detection,
    given: object,
    mask: PlacedMask,
    image_size_hw: tuple[int, int],
    file_name: str,
) -> dict[str, Any]:
    if not isinstance(given, dict):
        return mask.to_rle()
    return check_segmentation(file_name, detection, given, image_size_hw)


Outcome = list[ImageScores] | EvaluationError


class _Worker:
    """Scores lists of images; holds the files that a process opens once."""

    def __init__(
        self, template: Template, results_path: pathlib.Path, options: ScoringOptions
    ) -> None:
        if isinstance(template, pathlib.Path):
            # Whoever started the processes has compared the checksum.
            template = load_evaluation_template(template, verify=False)
        distances = MeshDistances(options.mesh_files)
        self._scorer = ImageScorer(template, options.mode, results_path.name, distances)
        self._handle = open(results_path, "rb")  # noqa: SIM115 (closed by close)

    def __call__(self, task: Task) -> Outcome:
        try:
            return [self._scorer.score(image, found, self._read) for image, found in task]
        except EvaluationError as error:
            return error  # returned, so that it comes without the text of a remote traceback

    def _read(self, detection: Detection) -> tuple[np.ndarray, object]:
        return read_payload(self._handle, detection)

    def close(self) -> None:
        self._handle.close()


_process_worker: _Worker | None = None


def _start_process(*arguments: Any) -> None:
    global _process_worker
    _process_worker = _Worker(*arguments)


def _work_in_process(task: Task) -> Outcome:
    if _process_worker is None:
        raise RuntimeError("_start_process was not called in this process")
    return _process_worker(task)


def score_images(
    truth: GroundTruth,
    results: ResultIndex,
    template: geodesic.EvaluationTemplate | str | pathlib.Path | None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ImageScores]:
    """Scores all images, in the order of their ids.

    Args:
        truth: the annotations.
        results: index of the results file.
        template: a template, or its folder (each process maps it itself); None where all have
            vertices of meshes.
        options: how to score, and with how many processes.
        progress: called with (images scored, number of images) during the run.

    Yields:
        Scores of every image.

    Raises:
        EvaluationError: a detection's picture cannot be used.
    """
    if isinstance(template, str):
        template = pathlib.Path(template)
    pairs = [(image, results.by_image.get(image.image_id, ())) for image in truth.images]
    tasks = [pairs[i : i + _IMAGES_PER_TASK] for i in range(0, len(pairs), _IMAGES_PER_TASK)]
    workers = options.workers
    if workers is None:
        workers = _available_cores() if len(pairs) >= _MIN_IMAGES_FOR_PROCESSES else 1
    arguments = (template, results.path, options)
    done = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained("ScoringOptions(workers=1)"))
        if workers > 1:
            pool = start_workers(workers, _start_process, arguments)
            stack.callback(pool.shutdown, cancel_futures=True)
            outcomes = pool.map(_work_in_process, tasks)
        else:
            worker = _Worker(*arguments)
            stack.callback(worker.close)
            outcomes = map(worker, tasks)
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, EvaluationError):
                raise outcome
            yield from outcome
            done += len(task)
            if progress is not None:
                progress(done, len(pairs))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
