"""Writes files atomically: no reader finds, and no crash leaves, half a file."""

import contextlib
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, and moves it to `path` if the block succeeds.

    Args:
        path: The file to write. An older one is replaced in one step; its folder must exist.

    Yields:
        The temporary path, of an empty file: same folder, `path`'s suffix.

    Raises:
        FileNotFoundError: the folder does not exist. Errors inside the block propagate; the
            temporary file is then removed and an older file left as it was.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot write, there is no folder {path.parent}")
    # A part of the name, so that every name that a folder can hold leaves room for the rest.
    temporary = path.with_name(f".{path.stem[:32]}.{secrets.token_hex(6)}{path.suffix}")
    try:
        with open(temporary, "xb") as created:
            mode = stat.S_IMODE(os.fstat(created.fileno()).st_mode)
        yield temporary
        with open(temporary, "rb") as written:
            # safetensors puts a file of its own there, which only its owner can read.
            os.fchmod(written.fileno(), mode)
            os.fsync(written.fileno())  # else a power cut can leave the new name on an empty file
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def creating_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, which becomes `path` if the block succeeds.

    Args:
        path: The new folder; folders above it are made.

    Yields:
        A folder beside it.

    Raises:
        ValueError: something is at `path` already, other than an empty folder. Errors inside the
            block propagate; the temporary folder is then removed.
    """
    path = pathlib.Path(path)
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:32]}.{secrets.token_hex(6)}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Checks that a folder can be created, or is there and empty.

    Raises:
        ValueError: something else is there.
    """
    path = pathlib.Path(path)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is there already: give a new folder")


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a new name last through a power cut, where folders can be synchronised."""
    with contextlib.suppress(OSError):  # some systems cannot open folders; the file itself is whole
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
