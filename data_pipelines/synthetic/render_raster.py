"""A z-buffer rasteriser of triangle meshes in NumPy: exact visibility at pixel centres.

`body.triangles` lists exactly the pixels that triangles cover, however large or small they are. Per
pixel the fragment with the largest inverse depth wins.

Frames: the camera looks along +z, x runs right and y down. Pixel (row r, column c) covers
[c, c + 1) x [r, r + 1) of the image plane, its centre is (c + 0.5, r + 0.5).
"""

import dataclasses

import numpy as np

from ktn_jax.body import triangles

_MIN_DOUBLED_AREA = 1e-12  # square pixels; below, a triangle is seen edge on


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion at the origin of the camera frame.

    Attributes:
        focal: Focal length in pixels.
        centre_x: Principal point in pixels, on the continuous image plane.
        centre_y: Principal point in pixels.
        width: Image width in pixels.
        height: Image height in pixels.
        near: Triangles with a vertex nearer than this, in metres, are not drawn.
    """

    focal: float
    centre_x: float
    centre_y: float
    width: int
    height: int
    near: float = 0.05

    def project(self, points: np.ndarray) -> np.ndarray:
        """Projects points of the camera frame.

        Args:
            points: [..., 3] in metres. Depth zero gives an infinite position.

        Returns:
            [..., 2] x and y in pixels, continuous: the centre of the first pixel is (0.5, 0.5).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = self.focal / points[..., 2]
            x = points[..., 0] * scale + self.centre_x
            y = points[..., 1] * scale + self.centre_y
        return np.stack([x, y], axis=-1)


@dataclasses.dataclass(frozen=True)
class Fragments:
    """Pixels that triangles cover, before visibility is decided.

    Attributes:
        pixel: [N] int64, row * width + column.
        face: [N] int64 index of the triangle.
        inverse_depth: [N] float64, 1 / metres.
    """

    pixel: np.ndarray
    face: np.ndarray
    inverse_depth: np.ndarray

    def select(self, keep: np.ndarray) -> "Fragments":
        """Returns the fragments where keep [N] is true."""
        return Fragments(self.pixel[keep], self.face[keep], self.inverse_depth[keep])


def _drawable_faces(
    xy: np.ndarray, depth: np.ndarray, faces: np.ndarray, camera: Camera
) -> np.ndarray:
    """Returns the indices of the faces that look at the camera and are beyond the near plane."""
    # Corner by corner: NumPy is slow along an axis of three.
    first, second, third = faces.T
    is_before = depth > camera.near
    in_front = is_before[first] & is_before[second] & is_before[third]
    x, y = xy.T
    with np.errstate(invalid="ignore"):
        doubled_area = (x[second] - x[first]) * (y[third] - y[first])
        doubled_area -= (x[third] - x[first]) * (y[second] - y[first])
        # y runs down: a triangle wound counter-clockwise for the viewer has a negative area.
        return np.flatnonzero(in_front & (doubled_area < -_MIN_DOUBLED_AREA))


def rasterise(vertices: np.ndarray, faces: np.ndarray, camera: Camera) -> Fragments:
    """Lists the pixels whose centre each triangle covers, hidden ones too.

    Triangles are drawn from their front only: the side from which their vertices run
    counter-clockwise. That halves the work and hides nothing of a closed surface.

    Args:
        vertices: [V, 3] in the camera frame, metres.
        faces: [F, 3] integer indices into vertices.
        camera: The camera.

    Returns:
        The fragments, ordered by face.

    Raises:
        ValueError: vertices or faces have another shape.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"vertices and faces must be [V, 3] and [F, 3], got {vertices.shape}, {faces.shape}"
        )
    xy = camera.project(vertices)
    drawable = _drawable_faces(xy, vertices[:, 2], faces, camera)
    corners = faces[drawable].T
    x, y = xy[:, 0][corners], xy[:, 1][corners]
    triangle, row, first, counts = triangles.row_spans(x, y, camera.width, camera.height)
    span, rank = triangles.expand(counts)
    column = first[span] + rank
    row, triangle = row[span], triangle[span]

    # Perspective makes 1 / depth, not depth, linear on the image plane.
    inverse = 1 / vertices[:, 2][corners]
    dx1, dy1, dw1 = x[1] - x[0], y[1] - y[0], inverse[1] - inverse[0]
    dx2, dy2, dw2 = x[2] - x[0], y[2] - y[0], inverse[2] - inverse[0]
    doubled_area = dx1 * dy2 - dx2 * dy1
    gradient_x = (dw1 * dy2 - dw2 * dy1) / doubled_area
    gradient_y = (dx1 * dw2 - dx2 * dw1) / doubled_area
    offset = inverse[0] + gradient_x * (0.5 - x[0]) + gradient_y * (0.5 - y[0])
    inverse_depth = offset[triangle] + gradient_x[triangle] * column + gradient_y[triangle] * row
    # The plane of a sliver is steep: a centre within the edge tolerance must not leave its depths.
    low, high = np.minimum.reduce(inverse), np.maximum.reduce(inverse)
    inverse_depth = np.clip(inverse_depth, low[triangle], high[triangle])
    return Fragments(row * camera.width + column, drawable[triangle], inverse_depth)


def resolve_visibility(fragments: Fragments, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the nearest fragment of every pixel.

    Args:
        fragments: Fragments of any number of meshes with a common numbering of faces.
        camera: The camera.

    Returns:
        face [H * W] int64, -1 where nothing is seen, and inverse depth [H * W] float64, 0 there.
        Of fragments at exactly the same depth the last one wins.
    """
    num_pixels = camera.height * camera.width
    inverse_depth = np.zeros(num_pixels)
    np.maximum.at(inverse_depth, fragments.pixel, fragments.inverse_depth)
    wins = fragments.inverse_depth == inverse_depth[fragments.pixel]
    face = np.full(num_pixels, -1, np.int64)
    face[fragments.pixel[wins]] = fragments.face[wins]
    return face, inverse_depth


def barycentric_at_pixels(
    vertices: np.ndarray, corners: np.ndarray, pixel: np.ndarray, camera: Camera
) -> np.ndarray:
    """Computes the perspective-correct barycentric coordinates of pixel centres.

    Args:
        vertices: [V, 3] in the camera frame, metres.
        corners: [N, 3] the vertices of the triangle seen at each pixel.
        pixel: [N] row * width + column.
        camera: The camera.

    Returns:
        [N, 3] float64, within [0, 1] and summing to 1. Interpolating a quantity of the vertices
        with them gives its value at the surface point seen at the pixel centre.
    """
    xy = camera.project(vertices)
    x, y = xy[:, 0][corners], xy[:, 1][corners]
    x -= (pixel % camera.width + 0.5)[:, None]
    y -= (pixel // camera.width + 0.5)[:, None]
    areas = np.empty(x.shape)
    for corner in range(3):
        after, before = (corner + 1) % 3, (corner + 2) % 3
        areas[:, corner] = x[:, before] * y[:, after] - x[:, after] * y[:, before]
    # Front faces give positive weights here; a centre on an edge may round to just below zero.
    weights: np.ndarray = np.maximum(areas, 0) / vertices[:, 2][corners]
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
