"""What a built dataset was made of, to tell whether the files are still the same."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import orjson

from ktn_jax.data_pipelines.coco.record_checks import image_file_name
from ktn_jax.data_pipelines.densepose_coco.layout import FoundSplit


def describe_split(split: FoundSplit, options: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the files and options that a split is built of.

    Args:
        split: annotation file and image folder.
        options: of the build, JSON values.

    Returns:
        JSON values: `annotations`, a digest of the file; `images`, a digest of the names, sizes and
        times of change of the image files that it names; `options`.
    """
    content = split.annotations.read_bytes()
    images = hashlib.sha256()
    for name in _file_names(content):
        images.update(json.dumps([name, *_size_and_time(split.images, name)]).encode())
    return {
        "annotations": hashlib.sha256(content).hexdigest(),
        "images": images.hexdigest(),
        "options": dict(options),
    }


def explain_changes(
    built: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, FoundSplit],
) -> list[str]:
    """Says how a built dataset differs from what a build would be made of now.

    Args:
        built: `describe_split` of each split when it was built.
        wanted: the same now.
        files: where the splits are now.

    Returns:
        A part of a sentence for each difference; empty where there is none.
    """
    changes = [f"split {name} is new" for name in wanted if name not in built]
    changes += [f"split {name} is not there any more" for name in built if name not in wanted]
    for name in wanted.keys() & built.keys():
        old, new = built[name], wanted[name]
        if old.get("annotations") != new["annotations"]:
            changes.append(f"{files[name].annotations} is another file")
        if old.get("images") != new["images"]:
            changes.append(f"images in {files[name].images} are others or were changed")
        if old.get("options") != new["options"]:
            changes.append(f"options were {old.get('options')}, now {new['options']}")
    return list(dict.fromkeys(changes))


def _file_names(content: bytes) -> list[str]:
    try:
        raw = orjson.loads(content)
    except orjson.JSONDecodeError:
        return []  # the checks of the build say so
    images = raw.get("images") if isinstance(raw, dict) else None
    entries = images if isinstance(images, list) else []
    names = [image_file_name(entry) for entry in entries]
    return [name for name in names if isinstance(name, str)]


def _size_and_time(folder: pathlib.Path, name: str) -> tuple[int, int]:
    try:
        status = os.stat(folder / name)
    except (OSError, ValueError):  # missing, or a name that no file can have
        return -1, -1
    return status.st_size, status.st_mtime_ns
