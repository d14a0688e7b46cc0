"""The finer mesh on which surface distances are measured, with its chart coordinates.

The published evaluation measures on the mid-point subdivision of the body: 6,890 vertices and one
more on each of 20,664 edges, 27,554 in all. Here the same is made from any template.
"""

import dataclasses

import numpy as np

from ktn_jax.body import geodesics
from ktn_jax.body.surface import Template


@dataclasses.dataclass(frozen=True)
class EvaluationMesh:
    """A surface with its chart points, in the terms of the published evaluation files.

    Attributes:
        vertices: [V, 3] float64 metres.
        faces: [F, 3] int32.
        u: [C] float64 chart coordinate (`U_subdiv`).
        v: [C] float64 chart coordinate (`V_subdiv`).
        patch: [C] int32 in 1..24 (`Part_ID_subdiv`).
        chart_to_vertex: [C] int32 vertex of each chart point, from 0 (`index` counts from 1).
    """

    vertices: np.ndarray
    faces: np.ndarray
    u: np.ndarray
    v: np.ndarray
    patch: np.ndarray
    chart_to_vertex: np.ndarray


def subdivide(faces: np.ndarray, num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts a vertex in the middle of every edge and splits each triangle into four.

    Args:
        faces: [F, 3].
        num_vertices: N, counting vertices that no face uses.

    Returns:
        edges [E, 2], of which edge e carries the new vertex N + e, and fine faces [4 F, 3]: rows
        4 f .. 4 f + 3 come from face f, in its orientation, the middle one last.
    """
    edges = geodesics.mesh_edges(faces)
    codes = edges[:, 0].astype(np.int64) * num_vertices + edges[:, 1]
    sides = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1), axis=-1)
    middle = np.searchsorted(codes, sides[..., 0].astype(np.int64) * num_vertices + sides[..., 1])
    ab, bc, ca = (num_vertices + middle).T
    a, b, c = faces.T
    fine = np.stack([[a, ab, ca], [b, bc, ab], [c, ca, bc], [ab, bc, ca]], axis=0)
    return edges, fine.transpose(2, 0, 1).reshape(-1, 3).astype(np.int32)


def make_evaluation_mesh(template: Template, subdivided: bool = True) -> EvaluationMesh:
    """Builds the evaluation mesh of a template.

    Args:
        template: the body surface.
        subdivided: split every edge once, as the published evaluation does. Unsplit, the table
            of distances is about a sixteenth of the size.

    Returns:
        The mesh. Old vertices keep their index, and so do old chart vertices.
    """
    if not subdivided:
        return EvaluationMesh(
            vertices=template.vertices,
            faces=template.faces,
            u=template.chart_uv[:, 0],
            v=template.chart_uv[:, 1],
            patch=template.chart_patch,
            chart_to_vertex=template.chart_to_vertex,
        )
    num_vertices = len(template.vertices)
    edges, faces = subdivide(template.faces, num_vertices)
    vertices = np.concatenate([template.vertices, template.vertices[edges].mean(axis=1)])
    chart_edges, _ = subdivide(template.chart_faces, len(template.chart_uv))
    uv = np.concatenate([template.chart_uv, template.chart_uv[chart_edges].mean(axis=1)])
    # A chart edge is over the surface edge between its ends' vertices.
    ends = np.sort(template.chart_to_vertex[chart_edges], axis=1).astype(np.int64)
    codes = edges[:, 0].astype(np.int64) * num_vertices + edges[:, 1]
    over = num_vertices + np.searchsorted(codes, ends[:, 0] * num_vertices + ends[:, 1])
    return EvaluationMesh(
        vertices=vertices,
        faces=faces,
        u=uv[:, 0],
        v=uv[:, 1],
        patch=np.concatenate([template.chart_patch, template.chart_patch[chart_edges[:, 0]]]),
        chart_to_vertex=np.concatenate([template.chart_to_vertex, over]).astype(np.int32),
    )
