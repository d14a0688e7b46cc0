"""Maps of a whole image: patch, U, V of every pixel and whose body it is, and their PNG files."""

import os
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ktn_jax.results.palette import PERSON_COLOURS
from ktn_jax.results.png_text import compress_png
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import atomic_files

_LAST_NUMBER = 65_535  # of pictures with 16 bits


def paste_iuv(
    people: Sequence[PersonResult], image_size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the people's IUV pictures into maps of the whole image.

    Args:
        people: In any order. Where they overlap, the one with the higher score is in front. Who has
            no IUV picture is only among the instances, by vertices or a mask.
        image_size_hw: (height, width); what is outside is cut off.

    Returns:
        [H, W, 3] uint8 of I, 255 U, 255 V, all 0 on background; and [H, W] uint8 (uint16 if there
        are numbers above 255) of the person's number, see `person_numbers`, 0 on background.

    Raises:
        ValueError: a mask that is drawn is of an image of another size.
    """
    iuv = np.zeros((*image_size_hw, 3), np.uint8)
    numbers = person_numbers(people)
    kind = np.min_scalar_type(max(numbers, default=0))
    instances = np.zeros(image_size_hw, kind)
    ranked = sorted(zip(people, numbers, strict=True), key=lambda pair: -pair[0].score)
    for person, number in reversed(ranked):
        is_body = person.is_body
        if is_body is None:
            if person.mask is not None:
                person.mask.check_image_size(image_size_hw)
                instances[person.mask.slices][person.mask.mask] = number
            continue
        image_part, person_part = overlap(person, image_size_hw)
        is_body = is_body[person_part]
        # Of vertices there is no patch: what is behind them is hidden.
        picture = (0, 0, 0) if person.iuv is None else person.iuv[:, *person_part]
        for channel, values in enumerate(picture):
            np.copyto(iuv[image_part][..., channel], np.uint8(values), where=is_body)
        np.copyto(instances[image_part], kind.type(number), where=is_body)
    return iuv, instances


def person_numbers(people: Sequence[PersonResult]) -> list[int]:
    """Numbers the people of a picture, from 1.

    Args:
        people: in any order.

    Returns:
        Of each, `track_id` if all have one of their own from 1 on, so that people keep number and
        colour through a video; else the place in order of falling score (equal scores: in the given
        order).
    """
    tracks = [person.track_id or 0 for person in people]
    if all(tracks) and len(set(tracks)) == len(tracks) and max(tracks, default=0) <= _LAST_NUMBER:
        return tracks
    order = sorted(range(len(people)), key=lambda index: -people[index].score)
    numbers = [0] * len(people)
    for number, index in enumerate(order, start=1):
        numbers[index] = number
    return numbers


def overlap(
    person: PersonResult, image_size_hw: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the image that a person's picture covers, and of the picture there."""
    corner = (int(person.box_xyxy[0]), int(person.box_xyxy[1]))
    return overlap_at(corner, person.size_hw, image_size_hw)


def overlap_at(
    corner_xy: tuple[int, int], size_hw: tuple[int, ...], image_size_hw: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Finds where a picture lies in an image.

    Args:
        corner_xy: column and row of the image of the picture's first pixel; may be negative.
        size_hw: of the picture; further axes are not looked at.
        image_size_hw: of the image, alike.

    Returns:
        Rows and columns of the image that the picture covers, and of the picture there; empty where
        they do not meet.
    """
    rows, own_rows = _overlap_of_side(corner_xy[1], size_hw[0], image_size_hw[0])
    columns, own_columns = _overlap_of_side(corner_xy[0], size_hw[1], image_size_hw[1])
    return (rows, columns), (own_rows, own_columns)


def _overlap_of_side(start: int, pixels: int, limit: int) -> tuple[slice, slice]:
    first, last = max(start, 0), max(min(start + pixels, limit), max(start, 0))
    return slice(first, last), slice(first - start, last - start)


def write_iuv_png(path: str | os.PathLike[str], iuv: np.ndarray) -> None:
    """Writes a full-size IUV map as an RGB PNG: red is I, green 255 U, blue 255 V.

    OpenCV reverses channels: from this file it reads V, U, I. (The original system's `*_IUV.png`
    were written by OpenCV and have the reverse order.)

    Args:
        path: Of the PNG.
        iuv: [H, W, 3] uint8, as `paste_iuv` returns it.

    Raises:
        ValueError: not such a map.
        FileNotFoundError: the folder does not exist.
    """
    if iuv.ndim != 3 or iuv.shape[2] != 3 or iuv.dtype != np.uint8:
        raise ValueError(f"iuv must be [H, W, 3] uint8, got {iuv.shape} {iuv.dtype}")
    write_rgb_png(path, iuv)


def write_instances_png(path: str | os.PathLike[str], instances: np.ndarray) -> None:
    """Writes the map of people's numbers as a PNG.

    For up to 255 people it has 8 bits and a palette, so that viewers show every person in the
    colour of `palette.PERSON_COLOURS`; Pillow reads the numbers from it, OpenCV the colours. For
    more people it is grey, of 16 bits.

    Args:
        path: Of the PNG.
        instances: [H, W] uint8 or uint16, as `paste_iuv` returns it.

    Raises:
        ValueError: not such a map.
        FileNotFoundError: the folder does not exist.
    """
    if instances.ndim != 2 or instances.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"instances must be [H, W] uint8 or uint16, got {instances.shape} {instances.dtype}"
        )
    picture = Image.fromarray(instances)
    if instances.dtype == np.uint8:
        picture.putpalette(PERSON_COLOURS.tobytes())
    _write_png(path, picture)


def write_labels_png(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Writes the patch of every pixel as a grey PNG of 8 bits, 0 (background) to 24.

    Args:
        path: Of the PNG.
        labels: [H, W] uint8.

    Raises:
        ValueError: not such a map.
        FileNotFoundError: the folder does not exist.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"labels must be [H, W] uint8, got {labels.shape} {labels.dtype}")
    _write_png(path, Image.fromarray(labels))


def write_rgb_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Writes a picture, uint8 RGB [H, W, 3], as a PNG file."""
    with atomic_files.replacing(path) as temporary:
        temporary.write_bytes(compress_png(pixels))


def _write_png(path: str | os.PathLike[str], picture: Image.Image) -> None:
    with atomic_files.replacing(path) as temporary:
        # Run lengths: for maps of few colours half the time of the default, and no longer files.
        picture.save(temporary, format="png", compress_type=zlib.Z_RLE)
