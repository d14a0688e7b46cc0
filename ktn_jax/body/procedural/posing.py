"""Builds and poses of the procedural body: parameters, joint limits and the bones' transforms."""

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

from ktn_jax.body.procedural import cage, skeleton

NUM_JOINTS = len(skeleton.JOINT_NAMES)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A person's build. Every field but `fat` is a factor on the rest body, which is 1.73 m tall.

    Both sides share every field, so a build is its own reflection.

    Attributes:
        height: of everything.
        legs: length of the legs, before `height`.
        arms: length of the arms.
        trunk: length of the trunk.
        girth: thickness of the trunk.
        limb_girth: thickness of arms and legs.
        shoulders: width at the shoulders.
        hips: width at the hips.
        head: size of the head.
        fat: belly and hips; 0 is none added.
    """

    height: float = 1.0
    legs: float = 1.0
    arms: float = 1.0
    trunk: float = 1.0
    girth: float = 1.0
    limb_girth: float = 1.0
    shoulders: float = 1.0
    hips: float = 1.0
    head: float = 1.0
    fat: float = 0.0


@dataclasses.dataclass(frozen=True)
class Pose:
    """Joint angles, orientation and position of the body.

    Attributes:
        angles: [J, 3] radians about the joint's three axes, see `AXES`; the pelvis' row is unused.
        orientation: [3] axis-angle of the whole body about its pelvis; zero faces +z, upright.
        translation: [3] metres, of the pelvis joint.
    """

    angles: np.ndarray
    orientation: np.ndarray
    translation: np.ndarray

    def mirrored(self) -> "Pose":
        """The reflection in x = 0: posing with it is the mirror image of posing with this."""
        angles = self.angles[skeleton.JOINT_FLIP].copy()
        # A middle joint is its own reflection: it bends as far, but leans and turns the other way.
        angles[_MIDDLE, 1:] *= -1
        return Pose(
            angles,
            self.orientation * np.array([1.0, -1.0, -1.0]),
            self.translation * np.array([-1.0, 1.0, 1.0]),
        )


def rest_pose() -> Pose:
    """The pose of the template's vertices: arms half lowered, pelvis at its rest height."""
    return Pose(np.zeros((NUM_JOINTS, 3)), np.zeros(3), skeleton.joint_points()[0])


_X, _Y, _Z = np.eye(3)
_UPPER_ARM = cage.ELBOW_POINT - cage.SHOULDER_POINT
_LOWER_ARM = cage.WRIST_POINT - cage.ELBOW_POINT
_ELBOW_HINGE = np.cross(_UPPER_ARM, _LOWER_ARM)
_PALM = np.cross(_LOWER_ARM, _X)

# Axes and limits in degrees of the left joints: (axis, low, high) three times, applied last first.
_LEFT_DOF = {
    # forward bend, lean to the left, turn to the left
    "spine": ((_X, -20, 45), (-_Z, -20, 20), (_Y, -25, 25)),
    "chest": ((_X, -15, 30), (-_Z, -18, 18), (_Y, -25, 25)),
    "neck": ((_X, -25, 30), (-_Z, -20, 20), (_Y, -35, 35)),
    "head": ((_X, -20, 25), (-_Z, -15, 15), (_Y, -35, 35)),
    # shrug forward, shrug up, -
    "collar": ((-_Y, -15, 20), (_Z, -8, 30), (_X, 0, 0)),
    # forward, raise sideways, turn about the upper arm
    "shoulder": ((-_X, -50, 170), (_Z, -46, 105), (_UPPER_ARM, -80, 60)),
    # bend, -, turn the palm
    "elbow": ((_ELBOW_HINGE, -8, 140), (_Y, 0, 0), (_LOWER_ARM, -70, 70)),
    # bend to the palm, bend to the thumb, -
    "wrist": ((_PALM, -45, 45), (_Z, -18, 18), (_X, 0, 0)),
    # forward, outward, turn the toes out
    "hip": ((-_X, -25, 125), (_Z, -15, 45), (_Y, -30, 45)),
    "knee": ((_X, -2, 145), (_Y, 0, 0), (_Z, 0, 0)),
    # point the toes, tilt, -
    "ankle": ((_X, -22, 45), (_Z, -12, 12), (_Y, 0, 0)),
}
_MIDDLE = skeleton.JOINT_FLIP == np.arange(NUM_JOINTS)


def _degrees_of_freedom() -> tuple[np.ndarray, np.ndarray]:
    axes = np.zeros((NUM_JOINTS, 3, 3))
    axes[:] = np.eye(3)
    limits = np.zeros((NUM_JOINTS, 3, 2))
    for joint, name in enumerate(skeleton.JOINT_NAMES[1:], start=1):
        kind = name.removeprefix("left_").removeprefix("right_")
        for k, (axis, low, high) in enumerate(_LEFT_DOF[kind]):
            unit = axis / np.linalg.norm(axis)
            # A reflected rotation turns about the reflected axis the other way round.
            axes[joint, k] = unit * [1, -1, -1] if name.startswith("right_") else unit
            limits[joint, k] = np.radians([low, high])
    return axes, limits


AXES, LIMITS = _degrees_of_freedom()
"""[J, 3, 3] unit axes in the rest frame and [J, 3, 2] least and greatest angle in radians."""


def within_limits(pose: Pose, slack: float = 1e-9) -> bool:
    """Whether every joint angle is within its limits."""
    angles = pose.angles[1:]
    low, high = LIMITS[1:, :, 0], LIMITS[1:, :, 1]
    return bool(((angles >= low - slack) & (angles <= high + slack)).all())


def _bone_scales(shape: Shape) -> np.ndarray:
    """[J, 3, 3] how each bone's surroundings are stretched, in the rest frame."""
    s = shape
    length_girth = {
        "shoulder": (s.arms, s.limb_girth),
        "elbow": (s.arms, s.limb_girth),
        "hip": (s.legs, s.limb_girth),
        "knee": (s.legs, s.limb_girth),
    }
    even = {
        "neck": (0.5 + 0.5 * s.girth, 1.0, 0.5 + 0.5 * s.girth),
        "head": (s.head, s.head, s.head),
        "wrist": (0.5 + 0.5 * s.arms,) * 3,
        "ankle": (0.5 + 0.5 * s.legs,) * 3,
        "pelvis": (s.hips, s.trunk, s.girth),
        "spine": ((s.hips + s.shoulders) / 2 * (0.5 + 0.5 * s.girth), s.trunk, s.girth),
        "chest": (s.shoulders, s.trunk, s.girth),
        "collar": (s.shoulders, s.trunk, s.girth),
    }
    points = skeleton.joint_points()
    scales = np.zeros((NUM_JOINTS, 3, 3))
    for joint, name in enumerate(skeleton.JOINT_NAMES):
        kind = name.removeprefix("left_").removeprefix("right_")
        if kind in even:
            scales[joint] = np.diag(even[kind])
            continue
        child = skeleton.PARENTS.index(joint)
        bone = points[child] - points[joint]
        bone /= np.linalg.norm(bone)
        length, girth = length_girth[kind]
        scales[joint] = girth * np.eye(3) + (length - girth) * np.outer(bone, bone)
    return scales * shape.height


def skin_transforms(joints: np.ndarray, shape: Shape, pose: Pose) -> np.ndarray:
    """Computes where each bone takes the rest body.

    Args:
        joints: [J, 3] rest positions.
        shape: the build.
        pose: the joint angles and the place.

    Returns:
        [J, 3, 4] affine maps of rest points to posed metres.
    """
    scales = _bone_scales(shape)
    vectors = (AXES * pose.angles[..., None]).reshape(-1, 3)
    turns = Rotation.from_rotvec(vectors).as_matrix().reshape(NUM_JOINTS, 3, 3, 3)
    turns = turns[:, 0] @ turns[:, 1] @ turns[:, 2]
    turns[0] = Rotation.from_rotvec(pose.orientation).as_matrix()
    world = np.empty((NUM_JOINTS, 3, 3))
    place = np.empty((NUM_JOINTS, 3))
    world[0], place[0] = turns[0], pose.translation
    for joint, parent in enumerate(skeleton.PARENTS):
        if parent >= 0:
            world[joint] = world[parent] @ turns[joint]
            offset = scales[parent] @ (joints[joint] - joints[parent])
            place[joint] = place[parent] + world[parent] @ offset
    linear = world @ scales
    shift = place - np.einsum("jab,jb->ja", linear, joints)
    return np.concatenate([linear, shift[:, :, None]], axis=-1)
