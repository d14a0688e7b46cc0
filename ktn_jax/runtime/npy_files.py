"""Writes and maps .npy files of tables that are larger than memory should hold."""

import os
import pathlib
from collections.abc import Iterable

import numpy as np


def write_blocks(
    path: pathlib.Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype | type,
) -> None:
    """Writes an array block by block; through a mapped file a full disk would end the process.

    Args:
        path: to write; use `atomic_files.replacing`.
        blocks: parts of the array, in C order, together as many values as `shape` says.
        shape: of the whole array.
        dtype: on disk.

    Raises:
        OSError: the disk is full.
        ValueError: the blocks are too few or too many.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    left = int(np.prod(shape, dtype=np.int64))
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            left -= block.size
            if left < 0:
                break
            file.write(np.ascontiguousarray(block, dtype).data)
    if left:
        raise ValueError(f"{path}: {abs(left)} values too {'few' if left > 0 else 'many'} came")


def open_mapped(path: str | os.PathLike[str], shape: tuple[int | None, ...]) -> np.ndarray:
    """Maps an .npy file of numbers into memory, read-only.

    Args:
        path: of the file.
        shape: that it must have; None for an axis of any length.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, or has another shape; the message names it.
    """
    try:
        table: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or no .npy file: {error!s:.300}") from error
    fits = len(table.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, table.shape, strict=True)
    )
    if not fits or table.dtype.kind != "f":
        raise ValueError(f"{path}: wanted floats {shape}, got {table.dtype} {table.shape}")
    return table
