"""The ground that people stand on, and the shadows that they cast on it."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from ktn_jax.data_pipelines.synthetic.render import PosedPerson
from ktn_jax.data_pipelines.synthetic.render_raster import Camera
from ktn_jax.data_pipelines.synthetic.scene_lighting import Lighting

CAMERA_HEIGHTS = (0.25, 3.0)  # metres above the ground that a camera may be at
_LOWEST_SUN = 0.2  # sine of its height; a lower one casts shadows over the whole picture
_CONTACT = 0.12  # metres above the ground within which a body keeps its light from it


@dataclasses.dataclass(frozen=True)
class Ground:
    """A plane in the camera frame: the points p with up . p = -height.

    Attributes:
        up: [3] unit vector.
        height: Of the camera above it, metres.
    """

    up: np.ndarray
    height: float

    @classmethod
    def below(cls, up: np.ndarray, points: np.ndarray) -> "Ground":
        """The plane through the lowest of points [N, 3]."""
        return cls(up, -float((points @ up).min()))

    def drop(self, place: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Moves a person up or down in the picture until they stand here.

        Args:
            place: [3] where the person is.
            points: [N, 3] of the body around that place.

        Returns:
            [3] of the same x and depth, from which the lowest point is on the plane.
        """
        lowest = float((points @ self.up).min())
        moved = place.copy()
        moved[1] = -(self.height + lowest + self.up[0] * place[0] + self.up[2] * place[2])
        moved[1] /= self.up[1]
        return moved

    def shadow_of(self, points: np.ndarray, towards_light: np.ndarray) -> np.ndarray:
        """Projects points [N, 3] onto the plane along the light."""
        above = points @ self.up + self.height
        return np.asarray(points - np.outer(above / (towards_light @ self.up), towards_light))


def shadow_strengths(
    ground: Ground,
    people: Sequence[PosedPerson],
    camera: Camera,
    lighting: Lighting,
) -> np.ndarray:
    """Computes which share of its light each pixel of the ground loses.

    Args:
        ground: Where shadows fall.
        people: Who cast them.
        camera: The camera.
        lighting: The sun's direction and strength. Without sun there are contact shadows only.

    Returns:
        [H, W] float32 in [0, 1]. It counts where the ground is seen.
    """
    shape = (camera.height, camera.width)
    kept = np.ones(shape, np.float32)
    sun, sky = lighting.sun.mean(), lighting.sky.mean()
    for person in people:
        metre = camera.focal / max(float(person.vertices[:, 2].mean()), 0.1)
        if lighting.direction @ ground.up > _LOWEST_SUN:
            cast = ground.shadow_of(person.vertices, lighting.direction)
            mask = _cover(cast, camera, spacing=0.03 * metre, blur=0.02 * metre)
            kept *= 1 - mask * sun / (sun + sky)
        height = person.vertices @ ground.up + ground.height
        touching = person.vertices[height < _CONTACT]
        under = ground.shadow_of(touching, ground.up)
        kept *= 1 - 0.5 * _cover(under, camera, spacing=0.05 * metre, blur=0.05 * metre)
    return 1 - kept


def _cover(points: np.ndarray, camera: Camera, spacing: float, blur: float) -> np.ndarray:
    """Fills the pixels near points [N, 3], which are at most `spacing` pixels apart: [H, W]."""
    mask = np.zeros((camera.height, camera.width), np.uint8)
    xy = camera.project(points[points[:, 2] > camera.near])
    xy = xy[((xy >= 0) & (xy < [camera.width, camera.height])).all(axis=1)].astype(int)
    mask[xy[:, 1], xy[:, 0]] = 1
    radius = max(round(spacing), 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # Outlines stay where the points are.
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc)
    covered: np.ndarray = cv2.GaussianBlur(closed.astype(np.float32), (0, 0), max(blur, 0.6))
    return covered
