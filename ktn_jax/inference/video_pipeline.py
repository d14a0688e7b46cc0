"""The way of a video's frames through the network to its recording, all stages at once.

A thread decodes ahead; this one runs the network; one follows people from frame to frame; some
draw; and one encodes and writes. What comes behind the network gives way to it. Each waits for the
one behind it when a few frames are between them, so that memory does not grow with the video.
"""

import collections
import contextlib
import pathlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np

from ktn_jax.inference.inputs import StreamingPredictor
from ktn_jax.inference.video_options import VideoOptions
from ktn_jax.inference.video_recording import Recording
from ktn_jax.results import pictures, records
from ktn_jax.results.detection_checks import ResultsError, check_record
from ktn_jax.results.frame_lines import FrameLine
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.background import give_way, short_turns
from ktn_jax.runtime.progress import Progress
from ktn_jax.runtime.read_ahead import read_ahead
from ktn_jax.runtime.video_frames import Frame, Video

# A segment is closed after so many frames or so long: what a kill loses at most.
_SEGMENT_FRAMES, _SEGMENT_SECONDS = 250, 20.0
_DRAWING_THREADS = 2
_FRAMES_AHEAD = 4  # decoded
_FRAMES_BEHIND = 8  # found and not yet written


_Made = tuple[FrameLine, list[np.ndarray]]


class VideoPipeline:
    """The frames of a video that are not recorded yet."""

    def __init__(
        self,
        predictor: StreamingPredictor,
        video: Video,
        name: str,
        recording: Recording,
        options: VideoOptions,
        folder: pathlib.Path,
    ):
        """Begins where a recording ends.

        Args:
            predictor: with weights.
            video: to be recorded.
            name: of the video, for records.
            recording: gets its frames.
            options: which frames and people.
            folder: for the state of the people who are followed.

        Raises:
            ResultsError: that state is damaged.
        """
        self._predictor, self._video, self._name = predictor, video, name
        self._recording, self._options, self._folder = recording, options, folder
        self._over_time = options.make_people_over_time()
        self._after, self._index_shift, self._time_shift = -1, 0, Fraction(0)
        last = recording.last
        if last is not None:
            if self._over_time is not None:
                self._over_time.read(self._state_path(last.number))
            if video.is_live:  # it cannot be read again: what it shows now follows
                self._index_shift = last.last_index + 1
                self._time_shift = last.last_time + 1 / video.frame_rate
            else:
                self._after = last.last_index
        self._segment = len(recording.segments)  # that is being written
        self._num_in_segment, self._segment_began = 0, 0.0
        self._has_failed = False
        self.notes: list[str] = []

    def sound_range(self) -> tuple[Fraction, Fraction]:
        """The seconds of the source whose sound belongs to what is recorded."""
        last = self._recording.last
        end = Fraction(0) if last is None else last.last_time + 1 / self._video.frame_rate
        return self._options.selection.start, end

    def run(self, description: str) -> None:
        """Records all frames. However it ends, what was found before is recorded.

        Raises:
            OSError: what was found cannot be written. Errors of the predictor propagate.
        """
        total = self._video.count(self._options.selection)
        taken = collections.deque[Frame]()
        waiting = collections.deque[Future[Future[None]]]()
        frames = self._video.frames(self._options.selection, self._after)
        with (
            short_turns(),
            Progress(description, "frames", total, done=self._recording.num_frames) as progress,
            ThreadPoolExecutor(1, initializer=give_way) as self._recorder,
            ThreadPoolExecutor(_DRAWING_THREADS, initializer=give_way) as self._drawers,
            ThreadPoolExecutor(1, initializer=give_way) as follower,
        ):
            try:
                with contextlib.closing(read_ahead(frames, _FRAMES_AHEAD)) as ahead:
                    for people in self._predictor(_images(ahead, taken)):
                        # One step, so that an interruption cannot come between its parts.
                        frame = taken.popleft()
                        waiting.append(follower.submit(self._take, frame, people, progress))
                        while len(waiting) > _FRAMES_BEHIND:
                            waiting.popleft().result().result()
            finally:
                waiting.append(follower.submit(self._end_segment))
            for task in waiting:
                task.result().result()

    def _take(
        self, frame: Frame, people: Sequence[PersonResult], progress: Progress
    ) -> "Future[None]":
        """Follows the people of the next frame, and has it drawn and written."""
        people = [person for person in people if person.score >= self._options.min_score]
        if self._over_time is not None:
            try:
                people = self._over_time.update(people, float(frame.time + self._time_shift))
            except Exception:
                self._recorder.submit(self._stop_writing)
                raise
        drawn = self._drawers.submit(self._make, frame, people)
        written = self._recorder.submit(self._write, frame, drawn, progress)
        self._segment_began = self._segment_began if self._num_in_segment else time.monotonic()
        self._num_in_segment += 1
        age = time.monotonic() - self._segment_began
        if self._num_in_segment == _SEGMENT_FRAMES or age > _SEGMENT_SECONDS:
            self._end_segment()
        return written

    def _end_segment(self) -> "Future[None]":
        """Keeps the state of people after the last frame that was taken, and ends its segment."""
        if self._num_in_segment and self._over_time is not None:
            self._over_time.write(self._state_path(self._segment))
        self._segment += self._num_in_segment > 0
        self._num_in_segment = 0
        return self._recorder.submit(self._close_segment)

    def _make(self, frame: Frame, people: Sequence[PersonResult]) -> _Made:
        line = FrameLine(
            frame.index + self._index_shift,
            float(frame.time + self._time_shift),
            self._records(frame, people),
            frame.is_repeated,
            self._options.smooth_s,
        )
        options = self._options
        drawn = pictures.draw_pictures(options.pictures, frame.image, people, options.settings)
        return line, [image for _, image in drawn]

    def _records(self, frame: Frame, people: Sequence[PersonResult]) -> list[dict[str, Any]]:
        made = []
        index = frame.index + self._index_shift
        for number, person in enumerate(people):
            where = f"frame {index}: person {number}"
            try:
                (record,) = records.people_to_records(
                    index,
                    [person],
                    with_confidences=self._options.with_confidences,
                    file_name=self._name,
                )
                made.append(check_record(where, record))
            except ResultsError as error:
                self.notes.append(f"left out: {error}")
        return made

    def _write(self, frame: Frame, drawn: "Future[_Made]", progress: Progress) -> None:
        if self._has_failed:  # the frame before is missing
            return
        self._has_failed = True
        line, images = drawn.result()
        at = frame.time + self._time_shift
        self._recording.add(line, images, at, at - self._options.selection.start)
        progress.advance()
        self._has_failed = False

    def _stop_writing(self) -> None:
        self._has_failed = True

    def _close_segment(self) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._recording.close_segment()
            self._has_failed = False

    def _state_path(self, segment: int) -> pathlib.Path:
        return self._folder / f"{segment:06d}_people.npz"


def _images(frames: Iterator[Frame], taken: collections.deque[Frame]) -> Iterator[np.ndarray]:
    """Yields the images of frames, and remembers the frames until their people are found."""
    for frame in frames:
        taken.append(frame)
        yield frame.image
