"""Geodesic distances of every detection of an image to every annotated person of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.geodesic_similarity import (
    PATCH_MEAN_DISTANCE,
    EvaluationTemplate,
    VertexFinder,
)
from ktn_jax.evaluation.ground_truth import PersonTruth
from ktn_jax.evaluation.mesh_distances import MeshDistances, mean_distances
from ktn_jax.evaluation.patch_errors import PairDistances
from ktn_jax.evaluation.result_files import Detection

Place = tuple[int, int]  # of a detection and a person in their lists


class _Located(NamedTuple):
    """A person's chart points on the template, without those that are annotated as background."""

    is_on_body: np.ndarray  # bool [P]
    rows: np.ndarray  # [Q] of the table
    patches: np.ndarray  # [Q]


class PairMeasure:
    """Measures predictions at annotated points.

    Between vertices of one mesh distances are those of the mesh. Where either side has charts, both
    are brought to the template, whose rows are the vertices of its mesh.
    """

    def __init__(self, template: EvaluationTemplate | None, distances: MeshDistances) -> None:
        """Takes the template of charts, None where nobody has charts, and the meshes."""
        self._template = template
        self._finder = None if template is None else VertexFinder(template)
        self._distances = distances

    def measure(
        self,
        people: Sequence[PersonTruth],
        detections: Sequence[Detection],
        pictures: Sequence[np.ndarray],
    ) -> dict[Place, PairDistances]:
        """Measures every detection against every person.

        A pair is left out where no annotated point is in the detection: its GPS is 0.

        Args:
            people: of the image.
            detections: of the image.
            pictures: of each, see `result_files.read_payload`.

        Returns:
            Distances by (detection, person).

        Raises:
            EvaluationError: a vertex that a mesh or the template does not have.
        """
        annotated = {
            column: person for column, person in enumerate(people) if person.points is not None
        }
        located = self._locate(annotated)
        pairs: dict[Place, PairDistances] = {}
        on_template: dict[Place, np.ndarray] = {}
        for column, person in annotated.items():
            for line, detection in enumerate(detections):
                values = sample(person, detection.box_xywh, pictures[line])
                if values is None:
                    continue
                if detection.mesh and person.vertices is not None:
                    pairs[line, column] = self._on_mesh(person, detection.mesh, values[0] - 1)
                elif column in located:
                    on_template[line, column] = values[:, located[column].is_on_body]
        if self._template is not None and on_template:
            pairs |= self._on_template(self._template, located, on_template)
        return pairs

    def _on_mesh(self, person: PersonTruth, mesh: str, predicted: np.ndarray) -> PairDistances:
        true = np.zeros(0, np.int64) if person.vertices is None else person.vertices
        if mesh != person.mesh:
            predicted = np.full(len(true), -1)  # on another animal, nothing is near
        return PairDistances(
            patch=person.patches,
            distances=self._distances.distance(person.mesh, true, predicted),
            is_same_row=true == predicted,
            mean_distance=mean_distances(person),
        )

    def _locate(self, annotated: Mapping[int, PersonTruth]) -> dict[int, _Located]:
        """Finds the annotated chart points on the template; one search for the whole image."""
        if self._template is None or self._finder is None:
            return {}
        annotated = {column: person for column, person in annotated.items() if person.has_charts}
        points = [person.points for person in annotated.values() if person.points is not None]
        if not points:
            return {}
        part, u, v = np.concatenate([own[2:] for own in points], axis=1)
        ends = np.cumsum([own.shape[1] for own in points])[:-1]
        located = {}
        for column, found in zip(
            annotated, np.split(self._finder.find(part, u, v), ends), strict=True
        ):
            is_on_body = found >= 0
            chosen = found[is_on_body]
            rows, patches = self._template.row[chosen], self._template.part[chosen]
            located[column] = _Located(is_on_body, rows, patches)
        return located

    def _on_template(
        self,
        template: EvaluationTemplate,
        located: Mapping[int, _Located],
        sampled: Mapping[Place, np.ndarray],
    ) -> dict[Place, PairDistances]:
        """Measures pairs whose values [3 or 1, Q] were sampled at the located points."""
        predicted = self._predicted_rows(template, sampled)
        rows = {place: located[place[1]].rows for place in sampled}
        true, ours = (np.concatenate([x[place] for place in sampled]) for x in (rows, predicted))
        distances = template.distance(true, ours)
        ends = np.cumsum([len(rows[place]) for place in sampled])[:-1]
        return {
            place: PairDistances(
                patch=located[place[1]].patches,
                distances=distance,
                is_same_row=same,
                mean_distance=PATCH_MEAN_DISTANCE[located[place[1]].patches],
            )
            for place, distance, same in zip(
                sampled, np.split(distances, ends), np.split(true == ours, ends), strict=True
            )
        }

    def _predicted_rows(
        self, template: EvaluationTemplate, sampled: Mapping[Place, np.ndarray]
    ) -> dict[Place, np.ndarray]:
        """The rows [Q] of the table that are predicted, -1 beside the person."""
        predicted = {place: values[0] - 1 for place, values in sampled.items() if len(values) == 1}
        num_rows = int(template.row.max()) + 1
        last = max((rows.max(initial=0) for rows in predicted.values()), default=0)
        if last >= num_rows:
            raise EvaluationError(
                f"vertex {last} is predicted, and the template {template.origin} has {num_rows}: "
                "take that of the mesh that the model was trained on"
            )
        charts = [place for place, values in sampled.items() if len(values) == 3]
        if charts and self._finder is not None:
            codes = np.concatenate([sampled[place] for place in charts], axis=1)
            found = self._finder.find_quantised(*codes)
            found = np.where(found >= 0, template.row[found], -1)
            ends = np.cumsum([sampled[place].shape[1] for place in charts])[:-1]
            predicted |= dict(zip(charts, np.split(found, ends), strict=True))
        return predicted


def sample(
    person: PersonTruth, detection_box: tuple[float, float, float, float], picture: np.ndarray
) -> np.ndarray | None:
    """Reads a detection at a person's points.

    Args:
        person: with points.
        detection_box: xywh in pixels of the image.
        picture: [C, h, w] over its pixels.

    Returns:
        [C, P] of the picture's type, 0 outside; None if all are outside, as they are of a detection
        without a picture, [C, 0, 0].
    """
    if not picture.size or person.points is None:
        return None
    (x, y), person_box = person.points[:2], person.box_xywh
    # In the reference's order of operations: the last bit matters to truncation.
    column = (x * person_box[2] / 255.0 + person_box[0] - detection_box[0]).astype(int)
    row = (y * person_box[3] / 255.0 + person_box[1] - detection_box[1]).astype(int)
    width, height = int(detection_box[2]), int(detection_box[3])
    is_inside = (column < width) & (row < height) & (column >= 0) & (row >= 0)
    if not is_inside.any():
        return None
    values = np.zeros((len(picture), len(x)), picture.dtype)
    values[:, is_inside] = picture[:, row[is_inside], column[is_inside]]
    return values
