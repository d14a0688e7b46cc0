"""Draws the people of a results file of any system over their photos."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import ImageTruth
from ktn_jax.evaluation.result_files import check_entry, iterate_entries
from ktn_jax.inference.output_files import check_targets
from ktn_jax.inference.photo_names import number_of, output_names
from ktn_jax.results import pictures, records
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import StyleSettings
from ktn_jax.runtime import image_files, images
from ktn_jax.runtime.progress import Progress


@dataclasses.dataclass
class _Found:
    """The detections of an image: their number, score and place in the file."""

    file_name: str | None = None
    places: list[tuple[int, float, int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class DrawnSummary:
    """Counts of what was drawn, and what could not be.

    Attributes:
        num_images: drawn.
        num_people: drawn on them.
        failures: a sentence about each image that was not.
    """

    num_images: int = 0
    num_people: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


def draw_results(
    results: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    names: Sequence[str] = (pictures.OVERLAY,),
    settings: StyleSettings | None = None,
    *,
    images_dir: str | os.PathLike[str] | None = None,
    annotated: Sequence[ImageTruth] = (),
    min_score: float = 0.0,
    overwrite: bool = False,
) -> DrawnSummary:
    """Draws every image of a results file; the file is not held in memory.

    The photo of an image is the annotated one, else the one that `file_name` of its detections
    names, else the one that is named by the image id (000000000785.jpg). A name is looked for in
    `images_dir`, first with its folders and then without.

    Args:
        results: a JSON list of detections, or JSON lines, as `ktn eval` takes them.
        output_dir: made if it does not exist.
        names: of pictures, see `results.pictures`.
        settings: of detectron2's styles.
        images_dir: folder of the photos; None takes `file_name` as a path.
        annotated: images of an annotation file, for their file names; photos are then read in the
            frame of their annotations, see `images.decode_image`.
        min_score: detections with a lower score are left out.
        overwrite: replace files that are there, but no photo.

    Returns:
        The summary.

    Raises:
        EvaluationError: the file is missing or damaged, or a detection has a wrong or missing
            field; the message names file, detection and field.
        ValueError: an unknown picture, no photo found, or a file that would be replaced.
    """
    results, output_dir = pathlib.Path(results), pathlib.Path(output_dir)
    settings = settings or StyleSettings()
    names = pictures.check_names(names, settings)
    found = _index(results, min_score)
    search = _Search(images_dir, {image.image_id: image.file_name for image in annotated})
    paths = {image_id: search.find(image_id, found[image_id].file_name) for image_id in found}
    photos = {image_id: path for image_id, path in sorted(paths.items()) if path is not None}
    missing = [image_id for image_id in found if image_id not in photos]
    if missing and not photos:
        raise ValueError(
            f"{results}: found none of the photos, such as {search.describe(missing[0], found)}; "
            "give their folder (--images) and, if ids and names differ, --annotations"
        )
    sizes_hw = {image.image_id: image.image_size_hw for image in annotated}
    summary = DrawnSummary()
    summary.failures = [f"{search.describe(number, found)}: not found" for number in missing]
    chosen = list(photos.values())
    stems = dict(zip(photos, output_names(chosen), strict=True))
    endings = [pictures.ending(name) for name in names]
    targets = [output_dir / f"{stem}{end}" for stem in stems.values() for end in endings]
    check_targets(output_dir, targets, [*chosen, results], overwrite)
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(results, "rb") as handle, Progress("draw", "photos", len(photos)) as progress:
        for image_id, path in photos.items():
            try:
                people = _people(results, handle, found[image_id])
                image = images.read_image(path, sizes_hw.get(image_id))
                stem = stems[image_id]
                pictures.write_pictures(output_dir, stem, names, image, people, settings)
            except ValueError as error:  # of the photo, or of a detection's picture
                summary.failures.append(f"image {image_id} ({path}): {error}")
            else:
                summary.num_images += 1
                summary.num_people += len(people)
            progress.advance()
    return summary


def _index(results: pathlib.Path, min_score: float) -> dict[int, _Found]:
    """Checks all detections, and finds their places by image, in ascending order of ids."""
    found: dict[int, _Found] = {}
    for number, (offset, length, entry) in enumerate(iterate_entries(results), start=1):
        record = check_entry(_where(results, number), entry)
        image = found.setdefault(record["image_id"], _Found())
        name = record.get("file_name")
        if isinstance(name, str) and image.file_name is None:
            image.file_name = _as_utf8(name)
        if record["score"] >= min_score:
            image.places.append((number, record["score"], offset, length))
    if not found:
        raise EvaluationError(f"{results}: no detections, so there is nothing to draw")
    return dict(sorted(found.items()))


def _where(results: pathlib.Path, number: int) -> str:
    return f"{results}: detection {number}"


def _as_utf8(name: str) -> str:
    """Text that `iterate_entries` decoded byte by byte."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return name  # written in ASCII, with escapes


def _people(results: pathlib.Path, handle: Any, found: _Found) -> list[PersonResult]:
    """Reads the people of an image, best first."""
    people = []
    for number, _, offset, length in sorted(found.places, key=lambda place: -place[1]):
        handle.seek(offset)
        where = _where(results, number)
        record = check_entry(where, json.loads(handle.read(length).decode("latin-1")))
        people.append(records.record_to_person(where, record))
    return people


class _Search:
    """Finds the photos of images."""

    def __init__(
        self,
        images_dir: str | os.PathLike[str] | None,
        annotated_names: Mapping[int, str],
    ):
        self._folder = None if images_dir is None else pathlib.Path(images_dir)
        self._names = annotated_names
        self._numbered: dict[int, pathlib.Path] = {}
        if self._folder is not None:
            if not self._folder.is_dir():
                raise ValueError(f"{self._folder}: no such folder of images")
            with contextlib.suppress(images.ImageError):  # all may be in subfolders, by their names
                for path in image_files.find_images([self._folder]).paths:
                    number = number_of(path)
                    if number is not None:
                        self._numbered.setdefault(number, path)

    def find(self, image_id: int, file_name: str | None) -> pathlib.Path | None:
        """The photo of an image, or None."""
        for name in (self._names.get(image_id), file_name):
            if name is None:
                continue
            path = pathlib.Path(name)
            candidates = [path] if self._folder is None else []
            if self._folder is not None:
                candidates += [self._folder / name, self._folder / path.name]
            for candidate in candidates:
                if os.path.isfile(candidate):  # `is_file` raises where a name is too long
                    return candidate
        return self._numbered.get(image_id)

    def describe(self, image_id: int, found: Mapping[int, _Found]) -> str:
        """Names an image for a message."""
        name = self._names.get(image_id) or found[image_id].file_name
        place = "" if self._folder is None else f" in {self._folder}"
        return f"image {image_id}{f' ({name:.200})' if name else ''}{place}"
