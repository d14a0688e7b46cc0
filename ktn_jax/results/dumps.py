"""Everything that is known of the people of a photo, as arrays: what `apply_net dump` pickles.

A dump is two files: `NAME_dump.npz` holds all of it, `NAME_dump.json` the same without the maps,
for whoever reads no NumPy files. Neither is a pickle.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.surface import Template
from ktn_jax.results.detection_checks import CONFIDENCES, ResultsError
from ktn_jax.results.iuv_pictures import quantise
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import atomic_files
from ktn_jax.runtime.npz_files import NpzFile

ENDINGS = ("_dump.npz", "_dump.json")

# NumPy's letters for the kinds of values, and the number of axes, of every array that is read.
_ARRAYS = {
    "file_name": ("U", 0),
    "image_id": ("iu", 0),
    "image_size_hw": ("iu", 1),
    "boxes_xyxy": ("f", 2),
    "scores": ("f", 1),
    "category_ids": ("iu", 1),
}
_MAPS = {
    "labels": ("u", 2),
    "uv": ("f", 3),
    "keypoints": ("f", 2),
    "mask": ("b", 2),
    "track_id": ("iu", 0),
    "vertices": ("i", 2),
    "mesh": ("U", 0),
    **dict.fromkeys(CONFIDENCES, ("f", 2)),
}


@dataclasses.dataclass(frozen=True)
class Dump:
    """The people of a photo.

    Attributes:
        file_name: of the photo, as it was given.
        image_id: of the results file.
        image_size_hw: (height, width) of the photo.
        people: in the order of the results file, with `uv`, confidences and masks.
    """

    file_name: str
    image_id: int
    image_size_hw: tuple[int, int]
    people: tuple[PersonResult, ...]


def write_dump(
    folder: pathlib.Path, name: str, dump: Dump, template: Template | None = None
) -> None:
    """Writes both files of a dump.

    The arrays of the `.npz` are `file_name`, `image_id`, `image_size_hw` [2], `boxes_xyxy` float32
    [N, 4], `scores` float32 [N], `category_ids` [N], and of person n, from 0, where the model gives
    them: `n/labels` uint8 [h, w] (patch 0..24), `n/uv` float32 [2, h, w], `n/keypoints` float32
    [17, 3], `n/mask` bool [H, W], `n/track_id`, `n/vertices` int32 [h, w] (-1 beside the person) of
    `n/mesh`, and `n/sigma` and the other confidences, float32 [h, w]. Maps cover the pixels of the
    box, from (int(x0), int(y0)) on. With a template also, see `body.vertices`:
    `n/vertex_is_visible` bool [V], `n/vertex_pixels` int32 [V, 2] column and row in the photo, -1
    where no pixel shows the vertex, and `n/points` float32 [h, w, 3] metres on the rest pose, NaN
    on background.

    Args:
        folder: that exists.
        name: the files' names begin with it.
        dump: what to write.
        template: of whose charts the people are; None leaves vertices out.
    """
    arrays: dict[str, np.ndarray] = {
        "file_name": np.array(dump.file_name),
        "image_id": np.array(dump.image_id),
        "image_size_hw": np.array(dump.image_size_hw),
        "boxes_xyxy": np.array([p.box_xyxy for p in dump.people], np.float32).reshape(-1, 4),
        "scores": np.array([p.score for p in dump.people], np.float32),
        "category_ids": np.array([p.category_id for p in dump.people], np.int64),
    }
    listed: list[dict[str, Any]] = []
    for number, person in enumerate(dump.people):
        maps = _maps_of(person)
        if template is not None and person.iuv is not None:
            seen = person.to_vertices(template)
            maps["vertex_is_visible"], maps["vertex_pixels"] = seen.is_visible, seen.pixel_xy
            maps["points"] = seen.points
        arrays |= {f"{number}/{key}": value for key, value in maps.items()}
        listed.append(
            {
                "box_xyxy": person.box_xyxy.tolist(),
                "score": person.score,
                "category_id": person.category_id,
                "track_id": person.track_id,
                "keypoints": None if person.keypoints is None else person.keypoints.tolist(),
                "arrays": [f"{number}/{key}" for key in maps],
            }
        )
    content = {
        "file_name": dump.file_name,
        "image_id": dump.image_id,
        "image_size_hw": list(dump.image_size_hw),
        "arrays_file": f"{name}{ENDINGS[0]}",
        "people": listed,
    }
    with atomic_files.replacing(folder / f"{name}{ENDINGS[0]}") as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    with atomic_files.replacing(folder / f"{name}{ENDINGS[1]}") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _maps_of(person: PersonResult) -> dict[str, np.ndarray]:
    maps: dict[str, np.ndarray] = {}
    if person.iuv is not None:
        maps["labels"] = person.iuv[0]
        quantised = person.iuv[1:] / np.float32(255)
        maps["uv"] = quantised if person.uv is None else person.uv
    if person.keypoints is not None:
        maps["keypoints"] = person.keypoints
    if person.mask is not None:
        maps["mask"] = person.mask.whole()
    if person.track_id is not None:
        maps["track_id"] = np.array(person.track_id)
    if person.vertices is not None:
        maps["vertices"], maps["mesh"] = person.vertices, np.array(person.mesh)
    return maps | {name: np.asarray(values) for name, values in person.confidences.items()}


def read_dump(path: str | os.PathLike[str]) -> Dump:
    """Reads a dump back.

    Args:
        path: Of the `.npz` file.

    Returns:
        What was written; masks in the part of the image that holds them.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsError: it is no dump, or damaged; the message names the file and the array.
    """
    try:
        with NpzFile(path) as file:
            arrays = dict(file)
    except ValueError as error:
        raise ResultsError(str(error)) from error
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ResultsError(f"{path}: not a dump: the array {missing[0]} is missing")
    for name, array in arrays.items():
        person, _, own = name.rpartition("/")
        kinds, axes = (_MAPS if person else _ARRAYS).get(own, (array.dtype.kind, array.ndim))
        if array.dtype.kind not in kinds or array.ndim != axes:
            raise ResultsError(
                f"{path}: {name} must have values of kind {kinds} and {axes} axes, got "
                f"{array.dtype} {array.shape}"
            )
    count = len(arrays["scores"])
    size_hw = tuple(arrays["image_size_hw"].tolist())
    if arrays["boxes_xyxy"].shape != (count, 4) or arrays["category_ids"].shape != (count,):
        raise ResultsError(f"{path}: boxes_xyxy and category_ids must be as many as scores")
    if len(size_hw) != 2:
        raise ResultsError(f"{path}: image_size_hw must be (height, width), got {size_hw}")
    people = []
    for number in range(count):
        try:
            people.append(_person(arrays, number))
        except ResultsError as error:
            raise ResultsError(f"{path}: person {number}: {error}") from error
    return Dump(str(arrays["file_name"]), int(arrays["image_id"]), size_hw, tuple(people))


def _person(arrays: dict[str, np.ndarray], number: int) -> PersonResult:
    found = {
        name: arrays.get(f"{number}/{name}")
        for name in ("labels", "uv", "keypoints", "mask", "track_id", "vertices", "mesh")
    }
    labels, uv, mask = found["labels"], found["uv"], found["mask"]
    if (labels is None) != (uv is None):
        raise ResultsError("labels and uv belong together, and one is missing")
    iuv = None
    if labels is not None and uv is not None:
        if uv.shape != (2, *labels.shape):
            raise ResultsError(f"labels {labels.shape} and uv {uv.shape} must be of one size")
        if labels.max(initial=0) > parts.NUM_PATCHES:
            raise ResultsError(f"labels must be 0..{parts.NUM_PATCHES}, got {labels.max()}")
        iuv = quantise(labels, uv)
    names = [name for name in CONFIDENCES if f"{number}/{name}" in arrays]
    return PersonResult(
        box_xyxy=arrays["boxes_xyxy"][number],
        score=float(arrays["scores"][number]),
        iuv=iuv,
        keypoints=found["keypoints"],
        confidences={name: arrays[f"{number}/{name}"] for name in names},
        mask=None if mask is None else PlacedMask.from_whole(mask),
        category_id=int(arrays["category_ids"][number]),
        uv=uv,
        track_id=None if found["track_id"] is None else int(found["track_id"]),
        vertices=found["vertices"],
        mesh="" if found["mesh"] is None else str(found["mesh"]),
    )
