"""Names and image ids of the photos of one run."""

import os
import pathlib
import re
from collections.abc import Sequence

from ktn_jax.evaluation.ground_truth import GroundTruth, ImageTruth

_SHOWN = 3  # files named in a message
_NUMBERED = re.compile(r"(?:COCO_\w+_)?0*([0-9]{1,15})")  # longer ones are not exact in JSON


def as_text(path: str | os.PathLike[str]) -> str:
    """A path as text that every encoding of JSON takes; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def output_names(photos: Sequence[pathlib.Path]) -> list[str]:
    """Names for the output files: the photo's without suffix, numbered where two are the same."""
    taken: set[str] = set()
    names = []
    for path in photos:
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name)
        names.append(name)
    return names


def number_of(path: pathlib.PurePath) -> int | None:
    """The number that names a photo, COCO's prefix left out; None if another word does."""
    match = _NUMBERED.fullmatch(path.stem)
    return int(match[1]) if match else None


def image_ids(photos: Sequence[pathlib.Path]) -> list[int]:
    """COCO image ids, all different.

    Args:
        photos: in any order.

    Returns:
        The number that names a photo (000000000785.jpg) where it is the first of that number; for
        the others the numbers that are left, from 1 on in the order of the photos.
    """
    ids: list[int | None] = []
    taken: set[int] = set()
    for path in photos:
        number = number_of(path)
        ids.append(None if number in taken else number)
        taken |= {number} if number is not None else set()
    free = (number for number in range(1, 2 * len(photos) + 1) if number not in taken)
    return [next(free) if number is None else number for number in ids]


def annotated_ids(photos: Sequence[pathlib.Path], truth: GroundTruth) -> list[int]:
    """Finds the image ids of photos in an annotation file, by their names.

    Args:
        photos: their paths end with a `file_name` of the annotations.
        truth: the annotations.

    Returns:
        An id for each photo.

    Raises:
        ValueError: a photo is not in the annotations, or two photos are the same image there.
    """
    by_name: dict[str, list[ImageTruth]] = {}
    for image in truth.images:
        by_name.setdefault(pathlib.PurePosixPath(image.file_name).name, []).append(image)
    found = [_annotated_image(path, by_name.get(path.name, [])) for path in photos]
    unknown = [str(path) for path, image in zip(photos, found, strict=True) if image is None]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(photos)} photos are not among the {len(truth.images)} images "
            f"of {truth.name} (by file_name), such as {', '.join(unknown[:_SHOWN])}"
        )
    paths: dict[int, pathlib.Path] = {}
    for path, match in zip(photos, found, strict=True):
        if match is not None and paths.setdefault(match.image_id, path) != path:
            raise ValueError(
                f"{paths[match.image_id]} and {path} are both image {match.image_id} "
                f"({match.file_name}) of {truth.name}"
            )
    return list(paths)


def _annotated_image(path: pathlib.Path, candidates: Sequence[ImageTruth]) -> ImageTruth | None:
    """The image of the same name; of several, the one whose folders are the path's last ones."""
    if len(candidates) == 1:
        return candidates[0]
    parts = path.absolute().parts
    matching = []
    for image in candidates:
        annotated = pathlib.PurePosixPath(image.file_name).parts
        if parts[-len(annotated) :] == annotated:
            matching.append(image)
    # a/1.jpg fits "1.jpg" and "a/1.jpg": the longer says more.
    return max(matching, key=lambda image: image.file_name.count("/"), default=None)
