"""The images of a results file of any system: their detections, and where their photos are."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.result_files import Place, check_entry, iterate_entries
from ktn_jax.inference.photo_names import number_of
from ktn_jax.results import records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import image_files, images


@dataclasses.dataclass
class FoundPeople:
    """The detections of an image.

    Attributes:
        file_name: of the image, where the first detection that has one gives it.
        places: number, score and place of each in the results file.
    """

    file_name: str | None = None
    places: list[tuple[int, float, Place]] = dataclasses.field(default_factory=list)


def index_people(results: pathlib.Path, min_score: float) -> dict[int, FoundPeople]:
    """Checks all detections of a results file, and finds their places.

    Args:
        results: a JSON list of detections, or JSON lines; image ids of a video's are its frames.
        min_score: detections with a lower score are left out, their images are not.

    Returns:
        By image id, in ascending order.

    Raises:
        EvaluationError: the file is missing or damaged, has no detection, or one with a wrong or
            missing field; the message names file, detection and field.
    """
    found: dict[int, FoundPeople] = {}
    for number, (place, entry) in enumerate(iterate_entries(results), start=1):
        record = check_entry(_where(results, number), entry)
        image = found.setdefault(record["image_id"], FoundPeople())
        name = record.get("file_name")
        if isinstance(name, str) and image.file_name is None:
            image.file_name = _as_utf8(name)
        if record["score"] >= min_score:
            image.places.append((number, record["score"], place))
    if not found:
        raise EvaluationError(f"{results}: no detections, so there is nothing to do")
    return dict(sorted(found.items()))


def _where(results: pathlib.Path, number: int) -> str:
    return f"{results}: detection {number}"


def _as_utf8(name: str) -> str:
    """Text that `iterate_entries` decoded byte by byte."""
    try:
        return name.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return name  # written in ASCII, with escapes


def read_people(results: pathlib.Path, handle: Any, found: FoundPeople) -> list[PersonResult]:
    """Reads the people of an image, best first.

    Args:
        results: the file, for messages.
        handle: of the file, opened for binary reading.
        found: of `index_people` of it.

    Raises:
        ResultsError: a picture or mask is damaged.
    """
    people = []
    for number, _, place in sorted(found.places, key=lambda detection: -detection[1]):
        where = _where(results, number)
        record = check_entry(where, place.read(handle))
        people.append(records.record_to_person(where, record))
    return people


class PhotoSearch:
    """Finds the photos of images."""

    def __init__(
        self,
        images_dir: str | os.PathLike[str] | None,
        annotated_names: Mapping[int, str],
    ):
        """Looks for photos whose names are numbers.

        Args:
            images_dir: folder of the photos; None takes names as paths.
            annotated_names: file names by image id, which count more than those of detections.

        Raises:
            ValueError: there is no such folder.
        """
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

    def describe(self, image_id: int, found: Mapping[int, FoundPeople]) -> str:
        """Names an image for a message."""
        name = self._names.get(image_id) or found[image_id].file_name
        place = "" if self._folder is None else f" in {self._folder}"
        return f"image {image_id}{f' ({name:.200})' if name else ''}{place}"
