"""Left-right symmetry of a body mesh and of its charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.spatial

from ktn_jax.template import parts

if TYPE_CHECKING:
    from ktn_jax.template.surface import Template

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


def find_vertex_mirror(vertices: np.ndarray, tolerance: float) -> np.ndarray:
    """Pairs every vertex with the one at its reflection in x = 0.

    Args:
        vertices: [V, 3] rest pose, symmetric about x = 0 up to the tolerance.
        tolerance: largest distance between a reflection and its vertex, in the vertices' unit.

    Returns:
        [V] int32, its own inverse.

    Raises:
        ValueError: a reflection has no vertex near it, or two claim the same one.
    """
    reflected = vertices * np.array([-1.0, 1.0, 1.0])
    distance, mirror = scipy.spatial.cKDTree(vertices).query(reflected)
    if distance.max() > tolerance:
        raise ValueError(
            f"vertex {distance.argmax()} is {distance.max():.4g} from its reflection's nearest "
            f"vertex, more than {tolerance:.4g}: the rest pose is not symmetric about x = 0"
        )
    if (mirror[mirror] != np.arange(len(vertices))).any():
        raise ValueError("two vertices share one reflection: the rest pose is not symmetric")
    return mirror.astype(np.int32)


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


def uv_symmetry_tables(template: Template) -> UVSymmetry:
    """Tabulates the mirrored U and V of a template with a symmetric mesh, at cell centres.

    Cells outside every chart hold the reflection of the chart's nearest point.

    Args:
        template: has a vertex_mirror.

    Returns:
        The tables, ready for `mirror_by_tables` and for the flip of annotations.
    """
    centres = np.minimum((np.arange(TABLE_SIZE) + 0.5) / 255, 1)
    patch, v, u = np.meshgrid(np.arange(1, 25), centres, centres, indexing="ij")
    mirrored = template.mirror_iuv(patch.ravel(), u.ravel(), v.ravel())
    return UVSymmetry(mirrored.u.reshape(patch.shape), mirrored.v.reshape(patch.shape))


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
