"""Geodesic distances on the meshes of annotated vertices, and what they are measured by.

As detectron2 scores embedding models (Neverova et al., "Continuous Surface Embeddings", NeurIPS
2020, section 5): the distance along the mesh from the annotated vertex to the predicted one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ktn_jax.body import mesh_tables, meshes
from ktn_jax.body.mesh_names import BODY
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.geodesic_similarity import PATCH_MEAN_DISTANCE
from ktn_jax.evaluation.ground_truth import PersonTruth

MEAN_DISTANCE = 0.255  # metres: a vertex 0.30 m away scores one half
# On these meshes, points whose patch is annotated are measured by the mean distance of the patch:
# on detectron2's of people as there, on the project's body so that its scores are those of charts.
PATCHED_MESHES = ("smpl_27554", BODY)


class MeshDistances:
    """Distances between vertices, by the name of the mesh; tables are opened when needed."""

    def __init__(
        self, files: Sequence[str] = (), tables: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Names where meshes are.

        Args:
            files: of the user's own meshes, see `meshes.load_mesh`; others are known by name.
            tables: [V, V] distances by mesh, which need not be opened.
        """
        self._files, self._tables = tuple(files), dict(tables or {})

    def table(self, mesh: str) -> np.ndarray:
        """The distances [V, V] of a mesh.

        Raises:
            EvaluationError: it is not known, or its distances cannot be read.
        """
        if mesh not in self._tables:
            try:
                found = mesh_tables.load_geodesics(meshes.load_mesh(mesh, self._files))
            except (OSError, ValueError) as error:
                raise EvaluationError(f"distances on the mesh {mesh!r}: {error}") from error
            self._tables[mesh] = found
        return self._tables[mesh]

    def distance(self, mesh: str, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Looks up distances.

        Args:
            mesh: of both.
            true: [P] vertices.
            predicted: [P] vertices, -1 for a point that is not on the surface.

        Returns:
            [P] in the unit of the mesh, at least float32; infinite where nothing is predicted.

        Raises:
            EvaluationError: a vertex that the mesh does not have.
        """
        table = self.table(mesh)
        last = max(true.max(initial=0), predicted.max(initial=0))
        if last >= len(table):
            raise EvaluationError(
                f"vertex {last} of the mesh {mesh!r}, which has {len(table)}: are the annotations, "
                "the results and the mesh of one kind?"
            )
        distances = np.asarray(table[true, np.maximum(predicted, 0)])
        distances = distances.astype(np.result_type(distances.dtype, np.float32))
        return np.where(predicted >= 0, distances, np.inf).astype(distances.dtype)


def mean_distances(person: PersonTruth) -> np.ndarray:
    """What the distances of a person's points are measured by: [P] in the unit of the mesh.

    detectron2 divides by zero where the patch of such a point is background; here it is measured
    like a point without a patch.
    """
    patches = person.patches
    has_own = (patches > 0) & (person.mesh in PATCHED_MESHES)
    return np.where(has_own, PATCH_MEAN_DISTANCE[patches], MEAN_DISTANCE)
