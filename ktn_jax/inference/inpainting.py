"""The teacher at work: labels of every pixel of annotated people, from several views of each.

A view is the crop of a person at one size, plain or mirrored. The probabilities of the patches and
U and V are averaged over the views, read at the cells of one grid over the person's box. A cell is
labelled only inside the annotated part masks, and only with a patch of its part, or any patch where
the mask is one of the whole body.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, PersonRecord
from ktn_jax.data_pipelines.loading.person_crops import CropShape, cut_window
from ktn_jax.inference.mirroring import mirror_boxes, mirror_outputs
from ktn_jax.inference.stages import choose_compute
from ktn_jax.inference.symmetries import Symmetry
from ktn_jax.modeling.teacher import Teacher, build_teacher
from ktn_jax.structures import DensePoseOutputs

Array = jax.Array
Charts = DensePoseOutputs[np.ndarray]

# Views whose U and V are this far apart, in the root of the mean square, are sure of nothing.
_LARGEST_SPREAD = 0.2
_LAST_GRID_POSITION = 255.0  # the original's annotators' points do not reach the last grid line
# [16, 25]: patches that a cell of each coarse part may have, and one whose part is unknown.
_PATCHES_OF_PART = (parts.FINE_TO_COARSE == np.arange(parts.UNKNOWN_PART + 1)[:, None]) & (
    np.arange(parts.NUM_PATCH_CHANNELS) > 0
)
_PATCHES_OF_PART[parts.UNKNOWN_PART, 1:] = True


@dataclasses.dataclass(frozen=True)
class DenseLabels:
    """Labels of a person, on a grid that is stretched over the person's box."""

    patch: np.ndarray  # [h, w] uint8 0..24, 0 outside the part masks
    uv: np.ndarray  # [2, h, w] float32 in 0..1, 0 there
    confidence: np.ndarray  # [h, w] float32 in 0..1, 0 there


@dataclasses.dataclass(frozen=True)
class AnnotatedPerson:
    """Somebody to label: the image, and a person of it who has part masks."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    box_xywh: np.ndarray  # [4] in its pixels
    part_mask: np.ndarray  # [256, 256] uint8 coarse part 0..14 over the box, 15 unknown


class Inpainter:
    """A teacher with weights, whose programs are compiled once for each size of views."""

    def __init__(
        self,
        config: ConfigDict,
        variables: Mapping[str, Any],
        symmetry: Symmetry | None = None,
    ):
        """Puts the weights on the device.

        Args:
            config: a whole configuration, of a teacher.
            variables: of its model.
            symmetry: U and V of mirrored points; needed with `test.augmentation.flip`.

        Raises:
            ValueError: the configuration describes no teacher or no crops, or mirrored views
                without the tables.
        """
        if config.model.kind != "teacher" or not config.data.person_crops.size_hw:
            raise ValueError(
                f"{config.name} is no teacher: take one of configs/teacher.py (model.kind, "
                "data.person_crops.size_hw)"
            )
        self._is_mirrored = config.test.augmentation.flip
        charts = symmetry if isinstance(symmetry, UVSymmetry) else None
        if self._is_mirrored and charts is None:
            raise ValueError("mirrored views need the body's UV symmetry tables, got None")
        self._symmetry = charts
        crops = config.data.person_crops
        sizes = config.test.crop_sizes_hw or (crops.size_hw,)
        self._shapes = [CropShape(tuple(size_hw), crops.margin) for size_hw in sizes]
        self.batch_size: int = config.test.batch_size  # people at a time
        self.needs_parts: bool = config.model.sees_parts  # a mask of the whole body is not enough
        compute = choose_compute(config, jax.default_backend())
        model = build_teacher(config.model, compute=compute)

        def predict(variables: Any, crops: Array, part_mask: Array, boxes: Array) -> Any:
            return model.apply(variables, crops, part_mask, boxes, method=Teacher.charts)

        self._predict = jax.jit(predict)
        collections = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
        self._variables = jax.device_put(jax.tree.map(np.asarray, collections))

    def __call__(self, people: Sequence[AnnotatedPerson]) -> list[DenseLabels]:
        """Labels people: any number, `batch_size` at a time."""
        labels: list[DenseLabels] = []
        for start in range(0, len(people), self.batch_size):
            batch = people[start : start + self.batch_size]
            views = [view for shape in self._shapes for view in self._views(batch, shape)]
            for person, *seen in zip(batch, *views, strict=True):
                labels.append(merge_views(person.part_mask, seen))
        return labels

    def _views(self, people: Sequence[AnnotatedPerson], shape: CropShape) -> list[list[Charts]]:
        """The charts of each person on the grid over the box, in the plain and mirrored view."""
        windows = [shape.window(person.box_xywh) for person in people]
        crops = [
            cut_window(person.image, window, shape.size_hw)
            for person, window in zip(people, windows, strict=True)
        ]
        masks = np.stack([person.part_mask for person in people])
        boxes = np.stack(
            [
                box_in_window(person.box_xywh, window, shape.size_hw)
                for person, window in zip(people, windows, strict=True)
            ]
        )
        sizes = [grid_size_hw(person.box_xywh) for person in people]
        images = np.stack(crops)
        views = [self._charts(images, masks, boxes, sizes)]
        if self._is_mirrored and self._symmetry is not None:
            flipped = self._charts(
                images[:, :, ::-1],
                parts.COARSE_FLIP.astype(np.uint8)[masks[:, :, ::-1]],
                mirror_boxes(boxes, shape.size_hw[1]),
                sizes,
            )
            # In the mirrored box the cells run the other way, and are turned back with the rest.
            views.append([mirror_outputs(charts, self._symmetry) for charts in flipped])
        return views

    def _charts(
        self,
        crops: np.ndarray,
        masks: np.ndarray,
        boxes: np.ndarray,
        sizes_hw: Sequence[tuple[int, int]],
    ) -> list[Charts]:
        """Runs the network, and reads each person's charts at the cells of a grid over the box."""
        missing = self.batch_size - len(crops)
        rows = [np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in (crops, masks, boxes)]
        outputs = jax.device_get(self._predict(self._variables, *rows))
        size_hw = (crops.shape[1], crops.shape[2])
        return [
            DensePoseOutputs(
                *(
                    read_grid(maps[row], box, size_hw, cells)[None]
                    for maps in (outputs.coarse_segm, outputs.fine_segm, outputs.u, outputs.v)
                )
            )
            for row, (box, cells) in enumerate(zip(boxes, sizes_hw, strict=True))
        ]


def box_in_window(box_xywh: np.ndarray, window: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The person's box in pixels of the crop, xyxy float32."""
    scale = np.tile(np.array(size_hw[::-1]) / (window[2:] - window[:2]), 2)
    box = np.concatenate([box_xywh[:2], box_xywh[:2] + box_xywh[2:]])
    moved: np.ndarray = (box - np.tile(window[:2], 2)) * scale
    return moved.astype(np.float32)


def grid_size_hw(box_xywh: np.ndarray) -> tuple[int, int]:
    """Rows and columns of a person's labels: a cell a pixel, but no more than the part masks'."""
    width, height = np.clip(np.rint(box_xywh[2:]).astype(int), 1, PART_GRID).tolist()
    return height, width


def read_grid(
    maps: np.ndarray, box_xyxy: np.ndarray, crop_hw: tuple[int, int], cells_hw: tuple[int, int]
) -> np.ndarray:
    """Reads maps over a crop at the middles of the cells of a grid over a box in it, bilinearly.

    Args:
        maps: [H, W, C]; cell (i, j) is at (j / W, i / H) of the crop, see `Teacher.charts`.
        box_xyxy: [4] in pixels of the crop.
        crop_hw: size of the crop.
        cells_hw: rows and columns of the grid.

    Returns:
        [*cells_hw, C] float32.
    """
    rows, columns = (
        _read_weights(maps.shape[axis], cells_hw[axis], box_xyxy[1 - axis :: 2] / crop_hw[axis])
        for axis in (0, 1)
    )
    by_row = np.tensordot(rows, maps, axes=(1, 0))
    read: np.ndarray = np.einsum("qw,hwc->hqc", columns, by_row, optimize=True)
    return read.astype(np.float32)


def _read_weights(size: int, cells: int, span: np.ndarray) -> np.ndarray:
    """[cells, size] weights of reading `size` cells between two fractions of their axis."""
    fraction = span[0] + (np.arange(cells) + 0.5) / cells * (span[1] - span[0])
    position = np.clip(fraction * size, 0, size - 1)
    # The tent of each cell: 1 on it, 0 on its neighbours.
    weights: np.ndarray = np.maximum(1 - np.abs(position[:, None] - np.arange(size)), 0)
    return weights.astype(np.float32)


def merge_views(part_mask: np.ndarray, views: Sequence[Charts]) -> DenseLabels:
    """Averages what the views of a person say, and labels the cells inside the part masks.

    Args:
        part_mask: [256, 256] uint8 coarse part 0..14 over the person's box, 15 unknown.
        views: charts of one person each, [1, h, w, 25], turned back where they were mirrored.

    Returns:
        The patch of the highest mean probability among those of a cell's part, the means of its U
        and V, clipped, and as confidence its mean probability among all patches, less the more the
        views' U and V are apart: times 1 - spread / 0.2, spread being the root of their mean
        squared distance from their mean.
    """
    logits = np.concatenate([view.fine_segm for view in views])
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    probability = (logits / logits.sum(-1, keepdims=True)).mean(0)
    part = _parts_on_grid(part_mask, (probability.shape[0], probability.shape[1]))
    is_allowed = _PATCHES_OF_PART[part]
    patch = np.where(is_allowed, probability, -1.0).argmax(-1)
    is_labelled = part > 0
    patch = np.where(is_labelled, patch, 0).astype(np.uint8)
    index = patch[None, :, :, None].astype(np.int64)
    every = np.stack(
        [
            np.take_along_axis(np.concatenate([getattr(view, name) for view in views]), index, -1)
            for name in ("u", "v")
        ]
    )[..., 0]  # [2, views, h, w]
    mean = every.mean(1)
    spread = np.sqrt(((every - mean[:, None]) ** 2).sum(0).mean(0))
    sure = np.take_along_axis(probability, index[0], -1)[..., 0]
    confidence = sure * np.maximum(1 - spread / _LARGEST_SPREAD, 0)
    return DenseLabels(
        patch=patch,
        uv=np.where(is_labelled, np.clip(mean, 0, 1), 0).astype(np.float32),
        confidence=np.where(is_labelled, confidence, 0).astype(np.float32),
    )


def _parts_on_grid(part_mask: np.ndarray, cells_hw: tuple[int, int]) -> np.ndarray:
    """The part at the middle of every cell of a grid over the same box."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * PART_GRID / cells).astype(int) for cells in cells_hw
    )
    found: np.ndarray = part_mask[np.ix_(rows, columns)]
    return found


def add_points(person: PersonRecord, labels: DenseLabels, count: int) -> DensePoseRecord:
    """Fills a person up with labelled points, spread evenly over what has none.

    Each is the cell that is farthest, in the image, from all points so far; cells on the border of
    the part masks come last.

    Args:
        person: with DensePose; points that a model set before are left out.
        labels: of the person.
        count: points in the end; the annotator's all stay, also where they are more.

    Returns:
        The annotator's points, then the new ones with their confidence.

    Raises:
        ValueError: a person without DensePose.
    """
    if person.densepose is None:
        raise ValueError(f"annotation {person.annotation_id} has no DensePose")
    kept = person.densepose.take(person.densepose.is_annotated)
    height, width = labels.patch.shape
    cell = np.array([PART_GRID / width, PART_GRID / height])
    rows, columns = np.nonzero(_inside(labels.patch))
    x, y = (columns + 0.5) * cell[0], (rows + 0.5) * cell[1]
    is_in_reach = (x <= _LAST_GRID_POSITION) & (y <= _LAST_GRID_POSITION)
    x, y, rows, columns = (values[is_in_reach] for values in (x, y, rows, columns))
    unit = person.box_xywh[2:] / PART_GRID  # pixels of the image to a step of the grid
    chosen = farthest_points(
        np.stack([x, y], -1) * unit,
        np.stack([kept.x, kept.y], -1) * unit,
        max(count - len(kept.x), 0),
    )
    rows, columns = rows[chosen], columns[chosen]
    new = {
        "x": x[chosen],
        "y": y[chosen],
        "i": labels.patch[rows, columns],
        "u": labels.uv[0, rows, columns],
        "v": labels.uv[1, rows, columns],
        "confidence": labels.confidence[rows, columns],
    }
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(kept, name), values]).astype(np.float32)
        for name, values in new.items()
    }
    is_annotated = np.arange(len(joined["x"])) < len(kept.x)
    return dataclasses.replace(kept, **joined, is_annotated=is_annotated, vertex=None, mesh="")


def _inside(patch: np.ndarray) -> np.ndarray:
    """Labelled cells whose eight neighbours are labelled too; all of them where there are few."""
    is_labelled = patch > 0
    padded = np.pad(is_labelled, 1)
    height, width = patch.shape
    inside = is_labelled.copy()
    for row in range(3):
        for column in range(3):
            inside &= padded[row : row + height, column : column + width]
    return inside if inside.sum() > is_labelled.sum() / 2 else is_labelled


def farthest_points(xy: np.ndarray, present: np.ndarray, count: int) -> np.ndarray:
    """Chooses points one after the other, each the farthest from all before it.

    Args:
        xy: [N, 2] candidates.
        present: [M, 2] points that are there already; without any the first candidate begins.
        count: how many to choose.

    Returns:
        [min(count, N)] different indices, in the order of their choice.
    """
    distance = np.full(len(xy), np.inf)
    for point in present:
        distance = np.minimum(distance, ((xy - point) ** 2).sum(-1))
    chosen: list[int] = []
    for _ in range(min(count, len(xy))):
        best = int(distance.argmax())
        chosen.append(best)
        distance = np.minimum(distance, ((xy - xy[best]) ** 2).sum(-1))
        distance[best] = -1.0
    return np.array(chosen, np.int64)
