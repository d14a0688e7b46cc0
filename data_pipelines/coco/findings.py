"""The kinds of errors in a DensePose-COCO file, and their messages."""

import dataclasses

KINDS: dict[str, str] = {
    "file_missing": "the annotation file is not there",
    "file_unreadable": "the annotation file cannot be read, or is not UTF-8 text",
    "not_json": "the annotation file is not JSON, or was cut short",
    "wrong_top_level": "the file is not an object with images, annotations and categories",
    "missing_section": "images, annotations or categories is missing or not a list",
    "no_person_category": "no category is named person, or as was asked for",
    "not_an_object": "a record is not an object",
    "missing_key": "a record lacks a key it must have",
    "wrong_type": "a value has another type than the format says",
    "id_range": "an id does not fit 64 bits, or an image's is negative or does not fit 32",
    "duplicate_image": "two images share an id",
    "duplicate_annotation": "two annotations share an id",
    "image_size": "an image's height or width is not in 1..65536",
    "file_name": "an image's file name is empty, absolute or leaves its folder",
    "image_missing": "the image file is not there",
    "image_unreadable": "the image file is empty or not an image",
    "image_truncated": "the image file ends before the image does",
    "image_size_mismatch": "the image file has another size than its record",
    "annotated_as_stored": "a record was made without the EXIF orientation: read without it too",
    "orientation_unclear": "an EXIF orientation is applied, though sizes do not say whether to",
    "unknown_image": "an annotation names an image that is not in the file",
    "unknown_category": "an annotation names a category that is not in the file",
    "box_length": "a box is not four numbers",
    "box_not_finite": "a box holds NaN or infinity",
    "box_empty": "a box has no width or no height",
    "box_outside": "a box reaches out of its image by more than a pixel",
    "area": "an area is negative or not finite",
    "crowd_flag": "iscrowd is neither 0 nor 1",
    "ignore_regions": "an image's ignore regions are not polygons that can be drawn",
    "keypoints_length": "keypoints are not 51 numbers",
    "keypoints_not_finite": "keypoints hold NaN or infinity",
    "keypoint_visibility": "a keypoint's visibility is outside 0..2",
    "keypoint_confidence": "a visibility is a fraction, read as labelled from 0.2 on",
    "keypoint_outside": "a labelled keypoint is outside its image",
    "keypoint_count": "num_keypoints differs from the number of labelled keypoints",
    "polygon_length": "a polygon is not three or more x, y pairs",
    "polygon_not_finite": "a polygon holds NaN or infinity",
    "polygon_outside": "a polygon is further from its image than the image is large",
    "segmentation_rle": "a run-length segmentation has the wrong size or cannot be decoded",
    "densepose_incomplete": "some dp_ keys hold something and others are missing or empty",
    "densepose_type": "a dp_ value is not a list of numbers",
    "densepose_lengths": "dp_x, dp_y, dp_I, dp_U, dp_V or dp_vertex differ in length",
    "point_not_finite": "dp_x or dp_y holds NaN or infinity",
    "point_range": "dp_x or dp_y is outside 0..256",
    "patch_not_integer": "dp_I holds a value that is not a whole number",
    "patch_range": "dp_I is outside 0..24",
    "uv_not_finite": "dp_U or dp_V holds NaN or infinity",
    "uv_range": "dp_U or dp_V is outside 0..1",
    "vertex_not_integer": "dp_vertex holds a value that is not a whole number",
    "vertex_range": "dp_vertex holds a value that is no vertex of the mesh",
    "mesh_name": "ref_model is not the name of a mesh",
    "annotated_flag": "dp_annotated is not a 0 or 1 for each point",
    "point_confidence": "dp_confidence is not a number in 0..1 for each point",
    "picture_name": "dp_iuv is not the name of a file",
    "masks_type": "dp_masks is no run-length mask, nor a list of them and empty entries",
    "masks_count": "dp_masks has more entries than there are body parts",
    "mask_size": "an entry of dp_masks is not 256x256",
    "mask_undecodable": "an entry of dp_masks cannot be decoded",
}
"""Every kind of finding with what it means."""

WARNINGS = frozenset(
    {
        *("annotated_as_stored", "orientation_unclear"),
        *("keypoint_confidence", "keypoint_outside", "keypoint_count"),
    }
)
"""Kinds that are reported but leave the record usable; every other kind is an error."""

DENSEPOSE_KINDS = frozenset(list(KINDS)[list(KINDS).index("densepose_incomplete") :])
"""Kinds that spoil a person's DensePose but not the person."""


def is_error(kind: str) -> bool:
    """Whether findings of a kind of `KINDS` are errors."""
    return kind not in WARNINGS


@dataclasses.dataclass(frozen=True)
class Finding:
    """One error: its file, record and field, and what is wrong."""

    kind: str  # a key of KINDS
    file: str
    record: str  # "image 785", "annotation 12", "annotations[3]" where the id itself is bad
    field: str
    message: str

    @property
    def is_error(self) -> bool:
        """Whether the record cannot be used as it is."""
        return is_error(self.kind)

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
        """Adds a finding; KeyError for a kind that is not in KINDS."""
        KINDS[kind]
        self.findings.append(Finding(kind, self.file, self.record, field, message))
