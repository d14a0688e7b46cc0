"""From the vertices of people to I, U and V, where the mesh has the charts of DensePose."""

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from ktn_jax.results.iuv_pictures import quantise
from ktn_jax.results.records import PersonResult

if TYPE_CHECKING:  # it imports SciPy, which photos without a template do without
    from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate


class VertexCharts:
    """The chart point of every vertex of a mesh.

    Vertices on seams have several, of which the template's first is taken, so that pixels there may
    be on the neighbouring patch.
    """

    def __init__(self, template: "EvaluationTemplate") -> None:
        """Takes the template whose rows are the vertices of the mesh."""
        rows, first = np.unique(template.row, return_index=True)
        self._patch = np.zeros(int(rows[-1]) + 1, np.uint8)  # 0 of vertices without charts
        self._uv = np.zeros((2, len(self._patch)), np.float32)
        self._patch[rows] = template.part[first]
        self._uv[:, rows] = template.u[first], template.v[first]
        self._origin = template.origin

    @property
    def digest(self) -> str:
        """Text that differs where chart points differ."""
        return hashlib.sha256(self._patch.tobytes() + self._uv.tobytes()).hexdigest()

    def add_iuv(self, person: PersonResult) -> PersonResult:
        """Adds `iuv` and `uv` to a person with vertices; others are returned as they are.

        Raises:
            ValueError: a vertex that the template does not have.
        """
        if person.vertices is None:
            return person
        last = person.vertices.max(initial=0)
        if last >= len(self._patch):
            raise ValueError(
                f"vertex {last} of mesh {person.mesh}, and the template {self._origin} has "
                f"{len(self._patch)}: name that of the mesh that the model was trained on"
            )
        is_body, chosen = person.vertices >= 0, np.maximum(person.vertices, 0)
        patches = np.where(is_body, self._patch[chosen], 0).astype(np.uint8)
        uv = np.where(patches > 0, self._uv[:, chosen], np.float32(0))
        return dataclasses.replace(person, iuv=quantise(patches, uv), uv=uv)
