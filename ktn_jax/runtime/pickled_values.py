"""What a restricted unpickler makes: plain data, and records of arrays that are made afterwards.

Each listed name of a pickle records its arguments here, and the arrays are then rebuilt from their
bytes, of a checked type and size. Not even NumPy's own `__setstate__` sees the file's data, because
a hostile state can make it follow raw pointers. `runtime.pickles` reads the files.
"""

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from ktn_jax.runtime import pickle_scan

# Booleans, integers, floats, complex numbers and fixed-size text: what holds no Python objects.
_DTYPE_CODE = re.compile(r"[biufcSU][1-9]\d{0,8}")
_BYTE_ORDERS: tuple[Literal["<", ">", "=", "|"], ...] = ("<", ">", "=", "|")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)
_MAX_AXES = 64  # NumPy's


class UnsafePickleError(ValueError):
    """A pickle asks for something other than plain data and NumPy arrays of numbers or text."""


def _shown(value: Any) -> str:
    """A value of the file for a message: short, whatever it is."""
    return reprlib.repr(value)


class Copies:
    """Makes text and containers out of others, up to the size of the file in all.

    An honest file has each of them once; in a hostile one every byte can ask for another copy.
    """

    def __init__(self, num_bytes: int):
        self._left = num_bytes
        self._costly_keys = 0

    def charge(self, size: int) -> None:
        """Notes a copy of so many bytes or items.

        Raises:
            UnsafePickleError: all copies together are larger than the file.
        """
        self._left -= size
        if self._left < 0:
            raise UnsafePickleError("refused to copy the same data again and again")

    def encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """The form of bytes in protocols 0 to 2. `_codecs.encode` itself would run any codec."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError(
                f"refused _codecs.encode with {_shown(encoding)}: only latin1 is read"
            )
        self.charge(len(text))
        return text.encode("latin1")

    def bytearray(self, data: Any = b"", encoding: Any = "latin1") -> bytearray:
        """The builtin, of bytes or of latin-1 text."""
        if not isinstance(data, bytes):
            return bytearray(self.encode(data, encoding))
        self.charge(len(data))
        return bytearray(data)

    def set(self, items: Any = ()) -> set[Any]:
        """The builtin, of a list or tuple of members that are cheap to hash."""
        return set(self._members(items))

    def frozenset(self, items: Any = ()) -> frozenset[Any]:
        """The builtin, with members as in `set`."""
        return frozenset(self._members(items))

    def mapping(self, pairs: Any = ()) -> "_Mapping":
        """An ordered dict, of a list or tuple of pairs, with keys as the members of `set`."""
        if not isinstance(pairs, (list, tuple)):
            raise ValueError("an ordered dict that is not made of pairs")
        self.charge(len(pairs))
        made = _Mapping()
        for pair in pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise ValueError("an ordered dict that is not made of pairs")
            made[self._key(pair[0])] = pair[1]
        return made

    def _members(self, items: Any) -> Iterable[Any]:
        if not isinstance(items, (list, tuple)):
            raise ValueError(f"a set made of {type(items).__name__}")
        self.charge(len(items))
        return map(self._key, items)

    def _key(self, key: Any) -> Any:
        """Keeps what costs too much to hash from being hashed, as `pickle_scan` does."""
        if _is_plain_key(key):
            return key
        is_short = type(key) is tuple and len(key) <= pickle_scan.MAX_KEY_ITEMS
        # The hashes of tuples and of NumPy's numbers can be chosen, so that all collide.
        if type(key) is not _Scalar and not (is_short and all(map(_is_plain_key, key))):
            raise ValueError(
                f"a key or member {_shown(key)} that is neither text nor a number nor a short "
                "tuple of them"
            )
        self._costly_keys += 1
        if self._costly_keys > pickle_scan.MAX_COSTLY_KEYS:
            raise ValueError(
                f"more than {pickle_scan.MAX_COSTLY_KEYS} keys that are neither text nor numbers"
            )
        return key


def _is_plain_key(key: Any) -> bool:
    is_long = isinstance(key, int) and key.bit_length() > 64
    return not is_long and type(key) in (type(None), bool, int, float, str, bytes)


class Constructor:
    """What a pickle gets when it asks for a listed name: callable, and nothing else."""

    __slots__ = ("_build", "_name")
    _build: Callable[..., Any] | None
    _name: str

    def __init__(self, name: str, build: Callable[..., Any] | None):
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_build", build)

    def __call__(self, *arguments: Any) -> Any:
        if self._build is None:
            raise ValueError(f"{self._name} is called")
        try:
            return self._build(*arguments)
        except TypeError as error:
            raise ValueError(f"unexpected arguments to {self._name}: {error}") from None

    def __setattr__(self, attribute: str, value: Any) -> None:
        raise UnsafePickleError(f"refused to set {_shown(attribute)} on {self._name}")

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError(f"refused to change the state of {self._name}")


def name_of(value: Any) -> str | None:
    """The "module.name" of a name in an unresolved pickle; None for other values."""
    return value._name if isinstance(value, Constructor) else None


class _Mapping(dict[Any, Any]):
    """An ordered dict of the pickle. PyTorch hangs `_metadata` on such dicts: it is left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class Deferred:
    """A value that is made once everything is unpickled."""

    def __setstate__(self, state: Any) -> None:
        # Without this, a pickle could set any attribute.
        raise UnsafePickleError(f"refused to change a {type(self).__name__.strip('_')}")

    def resolve(self, copies: Copies) -> Any:
        """Makes it."""
        raise NotImplementedError


class _Dtype:
    """An array's type as the pickle describes it."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        self.code = code
        self.byte_order: Any = "="
        self._made: np.dtype[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, field names, fields, item size, alignment, flags, ...)
        if not isinstance(state, tuple) or len(state) < 5:
            raise ValueError("the state of an array type is not the expected tuple")
        if any(part is not None for part in state[2:5]):
            raise UnsafePickleError("refused an array of records: only numbers and text are read")
        self.byte_order = state[1]
        self._made = None

    def resolve(self) -> np.dtype[Any]:
        """The same for all arrays that share it, as those of a model do."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or not _DTYPE_CODE.fullmatch(self.code):
            raise UnsafePickleError(
                f"refused an array of type {_shown(self.code)}: only numbers and text are read"
            )
        for order in _BYTE_ORDERS:
            if isinstance(self.byte_order, str) and order == self.byte_order:
                return np.dtype(self.code).newbyteorder(order)
        raise ValueError(f"unknown byte order {_shown(self.byte_order)} of an array")


class _Array(Deferred):
    """An array as the pickle describes it: a type, a shape and bytes."""

    def __init__(self, *unused_subtype_shape_code: Any):
        self.parts: tuple[Any, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("the state of an array is not the expected tuple")
        shape, dtype, is_fortran, data = state[-4:]  # a version number stands in front since 2006
        self.parts = (data, dtype, shape, "F" if is_fortran else "C", None)

    def resolve(self, copies: Copies) -> Any:
        if self.parts is None:
            raise ValueError("an array without contents")
        data, dtype, shape, order, axis_order = self.parts
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a type")
        numpy_dtype = dtype.resolve()
        if isinstance(data, str):
            data = copies.encode(data)
        if not isinstance(data, (bytes, bytearray)):
            raise ValueError(f"the contents of an array are {type(data).__name__}, not bytes")
        shape = checked_shape(shape)
        size = math.prod(shape) * numpy_dtype.itemsize
        if len(data) != size:
            raise ValueError(
                f"an array of shape {shape} and type {numpy_dtype} needs {size} bytes, "
                f"{len(data)} are there"
            )
        flat = np.frombuffer(data, numpy_dtype) if size else np.zeros(math.prod(shape), numpy_dtype)
        flat.flags.writeable = False
        if axis_order is not None:
            return flat.reshape(shape).transpose(axis_order)
        return flat.reshape(shape, order="F" if order == "F" else "C")


class _Scalar(_Array):
    """A NumPy scalar: an array of no axes, read as its one element."""

    def __init__(self, dtype: Any, data: Any = b""):
        super().__init__()
        self.parts = (data, dtype, (), "C", None)

    def resolve(self, copies: Copies) -> Any:
        return super().resolve(copies)[()]


def _array_from_buffer(
    data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None
) -> _Array:
    """NumPy's form since pickle protocol 5. `shape` is that before the axes are put in order."""
    array = _Array()
    array.parts = (data, dtype, shape, order, axis_order if order == "K" else None)
    return array


def checked_shape(shape: Any) -> tuple[int, ...]:
    """A shape, or a ValueError: a tuple of whole numbers, or one of them."""
    if isinstance(shape, int):
        shape = (shape,)
    is_shape = isinstance(shape, tuple) and len(shape) <= _MAX_AXES
    if not is_shape or not all(isinstance(n, int) and 0 <= n < 1 << 63 for n in shape):
        raise ValueError(f"{_shown(shape)} is not the shape of an array")
    return tuple(shape)


def _empty_bytes() -> bytes:
    return b""


def _complex(real: float, imaginary: float = 0.0) -> complex:
    return complex(real, imaginary)


def constructors(copies: Copies) -> Mapping[tuple[str, str], Callable[..., Any]]:
    """What stands for each name of plain data and arrays, by module and name."""
    table: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,  # an argument of _reconstruct, which ignores it
        ("_codecs", "encode"): copies.encode,
        ("collections", "OrderedDict"): copies.mapping,
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
        table[f"{core}.multiarray", "_reconstruct"] = _Array
        table[f"{core}.multiarray", "scalar"] = _Scalar
        table[f"{core}.numeric", "_frombuffer"] = _array_from_buffer
    for builtins in ("builtins", "__builtin__"):  # Python 3 and 2
        table[builtins, "set"] = copies.set
        table[builtins, "frozenset"] = copies.frozenset
        table[builtins, "complex"] = _complex
        table[builtins, "bytes"] = _empty_bytes
        table[builtins, "bytearray"] = copies.bytearray
    return table


class Resolver:
    """Turns what was unpickled into arrays and plain containers, each shared object once."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        # By id: unique here, because what was unpickled stays alive until all is resolved.
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def resolve(self, value: Any) -> Any:
        """Makes a value and all that is in it.

        Raises:
            UnsafePickleError: a function or class as data, or an array of objects or records.
            ValueError: damaged, or a container that holds itself.
        """
        if type(value) in _PLAIN:
            return value
        number = id(value)
        if number in self._done:
            return self._done[number]
        if number in self._open:
            raise ValueError("a container that holds itself")
        self._open.add(number)
        result = self._done[number] = self._rebuild(value)
        self._open.remove(number)
        return result

    def _rebuild(self, value: Any) -> Any:
        if isinstance(value, Deferred):
            return value.resolve(self._copies)
        if isinstance(value, dict):
            return {self.resolve(key): self.resolve(item) for key, item in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)([self.resolve(item) for item in value])
        if isinstance(value, Constructor):
            if value._build is None:
                return value._name
            raise UnsafePickleError(f"refused a function or class as data: {value._name}")
        raise ValueError(f"unexpected data of type {type(value).__name__}")
