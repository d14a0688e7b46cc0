"""Reads the tensors of PyTorch's files without PyTorch: nothing that they ask for is run.

There are two formats: since PyTorch 1.6 a zip archive with a pickle, `data.pkl`, and an entry for
the bytes of each storage; before, five pickles one after the other, and then the storages. In the
pickle a tensor is a storage, an offset, a shape and strides. PyTorch's own reader takes the sizes
of storages from the pickle, whatever there is in the file. TorchScript archives look like the first
format and are recognised here; `checkpoints.torchscript` reads them.
"""

import io
import math
import mmap
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ktn_jax.checkpoints import torchscript
from ktn_jax.runtime import pickle_scan, pickles, zip_files

_ZIP_START = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001  # of the older format
_COUNT = struct.Struct("<q")
_DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
    **{f"int{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{name: np.dtype(name) for name in ("complex64", "complex128")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}
# A tensor that repeats its elements (`expand`) can ask for any size.
_MAX_REPEATED_BYTES = 1 << 24


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a .pth or .pt file.

    Returns:
        What was saved: nested dicts, lists, tuples, text, numbers and None, with tensors as
        read-only arrays, `torch.Size` as tuples, and types and devices as text. Of TorchScript, the
        tensors by name.

    Raises:
        OSError: the file cannot be opened.
        pickles.UnsafePickleError: it asks for something other than plain data and plain tensors.
        ValueError: it is damaged, or no such file.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        start = file.read(len(_ZIP_START))
    try:
        with pickles.named_errors(str(path), "a PyTorch file"):
            return _read_zip(path) if start == _ZIP_START else _read_older(path)
    except pickles.UnsafePickleError as error:
        raise pickles.UnsafePickleError(f"{error}. Save the model's state_dict() alone") from None


class _Storage:
    """Bytes that tensors share."""

    def __init__(self, dtype: np.dtype[Any], count: int):
        self.dtype = dtype
        self.num_bytes = count * dtype.itemsize  # as the pickle declares it
        self.data: Any = None

    def fill(self, key: str, data: Any) -> None:
        if len(data) != self.num_bytes:
            raise ValueError(
                f"storage {key[:100]} of {self.num_bytes} bytes, {len(data)} are there"
            )
        self.data = data


class _Tensor(pickles.Deferred):
    """A tensor as the pickle describes it."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None):
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        self._storage = storage
        self._dtype = storage.dtype if dtype is None else dtype
        self._offset, self._shape, self._strides = offset, size, stride

    def resolve(self, copies: Any) -> np.ndarray:
        shape = pickles.checked_shape(self._shape)
        strides = pickles.checked_shape(self._strides)
        if len(strides) != len(shape):
            raise ValueError(f"a tensor {shape} with {len(strides)} strides")
        (offset,) = pickles.checked_shape(self._offset)
        size = math.prod(shape) * self._dtype.itemsize
        if not size:
            return np.zeros(shape, self._dtype)
        if self._storage.data is None:
            raise ValueError("a tensor whose storage is not in the file")
        if size > self._storage.num_bytes + _MAX_REPEATED_BYTES:
            raise ValueError(
                f"a tensor of {size} bytes out of a storage of {self._storage.num_bytes}"
            )
        steps = tuple(stride * self._dtype.itemsize for stride in strides)
        # Refuses what reaches beyond the buffer.
        return np.ndarray(
            shape, self._dtype, self._storage.data, offset * self._dtype.itemsize, steps
        )


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    # requires_grad, hooks and, if it is a conjugate or negative view, a dict that says so
    if len(rest) > 2 and rest[2]:
        raise pickles.UnsafePickleError("refused a conjugate or negative view of a tensor")
    return _Tensor(storage, offset, size, stride)


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> _Tensor:
    name = (pickles.name_of(dtype) or "").removeprefix("torch.")
    if name not in _DTYPES:
        raise pickles.UnsafePickleError(f"refused a tensor of type {name or 'unknown'}")
    if rest and rest[0]:
        raise pickles.UnsafePickleError("refused a conjugate or negative view of a tensor")
    return _Tensor(storage, offset, size, stride, _DTYPES[name])


def _parameter(data: Any, *unused_grad_hooks_state: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _size(numbers: Any = ()) -> tuple[int, ...]:
    return pickles.checked_shape(tuple(numbers) if isinstance(numbers, list) else numbers)


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise ValueError("a device without a name")
    return kind if index is None else f"{kind}:{index}"


def _counter(counts: Any = None) -> dict[Any, Any]:
    if not isinstance(counts, dict):
        raise ValueError("a counter that is not made of a dict")
    return dict(counts)


_NAMES: Mapping[tuple[str, str], Callable[..., Any] | None] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("collections", "Counter"): _counter,
    **{("torch", name): None for name in _DTYPES},
    **{(name.rpartition(".")[0], name.rpartition(".")[2]): None for name in _STORAGES},
}


class _Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, _Storage] = {}

    def find(self, reference: Any) -> _Storage:
        # ("storage", type, key, device, number of elements), and once where a view began
        if type(reference) is not tuple or len(reference) not in (5, 6):
            raise ValueError("a reference to something other than a storage")
        word, kind, key, _, count = reference[:5]
        dtype = _STORAGES.get(pickles.name_of(kind) or "")
        if type(word) is not str or word != "storage" or dtype is None or type(key) is not str:
            raise ValueError("a reference to something other than a storage of numbers")
        if reference[5:] not in ((), (None,)):
            raise ValueError("a view of a storage, as PyTorch wrote them before version 0.2")
        (count,) = pickles.checked_shape(count)
        if key not in self.by_key:
            self.by_key[key] = _Storage(_DTYPES[dtype], count)
        storage = self.by_key[key]
        if (storage.dtype, storage.num_bytes) != (_DTYPES[dtype], count * storage.dtype.itemsize):
            raise ValueError(f"storage {key[:100]} of two sizes or types")
        return storage


def _read_zip(path: pathlib.Path) -> Any:
    try:
        with zip_files.opened(path) as archive:
            names = set(archive.namelist())
            folders = {name.split("/")[0] for name in names if name.endswith("/data.pkl")}
            if len(folders) != 1:
                raise ValueError("a zip archive without one data.pkl")
            (folder,) = folders
            if f"{folder}/constants.pkl" in names:
                return torchscript.read_tensors(path)
            if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
                raise ValueError("written on a big-endian machine")
            data = archive.read(f"{folder}/data.pkl")
            pickle_scan.check(data)
            storages = _Storages()
            content = _unpickled(data, storages.find)
            for key, storage in storages.by_key.items():
                storage.fill(key, archive.read(f"{folder}/data/{key}"))
    except zip_files.DAMAGE as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno is not None:  # the system's, not one of zipfile's
            raise
        raise ValueError(str(error)) from error
    return content.resolve()


def _read_older(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    position = 0
    storages = _Storages()

    def following() -> pickles.Pickle:
        nonlocal position
        begin, position = position, pickle_scan.check(mapped, position)
        return _unpickled(mapped[begin:position], storages.find)

    if following().resolve() != _MAGIC or following().resolve() != _VERSION:
        raise ValueError("it does not begin as PyTorch's files do")
    system = following().resolve()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("written on a big-endian machine")
    content, keys = following(), following().resolve()
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise ValueError("no list of storages")
    data = memoryview(mapped)  # the storages share its memory
    for key in keys:
        if key not in storages.by_key:
            raise ValueError(f"storage {key[:100]} that nothing refers to")
        storage = storages.by_key[key]
        (count,) = _COUNT.unpack_from(data, position)
        position += _COUNT.size
        if count * storage.dtype.itemsize != storage.num_bytes:
            raise ValueError(f"storage {key[:100]} of two sizes")
        storage.fill(key, data[position : position + storage.num_bytes])
        position += storage.num_bytes
    return content.resolve()


def _unpickled(data: bytes, find_outside: Callable[[Any], Any]) -> pickles.Pickle:
    return pickles.Pickle(io.BytesIO(data), len(data), _NAMES, find_outside)
