"""Reads .npz files: arrays of numbers or text, of checked sizes, and no Python objects."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np

from ktn_jax.runtime import zip_files

_SUFFIX = ".npy"
_MAX_HEADER_BYTES = 10_000  # NumPy's own default


class NpzFile(Mapping[str, np.ndarray]):
    """The arrays of an .npz file by name, each read when it is asked for; they are read-only."""

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the file and looks at the sizes that it declares.

        Raises:
            OSError: the file cannot be opened.
            ValueError: damaged, or no .npz file; so do the methods that read.
        """
        self.path = pathlib.Path(path)
        with contextlib.ExitStack() as opened:
            with self._named_errors():
                self._archive = opened.enter_context(zip_files.opened(path))
                self._entries = {
                    entry.filename.removesuffix(_SUFFIX): entry
                    for entry in self._archive.infolist()
                }
            self._opened = opened.pop_all()

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; arrays that were read stay."""
        self._opened.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without reading it

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        with self._named_errors(name), self._archive.open(entry) as stream:
            return _read_array(stream, entry.file_size)

    @contextlib.contextmanager
    def _named_errors(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno is not None:  # the system's: not there, not allowed, not readable
                raise
            raise self._damage(name, error) from error
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds on damaged files
            raise self._damage(name, error) from error

    def _damage(self, name: str, error: Exception) -> ValueError:
        reason = str(error)[:500] or type(error).__name__
        where = f"{name[:100]}: " if name else ""
        return ValueError(
            f"{self.path}: damaged, or not an .npz file: {where}{reason}. Get the file again"
        )


def _read_array(stream: IO[bytes], num_bytes: int) -> np.ndarray:
    """Reads an entry in the .npy format, whose header must agree with the entry's size."""
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # 3.0 is for fields with names outside of latin-1
        raise ValueError(f"an array in version {version} of the format")
    shape, is_fortran, dtype = readers[version](stream, max_header_size=_MAX_HEADER_BYTES)
    if dtype.hasobject:
        raise ValueError("an array of Python objects (read with allow_pickle=False)")
    size, left = math.prod(shape) * dtype.itemsize, num_bytes - stream.tell()
    if size != left:
        raise ValueError(f"an array {shape} of {dtype} needs {size} bytes, {left} are there")
    data = stream.read()
    if not size:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
