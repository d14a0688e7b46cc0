"""The control cage of the procedural body: a lattice of quads bent into the shape of a person.

Vertices are named by lattice keys, so pieces that share a key are glued and the mirror of a key is
its negation in x. Only the left half (x >= 0) is written down; the right half is its reflection.
The body frame is metres, x to the person's left, y up, z forward, feet at y = 0.

Lattice: torso x in -4..4, y in 0..6, z in -1..1; the neck leaves through x in -2..2 of its top and
climbs to the crown; each arm leaves by a 2 x 2 hole in the side and has keys ("larm", row, y, z)
from row 1 on; each leg leaves through x in 1..4 of the bottom and walks down to the foot.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from ktn_jax.body import parts

Key = tuple[str, int, int, int]
_Cell = tuple[int, int, int]

CROWN = 14  # lattice height of the crown
HIP, KNEE, ANKLE, SOLE = 0, -5, -10, -12  # lattice heights of the leg's rings
TOE = 4  # lattice depth of the toes
ELBOW, WRIST, FINGERTIP = 5, 9, 13  # rows of the arm
THUMB = 3  # lattice depth of the thumb's tip; it leaves the hand between rows WRIST+1 and WRIST+2

SHOULDER_POINT = np.array([0.168, 1.395, -0.022])
ELBOW_POINT = np.array([0.375, 1.215, -0.03])
WRIST_POINT = np.array([0.535, 1.055, 0.055])
FINGERTIP_POINT = np.array([0.635, 0.935, 0.105])

# Torso rings: height, half width, depth in front of and behind the body's z = 0.
_TORSO = np.array(
    [
        [0.885, 0.180, 0.085, 0.115],
        [0.955, 0.176, 0.094, 0.130],
        [1.035, 0.160, 0.100, 0.108],
        [1.130, 0.143, 0.098, 0.090],
        [1.240, 0.157, 0.116, 0.106],
        [1.345, 0.172, 0.118, 0.118],
        [1.450, 0.150, 0.060, 0.088],
    ]
)
# Neck and head rings from lattice height 6 on: height, half width, front z, back z.
_HEAD = np.array(
    [
        [1.470, 0.078, 0.042, -0.084],
        [1.508, 0.060, 0.044, -0.066],
        [1.530, 0.056, 0.084, -0.064],
        [1.550, 0.066, 0.106, -0.078],
        [1.583, 0.072, 0.110, -0.093],
        [1.618, 0.076, 0.108, -0.101],
        [1.656, 0.079, 0.106, -0.102],
        [1.695, 0.075, 0.092, -0.093],
        [1.718, 0.052, 0.060, -0.066],
    ]
)
# Leg rings from the hip's down: height, centre x, centre z, half width, half depth.
_LEG = np.array(
    [
        [0.880, 0.096, -0.018, 0.094, 0.108],
        [0.785, 0.094, -0.012, 0.089, 0.100],
        [0.705, 0.095, -0.004, 0.083, 0.090],
        [0.625, 0.098, 0.000, 0.076, 0.081],
        [0.550, 0.103, 0.000, 0.067, 0.071],
        [0.478, 0.107, 0.002, 0.060, 0.066],
        [0.410, 0.108, -0.006, 0.059, 0.064],
        [0.335, 0.110, -0.016, 0.060, 0.066],
        [0.255, 0.112, -0.018, 0.053, 0.057],
        [0.170, 0.114, -0.018, 0.041, 0.044],
        [0.095, 0.116, -0.016, 0.038, 0.045],
    ]
)
# Foot sections from the heel (lattice z = -1) to the toes: z, inner x, outer x, height of the top.
_FOOT = np.array(
    [
        [-0.080, 0.084, 0.146, 0.090],
        [-0.020, 0.074, 0.154, 0.095],
        [0.035, 0.068, 0.164, 0.090],
        [0.090, 0.064, 0.174, 0.064],
        [0.145, 0.060, 0.184, 0.047],
        [0.200, 0.070, 0.174, 0.034],
    ]
)
# Arm rings from row 1 on: fraction of the way through the bone, half height, half depth.
_ARM = np.array(
    [
        [0.16, 0.066, 0.066],
        [0.38, 0.055, 0.057],
        [0.60, 0.049, 0.052],
        [0.82, 0.043, 0.046],
        [1.00, 0.041, 0.044],
        [1.25, 0.043, 0.046],
        [1.50, 0.040, 0.043],
        [1.75, 0.033, 0.036],
        [2.00, 0.027, 0.034],
        [2.22, 0.025, 0.044],
        [2.52, 0.022, 0.050],
        [2.80, 0.018, 0.046],
        [3.06, 0.012, 0.032],
    ]
)


@dataclasses.dataclass(frozen=True)
class Cage:
    """Quads of the whole body, with what the refined surface inherits from them.

    Attributes:
        keys: one lattice key per vertex.
        positions: [N, 3] metres.
        quads: [Q, 4] vertex indices, counter-clockwise seen from outside.
        quad_patch: [Q] patch 1..24.
        cuts: edges, as pairs of vertex indices, where a patch is slit so that it unrolls.
    """

    keys: tuple[Key, ...]
    positions: np.ndarray
    quads: np.ndarray
    quad_patch: np.ndarray
    cuts: tuple[tuple[int, int], ...]

    def index(self, key: Key) -> int:
        """Vertex of a lattice key; KeyError where the cage has none."""
        return {k: i for i, k in enumerate(self.keys)}[key]


def mirror_key(key: Key) -> Key:
    """The key of the reflected vertex. Arms are pieces of their own, "l..." and "r..."."""
    piece, x, y, z = key
    if piece == "body":
        return (piece, -x, y, z)
    return (("r" if piece[0] == "l" else "l") + piece[1:], x, y, z)


def build_cage() -> Cage:
    """Builds both halves of the cage.

    Returns:
        The cage; its vertex order is arbitrary but reproducible.
    """
    left = _left_faces()
    keys: dict[Key, int] = {}
    quads, patches = [], []
    for corners, patch in left:
        mirrored = [mirror_key(key) for key in reversed(corners)]
        for face, label in ((corners, patch), (mirrored, int(parts.PATCH_FLIP[patch]))):
            quads.append([keys.setdefault(key, len(keys)) for key in face])
            patches.append(label)
    positions = np.array([_position(key) for key in keys])
    cuts = []
    for path in _left_cuts():
        for side in (path, [mirror_key(key) for key in path]):
            cuts += [(keys[a], keys[b]) for a, b in zip(side[:-1], side[1:], strict=True)]
    return Cage(
        tuple(keys), positions, np.asarray(quads, np.int32), np.asarray(patches), tuple(cuts)
    )


def _left_faces() -> list[tuple[list[Key], int]]:
    """Faces of the left half: lattice keys, counter-clockwise from outside, and the patch."""
    torso = {(x, y, z) for x in range(4) for y in range(6) for z in (-1, 0)}
    head = {(x, y, z) for x in range(2) for y in range(6, CROWN) for z in (-1, 0)}
    leg = {(x, y, z) for x in range(1, 4) for y in range(SOLE, 0) for z in (-1, 0)}
    foot = {(x, y, z) for x in range(1, 4) for y in range(SOLE, ANKLE) for z in range(1, TOE)}
    arm = {(row, y, z) for row in range(FINGERTIP) for y in (-1, 0) for z in (-1, 0)}
    arm |= {(WRIST + 1, y, z) for y in (-1, 0) for z in range(1, THUMB)}
    faces = []
    for cell, axis, side, corners in _boundary_faces(torso | head | leg | foot):
        on_mirror_plane = axis == 0 and all(corner[0] == 0 for corner in corners)
        in_arm_hole = axis == 0 and side > 0 and cell[0] == 3 and cell[1] in (4, 5)
        if not on_mirror_plane and not in_arm_hole:
            faces.append(([("body", *corner) for corner in corners], _body_patch(cell)))
    for cell, axis, side, corners in _boundary_faces(arm):
        if not (axis == 0 and side < 0 and cell[0] == 0):
            keys = [_arm_key(*corner) for corner in corners]
            faces.append((keys, _arm_patch(cell, axis, side)))
    return faces


def _boundary_faces(
    cells: set[_Cell],
) -> Iterator[tuple[_Cell, int, int, list[_Cell]]]:
    """Yields (cell, axis, side, corners) of every cell face with nothing behind it."""
    for cell in sorted(cells):
        for axis in range(3):
            for side in (-1, 1):
                neighbour = list(cell)
                neighbour[axis] += side
                if tuple(neighbour) in cells:
                    continue
                first, second = (axis + 1) % 3, (axis + 2) % 3
                corners: list[_Cell] = []
                for step_1, step_2 in ((0, 0), (1, 0), (1, 1), (0, 1))[::side]:
                    corner = list(cell)
                    corner[axis] += side > 0
                    corner[first] += step_1
                    corner[second] += step_2
                    corners.append((corner[0], corner[1], corner[2]))
                yield cell, axis, side, corners


def _arm_key(row: int, y: int, z: int) -> Key:
    """Row 0 is the rim of the hole in the torso's side."""
    return ("body", 4, 5 + y, z) if row == 0 else ("larm", row, y, z)


def _body_patch(cell: tuple[int, int, int]) -> int:
    _, y, z = cell
    names = parts.PATCH_NAMES
    side = "front" if z >= 0 else "back"
    if y >= 6:
        return names.index("left_head")
    if y >= 1 or (y == 0 and side == "front"):
        return names.index(f"torso_{side}")
    if y >= KNEE:  # the buttocks belong to the back of the leg, as in the published charts
        return names.index(f"left_upper_leg_{side}")
    return names.index("left_foot" if y < ANKLE else f"left_lower_leg_{side}")


def _arm_patch(cell: tuple[int, int, int], axis: int, side: int) -> int:
    row, _, z = cell
    names = parts.PATCH_NAMES
    if row >= WRIST:
        return names.index("left_hand")
    if row < ELBOW:
        return names.index("left_upper_arm_inside" if z >= 0 else "left_upper_arm_outside")
    # The seam turns an eighth at the elbow: the lower arm's inside faces forward and down.
    inside = (axis == 2 and side > 0) or (axis == 1 and side < 0)
    return names.index("left_lower_arm_inside" if inside else "left_lower_arm_outside")


def _left_cuts() -> list[list[Key]]:
    """Slits that let a tube with a closed end unroll: the hand's thumb side, the foot's outside."""
    hand = [("larm", row, 0, 1) for row in (WRIST, WRIST + 1)]
    hand += [("larm", WRIST + 1, 0, z) for z in range(2, THUMB + 1)]
    hand += [("larm", WRIST + 2, 0, z) for z in range(THUMB, 0, -1)]
    hand += [("larm", row, 0, 1) for row in range(WRIST + 3, FINGERTIP + 1)]
    hand += [("larm", FINGERTIP, 0, z) for z in (0, -1)]
    foot = [("body", 4, y, -1) for y in range(ANKLE, SOLE - 1, -1)]
    foot += [("body", 4, SOLE, z) for z in range(0, TOE + 1)]
    foot += [("body", x, SOLE, TOE) for x in (3, 2, 1)]
    return [hand, foot]


def _position(key: Key) -> np.ndarray:
    """[3] metres of a lattice vertex."""
    piece, x, y, z = key
    if piece == "rarm" or (piece == "body" and x < 0):
        return _position(mirror_key(key)) * [-1.0, 1.0, 1.0]
    if piece == "larm":
        return _arm_position(x, y, z)
    if y >= 6 and x <= 2:
        return _head_position(x, y, z)
    if y >= 4 and x == 4:
        return _arm_hole_position(y, z)
    if y == 6:
        return np.array([0.118, 1.468 - 0.012 * abs(z), -0.024 + 0.058 * z])
    if y <= 0 and x >= 1:
        return _leg_position(x, y, z)
    if y == 0:
        return np.array([0.0, (0.840, 0.795, 0.820)[1 - z], (0.074, -0.005, -0.1)[1 - z]])
    height, half_width, front, back = _TORSO[y]
    angle, stretch = _ring(x, z, -4, 4)
    # A power below one squares the cross-section: trunks are boxier than an ellipse.
    across, deep = (math.copysign(abs(c) ** 0.86, c) for c in (math.cos(angle), math.sin(angle)))
    return np.array([half_width * across, height, (front if z > 0 else back) * deep]) * [
        stretch, 1.0, stretch
    ]  # fmt: skip


def _ring(x: int, z: int, x_min: int, x_max: int) -> tuple[float, float]:
    """Angle of a lattice vertex on its ring, from +x over +z, and the ring's stretch.

    One round of Catmull-Clark pulls a ring of step t in by (3 + cos t) / 4; the stretch undoes it.
    """
    half_turn = x_max - x_min + 2
    index = 0 if (z == 0 and x == x_max) else half_turn if z == 0 else x_max - x + 1
    angle = math.pi * index / half_turn
    return (-angle if z < 0 else angle), 4 / (3 + math.cos(math.pi / half_turn))


def _head_position(x: int, y: int, z: int) -> np.ndarray:
    height, half_width, front, back = _HEAD[y - 6]
    if z == 0 and abs(x) < 2:  # the crown's middle row
        return np.array([half_width * x * 0.6, height + 0.018, 0.0])
    angle, stretch = _ring(x, z, -2, 2)
    point = np.array([half_width * math.cos(angle), height, 0.0])
    point[2] = (front + back) / 2 + (front - back) / 2 * math.sin(angle)
    point[0] *= stretch
    point[1] -= (0.30, 0.22, 0.30, 0.16, 0, 0, 0, 0, 0)[y - 6] * (point[2] + 0.02)
    nose = {(0, 9): (0.003, 0.0), (0, 10): (-0.004, 0.040), (0, 11): (0.0, 0.004)}
    if z == 1 and (x, y) in nose:
        point[1:] += nose[(x, y)]
    if z == 1 and (x, y) == (1, 11):
        point[2] -= 0.008  # eye sockets
    if z == 0 and y in (10, 11):
        point += [0.015, 0.004, -0.010]  # ears
    return point


def _arm_hole_position(y: int, z: int) -> np.ndarray:
    angle = math.atan2(y - 5, z)
    return np.array([0.168, 1.372, -0.022]) + [
        -0.012 * math.sin(angle), 0.088 * math.sin(angle), 0.074 * math.cos(angle)
    ]  # fmt: skip


def _arm_position(row: int, y: int, z: int) -> np.ndarray:
    along, half_height, half_depth = _ARM[row - 1]
    centre, forward, up = _arm_frame(along)
    depth = np.cross(forward, up)
    if z >= 2:
        reach = {2: 0.030, 3: 0.062}[z]
        root = (_arm_position(WRIST + 1, 0, 1) + _arm_position(WRIST + 2, 0, 1)) / 2
        tip = root + reach * (0.66 * depth + 0.72 * forward - 0.2 * up)
        sideways = forward * 0.66 - depth * 0.72
        point: np.ndarray = tip + (row - WRIST - 1.5) * 0.042 * sideways + y * 0.019 * up
        return point
    if y == 0 and z == 0:  # the middle of the fingertips' cap
        return centre
    angle = math.atan2(y, z)
    stretch = 4 / (3 + math.cos(math.pi / 4))
    offset = half_height * math.sin(angle) * up + half_depth * math.cos(angle) * depth
    on_ring: np.ndarray = centre + stretch * offset
    return on_ring


def _arm_frame(along: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, direction and upward normal at a fraction of the arm: 1 elbow, 2 wrist, 3 tip."""
    points = [SHOULDER_POINT, ELBOW_POINT, WRIST_POINT, FINGERTIP_POINT]
    bone = min(int(along), 2)
    centre = points[bone] + (along - bone) * (points[bone + 1] - points[bone])
    directions = [points[i + 1] - points[i] for i in range(3)]
    directions = [d / np.linalg.norm(d) for d in directions]
    # Rings at a joint stand between both bones, so that no two rings cross there.
    blend = min(max(along, 0.5), 2.5) - 0.5
    lower = min(int(blend), 1)
    forward = directions[lower] + (blend - lower) * (directions[lower + 1] - directions[lower])
    forward /= np.linalg.norm(forward)
    up = np.array([0.0, 1.0, 0.0]) - forward[1] * forward
    return centre, forward, up / np.linalg.norm(up)


def _leg_position(x: int, y: int, z: int) -> np.ndarray:
    if y < ANKLE or z > 1:
        return _foot_position(x, y, z)
    height, centre_x, centre_z, half_width, half_depth = _LEG[-y]
    angle, stretch = _ring(x, z, 1, 4)
    point = np.array([math.cos(angle) * half_width, 0.0, math.sin(angle) * half_depth]) * stretch
    point += [centre_x, height, centre_z]
    if y == HIP:  # the groin line falls from the hip bone to the crotch
        point[1] += 0.055 * math.cos(angle)
        point[0] = max(point[0], 0.010)
    return point


def _foot_position(x: int, y: int, z: int) -> np.ndarray:
    depth, inner, outer, top = _FOOT[z + 1]
    across = (x - 1) / 3
    level = {SOLE: 0.0, SOLE + 1: 0.45, ANKLE: 1.0}[y]
    middle = (inner + outer) / 2
    width = (outer - inner) * (1.16 if y == SOLE + 1 else 1.05 if y == SOLE else 0.8)
    height = top * level * (1 - 0.25 * across * (z > 1))
    toes = -0.03 * across if z == TOE else 0.0  # the little toe sits further back
    overhang = (-0.012, 0.0, 0.012)[(z == TOE) - (z == -1) + 1] * (y == SOLE + 1)
    return np.array([middle + width * (across - 0.5), height - 0.004, depth + toes + overhang])
