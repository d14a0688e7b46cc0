"""People keep their number from frame to frame of a video.

Boxes and body surface decide who is who. No library does it: those there are know boxes only, and
either do not run with NumPy 2 or bring a second OpenCV.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.records import PersonResult

_SAMPLES = 32  # of each side of the pixels that two boxes share
_STEPS = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
_NEAR_LEVELS = 26  # of 255: U and V that are a tenth of the patch apart are the same place
_PAIRS_AT_ONCE = 32  # of people who are compared: a few MiB
_NEWEST_SHARE = 0.5  # of a velocity's last measurement
# Arrays of the state with an entry for each person, and the shape of an entry.
_FIELDS: dict[str, tuple[int, ...]] = {
    "numbers": (),
    "categories": (),
    "boxes_xyxy": (4,),
    "velocities_xy": (2,),
    "seen_s": (),
}


@dataclasses.dataclass(frozen=True)
class TrackingSettings:
    """Who may be the same person.

    Attributes:
        lost_after_s: Seconds after which someone who is not seen any more is forgotten.
        widening: Share of its sides by which a box is widened on each side before boxes are
            compared, so that small people who move fast still overlap themselves (C-BIoU, Yang et
            al., WACV 2023).
        min_overlap: IoU of widened boxes below which two are different people, whatever they
            look like.
        surface_weight: Of the agreement of the IUV pictures, beside 1 of the boxes' IoU.

    Raises:
        ValueError: a value out of range.
    """

    lost_after_s: float = 1.0
    widening: float = 0.3
    min_overlap: float = 0.15
    surface_weight: float = 1.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ("lost_after_s", "widening", "surface_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number from 0, got {value}")
        if not 0 < self.min_overlap < 1:
            raise ValueError(f"min_overlap must be between 0 and 1, got {self.min_overlap}")


@dataclasses.dataclass(frozen=True, eq=False)
class _Track:
    """Someone who was seen: where, when and what of the body."""

    number: int
    category_id: int
    box_xyxy: np.ndarray  # float64 [4] pixels
    velocity_xy: np.ndarray  # float64 [2] pixels a second
    seen_s: float
    iuv: np.ndarray | None

    def box_at(self, time_s: float) -> np.ndarray:
        """Where the box has moved since, at constant velocity."""
        return self.box_xyxy + np.tile(self.velocity_xy * (time_s - self.seen_s), 2)

    def next(self, person: PersonResult, time_s: float) -> "_Track":
        """The same person, seen again."""
        box = person.box_xyxy.astype(np.float64)
        moved = (_centre(box) - _centre(self.box_xyxy)) / (time_s - self.seen_s)
        # The first measurement stands alone: before it nothing is known.
        share = _NEWEST_SHARE if self.velocity_xy.any() else 1.0
        velocity = (1 - share) * self.velocity_xy + share * moved
        return _Track(self.number, self.category_id, box, velocity, time_s, person.iuv)


class Tracker:
    """Numbers the people of a video's frames, from 1 in the order in which they appear.

    Every frame's people are assigned to those seen before, such that the sum of their likeness is
    greatest: the IoU of widened boxes, after each person has moved on at constant velocity, and of
    people with IUV pictures the share of the body there on which patch, U and V agree. Who is like
    nobody gets the next number. People of different categories are never the same. Nothing is
    known of faces or clothes: who is away for longer than `lost_after_s` comes back as another.

    tracker = Tracker()
    for frame, people in enumerate(model(frames)):
        people = tracker.update(people, frame / 25)
    """

    def __init__(self, settings: TrackingSettings | None = None):
        """Begins with nobody."""
        self.settings = settings or TrackingSettings()
        self._tracks: list[_Track] = []
        self._next_number = 1
        self._time_s = -math.inf

    def update(self, people: Sequence[PersonResult], time_s: float) -> list[PersonResult]:
        """Numbers the people of the next frame.

        Args:
            people: in pixels of the frame.
            time_s: of the frame, in seconds; later than the frame before.

        Returns:
            The same people in the same order, with `track_id`.

        Raises:
            ValueError: the time is not later.
        """
        if not self._time_s < time_s < math.inf:
            raise ValueError(f"a frame at {time_s} s cannot follow one at {self._time_s} s")
        self._time_s = float(time_s)
        oldest = time_s - self.settings.lost_after_s
        tracks = [track for track in self._tracks if track.seen_s >= oldest]
        likeness = self._likeness(tracks, people)
        rows, columns = linear_sum_assignment(likeness, maximize=True)
        track_of = {
            column: tracks[row]
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
            if likeness[row, column] > 0
        }
        seen = [self._follow(person, track_of.get(n)) for n, person in enumerate(people)]
        numbers = {track.number for track in seen}
        self._tracks = [*seen, *(track for track in tracks if track.number not in numbers)]
        return [
            dataclasses.replace(person, track_id=track.number)
            for person, track in zip(people, seen, strict=True)
        ]

    def _follow(self, person: PersonResult, track: _Track | None) -> _Track:
        if track is not None:
            return track.next(person, self._time_s)
        number, self._next_number = self._next_number, self._next_number + 1
        box = person.box_xyxy.astype(np.float64)
        at_rest = np.zeros(2)
        return _Track(number, person.category_id, box, at_rest, self._time_s, person.iuv)

    def _likeness(self, tracks: Sequence[_Track], people: Sequence[PersonResult]) -> np.ndarray:
        """float64 [tracks, people], 0 of those who cannot be the same, else up to 1."""
        boxes = np.array([track.box_at(self._time_s) for track in tracks]).reshape(-1, 4)
        found = np.array([person.box_xyxy for person in people], np.float64).reshape(-1, 4)
        likeness = _widened_iou(boxes, found, self.settings.widening)
        kinds = [np.array([item.category_id for item in of], int) for of in (tracks, people)]
        likeness[kinds[0][:, None] != kinds[1][None]] = 0
        likeness[likeness < self.settings.min_overlap] = 0
        may_be = likeness > 0
        # Who is like one alone, who is like nobody else, is the same whatever the surface.
        may_be &= (may_be.sum(1, keepdims=True) > 1) | (may_be.sum(0, keepdims=True) > 1)
        weight = self.settings.surface_weight
        shown = [np.array([item.iuv is not None for item in of], bool) for of in (tracks, people)]
        rows, columns = np.nonzero(may_be & shown[0][:, None] & shown[1])
        if len(rows) and weight:
            before, now = (_Pictures([item.iuv for item in of]) for of in (tracks, people))
            for start in range(0, len(rows), _PAIRS_AT_ONCE):
                pairs = row, column = tuple(
                    of[start : start + _PAIRS_AT_ONCE] for of in (rows, columns)
                )
                agreement = _surface_agreement(before, now, boxes, found, row, column)
                likeness[pairs] = (likeness[pairs] + weight * agreement) / (1 + weight)
        return likeness

    def state(self) -> dict[str, np.ndarray]:
        """What a tracker in another process needs to resume, as arrays for an .npz file."""
        tracks = self._tracks
        arrays = {
            "next_number": np.array(self._next_number),
            "time_s": np.array(self._time_s),
            "numbers": np.array([track.number for track in tracks], np.int64),
            "categories": np.array([track.category_id for track in tracks], np.int64),
            "boxes_xyxy": np.array([track.box_xyxy for track in tracks]).reshape(-1, 4),
            "velocities_xy": np.array([track.velocity_xy for track in tracks]).reshape(-1, 2),
            "seen_s": np.array([track.seen_s for track in tracks], np.float64),
        }
        pictures = {f"iuv/{t.number}": t.iuv for t in tracks if t.iuv is not None}
        return arrays | pictures

    @classmethod
    def from_state(
        cls, state: Mapping[str, np.ndarray], settings: TrackingSettings | None = None
    ) -> "Tracker":
        """Makes the tracker that `state` was called on.

        Raises:
            ResultsError: an array is missing or has a wrong shape.
        """
        count = state["numbers"].size if "numbers" in state else 0
        wanted: dict[str, tuple[int, ...]] = {"next_number": (), "time_s": ()}
        wanted |= {name: (count, *shape) for name, shape in _FIELDS.items()}
        for name, shape in wanted.items():
            if name not in state or state[name].shape != shape:
                raise ResultsError(f"a tracker's state must have {name} of shape {shape}")
        fields = [state[name] for name in _FIELDS]
        tracker = cls(settings)
        tracker._next_number = int(state["next_number"])
        tracker._time_s = float(state["time_s"])
        for number, category_id, box, velocity, seen_s in zip(*fields, strict=True):
            iuv = state.get(f"iuv/{number}")
            track = _Track(int(number), int(category_id), box, velocity, float(seen_s), iuv)
            tracker._tracks.append(track)
        return tracker


def _centre(box_xyxy: np.ndarray) -> np.ndarray:
    return np.asarray((box_xyxy[..., :2] + box_xyxy[..., 2:]) / 2)


def _widened_iou(boxes: np.ndarray, others: np.ndarray, widening: float) -> np.ndarray:
    """[N, M] IoU of boxes [N, 4] and [M, 4], each widened by a share of its sides at all four."""
    first, second = (
        b + widening * np.concatenate([b[:, :2] - b[:, 2:], b[:, 2:] - b[:, :2]], axis=1)
        for b in (boxes, others)
    )
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner
    shared = np.maximum(sides, 0).prod(axis=-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=-1) for b in (first, second)]
    total = areas[0][:, None] + areas[1][None] - shared
    iou: np.ndarray = np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
    return iou


class _Pictures:
    """IUV pictures that are read at many places at once."""

    def __init__(self, pictures: Sequence[np.ndarray | None]):
        """Takes pictures, uint8 [3, h, w]; nothing is read of those that are None."""
        there = [np.zeros((3, 0, 0), np.uint8) if iuv is None else iuv for iuv in pictures]
        self.sizes_xy = np.array([iuv.shape[:0:-1] for iuv in there])
        self._starts = np.cumsum([0, *(iuv[0].size for iuv in there[:-1])])
        self._levels = np.concatenate([iuv.reshape(3, -1) for iuv in there], axis=1)

    def sample(self, numbers: np.ndarray, at_xy: np.ndarray) -> np.ndarray:
        """Reads pictures where columns `at_xy[:, :, 0]` and rows `at_xy[:, :, 1]` meet.

        Args:
            numbers: [P] of the pictures.
            at_xy: float64 [P, cases, 2, N] pixels. What is outside is taken from the edge.

        Returns:
            uint8 [3, P, cases, N * N].
        """
        sizes_xy = self.sizes_xy[numbers][:, None, :, None]
        at = np.minimum(np.maximum(at_xy.astype(int), 0), sizes_xy - 1)
        at[:, :, 1] = at[:, :, 1] * sizes_xy[:, :, 0] + self._starts[numbers][:, None, None]
        places = at[:, :, 1, :, None] + at[:, :, 0, None]
        read: np.ndarray = self._levels.take(places.reshape(*places.shape[:2], -1), axis=1)
        return read


def _surface_agreement(
    before: _Pictures,
    now: _Pictures,
    boxes_before_xyxy: np.ndarray,
    boxes_now_xyxy: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Share of the body on which the IUV pictures of two people agree, where they overlap: 0 to 1.

    The better of two: where they are, which is right for someone half of whom is hidden now, and
    with the middles of their boxes brought together, for someone who did not move as expected.

    Args:
        before: pictures of the people of the rows.
        now: of those of the columns.
        boxes_before_xyxy: float64 [N, 4] of the rows.
        boxes_now_xyxy: float64 [M, 4] of the columns.
        rows: [P] the first person of each pair.
        columns: [P] the second.

    Returns:
        float64 [P].
    """
    boxes, others = boxes_before_xyxy[rows], boxes_now_xyxy[columns]
    to_middle = _centre(others) - _centre(boxes)
    corners = np.stack([boxes[:, :2], boxes[:, :2] + to_middle], axis=1)  # [P, case, 2]
    corner = others[:, None, :2]
    sizes, other_sizes = before.sizes_xy[rows][:, None], now.sizes_xy[columns][:, None]
    first = np.maximum(corners, corner)
    shared = np.minimum(corners + sizes, corner + other_sizes) - first
    at_xy = first[..., None] + np.maximum(shared, 0)[..., None] * _STEPS  # [P, case, 2, N]
    levels = before.sample(rows, at_xy - corners[..., None])
    other_levels = now.sample(columns, at_xy - corner[..., None])
    is_body = (levels[0] > 0) | (other_levels[0] > 0)
    difference = np.maximum(levels, other_levels) - np.minimum(levels, other_levels)
    is_same = is_body & (difference[0] == 0)
    is_same &= (difference[1] <= _NEAR_LEVELS) & (difference[2] <= _NEAR_LEVELS)
    count_body, count_same = (np.count_nonzero(of, axis=-1) for of in (is_body, is_same))
    shares = np.where((shared > 0).all(-1), count_same / np.maximum(count_body, 1), 0)
    return np.asarray(shares.max(-1))
