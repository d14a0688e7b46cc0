"""Checks of a person's DensePose annotation."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.mesh_names import RELEASED
from ktn_jax.body.parts import PART_GRID
from ktn_jax.data_pipelines.coco.findings import Collector
from ktn_jax.data_pipelines.coco.json_values import are_numbers, is_absent, to_numbers
from ktn_jax.runtime import rle

DENSEPOSE_POINT_KEYS = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")
DENSEPOSE_KEYS = (*DENSEPOSE_POINT_KEYS, "dp_masks")
# Of points on any mesh, beside or in place of the charts' dp_I, dp_U and dp_V: vertices, from 0,
# and the name of their mesh.
VERTEX_KEY, MESH_KEY = VERTEX_KEYS = ("dp_vertex", "ref_model")
# Of points that a model set; where they are absent, an annotator set all.
EXTENSION_KEYS = ("dp_annotated", "dp_confidence")
PICTURE_KEY = "dp_iuv"  # file of the labels of all pixels, relative to the annotation file's folder


_MAX_VERTICES = 2**31  # of meshes that are not known here: ids travel as int32
_BLOCK = 32  # annotations whose masks are checked together
_LOWEST = np.zeros((5, 1))
_HIGHEST = np.array([[PART_GRID], [PART_GRID], [parts.NUM_PATCHES], [1], [1]])


def has_densepose(raw: Mapping[str, Any]) -> bool:
    """Whether an annotation has any DensePose field, complete or not."""
    for key in (*DENSEPOSE_POINT_KEYS, VERTEX_KEY, *EXTENSION_KEYS, PICTURE_KEY):
        if not is_absent(raw.get(key)):
            return True
    masks = raw.get("dp_masks")
    return any(masks) if isinstance(masks, list) else not is_absent(masks)


def has_charts(raw: Mapping[str, Any]) -> bool:
    """Whether an annotation has all of dp_I, dp_U and dp_V."""
    return not any(is_absent(raw.get(key)) for key in DENSEPOSE_POINT_KEYS)


def has_patches(raw: Mapping[str, Any]) -> bool:
    """Whether an annotation has dp_I, a patch for each point, whatever else it has."""
    if is_absent(raw.get("dp_I")) or not isinstance(raw.get("dp_x"), list):
        return False
    patches = to_numbers(raw["dp_I"])
    return patches is not None and len(patches) == len(raw["dp_x"])


def has_vertices(raw: Mapping[str, Any]) -> bool:
    """Whether an annotation has dp_vertex and ref_model."""
    return not any(is_absent(raw.get(key)) for key in ("dp_x", "dp_y", *VERTEX_KEYS))


def find_sound_masks(annotations: Sequence[Any]) -> set[int]:
    """Finds annotations whose part masks are sound, many at a time.

    Args:
        annotations: entries as JSON gave them.

    Returns:
        Positions of annotations in whose `dp_masks` every mask can be decoded. The others have
        none, have another form, or were checked together with a damaged one: check them one by one.
    """
    sound: set[int] = set()
    for start in range(0, len(annotations), _BLOCK):
        block = {
            position: raw["dp_masks"]
            for position, raw in enumerate(annotations[start : start + _BLOCK], start)
            if isinstance(raw, dict) and isinstance(raw.get("dp_masks"), list)
        }
        masks = filter(None, itertools.chain.from_iterable(block.values()))
        if rle.are_packed_masks(masks, (PART_GRID, PART_GRID)):
            sound.update(block)
    return sound


def check_densepose(
    raw: Mapping[str, Any], found: Collector, has_sound_masks: bool = False
) -> None:
    """Checks the `dp_` fields of an annotation that has some.

    Args:
        raw: the entry as JSON gave it.
        found: takes the findings.
        has_sound_masks: see `find_sound_masks`.
    """
    wanted, masks = _wanted_keys(raw)
    absent = [key for key in wanted if is_absent(raw.get(key))]
    for key in absent:
        found.add(
            "densepose_incomplete", key, "is missing or empty though other dp_ keys are there"
        )
    if not is_absent(raw.get("dp_masks")):
        _check_masks(raw["dp_masks"], found, has_sound_masks)
    elif masks:
        found.add("densepose_incomplete", "dp_masks", masks)
    if "dp_x" not in absent:
        _check_extension(raw, found)
    if has_vertices(raw):
        _check_vertices(raw, found)
    if has_charts(raw) and _are_points([raw[key] for key in DENSEPOSE_POINT_KEYS]):
        return
    columns: dict[str, np.ndarray] = {}
    keys = [key for key in DENSEPOSE_POINT_KEYS if key in wanted]
    for key in keys:
        if key not in absent:
            column = to_numbers(raw[key])
            if column is None:
                found.add("densepose_type", key, "must be a list of numbers")
            else:
                columns[key] = column
    if len(columns) < len(keys):
        return
    lengths = {key: len(columns[key]) for key in keys}
    if len(set(lengths.values())) > 1:
        found.add("densepose_lengths", "dp_x", f"lengths differ: {lengths}")
    for key in ("dp_x", "dp_y"):
        _check_range(columns[key], key, (0, PART_GRID), ("point_not_finite", "point_range"), found)
    if "dp_I" not in columns:
        return
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


def _wanted_keys(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The keys of points that an annotation must have, and what to say where it has no masks.

    As in detectron2, charts or vertices are enough, and one of them may be incomplete beside the
    other.
    """
    if has_charts(raw):
        return DENSEPOSE_POINT_KEYS, "is missing or empty though other dp_ keys are there"
    if has_vertices(raw) or not is_absent(raw.get(VERTEX_KEY)):
        text = "is missing or empty, and there is no segmentation to take its place"
        return ("dp_x", "dp_y", *VERTEX_KEYS), text if is_absent(raw.get("segmentation")) else ""
    return DENSEPOSE_POINT_KEYS, "is missing or empty though other dp_ keys are there"


def _check_vertices(raw: Mapping[str, Any], found: Collector) -> None:
    """Checks `dp_vertex` and `ref_model`."""
    name, vertices = raw[MESH_KEY], to_numbers(raw[VERTEX_KEY])
    if not isinstance(name, str):
        found.add("mesh_name", MESH_KEY, f"must be the name of a mesh, got {name!r:.80}")
    if vertices is None:
        found.add("densepose_type", VERTEX_KEY, "must be a list of numbers")
        return
    if isinstance(raw["dp_x"], list) and len(vertices) != len(raw["dp_x"]):
        text = f"lengths differ: dp_x {len(raw['dp_x'])}, {VERTEX_KEY} {len(vertices)}"
        found.add("densepose_lengths", VERTEX_KEY, text)
    is_whole = np.isfinite(vertices) & (vertices == np.round(vertices))
    if not is_whole.all():
        index = int(np.argmin(is_whole))
        found.add("vertex_not_integer", VERTEX_KEY, f"point {index} is {vertices[index]}")
        return
    count = RELEASED.get(name, _MAX_VERTICES) if isinstance(name, str) else _MAX_VERTICES
    kinds = ("vertex_not_integer", "vertex_range")
    _check_range(vertices, VERTEX_KEY, (0, count - 1), kinds, found)


def _check_extension(raw: Mapping[str, Any], found: Collector) -> None:
    """Checks the keys of points that a model set, against the length of `dp_x`."""
    picture = raw.get(PICTURE_KEY)
    if not is_absent(picture) and not _is_relative_path(picture):
        text = f"must name a file, relative to the annotation file's folder, got {picture!r:.80}"
        found.add("picture_name", PICTURE_KEY, text)
    for key, kind in zip(EXTENSION_KEYS, ("annotated_flag", "point_confidence"), strict=True):
        if is_absent(raw.get(key)):
            continue
        values = to_numbers(raw[key])
        if values is None:
            found.add(kind, key, "must be a list of numbers")
        elif isinstance(raw["dp_x"], list) and len(values) != len(raw["dp_x"]):
            found.add(kind, key, f"has {len(values)} entries for {len(raw['dp_x'])} points")
        elif key == "dp_annotated" and not set(raw[key]) <= {0, 1}:
            index = int(np.argmin(np.isin(values, (0, 1))))
            found.add(kind, key, f"point {index} is {raw[key][index]!r:.80}, must be 0 or 1")
        else:
            _check_range(values, key, (0, 1), (kind, kind), found)


def _is_relative_path(value: Any) -> bool:
    return isinstance(value, str) and not pathlib.PurePath(value).is_absolute()


def _are_points(columns: Sequence[Any]) -> bool:
    """Whether all is well with x, y, patch, U and V: mostly it is, and this is quick to tell."""
    if not all(map(are_numbers, columns)) or len(set(map(len, columns))) > 1:
        return False
    try:
        points = np.array(columns, np.float64)
    except OverflowError:  # an integer beyond the range of float64
        return False
    # NaN compares false.
    is_inside = (points >= _LOWEST) & (points <= _HIGHEST)
    return bool(is_inside.all() and (points[2] == np.round(points[2])).all())


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


def _check_masks(value: Any, found: Collector, are_sound: bool) -> None:
    if isinstance(value, Mapping) and "counts" in value:  # of the whole body
        value, are_sound = [value], False
    if not isinstance(value, list):
        found.add("masks_type", "dp_masks", f"must be a list, got {type(value).__name__}")
        return
    if len(value) > parts.NUM_COARSE:
        found.add("masks_count", "dp_masks", f"has {len(value)} entries, at most 14 are known")
    if are_sound:
        return
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
            rle.check_rle(entry)
        except rle.RleError as error:
            found.add("mask_undecodable", field, str(error))
