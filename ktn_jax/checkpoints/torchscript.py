"""Reads the parameters of TorchScript archives; neither their code nor PyTorch is run.

An archive is a zip file: `data.pkl` is a pickle of the module and of those inside it, `data/N` are
the bytes of its tensors, and `code/` is a program, which is left alone.
"""

import io
import math
import pathlib
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from ktn_jax.runtime import pickle_scan, zip_files
from ktn_jax.runtime.pickles import Constructor, UnsafePickleError

_STORAGES: dict[str, Any] = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_MAX_TENSORS = 50_000
_MAX_DEPTH = 50  # of modules within each other
_MAX_PICKLE_BYTES = 1 << 26  # of a model of this kind it has some 100,000
_DAMAGE = (
    pickle.UnpicklingError,
    *zip_files.DAMAGE,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the parameters and buffers of a scripted or traced module.

    Args:
        path: the archive.

    Returns:
        {name: array}, names such as those of the module's state dict. A detectron2 model that was
        exported inside of another module loses the name of the latter.

    Raises:
        UnsafePickleError: the pickle asks for something other than modules and tensors.
        ValueError: a damaged file, no TorchScript, or a module without parameters, as frozen ones
            are. The message names the file.
        OSError: the file cannot be opened.
    """
    try:
        with zip_files.opened(path) as archive:
            tensors = _read(archive)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except _DAMAGE as error:
        reason = str(error)[:500] or type(error).__name__
        raise ValueError(f"{path}: no TorchScript archive, or a damaged one: {reason}") from error
    if not tensors:
        raise ValueError(
            f"{path}: this module has no parameters. A frozen one (torch.jit.freeze) keeps them "
            "without their names: get the file from before"
        )
    return _without_wrapper(tensors)


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(names) != 1:
        raise ValueError("it has no data.pkl")
    root = names[0].removesuffix("data.pkl")
    if archive.getinfo(names[0]).file_size > _MAX_PICKLE_BYTES:
        raise ValueError("its data.pkl is larger than that of any model")
    if f"{root}byteorder" in archive.namelist() and sys.byteorder == "little":
        if archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
    data = archive.read(names[0])
    pickle_scan.check(data)
    storages = _Storages(archive, root)
    module = _Unpickler(io.BytesIO(data)).load()
    if not isinstance(module, _Module):
        raise ValueError(f"it holds a {type(module).__name__}, no module")
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in _tensors(module, "", ()):
        tensors[name] = tensor.read(storages)
        if len(tensors) > _MAX_TENSORS:
            raise ValueError(f"more than {_MAX_TENSORS} tensors")
    return tensors


def _tensors(
    module: "_Module", prefix: str, outer: tuple[int, ...]
) -> Iterator[tuple[str, "_Tensor"]]:
    """The tensors of a module and of those inside it, by their names."""
    if id(module) in outer or len(outer) > _MAX_DEPTH:
        raise ValueError("modules within each other without end")
    for name, value in module.attributes.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", (*outer, id(module)))


def _without_wrapper(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the name of the outer module off where the detector is one module of several."""
    prefixes = {
        name[: match.start()] for name in tensors if (match := re.search(r"backbone\.", name))
    }
    if len(prefixes) != 1:
        return tensors
    (prefix,) = prefixes
    return {name.removeprefix(prefix): array for name, array in tensors.items()}


class _Module:
    """A module of the archive: its attributes, whatever its class."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __new__(cls, *arguments: Any) -> "_Module":
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ValueError("the state of a module is not a dict of attributes")
        self.attributes = state


class _Record:
    """What a pickle cannot change once it is made."""

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError(f"refused to change a {type(self).__name__.strip('_')}")


class _StorageType(_Record):
    """The type of a storage, as its name says."""

    def __init__(self, dtype: np.dtype[Any]):
        self.dtype = dtype


class _Storage(_Record):
    """The bytes of tensors, by name: ("storage", type, key, device, number of elements)."""

    def __init__(self, reference: Any):
        self.reference = reference


class _Storages:
    """The bytes of tensors, each read once."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        self._read: dict[str, np.ndarray] = {}

    def find(self, storage: Any) -> np.ndarray:
        """The numbers of one storage."""
        reference = storage.reference if isinstance(storage, _Storage) else None
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise UnsafePickleError("refused a reference to something other than a tensor's bytes")
        _, kind, key, _, count = reference
        if not isinstance(kind, _StorageType) or not re.fullmatch(r"\d{1,9}", str(key)):
            raise ValueError("a tensor whose bytes are not named")
        if key not in self._read:
            name = f"{self._root}data/{key}"
            array = np.frombuffer(self._archive.read(name), kind.dtype)
            if array.size != count:
                raise ValueError(f"{name} holds {array.size} numbers, not {count}")
            self._read[key] = array
        return self._read[key]


class _Tensor(_Record):
    """A tensor as the pickle describes it."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self._parts = storage, offset, shape, strides

    def read(self, storages: _Storages) -> np.ndarray:
        """Makes the array."""
        storage, offset, shape, strides = self._parts
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ValueError("a tensor of no shape")
        numbers = (offset, *shape, *strides)
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError("a tensor of no shape")
        values = storages.find(storage)
        count = math.prod(shape)
        if not count:
            return np.zeros(shape, values.dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # Overlapping views could be larger than all of the file.
        if last >= values.size or count > values.size:
            raise ValueError("a tensor that is larger than its bytes")
        steps = [stride * values.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, steps)
        return np.array(view, order="C")


def _contents(value: Any = None, *_: Any) -> Any:
    """What lists and dicts go through that have types of their own in TorchScript."""
    if not isinstance(value, list | dict):  # tuples could become keys that take endless to hash
        raise ValueError(f"a {type(value).__name__} where TorchScript has a list or a dict")
    return value


def _no_hooks(*_: Any) -> dict[Any, Any]:
    return {}


class _Unpickler(pickle.Unpickler):
    """Makes modules and tensors, as records, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Constructor(name, _Tensor)
        if (module, name) == ("collections", "OrderedDict"):
            return Constructor(name, _no_hooks)
        if module == "torch.jit._pickle":  # build_intlist, restore_type_tag and their like
            return Constructor(name, _contents)
        raise UnsafePickleError(
            f"refused the archive's request for {module[:100]}.{name[:100]}: only modules and "
            "tensors are read, so that an archive cannot run code"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple):  # text: what follows has not been scanned
            raise UnsafePickleError("refused a reference to something other than a tensor's bytes")
        return _Storage(pid)
