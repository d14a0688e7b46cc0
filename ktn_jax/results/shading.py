"""A shaded picture of a surface of which only points are known."""

import cv2
import numpy as np

_HEIGHT = 640  # pixels
_LIGHT = np.array([0.25, 0.35, 0.9])  # from the viewer's upper right
_AMBIENT = 0.35


def shaded_points(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Draws a surface through points, from the front and lit, on white.

    Every point is a disc wide enough to close the surface; the light falls on the slope of the
    smoothed depth.

    Args:
        points: [N, 3] of x to the right, y up and z to the viewer, in one unit.
        colours: [N, 3] RGB, 0 to 1.

    Returns:
        uint8 [640, W, 3] RGB.
    """
    low, high = points.min(0), points.max(0)
    across, up, _ = np.maximum(high - low, 1e-9)
    # Discs of twice the distance of points that cover the box once: nothing behind shows through.
    radius = max(2, round(1.8 * _HEIGHT * float(np.sqrt(across / up / len(points)))))
    margin = radius + 2
    scale = (_HEIGHT - 2 * margin) / up
    width = int(across * scale) + 2 * margin
    x = np.rint((points[:, 0] - low[0]) * scale).astype(int) + margin
    y = np.rint((high[1] - points[:, 1]) * scale).astype(int) + margin
    shown = np.full((_HEIGHT, width), -1, np.int32)
    for index in np.argsort(points[:, 2]):  # near ones last
        cv2.circle(shown, (int(x[index]), int(y[index])), radius, int(index), cv2.FILLED)
    is_surface = shown >= 0
    depth = np.where(is_surface, points[shown, 2] * scale, 0).astype(np.float32)
    weight = is_surface.astype(np.float32)
    blurred, share = (cv2.GaussianBlur(pixels, (0, 0), radius) for pixels in (depth, weight))
    smooth = blurred / np.maximum(share, 1e-3)
    down, right = (np.asarray(slope) for slope in np.gradient(smooth))
    normals = np.stack([-right, down, np.ones_like(smooth)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    lit = _AMBIENT + (1 - _AMBIENT) * np.clip(normals @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)
    picture = np.ones((_HEIGHT, width, 3))
    picture[is_surface] = (colours[shown] * lit[..., None])[is_surface]
    return np.asarray(np.rint(255 * picture), np.uint8)
