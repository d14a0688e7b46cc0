"""Writes files atomically: no reader finds, and no crash leaves, half a file."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, and moves it to `path` if the block succeeds.

    Args:
        path: The file to write. An older one is replaced in one step; its folder must exist.

    Yields:
        The temporary path: same folder, `path`'s suffix.

    Raises:
        FileNotFoundError: the folder does not exist. Errors inside the block propagate; the
            temporary file is then removed and an older file left as it was.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot write, there is no folder {path.parent}")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # else a power cut can leave the new name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
