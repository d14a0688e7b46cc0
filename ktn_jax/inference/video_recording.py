"""What is written of a video, in segments: a killed run loses the last one only.

The folder of a recording has a file for each segment and picture, and `segments.jsonl`, which gets
a line when all files of a segment are complete. People are written to a file outside, frame by
frame; resuming cuts it to the frames of complete segments.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ktn_jax.results.frame_lines import FrameLine
from ktn_jax.runtime.video_files import VideoWriter, join_segments
from ktn_jax.runtime.video_frames import Video

_LIST = "segments.jsonl"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A complete part of a recording, and all before it.

    Attributes:
        number: of the segment, from 0.
        begins: time of its first frame in the output, seconds.
        num_frames: of this and the segments before, as `num_people`.
        num_people: see `num_frames`.
        last_index: index in the source of the last frame, see `video_frames.Frame`.
        last_time: of the last frame, in the source.
    """

    number: int
    begins: Fraction
    num_frames: int
    num_people: int
    last_index: int
    last_time: Fraction

    def encode(self) -> bytes:
        """The segment's line."""
        fields = dataclasses.asdict(self)
        return json.dumps({name: str(value) for name, value in fields.items()}).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> "Segment":
        """Reads a segment's line.

        Raises:
            ValueError: it is not one.
        """
        try:
            content = json.loads(line)
            return cls(**{f.name: _TYPES[f.name](content[f.name]) for f in dataclasses.fields(cls)})
        except (KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
            raise ValueError(f"not a segment: {line[:80]!r}") from error


def _fraction(text: str) -> Fraction:
    if not re.fullmatch(r"-?\d{1,30}(/\d{1,30})?", text):  # Fraction takes 1e999999999 too
        raise ValueError(f"not a fraction: {text!r:.50}")
    return Fraction(text)


_TYPES: Mapping[str, Callable[[str], Any]] = {
    "number": int,
    "begins": _fraction,
    "num_frames": int,
    "num_people": int,
    "last_index": int,
    "last_time": _fraction,
}


class Recording:
    """Videos with pictures of people, and the people as JSON lines."""

    def __init__(
        self, folder: pathlib.Path, lines_path: pathlib.Path, pictures: Sequence[str], video: Video
    ):
        """Opens a recording, and resumes one that is there.

        Args:
            folder: of the segments, for this recording alone; made if it does not exist.
            lines_path: of the JSON lines. What a stopped run wrote after its last complete
                segment is cut off.
            pictures: names of the pictures of a frame.
            video: that is recorded; nothing of it is read here.
        """
        self._folder, self._pictures, self._video = folder, pictures, video
        folder.mkdir(parents=True, exist_ok=True)
        self.segments = _complete_segments(folder, pictures)
        lengths = _line_ends(lines_path)
        while self.segments and self.segments[-1].num_frames >= len(lengths):
            self.segments.pop()  # somebody has cut or removed the lines
        kept = self.segments[-1].num_frames if self.segments else 0
        with open(folder / _LIST, "wb") as file:
            file.writelines(segment.encode() for segment in self.segments)
        self._lines = open(lines_path, "ab")  # noqa: SIM115 (closed by close)
        self._lines.truncate(lengths[kept])
        self.num_frames = kept
        self.num_people = self.segments[-1].num_people if self.segments else 0
        self._begins: Fraction | None = None
        self._last_index, self._last_time = -1, Fraction(0)
        self._writers: list[VideoWriter] = []

    @property
    def last(self) -> Segment | None:
        """The last complete segment; None of a new recording."""
        return self.segments[-1] if self.segments else None

    def add(
        self, line: FrameLine, images: Sequence[np.ndarray], time: Fraction, at: Fraction
    ) -> None:
        """Writes a frame.

        Args:
            line: its people.
            images: the pictures, uint8 [H, W, 3], as the names that were given.
            time: of the frame, in the source.
            at: its time in the output.

        Raises:
            OSError: a file cannot be written; nothing may be added then.
        """
        if self._begins is None:
            self._begins = at
            self._writers = [
                VideoWriter(
                    self._path(len(self.segments), name),
                    (image.shape[0], image.shape[1]),
                    self._video.time_base,
                    self._video.frame_rate,
                    self._video.pixel_aspect,
                )
                for name, image in zip(self._pictures, images, strict=True)
            ]
        for writer, image in zip(self._writers, images, strict=True):
            writer.add(image, at - self._begins)
        self._lines.write(line.encode())
        self._lines.flush()
        self.num_frames += 1
        self.num_people += len(line.records)
        self._last_index, self._last_time = line.frame, time

    def close_segment(self) -> None:
        """Completes the segment, if there is one: its frames outlast a kill."""
        if self._begins is None:
            return
        for writer in self._writers:
            writer.close()
        segment = Segment(
            len(self.segments),
            self._begins,
            self.num_frames,
            self.num_people,
            self._last_index,
            self._last_time,
        )
        os.fsync(self._lines.fileno())
        for name in self._pictures:
            with open(self._path(segment.number, name), "rb") as file:
                os.fsync(file.fileno())
        with open(self._folder / _LIST, "ab") as file:
            file.write(segment.encode())
            file.flush()
            os.fsync(file.fileno())
        self.segments.append(segment)
        self._begins, self._writers = None, []

    def close(self) -> None:
        """Closes the JSON lines."""
        self._lines.close()

    def join(
        self,
        outputs: Sequence[pathlib.Path],
        sound: pathlib.Path | None,
        sound_range: tuple[Fraction, Fraction],
    ) -> str | None:
        """Makes one video of the segments of each picture.

        Args:
            outputs: the files to write, as the pictures.
            sound: see `video_files.join_segments`, as `sound_range`.
            sound_range: seconds.

        Returns:
            Why there is no sound, or not all of it; None if nothing is missing.
        """
        note = None
        for name, output in zip(self._pictures, outputs, strict=True):
            files = [(self._path(s.number, name), s.begins) for s in self.segments]
            note = join_segments(files, output, self._video.time_base, sound, sound_range)
        return note

    def _path(self, number: int, picture: str) -> pathlib.Path:
        return _segment_path(self._folder, number, picture)


def _segment_path(folder: pathlib.Path, number: int, picture: str) -> pathlib.Path:
    return folder / f"{number:06d}_{picture}.mp4"


def _complete_segments(folder: pathlib.Path, pictures: Sequence[str]) -> list[Segment]:
    """The segments that the list has and whose files are there."""
    segments: list[Segment] = []
    path = folder / _LIST
    content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines(keepends=True):
        try:
            segment = Segment.decode(line)
        except ValueError:  # half a line, or damage: what follows is made again
            break
        files = [_segment_path(folder, segment.number, name) for name in pictures]
        before = segments[-1].num_frames if segments else 0
        is_next = segment.number == len(segments) and segment.num_frames > before
        if not is_next or not all(file.exists() for file in files):
            break
        segments.append(segment)
    return segments


def _line_ends(path: pathlib.Path) -> list[int]:
    """Where the lines of a file end, in bytes, with 0 for the beginning."""
    ends = [0]
    if path.exists():
        with open(path, "rb") as file:
            ends.extend(file.tell() for line in iter(file.readline, b"") if line.endswith(b"\n"))
    return ends
