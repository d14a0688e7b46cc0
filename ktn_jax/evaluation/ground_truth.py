"""DensePose-COCO annotations as the evaluator needs them, checked while they are read."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ktn_jax.evaluation.errors import EvaluationError

_POINT_FIELDS = ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V")
PERSON = "person"


@dataclasses.dataclass(frozen=True)
class PersonTruth:
    """One annotated person.

    Attributes:
        annotation_id: of the annotation file.
        box_xywh: in pixels of the image.
        area: in square pixels, as annotated.
        is_crowd: whether the annotation stands for a group.
        points: [5, P] float64: x and y in 0..255 of the box, patch, U, V; None without dense
            annotation, such a person is neither found nor missed.
        dp_masks: coarse masks as annotated, or None.
        segmentation: COCO polygons or RLE as annotated, or None.
    """

    annotation_id: int
    box_xywh: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    points: np.ndarray | None
    dp_masks: Any
    segmentation: Any


@dataclasses.dataclass(frozen=True)
class ImageTruth:
    """One image and its people, in the order of the annotation file.

    Attributes:
        image_id: of the annotation file.
        file_name: of the picture.
        image_size_hw: in pixels.
        people: in the order of the file.
        ignore_regions: lists of the x and of the y of polygons, see `ignore_regions`.
    """

    image_id: int
    file_name: str
    image_size_hw: tuple[int, int]
    people: tuple[PersonTruth, ...]
    ignore_regions: tuple[list, list] | None = None


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """A set of annotated images.

    Attributes:
        name: of the file, for messages.
        images: by ascending image id.
        category_id: of the person category.
        category_ids: all of the file.
        coco: the annotation file's own content, images and people only, for the COCO measures.
        notes: what the reader should know.
    """

    name: str
    images: tuple[ImageTruth, ...]
    category_id: int
    category_ids: frozenset[int]
    coco: Mapping[str, list]
    notes: tuple[str, ...] = ()


def read_ground_truth(source: str | pathlib.Path | Mapping) -> GroundTruth:
    """Reads a DensePose-COCO annotation file.

    Args:
        source: path of a JSON file, or its content.

    Returns:
        The images and people of the person category.

    Raises:
        EvaluationError: the file is missing, not JSON, or an entry cannot be scored.
    """
    name, content = _load(source)
    for field in ("images", "annotations", "categories"):
        if not isinstance(content.get(field), list):
            raise EvaluationError(f"{name}: no list {field!r}; is this a COCO annotation file?")
    category_id, category_ids = _person_category(name, content["categories"])
    people: dict[int, list] = {}
    for image in content["images"]:
        if not isinstance(image, Mapping) or not {"id", "height", "width"} <= image.keys():
            raise EvaluationError(f"{name}: an image needs id, height and width, got {image!r:.80}")
        if image["id"] in people:
            raise EvaluationError(f"{name}: image id {image['id']} appears twice")
        people[image["id"]] = []
    kept, seen = [], set()
    for annotation in content["annotations"]:
        person = _read_person(name, annotation)
        if annotation.get("category_id", category_id) != category_id:
            continue
        if person.annotation_id in seen:
            raise EvaluationError(f"{name}: annotation id {person.annotation_id} appears twice")
        if annotation.get("image_id") not in people:
            raise EvaluationError(
                f"{name}: annotation {person.annotation_id} is of image "
                f"{annotation.get('image_id')}, which the file does not list"
            )
        seen.add(person.annotation_id)
        people[annotation["image_id"]].append(person)
        kept.append(annotation)
    images = tuple(
        ImageTruth(
            image_id=image["id"],
            file_name=str(image.get("file_name", "")),
            image_size_hw=(int(image["height"]), int(image["width"])),
            people=tuple(people[image["id"]]),
            ignore_regions=_ignore_regions(name, image),
        )
        for image in sorted(content["images"], key=lambda image: image["id"])
    )
    coco = {"images": content["images"], "annotations": kept, "categories": content["categories"]}
    return GroundTruth(name, images, category_id, category_ids, coco, _notes(images))


def _load(source: str | pathlib.Path | Mapping) -> tuple[str, Mapping]:
    if isinstance(source, Mapping):
        return "annotations", source
    path = pathlib.Path(source)
    if not path.is_file():
        raise EvaluationError(f"{path}: no such annotation file")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise EvaluationError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, Mapping):
        raise EvaluationError(
            f"{path}: a {type(content).__name__}, not the dictionary of a COCO annotation file; "
            "are annotations and results swapped?"
        )
    return path.name, content


def _person_category(name: str, categories: list) -> tuple[int, frozenset[int]]:
    ids = {c.get("name"): c.get("id") for c in categories if isinstance(c, Mapping)}
    if PERSON in ids:
        return ids[PERSON], frozenset(ids.values())
    if len(ids) == 1:
        return next(iter(ids.values())), frozenset(ids.values())
    raise EvaluationError(f"{name}: no category {PERSON!r} among {sorted(map(str, ids))}")


def _read_person(name: str, annotation: Any) -> PersonTruth:
    if not isinstance(annotation, Mapping) or "id" not in annotation:
        raise EvaluationError(f"{name}: an annotation without id: {annotation!r:.80}")
    where = f"{name}: annotation {annotation['id']}"
    box = annotation.get("bbox")
    if not is_box(box):
        raise EvaluationError(f"{where}: bbox must be four finite numbers [x, y, w, h], got {box}")
    if not isinstance(annotation.get("area"), int | float):
        raise EvaluationError(f"{where}: area must be a number, got {annotation.get('area')!r}")
    points = None
    if "dp_x" in annotation:
        columns = [annotation.get(field) for field in _POINT_FIELDS]
        try:
            points = np.array(columns, dtype=np.float64).reshape(len(_POINT_FIELDS), -1)
        except (TypeError, ValueError) as error:
            raise EvaluationError(
                f"{where}: {', '.join(_POINT_FIELDS)} must be equally long lists of numbers"
            ) from error
        if not np.isfinite(points).all():
            raise EvaluationError(f"{where}: a point is not finite")
    return PersonTruth(
        annotation_id=annotation["id"],
        box_xywh=tuple(box),
        area=annotation["area"],
        is_crowd=bool(annotation.get("iscrowd", 0)),
        points=points,
        dp_masks=annotation.get("dp_masks"),
        segmentation=annotation.get("segmentation"),
    )


def _ignore_regions(name: str, image: Mapping) -> tuple[list, list] | None:
    if not image.get("ignore_regions_x"):
        return None
    regions_x, regions_y = image["ignore_regions_x"], image.get("ignore_regions_y", [])
    if [len(x) for x in regions_x] != [len(y) for y in regions_y]:
        raise EvaluationError(
            f"{name}: image {image['id']}: ignore_regions_x and ignore_regions_y differ in length"
        )
    return regions_x, regions_y


def is_box(box: Any) -> bool:
    """Tells whether a value is [x, y, w, h]: finite numbers, the size not negative."""
    return (
        isinstance(box, list | tuple)
        and len(box) == 4
        and all(isinstance(x, int | float) and math.isfinite(x) for x in box)
        and box[2] >= 0
        and box[3] >= 0
    )


def _notes(images: tuple[ImageTruth, ...]) -> tuple[str, ...]:
    notes = []
    if not any(person.points is not None for image in images for person in image.people):
        notes.append("nobody has dense annotations: GPS and GPSm are not defined")
    if any(image.ignore_regions for image in images):
        notes.append("people and detections in ignore regions are left out of GPS, GPSm and IOU")
    return tuple(notes)
