"""People found in an image, and the files that hold them.

A person's IUV picture is uint8 [3, h, w]: patch 0..24 (0 background), 255 U and 255 V, over the
pixels of the box. Its top left pixel is pixel (int(x0), int(y0)) of the image, as in the reference.
`results.json` is in the DensePose-COCO results format.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.results.categories import PERSON_CATEGORY
from ktn_jax.results.confidences import decode_confidences, encode_confidences
from ktn_jax.results.detection_checks import (
    CONFIDENCES,
    ResultsError,
    check_record,
    length_of_pixels,
)
from ktn_jax.results.iuv_pictures import check_iuv, decode_record, encode_iuv
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.vertex_pictures import decode_vertices, encode_vertices
from ktn_jax.runtime import atomic_files
from ktn_jax.runtime.rle import RleError

if TYPE_CHECKING:
    from ktn_jax.body.surface import Template
    from ktn_jax.body.vertices import SeenVertices

# Float32 boxes around pixel 10,000 are exact to 0.001; below this a length counts as the same.
_LENGTH_TOLERANCE = 0.01

BACKGROUND = -1  # in `PersonResult.vertices`: a pixel that is not the person's

# COCO counts keypoints in pixel indices; boxes, and keypoints here, are continuous.
_PIXEL_CENTRE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class PersonResult:
    """A detected person, or another object of a model of several classes, in pixels of the image.

    Attributes:
        box_xyxy: [4] float32.
        score: probability of the category, finite.
        iuv: [3, h, w] uint8 with h = max(int(box height), 1), w = max(int(box width), 1); None of a
            model without DensePose.
        keypoints: [17, 3] float32 of x, y and score in COCO's order, or None. Continuous
            coordinates: the centre of the first pixel is (0.5, 0.5).
        confidences: {name: float32 [h, w]} of a model that predicts them, over the pixels of `iuv`
            or `vertices`, see `results.confidences`; empty for others.
        mask: of a model with a mask head, or None; `People.masks` has those of other bodies too.
        category_id: COCO's, see `results.categories`.
        uv: float32 [2, h, w], U and V of `iuv`'s pixels as the network gives them, neither clipped
            nor rounded; None where only `iuv` is known, as from a results file.
        track_id: the same number for the same person in all frames of a video, see `tracking`;
            None where nobody was tracked.
        vertices: int32 [h, w] of a model with embeddings: the vertex of `mesh` that each pixel of
            the box shows, -1 beside the person; None of other models.
        mesh: name of the mesh of the vertices.
    """

    box_xyxy: np.ndarray
    score: float
    iuv: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    confidences: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    mask: PlacedMask | None = None
    category_id: int = PERSON_CATEGORY
    uv: np.ndarray | None = None
    track_id: int | None = None
    vertices: np.ndarray | None = None
    mesh: str = ""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ResultsError: a wrong shape, type, or a size of `iuv` that is not the box's.
        """
        box = np.asarray(self.box_xyxy, np.float32)
        if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < box[:2]).any():
            raise ResultsError(f"box_xyxy must be (x0, y0, x1, y1), x0 <= x1, y0 <= y1, got {box}")
        if not math.isfinite(self.score):
            raise ResultsError(f"score must be finite, got {self.score}")
        iuv = None if self.iuv is None else _checked_iuv(np.asarray(self.iuv), box)
        keypoints = self.keypoints
        if keypoints is not None:
            keypoints = np.asarray(keypoints, np.float32)
            if keypoints.shape != (parts.NUM_KEYPOINTS, 3):
                raise ResultsError(f"keypoints must be [17, 3], got {keypoints.shape}")
        uv = self.uv
        if uv is not None:
            uv = np.asarray(uv, np.float32)
            if iuv is None or uv.shape != (2, *iuv.shape[1:]):
                raise ResultsError(f"uv must be [2, h, w] as iuv, got {uv.shape}")
        vertices = self.vertices
        if vertices is not None:
            vertices = _checked_vertices(np.asarray(vertices), box, self.mesh)
            if iuv is not None and iuv.shape[1:] != vertices.shape:
                raise ResultsError(f"vertices {vertices.shape} and iuv {iuv.shape} differ in size")
        checked = {
            "box_xyxy": box,
            "iuv": iuv,
            "keypoints": keypoints,
            "uv": uv,
            "vertices": vertices,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "score", float(self.score))
        is_body = self.is_body
        size = None if is_body is None else is_body.shape
        for name, values in self.confidences.items():
            if name not in CONFIDENCES or np.shape(values) != size:
                raise ResultsError(
                    f"confidences must be [h, w] as iuv or vertices, {size}, and of "
                    f"{', '.join(CONFIDENCES)}; got {name!r} {np.shape(values)}"
                )

    @property
    def is_body(self) -> np.ndarray | None:
        """bool [h, w], the pixels of the box that show the surface; None of models without it."""
        if self.iuv is not None:
            return np.asarray(self.iuv[0] > 0)
        return None if self.vertices is None else np.asarray(self.vertices != BACKGROUND)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels of the maps of the box, or of those that there would be."""
        width, height = self.box_xyxy[2:] - self.box_xyxy[:2]
        if self.iuv is not None:
            return self.iuv.shape[1], self.iuv.shape[2]
        if self.vertices is not None:
            return self.vertices.shape[0], self.vertices.shape[1]
        return max(int(height), 1), max(int(width), 1)

    def to_vertices(self, template: "Template") -> "SeenVertices":
        """Finds the vertices of a body on this person, see `body.vertices.see_vertices`.

        Args:
            template: With the charts that the model was trained on: the published ones of
                `body.loading.load_template` (SMPL's 6,890 vertices), or those of the project's own
                body for models of rendered people.

        Returns:
            Vertices and pixels. `pixel_xy` counts from the image's first pixel, the maps from that
            of `iuv`, as this has them.

        Raises:
            ResultsError: the model found no IUV picture.
        """
        from ktn_jax.body.vertices import see_vertices  # SciPy loads slowly, few need it

        if self.iuv is None:
            raise ResultsError("this person has no iuv, and so no vertices")
        seen = see_vertices(template, self.iuv, self.uv)
        corner = self.box_xyxy[:2].astype(np.int32)  # truncated, as in the reference
        in_image = np.where(seen.is_visible[:, None], seen.pixel_xy + corner, seen.pixel_xy)
        return dataclasses.replace(seen, pixel_xy=in_image)


def _checked_iuv(iuv: np.ndarray, box: np.ndarray) -> np.ndarray:
    check_iuv(iuv)
    _check_size("iuv", iuv.shape[1:], box)
    return iuv


def _checked_vertices(vertices: np.ndarray, box: np.ndarray, mesh: str) -> np.ndarray:
    if (
        vertices.ndim != 2
        or vertices.dtype != np.int32
        or vertices.min(initial=0) < BACKGROUND
        or not mesh
    ):
        raise ResultsError(
            f"vertices must be [h, w] int32, {BACKGROUND} or more, of a mesh; got {vertices.shape} "
            f"{vertices.dtype} from {vertices.min(initial=0)} on, of {mesh!r}"
        )
    _check_size("vertices", vertices.shape, box)
    return vertices


def _check_size(name: str, size_hw: tuple[int, ...], box: np.ndarray) -> None:
    for length, pixels in zip((box[3] - box[1], box[2] - box[0]), size_hw, strict=True):
        if abs(length_of_pixels(length, pixels) - length) > _LENGTH_TOLERANCE:
            raise ResultsError(
                f"{name} is {size_hw[0]} x {size_hw[1]} (h x w), the box {box[3] - box[1]} x "
                f"{box[2] - box[0]}: h must be max(int(height), 1), w alike"
            )


def _end_of_box(start: float, length: float, pixels: int) -> np.float32:
    """Where a side of a float32 box ends, such that max(int(end - start), 1) is `pixels`."""
    first = np.float32(start)
    end = np.float32(first + length_of_pixels(length, pixels))
    while max(int(end - first), 1) > pixels:  # a few steps of the last bit at most
        end = np.nextafter(end, np.float32(-np.inf))
    while max(int(end - first), 1) < pixels:
        end = np.nextafter(end, np.float32(np.inf))
    return end


def people_to_records(
    image_id: int,
    people: Iterable[PersonResult],
    *,
    with_confidences: bool = False,
    category_id: int = PERSON_CATEGORY,
    **extra_fields: Any,
) -> list[dict[str, Any]]:
    """Turns the people of an image into entries of the DensePose-COCO results format.

    Args:
        image_id: Of the annotation file.
        people: In the order wanted in the file.
        category_id: Of people; other objects keep theirs.
        with_confidences: Adds `confidences` to every record, as `encode_confidences` makes them.
        **extra_fields: JSON values put into every record, such as `file_name`.

    Returns:
        Records with image_id, category_id, score, bbox (xywh) and, where known, track_id, uv_shape,
        uv_data, vertices (see `encode_vertices`), segmentation (run lengths) and keypoints (51
        numbers, COCO's order: x, y, score; pixel indices, so half a pixel less than here). int(w),
        int(h) of `bbox` are the size of the picture (evaluators insist), which rounding to float32
        can otherwise undo.

    Raises:
        ResultsError: a confidence that is wanted is not finite, or a mesh has too many vertices.
    """
    records = []
    for person in people:
        x0, y0, x1, y1 = person.box_xyxy
        height, width = person.size_hw
        is_person = person.category_id == PERSON_CATEGORY
        record: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_id if is_person else person.category_id,
            "score": person.score,
            "bbox": [
                float(x0),
                float(y0),
                length_of_pixels(x1 - x0, width),
                length_of_pixels(y1 - y0, height),
            ],
        }
        if person.track_id is not None:
            record["track_id"] = person.track_id
        if person.iuv is not None:
            record |= {"uv_shape": list(person.iuv.shape), "uv_data": encode_iuv(person.iuv)}
        if person.vertices is not None:
            record["vertices"] = encode_vertices(person.vertices, person.mesh)
        if person.mask is not None:
            record["segmentation"] = person.mask.to_rle()
        if person.keypoints is not None:
            shift = np.array([_PIXEL_CENTRE, _PIXEL_CENTRE, 0])
            record["keypoints"] = [float(value) for value in (person.keypoints - shift).ravel()]
        if with_confidences and person.is_body is not None:
            record["confidences"] = encode_confidences(person.confidences, person.is_body)
        records.append(record | extra_fields)
    return records


def records_to_people(records: Iterable[Mapping[str, Any]]) -> dict[int, list[PersonResult]]:
    """Turns entries of the results format into people: the inverse of `people_to_records`.

    Args:
        records: As `read_results` gives them.

    Returns:
        {image_id: people in the records' order}. A box whose size differs from its picture's by
        less than a pixel (some systems round boxes) gets the nearest size that agrees.

    Raises:
        ResultsError: a record is wrong; the message names its number, from 0, and the field.
    """
    people: dict[int, list[PersonResult]] = {}
    for number, record in enumerate(records):
        checked = check_record(f"record {number}", record)
        person = record_to_person(f"record {number}", checked)
        people.setdefault(checked["image_id"], []).append(person)
    return people


def record_to_person(where: str, record: Mapping[str, Any]) -> PersonResult:
    """Turns one entry of the results format into a person.

    Args:
        where: names the record in messages.
        record: as `check_record` gave it.

    Raises:
        ResultsError: a picture or mask of it is damaged; the message names the field.
    """
    x, y, width, height = record["bbox"]
    right, bottom = np.float32(x + width), np.float32(y + height)
    iuv = vertices = is_body = None
    if record.get("vertices") is not None:
        vertices = decode_vertices(where, record["vertices"])
        is_body = vertices != BACKGROUND
    if "uv_data" in record:
        iuv = decode_record(where, record)
        is_body = iuv[0] > 0
    confidences: Mapping[str, np.ndarray] = {}
    if is_body is not None:
        right = _end_of_box(x, width, is_body.shape[1])
        bottom = _end_of_box(y, height, is_body.shape[0])
        confidences = decode_confidences(where, record.get("confidences", {}), is_body)
    keypoints = record.get("keypoints")
    if keypoints is not None:
        keypoints = np.reshape(keypoints, (-1, 3)) + [_PIXEL_CENTRE, _PIXEL_CENTRE, 0]
    return PersonResult(
        box_xyxy=np.array([x, y, right, bottom], np.float32),
        score=record["score"],
        iuv=iuv,
        keypoints=keypoints,
        confidences=confidences,
        mask=_decode_mask(where, record.get("segmentation")),
        category_id=record.get("category_id", PERSON_CATEGORY),
        track_id=record.get("track_id"),
        vertices=vertices,
        mesh="" if vertices is None else record["vertices"]["mesh"],
    )


def _decode_mask(where: str, segmentation: Any) -> PlacedMask | None:
    if not isinstance(segmentation, Mapping):  # polygons, of other systems, are left out
        return None
    try:
        return PlacedMask.from_rle(segmentation)
    except RleError as error:
        raise ResultsError(f"{where}: segmentation: {error}") from error


def write_results(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Writes a results file, one record a line, replacing an older file only when complete.

    Args:
        path: Of the JSON file.
        records: As of `people_to_records`; none at all gives the list []. Numbers and arrays of
            NumPy are written as numbers and lists.

    Raises:
        ResultsError: a record is wrong; the message names its number and the field.
        FileNotFoundError: the folder does not exist.
    """
    lines = []
    for number, record in enumerate(records):
        checked = check_record(f"{path}: record {number}", _without_numpy(record))
        lines.append(json.dumps(checked, allow_nan=False))
    with atomic_files.replacing(path) as temporary:
        temporary.write_text("[" + ",\n ".join(lines) + "]\n", encoding="utf-8")


def _without_numpy(value: Any) -> Any:
    """The same value with JSON's types in place of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _without_numpy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_numpy(item) for item in value]
    return value


def read_results(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a results file.

    Args:
        path: A JSON list in the DensePose-COCO results format (`uv_shape`, `uv_data`), or as the
            KTN evaluator writes it (`densepose`: [[shape, base64 PNG], box]).

    Returns:
        Records in the first layout, other fields kept as they are. Pictures are left encoded, and
        only their headers checked: `records_to_people` decodes them.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsError: not such a list, or a wrong or missing field; the message names the record's
            number, from 0, and the field.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResultsError(f"{path}: not a JSON file, or cut short: {error}") from error
    if not isinstance(content, list):
        raise ResultsError(f"{path}: wanted a list of results, got a {type(content).__name__}")
    return [
        check_record(f"{path}: record {number}", record) for number, record in enumerate(content)
    ]
