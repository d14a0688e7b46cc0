"""Checks of the detections in a results file."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.body import parts

CONFIDENCES = ("sigma", "kappa_u", "kappa_v", "fine_segm_confidence", "coarse_segm_confidence")
"""Names of the maps that models with confidences add to a person."""

_LARGEST_COORDINATE = 1e6  # pixels; beyond, float32 no longer tells their fractions apart
_LARGEST = 1e300  # NaN and infinity compare false, and so does an integer beyond float64
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ResultsError(ValueError):
    """A results file or a person is malformed. The message names the record and the field."""


def length_of_pixels(length: float, pixels: int) -> float:
    """The length closest to `length` that truncates to a map of so many pixels."""
    shortest = float(pixels) if pixels > 1 else 0.0
    return float(np.clip(length, shortest, np.nextafter(np.float32(pixels + 1), np.float32(0))))


def check_record(where: str, record: Any) -> dict[str, Any]:
    """Checks a detection's fields and converts it to the layout with `uv_shape` and `uv_data`.

    All readers of results use it, in memory or as a stream. The picture stays encoded and only its
    header is checked; `iuv_pictures.decode_record` checks the rest.

    Args:
        where: names the record in messages.
        record: as JSON gave it, in either layout.

    Returns:
        A copy in the layout with `uv_shape` and `uv_data`, without these two if there is no
        picture; other fields are as they were.

    Raises:
        ResultsError: a wrong or missing field.
    """
    if not isinstance(record, Mapping):
        raise ResultsError(f"{where}: wanted an object with fields, got {record!r:.50}")
    optional = ("densepose", "uv_shape", "uv_data")
    checked: dict[str, Any] = {
        name: value for name, value in record.items() if name not in optional or value is not None
    }
    if "densepose" in checked:
        picture = checked.pop("densepose")
        try:
            checked["uv_shape"], checked["uv_data"] = picture[0]
        except (IndexError, KeyError, TypeError, ValueError):
            raise ResultsError(
                f"{where}: densepose must be [[shape, base64 PNG], box], got {picture!r:.50}"
            ) from None
    wanted = ["image_id", "score", "bbox"]
    # Confidences are those of the pixels of a picture.
    has_picture = any(name in checked for name in ("uv_shape", "uv_data", "confidences"))
    if has_picture:
        wanted += ["uv_shape", "uv_data"]
    missing = [name for name in wanted if name not in checked]
    if missing:
        raise ResultsError(f"{where}: missing {', '.join(missing)}")
    for name in ("image_id", "category_id"):
        if name in checked and type(checked[name]) is not int:
            raise ResultsError(f"{where}: {name} must be a whole number, got {checked[name]!r:.50}")
    track_id = checked.get("track_id")
    if track_id is not None and (type(track_id) is not int or track_id < 0):
        raise ResultsError(f"{where}: track_id must be a whole number from 0, got {track_id!r:.50}")
    if not _are_numbers([checked["score"]], 1):
        raise ResultsError(f"{where}: score must be a finite number, got {checked['score']!r:.50}")
    box = checked["bbox"]
    if not _are_numbers(box, 4) or min(box[2:]) < 0 or max(map(abs, box)) > _LARGEST_COORDINATE:
        raise ResultsError(
            f"{where}: bbox must be [x, y, w, h] in pixels, finite, w and h not negative, "
            f"got {box!r:.80}"
        )
    keypoints = checked.get("keypoints")
    if keypoints is not None and not _are_numbers(keypoints, 3 * parts.NUM_KEYPOINTS):
        raise ResultsError(f"{where}: keypoints must be 51 finite numbers, got {keypoints!r:.50}")
    if has_picture:
        _check_picture(where, checked)
    if "confidences" in checked:
        _check_confidences(where, checked)
    return checked


def _check_picture(where: str, record: Mapping[str, Any]) -> None:
    shape, text = record["uv_shape"], record["uv_data"]
    if not _are_numbers(shape, 3) or any(n != int(n) or n < 1 for n in shape) or shape[0] != 3:
        raise ResultsError(f"{where}: uv_shape must be [3, h, w], got {shape!r:.50}")
    for pixels, length in zip(shape[1:], record["bbox"][:1:-1], strict=True):
        # Some systems round boxes: a pixel more or less than int(length) is no mistake.
        if not pixels - 1 <= max(length, 1) < pixels + 2:
            raise ResultsError(
                f"{where}: uv_shape {list(shape)} does not fit bbox {record['bbox']}: wanted "
                "[3, int(h), int(w)]"
            )
    height, width = _png_size_hw(f"{where}: uv_data", text)
    if [height, width] != list(shape[1:]):
        raise ResultsError(
            f"{where}: uv_shape {list(shape)} is not that of uv_data, [3, {height}, {width}]"
        )


def _png_size_hw(where: str, text: Any) -> tuple[int, int]:
    """Height and width of a PNG in base64, from its header."""
    if not isinstance(text, str):
        raise ResultsError(f"{where} must be text, got {text!r:.50}")
    try:
        head = base64.b64decode(text[:32])
    except (binascii.Error, ValueError):
        head = b""
    if not head.startswith(_PNG_SIGNATURE) or len(head) != 24:
        raise ResultsError(f"{where} is not a PNG in base64: {text!r:.50}")
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def _check_confidences(where: str, record: Mapping[str, Any]) -> None:
    found, size = record["confidences"], list(record["uv_shape"][1:])
    if not isinstance(found, Mapping) or not set(found) <= set(CONFIDENCES):
        raise ResultsError(
            f"{where}: confidences must be an object with fields of {', '.join(CONFIDENCES)}, got "
            f"{found!r:.80}"
        )
    for name, entry in found.items():
        place = f"{where}: confidences: {name}"
        if not isinstance(entry, Mapping) or not {"range", "data"} <= entry.keys():
            raise ResultsError(f"{place} must have range and data, got {entry!r:.50}")
        limits = entry["range"]
        if not _are_numbers(limits, 2) or limits[0] > limits[1]:
            raise ResultsError(f"{place}: range must be [lowest, highest], got {limits!r:.50}")
        own = list(_png_size_hw(f"{place}: data", entry["data"]))
        if own != size:
            raise ResultsError(f"{place}: {own} pixels, wanted those of uv_shape, {size}")


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(type(value) in (int, float) and -_LARGEST < value < _LARGEST for value in values)
    )
