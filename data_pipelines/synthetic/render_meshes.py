"""Triangle meshes to render: normals, joining, and the simple solids that furnish scenes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A closed surface, its triangles counter-clockwise seen from outside.

    Attributes:
        vertices: [V, 3] metres.
        faces: [F, 3] int, into the vertices.
        normals: [V, 3] outward unit vectors.
        texture_points: [V, 3] where each vertex reads a solid texture, metres; fixed to the surface
            however it is posed.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    texture_points: np.ndarray

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> "Mesh":
        """Returns the mesh turned by rotation [3, 3], then shifted by translation [3]."""
        return dataclasses.replace(
            self,
            vertices=self.vertices @ rotation.T + translation,
            normals=self.normals @ rotation.T,
        )


@dataclasses.dataclass(frozen=True)
class JoinedMeshes:
    """Several meshes in one numbering of vertices and faces.

    Attributes:
        vertices: [V, 3] metres.
        faces: [F, 3].
        normals: [V, 3].
        texture_points: [V, 3].
        mesh_of_face: [F] index of the mesh that each face comes from.
        first_face: [M + 1] the joint index of each mesh's first face, then F.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    texture_points: np.ndarray
    mesh_of_face: np.ndarray
    first_face: np.ndarray


def join_meshes(meshes: Sequence[Mesh]) -> JoinedMeshes:
    """Joins any number of meshes, even none, into one numbering of vertices and faces."""
    num_vertices = [len(mesh.vertices) for mesh in meshes]
    num_faces = [len(mesh.faces) for mesh in meshes]
    first_vertex = np.cumsum([0, *num_vertices])
    empty = np.zeros((0, 3))
    shifted = [mesh.faces + first for mesh, first in zip(meshes, first_vertex, strict=False)]
    return JoinedMeshes(
        vertices=np.concatenate([empty, *(mesh.vertices for mesh in meshes)]),
        faces=np.concatenate([empty.astype(np.int64), *shifted]),
        normals=np.concatenate([empty, *(mesh.normals for mesh in meshes)]),
        texture_points=np.concatenate([empty, *(mesh.texture_points for mesh in meshes)]),
        mesh_of_face=np.repeat(np.arange(len(meshes)), num_faces),
        first_face=np.cumsum([0, *num_faces]),
    )


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Computes the outward unit normals of a smooth surface.

    Args:
        vertices: [V, 3].
        faces: [F, 3], counter-clockwise from outside.

    Returns:
        [V, 3], the area-weighted mean of the faces around; zero for a vertex of no face.
    """
    # Axis by axis: NumPy is slow along an axis of three.
    corners = np.ascontiguousarray(vertices.T)[:, faces.T]  # [axis, corner, face]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    index = faces.T.ravel()
    normals = np.empty((3, len(vertices)))
    for axis in range(3):
        after, before = (axis + 1) % 3, (axis + 2) % 3
        component = first[after] * second[before] - first[before] * second[after]
        normals[axis] = np.bincount(index, np.tile(component, 3), minlength=len(vertices))
    length = np.sqrt((normals**2).sum(axis=0))
    normals /= np.maximum(length, 1e-12)
    return normals.T


def box(size: npt.ArrayLike) -> Mesh:
    """Makes a box centred at the origin.

    Args:
        size: [3] edge lengths along x, y and z in metres.

    Returns:
        24 vertices, four to a side so that the edges are sharp, and 12 faces.
    """
    corners: list[np.ndarray] = []
    faces: list[list[int]] = []
    normals: list[np.ndarray] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            along = np.roll([0.0, 1.0, 0.0], axis) * sign
            across = np.roll([0.0, 0.0, 1.0], axis)
            first = len(corners)
            corners += [
                normal + s * along + t * across for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            faces += [[first, first + 1, first + 2], [first, first + 2, first + 3]]
            normals += [normal] * 4
    vertices = np.array(corners) * (np.asarray(size) / 2)
    return Mesh(vertices, np.array(faces), np.array(normals), vertices)


def revolve(profile: np.ndarray, num_segments: int = 14) -> Mesh:
    """Turns a profile around the y axis: ellipsoids, capsules, cylinders, cones, vases.

    Args:
        profile: [K, 2] radius and y in metres, y rising; the first and last radius may be 0.
        num_segments: Corners of each ring, at least 3.

    Returns:
        A closed surface of K * num_segments + 2 vertices.
    """
    angle = np.arange(num_segments) * (2 * np.pi / num_segments)
    radius, height = np.maximum(profile[:, :1], 1e-6), profile[:, 1:]
    x, z = radius * np.sin(angle), radius * np.cos(angle)
    rings = np.stack([x, np.broadcast_to(height, x.shape), z], axis=-1).reshape(-1, 3)
    poles = np.array([[0, profile[0, 1], 0], [0, profile[-1, 1], 0]])
    vertices = np.concatenate([rings, poles])
    here = np.arange(num_segments)
    there = (here + 1) % num_segments
    low = (np.arange(len(profile) - 1) * num_segments)[:, None]
    high = low + num_segments
    sides = [[low + here, low + there, high + there], [low + here, high + there, high + here]]
    faces = [np.stack([np.broadcast_to(c, (len(low), num_segments)) for c in s], -1) for s in sides]
    bottom, top = len(rings), len(rings) + 1
    last = (len(profile) - 1) * num_segments
    caps = [
        np.stack([there, here, np.full(num_segments, bottom)], axis=-1),
        np.stack([last + here, last + there, np.full(num_segments, top)], axis=-1),
    ]
    all_faces = np.concatenate([side.reshape(-1, 3) for side in faces] + caps)
    return Mesh(vertices, all_faces, vertex_normals(vertices, all_faces), vertices)


def ellipsoid(radii: npt.ArrayLike, num_segments: int = 14) -> Mesh:
    """Makes an ellipsoid of the given radii [3] along x, y and z in metres around the origin."""
    angle = np.linspace(0.06, np.pi - 0.06, max(num_segments // 2 + 2, 4))
    unit = revolve(np.stack([np.sin(angle), -np.cos(angle)], axis=-1), num_segments)
    scale = np.asarray(radii, float)
    normals = unit.normals / scale
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return Mesh(unit.vertices * scale, unit.faces, normals, unit.vertices * scale)


def capsule(radius: float, length: float, taper: float = 1.0, num_segments: int = 12) -> Mesh:
    """Makes a limb: a cylinder along y with round ends, centred at the origin.

    Args:
        radius: At the lower end, metres.
        length: Between the centres of the two ends, metres.
        taper: Radius of the upper end over that of the lower one.
        num_segments: Corners of each ring.

    Returns:
        The mesh.
    """
    angle = np.linspace(0.1, np.pi / 2, 4)
    low = np.stack([np.sin(angle), -np.cos(angle)], axis=-1) * radius
    high = low[::-1] * [taper, -taper]
    return revolve(np.concatenate([low - [0, length / 2], high + [0, length / 2]]), num_segments)
