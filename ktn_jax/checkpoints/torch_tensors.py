"""Tensors in the pickles of PyTorch's files, made as arrays without PyTorch.

In a pickle a tensor is a storage, an offset, a shape and strides, and a storage is a reference to
bytes outside of the pickle. In zip archives, TorchScript's among them, `data.pkl` is the pickle and
`data/KEY` the bytes of each storage. PyTorch's own reader takes the sizes of storages from the
pickle, whatever there is in the file.
"""

import contextlib
import io
import math
import os
import types
import zipfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from ktn_jax.runtime import pickle_scan, pickled_values, pickles, zip_files
from ktn_jax.runtime.pickled_values import UnsafePickleError

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


class Storage:
    """Bytes that tensors share.

    Attributes:
        dtype: of the numbers.
        num_bytes: as the pickle declares it.
    """

    def __init__(self, dtype: np.dtype[Any], count: int):
        self.dtype = dtype
        self.num_bytes = count * dtype.itemsize
        self.data: Any = None

    def __setstate__(self, state: Any) -> None:
        # Without this, a pickle could set any attribute.
        raise UnsafePickleError("refused to change a storage")

    def fill(self, key: str, data: Any) -> None:
        """Takes the bytes.

        Raises:
            ValueError: there are more or fewer than declared.
        """
        if len(data) != self.num_bytes:
            raise ValueError(
                f"storage {key[:100]} of {self.num_bytes} bytes, {len(data)} are there"
            )
        self.data = data


class Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def find(self, reference: Any) -> Storage:
        """The storage of a reference.

        Args:
            reference: ("storage", type, key, device, number of elements), and once where a view
                began.

        Raises:
            ValueError: it is another one, or contradicts an earlier one.
        """
        if type(reference) is not tuple or len(reference) not in (5, 6):
            raise UnsafePickleError("refused a reference to something other than a storage")
        word, kind, key, _, count = reference[:5]
        dtype = _STORAGES.get(pickled_values.name_of(kind) or "")
        if type(word) is not str or word != "storage" or dtype is None or type(key) is not str:
            raise ValueError("a reference to something other than a storage of numbers")
        if reference[5:] not in ((), (None,)):
            raise ValueError("a view of a storage, as PyTorch wrote them before version 0.2")
        (count,) = pickled_values.checked_shape(count)
        if key not in self.by_key:
            self.by_key[key] = Storage(_DTYPES[dtype], count)
        storage = self.by_key[key]
        if (storage.dtype, storage.num_bytes) != (_DTYPES[dtype], count * storage.dtype.itemsize):
            raise ValueError(f"storage {key[:100]} of two sizes or types")
        return storage


class Tensor(pickled_values.Deferred):
    """A tensor as the pickle describes it.

    Attributes:
        storage: which its elements are in.
    """

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None):
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        self.storage = storage
        self._dtype = storage.dtype if dtype is None else dtype
        self._offset, self._shape, self._strides = offset, size, stride

    def resolve(self, copies: pickled_values.Copies) -> np.ndarray:
        """Makes the array."""
        return self.array()

    def array(self) -> np.ndarray:
        """Makes the array, a read-only view of its storage.

        Raises:
            ValueError: it does not fit into its storage.
        """
        shape = pickled_values.checked_shape(self._shape)
        strides = pickled_values.checked_shape(self._strides)
        if len(strides) != len(shape):
            raise ValueError(f"a tensor {shape} with {len(strides)} strides")
        (offset,) = pickled_values.checked_shape(self._offset)
        size = math.prod(shape) * self._dtype.itemsize
        if not size:
            return np.zeros(shape, self._dtype)
        if self.storage.data is None:
            raise ValueError("a tensor whose storage is not in the file")
        if size > self.storage.num_bytes + _MAX_REPEATED_BYTES:
            raise ValueError(
                f"a tensor of {size} bytes out of a storage of {self.storage.num_bytes}"
            )
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if (last + 1) * self._dtype.itemsize > self.storage.num_bytes:
            raise ValueError(f"a tensor of shape {shape} that is larger than its bytes")
        start = offset * self._dtype.itemsize
        steps = tuple(stride * self._dtype.itemsize for stride in strides)
        return np.ndarray(shape, self._dtype, self.storage.data, start, steps)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    # requires_grad, hooks and, if it is a conjugate or negative view, a dict that says so
    if len(rest) > 2 and rest[2]:
        raise UnsafePickleError("refused a conjugate or negative view of a tensor")
    return Tensor(storage, offset, size, stride)


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor:
    name = (pickled_values.name_of(dtype) or "").removeprefix("torch.")
    if name not in _DTYPES:
        raise UnsafePickleError(f"refused a tensor of type {name or 'unknown'}")
    if rest and rest[0]:
        raise UnsafePickleError("refused a conjugate or negative view of a tensor")
    return Tensor(storage, offset, size, stride, _DTYPES[name])


def _parameter(data: Any, *unused_grad_hooks_state: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _size(numbers: Any = ()) -> tuple[int, ...]:
    return pickled_values.checked_shape(tuple(numbers) if isinstance(numbers, list) else numbers)


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise ValueError("a device without a name")
    return kind if index is None else f"{kind}:{index}"


def _counter(counts: Any = None) -> dict[Any, Any]:
    if not isinstance(counts, dict):
        raise ValueError("a counter that is not made of a dict")
    return dict(counts)


_NAMES: pickles.Names = {
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


def unpickled(
    data: bytes,
    storages: Storages,
    more_names: pickles.Names = types.MappingProxyType({}),
    find_type: pickles.FindType | None = None,
) -> pickles.Pickle:
    """Unpickles what `pickle_scan.check` has passed; see `pickles.Pickle` for the names.

    Its tensors can be made once `storages`, which gets those it refers to, are filled.
    """
    names = {**_NAMES, **more_names}
    return pickles.Pickle(io.BytesIO(data), len(data), names, storages.find, find_type)


class Archive:
    """A zip archive of PyTorch.

    Attributes:
        is_torchscript: it holds a module with its code.
    """

    def __init__(self, archive: zipfile.ZipFile):
        names = set(archive.namelist())
        folders = {name.split("/")[0] for name in names if name.endswith("/data.pkl")}
        if len(folders) != 1:
            raise ValueError("a zip archive without one data.pkl")
        (self._folder,) = folders
        self._archive = archive
        self._has_byte_order = f"{self._folder}/byteorder" in names
        self.is_torchscript = f"{self._folder}/constants.pkl" in names

    def unpickled(
        self,
        more_names: pickles.Names = types.MappingProxyType({}),
        find_type: pickles.FindType | None = None,
        max_bytes: int | None = None,
    ) -> pickles.Pickle:
        """Unpickles `data.pkl` and reads the storages that it refers to.

        Args:
            more_names: beside those of tensors, see `pickles.Pickle`.
            find_type: see `pickles.Pickle`.
            max_bytes: of the pickle.

        Raises:
            ValueError: it is too large or damaged, a storage is not there or of another size, or
                all was written on a big-endian machine.
        """
        if self._has_byte_order and self._read("byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        size = self._archive.getinfo(f"{self._folder}/data.pkl").file_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"data.pkl has {size} bytes, more than that of any model")
        data = self._read("data.pkl")
        pickle_scan.check(data)
        storages = Storages()
        pickle = unpickled(data, storages, more_names, find_type)
        for key, storage in storages.by_key.items():
            storage.fill(key, self._read(f"data/{key}"))
        return pickle

    def _read(self, name: str) -> bytes:
        return self._archive.read(f"{self._folder}/{name}")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """Opens a zip archive of PyTorch.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, also where that shows later, or none; the file is not named.
    """
    try:
        with zip_files.opened(path) as archive:
            yield Archive(archive)
    except zip_files.DAMAGE as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        if error.errno is not None:  # the system's, not one of zipfile's
            raise
        raise ValueError(str(error)) from error
