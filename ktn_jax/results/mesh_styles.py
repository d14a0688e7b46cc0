"""Pictures of people with vertices, as detectron2's visualisers of embedding models draw them.

`apply_net show` calls them dp_vertex and dp_cse_texture. Unlike detectron2, which colours SMPL by
values of a file of its own, every mesh is coloured by the coordinates of its vertices.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from ktn_jax.results.maps import overlap
from ktn_jax.results.records import BACKGROUND, PersonResult

if TYPE_CHECKING:  # the other styles draw without SciPy, which takes a third of a second to import
    from ktn_jax.body.meshes import SurfaceMesh

_OPAQUE = 255


@functools.lru_cache(maxsize=16)
def mesh_of(name: str, files: tuple[str, ...] = ()) -> "SurfaceMesh":
    """Loads a mesh, once. See `meshes.load_mesh`."""
    from ktn_jax.body.meshes import load_mesh

    return load_mesh(name, files)


def vertex_values(mesh: "SurfaceMesh") -> np.ndarray:
    """Values of vertices [V] in 0..1 that differ from place to place.

    The sum of a vertex's coordinates, from the least to the largest of the mesh, squared.
    """
    values = mesh.vertices.sum(axis=1)
    values -= values.min()
    values /= max(values.max(), np.finfo(np.float32).tiny)
    squared: np.ndarray = values**2
    return squared


def values_of_pixels(person: PersonResult, mesh: "SurfaceMesh") -> np.ndarray:
    """The values of the vertices of a person's pixels [h, w], 0 to 255; any beside the person.

    Raises:
        ValueError: a vertex that the mesh does not have.
    """
    levels: np.ndarray = 255 * vertex_values(mesh)[_vertices(person, mesh)]
    return levels


def draw_mesh_texture(
    canvas: np.ndarray, person: PersonResult, mesh: "SurfaceMesh", texture: np.ndarray
) -> None:
    """Dresses a person in a picture of the mesh's texture coordinates, in place.

    As in detectron2, U runs from left to right, V from the top down, and the texel that a vertex
    lies in is taken.

    Args:
        canvas: uint8 [H, W, 3].
        person: with vertices, in the canvas's pixels.
        mesh: of its vertices.
        texture: uint8 [h, w, 4] in the canvas's order of channels, see `atlas.read_texture`.

    Raises:
        ValueError: the mesh has no texture coordinates, or not such a vertex.
    """
    if mesh.uv is None:
        raise ValueError(f"mesh {mesh.name} has no texture coordinates (uv), so no texture fits it")
    place, own = overlap(person, canvas.shape[:2])
    vertices = _vertices(person, mesh)[own]
    size = np.array(texture.shape[1::-1])
    column, row = np.moveaxis((np.clip(mesh.uv[vertices], 0, 1) * size).astype(int), -1, 0)
    texels = texture[np.minimum(row, size[1] - 1), np.minimum(column, size[0] - 1)]
    is_drawn = person.vertices[own] != BACKGROUND if person.vertices is not None else False
    opacity = np.where(is_drawn, texels[..., 3] / _OPAQUE, 0)[..., None]
    window = canvas[place]
    window[:] = texels[..., :3] * opacity + window * (1 - opacity)


def _vertices(person: PersonResult, mesh: "SurfaceMesh") -> np.ndarray:
    """A person's vertices [h, w], 0 beside the person.

    Raises:
        ValueError: there are none, or one is beyond the mesh's last.
    """
    if person.vertices is None:
        raise ValueError("the person has no vertices")
    if person.vertices.max(initial=0) >= len(mesh.vertices):
        raise ValueError(
            f"vertex {person.vertices.max()} of mesh {person.mesh}, which has "
            f"{len(mesh.vertices)}: is it another mesh of that name?"
        )
    vertices: np.ndarray = np.maximum(person.vertices, 0)
    return vertices
