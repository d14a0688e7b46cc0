"""Rotated views of a photo: the picture, boxes, and charts turned back.

Coordinates are continuous pixels, x to the right and y down: the centre of the first pixel is
(0.5, 0.5), and an image of width W ends at x = W.
"""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Turns images of one size about their centre, onto a canvas that holds all of the image.

    Attributes:
        size_hw: (height, width) of the images.
        degrees: counterclockwise, as the viewer sees it.
    """

    size_hw: tuple[int, int]
    degrees: float

    @property
    def _matrix(self) -> np.ndarray:
        """[2, 2] that maps offsets (x, y) from the centre."""
        angle = np.deg2rad(self.degrees)
        cosine, sine = np.cos(angle), np.sin(angle)
        return np.array([[cosine, sine], [-sine, cosine]])

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Size of the rotated image; black where there is no image."""
        height, width = self.size_hw
        canvas_width, canvas_height = np.abs(self._matrix) @ (width, height)
        return max(round(canvas_height), 1), max(round(canvas_width), 1)

    def points(self, points_xy: np.ndarray) -> np.ndarray:
        """Where points [..., 2] of the image are on the canvas."""
        centre, new_centre = (np.array([w, h]) / 2 for h, w in (self.size_hw, self.canvas_hw))
        moved: np.ndarray = (points_xy - centre) @ self._matrix.T + new_centre
        return moved

    def boxes(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """The boxes around rotated boxes [N, 4]: float32 [N, 4] on the canvas."""
        x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes_xyxy, np.float64), -1, 0)
        corners = np.stack([np.stack([x, y], -1) for x in (x0, x1) for y in (y0, y1)])
        moved = self.points(corners)
        return np.concatenate([moved.min(0), moved.max(0)], axis=-1).astype(np.float32)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Rotates an image uint8 [H, W, 3] of `size_hw`, bilinearly."""
        height, width = self.canvas_hw
        # OpenCV counts pixels by their centres.
        shift = self.points(np.array([0.5, 0.5])) - 0.5
        matrix = np.concatenate([self._matrix, shift[:, None]], axis=1)
        rotated = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return np.asarray(rotated)

    def turn_back(
        self, maps: np.ndarray, boxes_xyxy: np.ndarray, canvas_boxes_xyxy: np.ndarray
    ) -> np.ndarray:
        """Reads maps of rotated boxes at the cells of the boxes themselves, bilinearly.

        Args:
            maps: [N, S, S, C] over `canvas_boxes_xyxy`.
            boxes_xyxy: [N, 4] in the image.
            canvas_boxes_xyxy: [N, 4], which hold them: what `boxes` gives for them.

        Returns:
            [N, S, S, C] over `boxes_xyxy`, of the type of `maps`.
        """
        side = maps.shape[1]
        fractions = (np.arange(side) + 0.5) / side
        turned = np.empty_like(maps)
        for own, box, canvas_box, result in zip(
            maps, boxes_xyxy, canvas_boxes_xyxy, turned, strict=True
        ):
            x, y = (box[i] + fractions * (box[i + 2] - box[i]) for i in (0, 1))
            at = self.points(np.stack(np.meshgrid(x, y), axis=-1))
            extent = np.maximum(canvas_box[2:] - canvas_box[:2], 1e-6)
            result[:] = _read(own, (at - canvas_box[:2]) / extent * side - 0.5)
        return turned


def _read(maps: np.ndarray, positions_xy: np.ndarray) -> np.ndarray:
    """Bilinear values of maps [S, S, C] at cell positions [..., 2], clamped to the maps."""
    positions = np.clip(positions_xy, 0, maps.shape[0] - 1)
    low = np.minimum(positions.astype(int), max(maps.shape[0] - 2, 0))
    high = np.minimum(low + 1, maps.shape[0] - 1)
    weight = (positions - low).astype(maps.dtype)[..., None]
    (x0, y0), (x1, y1) = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)
    wx, wy = weight[..., 0, :], weight[..., 1, :]
    top = (1 - wx) * maps[y0, x0] + wx * maps[y0, x1]
    bottom = (1 - wx) * maps[y1, x0] + wx * maps[y1, x1]
    values: np.ndarray = (1 - wy) * top + wy * bottom
    return values
