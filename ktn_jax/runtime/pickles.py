"""Reads pickles of plain data and NumPy arrays without running anything that they ask for.

Pre-trained weights (detectron2, Caffe2), geodesic distances and relation graphs are published as
pickles, and an ordinary unpickler calls any function that the file names. This one knows a dozen
names and none of them reaches NumPy or another library; `runtime.pickled_values` has what they make
instead.
"""

import contextlib
import io
import mmap
import os
import pickle
import struct
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

from ktn_jax.runtime import pickle_scan
from ktn_jax.runtime.pickled_values import (
    Constructor,
    Copies,
    Resolver,
    UnsafePickleError,
    constructors,
)

# {(module, name): what calls of it make}; None where it must not be called and is data itself.
Names: TypeAlias = Mapping[tuple[str, str], Callable[..., Any] | None]
# Maps (module, name) to a type, or to None where there is none.
FindType: TypeAlias = Callable[[str, str], type | None]

# What a damaged stream makes the unpickler raise. It runs no code of the file's, so no other error
# can come from it.
_DAMAGE = (
    pickle.UnpicklingError,
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


def load_arrays(source: str | os.PathLike[str] | BinaryIO) -> Any:
    """Reads a pickle of plain data and NumPy arrays.

    Pickles of Python 2 (`str` as latin-1 bytes) and 3, of NumPy 1 and 2, and of protocols 0 to 5
    are read.

    Args:
        source: Path, or an open binary file, which is read from its current position.

    Returns:
        The pickled value: nested dicts, lists, tuples, sets, text, bytes, numbers, None and arrays.
        Ordered dicts come back as dicts. Arrays are read-only: they share the memory of the bytes
        that were read, since some of these files are larger than a gigabyte.

    Raises:
        UnsafePickleError: the file asks for a function or class that is not on the short list, or
            for an array of Python objects. The message names the file and what it asked for.
        ValueError: the file is no pickle, is cut short or is damaged.
        OSError: the file cannot be opened.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with open(source, "rb") as file:
            return _load(name, file, lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    data = source.read()
    return _load(str(getattr(source, "name", "<file object>")), io.BytesIO(data), lambda: data)


def _load(name: str, file: BinaryIO, view: Callable[[], pickle_scan.Data]) -> Any:
    with named_errors(name, "a pickle"):
        data = view()
        try:
            pickle_scan.check(data)
            pickle_ = Pickle(file, len(data))
        finally:
            if isinstance(data, mmap.mmap):
                data.close()
        return pickle_.resolve()


@contextlib.contextmanager
def named_errors(name: str, kind: str) -> Iterator[None]:
    """Puts the file's name before what is wrong with a pickle in it.

    Args:
        name: of the file.
        kind: what it should be, with its article.

    Raises:
        UnsafePickleError, ValueError: instead of what damage makes the unpickler raise.
    """
    try:
        yield
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{name}: {error}") from None
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{name}: not {kind}, or a damaged one: {reason}. Get the file again"
        ) from error


class Pickle:
    """A pickle that `pickle_scan.check` has passed, unpickled but for its arrays.

    Attributes:
        content: the pickled value, with `pickled_values.Deferred` in the place of arrays.
    """

    def __init__(
        self,
        file: BinaryIO,
        num_bytes: int,
        more_names: Names = types.MappingProxyType({}),
        find_outside: Callable[[Any], Any] | None = None,
        find_type: FindType | None = None,
    ):
        """Unpickles.

        Args:
            file: the pickle is read from its position on.
            num_bytes: of the pickle.
            more_names: beside those of plain data and arrays.
            find_outside: makes the objects that the pickle refers to and that lie outside of it.
            find_type: finds types for names that are not listed. A pickle makes objects of them by
                `__new__` and changes these by `__setstate__`, which must both expect anything.

        Raises:
            UnsafePickleError: it asks for another name.
        """
        self._copies = Copies(num_bytes)
        names = {**constructors(self._copies), **more_names}
        self.content = _RestrictedUnpickler(file, names, find_outside, find_type).load()

    def resolve(self) -> Any:
        """The pickled value, its arrays made."""
        return Resolver(self._copies).resolve(self.content)


class _RestrictedUnpickler(pickle.Unpickler):
    """Finds the names that are listed and refuses every other one."""

    def __init__(
        self,
        file: BinaryIO,
        names: Names,
        find_outside: Callable[[Any], Any] | None,
        find_type: FindType | None,
    ):
        # Python 2 pickled array bytes as str: latin-1 maps them to text and back without loss.
        super().__init__(file, encoding="latin1")
        self._names = names
        self._find_outside = find_outside
        self._find_type = find_type

    def find_class(self, module: str, name: str) -> Constructor | type:
        # Names arrive as the file spells them. A dotted one ("ndarray.tofile") is just another
        # name that is not listed: nothing here ever follows an attribute.
        if (module, name) in self._names:
            return Constructor(f"{module}.{name}", self._names[module, name])
        found = self._find_type(module, name) if self._find_type is not None else None
        if found is None:
            raise UnsafePickleError(
                f"refused the pickle's request for {module[:100]}.{name[:100]}: only plain data "
                "and NumPy arrays are read, so that a pickle cannot run code"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self._find_outside is not None:
            return self._find_outside(pid)
        raise UnsafePickleError(
            "refused a reference to an object outside the pickle: this is a PyTorch file, which "
            "takes the suffix .pth, or no pickle at all"
        )
