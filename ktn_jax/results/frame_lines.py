"""People of videos as JSON lines, one a frame, so that a long run can be read while it runs.

{"frame": 12, "time": 0.48, "results": [...]}: the frame's number in its video, from 0; seconds
since the video's beginning; the frame's people as records of a results file, whose `image_id` is
the frame's number. `"is_repeated": true` is there if the frame is broken and stands for the last
good one, and `"smoothed_over_s"` if people were smoothed, see `results.smoothing`.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import orjson

from ktn_jax.results.detection_checks import ResultsError, check_record
from ktn_jax.results.records import PersonResult, record_to_person

_LARGEST_NUMBER = 1e300
_BEGINNING, _LONGEST_BEGINNING = re.compile(rb'(\xef\xbb\xbf)?\s*{\s*"frame"\s*:'), 256
_LONGEST_LINE = 1 << 30  # bytes: a file without line breaks must not fill the memory


@dataclasses.dataclass(frozen=True)
class FrameLine:
    """A frame of a video and its records.

    Attributes:
        frame: number of the frame in the video, from 0.
        time: seconds since the video's beginning.
        records: of the results format.
        is_repeated: whether it stands for a broken frame.
        smoothed_over_s: seconds over which people were smoothed; 0 for not.
    """

    frame: int
    time: float
    records: Sequence[Mapping[str, Any]]
    is_repeated: bool = False
    smoothed_over_s: float = 0.0

    def encode(self) -> bytes:
        """The line, with its line break."""
        line: dict[str, Any] = {"frame": self.frame, "time": self.time}
        if self.is_repeated:
            line["is_repeated"] = True
        if self.smoothed_over_s:
            line["smoothed_over_s"] = self.smoothed_over_s
        return orjson.dumps(line | {"results": list(self.records)}) + b"\n"

    def people(self) -> list[PersonResult]:
        """The people of the records.

        Raises:
            ResultsError: a picture of theirs is damaged.
        """
        where = f"frame {self.frame}"
        return [
            record_to_person(f"{where}, record {number}", record)
            for number, record in enumerate(self.records)
        ]


def are_frame_lines(path: str | os.PathLike[str]) -> bool:
    """Whether a file of results begins as JSON lines of frames do.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        return _BEGINNING.match(file.read(_LONGEST_BEGINNING)) is not None


def read_frame_lines(path: str | os.PathLike[str]) -> Iterator[FrameLine]:
    """Reads JSON lines of frames, one by one.

    Args:
        path: A file that may still be written: a last line without its end is left out.

    Yields:
        The lines, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsError: a line is damaged; the message names the file, the line, and the field.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            if not line.endswith(b"\n"):
                if len(line) == _LONGEST_LINE:
                    raise ResultsError(f"{path}: line {number} is too long for people of a frame")
                return
            yield _checked_line(f"{path}: line {number}", line)


def _checked_line(where: str, line: bytes) -> FrameLine:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ResultsError(f"{where}: wanted an object, got a {type(content).__name__}")
    frame, records = content.get("frame"), content.get("results")
    time, smoothed = content.get("time"), content.get("smoothed_over_s", 0)
    if type(frame) is not int or frame < 0:
        raise ResultsError(f"{where}: frame must be a number from 0, got {frame!r:.50}")
    if not _is_number(time):
        raise ResultsError(f"{where}: time must be a finite number, got {time!r:.50}")
    if not isinstance(records, list):
        raise ResultsError(f"{where}: results must be a list, got {type(records).__name__}")
    checked = [check_record(f"{where}: record {n}", record) for n, record in enumerate(records)]
    if not _is_number(smoothed):
        raise ResultsError(f"{where}: smoothed_over_s must be a number, got {smoothed!r:.50}")
    is_repeated = content.get("is_repeated") is True
    return FrameLine(frame, float(time), checked, is_repeated, float(smoothed))


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can be, neither NaN nor infinite."""
    return type(value) in (int, float) and abs(value) < _LARGEST_NUMBER
