"""Pictures of annotations, drawn over their images.

Colours are those of `results.palette`, so that annotations and detections are easy to compare.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, ImageRecord
from ktn_jax.data_pipelines.loading.sources import Source
from ktn_jax.results.drawing import side_by_side
from ktn_jax.results.palette import PATCH_COLOURS, mix_colours, person_colour
from ktn_jax.results.styles import colours_of
from ktn_jax.runtime import progress
from ktn_jax.runtime.images import ImageError

PANELS = ("boxes", "keypoints", "parts", "patches", "u", "v")

_CROWD_COLOUR = (255, 60, 60)
_OCCLUDED_COLOUR = (255, 255, 255)
_MASK_OPACITY = 0.55
# A coarse part is drawn in the colour of the first of its patches that is seen from the front.
_PART_COLOURS = np.full((parts.UNKNOWN_PART + 1, 3), 255, np.uint8)  # white: not known
_PART_COLOURS[parts.FINE_TO_COARSE] = PATCH_COLOURS


def draw_boxes(image: np.ndarray, record: ImageRecord) -> np.ndarray:
    """Draws boxes and outlines; crowd regions red.

    Args:
        image: [H, W, 3] uint8 RGB.
        record: its annotations.

    Returns:
        [H, W, 3] uint8 RGB, a new array.
    """
    canvas = image.copy()
    stroke = _stroke(image)
    for number, person in enumerate(record.people):
        # The first colour is red too.
        colour = _CROWD_COLOUR if person.is_crowd else person_colour(number + 2)
        x, y, width, height = person.box_xywh
        corners = (_pixel(x, y), _pixel(x + width - 1, y + height - 1))
        cv2.rectangle(canvas, *corners, colour, stroke)
        if isinstance(person.segmentation, list):
            outlines = [
                np.asarray(ring).reshape(-1, 2).astype(np.int32) for ring in person.segmentation
            ]
            cv2.polylines(canvas, outlines, True, colour, 1, cv2.LINE_AA)
    return canvas


def draw_keypoints(image: np.ndarray, record: ImageRecord) -> np.ndarray:
    """Draws skeletons: visible keypoints filled, occluded ones as rings."""
    canvas = image.copy()
    stroke = _stroke(image)
    for person in record.people:
        at = [_pixel(x, y) for x, y in person.keypoints[:, :2]]
        is_labelled = person.keypoints[:, 2] > 0
        for first, second in parts.KEYPOINT_SKELETON:
            if is_labelled[first] and is_labelled[second]:
                cv2.line(canvas, at[first], at[second], _side(first, second), stroke, cv2.LINE_AA)
        for index in np.flatnonzero(is_labelled).tolist():
            is_visible = person.keypoints[index, 2] == 2
            width = cv2.FILLED if is_visible else stroke
            cv2.circle(canvas, at[index], 2 * stroke, _side(index, index), width, cv2.LINE_AA)
    return canvas


def draw_part_masks(image: np.ndarray, record: ImageRecord) -> np.ndarray:
    """Draws the coarse parts in the colour of one of their patches; unknown ones white."""
    canvas = image.copy()
    for box_xywh, dense in _dense(record):
        rows, columns, labels = _mask_in_image(box_xywh, dense.part_mask, image.shape[:2])
        window = canvas[rows, columns]
        mix_colours(window, labels > 0, labels, _PART_COLOURS, _MASK_OPACITY)
    return canvas


def draw_points(image: np.ndarray, record: ImageRecord, colour_by: str = "patches") -> np.ndarray:
    """Draws the annotated points over a darkened image.

    Args:
        image: [H, W, 3] uint8 RGB.
        record: its annotations. Points that a model set are smaller.
        colour_by: "patches", or "u" or "v" from dark blue for 0 to yellow for 1. Points of the
            background are rings.

    Returns:
        [H, W, 3] uint8 RGB, a new array.

    Raises:
        ValueError: another `colour_by`.
    """
    if colour_by not in ("patches", "u", "v"):
        raise ValueError(f"colour_by must be 'patches', 'u' or 'v', got {colour_by!r}")
    canvas = (image * 0.6).astype(np.uint8)
    stroke = _stroke(image)
    for box_xywh, dense in _dense(record):
        patch = dense.i.astype(int)
        colours = PATCH_COLOURS[patch]
        if colour_by != "patches":
            level = np.rint(255 * getattr(dense, colour_by)).astype(np.uint8)
            colours = colours_of("viridis")[level]
        x0, y0, width, height = box_xywh
        at_x, at_y = x0 + dense.x * width / PART_GRID, y0 + dense.y * height / PART_GRID
        radius = np.where(dense.is_annotated, stroke + 1, stroke).tolist()
        points = zip(at_x, at_y, colours.tolist(), patch > 0, radius, strict=True)
        for x, y, colour, is_body, size in points:
            if is_body:
                cv2.circle(canvas, _pixel(x, y), size, colour, cv2.FILLED, cv2.LINE_AA)
            else:
                cv2.circle(canvas, _pixel(x, y), size, _OCCLUDED_COLOUR, 1, cv2.LINE_AA)
    return canvas


def draw_annotations(
    image: np.ndarray, record: ImageRecord, panels: Sequence[str] = PANELS
) -> np.ndarray:
    """Draws all that is annotated, side by side in rows of three.

    Args:
        image: [H, W, 3] uint8 RGB of the size in `record`.
        record: its annotations.
        panels: which of `PANELS`, in order.

    Returns:
        [h, w, 3] uint8 RGB.

    Raises:
        ValueError: no panel, or one that is not in `PANELS`.
    """
    unknown = [panel for panel in panels if panel not in PANELS]
    if unknown or not panels:
        raise ValueError(f"panels must be some of {PANELS}, got {tuple(panels)}")
    drawn = []
    for panel in panels:
        if panel == "boxes":
            drawn.append(draw_boxes(image, record))
        elif panel == "keypoints":
            drawn.append(draw_keypoints(image, record))
        elif panel == "parts":
            drawn.append(draw_part_masks(image, record))
        else:
            drawn.append(draw_points(image, record, panel))
    rows = [
        side_by_side(drawn[start : start + 3], panels[start : start + 3])
        for start in range(0, len(drawn), 3)
    ]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)


def write_pictures(
    source: Source,
    output_dir: str | os.PathLike[str],
    indices: Iterable[int] | None = None,
    panels: Sequence[str] = PANELS,
) -> list[pathlib.Path]:
    """Writes a picture of the annotations of each image; names those that cannot be read.

    Args:
        source: images with annotations.
        output_dir: folder for the PNG files; made where it is not there.
        indices: numbers of the images; None takes all.
        panels: which of `PANELS`, in order.

    Returns:
        The files, named by image id.

    Raises:
        IndexError: the source has no such image.
        ValueError: no panel, or an unknown one.
    """
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index in range(len(source)) if indices is None else indices:
        if not 0 <= index < len(source):
            raise IndexError(f"image {index} of {len(source)}")
        try:
            image, record = source[index]
        except ImageError as error:
            progress.warn(str(error))
            continue
        path = folder / f"{record.image_id:012d}.png"
        Image.fromarray(draw_annotations(image, record, panels)).save(path)
        written.append(path)
    return written


def _dense(record: ImageRecord) -> list[tuple[np.ndarray, DensePoseRecord]]:
    """Boxes xywh of the people who have DensePose, and what they have."""
    return [
        (person.box_xywh, person.densepose)
        for person in record.people
        if person.densepose is not None
    ]


def _mask_in_image(
    box_xywh: np.ndarray, part_mask: np.ndarray, size_hw: tuple[int, int]
) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of the image under a person's grid, and the label at each pixel's middle."""
    x0, y0, width, height = box_xywh
    rows = slice(max(int(y0), 0), min(int(np.ceil(y0 + height)), size_hw[0]))
    columns = slice(max(int(x0), 0), min(int(np.ceil(x0 + width)), size_hw[1]))
    cell_y = _cells(np.arange(rows.start, rows.stop), y0, height)
    cell_x = _cells(np.arange(columns.start, columns.stop), x0, width)
    return rows, columns, part_mask[np.ix_(cell_y, cell_x)]


def _cells(pixels: np.ndarray, start: float, length: float) -> np.ndarray:
    cells: np.ndarray = np.floor((pixels + 0.5 - start) * PART_GRID / length).astype(int)
    return cells.clip(0, PART_GRID - 1)


def _pixel(x: float, y: float) -> tuple[int, int]:
    return int(np.floor(x)), int(np.floor(y))


def _side(first: int, second: int) -> tuple[int, int, int]:
    """Blue for the person's left, orange for the right, yellow in the middle."""
    sides = {parts.KEYPOINT_NAMES[index].split("_")[0] for index in (first, second)}
    colours = {"left": (60, 160, 255), "right": (255, 110, 40)}
    return colours.get(sides.pop(), (250, 230, 80)) if len(sides) == 1 else (250, 230, 80)


def _stroke(image: np.ndarray) -> int:
    return max(1, round(int(min(image.shape[:2])) / 250))
