"""Image and labels moved together: resize, mirror, rotate and zoom.

Frame: continuous pixels, (0, 0) the outer corner of the top-left pixel and (0.5, 0.5) its middle.
Boxes are xyxy. DensePose stays on the 256x256 grid over the person's box, so what moves the box
moves it too.
"""

import dataclasses
import types
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.body.symmetry import UVSymmetry, mirror_by_tables
from ktn_jax.data_pipelines.coco.annotations import (
    DensePoseRecord,
    ImageRecord,
    PersonRecord,
)
from ktn_jax.data_pipelines.coco.part_masks import grid_mask

# A person of whom a zoom or a rotation leaves less than this many pixels each way is dropped.
_MIN_BOX_SIDE = 2.0
_MIRRORED_LABELS = np.append(parts.COARSE_FLIP, parts.UNKNOWN_PART).astype(np.uint8)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601's luma, as of JPEG


@dataclasses.dataclass(frozen=True)
class PersonLabels:
    """What training needs of one person, in pixels of the image as it is now."""

    box_xyxy: np.ndarray  # [4] float64
    keypoints: np.ndarray  # [17, 3] float32 x, y, visibility; zeros where not labelled
    densepose: DensePoseRecord | None
    outline: np.ndarray  # [K, 2] float64: the box is the smallest around these
    person_mask: np.ndarray | None = None  # [256, 256] uint8 0 or 1, on the grid over the box
    class_index: int = 0


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """An image and the people in it."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    people: tuple[PersonLabels, ...]
    # [M, 4] float64 xyxy: where a model was not sure of people, which is no background either.
    ignored_boxes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4)))

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def label_image(
    image: np.ndarray, record: ImageRecord, with_person_masks: bool = False
) -> LabelledImage:
    """Puts an image and its record together for training.

    Crowd regions are left out; where a model set all points of an image, they are boxes that no
    background is taken from. COCO's keypoints count pixels, so half a pixel is added to those
    that are labelled.

    Args:
        image: [H, W, 3] uint8 RGB.
        record: its annotations.
        with_person_masks: whether to rasterise the segmentations.

    Returns:
        The people in the order of the record.

    Raises:
        ValueError: the image is not uint8 of the size in the record.
    """
    if image.shape != (record.height, record.width, 3) or image.dtype != np.uint8:
        wanted = (record.height, record.width, 3)
        raise ValueError(
            f"{record.file_name}: the record says uint8 {wanted}, got {image.dtype} {image.shape}"
        )
    people = tuple(
        _label_person(person, with_person_masks) for person in record.people if not person.is_crowd
    )
    return LabelledImage(image, people, _ignored_boxes(record))


def _ignored_boxes(record: ImageRecord) -> np.ndarray:
    labels = [person.densepose for person in record.people if person.densepose is not None]
    if not labels or any(dense.is_annotated.any() for dense in labels):
        return np.zeros((0, 4))
    crowds = [person.box_xywh for person in record.people if person.is_crowd]
    boxes_xywh = np.array(crowds, np.float64).reshape(-1, 4)
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def _label_person(person: PersonRecord, with_mask: bool) -> PersonLabels:
    x, y, width, height = person.box_xywh
    box = np.array([x, y, x + width, y + height])
    keypoints = person.keypoints.copy()
    is_labelled = keypoints[:, 2] > 0
    keypoints[is_labelled, :2] += 0.5
    keypoints[~is_labelled] = 0
    mask = grid_mask(person.segmentation, person.box_xywh) if with_mask else None
    return PersonLabels(
        box_xyxy=box,
        keypoints=keypoints,
        densepose=person.densepose,
        outline=_outline(person, box),
        person_mask=mask,
        class_index=person.class_index,
    )


def _outline(person: PersonRecord, box: np.ndarray) -> np.ndarray:
    if isinstance(person.segmentation, list) and person.segmentation:
        return np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in person.segmentation])
    return _corners(box)


def _corners(box_xyxy: np.ndarray) -> np.ndarray:
    return box_xyxy[[[0, 1], [2, 1], [2, 3], [0, 3]]]


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resizes [H, W, 3] uint8 with Pillow's bilinear filter, which is wider when shrinking."""
    height, width = (int(side) for side in size_hw)
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize(labelled: LabelledImage, size_hw: tuple[int, int]) -> LabelledImage:
    """Resizes image and labels to `size_hw` (height, width)."""
    height, width = labelled.size_hw
    scale = np.array([size_hw[1] / width, size_hw[0] / height])
    people = tuple(_scale_person(person, scale) for person in labelled.people)
    ignored = labelled.ignored_boxes * np.tile(scale, 2)
    return LabelledImage(resize_image(labelled.image, size_hw), people, ignored)


def _scale_person(person: PersonLabels, scale: np.ndarray) -> PersonLabels:
    keypoints = person.keypoints.copy()
    keypoints[:, :2] *= scale.astype(np.float32)
    return dataclasses.replace(
        person,
        box_xyxy=person.box_xyxy * np.tile(scale, 2),
        keypoints=keypoints,
        outline=person.outline * scale,
    )


def flip(
    labelled: LabelledImage,
    symmetry: UVSymmetry | None,
    mirrors: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> LabelledImage:
    """Mirrors image and labels left to right, and swaps left and right in every label.

    Args:
        labelled: image and people.
        symmetry: U and V of mirrored points; with None they are left out, which is allowed where
            nobody has DensePose, or with `mirrors`.
        mirrors: [V] mirrored vertices by mesh; points on others lose their vertices.

    Returns:
        The mirrored image and people.

    Raises:
        ValueError: somebody has DensePose and there is neither.
    """
    width = labelled.size_hw[1]
    people = tuple(_flip_person(person, width, symmetry, mirrors) for person in labelled.people)
    x0, y0, x1, y1 = labelled.ignored_boxes.T
    ignored = np.stack([width - x1, y0, width - x0, y1], axis=-1)
    return LabelledImage(cv2.flip(labelled.image, 1), people, ignored)


def _flip_person(
    person: PersonLabels,
    width: int,
    symmetry: UVSymmetry | None,
    mirrors: Mapping[str, np.ndarray],
) -> PersonLabels:
    x0, y0, x1, y1 = person.box_xyxy
    keypoints = person.keypoints[parts.KEYPOINT_FLIP]
    is_labelled = keypoints[:, 2] > 0
    keypoints[is_labelled, 0] = width - keypoints[is_labelled, 0]
    densepose = person.densepose
    if densepose is not None:
        mirror = mirrors.get(densepose.mesh)
        if symmetry is None and not mirrors:
            raise ValueError("mirroring DensePose needs the body's UV symmetry tables, got None")
        densepose = flip_densepose(densepose, symmetry, mirror)
    outline = person.outline * [-1, 1] + [width, 0]
    mask = None if person.person_mask is None else person.person_mask[:, ::-1]
    box = np.array([width - x1, y0, width - x0, y1])
    return dataclasses.replace(
        person,
        box_xyxy=box,
        keypoints=keypoints,
        densepose=densepose,
        outline=outline,
        person_mask=mask,
    )


def flip_densepose(
    densepose: DensePoseRecord, symmetry: UVSymmetry | None, mirror: np.ndarray | None = None
) -> DensePoseRecord:
    """Mirrors a DensePose annotation on the grid of its box.

    Args:
        densepose: the annotation.
        symmetry: U and V of mirrored points; None makes all points' patch, U and V 0.
        mirror: [V] mirrored vertices of its mesh; None leaves the vertices out.
    """
    i, u, v = np.zeros((3, len(densepose.x)), np.float32)
    if symmetry is not None:
        patch = densepose.i.astype(np.int64)
        mirrored = mirror_by_tables(symmetry, patch, densepose.u, densepose.v)
        i, u, v = (np.asarray(values, np.float32) for values in mirrored)
    mask = _MIRRORED_LABELS[densepose.part_mask[:, ::-1]]
    x = np.float32(PART_GRID) - densepose.x
    vertex = None
    if mirror is not None and densepose.vertex is not None:
        vertex = mirror[densepose.vertex]
    return dataclasses.replace(densepose, x=x, i=i, u=u, v=v, part_mask=mask, vertex=vertex)


def rotation_and_zoom(size_hw: tuple[int, int], degrees: float, zoom: float) -> np.ndarray:
    """Builds the affine map that turns and zooms about the middle of an image.

    Args:
        size_hw: height and width of the image.
        degrees: angle, counter-clockwise as seen on the screen.
        zoom: factor on lengths, > 0.

    Returns:
        [2, 3] float64: (x, y) of the output = matrix @ (x, y, 1) of the input.
    """
    centre = np.array([size_hw[1], size_hw[0]]) / 2
    cosine, sine = zoom * np.cos(np.radians(degrees)), zoom * np.sin(np.radians(degrees))
    linear = np.array([[cosine, sine], [-sine, cosine]])  # y points down
    return np.column_stack([linear, centre - linear @ centre])


def warp(labelled: LabelledImage, matrix: np.ndarray) -> LabelledImage:
    """Moves image and labels by an affine map; the image keeps its size.

    What comes from outside the image is black. A person's new box is the smallest around the moved
    outline (polygons; without them the box's corners, which makes it larger than needed), cut at
    the image. The part mask is resampled into it, and points and keypoints that left are dropped,
    as are people of whom nothing is left.

    Args:
        labelled: image and people.
        matrix: [2, 3] from input to output, continuous pixels.

    Returns:
        The moved image and people.
    """
    height, width = labelled.size_hw
    # OpenCV counts pixels: its coordinates are ours less one half, on both sides.
    pixels = matrix.copy()
    pixels[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    image = cv2.warpAffine(labelled.image, pixels, (width, height), flags=cv2.INTER_LINEAR)
    moved = (_warp_person(person, matrix, (height, width)) for person in labelled.people)
    people = tuple(person for person in moved if person is not None)
    limits = np.array([width, height], np.float64)
    ignored = [_box_of(_move(matrix, _corners(box), limits)) for box in labelled.ignored_boxes]
    return LabelledImage(image, people, np.array(ignored).reshape(-1, 4))


def adjust_colours(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """Changes the light of a picture: brightness, then contrast, then saturation.

    Args:
        image: [H, W, 3] uint8 RGB.
        factors: 1 changes nothing. Values are multiplied by the first; then their distance from
            the picture's mean grey by the second, and that from their own grey by the third.

    Returns:
        [H, W, 3] uint8, rounded, clipped to 0..255.
    """
    brightness, contrast, saturation = factors
    values = image.astype(np.float32) * brightness
    mean = (values @ _GREY).mean()
    values = mean + (values - mean) * contrast
    grey = (values @ _GREY)[..., None]
    values = grey + (values - grey) * saturation
    recoloured: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return recoloured


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved: np.ndarray = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _warp_person(
    person: PersonLabels, matrix: np.ndarray, size_hw: tuple[int, int]
) -> PersonLabels | None:
    limits = np.array([size_hw[1], size_hw[0]], np.float64)
    outline = _move(matrix, person.outline, limits)
    box = _box_of(outline)
    if (box[2:] - box[:2] < _MIN_BOX_SIDE).any():
        return None
    keypoints = person.keypoints.copy()
    keypoints[:, :2] = _apply(matrix, person.keypoints[:, :2].astype(np.float64))
    is_inside = ((keypoints[:, :2] >= 0) & (keypoints[:, :2] <= limits)).all(axis=-1)
    keypoints[~is_inside | (keypoints[:, 2] == 0)] = 0
    densepose, mask = person.densepose, person.person_mask
    if densepose is not None or mask is not None:
        cells = _source_cells(person.box_xyxy, box, matrix)
        densepose = densepose and _warp_densepose(densepose, person.box_xyxy, box, matrix, cells)
        mask = None if mask is None else _take_cells(mask, cells)
    return dataclasses.replace(
        person,
        box_xyxy=box,
        keypoints=keypoints,
        densepose=densepose,
        outline=outline,
        person_mask=mask,
    )


def _move(matrix: np.ndarray, outline: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Where an outline [K, 2] comes to lie, cut at the image."""
    moved: np.ndarray = np.clip(_apply(matrix, outline), 0, limits)
    return moved


def _box_of(outline: np.ndarray) -> np.ndarray:
    """[4] xyxy of the smallest box around an outline [K, 2]."""
    return np.concatenate([outline.min(axis=0), outline.max(axis=0)])


def _source_cells(old_box: np.ndarray, new_box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[256, 256, 2] int64 column and row of the old grid's cell under each new cell's middle."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    middles = np.arange(PART_GRID) + 0.5
    centres = np.stack(np.meshgrid(middles, middles), axis=-1)
    centres = centres * (new_box[2:] - new_box[:2]) / PART_GRID + new_box[:2]
    old_cell = (old_box[2:] - old_box[:2]) / PART_GRID
    cells: np.ndarray = (_apply(inverse, centres) - old_box[:2]) / old_cell
    floored: np.ndarray = np.floor(cells)
    return floored.astype(np.int64)


def _take_cells(mask: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """[256, 256] labels at `cells`, 0 where these are outside the grid."""
    is_inside = ((cells >= 0) & (cells < PART_GRID)).all(axis=-1)
    column, row = np.clip(cells, 0, PART_GRID - 1).transpose(2, 0, 1)
    return np.where(is_inside, mask[row, column], 0).astype(np.uint8)


def _warp_densepose(
    densepose: DensePoseRecord,
    old_box: np.ndarray,
    new_box: np.ndarray,
    matrix: np.ndarray,
    cells: np.ndarray,
) -> DensePoseRecord | None:
    old_cell = (old_box[2:] - old_box[:2]) / PART_GRID
    new_cell = (new_box[2:] - new_box[:2]) / PART_GRID
    grid = np.stack([densepose.x, densepose.y], axis=-1).astype(np.float64)
    points = (_apply(matrix, grid * old_cell + old_box[:2]) - new_box[:2]) / new_cell
    stays = ((points >= 0) & (points <= PART_GRID)).all(axis=-1)
    mask = _take_cells(densepose.part_mask, cells)
    if not mask.any() and not stays.any():
        return None
    x, y = points[stays].astype(np.float32).T
    return dataclasses.replace(densepose.take(stays), x=x, y=y, part_mask=mask)
