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
        for row, column in zip(*np.nonzero(may_be), strict=True):
            iuv, person = tracks[row].iuv, people[column]
            if iuv is not None and person.iuv is not None and weight:
                agreement = _surface_agreement(iuv, boxes[row], person)
                likeness[row, column] = (likeness[row, column] + weight * agreement) / (1 + weight)
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
    return np.asarray((box_xyxy[:2] + box_xyxy[2:]) / 2)


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


def _surface_agreement(iuv: np.ndarray, box_xyxy: np.ndarray, person: PersonResult) -> float:
    """Share of the body on which the IUV pictures of two people agree, where they overlap: 0 to 1.

    The better of two: where they are, which is right for someone half of whom is hidden now, and
    with the middles of their boxes brought together, for someone who did not move as expected.
    """
    if person.iuv is None:
        return 0.0
    other_box = person.box_xyxy.astype(np.float64)
    to_middle = _centre(other_box) - _centre(box_xyxy)
    corners = np.stack([box_xyxy[:2], box_xyxy[:2] + to_middle])  # of both cases
    corner, sizes = other_box[:2], [np.array(of.shape[:0:-1]) for of in (iuv, person.iuv)]
    first = np.maximum(corners, corner)
    shared = np.minimum(corners + sizes[0], corner + sizes[1]) - first
    at_xy = first[:, :, None] + np.maximum(shared, 0)[:, :, None] * _STEPS  # [case, 2, N]
    before = _sample(iuv, at_xy - corners[:, :, None])
    now = _sample(person.iuv, at_xy - corner[:, None])
    is_body = (before[0] > 0) | (now[0] > 0)
    difference = np.maximum(before, now) - np.minimum(before, now)
    is_same = is_body & (difference[0] == 0)
    is_same &= (difference[1] <= _NEAR_LEVELS) & (difference[2] <= _NEAR_LEVELS)
    count_body, count_same = (np.count_nonzero(of, axis=1) for of in (is_body, is_same))
    shares = np.where((shared > 0).all(1), count_same / np.maximum(count_body, 1), 0)
    return float(shares.max())


def _sample(picture: np.ndarray, at_xy: np.ndarray) -> np.ndarray:
    """Reads a picture [3, h, w] where columns `at_xy[:, 0]` and rows `at_xy[:, 1]` meet.

    Args:
        picture: uint8. What is outside it is taken from its edge.
        at_xy: float64 [cases, 2, N] pixels.

    Returns:
        [3, cases, N * N].
    """
    height, width = picture.shape[1:]
    at = np.minimum(np.maximum(at_xy.astype(int), 0), [[width - 1], [height - 1]])
    places = at[:, 1, :, None] * width + at[:, 0, None]
    read: np.ndarray = picture.reshape(3, -1).take(places.reshape(len(places), -1), axis=1)
    return read
