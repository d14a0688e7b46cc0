"""Left-right symmetry of a body mesh and of its charts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ktn_jax.body import parts

TABLE_SIZE = 256


class UVSymmetry(NamedTuple):
    """Mirrored chart coordinates, tabulated.

    Attributes:
        u: [24, 256, 256] float64 mirrored U. First index patch - 1, of the label before the
            left-right swap; row floor(255 V); column floor(255 U).
        v: [24, 256, 256] float64 mirrored V, in the same order.
    """

    u: np.ndarray
    v: np.ndarray


def find_vertex_mirror(
    vertices: np.ndarray, faces: np.ndarray, tolerance: float = 0.01
) -> np.ndarray:
    """Pairs every vertex with its reflection in x = 0, by walking over the mesh from a clear pair.

    Positions alone mistake close vertices on a body that is only nearly symmetric; the walk goes
    from a triangle to its neighbours on both sides at once and needs positions only to begin.

    Args:
        vertices: [V, 3] rest pose, symmetric about x = 0 up to the tolerance.
        faces: [F, 3] with a left-right symmetric connectivity.
        tolerance: largest distance between a reflection and its vertex, in the vertices' unit.

    Returns:
        [V] int32, its own inverse. A vertex of no face is its own reflection.

    Raises:
        ValueError: the connectivity or the rest pose is not symmetric.
    """
    from scipy.spatial import cKDTree  # a third of a second, which tables do not need

    reflected = vertices * np.array([-1.0, 1.0, 1.0])
    distance, nearest = cKDTree(vertices).query(reflected)
    opposite: dict[tuple[int, int], int] = {}
    for face in faces.tolist():
        for k in range(3):
            opposite[face[k], face[(k + 1) % 3]] = face[(k + 2) % 3]
    pairs: dict[int, int] = {}
    # Begin where the reflection is clearest; again for every part that does not touch the others.
    for seed in np.argsort(distance[faces].max(axis=1), kind="stable"):
        face = faces[seed].tolist()
        a, b, c = nearest[face].tolist()
        if face[0] not in pairs and opposite.get((b, a)) == c:
            _walk(face, nearest, opposite, pairs)
    mirror = np.arange(len(vertices), dtype=np.int32)
    mirror[list(pairs)] = list(pairs.values())
    gap = np.linalg.norm(reflected - vertices[mirror], axis=1)
    if (mirror[mirror] != np.arange(len(vertices))).any():
        raise ValueError("the mesh is not symmetric: two vertices share one reflection")
    if gap.max() > tolerance:
        raise ValueError(
            f"the reflection of vertex {gap.argmax()} is {gap.max():.4g} from its counterpart, "
            f"more than {tolerance:.4g}: the rest pose is not symmetric about x = 0"
        )
    return mirror


def _walk(
    seed: list[int],
    nearest: np.ndarray,
    opposite: dict[tuple[int, int], int],
    pairs: dict[int, int],
) -> None:
    """Adds to `pairs` the reflections of everything connected to the face `seed`."""
    pairs.update((vertex, int(nearest[vertex])) for vertex in seed)
    edges = [(seed[0], seed[1]), (seed[1], seed[2]), (seed[2], seed[0])]
    seen = set(edges)
    while edges:
        start, end = edges.pop()
        # Beyond the edge on this side, and beyond the reflected edge, which runs the other way.
        beyond = opposite.get((end, start))
        if beyond is None:
            continue
        reflection = opposite.get((pairs[start], pairs[end]))
        if reflection is None or pairs.setdefault(beyond, reflection) != reflection:
            raise ValueError(f"the mesh is not symmetric: around vertex {beyond}, sides differ")
        for edge in ((end, start), (start, beyond), (beyond, end)):
            if edge not in seen:
                seen.add(edge)
                edges.append(edge)


def mirror_chart_vertices(
    chart_to_vertex: np.ndarray,
    chart_faces: np.ndarray,
    face_patch: np.ndarray,
    vertex_mirror: np.ndarray,
) -> np.ndarray:
    """Carries a vertex symmetry over to the charts, through the faces.

    Going through the faces tells copies of one vertex apart. Where the reflection of a face is not
    a face (a mesh whose diagonals are not symmetric), corners fall back on the mirrored vertex's
    copies in the mirrored patch, and on the lowest of them.

    Args:
        chart_to_vertex: [C].
        chart_faces: [F, 3] into chart vertices.
        face_patch: [F] in 1..24.
        vertex_mirror: [V].

    Returns:
        [C] int32.

    Raises:
        ValueError: a vertex's reflection is in no chart of the mirrored patch.
    """
    faces = chart_to_vertex[chart_faces]
    known = {
        (int(patch), *sorted(face)): dict(zip(face, chart, strict=True))
        for patch, face, chart in zip(face_patch, faces.tolist(), chart_faces.tolist(), strict=True)
    }
    copies: dict[tuple[int, int], int] = {}
    for patch, face, chart in zip(
        face_patch.tolist(), faces.tolist(), chart_faces.tolist(), strict=True
    ):
        for vertex, corner in zip(face, chart, strict=True):
            copies[patch, vertex] = min(corner, copies.get((patch, vertex), corner))
    mirror = np.full(len(chart_to_vertex), -1, np.int32)
    guessed = np.full(len(chart_to_vertex), -1, np.int32)
    flipped = parts.PATCH_FLIP[face_patch]
    reflected = vertex_mirror[faces]
    for patch, face, chart in zip(
        flipped.tolist(), reflected.tolist(), chart_faces.tolist(), strict=True
    ):
        corners = known.get((patch, *sorted(face)))
        for vertex, corner in zip(face, chart, strict=True):
            if corners is not None:
                mirror[corner] = corners[vertex]
            elif (patch, vertex) in copies:
                guessed[corner] = copies[patch, vertex]
    mirror = np.where(mirror < 0, guessed, mirror)
    if (mirror < 0).any():
        lost = int(np.flatnonzero(mirror < 0)[0])
        raise ValueError(f"chart vertex {lost} has no reflection in the mirrored patch")
    return mirror


def uv_symmetry_tables(mirror_iuv: Callable[..., Any]) -> UVSymmetry:
    """Tabulates the mirrored U and V of a template with a symmetric mesh, at cell centres.

    Cells outside every chart hold the reflection of the chart's nearest point.

    Args:
        mirror_iuv: `Template.mirror_iuv` of a template that has a vertex_mirror.

    Returns:
        The tables, ready for `mirror_by_tables` and for the flip of annotations.
    """
    patch, u, v = table_cells()
    _, mirrored_u, mirrored_v = mirror_iuv(patch.ravel(), u.ravel(), v.ravel())
    return UVSymmetry(mirrored_u.reshape(patch.shape), mirrored_v.reshape(patch.shape))


def table_cells() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patch, u and v [24, 256, 256] at the centre of every cell of the tables."""
    centres = np.minimum((np.arange(TABLE_SIZE) + 0.5) / 255, 1)
    patch, v, u = np.meshgrid(np.arange(1, parts.NUM_PATCHES + 1), centres, centres, indexing="ij")
    return patch, u, v


def mirror_by_tables(
    tables: UVSymmetry, patch: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks up mirrored chart coordinates.

    Args:
        tables: as loaded or computed.
        patch: [...] in 0..24; background stays background and keeps its u and v.
        u: [...] in [0, 1].
        v: [...] in [0, 1].

    Returns:
        The mirrored patch, u and v.
    """
    patch = np.asarray(patch)
    row = np.floor(np.clip(v, 0, 1) * 255).astype(int)
    column = np.floor(np.clip(u, 0, 1) * 255).astype(int)
    table = np.maximum(patch - 1, 0)
    foreground = patch > 0
    return (
        parts.PATCH_FLIP[patch],
        np.where(foreground, tables.u[table, row, column], u),
        np.where(foreground, tables.v[table, row, column], v),
    )
