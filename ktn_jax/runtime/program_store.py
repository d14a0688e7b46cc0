"""Keeps programs that JAX has traced for later processes.

JAX finds a compiled program by the program's text, which every process makes anew: tracing a
detector takes a CPU as long as running it. Here the text is found by what it depends on.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import export

import ktn_jax
from ktn_jax.runtime import atomic_files, caches

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "ml_dtypes")
_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion")
_BUILT_IN = (dict, list, tuple, type(None))
_registered: set[type] = set()  # JAX refuses to register a class twice
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_MAX_BYTES = 2**29  # of all files; the largest detector has 4 MB of programs for a size of photos


class ProgramStore:
    """A folder of traced programs and of other texts that tracing gives.

    A text is found again while everything is the same that it depends on: the sources of this
    package, JAX, Flax and NumPy, JAX's options, the kind of device, and what the caller names. A
    folder that cannot be read or written, and files in it that are damaged, cost time only.
    """

    def __init__(self, folder: pathlib.Path | None = None):
        """Takes the folder; None for `programs` of our caches."""
        self._folder = caches.folder("programs") if folder is None else folder
        self._common = {
            "sources": _digest_of_sources(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **{name: str(getattr(jax.config, name)) for name in _OPTIONS},
            "device": [jax.default_backend(), jax.devices()[0].device_kind],
        }

    def jit(
        self, program: Callable[..., Any], settings: Mapping[str, Any], **options: Any
    ) -> "StoredProgram":
        """Makes a jitted function that is traced once by all processes, for shapes of arguments.

        Args:
            program: of arrays, or containers of arrays, on one device. Classes among them are known
                by `register`.
            settings: what the program depends on besides its arguments; values of JSON.
            **options: of `jax.jit`, such as donated arguments.

        Returns:
            The function. It may be called from several threads.
        """
        return StoredProgram(self, program, settings, options)

    def read_or_make(self, settings: Mapping[str, Any], make: Callable[[], bytes]) -> bytes:
        """Reads a text, or makes and keeps it.

        Args:
            settings: what it depends on; values of JSON.
            make: makes it.
        """
        key = hashlib.sha256(json.dumps([self._common, settings], sort_keys=True).encode())
        path = self._folder / key.hexdigest()
        text = _read(path)
        if text is None:
            text = make()
            self._write(path, text)
        return text

    def _write(self, path: pathlib.Path, text: bytes) -> None:
        # A full disk, a folder of somebody else: the next process traces again.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_files.replacing(path) as temporary:
                temporary.write_bytes(hashlib.sha256(text).digest() + text)
            _remove_oldest(path.parent)


class StoredProgram:
    """A jitted function that is traced once by all processes, see `ProgramStore.jit`."""

    def __init__(
        self,
        store: ProgramStore,
        program: Callable[..., Any],
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
    ):
        """Takes the arguments of `ProgramStore.jit`."""
        self._store, self._settings, self._options = store, settings, options
        self._program = jax.jit(program, **options)
        self._of_shapes: dict[Any, jax.stages.Wrapped] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        return self._of(arguments)(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Lowers the function for arguments, or for shapes and types, as `jax.jit` does."""
        return self._of(arguments).lower(*arguments)

    def _of(self, arguments: tuple[Any, ...]) -> jax.stages.Wrapped:
        """The function for arguments of some shapes."""
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        call = self._of_shapes.get((tree, shapes))
        if call is None:
            described = [str(tree), *((list(shape), str(dtype)) for shape, dtype in shapes)]
            text = self._store.read_or_make(
                {**self._settings, "arguments": described},
                lambda: bytes(export.export(self._program)(*arguments).serialize()),
            )
            call = jax.jit(export.deserialize(bytearray(text)).call, **self._options)
            self._of_shapes[tree, shapes] = call
        return call


def register(*classes: type) -> None:
    """Makes classes known that stored programs take or return, beside dicts, lists and tuples.

    Args:
        *classes: named tuples, and `flax.struct` classes whose values are all arrays or trees.

    Raises:
        TypeError: a class has another value, which a stored program would lose.
    """
    for one in classes:
        if one in _registered:
            continue
        name = f"{one.__module__}.{one.__qualname__}"
        if issubclass(one, tuple):
            export.register_namedtuple_serialization(one, serialized_name=name)
        else:
            struct: Any = one  # mypy takes what is left for a class of any kind
            fields = dataclasses.fields(struct)
            if not all(field.metadata.get("pytree_node", True) for field in fields):
                raise TypeError(f"{name} has values that are neither arrays nor trees")
            export.register_pytree_node_serialization(
                one,
                serialized_name=name,
                serialize_auxdata=lambda _: b"",
                deserialize_auxdata=lambda _: (),
            )
        _registered.add(one)


def classes_in(tree: Any) -> set[type]:
    """The classes of containers in a tree that `register` must know."""
    found: set[type] = set()
    nodes: list[Any] = [jax.tree.structure(tree)]
    while nodes:
        node = nodes.pop()
        nodes += node.children()
        data = node.node_data()
        if data is not None and data[0] not in _BUILT_IN:
            found.add(data[0])
    return found


def _read(path: pathlib.Path) -> bytes | None:
    """The text in a file; None if there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a folder of somebody else
        os.utime(path)
    checksum, text = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    return text if hashlib.sha256(text).digest() == checksum else None


def _remove_oldest(folder: pathlib.Path) -> None:
    """Removes the files that were not used for longest, down to `_MAX_BYTES`."""
    files = sorted(
        (
            (status.st_mtime, status.st_size, entry.path)
            for entry in os.scandir(folder)
            if (status := entry.stat(follow_symlinks=False))
        ),
        reverse=True,
    )
    total = 0
    for _, size, path in files:
        total += size
        if total > _MAX_BYTES:
            pathlib.Path(path).unlink(missing_ok=True)


def _digest_of_sources() -> str:
    """SHA-256 of the sources of this package: what is traced is as they say."""
    digest = hashlib.sha256()
    root = pathlib.Path(ktn_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()
