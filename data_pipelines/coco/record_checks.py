"""Checks of single records of a DensePose-COCO file.

Optional fields may be missing, null or empty, which means the same.
"""

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.data_pipelines.coco.densepose_checks import check_densepose, has_densepose
from ktn_jax.data_pipelines.coco.findings import Collector
from ktn_jax.data_pipelines.coco.json_values import is_absent, is_integer, is_number, to_numbers
from ktn_jax.runtime import rle

MAX_IMAGE_ID = 2**31 - 1  # image ids travel as int32
MAX_ANNOTATION_ID = 2**63 - 1
_MAX_SIDE = 1 << 16  # pixels; JPEG and our formats hold no larger pictures

# UltraPose writes a confidence for the visibility; its own loader counts keypoints from here on.
MIN_KEYPOINT_CONFIDENCE = 0.2

# Boxes and keypoints are rounded, and keypoints are pixel indices: a pixel over is no error.
BORDER_TOLERANCE = 1.0


def record_name(section: str, position: int, raw: Any) -> str:
    """Names a record by its id, or by its position where it has no usable id."""
    if isinstance(raw, Mapping) and is_integer(raw.get("id")):
        return f"{section.removesuffix('s')} {raw['id']}"
    return f"{section}[{position}]"


def check_image(raw: Any, found: Collector) -> None:
    """Checks one entry of `images`."""
    name = image_file_name(raw)
    keys = ("id", "height", "width") if name is not None else ("id", "file_name", "height", "width")
    if not _has_keys(raw, keys, found):
        return
    _check_id(raw["id"], (0, MAX_IMAGE_ID), found)
    for side in ("height", "width"):
        if not is_integer(raw[side]):
            found.add("wrong_type", side, f"must be an integer, got {raw[side]!r:.80}")
        elif not 0 < raw[side] <= _MAX_SIDE:
            found.add("image_size", side, f"must be in 1..{_MAX_SIDE}, got {raw[side]!r:.80}")
    _check_file_name(name, found)
    if not found.findings:
        _check_ignore_regions(raw, found)


def image_file_name(raw: Any) -> Any:
    """The file name of an entry of `images`; None where it has none.

    LVIS gives an address in its place, of which the split and the file count: train2017/NAME.jpg.
    """
    if not isinstance(raw, Mapping):
        return None
    if "file_name" in raw:
        return raw["file_name"] if raw["file_name"] is not None else ""
    url = raw.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None


def _check_id(value: Any, limits: tuple[int, int], found: Collector) -> None:
    if not is_integer(value):
        found.add("wrong_type", "id", f"must be an integer, got {value!r:.80}")
    elif not limits[0] <= value <= limits[1]:
        found.add("id_range", "id", f"must be in {limits[0]}..{limits[1]}, got {value!r:.80}")


def _check_file_name(name: Any, found: Collector) -> None:
    if not isinstance(name, str):
        found.add("wrong_type", "file_name", f"must be a string, got {name!r:.80}")
        return
    path = pathlib.PurePosixPath(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        found.add("file_name", "file_name", f"must stay inside the image folder, got {name!r:.300}")


def _check_ignore_regions(raw: Mapping[str, Any], found: Collector) -> None:
    """Polygons as two lists of lists, of the x and of the y."""
    fields = ("ignore_regions_x", "ignore_regions_y")
    if all(is_absent(raw.get(field)) for field in fields):
        return
    for field in fields:
        if not isinstance(raw.get(field), list):
            found.add("ignore_regions", field, "must be a list with a list for each polygon")
            return
    regions_x, regions_y = (raw[field] for field in fields)
    if len(regions_x) != len(regions_y):
        text = f"{len(regions_x)} polygons have x and {len(regions_y)} have y"
        found.add("ignore_regions", fields[0], text)
        return
    for index, columns in enumerate(zip(regions_x, regions_y, strict=True)):
        field = f"{fields[0]}[{index}]"
        x, y = map(to_numbers, columns)
        if x is None or y is None or len(x) != len(y) or len(x) < 3:
            found.add("ignore_regions", field, "must be three or more x, and as many y")
        elif not _is_near(np.stack([x, y], axis=1), (raw["height"], raw["width"])):
            found.add("ignore_regions", field, "must be in the image")


def check_annotation(
    raw: Any,
    image_sizes_hw: Mapping[int, tuple[int, int]],
    categories: set[int],
    found: Collector,
    has_sound_masks: bool = False,
) -> None:
    """Checks one entry of `annotations`, of a person or without a valid category.

    Args:
        raw: the entry as JSON gave it.
        image_sizes_hw: (height, width) by image id, (0, 0) for an image whose own record is bad.
        categories: the ids in `categories`.
        found: takes the findings.
        has_sound_masks: see `densepose_checks.find_sound_masks`.
    """
    if not _has_keys(raw, ("id", "image_id", "category_id", "bbox"), found):
        return
    _check_id(raw["id"], (-MAX_ANNOTATION_ID, MAX_ANNOTATION_ID), found)
    for key in ("image_id", "category_id"):
        if not is_integer(raw[key]):
            found.add("wrong_type", key, f"must be an integer, got {raw[key]!r:.80}")
    if is_integer(raw["category_id"]) and raw["category_id"] not in categories:
        text = f"no category has id {raw['category_id']!r:.80}"
        found.add("unknown_category", "category_id", text)
    size_hw = (0, 0)
    if is_integer(raw["image_id"]):
        if raw["image_id"] not in image_sizes_hw:
            found.add("unknown_image", "image_id", f"no image has id {raw['image_id']!r:.80}")
        size_hw = image_sizes_hw.get(raw["image_id"], size_hw)
    _check_box(raw["bbox"], size_hw, found)
    area = raw.get("area")
    if not is_absent(area) and not (is_number(area) and 0 <= area < math.inf):
        found.add("area", "area", f"must be a number >= 0, got {area!r:.80}")
    crowd = raw.get("iscrowd")
    if isinstance(crowd, str):
        found.add("crowd_flag", "iscrowd", f"must be the number 0 or 1, got the text {crowd!r:.80}")
    elif not is_absent(crowd) and crowd not in (0, 1):
        found.add("crowd_flag", "iscrowd", f"must be 0 or 1, got {crowd!r:.80}")
    if not is_absent(raw.get("keypoints")):
        _check_keypoints(raw, size_hw, found)
    if not is_absent(raw.get("segmentation")):
        _check_segmentation(raw["segmentation"], size_hw, found)
    if has_densepose(raw):
        check_densepose(raw, found, has_sound_masks)


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
    if box is None or len(box) != 4:
        found.add("box_length", "bbox", f"must be [x, y, width, height], got {value!r:.80}")
        return
    x, y, box_width, box_height = box.tolist()
    if not math.isfinite(x + y + box_width + box_height):
        found.add("box_not_finite", "bbox", f"must be finite, got {value}")
    elif box_width <= 0 or box_height <= 0:
        found.add("box_empty", "bbox", f"width and height must be positive, got {value}")
    elif all(size_hw):
        height, width = size_hw
        over = max(x + box_width - width, y + box_height - height)
        if min(x, y) < -BORDER_TOLERANCE or over > BORDER_TOLERANCE:
            found.add("box_outside", "bbox", f"{value} leaves the {width}x{height} image")


def _check_keypoints(raw: Mapping[str, Any], size_hw: tuple[int, int], found: Collector) -> None:
    numbers = to_numbers(raw["keypoints"])
    if numbers is None or numbers.shape != (parts.NUM_KEYPOINTS * 3,):
        got = type(raw["keypoints"]).__name__ if numbers is None else f"{len(numbers)} numbers"
        text = f"must be 51 numbers, x, y, visibility of 17, got {got}"
        found.add("keypoints_length", "keypoints", text)
        return
    if not math.isfinite(numbers.sum()):
        found.add("keypoints_not_finite", "keypoints", "must be finite")
        return
    x, y, visibility = numbers.reshape(-1, 3).T
    if set(raw["keypoints"][2::3]) <= {0, 1, 2}:  # the usual case, fast
        pass
    elif visibility.min() < 0 or visibility.max() > 2:
        wrong = visibility.min() if visibility.min() < 0 else visibility.max()
        found.add("keypoint_visibility", "keypoints", f"visibility must be 0, 1 or 2, got {wrong}")
        return
    else:
        found.add("keypoint_confidence", "keypoints", "visibility holds fractions")
    is_labelled = visibility >= MIN_KEYPOINT_CONFIDENCE
    if all(size_hw):
        over = np.maximum(x - size_hw[1], y - size_hw[0])
        is_outside = is_labelled & ((np.minimum(x, y) < -BORDER_TOLERANCE) | (over > 0))
        if is_outside.any():
            names = ", ".join(parts.KEYPOINT_NAMES[k] for k in np.flatnonzero(is_outside))
            found.add("keypoint_outside", "keypoints", f"{names} outside the image")
    labelled = int(is_labelled.sum())
    if raw.get("num_keypoints") not in (None, labelled):
        found.add(
            "keypoint_count", "num_keypoints", f"is {raw['num_keypoints']!r:.40}, not {labelled}"
        )


def _check_segmentation(value: Any, size_hw: tuple[int, int], found: Collector) -> None:
    if isinstance(value, Mapping):
        try:
            rle.check_rle(value, size_hw if all(size_hw) else None)
        except rle.RleError as error:
            found.add("segmentation_rle", "segmentation", str(error))
        return
    if not isinstance(value, list):
        text = f"must be polygons or a run-length mask, got {type(value).__name__}"
        found.add("wrong_type", "segmentation", text)
        return
    if all(map(is_number, value)):
        text = "must be a list of polygons, got numbers: wrap the polygon in a list, [[x, y, ...]]"
        found.add("polygon_length", "segmentation", text)
        return
    for index, polygon in enumerate(value):
        field = f"segmentation[{index}]"
        numbers = to_numbers(polygon)
        if numbers is None or len(numbers) < 6 or len(numbers) % 2:
            got = type(polygon).__name__ if numbers is None else f"{len(numbers)} numbers"
            found.add("polygon_length", field, f"must be three or more x, y pairs, got {got}")
        elif not np.isfinite(numbers).all():
            found.add("polygon_not_finite", field, "must be finite")
        elif all(size_hw) and not _is_near(numbers.reshape(-1, 2), size_hw):
            found.add("polygon_outside", field, "must be in the image")


def _is_near(points: np.ndarray, size_hw: tuple[int, int]) -> bool:
    """Whether points [N, 2] (x, y) are no further outside an image than it is large.

    Outlines that leave their image by a little are common. Drawing takes memory in proportion to
    the length of the outline: a coordinate of 1e9 would end the process.
    """
    limit = max(size_hw)
    return bool((points >= -limit).all() and (points <= 2 * limit).all())
