"""How well the embeddings of several meshes agree: the mesh alignment of detectron2.

Neverova et al., "Continuous Surface Embeddings", NeurIPS 2020, section 5: of points that mean the
same on several meshes, such as the tip of the nose, the vertex of another mesh whose embedding is
nearest should be that mesh's own.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.mesh_distances import MEAN_DISTANCE, MeshDistances


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Agreement of meshes.

    Attributes:
        error: mean geodesic distance in the unit of the meshes, by the mesh that points come from.
        similarity: mean GPS in 0..1, alike.
    """

    error: Mapping[str, float]
    similarity: Mapping[str, float]

    @property
    def mean_error(self) -> float:
        """Over meshes."""
        return float(np.mean(list(self.error.values())))

    @property
    def mean_similarity(self) -> float:
        """Over meshes."""
        return float(np.mean(list(self.similarity.values())))

    def table(self) -> str:
        """Formats the numbers as text, a mesh a line."""
        width = max(len("mesh"), *map(len, self.error))
        lines = [f"{'mesh':{width}s}   error m   GPS"]
        rows = [*((name, self.error[name], self.similarity[name]) for name in self.error)]
        for name, error, similarity in [*rows, ("all", self.mean_error, self.mean_similarity)]:
            lines.append(f"{name:{width}s}  {error:8.4f}  {similarity:.4f}")
        return "\n".join(lines) + "\n"


def read_key_vertices(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Reads a file of key vertices, as detectron2 publishes it.

    Args:
        path: of the JSON, {mesh: {meaning: vertex}}.

    Raises:
        EvaluationError: it is missing, not JSON, or of another layout.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{os.fspath(path)}: cannot be read as JSON: {error}") from error
    meshes = content.values() if isinstance(content, dict) else [None]
    for vertices in meshes:
        if not isinstance(vertices, dict) or not all(type(v) is int for v in vertices.values()):
            raise EvaluationError(
                f"{os.fspath(path)}: wanted {{mesh: {{meaning: vertex}}}}, got {vertices!r:.80}"
            )
    return dict(content)


def measure_alignment(
    embeddings: Mapping[str, np.ndarray],
    key_vertices: Mapping[str, Mapping[str, int]],
    distances: MeshDistances,
) -> Alignment:
    """Takes key vertices of every mesh to every other one and measures how far they miss.

    Args:
        embeddings: of vertices, [V, D] of length 1, by mesh.
        key_vertices: vertices by their meaning, by mesh; meshes without embeddings are left out.
        distances: along the meshes.

    Returns:
        Means over the other meshes, each of which counts alike.

    Raises:
        EvaluationError: fewer than two meshes, two that share no meaning, or a vertex that is not
            on its mesh.
    """
    names = [name for name in embeddings if name in key_vertices]
    if len(names) < 2:
        raise EvaluationError(
            f"alignment needs key vertices of two meshes or more of {', '.join(embeddings)}, got "
            f"those of {', '.join(key_vertices) or 'none'}"
        )
    for name in names:
        last = max(key_vertices[name].values(), default=0)
        if last >= len(embeddings[name]) or min(key_vertices[name].values(), default=0) < 0:
            raise EvaluationError(f"key vertices of {name} must be 0..{len(embeddings[name]) - 1}")
    error, similarity = {}, {}
    for start in names:
        missed = [_miss(start, end, embeddings, key_vertices, distances) for end in names]
        others = [d for d, end in zip(missed, names, strict=True) if end != start]
        error[start] = float(np.mean([d.mean() for d in others]))
        gps = [np.exp(-(d**2) / (2 * MEAN_DISTANCE**2)).mean() for d in others]
        similarity[start] = float(np.mean(gps))
    return Alignment(error, similarity)


def _miss(
    start: str,
    end: str,
    embeddings: Mapping[str, np.ndarray],
    key_vertices: Mapping[str, Mapping[str, int]],
    distances: MeshDistances,
) -> np.ndarray:
    """Distances on the mesh `end` from where key vertices of `start` are found to their own."""
    shared = [name for name in key_vertices[start] if name in key_vertices[end]]
    if not shared:
        raise EvaluationError(f"{start} and {end} have no key vertices of the same meaning")
    own, wanted = (np.array([key_vertices[mesh][n] for n in shared]) for mesh in (start, end))
    found = (embeddings[start][own] @ embeddings[end].T).argmax(axis=1)
    return distances.distance(end, wanted, found)
