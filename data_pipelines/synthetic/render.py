"""Renders people and objects to exact per-pixel truth: patch, U, V, person, depth, keypoints."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ktn_jax.body import parts
from ktn_jax.body.surface import Template
from ktn_jax.data_pipelines.synthetic import render_meshes, render_raster
from ktn_jax.data_pipelines.synthetic.render_meshes import JoinedMeshes, Mesh
from ktn_jax.data_pipelines.synthetic.render_raster import Camera, Fragments

# How far a surface may be in front of a keypoint that it does not hide, in metres for a person of
# 1.7 m: joints are inside the body, those of the face on its skin. COCO's annotators call a
# shoulder visible from any side, an eye only when it is seen.
_JOINT_DEPTH = {"nose": 0.035, "eye": 0.03, "ear": 0.045, "shoulder": 0.13, "elbow": 0.08}
_JOINT_DEPTH |= {"wrist": 0.06, "hip": 0.19, "knee": 0.1, "ankle": 0.1}
_KEYPOINT_DEPTH = np.array([_JOINT_DEPTH[name.split("_")[-1]] for name in parts.KEYPOINT_NAMES])

VISIBILITY_OUTSIDE, VISIBILITY_OCCLUDED, VISIBILITY_VISIBLE = 0, 1, 2  # COCO's


@dataclasses.dataclass(frozen=True)
class PosedPerson:
    """A posed body in the camera frame.

    Attributes:
        vertices: [V, 3] metres, on the topology of the template.
        keypoints: [17, 3] metres.
        stature: Height of the person standing, metres.
    """

    vertices: np.ndarray
    keypoints: np.ndarray
    stature: float = 1.7


@dataclasses.dataclass(frozen=True)
class DenseTruth:
    """What every pixel of a picture shows.

    Attributes:
        camera: The camera.
        people: [N] those who are visible, in the order of their instance ids.
        instance: [H, W] int32: 0 background, k > 0 the person people[k - 1], -k < 0 the k-th
            object.
        patch: [H, W] uint8 in 0..24, 0 where no person is seen.
        u: [H, W] float32 in [0, 1], 0 where no person is seen.
        v: [H, W] float32, the same.
        depth: [H, W] float32 metres, infinite on the background.
        face: [H, W] int32 index into the template's faces, or an object's own; else -1.
        barycentric: [H, W, 3] float32 on that face; 0 on the background.
        keypoints: [N, 17, 3] float32: x, y in continuous pixels, COCO visibility 0, 1 or 2.
            Keypoints outside the image are all zero.
        visible_fraction: [N] float64: seen pixels over the pixels of the image that the person
            would fill alone.
    """

    camera: Camera
    people: tuple[PosedPerson, ...]
    instance: np.ndarray
    patch: np.ndarray
    u: np.ndarray
    v: np.ndarray
    depth: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    keypoints: np.ndarray
    visible_fraction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """What the shader reads of the S pixels that show a person or an object.

    Attributes:
        pixel: [S] row * width + column.
        instance: [S] as in `DenseTruth`.
        patch: [S] 0..24.
        u: [S].
        v: [S].
        normals: [S, 3] outward vectors in the camera frame, of length about 1.
        texture_points: [S, 3] metres, on the undeformed surface.
    """

    pixel: np.ndarray
    instance: np.ndarray
    patch: np.ndarray
    u: np.ndarray
    v: np.ndarray
    normals: np.ndarray
    texture_points: np.ndarray


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Which face each pixel shows once hardly visible people are removed.

    Attributes:
        face: [H * W] joint face index, -1 on the background.
        inverse_depth: [H * W], 0 on the background.
        is_kept: [P] bool, which of the people stayed.
        visible_fraction: [P].
    """

    face: np.ndarray
    inverse_depth: np.ndarray
    is_kept: np.ndarray
    visible_fraction: np.ndarray


def _resolve_people(
    fragments: Fragments,
    joined: JoinedMeshes,
    num_people: int,
    camera: Camera,
    min_pixels: int,
    min_fraction: float,
) -> Visibility:
    owner = joined.mesh_of_face[fragments.face]
    alone = np.zeros(num_people)
    covered = np.empty(camera.height * camera.width, bool)
    for person in range(num_people):
        covered[:] = False
        covered[fragments.pixel[owner == person]] = True
        alone[person] = np.count_nonzero(covered)
    is_kept = np.ones(num_people, bool)
    while True:
        face, inverse_depth = render_raster.resolve_visibility(fragments, camera)
        seen = np.bincount(joined.mesh_of_face[face[face >= 0]], minlength=num_people)[:num_people]
        fraction = seen / np.maximum(alone, 1)
        leaves = is_kept & ((seen < max(min_pixels, 1)) | (fraction < min_fraction))
        if not leaves.any():
            return Visibility(face, inverse_depth, is_kept, fraction)
        # The most hidden first: without it the next one may be seen well enough.
        worst = np.argmin(np.where(leaves, fraction, np.inf))
        is_kept[worst] = False
        fragments, owner = fragments.select(owner != worst), owner[owner != worst]


def _keypoints_in_image(
    person: PosedPerson, instance_id: int, instance: np.ndarray, depth: np.ndarray, camera: Camera
) -> np.ndarray:
    """Projects the keypoints and decides their visibility: [17, 3] float32."""
    xy = camera.project(person.keypoints)
    distance = person.keypoints[:, 2]
    is_inside = (distance > camera.near) & (xy >= 0).all(axis=1)
    is_inside &= (xy[:, 0] < camera.width) & (xy[:, 1] < camera.height)
    column, row = np.where(is_inside[:, None], xy, 0).astype(np.int64).T
    # Another's surface hides a joint when it is nearer than the joint; the person's own only when
    # it is nearer than the flesh around the joint can be.
    is_own = instance[row, column] == instance_id
    slack = np.where(is_own, _KEYPOINT_DEPTH * person.stature / 1.7, 0.0)
    is_seen = depth[row, column] > distance - slack
    visibility = np.where(is_seen, VISIBILITY_VISIBLE, VISIBILITY_OCCLUDED)
    keypoints = np.concatenate([xy, visibility[:, None]], axis=1)
    return np.where(is_inside[:, None], keypoints, 0).astype(np.float32)


def _image(
    values: np.ndarray, pixel: np.ndarray, camera: Camera, dtype: npt.DTypeLike, empty: float = 0
) -> np.ndarray:
    """Spreads values [S, ...] of pixels over an image [H, W, ...]."""
    image = np.full((camera.height * camera.width, *values.shape[1:]), empty, dtype)
    image[pixel] = values
    return image.reshape(camera.height, camera.width, *values.shape[1:])


def render(
    template: Template,
    people: Sequence[PosedPerson],
    objects: Sequence[Mesh],
    camera: Camera,
    min_visible_pixels: int = 1,
    min_visible_fraction: float = 0.0,
) -> tuple[DenseTruth, Surfaces, np.ndarray]:
    """Renders a scene.

    Hardly visible people are removed, and what they would hide is shown: a picture must not show a
    person whom nobody could annotate.

    Args:
        template: Charts and topology that all people share.
        people: [P] posed bodies.
        objects: Closed surfaces that hide people and are none.
        camera: The camera. Whatever crosses its near plane is not drawn.
        min_visible_pixels: People with fewer visible pixels are removed.
        min_visible_fraction: So are people with a smaller visible fraction.

    Returns:
        The truth; the surfaces to shade; and is_kept [P] bool, which people are in the truth.
    """
    faces = template.faces
    meshes = [
        Mesh(p.vertices, faces, render_meshes.vertex_normals(p.vertices, faces), template.vertices)
        for p in people
    ]
    joined = render_meshes.join_meshes([*meshes, *objects])
    fragments = render_raster.rasterise(joined.vertices, joined.faces, camera)
    seen = _resolve_people(
        fragments, joined, len(people), camera, min_visible_pixels, min_visible_fraction
    )
    pixel = np.flatnonzero(seen.face >= 0)
    face = seen.face[pixel]
    mesh = joined.mesh_of_face[face]
    is_person = mesh < len(people)
    ids = np.concatenate([np.cumsum(seen.is_kept), -1 - np.arange(len(objects))]).astype(np.int32)
    corners = joined.faces[face]
    barycentric = render_raster.barycentric_at_pixels(joined.vertices, corners, pixel, camera)
    own_face = face - joined.first_face[mesh]
    chart_face = np.where(is_person, own_face, 0)
    uv = np.einsum("sc,scd->sd", barycentric, template.chart_uv[template.chart_faces[chart_face]])
    # Rounding of the weights must not push a point on the rim of a chart out of it.
    uv = np.where(is_person[:, None], np.clip(uv, 0, 1), 0)
    surfaces = Surfaces(
        pixel=pixel,
        instance=ids[mesh],
        patch=np.where(is_person, template.face_patch[chart_face], 0),
        u=uv[:, 0],
        v=uv[:, 1],
        normals=np.einsum("sc,scd->sd", barycentric, joined.normals[corners]),
        texture_points=np.einsum("sc,scd->sd", barycentric, joined.texture_points[corners]),
    )
    truth = _dense_truth(surfaces, own_face, barycentric, people, seen, camera)
    return truth, surfaces, seen.is_kept


def _dense_truth(
    surfaces: Surfaces,
    face: np.ndarray,
    barycentric: np.ndarray,
    people: Sequence[PosedPerson],
    seen: Visibility,
    camera: Camera,
) -> DenseTruth:
    pixel = surfaces.pixel
    kept = tuple(person for person, keep in zip(people, seen.is_kept, strict=True) if keep)
    instance = _image(surfaces.instance, pixel, camera, np.int32)
    depth = _image(1 / seen.inverse_depth[pixel], pixel, camera, np.float32, np.inf)
    keypoints = [
        _keypoints_in_image(person, index + 1, instance, depth, camera)
        for index, person in enumerate(kept)
    ]
    return DenseTruth(
        camera=camera,
        people=kept,
        instance=instance,
        patch=_image(surfaces.patch, pixel, camera, np.uint8),
        u=_image(surfaces.u, pixel, camera, np.float32),
        v=_image(surfaces.v, pixel, camera, np.float32),
        depth=depth,
        face=_image(face, pixel, camera, np.int32, -1),
        barycentric=_image(barycentric, pixel, camera, np.float32),
        keypoints=np.array(keypoints, np.float32).reshape(-1, parts.NUM_KEYPOINTS, 3),
        visible_fraction=seen.visible_fraction[seen.is_kept],
    )
