"""Annotation files whose people a teacher labels: written image by image, so that runs resume.

Every process appends the people of its images to a file of its own (`results.shards`); the first
one then writes the annotation file. Beside it is a folder of pictures with all labels of a person.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ktn_jax.body.parts import UNKNOWN_PART
from ktn_jax.data_pipelines.coco import checks
from ktn_jax.data_pipelines.coco.annotations import (
    Dataset,
    ImageRecord,
    PersonRecord,
    parse_dataset,
)
from ktn_jax.data_pipelines.coco.densepose_checks import VERTEX_KEYS, has_charts
from ktn_jax.inference import batching
from ktn_jax.inference.inpainting import AnnotatedPerson, DenseLabels, Inpainter, add_points
from ktn_jax.results.iuv_pictures import quantise, write_labels
from ktn_jax.results.shards import ResultsWriter, merge_results
from ktn_jax.runtime import images, json_stream
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.progress import Progress

_LOG = logging.getLogger(__name__)
# What of a point is in the file under which key, with how many digits.
_FIELDS = {
    "dp_x": ("x", 4),
    "dp_y": ("y", 4),
    "dp_I": ("i", 0),
    "dp_U": ("u", 6),
    "dp_V": ("v", 6),
    "dp_confidence": ("confidence", 4),
}


@dataclasses.dataclass(frozen=True)
class InpaintRequest:
    """What to label and where to write it.

    Attributes:
        annotations: DensePose-COCO file.
        images: folder of its images.
        output: annotation file to write; nothing may be there.
        points: of a person in the end, the annotator's among them.
        with_pictures: write the labels of all cells too, as `dp_iuv`.
        on_bad: what to do at bad annotations and images that cannot be read; with "skip" their
            people are kept as they are.
        max_skipped_fraction: see `parse_dataset`.
    """

    annotations: pathlib.Path
    images: pathlib.Path
    output: pathlib.Path
    points: int = 180
    with_pictures: bool = True
    on_bad: Literal["raise", "skip"] = "raise"
    max_skipped_fraction: float = 0.01

    @property
    def pictures(self) -> pathlib.Path:
        """The folder of pictures."""
        return self.output.with_name(f"{self.output.stem}_iuv")

    @property
    def unfinished(self) -> pathlib.Path:
        """The folder of what is done, until all is."""
        return self.output.with_name(f"{self.output.name}.unfinished")


@dataclasses.dataclass(frozen=True)
class InpaintCounts:
    """What was done.

    Attributes:
        people: labelled, by this and earlier runs.
        points: of them.
        annotated: of these, the annotator's.
        others: people who were kept as they are.
        without_parts: of these, people with points whose mask is one of the whole body, where the
            teacher needs those of the parts.
    """

    people: int
    points: int
    annotated: int
    others: int
    without_parts: int


def check_request(request: InpaintRequest) -> None:
    """Checks what can be checked before a model is loaded.

    Raises:
        ValueError: a value that does not fit, or the output is there already.
        FileNotFoundError: no such image folder, or folder to write to.
    """
    if request.points < 1:
        raise ValueError(f"--points must be at least 1, got {request.points}")
    if request.output.suffix != ".json":
        raise ValueError(f"--output {request.output}: must be a file NAME.json")
    if request.output.exists():
        raise ValueError(f"{request.output} exists: give another --output, or remove it")
    if request.with_pictures and request.pictures.exists() and not request.unfinished.exists():
        raise ValueError(
            f"{request.pictures} exists and is of no unfinished run: give another --output, or "
            "remove it"
        )
    if not request.images.is_dir():
        raise FileNotFoundError(f"--images {request.images}: no such folder")
    if not request.output.parent.is_dir():
        raise FileNotFoundError(f"--output {request.output}: there is no such folder")


def inpaint_file(
    inpainter: Inpainter,
    request: InpaintRequest,
    run: Mapping[str, Any],
    processes: Processes | None = None,
) -> InpaintCounts | None:
    """Labels the people of an annotation file who have part masks; the same call resumes.

    Args:
        inpainter: the teacher.
        request: what to do.
        run: describes what the labels depend on, see `dataset.describe_run`.
        processes: those that share the work; each calls this.

    Returns:
        What was done, in process 0; None in the others.

    Raises:
        ValueError: see `check_request`.
        ktn_jax.data_pipelines.coco.checks.DatasetError: annotations with errors.
        ktn_jax.runtime.images.ImageError: an image cannot be read.
        ktn_jax.results.shards.ShardError: the unfinished run is another one.
        FolderInUseError: another process writes there.
    """
    processes = processes or Processes()
    check_request(request)
    dataset = parse_dataset(request.annotations, request.on_bad, request.max_skipped_fraction)
    run = {**run, "points": request.points, "pictures": request.with_pictures}
    with processes.hold(request.unfinished):
        if processes.is_first and request.with_pictures:
            request.pictures.mkdir(exist_ok=True)
        processes.wait("prepared")
        _label_share(inpainter, request, dataset, run, processes)
        processes.wait("labelled")
        counts = None
        if processes.is_first:
            counts = _write(request, len(dataset.images), inpainter.needs_parts)
        processes.wait("written")
    if processes.is_first:
        shutil.rmtree(request.unfinished)
    return counts


def _label_share(
    inpainter: Inpainter,
    request: InpaintRequest,
    dataset: Dataset,
    run: Mapping[str, Any],
    processes: Processes,
) -> None:
    """Labels the people of this process's images that are not done."""
    ids = dataset.images.ids()
    share = range(processes.index, len(ids), processes.count)
    with ResultsWriter(request.unfinished, run, processes.index) as writer:
        missing = [index for index in share if ids[index] not in writer.done]
        with Progress(
            "inpaint",
            "images",
            total=len(share),
            done=len(share) - len(missing),
            is_shown=processes.is_first,
        ) as progress:

            def read(index: int) -> tuple[ImageRecord, np.ndarray | None]:
                return _read(request, dataset.images[index], inpainter.needs_parts)

            def predict(
                batch: Sequence[tuple[ImageRecord, np.ndarray | None]],
            ) -> list[list[tuple[PersonRecord, DenseLabels]]]:
                return _label(inpainter, batch)

            def finish(
                items: Sequence[int],
                photos: Sequence[tuple[ImageRecord, np.ndarray | None]],
                found: Sequence[Sequence[tuple[PersonRecord, DenseLabels]]],
            ) -> None:
                for (record, _), people in zip(photos, found, strict=True):
                    fields = [label_fields(request, *person) for person in people]
                    owner = {"image_id": record.image_id}
                    writer.add(record.image_id, [owner | entry for entry in fields])
                progress.advance(len(items))

            # DensePose-COCO has two people with part masks an image.
            size = max(inpainter.batch_size // 2, 1)
            batches = [missing[start : start + size] for start in range(0, len(missing), size)]
            batching.run(batches, read, predict, finish)


def is_labelled(person: PersonRecord, needs_parts: bool) -> bool:
    """Whether a person is one to label: with points on charts and part masks, no crowd.

    Args:
        person: as read.
        needs_parts: whether a mask of the whole body is not enough for the teacher.
    """
    if person.is_crowd or person.densepose is None or not person.densepose.has_charts:
        return False
    highest = int(person.densepose.part_mask.max())
    return highest > 0 and not (needs_parts and highest == UNKNOWN_PART)


def _read(
    request: InpaintRequest, record: ImageRecord, needs_parts: bool
) -> tuple[ImageRecord, np.ndarray | None]:
    """Reads an image; None where there is nobody to label, or the image is left out."""
    if not any(is_labelled(person, needs_parts) for person in record.people):
        return record, None
    path = request.images / record.file_name
    try:
        return record, images.read_image(path, (record.height, record.width))
    except images.ImageError as error:
        if request.on_bad == "raise":
            raise
        _LOG.warning("its people are kept as they are: %s", error)
        return record, None


def _label(
    inpainter: Inpainter, batch: Sequence[tuple[ImageRecord, np.ndarray | None]]
) -> list[list[tuple[PersonRecord, DenseLabels]]]:
    """Labels the people of several images together."""
    chosen = [
        []
        if image is None
        else [person for person in record.people if is_labelled(person, inpainter.needs_parts)]
        for record, image in batch
    ]
    people = [
        AnnotatedPerson(image, person.box_xywh, person.densepose.part_mask)
        for (_, image), own in zip(batch, chosen, strict=True)
        for person in own
        if image is not None and person.densepose is not None
    ]
    labels = iter(inpainter(people))
    return [[(person, next(labels)) for person in own] for own in chosen]


def label_fields(
    request: InpaintRequest, person: PersonRecord, labels: DenseLabels
) -> dict[str, Any]:
    """Writes a labelled person's picture.

    Args:
        request: what to write, and where.
        person: with DensePose.
        labels: of the person.

    Returns:
        The annotation's id and the new fields, as `fill_up` takes them: points that the teacher
        set, and the picture's name relative to the annotation file.
    """
    points = add_points(person, labels, request.points)
    new = points.take(~points.is_annotated)
    entry: dict[str, Any] = {"id": person.annotation_id}
    for key, (name, digits) in _FIELDS.items():
        entry[key] = np.round(getattr(new, name).astype(np.float64), digits).tolist()
    if request.with_pictures:
        path = request.pictures / f"{person.annotation_id:012d}.png"
        write_labels(path, quantise(labels.patch, labels.uv), labels.confidence)
        entry["dp_iuv"] = f"{request.pictures.name}/{path.name}"
    return entry


def fill_up(annotation: dict[str, Any], new: Mapping[str, Any]) -> int:
    """Adds new points to an annotation as the file has it, after those of the annotator.

    Args:
        annotation: with DensePose; changed in place. The annotator's values stay as they are
            written, and points that a model set before are dropped. So are vertices: the new points
            have none.
        new: lists of `dp_x` and so on, and `dp_iuv` where there is a picture.

    Returns:
        How many points are the annotator's.
    """
    count = len(annotation["dp_x"])
    flags = annotation.get("dp_annotated") or [1] * count
    for key in _FIELDS:
        old = [1.0] * count if key == "dp_confidence" else annotation[key]
        kept = [value for value, flag in zip(old, flags, strict=True) if flag]
        annotation[key] = kept + new[key]
    annotated = len(kept)
    annotation["dp_annotated"] = [1] * annotated + [0] * len(new["dp_x"])
    for key in ("dp_iuv", *VERTEX_KEYS):
        annotation.pop(key, None)
    if "dp_iuv" in new:
        annotation["dp_iuv"] = new["dp_iuv"]
    return annotated


def _write(request: InpaintRequest, num_images: int, needs_parts: bool) -> InpaintCounts:
    """Writes the annotation file: the given one, with the fields of the people who were labelled.

    Args:
        request: what to write, and where.
        num_images: of the annotations.
        needs_parts: see `is_labelled`.

    Raises:
        ValueError: images are missing in what the processes wrote, or the given file was removed
            meanwhile.
    """
    merged = request.unfinished / "merged.json"
    done, _ = merge_results(request.unfinished, merged)
    if done != num_images:
        raise ValueError(
            f"{request.unfinished} holds {done} images, the annotations {num_images}: a process "
            "stopped early, or its files are elsewhere (all processes must see the same folder)"
        )
    new = {entry["id"]: entry for _, _, entry in json_stream.iterate_objects(merged, "utf-8")}
    raw, unreadable = checks.load_json(request.annotations)
    if unreadable is not None:
        raise ValueError(str(unreadable))
    people = points = annotated = without_parts = 0
    for annotation in raw["annotations"]:
        # With on_bad="skip" there may be anything. Of several with one id the first was labelled,
        # and ids of other categories can be those of people.
        is_candidate = checks.has_id(annotation) and has_charts(annotation)
        own = new.pop(annotation["id"], None) if is_candidate else None
        if own is not None:
            people, annotated = people + 1, annotated + fill_up(annotation, own)
            points += len(annotation["dp_x"])
        elif is_candidate and needs_parts:
            without_parts += not isinstance(annotation.get("dp_masks"), list)
    with replacing(request.output) as temporary:
        temporary.write_text(json.dumps(raw, separators=(",", ":")), encoding="utf-8")
    others = len(raw["annotations"]) - people
    return InpaintCounts(people, points, annotated, others, without_parts)
