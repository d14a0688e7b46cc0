"""Reads out of the text of a compiled program what devices exchange, and what is irregular."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8}
_BYTES |= {"f64": 8, "s32": 4, "u32": 4, "f32": 4}
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?\S+ = (.*?) (" + "|".join(KINDS) + r")(-start)?\(")
_IRREGULAR = re.compile(r"^\s*(?:ROOT )?%?\S+ = (.*?) (gather|scatter|sort|while)\(")
_TOP_K = re.compile(r'custom_call_target="TopK"')
_SLICES = re.compile(r"slice_sizes=\{([\d,]*)\}")
_KIND = re.compile(r"^\s*(?:ROOT )?%?\S+ = .*? ([a-z-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = 2**40  # estimates of the largest integers mean that there is none
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation in which devices exchange arrays."""

    kind: str  # one of KINDS
    arrays: tuple[tuple[str, int], ...]  # type and bytes of each result, on a device
    source: str  # the operation of the program that it comes from

    @property
    def num_bytes(self) -> int:
        """Bytes of all results, on a device."""
        return sum(size for _, size in self.arrays)


def collectives(hlo: str) -> Iterator[Collective]:
    """Finds the collectives of an optimised module's text; those in a loop's body count once."""
    for line in hlo.splitlines():
        found = _OPERATION.match(line)
        if found is None:
            continue
        arrays = [
            (kind, _size(kind, shape))
            for kind, shape in _ARRAY.findall(found[1])
            if (kind, shape) != ("u32", "")  # the handles of an asynchronous permutation
        ]
        if found[3] and found[2] != "all-reduce":
            # The result of an asynchronous operation holds its operands too, in front.
            arrays = arrays[len(arrays) // 2 :]
        source = _SOURCE.search(line)
        yield Collective(found[2], tuple(arrays), source[1] if source else "")


def irregular(hlo: str) -> dict[str, int]:
    """Counts operations that read, add or loop where only the running program knows.

    Args:
        hlo: an optimised module's text; operations in a loop's body count once.

    Returns:
        Numbers of "gather", "scatter", "sort", "while" and "TopK", and of "rows": the slices that
        all gathers read.
    """
    counts = dict.fromkeys(("gather", "scatter", "sort", "while", "TopK", "rows"), 0)
    for line in hlo.splitlines():
        counts["TopK"] += bool(_TOP_K.search(line))
        found = _IRREGULAR.match(line)
        if found is None:
            continue
        counts[found[2]] += 1
        sizes = _SLICES.search(line)
        if sizes is not None:
            ((_, shape),) = _ARRAY.findall(found[1])
            counts["rows"] += _number(shape) // max(_number(sizes[1]), 1)
    return counts


def estimated_cycles(hlo: str) -> dict[str, int]:
    """What a TPU's compiler expects of an optimised module's operations, those of loops once.

    Args:
        hlo: its text; gathers, scatters and sorts carry no estimate.

    Returns:
        Cycles by kind of operation, and of all together as "total"; 0 of other devices.
    """
    cycles = collections.Counter(total=0)
    for line in hlo.splitlines():
        found, kind = _CYCLES.search(line), _KIND.match(line)
        if found and kind and int(found[1]) < _UNKNOWN_CYCLES:
            cycles[kind[1]] += int(found[1])
            cycles["total"] += int(found[1])
    return dict(cycles)


def _size(kind: str, shape: str) -> int:
    return _BYTES[kind] * _number(shape)


def _number(sides: str) -> int:
    return math.prod(int(side) for side in filter(None, sides.split(",")))
