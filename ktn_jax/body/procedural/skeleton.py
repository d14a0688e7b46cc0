"""The procedural body's skeleton: joints, keypoints and skinning weights of the control cage."""

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.procedural import cage

JOINT_NAMES: tuple[str, ...] = (
    "pelvis",
    "spine",
    "chest",
    "neck",
    "head",
    "left_collar",
    "right_collar",
    *parts.KEYPOINT_NAMES[5:],  # shoulders to ankles
)
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}

_PARENT_NAMES = {
    "pelvis": None,
    "spine": "pelvis",
    "chest": "spine",
    "neck": "chest",
    "head": "neck",
    "collar": "chest",
    "shoulder": "collar",
    "elbow": "shoulder",
    "wrist": "elbow",
    "hip": "pelvis",
    "knee": "hip",
    "ankle": "knee",
}


def _mirror_name(name: str) -> str:
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return other + name.removeprefix(side)
    return name


def _parent(name: str) -> int:
    side = name.split("_")[0] + "_" if "_" in name else ""
    parent = _PARENT_NAMES[name.removeprefix(side)]
    if parent is None:
        return -1
    return JOINT[side + parent] if side + parent in JOINT else JOINT[parent]


PARENTS: tuple[int, ...] = tuple(_parent(name) for name in JOINT_NAMES)
"""Parent of each joint, -1 at the pelvis; parents come before children."""

JOINT_FLIP: np.ndarray = np.array([JOINT[_mirror_name(name)] for name in JOINT_NAMES])

_LEFT_JOINT_POINTS = {
    "pelvis": (0.0, 0.945, -0.01),
    "spine": (0.0, 1.085, -0.015),
    "chest": (0.0, 1.245, -0.02),
    "neck": (0.0, 1.475, -0.025),
    "head": (0.0, 1.545, -0.005),
    "left_collar": (0.045, 1.43, -0.02),
    "left_shoulder": tuple(cage.SHOULDER_POINT),
    "left_elbow": tuple(cage.ELBOW_POINT),
    "left_wrist": tuple(cage.WRIST_POINT),
    "left_hip": (0.092, 0.905, -0.01),
    "left_knee": (0.107, 0.480, 0.0),
    "left_ankle": (0.116, 0.090, -0.018),
}


def joint_points() -> np.ndarray:
    """[J, 3] rest positions of the joints in metres."""
    points = []
    for name in JOINT_NAMES:
        if name in _LEFT_JOINT_POINTS:
            points.append(np.array(_LEFT_JOINT_POINTS[name], float))
        else:
            points.append(np.array(_LEFT_JOINT_POINTS[_mirror_name(name)]) * [-1.0, 1.0, 1.0])
    return np.array(points)


# Keypoints that hang off a joint: the joint that carries them and their rest position.
_LEFT_KEYPOINTS = {
    "nose": ("head", (0.0, 1.579, 0.126)),
    "left_eye": ("head", (0.034, 1.620, 0.088)),
    "left_ear": ("head", (0.080, 1.606, -0.006)),
    "left_shoulder": ("left_shoulder", (0.172, 1.395, -0.022)),
    "left_elbow": ("left_elbow", tuple(cage.ELBOW_POINT)),
    "left_wrist": ("left_wrist", tuple(cage.WRIST_POINT)),
    "left_hip": ("left_hip", (0.095, 0.905, -0.01)),
    "left_knee": ("left_knee", (0.107, 0.480, 0.0)),
    "left_ankle": ("left_ankle", (0.116, 0.090, -0.018)),
}


def keypoint_anchors() -> tuple[np.ndarray, np.ndarray]:
    """The carrying joint [17] and the rest position [17, 3] in metres of the COCO keypoints."""
    joints, points = [], []
    for name in parts.KEYPOINT_NAMES:
        sign = 1.0 if name in _LEFT_KEYPOINTS else -1.0
        joint, point = _LEFT_KEYPOINTS[name if sign > 0 else _mirror_name(name)]
        joints.append(JOINT[joint if sign > 0 else _mirror_name(joint)])
        points.append(np.array(point) * [sign, 1.0, 1.0])
    return np.array(joints), np.array(points)


def cage_weights(keys: tuple[cage.Key, ...]) -> np.ndarray:
    """[N, J] skinning weights of cage vertices, rows summing to 1 and exactly symmetric."""
    weights = np.zeros((len(keys), len(JOINT_NAMES)))
    for row, key in enumerate(keys):
        right = key[0] == "rarm" or (key[0] == "body" and key[1] < 0)
        for name, weight in _left_weights(cage.mirror_key(key) if right else key).items():
            weights[row, JOINT[_mirror_name(name) if right else name]] += weight
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _left_weights(key: cage.Key) -> dict[str, float]:
    """Weights of a vertex with x >= 0, not yet normalised."""
    piece, x, y, z = key
    if piece == "larm":
        return _chain(x, _ARM_CHAIN)
    if y >= 6 and x <= 2:
        return _chain(y, _HEAD_CHAIN)
    if x >= 1 and (y < 0 or z > 1):
        return _chain(-y, _LEG_CHAIN)
    if y == 0:
        if x == 0:
            return {"pelvis": 1.0, "left_hip": 0.14, "right_hip": 0.14}
        return {"pelvis": 0.5, "left_hip": 0.62}
    trunk = _chain(y, _TRUNK_CHAIN)
    if y == 1 and x >= 2:
        trunk = {"pelvis": 0.84, "left_hip": 0.16}
    if y >= 4 and x >= 3:
        arm = {4: 0.30, 5: 0.30, 6: 0.38}[y] if x == 4 else {4: 0.06, 5: 0.1, 6: 0.1}[y]
        collar = {4: 0.12, 5: 0.42, 6: 0.46}[y]
        trunk = {name: weight * (1 - arm - collar) for name, weight in trunk.items()}
        trunk |= {"left_shoulder": arm, "left_collar": collar}
    return trunk


# Rows of the cage and the share of each joint there; between listed rows, linear.
_Chain = tuple[tuple[float, dict[str, float]], ...]

_ARM_CHAIN: _Chain = (
    (1, {"left_shoulder": 0.80, "left_collar": 0.17, "chest": 0.03}),
    (2, {"left_shoulder": 1.0}),
    (4, {"left_shoulder": 0.90, "left_elbow": 0.10}),
    (5, {"left_shoulder": 0.5, "left_elbow": 0.5}),
    (6, {"left_shoulder": 0.07, "left_elbow": 0.93}),
    (8, {"left_elbow": 0.97, "left_wrist": 0.03}),
    (9, {"left_elbow": 0.5, "left_wrist": 0.5}),
    (10, {"left_wrist": 1.0}),
)
_LEG_CHAIN: _Chain = (
    (0, {"left_hip": 0.9, "pelvis": 0.1}),
    (1, {"left_hip": 1.0}),
    (4, {"left_hip": 0.94, "left_knee": 0.06}),
    (5, {"left_hip": 0.5, "left_knee": 0.5}),
    (6, {"left_hip": 0.06, "left_knee": 0.94}),
    (9, {"left_knee": 0.95, "left_ankle": 0.05}),
    (10, {"left_knee": 0.5, "left_ankle": 0.5}),
    (11, {"left_ankle": 1.0}),
)
_TRUNK_CHAIN: _Chain = (
    (1, {"pelvis": 1.0}),
    (2, {"pelvis": 0.62, "spine": 0.38}),
    (3, {"pelvis": 0.06, "spine": 0.78, "chest": 0.16}),
    (4, {"spine": 0.28, "chest": 0.72}),
    (5, {"chest": 1.0}),
)
_HEAD_CHAIN: _Chain = (
    (6, {"chest": 0.68, "neck": 0.32}),
    (7, {"chest": 0.08, "neck": 0.74, "head": 0.18}),
    (8, {"neck": 0.22, "head": 0.78}),
    (9, {"head": 1.0}),
)


def _chain(row: float, chain: _Chain) -> dict[str, float]:
    rows = np.array([place for place, _ in chain], float)
    names = sorted({name for _, shares in chain for name in shares})
    table = np.array([[shares.get(name, 0.0) for name in names] for _, shares in chain])
    mixed = {name: float(np.interp(row, rows, table[:, k])) for k, name in enumerate(names)}
    return {name: weight for name, weight in mixed.items() if weight > 0}
