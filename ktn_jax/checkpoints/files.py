"""Reads and writes files of named arrays: the state dicts of PyTorch models, by file suffix.

Names and layouts are left as the file has them (convolutions OIHW); `checkpoints.torch_names` knows
what they mean. PyTorch is needed to write `.pth` only, and is imported then.
"""

import json
import math
import os
import pathlib
import pickle
import reprlib
import struct
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from ktn_jax.checkpoints import torch_files, torchscript
from ktn_jax.runtime import atomic_files, npz_files, pickles

_WRAPPERS = ("model", "state_dict", "blobs")  # detectron2, many training scripts, Caffe2
_PARALLEL_PREFIX = "module."  # what torch.nn.DataParallel puts in front of every name
_DUMP_PREFIX = "state/"  # a dump of a model's stages keeps its weights under this
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_MAX_HEADER_BYTES = 1 << 24
_MAX_ARRAYS = 50_000  # the largest of our models has some 700
_MAX_AXES = 64  # NumPy's
_SAFETENSORS_TYPES: dict[str, str | np.dtype] = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{"C64": "<c8", "BOOL": "bool", "BF16": _BFLOAT16},
}


_Function = TypeVar("_Function", bound=Callable[..., Any])


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the named arrays of a checkpoint.

    Args:
        path: By suffix: `.pth`, `.pt` (PyTorch, tensors only), `.torchscript` (or a `.pt` that is
            one), `.pkl` (detectron2's or Caffe2's dict of arrays), `.safetensors`, or `.npz` (if
            any name starts with `state/`, those entries only, without it).

    Returns:
        {name: array} in the file's order, types and shapes as stored: a scalar keeps its shape (),
        bfloat16 is `ml_dtypes.bfloat16`. A wrapping {"model": ...}, {"state_dict": ...} or
        {"blobs": ...} is taken off, and so is a `module.` in front of every name. Of Caffe2's
        blobs the optimiser's `*_momentum` are left out. Arrays may be read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown suffix, an empty or damaged file, or entries that are not arrays.
            `pickled_values.UnsafePickleError`, one of these, for a pickle that asks to run code.
    """
    path = pathlib.Path(path)
    read = _by_suffix(path, _READERS, "read")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the checkpoint file is empty")
    state = _unwrapped(path, read(path))
    if not state:
        raise ValueError(f"{path}: the checkpoint holds no arrays")
    others = [name for name, value in state.items() if not _is_numeric(value)]
    if others:
        raise ValueError(
            f"{path}: {len(others)} of {len(state)} entries are not arrays of numbers: "
            + ", ".join(f"{name[:100]} ({_kind(state[name])})" for name in others[:5])
        )
    if all(name.startswith(_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(_PARALLEL_PREFIX): value for name, value in state.items()}
    return {name: np.asarray(value) for name, value in state.items()}


def write_state_dict(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a checkpoint, replacing an older file only once all is written.

    Args:
        path: By suffix: `.safetensors` (the same arrays give the same bytes, whatever their order
            in `state`), `.pth`, `.pt` (PyTorch's {"model": tensors}) or `.pkl` (detectron2's
            {"model": arrays, "__author__": ...}, for NumPy 1.26 or newer).
        state: {name: array}, anything that `np.asarray` makes an array of numbers. Types and
            shapes are kept, memory order and byte order are not.

    Raises:
        FileNotFoundError: the folder does not exist.
        ImportError: a PyTorch file, and PyTorch is not installed.
        ValueError: unknown suffix, nothing to write, an entry that is not an array of numbers, or
            a bfloat16 array for `.pkl`, which has no name for that type.
    """
    path = pathlib.Path(path)
    write = _by_suffix(path, _WRITERS, "written")
    if not state:
        raise ValueError(f"{path}: there are no arrays to write")
    arrays = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name {name!r} is not text")
        array = np.asarray(value)
        if not _is_numeric(array):
            raise ValueError(f"{path}: {name} is not an array of numbers ({_kind(value)})")
        # Not ascontiguousarray: it would give a scalar an axis. safetensors writes memory in its
        # order, so a transposed view would come back scrambled.
        arrays[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    write(path, arrays)


def _by_suffix(path: pathlib.Path, table: Mapping[str, _Function], done: str) -> _Function:
    try:
        return table[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{path}: checkpoints are {done} as {', '.join(table)}, not {path.suffix or 'nothing'}"
        ) from None


def _is_numeric(value: Any) -> bool:
    if not isinstance(value, (np.ndarray, np.generic)):
        return False
    return value.dtype.kind in "biufc" or value.dtype == _BFLOAT16


def _kind(value: Any) -> str:
    is_array = isinstance(value, (np.ndarray, np.generic))
    return f"array of {value.dtype}" if is_array else type(value).__name__


def _unwrapped(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """Takes the dict of arrays out of the dicts around it."""
    while isinstance(content, dict):  # ends: no container holds itself
        inner = next((name for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = content[inner]
        if inner == "blobs":
            content = {k: v for k, v in content.items() if not str(k).endswith("_momentum")}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of named arrays")
    misnamed = [name for name in content if not isinstance(name, str)]
    if misnamed:
        raise ValueError(f"{path}: {reprlib.repr(misnamed[0])} is not the name of an array")
    return content


def _torch(path: pathlib.Path) -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: writing {path.suffix} files needs PyTorch. Install it with "
            "`pip install 'ktn_jax[torch]'`, or write a .safetensors or .pkl file"
        ) from error
    return torch


def _write_torch(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    torch = _torch(path)
    tensors = {}
    for name, array in arrays.items():
        is_bfloat16 = array.dtype == _BFLOAT16
        # A copy: torch shares memory, and warns when that is read-only.
        tensor = torch.from_numpy(np.array(array.view(np.int16) if is_bfloat16 else array))
        tensors[name] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    with atomic_files.replacing(path) as temporary:
        torch.save({"model": tensors}, temporary)


def _write_pickle(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype == _BFLOAT16:
            raise ValueError(
                f"{path}: {name} is bfloat16, which .pkl cannot hold: write .safetensors or .pth, "
                "or convert to float32 first"
            )
    with atomic_files.replacing(path) as temporary, open(temporary, "wb") as file:
        # detectron2 takes a file without an author for a Caffe2 one and guesses at its names.
        pickle.dump({"model": arrays, "__author__": "ktn_jax"}, file, protocol=4)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Maps the file: nothing is copied, and only what is used is read."""
    # The safetensors library copies: 1.1 s and 1.1 GiB of memory that belongs to the process for
    # the weights of KTN on a ResNet-50, where mapping takes 6 ms and pages that the system can
    # drop. It also takes minutes for a header of 100,000 names.
    try:
        content = np.memmap(path, np.uint8, mode="r")
        return _safetensors_arrays(content)
    except (ValueError, KeyError, TypeError, RecursionError, MemoryError, struct.error) as error:
        raise ValueError(
            f"{path}: damaged, or not a safetensors file: {error}. Get the file again"
        ) from error


def _safetensors_arrays(content: np.ndarray) -> dict[str, np.ndarray]:
    """Makes the arrays out of the file: the header's size, the header (JSON), their bytes."""
    (header_bytes,) = struct.unpack("<Q", content[:8].tobytes())
    if header_bytes > min(len(content) - 8, _MAX_HEADER_BYTES):
        raise ValueError(f"a header of {header_bytes} bytes")
    header = json.loads(bytes(content[8 : 8 + header_bytes]))
    if not isinstance(header, dict):
        raise ValueError("the header is no dict")
    header.pop("__metadata__", None)
    if len(header) > _MAX_ARRAYS:
        raise ValueError(f"{len(header)} arrays, more than {_MAX_ARRAYS}")
    data = content[8 + header_bytes :]
    state: dict[str, np.ndarray] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype, shape = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]]), tuple(entry["shape"])
            first, last = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name[:100]}: cannot be read ({reprlib.repr(entry)})") from error
        if len(shape) > _MAX_AXES or not all(_is_size(n) for n in (*shape, first, last)):
            raise ValueError(f"{name[:100]}: the shape or place is not made of whole numbers")
        size = math.prod(shape) * dtype.itemsize
        if last - first != size or last > len(data):
            raise ValueError(f"{name[:100]}: needs {size} bytes, {last - first} are there")
        spans.append((first, last))
        state[name] = np.asarray(data[first:last].view(dtype).reshape(shape))
    end = 0
    for first, last in sorted(spans):  # each byte belongs to one array
        if first != end:
            raise ValueError(f"the arrays overlap or leave a gap at byte {min(first, end)}")
        end = last
    if end != len(data):
        raise ValueError(f"{len(data)} bytes of arrays, of which {end} are used")
    return state


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import safetensors.numpy

    # One metadata entry only: their order in the file is not fixed. "pt" is what Python readers of
    # PyTorch weights look for.
    with atomic_files.replacing(path) as temporary:
        safetensors.numpy.save_file(
            dict(sorted(arrays.items())), temporary, metadata={"format": "pt"}
        )


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with npz_files.NpzFile(path) as stored:
        names = [name for name in stored if name.startswith(_DUMP_PREFIX)]
        if names:
            return {name.removeprefix(_DUMP_PREFIX): stored[name] for name in names}
        return dict(stored)


_READERS = {
    ".pth": torch_files.read,
    ".pt": torch_files.read,
    ".torchscript": torchscript.read_tensors,
    ".pkl": pickles.load_arrays,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
_WRITERS = {
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".pkl": _write_pickle,
}
