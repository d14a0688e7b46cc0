"""Textures in other layouts than the 24 tiles: SMPL's, from an OBJ file with its UV map."""

import dataclasses
import os
import pathlib
from typing import NoReturn

import numpy as np

from ktn_jax.body import triangles
from ktn_jax.body.surface import Template
from ktn_jax.results.atlas import atlas_size_hw, tile_corners

# Of the published charts two triangles are missing.
_LEAST_SHARED = 0.9


class LayoutError(ValueError):
    """A UV map cannot be used. The message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class UVMap:
    """A mesh with a flat picture of its surface.

    Attributes:
        vertices: [V, 3].
        faces: [F, 3] int32 into the vertices.
        corners_uv: [F, 3, 2] float64 of each face's corners in the picture: U to the right, V
            upwards, 0 to 1.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corners_uv: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each face of a body is in a texture.

    Attributes:
        size_hw: Height and width of the texture.
        faces: [F, 3] int32 vertices of each face.
        corners_xy: [F, 3, 2] pixels, continuous: the centre of the first is (0.5, 0.5).
        low_xy: [F, 2] first pixel of the face's tile, or (0, 0).
        high_xy: [F, 2] end of the face's tile, or the texture's size.
    """

    size_hw: tuple[int, int]
    faces: np.ndarray
    corners_xy: np.ndarray
    low_xy: np.ndarray
    high_xy: np.ndarray


def read_uv_map(path: str | os.PathLike[str]) -> UVMap:
    """Reads an OBJ file of triangles with texture coordinates, such as SMPL's `smpl_uv.obj`.

    Args:
        path: Of the file: lines `v x y z`, `vt u v` and `f v/vt v/vt v/vt`; others are passed over.

    Returns:
        The mesh and its map.

    Raises:
        FileNotFoundError: there is no such file.
        LayoutError: a line is damaged, a face is no triangle or lacks texture coordinates, an index
            is out of range, or there is no face; the message names the line.
    """
    vertices: list[list[float]] = []
    coordinates: list[list[float]] = []
    faces: list[list[list[int]]] = []
    for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
        word, *values = line.split() or [b""]
        try:
            if word == b"v":
                vertices.append([float(value) for value in values[:3]])
            elif word == b"vt":
                coordinates.append([float(value) for value in values[:2]])
            elif word == b"f":
                faces.append([[int(index) for index in value.split(b"/")[:2]] for value in values])
        except ValueError:
            _refuse(path, number, "a number is damaged, or a face lacks texture coordinates")
        if word == b"f" and [len(corner) for corner in faces[-1]] != [2, 2, 2]:
            _refuse(path, number, "wanted a triangle: f v/vt v/vt v/vt")
        if (word == b"v" and len(vertices[-1]) < 3) or (word == b"vt" and len(coordinates[-1]) < 2):
            _refuse(path, number, "numbers are missing")
    if not faces:
        raise LayoutError(f"{path}: no line `f v/vt v/vt v/vt`: it is no OBJ file with a UV map")
    index = np.array(faces) - 1  # OBJ counts from 1
    ends = np.array([len(vertices), len(coordinates)])
    if (index < 0).any() or (index >= ends).any():
        raise LayoutError(f"{path}: a face asks for a vertex that is not in the file")
    uv = np.array(coordinates)[index[..., 1]]
    if not ((uv >= 0) & (uv <= 1)).all() or not np.isfinite(vertices).all():
        raise LayoutError(f"{path}: vt must be in 0..1, and v finite")
    return UVMap(np.array(vertices), index[..., 0].astype(np.int32), uv)


def _refuse(path: str | os.PathLike[str], number: int, reason: str) -> NoReturn:
    raise LayoutError(f"{path}: line {number}: {reason}")


def atlas_layout(template: Template, side: int) -> Layout:
    """The layout of an atlas of 24 tiles, of `side` pixels each, see `results.atlas`."""
    low = np.stack(tile_corners(template.face_patch, side), axis=-1).astype(np.float64)
    u, v = np.moveaxis(template.chart_uv[template.chart_faces], -1, 0)
    corners = low[:, None] + np.stack([u, 1 - v], axis=-1) * (side - 1)
    return Layout(atlas_size_hw(side), template.faces, corners, low, low + side)


def map_layout(uv_map: UVMap, size_hw: tuple[int, int]) -> Layout:
    """The layout of a texture for a UV map."""
    u, v = np.moveaxis(uv_map.corners_uv, -1, 0)
    size_xy = np.array(size_hw[::-1], np.float64)
    corners = np.stack([u, 1 - v], axis=-1) * size_xy
    low = np.zeros((len(corners), 2))
    return Layout(size_hw, uv_map.faces, corners, low, low + size_xy)


def convert_texture(texture: np.ndarray, source: Layout, target: Layout) -> np.ndarray:
    """Draws a texture in another layout of the same body.

    Args:
        texture: [H, W, 4] uint8 RGBA in the source's layout; alpha 0 where nothing is known.
        source: With faces of the same vertices as the target's, in any order.
        target: The layout wanted.

    Returns:
        [h, w, 4] uint8 RGBA; alpha 0 where the target has no surface, or the source no colour.

    Raises:
        ValueError: not such a texture, of another size than the source's, or the two layouts are
            not of one mesh.
    """
    if texture.shape != (*source.size_hw, 4) or texture.dtype != np.uint8:
        raise ValueError(
            f"wanted uint8 {(*source.size_hw, 4)}, got {texture.dtype} {texture.shape}"
        )
    target_faces, source_faces, turned = _match_faces(target.faces, source.faces)
    covered = triangles.cover(target.corners_xy[target_faces], target.size_hw)
    face = source_faces[covered.triangle]
    corners = np.take_along_axis(
        source.corners_xy[face], turned[covered.triangle][..., None], axis=1
    )
    at = np.einsum("nk,nkd->nd", covered.barycentric, corners)
    # Interpolation must not reach into the neighbouring tile.
    at = np.clip(at, source.low_xy[face] + 0.5, source.high_xy[face] - 0.5)
    picked = np.zeros((*target.size_hw, 4), np.uint8)
    picked[covered.row, covered.column] = _sample(texture, at)
    return picked


def _match_faces(
    wanted: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces [N] of each mesh with the same vertices, and where [N, 3] the wanted corners are."""
    wanted_order, order = np.argsort(wanted, axis=1), np.argsort(faces, axis=1)
    keys = [
        np.take_along_axis(each, by, axis=1).astype(np.int64)
        for each, by in ((wanted, wanted_order), (faces, order))
    ]
    base = max(int(wanted.max()), int(faces.max())) + 1
    wanted_code, code = ((key[:, 0] * base + key[:, 1]) * base + key[:, 2] for key in keys)
    _, first, second = np.intersect1d(wanted_code, code, return_indices=True)
    if len(first) < _LEAST_SHARED * min(len(wanted), len(faces)):
        raise ValueError(
            f"of {len(wanted)} and {len(faces)} faces only {len(first)} have the same vertices: "
            "UV map and charts are of different bodies"
        )
    # Corner wanted_order[k] of the one is corner order[k] of the other.
    turned = np.empty((len(first), 3), np.int64)
    np.put_along_axis(turned, wanted_order[first], order[second], axis=1)
    return first, second, turned


def _sample(texture: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[N, 4] bilinear samples at [N, 2] pixels, in which unknown texels do not take part."""
    alpha = (texture[..., 3:] > 0).astype(np.float32)
    known = np.concatenate([texture[..., :3] * alpha, alpha], axis=-1)
    corner = np.floor(at - 0.5).astype(int)
    share = (at - 0.5 - corner).astype(np.float32)
    total = np.zeros((len(at), 4), np.float32)
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - right - share[:, 0]) * np.abs(1 - down - share[:, 1])
        column = np.minimum(corner[:, 0] + right, texture.shape[1] - 1)
        row = np.minimum(corner[:, 1] + down, texture.shape[0] - 1)
        total += weight[:, None] * known[row, column]
    is_known = total[:, 3] > 0.5  # else the texel that the point lies in may be unknown
    colours = total[:, :3] / np.where(is_known, total[:, 3], 1)[:, None]
    return np.where(
        is_known[:, None],
        np.concatenate([np.rint(colours), np.full_like(colours[:, :1], 255)], 1),
        0,
    ).astype(np.uint8)
