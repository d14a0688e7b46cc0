"""Which pixel shows each vertex of a body, and which point of the body each pixel shows."""

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from ktn_jax.body import parts
from ktn_jax.body.surface import Template

# 255 U is truncated in IUV pictures: half a level more is nearest to what was meant.
_MIDDLE_OF_LEVEL = 0.5
_LEVELS = 255
_LARGEST_REACH = 3  # medians: the slant at which a surface is still said to be seen


@dataclasses.dataclass(frozen=True)
class SeenVertices:
    """A person's pixels and the vertices of a template.

    Attributes:
        is_visible: [V] bool, whether a pixel shows the vertex.
        pixel_xy: [V, 2] int32 column and row of that pixel; -1 where none does.
        distance: [V] float32 metres on the rest pose from the vertex to the point that the pixel
            shows; infinite where none does.
        points: [h, w, 3] float32 the point of the rest pose that each pixel shows, metres; NaN on
            background.
        face: [h, w] int32 the template's face of that point; -1 on background.
        barycentric: [h, w, 3] float32 the point on that face; 0 on background.
    """

    is_visible: np.ndarray
    pixel_xy: np.ndarray
    distance: np.ndarray
    points: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray


def see_vertices(template: Template, iuv: np.ndarray, uv: np.ndarray | None = None) -> SeenVertices:
    """Finds the vertices of a body in a picture of one person.

    The point that a pixel shows is that of its patch, U and V on the template's rest pose. A vertex
    belongs to the pixel whose point is nearest to it, if it is no further from it than the points
    of the pixel's corners, but not further than three times the median of that distance over the
    person's pixels; otherwise no pixel shows it.

    Args:
        template: The surface whose charts the picture is of.
        iuv: uint8 [3, h, w] of I, 255 U, 255 V, truncated.
        uv: float [2, h, w] of U and V before they were truncated, where they are known.

    Returns:
        Vertices and pixels, in the picture's columns and rows.

    Raises:
        ValueError: not such pictures, or a patch above 24.
    """
    if iuv.ndim != 3 or len(iuv) != 3 or iuv.dtype != np.uint8:
        raise ValueError(f"iuv must be [3, h, w] uint8, got {iuv.shape} {iuv.dtype}")
    height, width = iuv.shape[1:]
    row, column = np.nonzero(iuv[0])
    patch = iuv[0, row, column]
    if uv is None:
        at_uv = (iuv[1:, row, column] + _MIDDLE_OF_LEVEL) / _LEVELS
    elif uv.shape == (2, height, width):
        at_uv = uv[:, row, column].astype(np.float64)
    else:
        raise ValueError(f"uv must be [2, h, w] as iuv, got {uv.shape}")
    found = template.iuv_to_surface(patch, *np.clip(at_uv, 0, 1))
    at_pixel = template.surface_to_point(found.face, found.barycentric)
    points = np.full((height, width, 3), np.nan, np.float32)
    points[row, column] = at_pixel
    face = np.full((height, width), -1, np.int32)
    face[row, column] = found.face
    barycentric = np.zeros((height, width, 3), np.float32)
    barycentric[row, column] = found.barycentric

    num_vertices = len(template.vertices)
    pixel_xy = np.full((num_vertices, 2), -1, np.int32)
    distance = np.full(num_vertices, np.inf, np.float32)
    if len(row):
        to_pixel, nearest = cKDTree(at_pixel).query(template.vertices)
        reach = _reach(points)[row, column] + _half_level(template)[patch]
        is_visible = to_pixel <= reach[nearest]
        pixel_xy[is_visible] = np.stack([column, row], axis=-1)[nearest[is_visible]]
        distance[is_visible] = to_pixel[is_visible]
    return SeenVertices(np.isfinite(distance), pixel_xy, distance, points, face, barycentric)


def _reach(points: np.ndarray) -> np.ndarray:
    """[h, w] metres from the point of each pixel's centre to those of its corners."""
    squared = np.zeros(points.shape[:2])
    missing = np.zeros(points.shape[:2], int)
    for axis in (0, 1):
        step = np.linalg.norm(np.diff(points.astype(np.float64), axis=axis), axis=-1)
        ends = np.array([[1, 0], [0, 0]]) if axis == 0 else np.array([[0, 0], [1, 0]])
        before = np.pad(step, ends, constant_values=np.nan)
        after = np.pad(step, ends[:, ::-1], constant_values=np.nan)
        # The nearer neighbour: the other one may lie beyond a fold.
        shorter = np.fmin(before, after)
        missing += np.isnan(shorter)
        squared += np.where(np.isnan(shorter), 0, shorter / 2) ** 2
    # A line of pixels one wide is taken to be as dense across as along.
    reach = np.sqrt(np.where(missing == 1, 2 * squared, squared))
    # What shows between an arm and the trunk may have only neighbours beyond a fold.
    is_body = np.isfinite(points[..., 0])
    return np.asarray(np.minimum(reach, _LARGEST_REACH * np.median(reach[is_body])))


def _half_level(template: Template) -> np.ndarray:
    """[25] metres on the surface of half a level of U and V, by patch."""
    corners = template.vertices[template.faces]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    first, second, third = template.chart_uv[template.chart_faces].transpose(1, 0, 2)
    side, other = second - first, third - first
    uv_area = np.abs(side[:, 0] * other[:, 1] - side[:, 1] * other[:, 0])
    size = parts.NUM_PATCH_CHANNELS
    metres = np.bincount(template.face_patch, area, size)
    levels = np.bincount(template.face_patch, uv_area, size) * _LEVELS**2
    ratio = np.divide(metres, levels, out=np.zeros(size), where=levels > 0)
    return np.asarray(np.sqrt(ratio / 2))
