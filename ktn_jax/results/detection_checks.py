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
    has_vertices = checked.get("vertices") is not None
    has_picture = "uv_shape" in checked or "uv_data" in checked
    # Confidences are those of the pixels of a picture, or of the vertices'.
    has_picture = has_picture or ("confidences" in checked and not has_vertices)
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
    if has_vertices:
        _check_vertices(where, checked)
    if "confidences" in checked:
        size = checked["uv_shape"][1:] if has_picture else checked["vertices"]["shape"]
        _check_confidences(where, checked["confidences"], list(size))
    return checked


def _check_picture(where: str, record: Mapping[str, Any]) -> None:
    shape, text = record["uv_shape"], record["uv_data"]
    if not _are_sizes(shape, 3) or shape[0] != 3:
        raise ResultsError(f"{where}: uv_shape must be [3, h, w], got {shape!r:.50}")
    if not _fits_box(shape[1:], record["bbox"]):
        raise ResultsError(
            f"{where}: uv_shape {list(shape)} does not fit bbox {record['bbox']}: wanted "
            "[3, int(h), int(w)]"
        )
    height, width = _png_size_hw(f"{where}: uv_data", text)
    if [height, width] != list(shape[1:]):
        raise ResultsError(
            f"{where}: uv_shape {list(shape)} is not that of uv_data, [3, {height}, {width}]"
        )


def _check_vertices(where: str, record: Mapping[str, Any]) -> None:
    found, place = record["vertices"], f"{where}: vertices"
    if not isinstance(found, Mapping) or not {"mesh", "shape", "data"} <= found.keys():
        raise ResultsError(f"{place} must have mesh, shape and data, got {found!r:.80}")
    mesh, shape = found["mesh"], found["shape"]
    if not isinstance(mesh, str) or not mesh:
        raise ResultsError(f"{place}: mesh must be the name of a mesh, got {mesh!r:.50}")
    if not _are_sizes(shape, 2) or not _fits_box(shape, record["bbox"]):
        raise ResultsError(
            f"{place}: shape must be [int(h), int(w)] of bbox {record['bbox']}, got {shape!r:.50}"
        )
    size = _png_size_hw(f"{place}: data", found["data"])
    if list(size) != list(shape):
        raise ResultsError(f"{place}: shape {shape} is not that of data, {list(size)}")
    if "uv_shape" in record and list(shape) != list(record["uv_shape"][1:]):
        raise ResultsError(
            f"{place}: shape {shape} is not that of the picture, uv_shape {record['uv_shape']}"
        )


def _are_sizes(values: Any, count: int) -> bool:
    return _are_numbers(values, count) and all(n == int(n) and n >= 1 for n in values)


def _fits_box(size_hw: Sequence[float], bbox: Sequence[float]) -> bool:
    """Whether pixels are as many as the box has; some systems round boxes, so one more or less."""
    pairs = zip(size_hw, bbox[:1:-1], strict=True)
    return all(pixels - 1 <= max(length, 1) < pixels + 2 for pixels, length in pairs)


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


def _check_confidences(where: str, found: Any, size: list[int]) -> None:
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
            raise ResultsError(f"{place}: {own} pixels, wanted those of the person, {size}")


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(type(value) in (int, float) and -_LARGEST < value < _LARGEST for value in values)
    )
