"""One image and its people as rows of a padded batch: what every loader calls for every image."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, ImageRecord
from ktn_jax.data_pipelines.loading import transforms
from ktn_jax.data_pipelines.loading.dense_points import draw_points
from ktn_jax.data_pipelines.loading.known_meshes import KnownMeshes
from ktn_jax.data_pipelines.loading.plan import PlannedBatch
from ktn_jax.data_pipelines.loading.sources import Source, SourceError
from ktn_jax.data_pipelines.loading.transforms import PersonLabels
from ktn_jax.data_pipelines.loading.unreadable import StandIns
from ktn_jax.runtime.images import ImageError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array of a batch."""

    shape: tuple[int, ...]
    dtype: np.dtype


def batch_spec(
    batch_size: int,
    canvas_hw: tuple[int, int],
    max_people: int,
    max_points: int,
    with_person_masks: bool = False,
    with_confidence: bool = False,
    with_vertices: bool = False,
) -> dict[str, ArraySpec]:
    """Describes a batch: B images of H x W, G people an image, P points a person.

    `image` uint8 [B, H, W, 3]: RGB, zeros below and right of the image.
    `image_id` int32 [B]: -1 in the rows that fill up the last evaluation batch.
    `original_size_hw`, `image_size_hw` int32 [B, 2]: size in the file, and inside the canvas.
    `is_valid` bool [B, G]: people; all of the following is zero where it is False.
    `boxes` float32 [B, G, 4]: xyxy in pixels of the canvas.
    `keypoints` float32 [B, G, 17, 3]: x, y in continuous pixels of the canvas, COCO's visibility.
    `has_densepose` bool [B, G].
    `point_is_valid` bool [B, G, P]; `point_x`, `point_y` float32 [B, G, P] in 0..256 on the grid
    over the person's box; `point_i` int32 patch 0..24; `point_u`, `point_v` float32 in 0..1.
    `part_mask` uint8 [B, G, 256, 256]: coarse part 0..14 on the same grid, 15 not known.
    With confidences also `point_is_annotated` bool [B, G, P], False for points that a model set,
    and their `point_confidence` float32 in 0..1; and `ignored_boxes` float32 [B, G, 4], xyxy as
    `boxes`: of people a model was not sure of, where no background is. The rest of them is zero.
    With person masks also `person_mask` uint8 [B, G, 256, 256], 0 or 1 on the same grid, and
    `has_person_mask` bool [B, G].
    With vertices, which train embedding models, also `classes` int32 [B, G] from 0 on, `mesh` int32
    [B, G], the number in `model.meshes.names` of the mesh that the person's points are on, and
    `point_vertex` int32 [B, G, P] on that mesh.

    Args:
        batch_size: B; of one process where there are several.
        canvas_hw: H and W.
        max_people: G.
        max_points: P.
        with_person_masks: whether segmentations are part of it.
        with_confidence: whether a model set some of the points.
        with_vertices: whether vertices are.

    Returns:
        Shape and dtype by name.
    """
    people, points = (batch_size, max_people), (batch_size, max_people, max_points)
    shapes = {
        "image": ((batch_size, *canvas_hw, 3), np.uint8),
        "image_id": ((batch_size,), np.int32),
        "original_size_hw": ((batch_size, 2), np.int32),
        "image_size_hw": ((batch_size, 2), np.int32),
        "boxes": ((*people, 4), np.float32),
        "is_valid": (people, np.bool_),
        "keypoints": ((*people, parts.NUM_KEYPOINTS, 3), np.float32),
        "has_densepose": (people, np.bool_),
        "point_x": (points, np.float32),
        "point_y": (points, np.float32),
        "point_i": (points, np.int32),
        "point_u": (points, np.float32),
        "point_v": (points, np.float32),
        "point_is_valid": (points, np.bool_),
        "part_mask": ((*people, PART_GRID, PART_GRID), np.uint8),
    }
    if with_confidence:
        shapes["point_is_annotated"] = (points, np.bool_)
        shapes["point_confidence"] = (points, np.float32)
        shapes["ignored_boxes"] = shapes["boxes"]
    if with_person_masks:
        shapes["person_mask"] = shapes["part_mask"]
        shapes["has_person_mask"] = (people, np.bool_)
    if with_vertices:
        shapes["classes"] = shapes["mesh"] = (people, np.int32)
        shapes["point_vertex"] = (points, np.int32)
    return {name: ArraySpec(shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of a batch to make: which image, and how it is augmented."""

    example: int  # number in the source
    resized_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    is_flipped: bool
    rotation_degrees: float
    zoom: float
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0)  # see `transforms.adjust_colours`
    point_seed: int = 0  # of points that are drawn from pictures of labels


def tasks_of(batch: PlannedBatch, rows: slice) -> list[Task]:
    """Lists the tasks of one process: its rows of the global batch."""
    return [
        Task(
            example=int(batch.examples[row]),
            resized_hw=(int(batch.resized_hw[row, 0]), int(batch.resized_hw[row, 1])),
            canvas_hw=batch.canvas_hw,
            is_flipped=bool(batch.is_flipped[row]),
            rotation_degrees=float(batch.rotation_degrees[row]),
            zoom=float(batch.zoom[row]),
            colours=(
                float(batch.colours[row, 0]),
                float(batch.colours[row, 1]),
                float(batch.colours[row, 2]),
            ),
            point_seed=int(batch.point_seeds[row]),
        )
        for row in range(*rows.indices(len(batch.examples)))
    ]


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes rows of a batch from a source; the same for every loader and every worker."""

    source: Source
    symmetry: UVSymmetry | None
    max_people: int
    max_points: int
    with_person_masks: bool = False
    with_confidence: bool = False  # of points that a model set
    dense_points: int = 0  # of a person to draw from the picture of labels; 0 for those in the file
    stand_ins: StandIns | None = None  # for images that cannot be read; None makes them errors
    meshes: KnownMeshes | None = None  # that an embedding model learns; None for charts

    def spec(self, rows: int, canvas_hw: tuple[int, int]) -> dict[str, ArraySpec]:
        """Shapes and dtypes of `rows` images."""
        return batch_spec(
            rows,
            canvas_hw,
            self.max_people,
            self.max_points,
            with_person_masks=self.with_person_masks,
            with_confidence=self.with_confidence,
            with_vertices=self.meshes is not None,
        )

    def allocate(self, rows: int, canvas_hw: tuple[int, int]) -> Batch:
        """Zeros for `rows` images."""
        spec = self.spec(rows, canvas_hw)
        return {name: np.zeros(array.shape, array.dtype) for name, array in spec.items()}

    def make(self, task: Task) -> tuple[Batch, dict[int, str]]:
        """One image as arrays without the batch axis, and what `write` returns."""
        batch = self.allocate(1, task.canvas_hw)
        example = {name: array[0] for name, array in batch.items()}
        # A view on a scalar, which `write` fills in place.
        example["image_id"] = batch["image_id"].reshape(())
        return example, self.write(task, example)

    def write(self, task: Task, row: Mapping[str, np.ndarray]) -> dict[int, str]:
        """Fills one image's zeroed arrays.

        Args:
            task: what to do.
            row: views without the batch axis; `image_id` of shape ().

        Returns:
            Why images could not be read, by their number, where another one took their place.

        Raises:
            ValueError: an annotator set more than `max_points` points on a person; or the image, or
                with stand-ins every image, cannot be read.
        """
        image, record, resized_hw, unreadable = self._read(task)
        if self.dense_points:
            record = draw_points(record, self.dense_points, task.point_seed)
        labelled = transforms.label_image(image, record, self.with_person_masks)
        labelled = transforms.resize(labelled, resized_hw)
        if task.is_flipped:
            mirrors = {} if self.meshes is None else self.meshes.mirrors
            labelled = transforms.flip(labelled, self.symmetry, mirrors)
        if task.rotation_degrees != 0 or task.zoom != 1:
            matrix = transforms.rotation_and_zoom(
                labelled.size_hw, task.rotation_degrees, task.zoom
            )
            labelled = transforms.warp(labelled, matrix)
        if self.with_confidence:
            ignored = _largest(labelled.ignored_boxes, self.max_people)
            row["ignored_boxes"][: len(ignored)] = ignored
        if task.colours != (1, 1, 1):
            recoloured = transforms.adjust_colours(labelled.image, task.colours)
            labelled = dataclasses.replace(labelled, image=recoloured)
        height, width = labelled.size_hw
        row["image"][:height, :width] = labelled.image
        row["image_id"][...] = record.image_id
        row["original_size_hw"][...] = record.height, record.width
        row["image_size_hw"][...] = height, width
        for slot, person in enumerate(most_telling(labelled.people, self.max_people)):
            self._write_person(person, slot, row, record.file_name)
        return unreadable

    def _read(self, task: Task) -> tuple[np.ndarray, ImageRecord, tuple[int, int], dict[int, str]]:
        """Reads the task's image or a stand-in: image, record, size to resize to, unreadable."""
        if self.stand_ins is None:
            return *self.source[task.example], task.resized_hw, {}
        unreadable: dict[int, str] = {}
        for example in itertools.chain([task.example], self.stand_ins.after(task.example)):
            try:
                image, record = self.source[example]
            except ImageError as error:
                unreadable[example] = str(error)
                continue
            size_hw = task.resized_hw
            if unreadable:
                size_hw = self.stand_ins.resized_hw(example, size_hw, task.canvas_hw)
            return image, record, size_hw, unreadable
        reason = unreadable[task.example]
        raise SourceError(f"none of the {len(self.source)} images can be read, such as {reason}")

    def _write_person(
        self, person: PersonLabels, slot: int, row: Mapping[str, np.ndarray], name: str
    ) -> None:
        row["is_valid"][slot] = True
        row["boxes"][slot] = person.box_xyxy
        row["keypoints"][slot] = person.keypoints
        if person.person_mask is not None:
            row["has_person_mask"][slot] = True
            row["person_mask"][slot] = person.person_mask
        if self.meshes is not None:
            row["classes"][slot] = person.class_index
        if person.densepose is None:
            return
        points = fitting_points(person.densepose, self.max_points, name)
        count = len(points.x)
        row["has_densepose"][slot] = True
        row["part_mask"][slot] = points.part_mask
        # Points on charts alone do not train embeddings; the person's mask does.
        row["point_is_valid"][slot, :count] = self.meshes is None or points.vertex is not None
        for field in ("x", "y", "i", "u", "v"):
            row[f"point_{field}"][slot, :count] = getattr(points, field)
        if self.with_confidence:
            row["point_is_annotated"][slot, :count] = points.is_annotated
            row["point_confidence"][slot, :count] = points.confidence
        if self.meshes is not None and points.vertex is not None:
            row["mesh"][slot] = self.meshes.number(points.mesh)
            row["point_vertex"][slot, :count] = points.vertex


def fitting_points(points: DensePoseRecord, count: int, name: str) -> DensePoseRecord:
    """Keeps at most `count` points: all of the annotator's, and evenly many of the others.

    Args:
        points: of a person.
        count: how many there is space for.
        name: of the image, for the message.

    Returns:
        The points in their order.

    Raises:
        ValueError: more than `count` are the annotator's.
    """
    if len(points.x) <= count:
        return points
    others = np.flatnonzero(~points.is_annotated)
    space = count - (len(points.x) - len(others))
    if space < 0:
        annotated = len(points.x) - len(others)
        raise ValueError(f"{name}: a person has {annotated} annotated points, max_points={count}")
    is_kept = points.is_annotated.copy()
    is_kept[others[np.arange(space) * len(others) // max(space, 1)]] = True
    return points.take(is_kept)


def _largest(boxes: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of boxes [N, 4], the largest."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return boxes[np.argsort(-area, kind="stable")[:count]]


def most_telling(people: tuple[PersonLabels, ...], count: int) -> tuple[PersonLabels, ...]:
    """Keeps at most `count` people, first those with DensePose, then the largest; order stays."""
    if len(people) <= count:
        return people
    sides = np.array([person.box_xyxy[2:] - person.box_xyxy[:2] for person in people])
    lacks_densepose = [person.densepose is None for person in people]
    kept = np.lexsort((-sides.prod(axis=-1), lacks_densepose))[:count]
    return tuple(people[index] for index in sorted(kept))
