"""Finding the triangle of a UV chart under a point, for many points at once."""

import numpy as np

from ktn_jax.body import parts

_CELLS = 48  # grid cells along a side of a chart; the published charts then hold 3 triangles a cell
_INSIDE = -1e-9  # barycentric slack, so that a point on an edge is in one of its triangles


class ChartIndex:
    """A grid over every chart, for point location, and the chart outlines, for points outside."""

    def __init__(self, chart_uv: np.ndarray, chart_faces: np.ndarray, face_patch: np.ndarray):
        """Indexes the charts.

        Args:
            chart_uv: [C, 2].
            chart_faces: [F, 3] into chart vertices.
            face_patch: [F] patch of each face.
        """
        self._uv = np.asarray(chart_uv, np.float64)
        self._faces = chart_faces
        corners = self._uv[chart_faces]
        self._origin = corners[:, 2]
        edges = corners[:, :2] - corners[:, 2:]
        determinant = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
        # A triangle without area in UV holds no point of its own; its edges are its neighbours'.
        solid = np.abs(determinant) > 1e-14
        safe = np.where(solid, determinant, 1.0)
        # (u, v) - origin times this matrix is the first two barycentric coordinates.
        self._inverse = (
            np.stack([edges[:, 1, 1], -edges[:, 0, 1], -edges[:, 1, 0], edges[:, 0, 0]], axis=-1)
            / safe[:, None]
        ).reshape(-1, 2, 2)
        self._cell_start, self._cell_faces = self._fill_grid(corners, face_patch, solid)
        self._outline = _outlines(chart_faces, face_patch)

    @staticmethod
    def _fill_grid(
        corners: np.ndarray, face_patch: np.ndarray, solid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        low = np.clip(np.floor((corners.min(axis=1) - 1e-9) * _CELLS), 0, _CELLS - 1).astype(int)
        high = np.clip(np.floor((corners.max(axis=1) + 1e-9) * _CELLS), 0, _CELLS - 1).astype(int)
        spans = np.where(solid[:, None], high - low + 1, 0)
        counts = spans[:, 0] * spans[:, 1]
        faces = np.repeat(np.arange(len(corners)), counts)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        column = low[faces, 0] + place % spans[faces, 0]
        row = low[faces, 1] + place // spans[faces, 0]
        cell = ((face_patch[faces] - 1) * _CELLS + row) * _CELLS + column
        order = np.argsort(cell, kind="stable")
        start = np.searchsorted(cell[order], np.arange(parts.NUM_PATCHES * _CELLS**2 + 1))
        return start, faces[order].astype(np.int32)

    def locate(
        self, patch: np.ndarray, uv: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the triangle that holds each point, or the nearest point of the chart.

        Args:
            patch: [N] in 1..24.
            uv: [N, 2].

        Returns:
            face [N] int32, barycentric [N, 3] non-negative with sum 1, and the distance in UV
            [N] from the asked point to the found one: 0 inside the chart.

        Raises:
            ValueError: a patch outside 1..24, or a UV that is not finite.
        """
        # IUV pictures hold patches as uint8, in which the cell numbers below would wrap around.
        patch, uv = np.asarray(patch).astype(np.int64), np.asarray(uv, np.float64)
        if patch.size and not ((patch >= 1) & (patch <= parts.NUM_PATCHES)).all():
            raise ValueError(f"patch must be in 1..24, got {patch.min()}..{patch.max()}")
        if not np.isfinite(uv).all():
            raise ValueError("u and v must be finite")
        face = np.full(len(uv), -1, np.int32)
        barycentric = np.zeros((len(uv), 3))
        distance = np.zeros(len(uv))
        cell = np.clip(np.floor(uv * _CELLS), 0, _CELLS - 1).astype(int)
        cell = ((patch - 1) * _CELLS + cell[:, 1]) * _CELLS + cell[:, 0]
        start = self._cell_start[cell]
        counts = self._cell_start[cell + 1] - start
        point = np.repeat(np.arange(len(uv)), counts)
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        candidate = self._cell_faces[start[point] + place]
        weights = self._barycentric(candidate, uv[point])
        inside = np.flatnonzero(weights.min(axis=1) >= _INSIDE)
        # The first hit wins, whatever the order of the points: later writes would win here.
        inside = inside[::-1]
        face[point[inside]] = candidate[inside]
        barycentric[point[inside]] = weights[inside]
        for label in np.unique(patch[face < 0]):
            lost = np.flatnonzero((face < 0) & (patch == label))
            face[lost], barycentric[lost], distance[lost] = self._nearest(label, uv[lost])
        barycentric = np.maximum(barycentric, 0)
        return face, barycentric / barycentric.sum(axis=1, keepdims=True), distance

    def _barycentric(self, faces: np.ndarray, uv: np.ndarray) -> np.ndarray:
        offset = uv - self._origin[faces]
        matrix = self._inverse[faces]
        first = offset[:, 0] * matrix[:, 0, 0] + offset[:, 1] * matrix[:, 1, 0]
        second = offset[:, 0] * matrix[:, 0, 1] + offset[:, 1] * matrix[:, 1, 1]
        return np.stack([first, second, 1 - first - second], axis=-1)

    def _nearest(self, label: int, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projects points outside a chart onto its outline."""
        if label not in self._outline:
            raise ValueError(f"the template has no face of patch {label}")
        faces, corner = self._outline[label]
        start = self._uv[self._faces[faces, corner]]
        along = self._uv[self._faces[faces, (corner + 1) % 3]] - start
        length = np.maximum((along**2).sum(axis=1), 1e-30)
        face = np.empty(len(uv), np.int32)
        barycentric = np.zeros((len(uv), 3))
        distance = np.empty(len(uv))
        for low in range(0, len(uv), 4096):  # bounds the [points, edges] table
            block = slice(low, low + 4096)
            offset = uv[block, None] - start
            step = np.clip((offset * along).sum(axis=-1) / length, 0, 1)
            squared = ((offset - step[..., None] * along) ** 2).sum(axis=-1)
            best = squared.argmin(axis=1)
            rows = np.arange(len(best))
            face[block] = faces[best]
            distance[block] = np.sqrt(squared[rows, best])
            weights = np.zeros((len(best), 3))
            weights[rows, corner[best]] = 1 - step[rows, best]
            weights[rows, (corner[best] + 1) % 3] = step[rows, best]
            barycentric[block] = weights
        return face, barycentric, distance


def _outlines(
    chart_faces: np.ndarray, face_patch: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Of each patch, the faces with an edge on the chart's outline and that edge's first corner."""
    sides = np.stack([chart_faces, np.roll(chart_faces, -1, axis=1)], axis=-1)
    _, edge, uses = np.unique(
        np.sort(sides.reshape(-1, 2), axis=1), axis=0, return_inverse=True, return_counts=True
    )
    on_outline = np.flatnonzero(uses[edge.ravel()] == 1)
    faces, corner = np.divmod(on_outline, 3)
    return {
        int(label): (faces[face_patch[faces] == label], corner[face_patch[faces] == label])
        for label in np.unique(face_patch[faces])
    }
