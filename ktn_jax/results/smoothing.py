"""Boxes, U and V that tremble less from frame to frame of a video."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.iuv_pictures import quantise
from ktn_jax.results.maps import overlap_at
from ktn_jax.results.records import BACKGROUND, PersonResult

_NEAR = 0.1  # of a patch: U and V further apart are another place and not averaged
_SPEED_S = 1 / (2 * math.pi)  # over which speeds are averaged, the one-euro filter's 1 Hz
_HZ_PER_SPEED = 10.0  # one-euro's beta: a box a body height a second fast trails by 2 % of it
_LEVELS = 255
_ROUNDING = 0.01  # pixels: float32 boxes around pixel 10,000 are exact to 0.001
_FORGOTTEN_AFTER = 5  # times the smoothing's own seconds


@dataclasses.dataclass(frozen=True, eq=False)
class _Smoothed:
    """A person as given out for the last frame."""

    seen_s: float
    raw_box_xyxy: np.ndarray  # float64 [4], as found
    box_xyxy: np.ndarray  # float64 [4], smoothed
    own_box_xyxy: np.ndarray  # float32 [4], the person's: with all of the body
    speed: np.ndarray  # float64 [4] of the box's sides, pixels a second
    labels: np.ndarray | None  # uint8 [h, w] over that box
    uv: np.ndarray | None  # float32 [2, h, w]


_FIELDS = ("seen_s", "raw_box_xyxy", "box_xyxy", "own_box_xyxy", "speed", "labels", "uv")


class Smoother:
    """Averages the boxes, U and V of people over time.

    Boxes go through a one-euro filter (Casiez et al., CHI 2012), which averages over `seconds`
    those at rest and less the faster they move. Pixels stay where they are: a box grows where it
    would cut off a part of the body. U and V are averaged exponentially with those of the frame
    before, moved with the box, where the patch is the same and they differ by less than a tenth.
    Patches, vertices, keypoints, masks and confidences are as found.
    """

    def __init__(self, seconds: float):
        """Takes the time over which is averaged.

        Raises:
            ValueError: not a finite number above 0.
        """
        if not 0 < seconds < math.inf:
            raise ValueError(f"smoothing takes a time in seconds above 0, got {seconds}")
        self.seconds = float(seconds)
        self._people: dict[int, _Smoothed] = {}

    def update(self, people: Sequence[PersonResult], time_s: float) -> list[PersonResult]:
        """Smooths the people of the next frame.

        Args:
            people: with `track_id`, as `tracking.Tracker` gives them.
            time_s: of the frame, in seconds; later than the frame before.

        Returns:
            The same people in the same order.

        Raises:
            ValueError: a person without number, or a time that is not later.
        """
        smoothed = []
        for person in people:
            if person.track_id is None:
                raise ValueError("smoothing needs people with numbers: track them first")
            before = self._people.get(person.track_id)
            if before is not None and not time_s > before.seen_s:
                raise ValueError(f"a frame at {time_s} s cannot follow one at {before.seen_s} s")
            if before is None or time_s - before.seen_s > _FORGOTTEN_AFTER * self.seconds:
                now, result = _begin(person, time_s), person
            else:
                now, result = self._next(person, before, time_s)
            self._people[person.track_id] = now
            smoothed.append(result)
        oldest = time_s - _FORGOTTEN_AFTER * self.seconds
        self._people = {n: p for n, p in self._people.items() if p.seen_s >= oldest}
        return smoothed

    def _next(
        self, person: PersonResult, before: _Smoothed, time_s: float
    ) -> tuple[_Smoothed, PersonResult]:
        step = time_s - before.seen_s
        found = person.box_xyxy.astype(np.float64)
        share = step / (step + _SPEED_S)
        speed = (1 - share) * before.speed + share * (found - before.raw_box_xyxy) / step
        body_height = max(found[3] - found[1], 1.0)
        cutoff_hz = 1 / (2 * math.pi * self.seconds) + _HZ_PER_SPEED * np.abs(speed) / body_height
        share = step / (step + 1 / (2 * math.pi * cutoff_hz))
        box = before.box_xyxy + share * (found - before.box_xyxy)
        own_box = _with_body(box, person)
        reframed = _reframe(person, own_box)
        labels, uv = _labels_uv(reframed)
        if labels is not None and uv is not None and before.labels is not None:
            moved = box - before.box_xyxy
            shift_xy = np.rint((moved[:2] + moved[2:]) / 2).astype(int)
            uv = _average(before, shift_xy, reframed, uv, step / (step + self.seconds))
            own_uv = None if reframed.uv is None else uv
            reframed = dataclasses.replace(reframed, iuv=quantise(labels, uv), uv=own_uv)
        return _Smoothed(time_s, found, box, own_box, speed, labels, uv), reframed

    def state(self) -> dict[str, np.ndarray]:
        """What a smoother in another process needs to resume, as arrays for an .npz file."""
        arrays = {}
        for number, person in self._people.items():
            for name in _FIELDS:
                value = getattr(person, name)
                if value is not None:
                    arrays[f"{number}/{name}"] = np.asarray(value)
        return arrays

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], seconds: float) -> "Smoother":
        """Makes the smoother that `state` was called on.

        Raises:
            ResultsError: an array is missing.
        """
        smoother = cls(seconds)
        for number in sorted({int(name.partition("/")[0]) for name in state}):
            try:
                smoother._people[number] = _Smoothed(
                    seen_s=float(state[f"{number}/seen_s"]),
                    raw_box_xyxy=state[f"{number}/raw_box_xyxy"],
                    box_xyxy=state[f"{number}/box_xyxy"],
                    own_box_xyxy=state[f"{number}/own_box_xyxy"],
                    speed=state[f"{number}/speed"],
                    labels=state.get(f"{number}/labels"),
                    uv=state.get(f"{number}/uv"),
                )
            except KeyError as error:
                raise ResultsError(f"a smoother's state must have {error}") from error
        return smoother


def _begin(person: PersonResult, time_s: float) -> _Smoothed:
    box = person.box_xyxy.astype(np.float64)
    return _Smoothed(time_s, box, box, person.box_xyxy, np.zeros(4), *_labels_uv(person))


def _labels_uv(person: PersonResult) -> tuple[np.ndarray | None, np.ndarray | None]:
    if person.iuv is None:
        return None, None
    if person.uv is not None:
        return person.iuv[0], person.uv
    return person.iuv[0], (person.iuv[1:] + np.float32(0.5)) / np.float32(_LEVELS)


def _with_body(box_xyxy: np.ndarray, person: PersonResult) -> np.ndarray:
    """float32 [4] the box, larger where the body is not in it."""
    is_body = person.is_body
    if is_body is None or not is_body.any():
        return np.asarray(box_xyxy, np.float32)
    own = box_xyxy.copy()
    for axis in (0, 1):  # x, y
        seen = np.flatnonzero(is_body.any(axis=axis)) + int(person.box_xyxy[axis])
        own[axis] = min(own[axis], seen[0])
        # A picture begins at the truncated corner, and has the truncated length.
        length = seen[-1] + 1 - int(own[axis]) + _ROUNDING
        own[axis + 2] = max(own[axis + 2], own[axis] + length)
    return np.asarray(own, np.float32)


def _reframe(person: PersonResult, box_xyxy: np.ndarray) -> PersonResult:
    """The same person in another box that holds all of the body: pixels stay where they are."""
    reframed = dataclasses.replace(
        person, box_xyxy=box_xyxy, iuv=None, uv=None, vertices=None, confidences={}
    )
    if person.is_body is None:
        return reframed
    size_hw = reframed.size_hw
    own_x, own_y = (person.box_xyxy[:2].astype(int) - box_xyxy[:2].astype(int)).tolist()
    place, own = overlap_at((own_x, own_y), person.size_hw, size_hw)

    def placed(values: np.ndarray, beyond: int = 0) -> np.ndarray:
        canvas = np.full((*values.shape[:-2], *size_hw), beyond, values.dtype)
        canvas[(..., *place)] = values[(..., *own)]
        return canvas

    return dataclasses.replace(
        reframed,
        iuv=None if person.iuv is None else placed(person.iuv),
        uv=None if person.uv is None else placed(person.uv),
        vertices=None if person.vertices is None else placed(person.vertices, BACKGROUND),
        confidences={name: placed(np.asarray(v)) for name, v in person.confidences.items()},
    )


def _average(
    before: _Smoothed,
    shift_xy: np.ndarray,
    person: PersonResult,
    uv: np.ndarray,
    share: float,
) -> np.ndarray:
    """U and V of a person, averaged with those of the frame before, `share` of them new."""
    if person.iuv is None or before.labels is None or before.uv is None:
        return uv
    corner = before.own_box_xyxy[:2].astype(int) + shift_xy
    offset_x, offset_y = (corner - person.box_xyxy[:2].astype(int)).tolist()
    place, own = overlap_at((offset_x, offset_y), before.labels.shape, person.size_hw)
    old, new = before.uv[(slice(None), *own)], uv[(slice(None), *place)]
    labels = person.iuv[0][place]
    is_same = (labels > 0) & (before.labels[own] == labels)
    is_same &= (np.abs(old - new) < _NEAR).all(axis=0)
    averaged = uv.copy()
    averaged[(slice(None), *place)] = np.where(is_same, old + np.float32(share) * (new - old), new)
    return averaged
