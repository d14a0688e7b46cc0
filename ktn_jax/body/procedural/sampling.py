"""Drawing builds and poses at random: everyday postures within the joint limits."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from ktn_jax.body.procedural import posing, skeleton

_JOINT = skeleton.JOINT


def sample_shape(rng: np.random.Generator) -> posing.Shape:
    """Draws a build: mostly adults, one in eight a child."""
    child = rng.random() < 0.125
    heavy = float(np.clip(rng.normal(0.0, 1.0), -2.0, 2.5))
    broad = float(np.clip(rng.normal(0.0, 1.0), -2.0, 2.0))

    def around(mean: float, spread: float) -> float:
        return mean + spread * float(np.clip(rng.normal(), -2.0, 2.0))

    return posing.Shape(
        height=around(0.72, 0.06) if child else around(0.985, 0.05),
        legs=around(0.95 if child else 1.0, 0.03),
        arms=around(0.97 if child else 1.0, 0.03),
        trunk=around(1.0, 0.03),
        girth=around(1.03, 0.03) + 0.08 * heavy,
        limb_girth=around(1.03, 0.04) + 0.07 * heavy,
        shoulders=around(0.98, 0.02) + 0.045 * broad + 0.015 * heavy,
        hips=around(1.0, 0.02) - 0.025 * broad + 0.035 * heavy,
        head=around(1.22 if child else 1.0, 0.03),
        fat=max(0.0, 0.45 * heavy + 0.15 * float(rng.normal())),
    )


def sample_pose(rng: np.random.Generator, attempts: int = 20) -> posing.Pose:
    """Draws a posture, adds noise, keeps it within the limits and rejects limbs inside the trunk.

    Args:
        rng: its state alone decides the result.
        attempts: after so many rejections the arms of the last draw are left hanging.

    Returns:
        The pose, its pelvis at the origin; most people face +z, one in twenty-five lies down.
    """
    weights = np.array([weight for _, weight in _POSTURES])
    posture = _POSTURES[rng.choice(len(_POSTURES), p=weights / weights.sum())][0]
    for _ in range(attempts):
        angles = posture(rng)
        angles += np.radians(2.5) * rng.normal(size=angles.shape)
        angles = np.clip(angles, posing.LIMITS[:, :, 0], posing.LIMITS[:, :, 1])
        pose = posing.Pose(angles, _sample_orientation(rng, posture), np.zeros(3))
        if not limbs_collide(pose):
            return pose
    hanging = _Posture()
    hanging.hang_arms(rng)
    arms = [_JOINT[f"{side}_{kind}"] for side in _SIDES for kind in _ARM]
    angles[arms] = np.clip(hanging.angles[arms], *np.moveaxis(posing.LIMITS[arms], -1, 0))
    return dataclasses.replace(pose, angles=angles)


_SIDES = ("left", "right")
_ARM = ("collar", "shoulder", "elbow", "wrist")


class _Posture:
    """Joint angles in degrees, set by name."""

    def __init__(self) -> None:
        self.angles = np.zeros((posing.NUM_JOINTS, 3))

    def set(self, joint: str, *degrees: float) -> None:
        """Sets the first angles of a joint, in the order of `posing.AXES`."""
        self.angles[_JOINT[joint], : len(degrees)] = np.radians(degrees)

    def hang_arms(self, rng: np.random.Generator) -> None:
        """Both arms down, a little bent."""
        for side in _SIDES:
            self.set(f"{side}_shoulder", rng.normal(2, 9), rng.normal(-36, 5), rng.normal(0, 12))
            self.set(f"{side}_elbow", abs(rng.normal(12, 12)), 0, rng.normal(0, 15))

    def free_arm(self, rng: np.random.Generator, side: str) -> None:
        """One arm anywhere in front of or beside the body."""
        raise_ = rng.uniform(-38, 70)
        self.set(f"{side}_shoulder", rng.uniform(-20, 120), raise_, rng.uniform(-50, 40))
        self.set(f"{side}_collar", 0, max(0.0, 0.2 * raise_))
        self.set(f"{side}_elbow", rng.uniform(0, 115), 0, rng.uniform(-50, 50))
        self.set(f"{side}_wrist", rng.normal(0, 15), rng.normal(0, 7))

    def look(self, rng: np.random.Generator, spread: float = 15) -> None:
        """Turns the head and, less, the trunk."""
        self.set("neck", rng.normal(2, 6), rng.normal(0, 5), rng.normal(0, spread / 2))
        self.set("head", rng.normal(2, 6), rng.normal(0, 5), rng.normal(0, spread))
        self.set("spine", rng.normal(2, 4), rng.normal(0, 4), rng.normal(0, 5))
        self.set("chest", rng.normal(1, 4), rng.normal(0, 4), rng.normal(0, 5))

    def arms(self, rng: np.random.Generator, free: float) -> None:
        """Hanging arms, each with probability `free` doing something else."""
        self.hang_arms(rng)
        for side in _SIDES:
            if rng.random() < free:
                self.free_arm(rng, side)


def _stand(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    posture.arms(rng, free=0.3)
    apart = rng.uniform(-4, 14)
    for side in _SIDES:
        posture.set(f"{side}_hip", rng.normal(3, 4), apart, rng.normal(8, 8))
        posture.set(f"{side}_knee", abs(rng.normal(4, 5)))
        posture.set(f"{side}_ankle", rng.normal(-2, 3))
    return posture.angles


def _walk(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    posture.hang_arms(rng)
    stride = rng.uniform(12, 34)
    front, back = _SIDES if rng.random() < 0.5 else _SIDES[::-1]
    posture.set(f"{front}_hip", stride, 0, 3)
    posture.set(f"{front}_knee", rng.uniform(2, 18))
    posture.set(f"{back}_hip", -0.6 * stride, 0, 3)
    posture.set(f"{back}_knee", rng.uniform(8, 45))
    posture.set(f"{back}_ankle", rng.uniform(0, 25))
    swing = stride * rng.uniform(0.6, 1.2)
    for side, sign in ((back, 1), (front, -1)):
        posture.set(f"{side}_shoulder", sign * swing, rng.normal(-38, 3), rng.normal(0, 8))
        posture.set(f"{side}_elbow", rng.uniform(10, 45))
    return posture.angles


def _run(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    front, back = _SIDES if rng.random() < 0.5 else _SIDES[::-1]
    posture.set("spine", rng.uniform(5, 18))
    posture.set(f"{front}_hip", rng.uniform(40, 85), rng.uniform(-3, 10))
    posture.set(f"{front}_knee", rng.uniform(40, 105))
    posture.set(f"{back}_hip", rng.uniform(-24, 0))
    posture.set(f"{back}_knee", rng.uniform(15, 95))
    posture.set(f"{back}_ankle", rng.uniform(10, 40))
    for side, low, high in ((back, 30, 65), (front, -45, -10)):
        posture.set(f"{side}_shoulder", rng.uniform(low, high), rng.uniform(-38, -25))
        posture.set(f"{side}_elbow", rng.uniform(70, 110))
    return posture.angles


def _raise_arms(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.angles = _stand(rng)
    posture.hang_arms(rng)
    for side in _SIDES if rng.random() < 0.6 else (_SIDES[rng.integers(2)],):
        raise_ = rng.uniform(40, 104)
        posture.set(f"{side}_shoulder", rng.uniform(-5, 40), raise_, rng.uniform(-30, 30))
        posture.set(f"{side}_collar", 0, 0.25 * raise_)
        posture.set(f"{side}_elbow", rng.uniform(0, 80))
    return posture.angles


def _reach(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.angles = _stand(rng)
    for side in _SIDES if rng.random() < 0.4 else (_SIDES[rng.integers(2)],):
        posture.set(f"{side}_shoulder", rng.uniform(40, 110), rng.uniform(-40, 0))
        posture.set(f"{side}_elbow", rng.uniform(0, 70))
    return posture.angles


def _sit(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    posture.arms(rng, free=0.35)
    apart = rng.uniform(0, 18)
    for side in _SIDES:
        posture.set(f"{side}_hip", rng.uniform(70, 98), apart, rng.normal(0, 6))
        posture.set(f"{side}_knee", rng.uniform(60, 105))
        if rng.random() < 0.6:  # a hand towards the lap
            posture.set(f"{side}_shoulder", rng.uniform(15, 40), rng.uniform(-38, -28))
            posture.set(f"{side}_elbow", rng.uniform(35, 80), 0, rng.uniform(-20, 40))
    posture.set("spine", rng.uniform(0, 15))
    return posture.angles


def _bend(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    posture.arms(rng, free=0.4)
    lean = rng.uniform(15, 60)
    posture.set("spine", 0.5 * lean, rng.normal(0, 5), rng.normal(0, 8))
    posture.set("chest", 0.3 * lean)
    for side in _SIDES:
        posture.set(f"{side}_hip", rng.uniform(10, 60), rng.uniform(0, 12), 5)
        posture.set(f"{side}_knee", rng.uniform(5, 50))
        if rng.random() < 0.7:
            posture.set(f"{side}_shoulder", lean + rng.uniform(0, 35), rng.uniform(-42, -30))
    return posture.angles


def _crouch(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    posture.arms(rng, free=0.5)
    posture.set("spine", rng.uniform(10, 35))
    depth = rng.uniform(60, 115)
    for side in _SIDES:
        posture.set(f"{side}_hip", depth + rng.normal(0, 5), rng.uniform(4, 25), rng.uniform(0, 20))
        posture.set(f"{side}_knee", min(1.15 * depth, 140.0) + rng.normal(0, 5))
        posture.set(f"{side}_ankle", rng.uniform(-20, 10))
        posture.set(f"{side}_shoulder", rng.uniform(30, 80), rng.uniform(-36, -15))
    return posture.angles


def _anything(rng: np.random.Generator) -> np.ndarray:
    """Around the middle of what the joints allow."""
    low, high = posing.LIMITS[:, :, 0], posing.LIMITS[:, :, 1]
    angles: np.ndarray = low + rng.beta(2.5, 2.5, size=low.shape) * (high - low)
    return angles


def _lie(rng: np.random.Generator) -> np.ndarray:
    posture = _Posture()
    posture.look(rng)
    posture.arms(rng, free=0.4)
    for side in _SIDES:
        posture.set(f"{side}_hip", rng.uniform(-5, 40), rng.uniform(0, 15), rng.uniform(0, 20))
        posture.set(f"{side}_knee", rng.uniform(0, 60))
        posture.set(f"{side}_ankle", rng.uniform(0, 30))
    return posture.angles


_Posing = Callable[[np.random.Generator], np.ndarray]
_POSTURES: tuple[tuple[_Posing, float], ...] = (
    (_stand, 0.26),
    (_walk, 0.18),
    (_run, 0.08),
    (_raise_arms, 0.10),
    (_reach, 0.10),
    (_sit, 0.11),
    (_bend, 0.06),
    (_crouch, 0.04),
    (_anything, 0.03),
    (_lie, 0.04),
)


def _sample_orientation(rng: np.random.Generator, posture: _Posing) -> np.ndarray:
    """Axis-angle: turned about the vertical, leaning little, and on the ground for `_lie`."""
    yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.4 else rng.normal(0, 0.7)
    tilt = np.radians(4) * rng.normal(size=2)
    leaning = Rotation.from_rotvec([tilt[0], 0.0, tilt[1]])
    if posture is _lie:
        on_back = -np.pi / 2 if rng.random() < 0.6 else np.pi / 2
        roll = Rotation.from_rotvec([0.0, rng.normal(0, 0.5), 0.0])
        leaning = Rotation.from_rotvec([on_back, 0.0, 0.0]) * roll
    turned: np.ndarray = (Rotation.from_rotvec([0.0, yaw, 0.0]) * leaning).as_rotvec()
    return turned


def limbs_collide(pose: posing.Pose) -> bool:
    """Whether a hand, forearm or shin of the rest build runs into the trunk, head or its pair.

    A coarse test with capsules: it lets skin touch and rejects limbs that pass through the body.
    """
    rest = skeleton.joint_points()
    posed = posing.skin_transforms(rest, posing.Shape(), pose)

    def at(joint: str, point: np.ndarray | None = None) -> np.ndarray:
        index = _JOINT[joint]
        point = rest[index] if point is None else point
        moved: np.ndarray = posed[index, :, :3] @ point + posed[index, :, 3]
        return moved

    def between(start: np.ndarray, end: np.ndarray, count: int = 6) -> np.ndarray:
        points: np.ndarray = start + np.linspace(0, 1, count)[:, None] * (end - start)
        return points

    def clear(a: np.ndarray, b: np.ndarray, distance: float) -> bool:
        return bool(np.linalg.norm(a[:, None] - b[None], axis=-1).min() > distance)

    trunk = np.concatenate(
        [
            between(at(low, rest[_JOINT[low]] + shift), at(high, rest[_JOINT[high]] + shift))
            for low, high in (("pelvis", "spine"), ("spine", "chest"))
            for shift in ([0.07, 0, 0], [-0.07, 0, 0], [0, 0, 0.02])
        ]
    )
    chest = rest[_JOINT["chest"]]
    trunk = np.concatenate(
        [trunk, between(at("chest", chest + [0.06, 0, 0]), at("chest", chest + [0.06, 0.14, 0]))]
        + [between(at("chest", chest - [0.06, 0, 0]), at("chest", chest + [-0.06, 0.14, 0]))]
    )
    head = between(at("head"), at("head", rest[_JOINT["head"]] + [0, 0.1, 0.01]))
    arms, legs = [], []
    for side, sign in (("left", 1.0), ("right", -1.0)):
        wrist = rest[_JOINT[f"{side}_wrist"]]
        tip = wrist + np.array([0.07 * sign, -0.09, 0.035])
        hand = at(f"{side}_wrist", tip)
        elbow = at(f"{side}_elbow")
        # From a third of the forearm on: an elbow may press against the ribs.
        forearm = between(elbow + 0.3 * (at(f"{side}_wrist") - elbow), at(f"{side}_wrist"))
        arms.append(np.concatenate([forearm, between(forearm[-1], hand, 4)]))
        knee, ankle = at(f"{side}_knee"), at(f"{side}_ankle")
        legs.append(between(knee, ankle, 8))
        thigh = between(at(f"{side}_hip"), knee, 7)[2:]
        if not clear(arms[-1], trunk, 0.115) or not clear(arms[-1], head, 0.105):
            return True
        if not clear(arms[-1], thigh, 0.085) or not clear(thigh[-2:], trunk, 0.14):
            return True
    return not (clear(arms[0], arms[1], 0.06) and clear(legs[0], legs[1], 0.09))
