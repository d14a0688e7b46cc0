"""The people of photos, from a results file or from a model: for work on photos with people."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.inference.photo_names import image_ids
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.records import PersonResult, records_to_people

PeopleOf = Callable[[int, np.ndarray], list[PersonResult]]
"""From the number of a photo and its pixels to the people in it."""

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
        ids = sorted({str(record.get("file_name", record["image_id"])) for record in records})
        raise ResultsError(
            f"{name}: none of its {len(records)} records is of these photos "
            f"({', '.join(map(str, photos[:_SHOWN]))}); it is about "
            f"{', '.join(ids[:_SHOWN]) or 'nothing'}: photos are found by file_name, else by the "
            "number that names them (000000000785.jpg is image 785)"
        )

    def people_of(index: int, image: np.ndarray) -> list[PersonResult]:
        return [person for found in records_to_people(matched[index]).values() for person in found]

    return people_of


def match_records(
    photos: Sequence[pathlib.Path], records: Sequence[Mapping[str, Any]]
) -> list[list[Mapping[str, Any]]]:
    """Finds the records of each photo.

    Args:
        photos: Image files.
        records: Of the results format. Those of this project have a `file_name`.

    Returns:
        The records of each photo, in their order: those with its path as `file_name`; else with the
        last part of its path, if one photo and one `file_name` end so; else, of records without
        `file_name`, those of the photo's image id, see `photo_names.image_ids`; else, if there is
        one photo and one image without a name, those of that image.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    by_id: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        if "file_name" in record:
            by_name.setdefault(os.path.normpath(record["file_name"]), []).append(record)
        else:
            by_id.setdefault(record["image_id"], []).append(record)
    last_parts = _unique({name: pathlib.PurePath(name).name for name in by_name})
    own_parts = _unique({str(path): path.name for path in photos})
    if len(photos) == 1 and len(by_id) == 1 and not by_name:
        return [next(iter(by_id.values()))]
    matched = []
    for path, image_id in zip(photos, image_ids(photos), strict=True):
        found = by_name.get(os.path.normpath(path))
        if found is None and path.name in last_parts and path.name in own_parts:
            found = by_name[last_parts[path.name]]
        matched.append(by_id.get(image_id, []) if found is None else found)
    return matched


def _unique(parts_of: Mapping[str, str]) -> dict[str, str]:
    """From each part that one name has alone to that name."""
    names: dict[str, list[str]] = {}
    for name, part in parts_of.items():
        names.setdefault(part, []).append(name)
    return {part: found[0] for part, found in names.items() if len(found) == 1}
