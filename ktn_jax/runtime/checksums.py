"""Checksums of the files in a folder: disks and copies change bits that no format notices.

CRC-32 (zlib's) finds every changed bit and all but one in four billion of larger changes, at more
than two gigabytes a second. It is no protection against intent.
"""

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Collection
from typing import Any

CHECKSUM_FILE = "checksums.json"
_ALGORITHM = "crc32"
_BLOCK = 1 << 22
_MAX_THREADS = 8


class ChecksumError(ValueError):
    """A file is missing or not as it was written; the message names it and says what differs."""


def file_checksum(path: str | os.PathLike[str]) -> int:
    """CRC-32 of a file's content."""
    value = 0
    block = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            value = zlib.crc32(block[:size], value)
    return value


def write_checksums(
    folder: str | os.PathLike[str], leave_out: Collection[str] = (CHECKSUM_FILE,)
) -> None:
    """Writes `checksums.json`: size and checksum of every file in a folder and its subfolders.

    Args:
        folder: its files do not change any more.
        leave_out: names of files that still do.
    """
    folder = pathlib.Path(folder)
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in leave_out
    )
    with concurrent.futures.ThreadPoolExecutor(_MAX_THREADS) as pool:  # zlib releases the GIL
        sums = pool.map(file_checksum, paths)
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, value]
        for path, value in zip(paths, sums, strict=True)
    }
    content = json.dumps({"algorithm": _ALGORITHM, "files": files})
    (folder / CHECKSUM_FILE).write_text(content, encoding="utf-8")


def check_files(folder: str | os.PathLike[str]) -> bool:
    """Compares the files of a folder with its `checksums.json`; files that it lacks may be there.

    Returns:
        False if there is nothing to compare with: the folder has no `checksums.json`.

    Raises:
        ChecksumError: a file is missing or not as it was written, or `checksums.json` is damaged.
    """
    folder = pathlib.Path(folder)
    source = folder / CHECKSUM_FILE
    if not source.is_file():
        return False
    try:
        content = json.loads(source.read_bytes())
        if content["algorithm"] != _ALGORITHM:
            raise ValueError(f"checksums of the kind {content['algorithm']!r:.100}")
        expected = {_inside(folder, name): _pair(value) for name, value in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ChecksumError(f"{source}: damaged: {error}") from error
    for path, (size, _) in expected.items():  # first, as it costs nothing
        if not path.is_file():
            raise ChecksumError(f"{path}: missing")
        if path.stat().st_size != size:
            raise ChecksumError(f"{path}: damaged, {path.stat().st_size} bytes instead of {size}")
    with concurrent.futures.ThreadPoolExecutor(_MAX_THREADS) as pool:
        for path, actual in zip(expected, pool.map(file_checksum, expected), strict=True):
            if actual != expected[path][1]:
                raise ChecksumError(f"{path}: damaged, it is not what was written (CRC-32)")
    return True


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    relative = pathlib.PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{name!r:.100} is not in the folder")
    return folder / relative


def _pair(value: Any) -> tuple[int, int]:
    size, checksum = value
    return size, checksum
