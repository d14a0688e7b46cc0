"""Measures of posed bodies, by their keypoints."""

import numpy as np

from ktn_jax.body import parts

_HEAD_AND_SOLES = 0.22  # metres of a stature above the nose and below the ankles


def measure_stature(keypoints: np.ndarray) -> float:
    """Estimates the standing height in metres from the keypoints [17, 3] of any pose."""
    named = dict(zip(parts.KEYPOINT_NAMES, keypoints, strict=True))

    def middle(joint: str) -> np.ndarray:
        point: np.ndarray = (named["left_" + joint] + named["right_" + joint]) / 2
        return point

    leg = np.linalg.norm(named["left_hip"] - named["left_knee"])
    leg += np.linalg.norm(named["left_knee"] - named["left_ankle"])
    trunk = np.linalg.norm(middle("shoulder") - middle("hip"))
    neck = np.linalg.norm(middle("shoulder") - (middle("ear") + named["nose"]) / 2)
    return float(leg + trunk + neck + _HEAD_AND_SOLES)


def measure_trunk(keypoints: np.ndarray) -> tuple[float, float]:
    """Measures how a trunk stands in the body's frame (y up, +z to the camera).

    Args:
        keypoints: [17, 3] metres.

    Returns:
        Degrees, both in [0, 180]: turned about the vertical away from the camera, and leaning.
    """
    named = dict(zip(parts.KEYPOINT_NAMES, keypoints, strict=True))
    across = named["left_shoulder"] - named["right_shoulder"]
    up = (named["left_shoulder"] + named["right_shoulder"]) / 2
    up = up - (named["left_hip"] + named["right_hip"]) / 2
    ahead = np.cross(across, up)
    turned = abs(np.degrees(np.arctan2(ahead[0], ahead[2])))
    leaning = np.degrees(np.arctan2(np.hypot(up[0], up[2]), up[1]))
    return float(turned), float(leaning)
