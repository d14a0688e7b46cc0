"""Geodesic point similarity (GPS) between a detection and an annotated person.

Every annotated point and the prediction at its pixel are mapped to the nearest vertices of a finely
subdivided body, whose geodesic distance is read from a table. Distances are in metres: the mean
distances below are those of the DensePose evaluation, where 0.255 m was chosen so that a point 0.30
m away scores one half (exp(-0.30^2 / (2 * 0.255^2)) = 0.5).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ktn_jax.body.parts import NUM_PATCH_CHANNELS
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import is_patch

# Mean geodesic distance in metres between two points of a body segment, by patch 0..24: torso,
# hands, feet, upper legs, lower legs, upper arms, lower arms, head.
PATCH_MEAN_DISTANCE = np.array(
    [0.0]
    + [0.351] * 2
    + [0.107] * 2
    + [0.126] * 2
    + [0.237] * 4
    + [0.173] * 4
    + [0.142] * 4
    + [0.128] * 4
    + [0.150] * 2
)
_CANDIDATES = 4  # nearest neighbours to choose from in ties; more ties take a full search
_PATCH_GAP = 1000.0  # charts are 1 wide
_LEVELS = 256  # U and V of a prediction have 8 bits


@dataclasses.dataclass(frozen=True)
class EvaluationTemplate:
    """The surface on which predictions are measured.

    Attributes:
        u: [N] float64, first chart coordinate of the subdivided vertices.
        v: [N] float64, second chart coordinate.
        part: [N] uint8 in 1..24.
        row: [N] int64, the row of the geodesic table of each vertex, from 0.
        geodesics: [R (R - 1) / 2] distances in metres; the pair (i, j), i > j, is at
            i (i - 1) / 2 + j. Usually memory mapped.
        origin: where it came from, for reports.
        is_official: whether scores can be compared with published ones.
        vertices: [N, 3] positions in metres, or None when they are not known.
        source_sha256: hash of every source file, by name.
    """

    u: np.ndarray
    v: np.ndarray
    part: np.ndarray
    row: np.ndarray
    geodesics: np.ndarray
    origin: str
    is_official: bool = False
    vertices: np.ndarray | None = None
    source_sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.u)
        if not (len(self.v) == len(self.part) == len(self.row) == count):
            raise EvaluationError(
                f"template {self.origin}: U, V, part and index must be equally long, got "
                f"{count}, {len(self.v)}, {len(self.part)} and {len(self.row)}"
            )
        if not (np.isfinite(self.u).all() and np.isfinite(self.v).all()):
            raise EvaluationError(f"template {self.origin}: U or V is not finite")
        missing = sorted(set(range(1, NUM_PATCH_CHANNELS)) - set(np.unique(self.part).tolist()))
        if missing:
            raise EvaluationError(f"template {self.origin}: no vertex in patches {missing}")
        rows = int(self.row.max()) + 1
        wanted = rows * (rows - 1) // 2
        if self.row.min() < 0 or self.geodesics.ndim != 1 or len(self.geodesics) < wanted:
            raise EvaluationError(
                f"template {self.origin}: index names rows {self.row.min()}..{rows - 1}, which "
                f"needs {wanted} distances, and the table has shape {self.geodesics.shape}"
            )

    def distance(self, rows_a: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
        """Looks up geodesic distances.

        Args:
            rows_a: [P] int64 rows of the table.
            rows_b: [P] int64 rows of the table, or -1 for a point that is not on the body.

        Returns:
            [P] metres in the table's own dtype: 0 for the same row, infinite off the body.
        """
        high, low = np.maximum(rows_a, rows_b), np.minimum(rows_a, rows_b)
        entry = high * (high - 1) // 2 + low
        is_pair = (low >= 0) & (high != low)
        distances = np.zeros(len(entry), self.geodesics.dtype)
        # Neighbouring entries share pages of the mapped file: reading in order touches each once.
        wanted, place = np.unique(entry[is_pair], return_inverse=True)
        distances[is_pair] = np.asarray(self.geodesics[wanted])[place]
        distances[low < 0] = np.inf
        return distances


class VertexFinder:
    """Finds the nearest vertex of a patch, with the reference's rule for ties: the first one.

    The reference computes the distances to all vertices and takes the first minimum of the rounded
    values. Here a k-d tree gives the few nearest vertices, whose distances are recomputed as in the
    reference; if all of them tie, the whole patch is searched.
    """

    def __init__(self, template: EvaluationTemplate) -> None:
        self._points = np.stack([template.u, template.v], axis=1)
        self._part = template.part
        self._vertices = [
            np.flatnonzero(template.part == part) for part in range(NUM_PATCH_CHANNELS)
        ]
        # One tree for all patches, separated by a third coordinate: one search per image.
        self._tree = cKDTree(np.column_stack([self._points, template.part * _PATCH_GAP]))
        # Predictions are 8-bit: each (I, U, V) is searched for at most once. -1 is "not yet".
        self._known = np.full(NUM_PATCH_CHANNELS * _LEVELS * _LEVELS, -1, np.int32)

    def find(self, part: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns [P] int64 vertices nearest to the chart points, -1 where part is not 1..24."""
        found = np.full(len(part), -1, np.int64)
        selected = np.flatnonzero(is_patch(part))
        if len(selected):
            queries = np.stack([u[selected], v[selected]], axis=1).astype(np.float64)
            found[selected] = self._first_nearest(part[selected].astype(np.int64), queries)
        return found

    def _first_nearest(self, part: np.ndarray, queries: np.ndarray) -> np.ndarray:
        places = np.column_stack([queries, part * _PATCH_GAP])
        count = min(_CANDIDATES, len(self._points))
        rough, candidates = self._tree.query(places, k=[*range(1, count + 1)])
        offsets = self._points[candidates] - queries[:, None]
        exact = np.sqrt(offsets[..., 0] * offsets[..., 0] + offsets[..., 1] * offsets[..., 1])
        exact[self._part[candidates] != part[:, None]] = np.inf
        is_best = exact == exact.min(axis=1, keepdims=True)
        nearest: np.ndarray = np.where(is_best, candidates, len(self._points)).min(axis=1)
        # A margin for the tree's own rounding in the choice of candidates. Points far outside the
        # chart are near other patches in the tree.
        is_unsure = (rough[:, -1] <= rough[:, 0] * (1 + 1e-12) + 1e-300) | (
            rough[:, 0] > _PATCH_GAP / 4
        )
        for index in np.flatnonzero(is_unsure):
            members = self._vertices[part[index]]
            distances = cdist(self._points[members], queries[index : index + 1])
            nearest[index] = members[distances.argmin()]
        return nearest

    def find_quantised(self, part: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The same for uint8 predictions (I, 255 U, 255 V); -1 on the background."""
        codes = (part.astype(np.int64) * _LEVELS + u) * _LEVELS + v
        unknown = np.unique(codes[(self._known[codes] < 0) & (part > 0)])
        if len(unknown):
            scale = float(_LEVELS - 1)
            new_u, new_v = unknown // _LEVELS % _LEVELS / scale, unknown % _LEVELS / scale
            self._known[unknown] = self.find(unknown // _LEVELS**2, new_u, new_v)
        vertices: np.ndarray = self._known[codes].astype(np.int64)
        return vertices


def person_similarity(
    distances: np.ndarray, is_same_row: np.ndarray, mean_distance: np.ndarray
) -> float:
    """Averages the similarity of one person's points: exp(-d^2 / (2 kappa^2)).

    Args:
        distances: [P] metres, infinite off the body, in the dtype of the geodesic table.
        is_same_row: [P] where both points are the same vertex, so that no table was read.
        mean_distance: [P] kappa in metres.

    Returns:
        GPS in [0, 1]; 0 without points.
    """
    if len(distances) == 0:
        return 0.0
    # The reference gathers the distances in a list: a Python 0 or inf among them makes the array
    # float64, otherwise the square is taken in the table's float32. It moves the 8th digit.
    if is_same_row.any() or np.isinf(distances).any():
        distances = distances.astype(np.float64)
    return float(np.mean(np.exp(-(distances**2) / (2 * mean_distance**2))))
