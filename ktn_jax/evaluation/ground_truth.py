"""DensePose-COCO annotations as the evaluator needs them."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np

from ktn_jax.body.parts import NUM_PATCHES
from ktn_jax.data_pipelines.coco.annotations import Dataset, is_above_ceiling, parse_dataset
from ktn_jax.data_pipelines.coco.checks import PERSON, DatasetError
from ktn_jax.data_pipelines.coco.densepose_checks import DENSEPOSE_POINT_KEYS
from ktn_jax.evaluation.errors import EvaluationError

# A file with more bad records than this probably has another format.
_MAX_SKIPPED_FRACTION = 0.5
_SHOWN = 3  # files named in a message
# The fields that pycocotools reads.
_COCO_FIELDS = ("id", "image_id", "bbox", "area", "iscrowd", "segmentation", "keypoints")


def is_patch(part: np.ndarray) -> np.ndarray:
    """Finds which annotated or predicted labels are patches 1..24, not background or others."""
    is_one: np.ndarray = (part > 0) & (part <= NUM_PATCHES) & (part == np.floor(part))
    return is_one


@dataclasses.dataclass(frozen=True)
class PersonTruth:
    """One annotated person.

    Attributes:
        annotation_id: of the annotation file.
        box_xywh: in pixels of the image.
        area: in square pixels, as annotated.
        is_crowd: whether the annotation is of a group.
        points: [5, P] float64: x and y in 0..255 of the box, patch, U, V, of the points that an
            annotator set; None without any: such a person is neither found nor missed. Patch, U
            and V are 0 where only vertices are annotated.
        dp_masks: list of coarse masks, or of that of the whole body, as annotated, their run
            lengths checked, or None.
        segmentation: COCO polygons or RLE as annotated, its run lengths checked, or None.
        vertices: [P] int64, the vertex of `mesh` at each point; None where only charts are known.
        mesh: name of the mesh of the vertices.
    """

    annotation_id: int
    box_xywh: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    points: np.ndarray | None
    dp_masks: Any
    segmentation: Any
    vertices: np.ndarray | None = None
    mesh: str = ""

    @property
    def has_charts(self) -> bool:
        """Whether the points have U and V."""
        return self.points is not None and (self.vertices is None or bool(self.points[3:].any()))

    @property
    def patches(self) -> np.ndarray:
        """The patches [P] int of the points, 0 for background and where none is annotated."""
        labels = np.zeros(0) if self.points is None else self.points[2]
        return np.where(is_patch(labels), labels, 0).astype(int)


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
    ignore_regions: tuple[list[Any], list[Any]] | None = None


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """A set of annotated images.

    Attributes:
        name: of the file, for messages.
        images: by ascending image id.
        scored_categories: ids of the categories that are scored; usually one.
        categories: ids of all categories of the file.
        coco: images and people in COCO's format, for COCO's own measures.
        skipped_images: ids of bad images that were left out.
        notes: remarks for the reader of scores.
        category: the name that was asked for, for messages.
        others: ids of categories of the same results that are scored by themselves.
    """

    name: str
    images: tuple[ImageTruth, ...]
    scored_categories: frozenset[int]
    categories: frozenset[int]
    coco: Mapping[str, list[dict[str, Any]]]
    skipped_images: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    category: str = PERSON
    others: frozenset[int] = frozenset()

    @property
    def has_vertices(self) -> bool:
        """Whether anybody's points are annotated as vertices of a mesh."""
        return any(person.vertices is not None for image in self.images for person in image.people)

    @property
    def has_charts(self) -> bool:
        """Whether anybody's points are annotated with patch, U and V."""
        people = (person for image in self.images for person in image.people)
        return any(person.has_charts for person in people)

    @property
    def category_id(self) -> int:
        """The category id for results of a model."""
        return min(self.scored_categories)

    def only(self, image_ids: Set[int]) -> "GroundTruth":
        """The same without other images and their people."""
        images = [image for image in self.coco["images"] if image["id"] in image_ids]
        people = [one for one in self.coco["annotations"] if one["image_id"] in image_ids]
        return dataclasses.replace(
            self,
            images=tuple(image for image in self.images if image.image_id in image_ids),
            coco={**self.coco, "images": images, "annotations": people},
        )

    def without_unreadable(self, reasons: Mapping[int, str]) -> "GroundTruth":
        """The same without images whose files cannot be read, which a note names.

        Args:
            reasons: why, with the file's name, by image id.

        Raises:
            EvaluationError: they are more than half of the images.
        """
        if not reasons:
            return self
        count = f"{len(reasons)} of {len(self.images)} images cannot be read"
        shown = "; ".join([reasons[image_id] for image_id in sorted(reasons)][:_SHOWN])
        if is_above_ceiling(len(reasons), _MAX_SKIPPED_FRACTION, len(self.images)):
            raise EvaluationError(f"{count}, above {_MAX_SKIPPED_FRACTION:.0%}, such as {shown}")
        kept = {image.image_id for image in self.images} - reasons.keys()
        return dataclasses.replace(
            self.only(kept),
            skipped_images=self.skipped_images | reasons.keys(),
            notes=(*self.notes, f"{count} and are left out, such as {shown}"),
        )


def read_ground_truth(
    source: str | pathlib.Path | Mapping[str, Any],
    on_bad: Literal["raise", "skip"] = "raise",
    category: str = PERSON,
) -> GroundTruth:
    """Reads a DensePose-COCO annotation file, with the checks of `ktn data check`.

    Args:
        source: path of a JSON file, or its content.
        on_bad: "raise" stops at a file with errors, "skip" leaves bad records out and says in
            `notes` how many.
        category: name of the category whose annotations are read.

    Returns:
        The images and the people, or animals, of the category.

    Raises:
        EvaluationError: the file is missing, not JSON, or has errors; with "skip", more than half
            of its records are bad. The message holds the findings.
    """
    dataset = _parse(source, on_bad, (category,))
    return _truth_of(dataset, source, category, frozenset(dataset.report.classes))


def _parse(
    source: str | pathlib.Path | Mapping[str, Any],
    on_bad: Literal["raise", "skip"],
    categories: Sequence[str],
) -> Dataset:
    try:
        return parse_dataset(source, on_bad, _MAX_SKIPPED_FRACTION, categories=categories)
    except DatasetError as error:
        raise EvaluationError(str(error)) from error


def _truth_of(
    dataset: Dataset,
    source: str | pathlib.Path | Mapping[str, Any],
    category: str,
    category_ids: frozenset[int],
) -> GroundTruth:
    """What a dataset holds of a category."""
    images: list[ImageTruth] = []
    annotations: list[dict[str, Any]] = []
    for image, every in dataset.images.entries():
        entries = [entry for entry in every if entry["category_id"] in category_ids]
        images.append(
            ImageTruth(
                image_id=image["id"],
                file_name=image["file_name"],
                image_size_hw=(image["height"], image["width"]),
                people=tuple(map(_person_truth, entries)),
                ignore_regions=_ignore_regions(image),
            )
        )
        annotations += map(_coco_person, entries)
    images.sort(key=lambda image: image.image_id)
    sizes = [
        {"id": image.image_id, "height": image.image_size_hw[0], "width": image.image_size_hw[1]}
        for image in images
    ]
    return GroundTruth(
        name="annotations" if isinstance(source, Mapping) else pathlib.Path(source).name,
        images=tuple(images),
        scored_categories=category_ids,
        categories=dataset.report.categories,
        coco={"images": sizes, "annotations": annotations},
        skipped_images=dataset.skipped_images,
        category=category,
        notes=(*_skip_notes(dataset), *_notes(images)),
    )


def read_ground_truths(
    source: str | pathlib.Path,
    on_bad: Literal["raise", "skip"] = "raise",
    categories: Sequence[str] = (PERSON,),
) -> tuple[GroundTruth, ...]:
    """Reads the annotations of several categories, each by itself; see `read_ground_truth`."""
    if on_bad == "skip":  # the share of bad records is that of a category
        truths = [read_ground_truth(source, on_bad, category) for category in categories]
    else:
        truths = _read_together(source, categories)
    every = frozenset[int]().union(*(truth.scored_categories for truth in truths))
    return tuple(
        dataclasses.replace(truth, others=every - truth.scored_categories) for truth in truths
    )


def _read_together(source: str | pathlib.Path, categories: Sequence[str]) -> list[GroundTruth]:
    """Reads sound annotations of several categories at once."""
    dataset = _parse(source, "raise", categories)
    truths = []
    for index, category in enumerate(categories):
        of_class = dataset.report.classes.items()
        ids = frozenset(number for number, own in of_class if own == index)
        # One that the file does not name is asked for alone, which says so.
        truths.append(
            _truth_of(dataset, source, category, ids)
            if ids
            else read_ground_truth(source, "raise", category)
        )
    return truths


def _person_truth(entry: Mapping[str, Any]) -> PersonTruth:
    points = vertices = None
    if "dp_x" in entry:
        none = np.zeros(len(entry["dp_x"]))
        points = np.array([entry.get(key, none) for key in DENSEPOSE_POINT_KEYS], np.float64)
        if "dp_vertex" in entry:
            vertices = np.array(entry["dp_vertex"], np.int64)
    if points is not None and "dp_annotated" in entry:
        is_annotated = np.asarray(entry["dp_annotated"], bool)
        points = points[:, is_annotated] if is_annotated.any() else None
        vertices = None if points is None or vertices is None else vertices[is_annotated]
    dp_masks = entry.get("dp_masks")
    if isinstance(dp_masks, Mapping):  # of the whole body
        dp_masks = [dp_masks]
    return PersonTruth(
        annotation_id=entry["id"],
        box_xywh=tuple(entry["bbox"]),
        area=entry["area"],
        is_crowd=bool(entry["iscrowd"]),
        points=points,
        dp_masks=dp_masks,
        segmentation=entry.get("segmentation"),
        vertices=vertices,
        mesh="" if vertices is None else entry["ref_model"],
    )


def _coco_person(entry: Mapping[str, Any]) -> dict[str, Any]:
    person = {key: entry[key] for key in _COCO_FIELDS if key in entry}
    if "keypoints" in entry:
        labelled = sum(visibility > 0 for visibility in entry["keypoints"][2::3])
        given = entry.get("num_keypoints")
        person["num_keypoints"] = given if isinstance(given, int) else labelled
    return person


def _ignore_regions(image: Mapping[str, Any]) -> tuple[list[Any], list[Any]] | None:
    if not image.get("ignore_regions_x"):
        return None
    return image["ignore_regions_x"], image["ignore_regions_y"]


def _skip_notes(dataset: Dataset) -> list[str]:
    skipped = dataset.skipped
    if not skipped.total:
        return []
    return [
        f"bad records left out: {skipped.images} images, {skipped.people} people; "
        f"{skipped.densepose} people lost their dense annotation"
    ]


def _notes(images: list[ImageTruth]) -> list[str]:
    notes = []
    people = [person for image in images for person in image.people]
    if not any(person.points is not None for person in people):
        notes.append(f"0 of {len(people)} people have surface points: GPS and GPSm are not defined")
    if any(image.ignore_regions for image in images):
        notes.append("people and detections in ignore regions are left out of GPS, GPSm and IOU")
    return notes
