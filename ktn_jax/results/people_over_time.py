"""What a run over a video does to the people of every frame: numbers, smoothing, a choice."""

import os
import pathlib
from collections.abc import Collection, Sequence

import numpy as np

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.records import PersonResult
from ktn_jax.results.smoothing import Smoother
from ktn_jax.results.tracking import Tracker, TrackingSettings
from ktn_jax.runtime import atomic_files
from ktn_jax.runtime.npz_files import NpzFile

_TRACKER, _SMOOTHER = "tracker/", "smoother/"


class PeopleOverTime:
    """Follows people through a video; its state can be written and read, to resume a run."""

    def __init__(
        self,
        *,
        smooth_s: float = 0.0,
        only_tracks: Collection[int] = (),
        settings: TrackingSettings | None = None,
    ):
        """Begins with nobody.

        Args:
            smooth_s: seconds over which boxes, U and V are averaged, see `smoothing.Smoother`; 0
                for as they are found.
            only_tracks: numbers of the people that are kept; none for all.
            settings: of the tracker.

        Raises:
            ValueError: a negative time.
        """
        self._settings = settings or TrackingSettings()
        self._tracker = Tracker(self._settings)
        self._smoother = Smoother(smooth_s) if smooth_s else None
        self._only = frozenset(only_tracks)

    def update(self, people: Sequence[PersonResult], time_s: float) -> list[PersonResult]:
        """Numbers and smooths the people of the next frame, and keeps those wanted, in order.

        Args:
            people: in pixels of the frame.
            time_s: of the frame, in seconds; later than the frame before.

        Raises:
            ValueError: the time is not later.
        """
        people = self._tracker.update(people, time_s)
        if self._smoother is not None:
            people = self._smoother.update(people, time_s)
        return [p for p in people if not self._only or p.track_id in self._only]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to an .npz file, replacing an older one only when complete."""
        arrays = {_TRACKER + name: array for name, array in self._tracker.state().items()}
        if self._smoother is not None:
            smoothed = self._smoother.state()
            arrays |= {_SMOOTHER + name: array for name, array in smoothed.items()}
        with atomic_files.replacing(pathlib.Path(path)) as temporary:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)

    def read(self, path: str | os.PathLike[str]) -> None:
        """Resumes from a state that was written with the same options.

        Raises:
            FileNotFoundError: there is no such file.
            ResultsError: damaged, or not such a file; the message names it.
        """
        try:
            with NpzFile(path) as file:
                arrays = dict(file)
            tracked, smoothed = (
                {n.removeprefix(part): a for n, a in arrays.items() if n.startswith(part)}
                for part in (_TRACKER, _SMOOTHER)
            )
            tracker = Tracker.from_state(tracked, self._settings)
            smoother = self._smoother
            if smoother is not None:
                smoother = Smoother.from_state(smoothed, smoother.seconds)
        except ValueError as error:
            raise ResultsError(f"{path}: {error}") from error
        self._tracker, self._smoother = tracker, smoother
