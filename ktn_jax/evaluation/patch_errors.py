"""Geodesic error of every surface patch, in centimetres, over the people that were found.

GPS does not show where on the body errors are. Here every annotated person gets the detection whose
box overlaps theirs best (IoU of at least 0.5, detections in order of falling score), whatever it
predicts, and the error of each annotated point counts for its true patch. A point predicted as
background has no distance: it counts as outside 5, 10 and 20 cm and not in the mean.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ktn_jax.body.parts import NUM_PATCH_CHANNELS
from ktn_jax.evaluation.ground_truth import PersonTruth
from ktn_jax.evaluation.result_files import Detection

WITHIN_CM = (5, 10, 20)
_MIN_BOX_IOU = 0.5
_CM_PER_METRE = 100


@dataclasses.dataclass(frozen=True)
class PatchErrors:
    """Sums over points by true patch, which can be added over images.

    Attributes:
        points: [25] annotated points of found people. Row 0 is of vertices without a patch; points
            that charts have on the background are no part of it.
        on_body: [25] of them, predicted to be on the body.
        sum_cm: [25] sum of the distances of those.
        within: [3, 25] points within 5, 10 and 20 cm.
    """

    points: np.ndarray
    on_body: np.ndarray
    sum_cm: np.ndarray
    within: np.ndarray

    def rows(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Returns mean errors and shares by patch name, and over "all" points."""
        table: dict[str, dict[str, float | None]] = {}
        selections: list[tuple[str, slice | int]] = [("all", slice(None))]
        selections += [(name, index) for index, name in enumerate(names) if index]
        for name, select in selections:
            points, on_body = self.points[select].sum(), self.on_body[select].sum()
            row: dict[str, float | None] = {
                "points": int(points),
                "on_body_percent": _ratio(100 * on_body, points),
                "mean_cm": _ratio(self.sum_cm[select].sum(), on_body),
            }
            for limit, within in zip(WITHIN_CM, self.within, strict=True):
                row[f"within_{limit}cm_percent"] = _ratio(100 * within[select].sum(), points)
            table[name] = row
        return table


@dataclasses.dataclass(frozen=True)
class PersonScore:
    """How well one annotated person was found.

    Attributes:
        image_id: of the annotation file.
        annotation_id: of the annotation file.
        detection_id: the person's detection, from 1 in file order; 0 if none overlapped.
        gps: of that detection, 0 if none overlapped.
        box_iou: with that detection.
        num_points: annotated.
    """

    image_id: int
    annotation_id: int
    detection_id: int
    gps: float
    box_iou: float
    num_points: int


@dataclasses.dataclass(frozen=True)
class PairDistances:
    """Geodesic distances of a person's points [P] to what a detection predicts there.

    Attributes:
        patch: int, 0 where it is not annotated.
        distances: infinite where nothing is predicted.
        is_same_row: where both are one vertex.
        mean_distance: what the distances are measured by.
    """

    patch: np.ndarray
    distances: np.ndarray
    is_same_row: np.ndarray
    mean_distance: np.ndarray


def _ratio(a: float, b: float) -> float | None:
    return float(a) / float(b) if b else None


def add_up(errors: Iterable[PatchErrors]) -> PatchErrors:
    """Adds the sums of several images."""
    total = _zeros()
    for error in errors:
        for field in dataclasses.fields(PatchErrors):
            getattr(total, field.name)[...] += getattr(error, field.name)
    return total


def _zeros() -> PatchErrors:
    return PatchErrors(
        points=np.zeros(NUM_PATCH_CHANNELS, np.int64),
        on_body=np.zeros(NUM_PATCH_CHANNELS, np.int64),
        sum_cm=np.zeros(NUM_PATCH_CHANNELS),
        within=np.zeros((len(WITHIN_CM), NUM_PATCH_CHANNELS), np.int64),
    )


def measure_patches(
    image_id: int,
    people: Sequence[PersonTruth],
    detections: Sequence[Detection],
    pairs: Mapping[tuple[int, int], PairDistances],
    gps: np.ndarray,
    box_iou: np.ndarray,
) -> tuple[PatchErrors, tuple[PersonScore, ...]]:
    """Measures the people of one image.

    Args:
        image_id: for the records.
        people: `PersonTruth` [G].
        detections: `Detection` [D], by falling score.
        pairs: `PairDistances` by (detection, person).
        gps: [D, G].
        box_iou: [D, G].

    Returns:
        The sums by patch, and a record of every person with dense annotation.
    """
    taken = _take_boxes(people, box_iou)
    total, records = _zeros(), []
    for column, person in enumerate(people):
        if person.points is None:
            continue
        line = taken.get(column)
        found = None if line is None else detections[line]
        patches = _scored_patches(person, found)
        if line is not None:
            _book(total, patches, pairs.get((line, column)))
        records.append(
            PersonScore(
                image_id=image_id,
                annotation_id=person.annotation_id,
                detection_id=0 if found is None else found.detection_id,
                gps=0.0 if line is None else float(gps[line, column]),
                box_iou=0.0 if line is None else float(box_iou[line, column]),
                num_points=len(patches),
            )
        )
    return total, tuple(records)


def _take_boxes(people: Sequence[PersonTruth], box_iou: np.ndarray) -> dict[int, int]:
    """Assigns detections to people in order of falling score: person -> detection."""
    taken: dict[int, int] = {}
    is_free = np.array([person.points is not None for person in people], bool)
    for line, overlaps in enumerate(box_iou):
        open_overlaps = np.where(is_free, overlaps, -1.0)
        if len(open_overlaps) and open_overlaps.max() >= _MIN_BOX_IOU:
            best = int(open_overlaps.argmax())
            taken[best], is_free[best] = line, False
    return taken


def _scored_patches(person: PersonTruth, detection: Detection | None) -> np.ndarray:
    """The patches [Q] of the points that count, whatever the detection predicts at them.

    Between vertices all count, also where charts say background; between charts those on the body.
    """
    patches = person.patches
    if detection is not None and person.vertices is not None and detection.mesh:
        return patches
    return patches[patches > 0] if person.has_charts else patches


def _book(total: PatchErrors, annotated: np.ndarray, pair: PairDistances | None) -> None:
    if pair is None:  # the box fits, but no point is in it
        np.add.at(total.points, annotated, 1)
        return
    patch, centimetres = pair.patch, pair.distances.astype(np.float64) * _CM_PER_METRE
    on_body = np.isfinite(centimetres)
    np.add.at(total.points, patch, 1)
    np.add.at(total.on_body, patch[on_body], 1)
    np.add.at(total.sum_cm, patch[on_body], centimetres[on_body])
    for limit, row in zip(WITHIN_CM, total.within, strict=True):
        np.add.at(row, patch[centimetres <= limit], 1)
