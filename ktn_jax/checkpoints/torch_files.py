"""Reads what PyTorch saved, without PyTorch: nothing that the files ask for is run.

There are two formats: since PyTorch 1.6 a zip archive with a pickle and an entry for the bytes of
each storage; before, five pickles one after the other, and then the storages. TorchScript archives
look like the first format and are recognised here; `checkpoints.torchscript` reads them.
"""

import mmap
import os
import pathlib
import struct
from typing import Any

from ktn_jax.checkpoints import torch_tensors, torchscript
from ktn_jax.runtime import pickle_scan, pickles
from ktn_jax.runtime.pickled_values import UnsafePickleError

_ZIP_START = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001  # of the older format
_COUNT = struct.Struct("<q")


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a .pth or .pt file.

    Returns:
        What was saved: nested dicts, lists, tuples, text, numbers and None, with tensors as
        read-only arrays, `torch.Size` as tuples, and types and devices as text. Of TorchScript, the
        tensors by name.

    Raises:
        OSError: the file cannot be opened.
        UnsafePickleError: it asks for something other than plain data and plain tensors.
        ValueError: it is damaged, or no such file.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        start = file.read(len(_ZIP_START))
    try:
        with pickles.named_errors(str(path), "a PyTorch file"):
            if start != _ZIP_START:
                return _read_older(path)
            with torch_tensors.opened(path) as archive:
                if not archive.is_torchscript:
                    return archive.unpickled().resolve()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{error}. Save the model's state_dict() alone") from None
    return torchscript.read_tensors(path)


def _read_older(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    position = 0
    storages = torch_tensors.Storages()

    def following() -> pickles.Pickle:
        nonlocal position
        begin, position = position, pickle_scan.check(mapped, position)
        return torch_tensors.unpickled(mapped[begin:position], storages)

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
