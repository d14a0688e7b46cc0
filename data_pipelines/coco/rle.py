"""Run-length masks as COCO writes them, decoded without trusting them.

A mask is a list of run lengths in column-major order, background first. Files hold the runs as a
list of integers or packed in a string: six bits a character, five of value and one "more follows",
and from the fourth run on the difference to the run two before.

pycocotools decodes the same masks but writes past its buffer when the runs do not fit the size, so
files from elsewhere are decoded here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_FIRST_CHARACTER = 48  # "0" stands for the value 0
_MAX_CHARACTERS = 8  # of one run; 35 bits of length are more than any image has pixels


class RleError(ValueError):
    """A run-length mask that does not describe a mask."""


def decode_counts(counts: str | bytes | Sequence[int]) -> np.ndarray:
    """Unpacks run lengths.

    Args:
        counts: packed string, or the run lengths themselves.

    Returns:
        [N] int64 run lengths, background first, all >= 0.

    Raises:
        RleError: another type, a character outside the packing's 64, a string cut inside a run, or
            a negative run.
    """
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise RleError("counts holds a character that the packing does not use") from error
    runs = _unpack(counts) if isinstance(counts, bytes) else _run_list(counts)
    if (runs < 0).any():
        raise RleError(f"run {int(np.argmax(runs < 0))} is negative")
    return runs


def _run_list(counts: Any) -> np.ndarray:
    if not isinstance(counts, list | tuple) or any(type(run) is not int for run in counts):
        raise RleError("counts is neither a string nor a list of integers")
    try:
        return np.asarray(counts, np.int64).reshape(-1)
    except OverflowError as error:
        raise RleError("a run is longer than any image") from error


def _unpack(packed: bytes) -> np.ndarray:
    if not packed:
        return np.zeros(0, np.int64)
    characters = np.frombuffer(packed, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if characters.min() < 0 or characters.max() > 63:
        raise RleError("counts holds a character that the packing does not use")
    is_last = (characters & 32) == 0
    if not is_last[-1]:
        raise RleError("counts ends inside a run")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise RleError("a run is longer than any image")
    place = np.arange(len(characters)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((characters & 31) << (5 * place), starts)
    runs -= np.where(characters[ends] & 16, np.int64(1) << (5 * lengths), 0)  # two's complement
    # From the fourth run on a difference to the run two before: two interleaved running sums.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def decode_rle(rle: Mapping[str, Any], size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes a COCO run-length mask.

    Args:
        rle: `{"size": [height, width], "counts": ...}`.
        size_hw: the size the mask must have; None takes the mask's own.

    Returns:
        [height, width] bool, True in the foreground.

    Raises:
        RleError: not such a mapping, another size than `size_hw`, or runs that do not add up to it.
    """
    height, width = rle_size(rle)
    if size_hw is not None and (height, width) != tuple(size_hw):
        raise RleError(f"size is {height}x{width}, not {size_hw[0]}x{size_hw[1]}")
    runs = decode_counts(rle["counts"])
    if runs.sum() != height * width:
        raise RleError(f"runs add up to {int(runs.sum())} pixels, size has {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def rle_size(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Reads (height, width) of a run-length mask; RleError where there is none to read."""
    if not isinstance(rle, Mapping) or "counts" not in rle:
        raise RleError("not an object with 'size' and 'counts'")
    size = rle.get("size")
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if not is_pair or any(type(side) is not int or not 0 < side <= 1 << 16 for side in size):
        raise RleError(f"size must be [height, width] in pixels, got {size!r}")
    return size[0], size[1]
