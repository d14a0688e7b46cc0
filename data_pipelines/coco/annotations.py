"""DensePose-COCO annotations as typed records.

Frames: boxes are xywh in pixels of the original image, measured from its top-left corner. Keypoints
are as in the file, which counts pixels: 0 is the middle of the first one. DensePose points are on a
256x256 grid over the person's box: x_image = box_x + x * box_width / 256.
"""

import dataclasses
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ktn_jax.body import parts
from ktn_jax.data_pipelines.coco import checks, record_checks
from ktn_jax.data_pipelines.coco.checks import AnnotationReport, DatasetError
from ktn_jax.data_pipelines.coco.densepose_checks import (
    DENSEPOSE_KEYS,
    DENSEPOSE_POINT_KEYS,
    EXTENSION_KEYS,
    MESH_KEY,
    PICTURE_KEY,
    VERTEX_KEY,
    VERTEX_KEYS,
    has_charts,
    has_densepose,
    has_patches,
    has_vertices,
)
from ktn_jax.data_pipelines.coco.json_values import is_absent
from ktn_jax.data_pipelines.coco.part_masks import Segmentation, decode_part_mask, grid_mask

SKIP_ADVICE = "to leave bad records out: on_bad='skip', --on-bad skip or --config.data.on_bad=skip"


@dataclasses.dataclass(frozen=True)
class DensePoseRecord:
    """The DensePose annotation of a person, on the 256x256 grid over the person's box."""

    x: np.ndarray  # [P] float32 in 0..256
    y: np.ndarray  # [P] float32 in 0..256
    i: np.ndarray  # [P] float32 surface patch 0..24, 0 is background, or where only vertices are
    u: np.ndarray  # [P] float32 in 0..1
    v: np.ndarray  # [P] float32 in 0..1
    part_mask: np.ndarray  # [256, 256] uint8 coarse part 0..14, 15 where it is not known
    is_annotated: np.ndarray  # [P] bool, False for points that a model set
    confidence: np.ndarray  # [P] float32 in 0..1, of points that a model set
    iuv_file: str = ""  # picture of the labels of all pixels, as the file names it; "" without one
    vertex: np.ndarray | None = None  # [P] int32 on the mesh; None where only charts are
    mesh: str = ""  # the name of that mesh

    @property
    def has_charts(self) -> bool:
        """Whether the points have patch, U and V."""
        return self.vertex is None or bool(self.i.any())

    @property
    def is_on_surface(self) -> bool:
        """Whether any point is on the surface: has a vertex, or a patch above 0."""
        return bool(self.i.any()) or (self.vertex is not None and len(self.vertex) > 0)

    def take(self, index: np.ndarray) -> "DensePoseRecord":
        """The same with the points of `index` alone, bool [P] or int [Q]."""
        names = ("x", "y", "i", "u", "v", "is_annotated", "confidence")
        kept = {name: getattr(self, name)[index] for name in names}
        vertex = None if self.vertex is None else self.vertex[index]
        return dataclasses.replace(self, **kept, vertex=vertex)


@dataclasses.dataclass(frozen=True)
class PersonRecord:
    """One annotated person, or animal, or a crowd region."""

    annotation_id: int
    box_xywh: np.ndarray  # [4] float64, pixels of the image
    is_crowd: bool
    area: float  # of the person in the image, square pixels
    keypoints: np.ndarray  # [17, 3] float32 x, y, visibility; zeros where there are none
    segmentation: Segmentation = None  # polygons or run-length mask, as in the file
    densepose: DensePoseRecord | None = None
    class_index: int = 0  # of the categories that were asked for

    @property
    def has_surface(self) -> bool:
        """Whether `ImageFacts.with_surface` counts the person: no crowd, with surface points."""
        return not self.is_crowd and self.densepose is not None and self.densepose.is_on_surface


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One image and the people in it."""

    image_id: int
    file_name: str  # relative to the image folder
    height: int
    width: int
    people: tuple[PersonRecord, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """The facts about images from which batches are planned, before any image is read."""

    sizes_hw: np.ndarray  # [N, 2] int32 height, width
    people: np.ndarray  # [N] int32 people who train the detector: crowd regions do not count
    max_points: int  # most DensePose points that an annotator set on one person
    # Of these people, those with labelled keypoints, and those with points on the surface: [N]
    # int32, or None where it is not known before images are made.
    with_keypoints: np.ndarray | None = None
    with_surface: np.ndarray | None = None
    all_annotated: bool = True  # whether an annotator set all points: a model set none
    weights: np.ndarray | None = None  # [N] float64, how often an epoch has each; None for once
    # Of each mesh that people's points are on, the largest vertex + 1.
    vertices: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SkipCounts:
    """How many records were left out because they were bad."""

    images: int = 0
    people: int = 0  # annotations, including those of images that were left out
    densepose: int = 0  # people who were kept without their DensePose

    @property
    def total(self) -> int:
        """Records left out, or kept without their DensePose."""
        return self.images + self.people + self.densepose


class ImageSequence(Sequence[ImageRecord]):
    """Image records, parsed on demand.

    Decoded part masks take 64 kB a person: those of all of DensePose-COCO would fill 2.5 GB.
    """

    def __init__(
        self,
        images: Sequence[Mapping[str, Any]],
        people: Sequence[Sequence[tuple[Mapping[str, Any], bool]]],
        classes: Mapping[int, int],
    ):
        """Takes the entries.

        Args:
            images: of the images.
            people: each image's annotations, with whether their DensePose counts.
            classes: index of the class by the id of its category.
        """
        self._images = images
        self._people = people
        self._classes = classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ImageRecord:  # type: ignore[override]  # no slices
        image = self._images[operator.index(index)]
        return ImageRecord(
            image_id=image["id"],
            file_name=image["file_name"],
            height=image["height"],
            width=image["width"],
            people=tuple(
                parse_person(raw, dense, self._classes[raw["category_id"]])
                for raw, dense in self._people[index]
            ),
        )

    def ids(self) -> list[int]:
        """The images' ids."""
        return [image["id"] for image in self._images]

    def have_pictures(self) -> bool:
        """Whether labels of all pixels of anybody are in a picture."""
        every = (pair for people in self._people for pair in people)
        return any(is_sound and raw.get(PICTURE_KEY) for raw, is_sound in every)

    def entries(self) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
        """Yields image entries and those of their people, see `clean_person`."""
        for image, people in zip(self._images, self._people, strict=True):
            yield image, [clean_person(raw, dense) for raw, dense in people]

    def facts(self) -> ImageFacts:
        """Collects the facts of all images, without decoding a mask."""
        sizes = [(image["height"], image["width"]) for image in self._images]
        trainable = [
            [pair for pair in people if not pair[0].get("iscrowd")] for people in self._people
        ]
        with_points = [
            raw for people in trainable for raw, dense in people if dense and has_densepose(raw)
        ]
        points = [sum(raw.get("dp_annotated") or [1] * len(raw["dp_x"])) for raw in with_points]
        with_keypoints = [
            sum(any((raw.get("keypoints") or ())[2::3]) for raw, _ in people)
            for people in trainable
        ]
        with_surface = [
            sum(dense and _is_on_surface(raw) for raw, dense in people) for people in trainable
        ]
        vertices: dict[str, int] = {}
        for raw in filter(has_vertices, with_points):
            name = raw[MESH_KEY]
            vertices[name] = max(vertices.get(name, 0), int(max(raw[VERTEX_KEY])) + 1)
        return ImageFacts(
            sizes_hw=np.asarray(sizes, np.int32).reshape(-1, 2),
            people=np.asarray([len(people) for people in trainable], np.int32),
            max_points=max(points, default=0),
            all_annotated=all(all(raw.get("dp_annotated") or ()) for raw in with_points),
            with_keypoints=np.asarray(with_keypoints, np.int32),
            with_surface=np.asarray(with_surface, np.int32),
            vertices=vertices,
        )


def _is_on_surface(raw: Mapping[str, Any]) -> bool:
    """`DensePoseRecord.is_on_surface` of an entry that passed the checks."""
    return has_vertices(raw) or (has_charts(raw) and any(raw["dp_I"]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A parsed annotation file, images in the file's order."""

    images: ImageSequence
    skipped: SkipCounts
    skipped_images: frozenset[int]  # ids of the images left out, of those that have an id
    report: AnnotationReport


def parse_dataset(
    source: Mapping[str, Any] | str | os.PathLike[str],
    on_bad: Literal["raise", "skip"] = "raise",
    max_skipped_fraction: float = 0.01,
    images_dir: str | os.PathLike[str] | None = None,
    categories: Sequence[str] = (checks.PERSON,),
) -> Dataset:
    """Reads DensePose-COCO annotations.

    Annotations of other categories are left out; crowd regions stay, marked.

    Args:
        source: path of the JSON file, or what it holds.
        on_bad: "raise" stops at a file with errors, naming them; "skip" leaves bad records out.
        max_skipped_fraction: with "skip", the share of bad records above which the file is refused:
            it probably has another format. See `is_above_ceiling`.
        images_dir: where given, images are read too, and missing or broken ones are bad records.
        categories: names of those to read, in the order of the classes; of a file with a single
            category that one stands for the first.

    Returns:
        The dataset. `report` holds every finding, also of the records that were skipped.

    Raises:
        DatasetError: a file that cannot be read at all; with "raise" any error; with "skip" too
            many of them. The message starts with the findings; `report` holds all.
        ValueError: another `on_bad`, or a share outside 0..1.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")
    if not 0 <= max_skipped_fraction <= 1:
        raise ValueError(
            f"the largest share of skipped records must be in 0..1, got {max_skipped_fraction}"
        )
    file = "(memory)"
    raw: Any = source
    if not isinstance(source, Mapping):
        file = str(source)
        raw, unreadable = checks.load_json(source)
        if unreadable is not None:
            raise DatasetError(str(unreadable), AnnotationReport(file, {}, (unreadable,)))
    report = checks.check_dataset(raw, file, images_dir, categories)
    if not report.is_readable or (on_bad == "raise" and not report.ok):
        advice = "" if not report.is_readable else f"\n{SKIP_ADVICE}"
        raise DatasetError(report.format(max_findings=20) + advice, report)
    skipped = SkipCounts(
        len(report.bad_images), len(report.bad_annotations), len(report.bad_densepose)
    )
    records = len(raw["images"]) + len(raw["annotations"])
    if is_above_ceiling(skipped.total, max_skipped_fraction, records):
        text = f"{skipped.total} of {records} records are bad, above {max_skipped_fraction:.2%}"
        raise DatasetError(f"{text}\n{report.format(max_findings=20)}", report)
    bad = (raw["images"][position] for position in report.bad_images)
    named = {image["id"] for image in bad if checks.has_id(image)}
    images = _group_by_image(raw, report)
    return Dataset(images, skipped, frozenset(named - set(images.ids())), report)


def is_above_ceiling(bad: int, max_fraction: float, total: int) -> bool:
    """Tells whether more is bad than may be left out. One record or image always may."""
    return bad > max(1, max_fraction * total)


def clean_person(raw: Mapping[str, Any], with_densepose: bool = True) -> dict[str, Any]:
    """Normalises an annotation that passed `record_checks`.

    Args:
        raw: the annotation as JSON gave it.
        with_densepose: False leaves `dp_*` out.

    Returns:
        Its fields, without those that are null or empty. `area` and `iscrowd` are always set: a
        missing area is the box's. Of DensePose `dp_x` and `dp_y` are set, and all of `dp_I`,
        `dp_U`, `dp_V` or all of `dp_vertex`, `ref_model`, or both; or nothing of it is. Beside
        vertices there may be `dp_I` alone.
    """
    _, _, width, height = raw["bbox"]
    cleaned = {"iscrowd": 0, "area": float(width * height)}
    cleaned |= {key: value for key, value in raw.items() if not is_absent(value)}
    unwanted: set[str] = set()
    if not (with_densepose and has_densepose(raw)):
        unwanted = {*DENSEPOSE_KEYS, *VERTEX_KEYS, *EXTENSION_KEYS, PICTURE_KEY}
    elif not has_charts(raw):
        unwanted = {"dp_U", "dp_V"} | (set() if has_patches(raw) else {"dp_I"})
    elif not has_vertices(raw):
        unwanted = {*VERTEX_KEYS}
    return {key: value for key, value in cleaned.items() if key not in unwanted}


def parse_person(
    raw: Mapping[str, Any], with_densepose: bool = True, class_index: int = 0
) -> PersonRecord:
    """Turns one annotation that passed `record_checks` into a record.

    Args:
        raw: the annotation as JSON gave it.
        with_densepose: False leaves `dp_*` out.
        class_index: of its category.

    Returns:
        The record. Missing keypoints are zeros and a missing area is the box's. Without `dp_masks`
        the segmentation is the mask of the whole body.
    """
    raw = clean_person(raw, with_densepose)
    box = np.asarray(raw["bbox"], np.float64)
    keypoints = np.zeros((parts.NUM_KEYPOINTS, 3), np.float32)
    if "keypoints" in raw:
        keypoints = np.asarray(raw["keypoints"], np.float32).reshape(-1, 3)
        visibility = keypoints[:, 2]
        confident = np.where(visibility >= record_checks.MIN_KEYPOINT_CONFIDENCE, 2, 0)
        keypoints[:, 2] = np.where(visibility == np.round(visibility), visibility, confident)
    densepose = None
    if "dp_x" in raw:
        zeros = np.zeros(len(raw["dp_x"]))
        x, y, i, u, v = (
            np.asarray(raw.get(key, zeros), np.float32) for key in DENSEPOSE_POINT_KEYS
        )
        if "dp_U" not in raw:  # patches alone are no charts
            i = np.zeros_like(i)
        densepose = DensePoseRecord(
            x=x,
            y=y,
            i=i,
            u=u,
            v=v,
            part_mask=_part_mask(raw, box),
            is_annotated=np.asarray(raw.get("dp_annotated", np.ones(len(x))), bool),
            confidence=np.asarray(raw.get("dp_confidence", np.ones(len(x))), np.float32),
            iuv_file=raw.get(PICTURE_KEY, ""),
            vertex=np.asarray(raw[VERTEX_KEY], np.int32) if VERTEX_KEY in raw else None,
            mesh=raw.get(MESH_KEY, ""),
        )
    return PersonRecord(
        annotation_id=raw["id"],
        box_xywh=box,
        is_crowd=bool(raw["iscrowd"]),
        area=float(raw["area"]),
        keypoints=keypoints,
        segmentation=raw.get("segmentation"),
        densepose=densepose,
        class_index=class_index,
    )


def _part_mask(raw: Mapping[str, Any], box_xywh: np.ndarray) -> np.ndarray:
    if "dp_masks" in raw:
        return decode_part_mask(raw["dp_masks"])
    mask = grid_mask(raw.get("segmentation"), box_xywh)
    if mask is None:
        return np.zeros((parts.PART_GRID, parts.PART_GRID), np.uint8)
    return mask * np.uint8(parts.UNKNOWN_PART)


def _group_by_image(raw: Mapping[str, Any], report: AnnotationReport) -> "ImageSequence":
    people: dict[int, list[tuple[Mapping[str, Any], bool]]] = {}
    for position, annotation in enumerate(raw["annotations"]):
        if position in report.bad_annotations:
            continue
        if checks.is_of_category(annotation, report.classes.keys()):
            person = (annotation, position not in report.bad_densepose)
            people.setdefault(annotation["image_id"], []).append(person)
    images = [
        {**image, "file_name": record_checks.image_file_name(image)}
        for position, image in enumerate(raw["images"])
        if position not in report.bad_images
    ]
    entries = [tuple(people.get(image["id"], ())) for image in images]
    return ImageSequence(images, entries, report.classes)
