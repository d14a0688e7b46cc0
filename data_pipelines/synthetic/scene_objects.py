"""Solid things that stand in a scene: some hide people, some look a little like parts of people."""

import dataclasses

import numpy as np

from ktn_jax.data_pipelines.synthetic import render_meshes, textures
from ktn_jax.data_pipelines.synthetic.render_meshes import Mesh
from ktn_jax.data_pipelines.synthetic.textures import Material


@dataclasses.dataclass(frozen=True)
class SolidObject:
    """A thing in the camera frame and what it is painted with."""

    mesh: Mesh
    material: Material


def sample_rotation(rng: np.random.Generator) -> np.ndarray:
    """Draws a rotation [3, 3], uniform over all."""
    quaternion = rng.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _turn_about_vertical(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _sample_solid(rng: np.random.Generator) -> tuple[Mesh, Material]:
    """Draws a box, a ball, a post or a vase about a metre large, upright more often than not."""
    material = textures.sample_material(rng)
    kind = rng.random()
    if kind < 0.45:
        mesh = render_meshes.box(rng.uniform(0.2, 1.0, 3))
    elif kind < 0.6:
        mesh = render_meshes.ellipsoid(rng.uniform(0.15, 0.5, 3))
    elif kind < 0.8:
        radius = rng.uniform(0.04, 0.25)
        mesh = render_meshes.revolve(
            np.array([[radius, -0.6], [radius * rng.uniform(0.3, 1.2), rng.uniform(0.0, 1.0)]])
        )
    else:
        height = np.linspace(-0.4, 0.4, 6)
        mesh = render_meshes.revolve(np.stack([rng.uniform(0.05, 0.3, 6), height], axis=-1))
    if rng.random() < 0.65:
        # The camera frame is upside down: y runs down in it.
        rotation = np.diag([1.0, -1.0, -1.0]) @ _turn_about_vertical(rng.uniform(0, 2 * np.pi))
    else:
        rotation = sample_rotation(rng)
    return mesh.moved(rotation, np.zeros(3)), material


def _sample_limbs(rng: np.random.Generator) -> list[tuple[Mesh, Material]]:
    """Draws a bent chain of limbs that belongs to nobody."""
    is_bare = rng.random() < 0.6
    position, chain = np.zeros(3), []
    rotation = sample_rotation(rng)
    for _ in range(int(rng.integers(1, 4))):
        colour = textures.sample_skin(rng) if is_bare else None
        material = textures.sample_material(rng, colour, "plain" if is_bare else None)
        length, radius = rng.uniform(0.2, 0.45), rng.uniform(0.03, 0.09)
        limb = render_meshes.capsule(radius, length, rng.uniform(0.6, 1.3))
        half = rotation[:, 1] * length / 2
        chain.append((limb.moved(rotation, position + half), material))
        position = position + 2 * half
        bend = rng.uniform(-1.0, 1.0)
        rotation = rotation @ np.array(
            [[np.cos(bend), -np.sin(bend), 0], [np.sin(bend), np.cos(bend), 0], [0, 0, 1]]
        )
    return chain


def _place(mesh: Mesh, scale: float, position: np.ndarray) -> Mesh:
    """Scales the mesh about the origin, then shifts it; its texture grows with it."""
    return Mesh(
        mesh.vertices * scale + position, mesh.faces, mesh.normals, mesh.texture_points * scale
    )


def sample_distractor(
    rng: np.random.Generator, position: np.ndarray, scale: float
) -> list[SolidObject]:
    """Draws a thing that is no person, sometimes limbs of nobody.

    Args:
        rng: Random generator.
        position: [3] where it stands in the camera frame, metres.
        scale: Its size against its natural one of up to a metre.

    Returns:
        One or more objects.
    """
    solids = _sample_limbs(rng) if rng.random() < 0.45 else [_sample_solid(rng)]
    return [SolidObject(_place(mesh, scale, position), material) for mesh, material in solids]


def sample_occluder(
    rng: np.random.Generator, low: np.ndarray, high: np.ndarray, nearest: float
) -> SolidObject | None:
    """Draws a thing in front of a person, so that it hides a part.

    Args:
        rng: Random generator.
        low: [3] lowest corner of the person's bounding box in the camera frame, metres.
        high: [3] highest corner.
        nearest: Nothing may come nearer to the camera than this depth, metres.

    Returns:
        The object, or None when there is no room in front of the person.
    """
    mesh, material = _sample_solid(rng)
    extent = np.linalg.norm(mesh.vertices, axis=1).max()
    depth = low[2] * rng.uniform(0.6, 0.92)
    scale = rng.uniform(0.12, 0.38) * (high[1] - low[1]) / extent * depth / low[2]
    depth = min(depth, low[2] - extent * scale - 0.05)
    if depth - extent * scale < nearest:
        return None
    # On the line of sight to a point of the person, so that it does hide something.
    target = np.array([*rng.uniform(low[:2], high[:2]), low[2]])
    return SolidObject(_place(mesh, scale, target * (depth / low[2])), material)
