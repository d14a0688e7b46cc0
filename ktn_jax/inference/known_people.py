"""The people of photos and of videos, from results or from a model: for work on their pictures."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.inference.photo_names import as_text, image_ids
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.frame_lines import read_frame_lines
from ktn_jax.results.records import PersonResult, record_to_person

PeopleOf = Callable[[int, np.ndarray], list[PersonResult]]
"""From the number of a photo and its pixels to the people in it.

Raises ResultsError where a record of the photo is damaged.
"""

_SHOWN = 3  # files named in a message


def predicted_people(predictor: CallablePredictor) -> PeopleOf:
    """The people that a model finds."""

    def people_of(index: int, image: np.ndarray) -> list[PersonResult]:
        return list(predictor([image])[0])

    return people_of


def recorded_people(
    photos: Sequence[pathlib.Path], records: Sequence[Mapping[str, Any]], name: str
) -> PeopleOf:
    """The people that a results file has.

    Args:
        photos: Image files.
        records: As `records.read_results` gives them.
        name: Of the results file, for messages.

    Returns:
        A function that decodes a photo's records when it is called.

    Raises:
        ResultsError: no photo has a record.
    """
    matched = match_records(photos, records)
    if not any(matched):
        ids = sorted({_name_of(record) or str(record["image_id"]) for record in records})
        raise ResultsError(
            f"{name}: none of its {len(records)} records is of these photos "
            f"({', '.join(map(str, photos[:_SHOWN]))}); it is about "
            f"{', '.join(ids[:_SHOWN]) or 'nothing'}: photos are found by file_name, else by the "
            "number that names them (000000000785.jpg is image 785)"
        )

    def people_of(index: int, image: np.ndarray) -> list[PersonResult]:
        return [
            record_to_person(f"{name}: record {number}", records[number])
            for number in matched[index]
        ]

    return people_of


def recorded_frames(path: str | os.PathLike[str]) -> PeopleOf:
    """The people that the JSON lines of a video have, see `results.frame_lines`.

    Args:
        path: Of the lines.

    Returns:
        A function of the numbers of frames, which must be asked for in ascending order; frames
        without a line have nobody.
    """
    lines = read_frame_lines(path)
    line = next(lines, None)

    def people_of(index: int, image: np.ndarray) -> list[PersonResult]:
        nonlocal line
        while line is not None and line.frame < index:
            line = next(lines, None)
        return line.people() if line is not None and line.frame == index else []

    return people_of


def match_records(
    photos: Sequence[pathlib.Path], records: Sequence[Mapping[str, Any]]
) -> list[list[int]]:
    """Finds the records of each photo.

    Args:
        photos: Image files.
        records: Of the results format. Those of this project have a `file_name`.

    Returns:
        The positions in `records` of each photo's, ascending: of those with its path as
        `file_name`; else with the last part of its path, if one photo and one `file_name` end so;
        else, of records without `file_name`, those of the photo's image id, see
        `photo_names.image_ids`; else, if there is one photo and one image without a name, those of
        that image.
    """
    by_name: dict[str, list[int]] = {}
    by_id: dict[int, list[int]] = {}
    for number, record in enumerate(records):
        name = _name_of(record)
        if name is not None:
            by_name.setdefault(os.path.normpath(name), []).append(number)
        else:
            by_id.setdefault(record["image_id"], []).append(number)
    paths = [pathlib.PurePath(as_text(path)) for path in photos]  # as `file_name` was written
    last_parts = _unique({name: pathlib.PurePath(name).name for name in by_name})
    own_parts = _unique({str(path): path.name for path in paths})
    if len(photos) == 1 and len(by_id) == 1 and not by_name:
        return [next(iter(by_id.values()))]
    matched = []
    for path, image_id in zip(paths, image_ids(photos), strict=True):
        found = by_name.get(os.path.normpath(path))
        if found is None and path.name in last_parts and path.name in own_parts:
            found = by_name[last_parts[path.name]]
        matched.append(by_id.get(image_id, []) if found is None else found)
    return matched


def _name_of(record: Mapping[str, Any]) -> str | None:
    """The `file_name` of a record; other systems may have something else there, or nothing."""
    name = record.get("file_name")
    return name if isinstance(name, str) else None


def _unique(parts_of: Mapping[str, str]) -> dict[str, str]:
    """From each part that one name has alone to that name."""
    names: dict[str, list[str]] = {}
    for name, part in parts_of.items():
        names.setdefault(part, []).append(name)
    return {part: found[0] for part, found in names.items() if len(found) == 1}
