"""The project's own body: a closed, left-right symmetric, posable surface with 24 charts.

Nothing is downloaded and nothing is learnt: a control cage (`cage`) is refined once, cut into the
24 patches of the DensePose annotations and flattened (`flattening`), and posed by linear blend
skinning. Patch numbers and the directions of U and V are those of the published charts.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import scipy.sparse

from ktn_jax.body import parts, surface, symmetry
from ktn_jax.body.procedural import cage, flattening, posing, refinement, sampling, skeleton


class PosedBody(NamedTuple):
    """A body in one pose.

    Attributes:
        vertices: [V, 3] float64 metres, y up; the pelvis joint is at the pose's translation.
        keypoints: [17, 3] float64 metres, COCO's order.
    """

    vertices: np.ndarray
    keypoints: np.ndarray


@dataclasses.dataclass(frozen=True)
class Body:
    """The surface, its skeleton and its skin.

    Attributes:
        template: rest surface and charts.
        weights: [V, J] skinning weights.
        joints: [J, 3] rest joints in metres.
    """

    template: surface.Template
    weights: np.ndarray
    joints: np.ndarray

    def sample_shape(self, rng: np.random.Generator) -> posing.Shape:
        """Draws a person's build."""
        return sampling.sample_shape(rng)

    def sample_pose(self, rng: np.random.Generator) -> posing.Pose:
        """Draws a pose within the joint limits whose limbs do not run into the trunk."""
        return sampling.sample_pose(rng)

    def pose(self, shape: posing.Shape, pose: posing.Pose) -> PosedBody:
        """Poses a person.

        Args:
            shape: the build.
            pose: joint rotations; not checked against the limits, see `posing.within_limits`.

        Returns:
            The posed surface and keypoints.
        """
        transforms = posing.skin_transforms(self.joints, shape, pose)
        matrices = (self._sparse_weights @ transforms.reshape(-1, 12)).reshape(-1, 3, 4)
        vertices = np.einsum("vij,vj->vi", matrices[:, :, :3], self._soft_rest(shape))
        vertices += matrices[:, :, 3]
        carrier, rest = skeleton.keypoint_anchors()
        keypoints = np.einsum("kij,kj->ki", transforms[carrier, :, :3], rest)
        return PosedBody(vertices, keypoints + transforms[carrier, :, 3])

    @functools.cached_property
    def _sparse_weights(self) -> scipy.sparse.csr_matrix:
        """The weights without their zeros: two or three a row are left.

        A dense product would go through threaded BLAS, which is slower at this size and may sum in
        another order on another machine.
        """
        return scipy.sparse.csr_matrix(self.weights)

    def _soft_rest(self, shape: posing.Shape) -> np.ndarray:
        """[V, 3] rest vertices with the belly and the chest of this build."""
        return self.template.vertices + shape.fat * self._fat_direction

    @functools.cached_property
    def _fat_direction(self) -> np.ndarray:
        """[V, 3] displacement for one unit of body fat: a belly, hips and a fuller back."""
        vertices = self.template.vertices
        height = vertices[:, 1:2]
        trunk = self.weights[:, :3].sum(axis=1, keepdims=True)
        bulge = np.exp(-(((height - 1.08) / 0.13) ** 2)) * trunk
        outward = np.concatenate(
            [
                0.16 * vertices[:, :1],
                np.zeros_like(height),
                np.where(vertices[:, 2:] > 0, 0.55, 0.18) * vertices[:, 2:],
            ],
            axis=1,
        )
        displacement: np.ndarray = bulge * outward
        return displacement


@functools.lru_cache(maxsize=1)
def make_body() -> Body:
    """Builds the body; about a second the first time, then cached.

    Returns:
        The one shared body. Do not change its arrays.
    """
    control = cage.build_cage()
    refine, quads, edges = refinement.catmull_clark(control.quads, len(control.positions))
    mirror = _fine_mirror(control, edges)
    vertices = _symmetrise(refine @ control.positions, mirror)
    weights = np.asarray(refine @ skeleton.cage_weights(control.keys))
    weights = (weights + weights[mirror][:, skeleton.JOINT_FLIP]) / 2
    quad_patch = np.repeat(control.quad_patch, 4)
    chart_quads, chart_to_vertex, on_rim = flattening.split_at_seams(
        quads, quad_patch, _fine_cuts(control, edges)
    )
    corners = refinement.split_quads(quads, vertices, on_rim, mirror)
    chart_faces = np.take_along_axis(chart_quads, corners.reshape(len(quads), 6), axis=1)
    chart_faces = chart_faces.reshape(-1, 3)
    face_patch = np.repeat(quad_patch, 2)
    chart_uv = _chart_uv(control, vertices, chart_faces, face_patch, chart_to_vertex, mirror)
    template = surface.Template(
        vertices=vertices,
        chart_uv=chart_uv,
        chart_to_vertex=chart_to_vertex,
        chart_faces=chart_faces,
        face_patch=face_patch,
        vertex_mirror=mirror,
        uv_symmetry=_uv_symmetry(),
    )
    for array in (vertices, weights, chart_uv, chart_to_vertex, chart_faces, face_patch, mirror):
        array.flags.writeable = False
    return Body(template, weights, skeleton.joint_points())


def _symmetrise(vertices: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Averages with the reflection: rounding left the halves different in the last bit."""
    averaged: np.ndarray = (vertices + vertices[mirror] * np.array([-1.0, 1.0, 1.0])) / 2
    return averaged


def _fine_mirror(control: cage.Cage, edges: np.ndarray) -> np.ndarray:
    """[V] reflected vertex of the refined cage: old vertices, then edges, then quads."""
    index = {key: vertex for vertex, key in enumerate(control.keys)}
    old = np.array([index[cage.mirror_key(key)] for key in control.keys])
    edge_index = {tuple(edge): number for number, edge in enumerate(edges.tolist())}
    reflected = np.sort(old[edges], axis=1).tolist()
    new_edges = np.array([edge_index[tuple(edge)] for edge in reflected])
    quads = np.arange(len(control.quads)) ^ 1  # the cage lists each quad beside its reflection
    return np.concatenate([old, len(old) + new_edges, len(old) + len(edges) + quads]).astype(
        np.int32
    )


def _fine_cuts(control: cage.Cage, edges: np.ndarray) -> np.ndarray:
    """[2 E, 2] the cage's slits on the refined mesh: each edge has become two."""
    number = {tuple(edge): len(control.keys) + k for k, edge in enumerate(edges.tolist())}
    middle = [(cut, number[tuple(sorted(cut))]) for cut in control.cuts]
    return np.array([(end, vertex) for cut, vertex in middle for end in cut])


# Lattice keys at (u, v) = (0, 0), (1, 0), (1, 1), (0, 1) of the left and the middle patches.
# Directions as measured on the published charts; the right half follows by reflection.
_B, _A = "body", "larm"
_CHART_CORNERS: dict[str, tuple[cage.Key, ...]] = {
    "torso_back": ((_B, 2, 6, 0), (_B, 4, 1, 0), (_B, -4, 1, 0), (_B, -2, 6, 0)),
    "torso_front": ((_B, 2, 6, 0), (_B, 4, 0, 0), (_B, -4, 0, 0), (_B, -2, 6, 0)),
    "left_hand": ((_A, 9, 0, 1), (_A, 9, 0, 1), (_A, 13, 0, 1), (_A, 13, 0, 1)),
    "left_foot": ((_B, 4, -12, -1), (_B, 4, -12, 4), (_B, 4, -12, 4), (_B, 4, -12, -1)),
    "left_upper_leg_back": ((_B, 0, 1, -1), (_B, 1, -5, 0), (_B, 4, -5, 0), (_B, 4, 1, 0)),
    "left_upper_leg_front": ((_B, 4, -5, 0), (_B, 4, 0, 0), (_B, 1, 0, 0), (_B, 1, -5, 0)),
    "left_lower_leg_back": ((_B, 1, -10, 0), (_B, 1, -5, 0), (_B, 4, -5, 0), (_B, 4, -10, 0)),
    "left_lower_leg_front": ((_B, 1, -5, 0), (_B, 1, -10, 0), (_B, 4, -10, 0), (_B, 4, -5, 0)),
    "left_upper_arm_inside": ((_B, 4, 4, 0), (_A, 5, -1, 0), (_A, 5, 1, 0), (_B, 4, 6, 0)),
    "left_upper_arm_outside": ((_B, 4, 4, 0), (_A, 5, -1, 0), (_A, 5, 1, 0), (_B, 4, 6, 0)),
    "left_lower_arm_inside": ((_A, 9, 1, 1), (_A, 5, 1, 1), (_A, 5, -1, -1), (_A, 9, -1, -1)),
    "left_lower_arm_outside": ((_A, 5, -1, -1), (_A, 9, -1, -1), (_A, 9, 1, 1), (_A, 5, 1, 1)),
    "left_head": ((_B, 0, 6, 1), (_B, 0, 6, -1), (_B, 0, 14, -1), (_B, 0, 14, 1)),
}


def reflect_uv(patch: int, uv: np.ndarray) -> np.ndarray:
    """Where a chart point goes in a mirror: the rule of this body's charts.

    Args:
        patch: 1..24, before the swap of left and right.
        uv: [..., 2].

    Returns:
        [..., 2] in the mirrored patch: (u, 1 - v) on the torso, (1 - u, v) on hands, feet and
        head, (u, v) on the limbs.
    """
    coarse = parts.COARSE_NAMES[parts.FINE_TO_COARSE[patch]]
    u, v = uv[..., 0], uv[..., 1]
    if coarse == "torso":
        v = 1 - v
    elif coarse.endswith(("hand", "foot", "head")):
        u = 1 - u
    return np.stack([u, v], axis=-1)


def _uv_symmetry() -> symmetry.UVSymmetry:
    """The tables of `reflect_uv`; they equal those that the mesh's symmetry gives."""
    patch, u, v = symmetry.table_cells()
    uv = np.stack([u, v], axis=-1)
    for label in range(1, parts.NUM_PATCHES + 1):
        uv[label - 1] = reflect_uv(label, uv[label - 1])
    return symmetry.UVSymmetry(uv[..., 0].copy(), uv[..., 1].copy())


def _chart_uv(
    control: cage.Cage,
    vertices: np.ndarray,
    chart_faces: np.ndarray,
    face_patch: np.ndarray,
    chart_to_vertex: np.ndarray,
    mirror: np.ndarray,
) -> np.ndarray:
    """[C, 2] flattened charts: left and middle ones solved, right ones reflected."""
    chart_mirror = symmetry.mirror_chart_vertices(chart_to_vertex, chart_faces, face_patch, mirror)
    index = {key: vertex for vertex, key in enumerate(control.keys)}
    points = vertices[chart_to_vertex]
    uv = np.zeros((len(chart_to_vertex), 2))
    for name, keys in _CHART_CORNERS.items():
        patch = parts.PATCH_NAMES.index(name)
        members, flat = flattening.flatten(
            points, chart_faces[face_patch == patch], chart_to_vertex, [index[k] for k in keys]
        )
        uv[members] = flat
        reflected = reflect_uv(patch, flat)
        if parts.PATCH_FLIP[patch] == patch:  # its own reflection: meet in the middle
            uv[members] = (flat + _at(members, chart_mirror, reflected)) / 2
        else:
            uv[chart_mirror[members]] = reflected
    return uv


def _at(members: np.ndarray, chart_mirror: np.ndarray, reflected: np.ndarray) -> np.ndarray:
    """Rows of `reflected` moved from each member to its reflection among the members."""
    moved = np.empty_like(reflected)
    moved[np.searchsorted(members, chart_mirror[members])] = reflected
    return moved
