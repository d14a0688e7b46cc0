"""Detections from a results file of any system, read without holding the file in memory.

One pass over the file notes of every detection its image, box and score and where it lies; the
IUV pictures, nearly all of a file, are read again one by one when their image is scored. Accepted
are a JSON list of detections and JSON lines (one detection a line).
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from ktn_jax.body.parts import NUM_KEYPOINTS
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth, is_box
from ktn_jax.results.records import ResultsError, decode_iuv

_CHUNK_BYTES = 1 << 22
_ENTRY_LIMIT_BYTES = 1 << 28  # a detection is some tens of kilobytes
_SEPARATORS = " \t\r\n,"


@dataclasses.dataclass(frozen=True)
class Detection:
    """A detection without its IUV picture.

    Attributes:
        detection_id: its place in the file, from 1.
        image_id: of the annotation file.
        score: finite.
        box_xywh: in pixels of the image.
        offset: of its JSON text in the file, in bytes.
        length: of its JSON text, in bytes.
    """

    detection_id: int
    image_id: int
    score: float
    box_xywh: tuple[float, float, float, float]
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class ResultIndex:
    """What a results file holds.

    Attributes:
        path: of the file.
        by_image: detections of each image, best score first, equal scores in file order.
        keypoints: [51] by detection id, of the detections that have them.
        notes: what the reader should know.
    """

    path: pathlib.Path
    by_image: Mapping[int, tuple[Detection, ...]]
    keypoints: Mapping[int, np.ndarray]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.by_image.values()))


def iterate_entries(path: str | pathlib.Path) -> Iterator[tuple[int, int, dict]]:
    """Yields (offset, length, entry) of every JSON object in a list or in JSON lines.

    Args:
        path: of the file. At most one chunk, or one entry if that is larger, is in memory.

    Yields:
        Byte offset and length of the entry's text, and the decoded entry.

    Raises:
        EvaluationError: the file is missing, empty, cut short or not JSON.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise EvaluationError(f"{path}: no such results file")
    decoder = json.JSONDecoder()
    with open(path, "rb") as handle:
        window = _Window(path, handle)
        is_list = window.skip(" \t\r\n") == "["
        if is_list:
            window.position += 1
        while (first := window.skip(_SEPARATORS)) not in ("", "]"):
            if first != "{":
                raise EvaluationError(
                    f"{path}: expected a detection {{...}} at byte {window.offset}, found {first!r}"
                )
            start = window.offset
            entry = window.decode(decoder)
            yield start, window.offset - start, entry
        if is_list and first != "]":
            raise EvaluationError(
                f"{path}: the list is not closed; was the file cut short? It ends at byte "
                f"{window.offset}"
            )


class _Window:
    """The part of a file that is being decoded."""

    def __init__(self, path: pathlib.Path, handle: BinaryIO) -> None:
        self._path, self._handle = path, handle
        # Latin-1 maps each byte to one character, so that places in the text are places in the
        # file; what we read (keys, numbers, base64) is ASCII.
        self._text = handle.read(_CHUNK_BYTES).decode("latin-1")
        self._base = 0
        self.position = 0
        if self._text.startswith("\xef\xbb\xbf"):
            self.position = 3
        if not self._text.strip():
            raise EvaluationError(
                f"{path}: empty file; an evaluation without detections is the list []"
            )

    @property
    def offset(self) -> int:
        return self._base + self.position

    def _extend(self, size: int) -> bool:
        more = self._handle.read(size)
        self._text = self._text[self.position :] + more.decode("latin-1")
        self._base, self.position = self.offset, 0
        return bool(more)

    def skip(self, characters: str) -> str:
        """Moves behind the given characters; returns the next one, "" at the end of the file."""
        while True:
            while self.position < len(self._text):
                if self._text[self.position] not in characters:
                    return self._text[self.position]
                self.position += 1
            if not self._extend(_CHUNK_BYTES):
                return ""

    def decode(self, decoder: json.JSONDecoder) -> dict:
        size = _CHUNK_BYTES
        while True:
            try:
                entry, self.position = decoder.raw_decode(self._text, self.position)
                return entry
            except json.JSONDecodeError as error:
                # An entry that goes on behind the window fails near its end, or in a string.
                may_go_on = error.pos > len(self._text) - 64 or "Untermin" in error.msg
                if not may_go_on or len(self._text) - self.position > _ENTRY_LIMIT_BYTES:
                    raise EvaluationError(
                        f"{self._path}: not JSON at byte {self._base + error.pos} ({error.msg})"
                    ) from error
                if not self._extend(size):
                    raise EvaluationError(
                        f"{self._path}: the detection at byte {self.offset} is not complete; was "
                        "the file cut short?"
                    ) from error
                size *= 2
            except RecursionError as error:
                raise EvaluationError(
                    f"{self._path}: the entry at byte {self.offset} is nested too deeply"
                ) from error


def index_results(path: str | pathlib.Path, truth: GroundTruth) -> ResultIndex:
    """Goes through a results file and checks every detection against the annotation file.

    Args:
        path: a JSON list of detections, or JSON lines.
        truth: the annotations that the results belong to.

    Returns:
        Where each person detection lies.

    Raises:
        EvaluationError: the file is not JSON, or a detection has a wrong or missing field.
    """
    path = pathlib.Path(path)
    known = {image.image_id for image in truth.images}
    by_image: dict[int, list[Detection]] = {}
    keypoints: dict[int, np.ndarray] = {}
    seen, duplicates, other_categories = set(), 0, 0
    for number, (offset, length, entry) in enumerate(iterate_entries(path), start=1):
        where = f"{path.name}: detection {number}"
        _check_fields(where, entry)
        if entry["image_id"] not in known:
            raise EvaluationError(
                f"{where}: image_id {entry['image_id']!r} is not in {truth.name}; were these "
                "results made on another set of images?"
            )
        if not _is_person(where, entry, truth):
            other_categories += 1
            continue
        if "densepose" not in entry and "uv_data" not in entry:
            raise EvaluationError(f"{where}: no IUV picture: neither 'densepose' nor 'uv_data'")
        box = tuple(float(x) for x in entry["bbox"])
        detection = Detection(number, entry["image_id"], float(entry["score"]), box, offset, length)
        key = (detection.image_id, detection.score, box)
        duplicates += key in seen
        seen.add(key)
        if entry.get("keypoints") is not None:
            keypoints[number] = _read_keypoints(where, entry["keypoints"])
        by_image.setdefault(detection.image_id, []).append(detection)
    notes = []
    if duplicates:
        notes.append(
            f"{duplicates} detections have the image, box and score of another one; they count as "
            "false positives, as in the reference"
        )
    if other_categories:
        notes.append(f"{other_categories} detections of other categories than person left out")
    ranked = {
        image: tuple(sorted(found, key=lambda detection: -detection.score))
        for image, found in by_image.items()
    }
    return ResultIndex(path, ranked, keypoints, tuple(notes))


def _check_fields(where: str, entry: Mapping[str, Any]) -> None:
    if "results" in entry and "bbox" not in entry:
        raise EvaluationError(f"{where}: this is a shard of results; merge the shards first")
    image_id, score = entry.get("image_id"), entry.get("score")
    if isinstance(image_id, bool) or not isinstance(image_id, int):
        raise EvaluationError(f"{where}: image_id must be a whole number, got {image_id!r}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise EvaluationError(f"{where}: score must be a finite number, got {score!r}")
    if not is_box(entry.get("bbox")):
        raise EvaluationError(
            f"{where}: bbox must be four finite numbers [x, y, w, h] with w, h >= 0, got "
            f"{entry.get('bbox')!r}"
        )


def _is_person(where: str, entry: Mapping[str, Any], truth: GroundTruth) -> bool:
    category = entry.get("category_id", truth.category_id)
    if category not in truth.category_ids:
        raise EvaluationError(
            f"{where}: category_id {category!r} is not in {truth.name}, which has "
            f"{sorted(truth.category_ids)}; person is {truth.category_id}"
        )
    return category == truth.category_id


def _read_keypoints(where: str, values: Any) -> np.ndarray:
    try:
        keypoints = np.array(values, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{where}: keypoints must be numbers") from error
    if keypoints.shape != (3 * NUM_KEYPOINTS,) or not np.isfinite(keypoints).all():
        raise EvaluationError(
            f"{where}: keypoints must be {3 * NUM_KEYPOINTS} finite numbers (x, y, score of "
            f"{NUM_KEYPOINTS} points), got {keypoints.size} values"
        )
    return keypoints


def read_payload(handle: BinaryIO, detection: Detection) -> tuple[np.ndarray, Any]:
    """Reads the IUV picture of a detection.

    Args:
        handle: the results file, opened for binary reading.
        detection: from `index_results` of the same file.

    Returns:
        uint8 [3, h, w] of (I, 255 U, 255 V) with h = max(int(box height), 1) and
        w = max(int(box width), 1), or one more; and the entry's `segmentation` or None.

    Raises:
        EvaluationError: the picture is missing, broken or of another size than its box.
    """
    name = os.path.basename(getattr(handle, "name", "results"))
    where = f"{name}: detection {detection.detection_id} of image {detection.image_id}"
    handle.seek(detection.offset)
    entry = json.loads(handle.read(detection.length))
    shape, text = _picture_fields(where, entry)
    least = (3, max(int(detection.box_xywh[3]), 1), max(int(detection.box_xywh[2]), 1))
    # Larger by one is a box that was rounded down: read, like in the reference, from its corner.
    if len(shape) != 3 or not all(0 <= n - m <= 1 for n, m in zip(shape, least, strict=True)):
        raise EvaluationError(
            f"{where}: the IUV picture has shape {list(shape)}, a box of "
            f"{list(detection.box_xywh[2:])} needs {list(least)} (3, int(height), int(width))"
        )
    try:
        iuv = decode_iuv(text)
    except (ResultsError, AttributeError, TypeError) as error:
        raise EvaluationError(f"{where}: IUV picture: {error}") from error
    if iuv.shape != shape:
        raise EvaluationError(f"{where}: the PNG has shape {iuv.shape}, the entry says {shape}")
    return iuv, entry.get("segmentation")


def _picture_fields(where: str, entry: Mapping[str, Any]) -> tuple[Any, Any]:
    try:
        if "uv_data" in entry:
            return tuple(int(x) for x in entry["uv_shape"]), entry["uv_data"]
        shape, text = entry["densepose"][0]
        return tuple(int(x) for x in shape), text
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{where}: wanted 'densepose': [[shape, base64 PNG], box], or 'uv_shape' and 'uv_data'"
        ) from error
