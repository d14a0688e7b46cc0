"""Reads arrays of numbers, and cells of them, from MATLAB 5 files.

SciPy's reader trusts the file: a few changed bytes end the process with a segmentation fault. The
files that this project needs hold plain arrays, and cells of plain arrays, so this reads those and
nothing else, and checks every type and size against the bytes that are there. Format: "MAT-File
Level 5" in MATLAB's documentation of its file format.
"""

import dataclasses
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

_HEADER_BYTES = 128
_HDF5 = b"\x89HDF"
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_INTEGERS = (5, 6)  # element types of dimensions: some writers leave them unsigned
_CLASSES = {
    1: "a cell array", 2: "a structure", 3: "an object", 4: "text", 5: "a sparse matrix",
    16: "a function", 17: "an object",
}  # fmt: skip
_CELL, _OPAQUE = 1, 17
_NUMERIC = range(6, 16)
_COMPLEX_FLAG = 0x0800
# The published files hold some ten variables, the largest of 13 MB.
_MAX_FILE_BYTES = 1 << 30
_MAX_VARIABLE_BYTES = 1 << 28
_MAX_VARIABLES = 10_000
_MAX_AXES = 32
_HEAD_BYTES = 4096  # unpacked first, to see whether a compressed variable is one that is wanted

_Value = TypeVar("_Value")


class _Damaged(ValueError):
    """The file contradicts itself or the format."""


@dataclasses.dataclass(frozen=True)
class _Variable:
    """A variable of the file, of which only the description has been read."""

    name: str
    kind: int  # MATLAB's class
    is_complex: bool
    shape: tuple[int, ...]
    content: memoryview  # the elements after the name
    order: str  # byte order, "<" or ">"

    def describe(self) -> str:
        if self.kind in _NUMERIC:
            return "an array of complex numbers" if self.is_complex else "an array of numbers"
        return _CLASSES.get(self.kind, f"of an unknown class ({self.kind})")


def read_arrays(path: str | os.PathLike[str], fields: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Reads variables that are arrays of real numbers.

    Args:
        path: MATLAB 5 file, compressed or not (`save -v6`, `save -v7`, `scipy.io.savemat`).
        fields: names of the variables wanted. Others may be of any kind: they are passed over.

    Returns:
        {name: array} of two or more axes, of the types in which the numbers are stored, which may
        be narrower than MATLAB's class.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no MATLAB 5 file, or a variable is missing or of another kind;
            the message names the file and the variable.
    """
    return _read(path, fields, _array)


def read_cells(
    path: str | os.PathLike[str], fields: tuple[str, ...]
) -> dict[str, list[np.ndarray]]:
    """Reads variables that are cells of arrays of real numbers.

    Args:
        path: see `read_arrays`.
        fields: names of the variables wanted.

    Returns:
        {name: the arrays of its cells}, in MATLAB's order: the first axis runs fastest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_arrays`.
    """
    return _read(path, fields, _cells)


def whole_numbers(path: str | os.PathLike[str], field: str, array: np.ndarray) -> np.ndarray:
    """Takes an array of a file, which may hold them as floats, for indices.

    Args:
        path: the file, for messages.
        field: name of the variable, for messages.
        array: real numbers.

    Returns:
        The same as int64.

    Raises:
        ValueError: there are none, or one is no whole number of 32 bits.
    """
    limits = np.iinfo(np.int32)
    if not array.size:
        raise ValueError(f"{path}: {field} is empty")
    # The comparison is false for NaN, and keeps what has no int64 from the conversion.
    if (
        not ((array >= limits.min) & (array <= limits.max)).all()
        or (np.trunc(array) != array).any()
    ):
        raise ValueError(f"{path}: {field} must be whole numbers")
    return array.astype(np.int64)


def _read(
    path: str | os.PathLike[str], fields: tuple[str, ...], convert: Callable[[_Variable], _Value]
) -> dict[str, _Value]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    if os.path.getsize(path) > _MAX_FILE_BYTES:
        raise ValueError(f"{path}: larger than the {_MAX_FILE_BYTES >> 20} MiB that are read")
    with open(path, "rb") as file:
        data = file.read()
    found: dict[str, _Value] = {}
    try:
        for variable in _variables(memoryview(data), fields):
            try:
                found[variable.name] = convert(variable)
            except ValueError as error:
                raise _Damaged(f"variable {variable.name}: {error}") from error
    except (_Damaged, struct.error, zlib.error, MemoryError) as error:
        raise ValueError(
            f"{path}: not a readable MATLAB 5 file: {error}. Get it again, or save it with "
            "`save -v7` in MATLAB"
        ) from error
    missing = [field for field in fields if field not in found]
    if missing:
        raise ValueError(f"{path}: no field {', '.join(missing)}: is it the right file?")
    return found


def _variables(data: memoryview, fields: tuple[str, ...]) -> Iterator[_Variable]:
    """Yields the variables of the wanted names."""
    if bytes(data[:4]) == _HDF5 or b"MATLAB 7.3" in bytes(data[:32]):
        raise _Damaged("it is of version 7.3 (HDF5)")
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:_HEADER_BYTES]))
    if order is None:
        raise _Damaged("its first 128 bytes are not those of such a file")
    rest = data[_HEADER_BYTES:]
    for _ in range(_MAX_VARIABLES):
        if not rest:
            return
        kind, content, rest = _element(rest, order)
        if kind == _COMPRESSED:
            head = zlib.decompressobj().decompress(content, _HEAD_BYTES)
            variable = _describe(memoryview(head), order)
            if variable is None or variable.name not in fields:
                continue
            content = memoryview(_unpacked(content))
            kind, content, _ = _element(content, order)
        if kind != _MATRIX:
            raise _Damaged(f"an element of type {kind} where a variable should be")
        variable = _described(content, order)
        if variable is not None and variable.name in fields:
            yield variable
    raise _Damaged(f"more than {_MAX_VARIABLES} variables")


def _unpacked(packed: memoryview) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed, _MAX_VARIABLE_BYTES)
    if unpacker.unconsumed_tail:
        raise _Damaged(f"a variable of more than {_MAX_VARIABLE_BYTES >> 20} MiB")
    if not unpacker.eof:
        raise _Damaged("a compressed variable is cut short")
    return data


def _element(data: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Splits off an element: its type, its content, and what follows."""
    kind, size = struct.unpack_from(f"{order}II", data)
    if kind >> 16:  # a small element: type and size share the first word, four bytes follow
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if size > 4:
            raise _Damaged(f"a small element of {size} bytes")
    else:
        start = 8
        # All but compressed elements are filled up to a multiple of eight bytes.
        end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(data):
        raise _Damaged(f"cut short: an element of {size} bytes, {len(data) - start} are there")
    return kind, data[start : start + size], data[end:]


def _describe(head: memoryview, order: str) -> _Variable | None:
    """Describes a variable of which only the first bytes are at hand."""
    kind, _ = struct.unpack_from(f"{order}II", head)
    if kind != _MATRIX:
        raise _Damaged(f"an element of type {kind} where a variable should be")
    return _described(head[8:], order)


def _described(content: memoryview, order: str) -> _Variable | None:
    """Reads flags, dimensions and name; None for a kind of object that has no dimensions."""
    kind, flags_content, rest = _element(content, order)
    if kind != 6 or len(flags_content) != 8:
        raise _Damaged("a variable without flags")
    (flags,) = struct.unpack_from(f"{order}I", flags_content)
    matlab_class = flags & 0xFF
    if matlab_class == _OPAQUE:
        return None
    kind, dimensions, rest = _element(rest, order)
    num_axes = len(dimensions) // 4
    if kind not in _INTEGERS or len(dimensions) % 4 or not 2 <= num_axes <= _MAX_AXES:
        raise _Damaged("a variable whose dimensions cannot be read")
    shape = struct.unpack(f"{order}{num_axes}i", dimensions)
    if min(shape) < 0:
        raise _Damaged(f"a variable of shape {shape}")
    kind, name, rest = _element(rest, order)
    if kind not in (1, 2):
        raise _Damaged("a variable whose name cannot be read")
    return _Variable(
        name=bytes(name).decode("latin-1"),
        kind=matlab_class,
        is_complex=bool(flags & _COMPLEX_FLAG),
        shape=shape,
        content=rest,
        order=order,
    )


def _array(variable: _Variable) -> np.ndarray:
    if variable.kind not in _NUMERIC or variable.is_complex:
        raise _Damaged(f"wanted an array of real numbers, got {variable.describe()}")
    kind, content, _ = _element(variable.content, variable.order)
    if kind not in _TYPES:
        raise _Damaged(f"numbers of an unknown type ({kind})")
    dtype = np.dtype(variable.order + _TYPES[kind])
    size = math.prod(variable.shape) * dtype.itemsize
    if len(content) != size:
        raise _Damaged(
            f"shape {variable.shape} of {dtype.name} needs {size} bytes, {len(content)} are there"
        )
    flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(variable.shape, order="F")


def _cells(variable: _Variable) -> list[np.ndarray]:
    if variable.kind != _CELL:
        raise _Damaged(f"wanted a cell array, got {variable.describe()}")
    count = math.prod(variable.shape)
    if count > len(variable.content) // 8:  # every cell has a tag at least
        raise _Damaged(f"{count} cells in {len(variable.content)} bytes")
    arrays, rest = [], variable.content
    for index in range(count):
        kind, content, rest = _element(rest, variable.order)
        if kind != _MATRIX:
            raise _Damaged(f"cell {index} is no array")
        cell = _described(content, variable.order) if content else None  # empty: no description
        if cell is None:
            raise _Damaged(f"cell {index} holds no numbers")
        arrays.append(_array(cell))
    return arrays
