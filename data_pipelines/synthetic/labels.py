"""Annotates pictures with exact truth as DensePose-COCO does: JSON-ready records."""

import math
from typing import Any

import cv2
import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.mesh_names import BODY
from ktn_jax.body.parts import PART_GRID
from ktn_jax.body.procedural import assembly
from ktn_jax.data_pipelines.coco.part_masks import encode_part_masks, resample_part_labels
from ktn_jax.data_pipelines.synthetic.render import DenseTruth
from ktn_jax.data_pipelines.synthetic.scene import Scene
from ktn_jax.data_pipelines.synthetic.scene_picture import Picture
from ktn_jax.results.categories import PERSON_CATEGORY

_MAX_GRID_POSITION = 255.0  # the original tool's points do not reach the last grid line
_PIXELS_PER_POINT = 4  # on a part of few pixels, points this dense tell nothing more
# Parts of at least 52 x 52 on the grid get the most points and a hand of 22 x 22 gets six, about
# what the annotations of DensePose-COCO have.
_FULL_PART_SIDE = 52.0
_CANDIDATES = 160  # pixels of a part among which its points are chosen
_MAX_PEOPLE = 1000  # ids of an image's annotations
_COARSE_OF_PATCH = parts.FINE_TO_COARSE.astype(np.uint8)
_POLYGON_TOLERANCE = 0.6  # pixels that an outline may leave the mask's by, as drawn by hand


def _box_xywh(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box of a mask [H, W] with at least one pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def mask_to_polygons(mask: np.ndarray, tolerance: float = _POLYGON_TOLERANCE) -> list[list[float]]:
    """Outlines a mask along the edges of its pixels.

    Args:
        mask: [H, W] bool.
        tolerance: Pixels that the outline may be simplified by; 0 keeps it exact.

    Returns:
        One [x0, y0, x1, y1, ...] per connected region, continuous pixels. Holes are filled, as
        COCO's polygons do.
    """
    # The tracer runs through pixel centres. In an image of twice the size, the pixels along an
    # edge are on either side of it, so that halving brings both onto the edge itself.
    doubled = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for outline in outlines:
        corners = ((outline + 1) // 2).astype(np.int32)
        simple = cv2.approxPolyDP(corners, tolerance, True)
        if len(simple) < 3:  # a sliver that vanished
            simple = cv2.approxPolyDP(corners, 0, True)
        polygons.append(simple.reshape(-1).astype(float).tolist())
    return polygons


def _mask_to_runs(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask [H, W] as COCO does crowds: column-major run lengths, background first."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat)]]))
    counts = runs.tolist() if not flat[0] else [0, *runs.tolist()]
    return {"counts": counts, "size": list(mask.shape)}


def spread_points(xy: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses points that are spread roughly evenly over a region, as k-means centres are.

    Args:
        xy: [N, 2] the pixels of the region.
        count: How many to choose.
        rng: Random generator.

    Returns:
        [min(count, N)] or, rarely, fewer distinct indices into xy.
    """
    if len(xy) <= count:
        return np.arange(len(xy))
    candidates = np.sort(rng.permutation(len(xy))[: max(_CANDIDATES, count)])
    x, y = xy[candidates].T.astype(np.float64)
    # Farthest-point start, so that no centre begins in a neighbour's cell.
    chosen = [int(rng.integers(len(x)))]
    distance = np.full(len(x), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, (x - x[chosen[-1]]) ** 2 + (y - y[chosen[-1]]) ** 2)
        chosen.append(int(distance.argmax()))
    centre_x, centre_y = x[chosen], y[chosen]
    for _ in range(2):
        nearest = _squared_distances(x, y, centre_x, centre_y).argmin(axis=1)
        size = np.bincount(nearest, minlength=count)
        divisor = np.maximum(size, 1)
        mean_x = np.bincount(nearest, x, minlength=count) / divisor
        mean_y = np.bincount(nearest, y, minlength=count) / divisor
        centre_x = np.where(size > 0, mean_x, centre_x)
        centre_y = np.where(size > 0, mean_y, centre_y)
    return np.unique(candidates[_squared_distances(centre_x, centre_y, x, y).argmin(axis=1)])


def _squared_distances(
    x: np.ndarray, y: np.ndarray, to_x: np.ndarray, to_y: np.ndarray
) -> np.ndarray:
    """[N, M] squared distances of N points to M points."""
    squared: np.ndarray = (x[:, None] - to_x) ** 2 + (y[:, None] - to_y) ** 2
    return squared


def _count_points(num_pixels: int, box_area: int, points_per_part: int) -> int:
    """Decides how many points a part of so many pixels gets: from 1 to points_per_part."""
    side = math.sqrt(num_pixels / box_area) * PART_GRID
    count = round(points_per_part * min(side / _FULL_PART_SIDE, 1.0))
    return max(1, min(count, num_pixels // _PIXELS_PER_POINT))


def _annotate_surface(
    truth: DenseTruth,
    mask: np.ndarray,
    box_xywh: tuple[int, int, int, int],
    points_per_part: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Makes the dp_* entries, and ref_model, of a person whose seen pixels are mask [H, W]."""
    x, y, width, height = box_xywh
    box = np.s_[y : y + height, x : x + width]
    coarse = np.where(mask[box], _COARSE_OF_PATCH[truth.patch[box]], 0)
    rows, columns = np.nonzero(coarse)
    grid_x, grid_y = (columns + 0.5) * PART_GRID / width, (rows + 0.5) * PART_GRID / height
    part = coarse[rows, columns]
    is_in_reach = (grid_x <= _MAX_GRID_POSITION) & (grid_y <= _MAX_GRID_POSITION)
    chosen = []
    for label in range(1, parts.NUM_COARSE + 1):
        pixels = np.flatnonzero(is_in_reach & (part == label))
        if len(pixels):
            count = _count_points(len(pixels), width * height, points_per_part)
            xy = np.stack([columns[pixels], rows[pixels]], axis=-1)
            chosen.append(pixels[spread_points(xy, count, rng)])
    points = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    row, column = rows[points] + y, columns[points] + x

    def numbers(values: np.ndarray, digits: int) -> list[float]:
        rounded: list[float] = np.round(values.astype(np.float64), digits).tolist()
        return rounded

    template = assembly.make_body().template
    vertices = template.nearest_corner(truth.face[row, column], truth.barycentric[row, column])
    return {
        "dp_vertex": vertices.tolist(),
        "ref_model": BODY,
        "dp_I": numbers(truth.patch[row, column], 0),
        "dp_U": numbers(truth.u[row, column], 6),
        "dp_V": numbers(truth.v[row, column], 6),
        "dp_x": numbers(grid_x[points], 4),
        "dp_y": numbers(grid_y[points], 4),
        "dp_masks": encode_part_masks(resample_part_labels(coarse)),
    }


def _keypoint_numbers(keypoints: np.ndarray) -> tuple[list[int], int]:
    """Converts keypoints [17, 3] to COCO's 51 numbers, and counts those that are labelled."""
    # COCO counts pixels: the first one is 0, wherever in it the keypoint is.
    numbers = np.floor(keypoints).astype(int)
    return numbers.reshape(-1).tolist(), int((numbers[:, 2] > 0).sum())


def _annotate_crowd(mask: np.ndarray) -> dict[str, Any]:
    """Makes the record of a crowd whose members' seen pixels are mask [H, W]."""
    radius = max(2, mask.shape[0] // 100)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    loose = cv2.dilate(mask.astype(np.uint8), disc) > 0  # crowds are outlined roughly
    return {
        "iscrowd": 1,
        "bbox": [float(number) for number in _box_xywh(loose)],
        "area": float(loose.sum()),
        "segmentation": _mask_to_runs(loose),
        "keypoints": [0] * (3 * parts.NUM_KEYPOINTS),
        "num_keypoints": 0,
    }


def annotate_picture(
    picture: Picture, scene: Scene, image_id: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Annotates the people of a picture in the DensePose-COCO format.

    Boxes are tight around what is seen of a person, on the edges of pixels.

    Args:
        picture: The picture.
        scene: How many people carry surface points, and how many points.
        image_id: The picture's id; the annotations' ids follow from it.
        rng: Random generator.

    Returns:
        JSON-ready records: one per person, the members of a crowd in one with `iscrowd` 1.
    """
    truth, records = picture.truth, []
    for index in np.flatnonzero(~picture.is_crowd):
        mask = truth.instance == index + 1
        box, area = _box_xywh(mask), int(mask.sum())
        keypoints, num_keypoints = _keypoint_numbers(truth.keypoints[index])
        record = {
            "iscrowd": 0,
            "bbox": [float(number) for number in box],
            "area": float(area),
            "segmentation": mask_to_polygons(mask),
            "keypoints": keypoints,
            "num_keypoints": num_keypoints,
        }
        carries_points = rng.random() < scene.densepose_fraction
        if carries_points and area >= scene.min_densepose_pixels:
            record |= _annotate_surface(truth, mask, box, scene.points_per_part, rng)
        records.append(record)
    crowd_ids = np.flatnonzero(picture.is_crowd) + 1
    if len(crowd_ids):
        records.append(_annotate_crowd(np.isin(truth.instance, crowd_ids)))
    for number, record in enumerate(records):
        record |= {
            "id": image_id * _MAX_PEOPLE + number + 1,
            "image_id": image_id,
            "category_id": PERSON_CATEGORY,
        }
    return records
