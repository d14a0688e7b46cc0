"""Which points of a grid triangles of a plane cover, for many triangles at once, in NumPy.

Every triangle is cut into rows and every row into cells, so that the arrays hold exactly the cells
whose centre is covered, however large or small the triangles are; no Python loop runs over
triangles. The cell of row r and column c covers [c, c + 1) x [r, r + 1), its centre is
(c + 0.5, r + 0.5).
"""

from typing import NamedTuple

import numpy as np

# Crossings of an edge that two triangles share are rounded differently in each; a centre on the
# edge must belong to at least one of them, or a crack shows.
_EDGE_TOLERANCE = 1e-9
_MIN_DOUBLED_AREA = 1e-9


class Covered(NamedTuple):
    """Cells that triangles cover, ordered by triangle.

    Attributes:
        triangle: [N] int64.
        row: [N] int64.
        column: [N] int64.
        barycentric: [N, 3] float64 of the cell's centre, within [0, 1], sum 1.
    """

    triangle: np.ndarray
    row: np.ndarray
    column: np.ndarray
    barycentric: np.ndarray


def expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for counts [N], the item each unit belongs to and its rank within the item."""
    item = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return item, np.arange(len(item)) - np.repeat(first, counts)


def row_spans(
    x: np.ndarray, y: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts triangles into rows of cells.

    Args:
        x: [3, T] corners, counter-clockwise for a viewer for whom y runs down.
        y: [3, T].
        width: Columns of the grid.
        height: Rows of the grid.

    Returns:
        Triangle, row, first column and number of columns, which may be 0, of each span.
    """
    top, bottom = np.minimum.reduce(y), np.maximum.reduce(y)
    first_row = np.clip(np.ceil(top - 0.5 - _EDGE_TOLERANCE), 0, height).astype(np.int64)
    last_row = np.clip(np.floor(bottom - 0.5 + _EDGE_TOLERANCE), -1, height - 1)
    counts = np.maximum(last_row.astype(np.int64) - first_row + 1, 0)
    triangle, rank = expand(counts)
    row = first_row[triangle] + rank
    centre_y = row + 0.5
    left = np.full(len(row), -np.inf)
    right = np.full(len(row), np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        rise = y[end] - y[start]
        slope = (x[end] - x[start]) / np.where(rise == 0, 1, rise)
        # One rule for every edge: downward edges bound on the left, upward ones on the right, and
        # horizontal ones not at all, because the range of rows already does.
        crossing = x[start][triangle] + (centre_y - y[start][triangle]) * slope[triangle]
        rise = rise[triangle]
        np.maximum(left, np.where(rise > 0, crossing, -np.inf), out=left)
        np.minimum(right, np.where(rise < 0, crossing, np.inf), out=right)
    first = np.clip(np.ceil(left - 0.5 - _EDGE_TOLERANCE), 0, width).astype(np.int64)
    last = np.clip(np.floor(right - 0.5 + _EDGE_TOLERANCE), -1, width - 1).astype(np.int64)
    return triangle, row, first, np.maximum(last - first + 1, 0)


def cover(corners: np.ndarray, size_hw: tuple[int, int]) -> Covered:
    """Lists the cells whose centre each triangle covers.

    Args:
        corners: [T, 3, 2] x and y in cells, either way round. Triangles without area cover nothing.
        size_hw: Rows and columns of the grid.

    Returns:
        The cells. Where triangles overlap, and on shared edges, a cell is listed more than once.
    """
    x, y = np.ascontiguousarray(corners.transpose(2, 1, 0), np.float64)
    doubled_area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    solid = np.flatnonzero(np.abs(doubled_area) > _MIN_DOUBLED_AREA)
    x, y, doubled_area = x[:, solid], y[:, solid], doubled_area[solid]
    order = np.where(doubled_area > 0, [[0], [2], [1]], [[0], [1], [2]])
    span_triangle, span_row, first, counts = row_spans(
        np.take_along_axis(x, order, axis=0),
        np.take_along_axis(y, order, axis=0),
        size_hw[1],
        size_hw[0],
    )
    span, rank = expand(counts)
    triangle, row, column = span_triangle[span], span_row[span], first[span] + rank
    to_x, to_y = x[:, triangle] - (column + 0.5), y[:, triangle] - (row + 0.5)
    areas = np.empty((len(triangle), 3))
    for corner in range(3):
        after, before = (corner + 1) % 3, (corner + 2) % 3
        areas[:, corner] = to_x[after] * to_y[before] - to_x[before] * to_y[after]
    weights = np.maximum(areas * np.sign(doubled_area)[triangle, None], 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return Covered(solid[triangle], row, column, weights)
