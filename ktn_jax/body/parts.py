"""Names and left-right pairs of the surface patches, the coarse body parts and the keypoints.

Left and right are the person's own. Index 0 of every patch and coarse table is the background.
The numbering is that of the DensePose-COCO annotations (`dp_I` and `dp_masks`), the keypoints' that
of COCO.
"""

from collections.abc import Sequence

import numpy as np

NUM_PATCHES = 24  # without background
NUM_COARSE = 14  # without background
NUM_KEYPOINTS = 17
NUM_PATCH_CHANNELS = NUM_PATCHES + 1  # with background, as maps and tables have them
NUM_COARSE_CHANNELS = NUM_COARSE + 1
# In masks of the whole body: on the person, and nobody said on which coarse part.
UNKNOWN_PART = NUM_COARSE + 1

BACKGROUND = 0

PART_GRID = 256
"""Side of the grid over a person's box of annotated points and part masks."""

PATCH_NAMES: tuple[str, ...] = (
    "background",
    "torso_back",
    "torso_front",
    "right_hand",
    "left_hand",
    "left_foot",
    "right_foot",
    "right_upper_leg_back",
    "left_upper_leg_back",
    "right_upper_leg_front",
    "left_upper_leg_front",
    "right_lower_leg_back",
    "left_lower_leg_back",
    "right_lower_leg_front",
    "left_lower_leg_front",
    "left_upper_arm_inside",
    "right_upper_arm_inside",
    "left_upper_arm_outside",
    "right_upper_arm_outside",
    "left_lower_arm_inside",
    "right_lower_arm_inside",
    "left_lower_arm_outside",
    "right_lower_arm_outside",
    "right_head",
    "left_head",
)

COARSE_NAMES: tuple[str, ...] = (
    "background",
    "torso",
    "right_hand",
    "left_hand",
    "left_foot",
    "right_foot",
    "right_upper_leg",
    "left_upper_leg",
    "right_lower_leg",
    "left_lower_leg",
    "left_upper_arm",
    "right_upper_arm",
    "left_lower_arm",
    "right_lower_arm",
    "head",
)

KEYPOINT_NAMES: tuple[str, ...] = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

# COCO's person skeleton, 0-based.
KEYPOINT_SKELETON: tuple[tuple[int, int], ...] = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)


def _frozen(values: Sequence[int]) -> np.ndarray:
    """[N] int32 that nobody can change by accident: these tables are shared by every caller."""
    table = np.asarray(values, np.int32)
    table.flags.writeable = False
    return table


def _other_side(name: str) -> str:
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    if name.startswith("right_"):
        return "left_" + name.removeprefix("right_")
    return name


def _flip_table(names: Sequence[str]) -> np.ndarray:
    """Index of each name's left-right counterpart; names without a side map to themselves."""
    index = {name: position for position, name in enumerate(names)}
    return _frozen([index[_other_side(name)] for name in names])


def _coarse_of_patch(name: str) -> int:
    for position, coarse in enumerate(COARSE_NAMES):
        if name == coarse or name.startswith(coarse + "_"):
            return position
    return COARSE_NAMES.index("head")  # the head is one coarse part with a left and a right patch


FINE_TO_COARSE: np.ndarray = _frozen([_coarse_of_patch(name) for name in PATCH_NAMES])
"""[25] coarse part of each patch."""

PATCH_FLIP: np.ndarray = _flip_table(PATCH_NAMES)
"""[25] patch that takes each patch's place in a mirror. `labels = PATCH_FLIP[labels]`."""

COARSE_FLIP: np.ndarray = _flip_table(COARSE_NAMES)
"""[15] the same for the coarse parts."""

KEYPOINT_FLIP: np.ndarray = _flip_table(KEYPOINT_NAMES)
"""[17] the same for the keypoints. `keypoints = keypoints[KEYPOINT_FLIP]`."""
