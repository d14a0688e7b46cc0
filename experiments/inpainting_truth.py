"""The exact truth of rendered people: as labels of every pixel, and as the measure of others'."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io

from ktn_jax.body.parts import PART_GRID
from ktn_jax.body.procedural import assembly
from ktn_jax.data_pipelines.coco.annotations import PersonRecord, parse_person
from ktn_jax.data_pipelines.coco.densepose_checks import DENSEPOSE_POINT_KEYS, VERTEX_KEYS
from ktn_jax.data_pipelines.synthetic import dataset_files
from ktn_jax.data_pipelines.synthetic.scene import Scene
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.evaluation import template_files
from ktn_jax.evaluation.geodesic_similarity import VertexFinder
from ktn_jax.inference import inpainted_files
from ktn_jax.inference.inpainted_files import InpaintRequest
from ktn_jax.inference.inpainting import DenseLabels
from ktn_jax.results.iuv_pictures import read_labels
from ktn_jax.runtime import atomic_files

# Pixels to the nearest annotated point: the ends of the classes.
DISTANCES = (2.0, 4.0, 8.0, np.inf)
_MEASURED = 400  # cells of a person whose distance on the body is looked up
_CM_PER_METRE = 100


@dataclasses.dataclass(frozen=True)
class RenderedSet:
    """A set of rendered people in a folder, which can be rendered again with its truth."""

    folder: pathlib.Path
    num_images: int
    seed: int
    scene: Scene

    @property
    def annotations(self) -> pathlib.Path:
        """The annotation file."""
        return self.folder / dataset_files.ANNOTATION_FILE

    @property
    def images(self) -> pathlib.Path:
        """The image folder."""
        return self.folder / dataset_files.IMAGE_FOLDER

    def truths(self) -> Iterator[tuple[int, DenseLabels]]:
        """Yields the annotation id and the labels of everybody, on the pixels of the box.

        Boxes are on the edges of pixels, and no larger than the grid of labels.
        """
        source = SyntheticSource(self.num_images, self.seed, self.scene)
        for index in range(self.num_images):
            picture = source.picture(index)
            example = source.example(index, picture)
            people = np.flatnonzero(~picture.is_crowd)
            for person, record in zip(people, example.annotations, strict=False):
                x, y, width, height = (int(value) for value in record["bbox"])
                box = np.s_[y : y + height, x : x + width]
                is_person = picture.truth.instance[box] == person + 1
                uv = np.stack([picture.truth.u[box], picture.truth.v[box]])
                yield (
                    record["id"],
                    DenseLabels(
                        patch=np.where(is_person, picture.truth.patch[box], 0).astype(np.uint8),
                        uv=np.where(is_person, uv, 0).astype(np.float32),
                        confidence=is_person.astype(np.float32),
                    ),
                )


def write_symmetry(path: pathlib.Path) -> None:
    """Writes U and V of mirrored points of the rendered body, as the DensePose project does."""
    if path.exists():
        return
    tables = assembly.make_body().template.uv_symmetry_tables
    cells = {}
    for name, of_patch in zip(("U_transforms", "V_transforms"), tables, strict=True):
        cells[name] = np.empty((1, len(of_patch)), object)
        cells[name][0, :] = list(of_patch)
    with atomic_files.replacing(path) as temporary, open(temporary, "wb") as file:
        scipy.io.savemat(file, cells)


def write_points_of_few(people: RenderedSet, output: pathlib.Path, num_images: int) -> None:
    """Writes an annotation file in which the people of the first images alone have points.

    The others keep part masks, and a point in the corner of their box, which is beside the body:
    the format has no masks without points.

    Args:
        people: the set.
        output: the new file; what is there already is left as it is.
        num_images: whose people keep their points.
    """
    if output.exists():
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    raw = json.loads(people.annotations.read_bytes())
    kept = {image["id"] for image in raw["images"][:num_images]}
    for record in raw["annotations"]:
        if record["image_id"] not in kept and record.get("dp_masks"):
            record |= {key: [0] for key in DENSEPOSE_POINT_KEYS}
            for key in VERTEX_KEYS:
                record.pop(key, None)
    with atomic_files.replacing(output) as temporary:
        temporary.write_text(json.dumps(raw, separators=(",", ":")))


def write_dense_truth(
    people: RenderedSet, annotations: pathlib.Path, output: pathlib.Path, points: int
) -> None:
    """Writes the annotation file as `ktn data inpaint` would with a teacher that is always right.

    Args:
        people: the set.
        annotations: what is known of them.
        output: the new file; what is there already is left as it is.
        points: of a person.
    """
    if output.exists():
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    request = InpaintRequest(annotations, people.images, output, points)
    request.pictures.mkdir(exist_ok=True)
    raw = json.loads(annotations.read_bytes())
    of_id = {record["id"]: record for record in raw["annotations"]}
    for annotation_id, labels in people.truths():
        person = parse_person(of_id[annotation_id])
        if inpainted_files.is_labelled(person, needs_parts=True):
            fields = inpainted_files.label_fields(request, person, labels)
            inpainted_files.fill_up(of_id[annotation_id], fields)
    with atomic_files.replacing(output) as temporary:
        temporary.write_text(json.dumps(raw, separators=(",", ":")))


@dataclasses.dataclass(frozen=True)
class Errors:
    """Of labelled cells, one entry each.

    Attributes:
        is_right: bool [N] on the patch of the truth.
        uv: [N] distance in U and V, NaN where the patch is another.
        centimetres: [N] on the body, NaN where it was not looked up.
        to_point: [N] pixels to the nearest point of the annotator; infinite without one.
        confidence: [N] of the labels.
    """

    is_right: np.ndarray
    uv: np.ndarray
    centimetres: np.ndarray
    to_point: np.ndarray
    confidence: np.ndarray

    def where(self, chosen: np.ndarray) -> "Errors":
        """Those of some cells, bool [N]."""
        fields = dataclasses.fields(self)
        return Errors(**{field.name: getattr(self, field.name)[chosen] for field in fields})

    def summary(self) -> dict[str, float | int | None]:
        """Cells, share on the right patch in percent, median UV error, mean and median cm."""
        if not len(self.is_right):
            return dict.fromkeys(("cells", "right", "uv", "mean_cm", "median_cm"))
        known = self.centimetres[np.isfinite(self.centimetres)]
        return {
            "cells": len(self.is_right),
            "right": 100 * float(self.is_right.mean()),
            "uv": float(np.nanmedian(self.uv)) if self.is_right.any() else None,
            "mean_cm": float(known.mean()) if len(known) else None,
            "median_cm": float(np.median(known)) if len(known) else None,
        }


def measure(people: RenderedSet, labelled: pathlib.Path, template: pathlib.Path) -> Errors:
    """Compares the labels in pictures with the truth, where both see the person.

    Args:
        people: the set.
        labelled: its annotation file with `dp_iuv`.
        template: evaluation template of the body, for distances on it.
    """
    surface = template_files.load_evaluation_template(template)
    finder = VertexFinder(surface)
    raw = json.loads(labelled.read_bytes())
    of_id = {record["id"]: record for record in raw["annotations"] if record.get("dp_iuv")}
    found = []
    for annotation_id, truth in people.truths():
        record = of_id.get(annotation_id)
        if record is None:
            continue
        patch, uv, confidence = read_labels(labelled.parent / record["dp_iuv"])
        if patch.shape != truth.patch.shape:
            raise ValueError(f"{record['dp_iuv']}: {patch.shape}, the box is {truth.patch.shape}")
        rows, columns = np.nonzero((patch > 0) & (truth.patch > 0))
        if not len(rows):
            continue
        at = (rows, columns)
        is_right = patch[at] == truth.patch[at]
        gap = np.linalg.norm(uv[:, rows, columns] - truth.uv[:, rows, columns], axis=0)
        centimetres = np.full(len(rows), np.nan)
        some = np.arange(0, len(rows), max(len(rows) // _MEASURED, 1))
        vertices = [
            finder.find(labels[at][some], *values[:, rows[some], columns[some]])
            for labels, values in ((patch, uv), (truth.patch, truth.uv))
        ]
        metres = surface.distance(surface.row[vertices[0]], surface.row[vertices[1]])
        centimetres[some] = metres * _CM_PER_METRE
        found.append(
            Errors(
                is_right,
                np.where(is_right, gap, np.nan),
                centimetres,
                _to_nearest_point(record, parse_person(record), rows, columns),
                confidence[at],
            )
        )
    names = [field.name for field in dataclasses.fields(Errors)]
    return Errors(
        **{name: np.concatenate([getattr(errors, name) for errors in found]) for name in names}
    )


def _to_nearest_point(
    record: Mapping[str, Any], person: PersonRecord, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """[N] pixels from the middles of cells to the nearest point of the annotator."""
    flags = np.asarray(record["dp_annotated"], bool)
    points = np.stack([record["dp_x"], record["dp_y"]], -1)[flags] * person.box_xywh[2:] / PART_GRID
    if not len(points):
        return np.full(len(rows), np.inf)
    cells = np.stack([columns, rows], -1) + 0.5
    gaps: np.ndarray = np.linalg.norm(cells[:, None] - points, axis=-1).min(1)
    return gaps


def by_distance(errors: Errors) -> list[tuple[str, Errors]]:
    """The errors by class of the distance to the nearest annotated point, and all together."""
    classes, low = [], 0.0
    for high in DISTANCES:
        name = f"{low:g} to {high:g} px" if np.isfinite(high) else f"over {low:g} px"
        classes.append((name, errors.where((errors.to_point >= low) & (errors.to_point < high))))
        low = high
    return [*classes, ("all", errors)]


def by_confidence(errors: Errors, edges: Sequence[float]) -> list[tuple[str, Errors]]:
    """The errors by class of the confidence; each but the last without its upper edge."""
    number = np.searchsorted(edges[1:-1], errors.confidence, side="right")
    return [
        (f"{low:g} to {high:g}", errors.where(number == index))
        for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False))
    ]
