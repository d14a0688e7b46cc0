"""Detections from a results file of any system, read without holding the file in memory.

One pass over the file records the image, box, score and file position of every detection; the IUV
pictures, nearly all of a file, are read one by one when their image is scored. A file is a JSON
list of detections or JSON lines: a detection per line, or the people of a video's frame, see
`results.frame_lines`.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from ktn_jax.data_pipelines.coco.json_values import is_absent, to_numbers
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth
from ktn_jax.evaluation.image_names import AnnotatedNames
from ktn_jax.results.detection_checks import ResultsError, check_record
from ktn_jax.results.iuv_pictures import decode_record
from ktn_jax.results.vertex_pictures import decode_vertices
from ktn_jax.runtime import rle
from ktn_jax.runtime.json_stream import JsonStreamError, iterate_objects


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a results file a detection is.

    Attributes:
        offset: of its JSON text, or of that of the frame of a video that has it, in bytes.
        length: of that text, in bytes.
        number: of the detection in the frame, from 0; None of a detection by itself.
    """

    offset: int
    length: int
    number: int | None = None

    def read(self, handle: BinaryIO) -> dict[str, Any]:
        """Reads the detection from the file, which is opened for binary reading."""
        handle.seek(self.offset)
        # As in `iterate_entries`: only ASCII text matters.
        entry: dict[str, Any] = json.loads(handle.read(self.length).decode("latin-1"))
        return entry if self.number is None else _of_frame(entry["results"][self.number])


@dataclasses.dataclass(frozen=True)
class Detection:
    """A detection without its IUV picture.

    Attributes:
        detection_id: its position in the file, from 1.
        image_id: of the annotation file.
        score: finite.
        box_xywh: in pixels of the image; that of the keypoints, or empty, where the file has none.
        place: in the file.
        has_picture: whether it has an IUV picture; plain COCO results have none.
        mesh: whose vertices it has, in place of an IUV picture; "" without vertices.
    """

    detection_id: int
    image_id: int
    score: float
    box_xywh: tuple[float, float, float, float]
    place: Place
    has_picture: bool = True
    mesh: str = ""


@dataclasses.dataclass(frozen=True)
class ResultIndex:
    """Index of a results file.

    Attributes:
        path: of the file.
        by_image: detections of each image, best score first, equal scores in file order.
        keypoints: [51] by detection id, of the detections that have them.
        notes: remarks for the reader.
        num_boxless: detections without a box of their own.
    """

    path: pathlib.Path
    by_image: Mapping[int, tuple[Detection, ...]]
    keypoints: Mapping[int, np.ndarray]
    notes: tuple[str, ...] = ()
    num_boxless: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.by_image.values()))

    @property
    def has_pictures(self) -> bool:
        """Whether any detection has an IUV picture; true without detections, which score 0."""
        return not len(self) or any(detection.has_picture for detection in self._all())

    @property
    def has_vertices(self) -> bool:
        """Whether any detection has vertices and no IUV picture."""
        return any(detection.mesh for detection in self._all())

    @property
    def has_surface(self) -> bool:
        """Whether any detection has a picture or vertices; true without detections."""
        return self.has_pictures or self.has_vertices

    def _all(self) -> Iterator[Detection]:
        return itertools.chain.from_iterable(self.by_image.values())


def iterate_entries(path: pathlib.Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields every detection and its place, see `json_stream.iterate_objects`.

    Detections of a video's frame come without `file_name`, which is the video's.

    Raises:
        EvaluationError: the file is missing, empty, cut short or not JSON.
    """
    try:
        for offset, length, entry in iterate_objects(path):
            if "frame" not in entry or not isinstance(entry.get("results"), list):
                yield Place(offset, length), entry
                continue
            for number, detection in enumerate(entry["results"]):
                if not isinstance(detection, dict):
                    raise EvaluationError(
                        f"{path}: frame {entry['frame']!r:.20}: detection {number} must be an "
                        f"object with fields, got {detection!r:.50}"
                    )
                yield Place(offset, length, number), _of_frame(detection)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path}: no such results file") from error
    except JsonStreamError as error:
        raise EvaluationError(
            f"{error} (wanted are a list of detections, [] for none, or one a line)"
        ) from error


def _of_frame(detection: Mapping[str, Any]) -> dict[str, Any]:
    """A detection of a video's frame, without the video's name: the frame's is another."""
    return {name: value for name, value in detection.items() if name != "file_name"}


def index_results(path: str | pathlib.Path, truth: GroundTruth) -> ResultIndex:
    """Indexes a results file and checks every detection against the annotation file.

    Args:
        path: a JSON list of detections, or JSON lines, also of a video's frames.
        truth: the annotations that the results belong to.

    Returns:
        The index of the detections of the category that is scored.

    Raises:
        EvaluationError: the file is not JSON, or a detection has a wrong or missing field.
    """
    path = pathlib.Path(path)
    file_names = {image.image_id: image.file_name for image in truth.images}
    annotated = AnnotatedNames(file_names.items())
    by_image: dict[int, list[Detection]] = {}
    keypoints: dict[int, np.ndarray] = {}
    seen: set[Any] = set()
    duplicates, other_categories, on_skipped, pictureless, boxless = 0, 0, 0, 0, 0
    for number, (place, entry) in enumerate(iterate_entries(path), start=1):
        where = f"{path.name}: detection {number}"
        if "results" in entry and "bbox" not in entry:
            raise EvaluationError(f"{where}: this is a shard of results; merge the shards first")
        if not _is_scored(where, entry, truth):
            other_categories += entry["category_id"] not in truth.others
            continue
        record = check_entry(where, entry)
        image_id = record["image_id"]
        if image_id in truth.skipped_images:
            on_skipped += 1
            continue
        if image_id not in file_names:
            raise EvaluationError(
                f"{where}: image_id {image_id!r:.50} is not in {truth.name}; were these results "
                "made on another set of images?"
            )
        given = record.get("file_name")
        if isinstance(given, str) and annotated.contradicts(image_id, given):
            raise EvaluationError(
                f"{where}: image_id {image_id} with file_name {given!r:.200}, but the annotations "
                f"call this image {file_names[image_id]!r:.200}: were the results numbered in "
                "another order? Make them with the image ids of the annotations "
                "(`ktn predict --annotations FILE`)"
            )
        x, y, width, height = (float(value) for value in record["bbox"])
        box = (x, y, width, height)
        detection = Detection(
            detection_id=number,
            image_id=image_id,
            score=float(record["score"]),
            box_xywh=box,
            place=place,
            has_picture="uv_data" in record,
            mesh=_mesh_of(record),
        )
        key = (detection.image_id, detection.score, box)
        duplicates += key in seen
        pictureless += not (detection.has_picture or detection.mesh)
        boxless += is_absent(entry.get("bbox"))
        seen.add(key)
        if record.get("keypoints") is not None:
            keypoints[number] = np.array(record["keypoints"], np.float64)
        by_image.setdefault(detection.image_id, []).append(detection)
    if other_categories and not seen and not on_skipped:
        raise EvaluationError(
            f"{path.name}: all {other_categories} detections are of other categories than "
            f"{truth.category}, which has category_id {truth.category_id} in {truth.name}: make "
            "them with it (`ktn predict --annotations FILE`), or change it in the results"
        )
    notes = []
    total = sum(map(len, by_image.values()))
    if pictureless and pictureless == total:
        notes.append("no detection has an IUV picture: GPS, GPSm, IOU and patches are left out")
    elif pictureless:
        notes.append(
            f"{pictureless} of {total} detections have no IUV picture: they count as background in "
            "GPS, GPSm and IOU"
        )
    if duplicates:
        notes.append(
            f"{duplicates} detections have the image, box and score of another one; they count as "
            "false positives, as in the reference"
        )
    if other_categories:
        notes.append(
            f"{other_categories} detections of other categories than {truth.category} left out"
        )
    if on_skipped:
        notes.append(f"{on_skipped} detections on images that were left out")
    ranked = {
        image: tuple(sorted(found, key=lambda detection: -detection.score))
        for image, found in by_image.items()
    }
    return ResultIndex(path, ranked, keypoints, tuple(notes), boxless)


def _mesh_of(record: Mapping[str, Any]) -> str:
    """The mesh of a record's vertices, "" where it has none, or has an IUV picture too."""
    if "uv_data" in record or record.get("vertices") is None:
        return ""
    return str(record["vertices"]["mesh"])


def _is_scored(where: str, entry: Mapping[str, Any], truth: GroundTruth) -> bool:
    category = entry.get("category_id", truth.category_id)
    if type(category) is not int:
        return True  # `check_record` says what is wrong
    if category not in truth.categories:
        raise EvaluationError(
            f"{where}: category_id {category!r:.50} is not in {truth.name}, which has "
            f"{sorted(truth.categories)}; {truth.category} is {truth.category_id}"
        )
    return category in truth.scored_categories


def check_entry(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a detection as `check_record` does; plain COCO keypoints and masks need no box.

    Raises:
        EvaluationError: a wrong or missing field.
    """
    names = ("bbox", "densepose", "uv_shape", "uv_data", "vertices")
    is_plain = all(is_absent(entry.get(name)) for name in names)
    if is_plain and not all(is_absent(entry.get(name)) for name in ("keypoints", "segmentation")):
        entry = {**entry, "bbox": _box_of(entry.get("keypoints"))}
    try:
        return check_record(where, entry)
    except ResultsError as error:
        raise EvaluationError(str(error)) from error


def _box_of(keypoints: Any) -> list[float]:
    """The box xywh of a detection without one, as pycocotools takes it: that of its keypoints."""
    numbers = to_numbers(keypoints)
    if numbers is None or numbers.size % 3 or not numbers.size or not np.isfinite(numbers).all():
        return [0.0] * 4  # `check_record` says what is wrong with keypoints
    x, y = numbers[0::3], numbers[1::3]
    return [float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))]


def read_payload(handle: BinaryIO, detection: Detection) -> tuple[np.ndarray, Any]:
    """Reads the IUV picture or the vertices of a detection.

    Args:
        handle: the results file, opened for binary reading.
        detection: from `index_results` of the same file.

    Returns:
        uint8 [3, h, w] of (I, 255 U, 255 V) with h = max(int(box height), 1) and
        w = max(int(box width), 1), or one more (it is read from its corner, as in the reference);
        of a detection with vertices int32 [1, h, w] of the vertex plus 1, 0 beside the person; or
        [3, 0, 0] where it has neither; and the entry's `segmentation` or None. A picture that is
        one smaller has background there.

    Raises:
        EvaluationError: the picture is broken or of another size than its box.
    """
    name = os.path.basename(getattr(handle, "name", "results"))
    where = f"{name}: detection {detection.detection_id} of image {detection.image_id}"
    record = check_entry(where, detection.place.read(handle))
    if not detection.has_picture and not detection.mesh:
        return np.zeros((3, 0, 0), np.uint8), record.get("segmentation")
    try:
        if detection.mesh:
            picture = decode_vertices(where, record["vertices"])[None] + 1
        else:
            picture = decode_record(where, record)
    except ResultsError as error:
        raise EvaluationError(str(error)) from error
    missing = [max(int(detection.box_xywh[i + 2]) - picture.shape[2 - i], 0) for i in (1, 0)]
    if any(missing):  # a box that was rounded up
        picture = np.pad(picture, [(0, 0), *((0, count) for count in missing)])
    return picture, record.get("segmentation")


def check_segmentation(
    file_name: str, detection: Detection, given: Any, image_size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Checks the mask of a detection, which pycocotools reads unchecked.

    Args:
        file_name: of the results, for the message.
        detection: whose it is.
        given: the entry's `segmentation`.
        image_size_hw: of the image.

    Returns:
        The compressed run-length mask.

    Raises:
        EvaluationError: it is no such mask of the image.
    """
    try:
        if not isinstance(given, dict) or not isinstance(given.get("counts"), str):
            raise rle.RleError("counts is not a string")
        rle.check_rle(given, image_size_hw)
    except rle.RleError as error:
        raise EvaluationError(
            f"{file_name}: detection {detection.detection_id} of image {detection.image_id}: "
            f"segmentation must be a compressed RLE of size {list(image_size_hw)} (height, width): "
            f"{error}"
        ) from error
    return given


def read_segmentations(
    results: ResultIndex, truth: GroundTruth, per_image: int
) -> dict[int, dict[str, Any]]:
    """Reads the masks of detections without scoring them.

    Args:
        results: index of the file.
        truth: the annotations.
        per_image: how many detections of an image are read, the best ones.

    Returns:
        COCO RLE by detection id, of the detections that have a `segmentation`.

    Raises:
        EvaluationError: a mask does not fit its image.
    """
    found = {}
    with open(results.path, "rb") as handle:
        for image in truth.images:
            for detection in results.by_image.get(image.image_id, ())[:per_image]:
                given = read_payload(handle, detection)[1]
                if given:
                    checked = check_segmentation(
                        results.path.name, detection, given, image.image_size_hw
                    )
                    found[detection.detection_id] = checked
    return found
