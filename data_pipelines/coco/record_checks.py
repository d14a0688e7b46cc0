"""What one record of a DensePose-COCO file must satisfy, and what is said when it does not."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.data_pipelines.coco import rle

DENSEPOSE_POINT_KEYS = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")
MAX_IMAGE_ID = 2**31 - 1  # image ids travel as int32

# UltraPose writes a confidence for the visibility; its own loader counts keypoints from here on.
MIN_KEYPOINT_CONFIDENCE = 0.2

# Boxes and keypoints come rounded, and keypoints as pixel indices: a pixel over is no mistake.
_BORDER_TOLERANCE = 1.0

KINDS: dict[str, str] = {
    "file_missing": "the annotation file is not there",
    "file_unreadable": "the annotation file is not UTF-8 text",
    "not_json": "the annotation file is not JSON, or was cut short",
    "wrong_top_level": "the file is not an object with images, annotations and categories",
    "missing_section": "images, annotations or categories is missing or not a list",
    "no_person_category": "no category is named person, and there is more than one",
    "not_an_object": "a record is not an object",
    "missing_key": "a record lacks a key it must have",
    "wrong_type": "a value has another type than the format says",
    "id_range": "an image id is negative or does not fit 32 bits",
    "duplicate_image": "two images share an id",
    "duplicate_annotation": "two annotations share an id",
    "image_size": "an image's height or width is not positive",
    "file_name": "an image's file name is empty, absolute or leaves its folder",
    "image_missing": "the image file is not there",
    "image_unreadable": "the image file is empty or not an image",
    "image_truncated": "the image file ends before the image does",
    "image_size_mismatch": "the image file has another size than its record",
    "unknown_image": "an annotation names an image that is not in the file",
    "unknown_category": "an annotation names a category that is not in the file",
    "box_length": "a box is not four numbers",
    "box_not_finite": "a box holds NaN or infinity",
    "box_empty": "a box has no width or no height",
    "box_outside": "a box reaches out of its image by more than a pixel",
    "area": "an area is negative or not finite",
    "crowd_flag": "iscrowd is neither 0 nor 1",
    "keypoints_length": "keypoints are not 51 numbers",
    "keypoints_not_finite": "keypoints hold NaN or infinity",
    "keypoint_visibility": "a keypoint's visibility is outside 0..2",
    "keypoint_confidence": "a visibility is a fraction, read as labelled from 0.2 on",
    "keypoint_outside": "a labelled keypoint lies outside its image",
    "keypoint_count": "num_keypoints differs from the number of labelled keypoints",
    "polygon_length": "a polygon is not three or more x, y pairs",
    "polygon_not_finite": "a polygon holds NaN or infinity",
    "segmentation_rle": "a run-length segmentation has the wrong size or cannot be decoded",
    "densepose_incomplete": "some dp_ keys are there and others are not",
    "densepose_type": "a dp_ value is not a list of numbers",
    "densepose_lengths": "dp_x, dp_y, dp_I, dp_U and dp_V differ in length",
    "point_not_finite": "dp_x or dp_y holds NaN or infinity",
    "point_range": "dp_x or dp_y is outside 0..256",
    "patch_not_integer": "dp_I holds a value that is not a whole number",
    "patch_range": "dp_I is outside 0..24",
    "uv_not_finite": "dp_U or dp_V holds NaN or infinity",
    "uv_range": "dp_U or dp_V is outside 0..1",
    "masks_type": "dp_masks is not a list of run-length masks and empty entries",
    "masks_count": "dp_masks has more entries than there are body parts",
    "mask_size": "an entry of dp_masks is not 256x256",
    "mask_undecodable": "an entry of dp_masks cannot be decoded",
}
"""Every kind of finding with what it means."""

WARNINGS = frozenset({"keypoint_confidence", "keypoint_outside", "keypoint_count"})
"""Kinds that are reported but leave the record usable; every other kind is an error."""

DENSEPOSE_KINDS = frozenset(list(KINDS)[list(KINDS).index("densepose_incomplete") :])
"""Kinds that spoil a person's DensePose but not the person."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing wrong: which file, which record in it, which field, and what."""

    kind: str  # a key of KINDS
    file: str
    record: str  # "image 785", "annotation 12", "annotations[3]" where the id itself is bad
    field: str
    message: str

    @property
    def is_error(self) -> bool:
        """Whether the record cannot be used as it is."""
        return self.kind not in WARNINGS

    def __str__(self) -> str:
        level = "error" if self.is_error else "warning"
        return f"{self.file}: {self.record}: {self.field}: {level} [{self.kind}] {self.message}"


@dataclasses.dataclass
class Collector:
    """Gathers the findings on one record."""

    file: str
    record: str
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def add(self, kind: str, field: str, message: str) -> None:
        """Notes one finding; KeyError on a kind that KINDS does not explain."""
        KINDS[kind]
        self.findings.append(Finding(kind, self.file, self.record, field, message))


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer; true and false are not."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are not."""
    return type(value) in (int, float)


def to_numbers(value: Any) -> np.ndarray | None:
    """Reads a JSON list of numbers as [N] float64; None where it is anything else."""
    if not isinstance(value, list | tuple) or not set(map(type, value)) <= {int, float}:
        return None
    try:
        return np.asarray(value, np.float64)
    except OverflowError:  # an integer beyond the range of float64
        return None


def record_name(section: str, position: int, raw: Any) -> str:
    """Names a record by its id, or by its place where it has no usable id."""
    if isinstance(raw, Mapping) and is_integer(raw.get("id")):
        return f"{section.removesuffix('s')} {raw['id']}"
    return f"{section}[{position}]"


def check_image(raw: Any, found: Collector) -> None:
    """Checks one entry of `images`."""
    if not _has_keys(raw, ("id", "file_name", "height", "width"), found):
        return
    if not is_integer(raw["id"]):
        found.add("wrong_type", "id", f"must be an integer, got {raw['id']!r}")
    elif not 0 <= raw["id"] <= MAX_IMAGE_ID:
        found.add("id_range", "id", f"must be in 0..{MAX_IMAGE_ID}, got {raw['id']}")
    for side in ("height", "width"):
        if not is_integer(raw[side]):
            found.add("wrong_type", side, f"must be an integer, got {raw[side]!r}")
        elif raw[side] <= 0:
            found.add("image_size", side, f"must be positive, got {raw[side]}")
    name = raw["file_name"]
    if not isinstance(name, str):
        found.add("wrong_type", "file_name", f"must be a string, got {name!r}")
        return
    path = pathlib.PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        found.add("file_name", "file_name", f"must stay inside the image folder, got {name!r}")


def check_annotation(
    raw: Any, image_sizes_hw: Mapping[int, tuple[int, int]], categories: set, found: Collector
) -> None:
    """Checks one entry of `annotations`.

    Args:
        raw: the entry as JSON gave it.
        image_sizes_hw: (height, width) by image id, (0, 0) for an image whose own record is bad.
        categories: the ids in `categories`.
        found: takes the findings.
    """
    if not _has_keys(raw, ("id", "image_id", "category_id", "bbox"), found):
        return
    for key in ("id", "image_id", "category_id"):
        if not is_integer(raw[key]):
            found.add("wrong_type", key, f"must be an integer, got {raw[key]!r}")
    if is_integer(raw["category_id"]) and raw["category_id"] not in categories:
        found.add("unknown_category", "category_id", f"no category has id {raw['category_id']}")
    size_hw = (0, 0)
    if is_integer(raw["image_id"]):
        if raw["image_id"] not in image_sizes_hw:
            found.add("unknown_image", "image_id", f"no image has id {raw['image_id']}")
        size_hw = image_sizes_hw.get(raw["image_id"], size_hw)
    _check_box(raw["bbox"], size_hw, found)
    area = raw.get("area", 0.0)
    if not is_number(area) or not math.isfinite(area) or area < 0:
        found.add("area", "area", f"must be a number >= 0, got {area!r}")
    if raw.get("iscrowd", 0) not in (0, 1):
        found.add("crowd_flag", "iscrowd", f"must be 0 or 1, got {raw['iscrowd']!r}")
    if "keypoints" in raw:
        _check_keypoints(raw, size_hw, found)
    if "segmentation" in raw:
        _check_segmentation(raw["segmentation"], size_hw, found)
    if has_densepose(raw):
        _check_densepose(raw, found)


def has_densepose(raw: Mapping[str, Any]) -> bool:
    """Whether an annotation carries anything of DensePose, complete or not."""
    return any(key in raw for key in (*DENSEPOSE_POINT_KEYS, "dp_masks"))


def _has_keys(raw: Any, keys: Iterable[str], found: Collector) -> bool:
    if not isinstance(raw, Mapping):
        found.add("not_an_object", "(record)", f"must be an object, got {type(raw).__name__}")
        return False
    missing = [key for key in keys if key not in raw]
    for key in missing:
        found.add("missing_key", key, "is missing")
    return not missing


def _check_box(value: Any, size_hw: tuple[int, int], found: Collector) -> None:
    box = to_numbers(value)
    if box is None or box.shape != (4,):
        found.add("box_length", "bbox", f"must be [x, y, width, height], got {value!r:.80}")
    elif not np.isfinite(box).all():
        found.add("box_not_finite", "bbox", f"must be finite, got {value}")
    elif box[2] <= 0 or box[3] <= 0:
        found.add("box_empty", "bbox", f"width and height must be positive, got {value}")
    elif all(size_hw):
        height, width = size_hw
        low = min(box[0], box[1])
        over = max(box[0] + box[2] - width, box[1] + box[3] - height)
        if low < -_BORDER_TOLERANCE or over > _BORDER_TOLERANCE:
            found.add("box_outside", "bbox", f"{value} leaves the {width}x{height} image")


def _check_keypoints(raw: Mapping[str, Any], size_hw: tuple[int, int], found: Collector) -> None:
    numbers = to_numbers(raw["keypoints"])
    if numbers is None or numbers.shape != (parts.NUM_KEYPOINTS * 3,):
        found.add("keypoints_length", "keypoints", "must be 51 numbers: x, y, visibility of 17")
        return
    if not np.isfinite(numbers).all():
        found.add("keypoints_not_finite", "keypoints", "must be finite")
        return
    x, y, visibility = numbers.reshape(-1, 3).T
    if visibility.min() < 0 or visibility.max() > 2:
        wrong = visibility.min() if visibility.min() < 0 else visibility.max()
        found.add("keypoint_visibility", "keypoints", f"visibility must be 0, 1 or 2, got {wrong}")
        return
    if (visibility != np.round(visibility)).any():
        found.add("keypoint_confidence", "keypoints", "visibility holds fractions")
    is_labelled = visibility >= MIN_KEYPOINT_CONFIDENCE
    if all(size_hw):
        over = np.maximum(x - size_hw[1], y - size_hw[0])
        is_outside = is_labelled & ((np.minimum(x, y) < -_BORDER_TOLERANCE) | (over > 0))
        if is_outside.any():
            names = ", ".join(parts.KEYPOINT_NAMES[k] for k in np.flatnonzero(is_outside))
            found.add("keypoint_outside", "keypoints", f"{names} outside the image")
    labelled = int(is_labelled.sum())
    if raw.get("num_keypoints", labelled) != labelled:
        found.add(
            "keypoint_count", "num_keypoints", f"is {raw['num_keypoints']!r:.40}, not {labelled}"
        )


def _check_segmentation(value: Any, size_hw: tuple[int, int], found: Collector) -> None:
    if isinstance(value, Mapping):
        try:
            rle.decode_rle(value, size_hw if all(size_hw) else None)
        except rle.RleError as error:
            found.add("segmentation_rle", "segmentation", str(error))
        return
    if not isinstance(value, list):
        found.add("wrong_type", "segmentation", "must be polygons or a run-length mask")
        return
    for index, polygon in enumerate(value):
        field = f"segmentation[{index}]"
        numbers = to_numbers(polygon)
        if numbers is None or len(numbers) < 6 or len(numbers) % 2:
            found.add("polygon_length", field, "must be three or more x, y pairs")
        elif not np.isfinite(numbers).all():
            found.add("polygon_not_finite", field, "must be finite")


def _check_densepose(raw: Mapping[str, Any], found: Collector) -> None:
    missing = [key for key in (*DENSEPOSE_POINT_KEYS, "dp_masks") if key not in raw]
    for key in missing:
        found.add("densepose_incomplete", key, "is missing though other dp_ keys are there")
    if "dp_masks" in raw:
        _check_masks(raw["dp_masks"], found)
    columns = {}
    for key in set(DENSEPOSE_POINT_KEYS) - set(missing):
        columns[key] = to_numbers(raw[key])
        if columns[key] is None:
            found.add("densepose_type", key, "must be a list of numbers")
    if len(columns) < len(DENSEPOSE_POINT_KEYS) or any(c is None for c in columns.values()):
        return
    lengths = {key: len(columns[key]) for key in DENSEPOSE_POINT_KEYS}
    if len(set(lengths.values())) > 1:
        found.add("densepose_lengths", "dp_x", f"lengths differ: {lengths}")
    for key in ("dp_x", "dp_y"):
        _check_range(columns[key], key, (0, PART_GRID), ("point_not_finite", "point_range"), found)
    for key in ("dp_U", "dp_V"):
        _check_range(columns[key], key, (0, 1), ("uv_not_finite", "uv_range"), found)
    patches = columns["dp_I"]
    is_whole = np.isfinite(patches) & (patches == np.round(patches))
    if not is_whole.all():
        index = int(np.argmin(is_whole))
        found.add("patch_not_integer", "dp_I", f"point {index} is {patches[index]}")
    else:
        kinds = ("patch_not_integer", "patch_range")
        _check_range(patches, "dp_I", (0, parts.NUM_PATCHES), kinds, found)


def _check_range(
    values: np.ndarray,
    field: str,
    limits: tuple[float, float],
    kinds: tuple[str, str],
    found: Collector,
) -> None:
    """Reports the first value that is not finite, else the first outside [low, high]."""
    is_finite = np.isfinite(values)
    if not is_finite.all():
        index = int(np.argmin(is_finite))
        found.add(kinds[0], field, f"point {index} is {values[index]}")
        return
    is_outside = (values < limits[0]) | (values > limits[1])
    if is_outside.any():
        index = int(np.argmax(is_outside))
        text = f"{int(is_outside.sum())} outside {limits[0]}..{limits[1]}"
        found.add(kinds[1], field, f"{text}, first: point {index} is {values[index]}")


def _check_masks(value: Any, found: Collector) -> None:
    if not isinstance(value, list):
        found.add("masks_type", "dp_masks", f"must be a list, got {type(value).__name__}")
        return
    if len(value) > parts.NUM_COARSE:
        found.add("masks_count", "dp_masks", f"has {len(value)} entries, at most 14 are known")
    for index, entry in enumerate(value):
        if not entry:  # a part that is not seen: [], {} or null
            continue
        field = f"dp_masks[{index}]"
        if not isinstance(entry, Mapping):
            found.add("masks_type", field, f"must be a run-length mask, got {type(entry).__name__}")
            continue
        try:
            size = rle.rle_size(entry)
            if size != (PART_GRID, PART_GRID):
                found.add("mask_size", field, f"must be 256x256, got {size[0]}x{size[1]}")
                continue
            rle.decode_rle(entry)
        except rle.RleError as error:
            found.add("mask_undecodable", field, str(error))
