"""Reads what devices exchange out of the text of a compiled program."""

import dataclasses
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


def _size(kind: str, shape: str) -> int:
    size = _BYTES[kind]
    for side in filter(None, shape.split(",")):
        size *= int(side)
    return size
