"""Run-length masks as COCO writes them, decoded without trusting them.

A mask is a list of run lengths in column-major order, background first. Files hold the runs as a
list of integers or packed in a string: six bits a character, five of value and one "more follows",
and from the fourth run on the difference to the run two before.

pycocotools decodes the same masks but writes past its buffer, or does not terminate, when the runs
do not fit the size: pass it only masks that were checked here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_FIRST_CHARACTER = 48  # "0" stands for the value 0
# What the five bits of a run's only character stand for, in two's complement.
_ONE_CHARACTER = np.concatenate([np.arange(16), np.arange(-16, 0)])
_MAX_CHARACTERS = 7  # of one run; 35 bits of length are more than any image has pixels


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
    runs = _unpack(counts, [len(counts)])[0] if isinstance(counts, bytes) else _run_list(counts)
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


def _unpack(packed: bytes, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Unpacks the runs of masks whose strings are concatenated.

    Args:
        packed: all strings.
        lengths: of each mask's string, in characters; zero only if there is just one mask.

    Returns:
        The runs of all masks, and the index of each mask's first run.

    Raises:
        RleError: as `decode_counts`.
    """
    if not packed:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    characters = np.frombuffer(packed, np.uint8) - np.uint8(_FIRST_CHARACTER)  # wraps below
    if characters.max() > 63:
        raise RleError("counts holds a character that the packing does not use")
    is_last = characters < 32  # of its run
    stops = np.cumsum(lengths)
    if not is_last[stops - 1].all():
        raise RleError("counts ends inside a run")
    ends = np.flatnonzero(is_last)
    steps = _ONE_CHARACTER[characters[is_last]]
    follows_another = np.concatenate([[False], ~is_last[:-1]])
    long = np.flatnonzero(follows_another[is_last])
    steps[long] = _long_runs(characters, ends[long], ends[long - 1] * (long > 0) - (long == 0))
    firsts = np.concatenate([[0], np.searchsorted(ends, stops[:-1])])
    return _sum_differences(steps, firsts), firsts


def _long_runs(characters: np.ndarray, ends: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Reads runs of several characters, from after `before` to `ends`."""
    sizes = ends - before
    longest = int(sizes.max(initial=0))
    if longest > _MAX_CHARACTERS:
        raise RleError("a run is longer than any image")
    steps = np.zeros(len(ends), np.int64)
    for place in range(longest):
        here = sizes > place
        value = (characters[before[here] + 1 + place] & 31).astype(np.int64)
        steps[here] |= value << (5 * place)
    is_negative = (characters[ends] & 16) > 0
    runs: np.ndarray = steps - (is_negative * np.int64(1) << (5 * sizes))  # two's complement
    return runs


def _sum_differences(steps: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """From a mask's fourth run on, a step is the difference to the run two before."""
    runs = steps.copy()
    for parity in (0, 1):
        # Sums across all masks; the sum of the masks before is subtracted again.
        chain = runs[parity::2]
        np.cumsum(chain, out=chain)
    before = np.stack([runs[firsts], np.where(firsts > 0, runs[firsts - 1], 0)])
    before[:, firsts % 2 == 1] = before[::-1, firsts % 2 == 1]
    stops = np.append(firsts[1:], len(steps))
    for parity in (0, 1):
        count = (stops + 1 - parity) // 2 - (firsts + 1 - parity) // 2
        runs[parity::2] -= np.repeat(before[parity], count)
    runs[firsts] = steps[firsts]
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
    runs = _checked_runs(rle, size_hw)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def check_rle(rle: Mapping[str, Any], size_hw: tuple[int, int] | None = None) -> None:
    """Checks a mask as `decode_rle` does, without decoding it."""
    _checked_runs(rle, size_hw)


def _checked_runs(rle: Mapping[str, Any], size_hw: tuple[int, int] | None) -> np.ndarray:
    height, width = rle_size(rle)
    if size_hw is not None and (height, width) != tuple(size_hw):
        raise RleError(f"size is {height}x{width}, not {size_hw[0]}x{size_hw[1]}")
    runs = decode_counts(rle["counts"])
    if runs.sum() != height * width:
        raise RleError(f"runs add up to {int(runs.sum())} pixels, size has {height * width}")
    return runs


def are_packed_masks(rles: Iterable[Any], size_hw: tuple[int, int]) -> bool:
    """Tells whether all of some masks are packed and sound: faster than one `check_rle` each.

    Args:
        rles: values to check, each `{"size": [height, width], "counts": string}` if it is right.
        size_hw: the size they must have.

    Returns:
        False if one of them is not; `check_rle` finds out whether and what is wrong with it.
    """
    texts: list[str] = []
    for entry in rles:
        if not isinstance(entry, dict) or entry.get("size") not in ([*size_hw], size_hw):
            return False
        text = entry.get("counts")
        if not isinstance(text, str) or not text:
            return False
        texts.append(text)
    if not texts:
        return True
    try:
        runs, firsts = _unpack("".join(texts).encode("ascii"), list(map(len, texts)))
    except (UnicodeEncodeError, RleError):
        return False
    sums = np.add.reduceat(runs, firsts)
    return bool((runs >= 0).all() and (sums == size_hw[0] * size_hw[1]).all())


def rle_size(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Reads (height, width) of a run-length mask; RleError where there is none to read."""
    if not isinstance(rle, Mapping) or "counts" not in rle:
        raise RleError("not an object with 'size' and 'counts'")
    size: Any = rle.get("size")
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if not is_pair or any(type(side) is not int or not 0 < side <= 1 << 16 for side in size):
        raise RleError(f"size must be [height, width] in pixels, got {size!r}")
    return size[0], size[1]
