"""Lines of equal U and V on a person, by marching squares, as detectron2 draws them."""

import cv2
import numpy as np

from ktn_jax.body import parts

_NUM_LEVELS = 10


def _share(first: np.ndarray, second: np.ndarray, level: float) -> np.ndarray:
    """How far from one corner to the other the level is crossed."""
    return np.asarray((level - first) / (second - first))


# Where a level crosses an edge of cells, (across, down) from the top left corner. The corners
# [4, N] are top left, bottom left, bottom right, top right.
def _on_left(corners: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(corners.shape[1]), _share(corners[0], corners[1], level)


def _on_bottom(corners: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    return _share(corners[1], corners[2], level), np.ones(corners.shape[1])


def _on_right(corners: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(corners.shape[1]), _share(corners[3], corners[2], level)


def _on_top(corners: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    return _share(corners[0], corners[3], level), np.zeros(corners.shape[1])


# The line through a cell by which corners reach the level: 1 top left, 2 bottom left, 4 bottom
# right, 8 top right. The complement of a code has the same line, but for the two saddles.
_LINES = {
    1: ((_on_left, _on_top),),
    2: ((_on_left, _on_bottom),),
    3: ((_on_top, _on_bottom),),
    4: ((_on_bottom, _on_right),),
    6: ((_on_left, _on_right),),
    7: ((_on_top, _on_right),),
    5: ((_on_left, _on_bottom), (_on_top, _on_right)),
    10: ((_on_top, _on_left), (_on_bottom, _on_right)),
}


def draw_contours(
    canvas: np.ndarray,
    patches: np.ndarray,
    uv: np.ndarray,
    box_xywh: np.ndarray,
    colours: np.ndarray,
) -> None:
    """Draws lines of equal U, and over them lines of equal V, in place.

    Ten levels from 0 to 1, those of a patch that lie between its least and greatest value. A cell
    of four pixels is drawn if any of them belongs to the patch.

    Args:
        canvas: uint8 [H, W, 3].
        patches: uint8 [h, w] over the box, 0 for background.
        uv: uint8 [2, h, w] of 255 U and 255 V.
        box_xywh: In pixels. The first pixels stand on its left and upper side, the last ones on
            its right and lower side.
        colours: uint8 [256, 3], of which every level takes one.
    """
    for values in uv.astype(np.float64) / 255:
        for patch in range(1, parts.NUM_PATCHES + 1):
            is_patch = patches == patch
            rows, columns = np.flatnonzero(is_patch.any(1)), np.flatnonzero(is_patch.any(0))
            if len(rows) == 0 or rows[0] == rows[-1] or columns[0] == columns[-1]:
                continue
            window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            own = values[is_patch]
            for level in np.linspace(0, 1, _NUM_LEVELS):
                if not own.min() <= level <= own.max():
                    continue
                lines = _lines_of_level(values[window], is_patch[window], level)
                lines += [columns[0], rows[0]]
                scale = box_xywh[2:] / [patches.shape[1] - 1, patches.shape[0] - 1]
                ends = (box_xywh[:2] + lines * scale).astype(np.int32)
                colour = colours[int(255 * level)].tolist()
                cv2.polylines(canvas, list(ends), isClosed=False, color=colour)


def _lines_of_level(values: np.ndarray, is_patch: np.ndarray, level: float) -> np.ndarray:
    """Lines [N, 2, 2] from (x, y) to (x, y), in pixels of the window."""

    def corners_of(pixels: np.ndarray) -> np.ndarray:
        return np.stack([pixels[:-1, :-1], pixels[1:, :-1], pixels[1:, 1:], pixels[:-1, 1:]])

    corners = corners_of(values)
    codes = np.tensordot([1, 2, 4, 8], corners >= level, axes=1)
    codes = np.where((codes > 7) & (codes != 10), 15 - codes, codes)
    codes[~corners_of(is_patch).any(0)] = 0
    found = []
    for code, lines in _LINES.items():
        y, x = np.nonzero(codes == code)
        for edges in lines:
            ends = [edge(corners[:, y, x], level) for edge in edges]
            found.append(np.stack([np.stack([x + u, y + v], -1) for u, v in ends], axis=1))
    return np.concatenate(found).astype(np.float64)
