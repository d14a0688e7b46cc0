"""Templates from files that users download: charts, their symmetry tables, a body's vertices."""

import contextlib
import math
import os
from collections.abc import Iterator

import numpy as np

from ktn_jax.body import parts, symmetry
from ktn_jax.body.surface import Template
from ktn_jax.runtime import mat_files

_CHART_FIELDS = (
    "All_Faces",
    "All_FaceIndices",
    "All_vertices",
    "All_U_norm",
    "All_V_norm",
)


def load_template(
    uv_processed_mat: str | os.PathLike[str],
    body_vertices: np.ndarray | str | os.PathLike[str],
    uv_symmetry_mat: str | os.PathLike[str] | None = None,
    *,
    metres_per_unit: float = 1.0,
    symmetry_tolerance: float | None = 0.01,
) -> Template:
    """Joins the published DensePose charts with the vertices of a body of their topology.

    Args:
        uv_processed_mat: `UV_Processed.mat`.
        body_vertices: [V, 3] rest pose, y up, x to the person's left; an array or a `.npy` file.
        uv_symmetry_mat: `UV_symmetry_transforms.mat`; mirrored coordinates are then read from it,
            and without it come from the body's own symmetry.
        metres_per_unit: 0.01 for a body in centimetres.
        symmetry_tolerance: metres within which the reflection of a vertex must find another; None
            for a body that is not symmetric, or not in its rest pose.

    Returns:
        The template.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a field is missing, of the wrong shape or out of range, or the body is not
            symmetric, and the message names the file and the field; or `metres_per_unit` is not a
            length.
    """
    if not 0 < metres_per_unit < math.inf:
        raise ValueError(f"metres_per_unit must be above 0 and finite, got {metres_per_unit}")
    content = mat_files.read_arrays(uv_processed_mat, _CHART_FIELDS)
    vertices = _read_vertices(body_vertices) * metres_per_unit
    to_vertex, chart_faces, face_patch = (
        mat_files.whole_numbers(uv_processed_mat, field, content[field])
        for field in ("All_vertices", "All_Faces", "All_FaceIndices")
    )
    to_vertex, chart_faces = to_vertex.ravel() - 1, chart_faces - 1  # MATLAB counts from 1
    if to_vertex.min() < 0 or to_vertex.max() >= len(vertices):
        raise ValueError(
            f"{uv_processed_mat}: All_vertices asks for {to_vertex.max() + 1} body vertices, "
            f"body_vertices has {len(vertices)}"
        )
    if chart_faces.ndim != 2 or chart_faces.shape[1] != 3:
        raise ValueError(f"{uv_processed_mat}: All_Faces must be [F, 3], got {chart_faces.shape}")
    if chart_faces.min() < 0 or chart_faces.max() >= len(to_vertex):
        raise ValueError(f"{uv_processed_mat}: All_Faces must be in 1..{len(to_vertex)}")
    mirror = None
    if symmetry_tolerance is not None:
        mirror = symmetry.find_vertex_mirror(vertices, to_vertex[chart_faces], symmetry_tolerance)
    uv_symmetry = None if uv_symmetry_mat is None else load_uv_symmetry(uv_symmetry_mat)
    with _naming(uv_processed_mat):
        return Template(
            vertices=vertices,
            chart_uv=np.stack(
                [content["All_U_norm"].ravel(), content["All_V_norm"].ravel()], axis=-1
            ),
            chart_to_vertex=to_vertex,
            chart_faces=chart_faces,
            face_patch=face_patch.ravel(),
            vertex_mirror=mirror,
            uv_symmetry=uv_symmetry,
            mirrors_by_tables=uv_symmetry is not None,
        )


def load_uv_symmetry(path: str | os.PathLike[str]) -> symmetry.UVSymmetry:
    """Reads `UV_symmetry_transforms.mat`: 24 tables of 256 x 256 of mirrored U, and 24 of V.

    Args:
        path: the file.

    Returns:
        The tables, [24, 256, 256] each, row floor(255 V), column floor(255 U).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a field is missing, of another shape, or outside [0, 1]; it is named.
    """
    content = mat_files.read_cells(path, ("U_transforms", "V_transforms"))
    tables = []
    for field, cells in content.items():
        shapes = {cell.shape for cell in cells[: parts.NUM_PATCHES + 1]}  # enough for the message
        wanted = (symmetry.TABLE_SIZE, symmetry.TABLE_SIZE)
        if len(cells) != parts.NUM_PATCHES or shapes != {wanted}:
            raise ValueError(
                f"{path}: {field} must be 24 tables of {wanted}, got {len(cells)} of {shapes}"
            )
        table = np.stack([np.asarray(cell, np.float64) for cell in cells])
        if not ((table >= 0) & (table <= 1)).all():  # also false for NaN
            raise ValueError(f"{path}: {field} must be in [0, 1]")
        tables.append(table)
    return symmetry.UVSymmetry(*tables)


def _read_vertices(source: np.ndarray | str | os.PathLike[str]) -> np.ndarray:
    if isinstance(source, np.ndarray):
        vertices, name = source, "body_vertices"
    else:
        name = os.fspath(source)
        with open(name, "rb") as file:
            try:
                vertices = np.load(file, allow_pickle=False)
            except Exception as error:  # NumPy and zipfile raise a dozen kinds on damaged files
                raise ValueError(
                    f"{name}: not a NumPy array file (.npy): {error!s:.500}"
                ) from error
    if not isinstance(vertices, np.ndarray):
        raise ValueError(f"{name}: holds several arrays; save the [V, 3] vertices alone as .npy")
    if vertices.dtype.kind not in "iuf":
        raise ValueError(f"{name}: wanted vertices as numbers, got {vertices.dtype}")
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.isfinite(vertices).all():
        raise ValueError(f"{name}: wanted finite vertices [V, 3], got shape {vertices.shape}")
    return vertices.astype(np.float64)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the file's name before what is wrong with its content."""
    try:
        yield
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from error
