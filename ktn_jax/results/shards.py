"""Writes detections to disk while they are made, so that memory does not grow with the dataset.

Every process appends to a file of its own, one line an image. A stopped run can be resumed; the
lines of all processes are merged to one results file that has every image once, whatever the number
of processes.
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from ktn_jax.runtime.atomic_files import replacing

SHARD_PATTERN = "results-*.jsonl"
# The first field of a line, so that a large file is scanned without decoding its pictures.
_IMAGE_ID = re.compile(rb'\{"image_id": (-?\d+), "results": ')


class ShardError(ValueError):
    """Shards that do not belong to this run, or are damaged; the message names the file."""


class ResultsWriter:
    """Appends the detections of images to one process's shard.

    Example:
        with ResultsWriter(folder, run={"weights": name}) as writer:
            for image_id in ids:
                if image_id not in writer.done:
                    writer.add(image_id, entries)
        merge_results(folder, "results.json")
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        run: Mapping[str, Any],
        process_index: int = 0,
    ) -> None:
        """Opens the shard and reads which images are done.

        Args:
            folder: shared by all processes of the run.
            run: what the detections depend on (weights, configuration, data), as JSON values.
                Shards of another run are refused.
            process_index: of this process; one process writes one file.

        Raises:
            ShardError: the folder holds shards of another run.
        """
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"results-{process_index:05d}.jsonl"
        header = json.dumps({"run": run}, sort_keys=True).encode() + b"\n"
        self.done: set[int] = set()
        for path in sorted(self._folder.glob(SHARD_PATTERN)):
            for line in _complete_lines(path, header):
                self.done.add(_image_id_of(path, line))
        if self._path.exists():
            _cut_incomplete_line(self._path)
        self._handle = open(self._path, "ab")  # noqa: SIM115 (closed by close)
        if self._handle.tell() == 0:
            self._handle.write(header)
            self._handle.flush()

    def add(self, image_id: int, entries: Sequence[Mapping[str, Any]]) -> None:
        """Writes the detections of an image, all of them at once.

        Args:
            image_id: of the annotation file.
            entries: its detections in the DensePose-COCO results format; may be empty.

        Raises:
            ShardError: the image was written before, or an entry is of another image.
        """
        image_id = int(image_id)
        if image_id in self.done:
            raise ShardError(f"{self._path.name}: image {image_id} is already written")
        wrong = {e.get("image_id") for e in entries} - {image_id}
        if wrong:
            raise ShardError(f"entries of image {image_id} name images {sorted(wrong, key=str)}")
        text = json.dumps(list(entries), allow_nan=False)
        self._handle.write(b'{"image_id": %d, "results": %s}\n' % (image_id, text.encode()))
        self._handle.flush()
        self.done.add(image_id)

    def close(self) -> None:
        """Closes the shard."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def merge_results(folder: str | pathlib.Path, path: str | pathlib.Path) -> tuple[int, int]:
    """Merges the shards of a folder to one results file.

    Detections are ordered by image id, so that the file, and with it every score, does not depend
    on how the images were spread. An image that several processes wrote (the filled-up last batch)
    is taken once, from the shard of the lowest process.

    Args:
        folder: with the shards.
        path: of the results file to write; replaced only when it is complete.

    Returns:
        The number of images, and of the image lines left out because they were repeated.

    Raises:
        ShardError: there are no shards, or they come from different runs.
    """
    shards = sorted(pathlib.Path(folder).glob(SHARD_PATTERN))
    if not shards:
        raise ShardError(f"{folder}: no shards ({SHARD_PATTERN}) to merge")
    places: dict[int, tuple[pathlib.Path, int]] = {}
    repeated, header = 0, b""
    for shard in shards:
        if not header:
            with open(shard, "rb") as handle:
                first = handle.readline()
            header = first if first.endswith(b"\n") else b""
        offset = len(header)
        for line in _complete_lines(shard, header):
            repeated += _image_id_of(shard, line) in places
            places.setdefault(_image_id_of(shard, line), (shard, offset))
            offset += len(line)
    with contextlib.ExitStack() as stack:
        handles = {shard: stack.enter_context(open(shard, "rb")) for shard in shards}
        target = stack.enter_context(open(stack.enter_context(replacing(path)), "wb"))
        target.write(b"[")
        separator = b"\n"
        for image_id in sorted(places):
            shard, offset = places[image_id]
            handles[shard].seek(offset)
            for entry in _entries(shard, handles[shard].readline()):
                target.write(separator + json.dumps(entry).encode())
                separator = b",\n"
        target.write(b"\n]\n")
    return len(places), repeated


def _complete_lines(path: pathlib.Path, header: bytes) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        first = handle.readline()
        if not first.endswith(b"\n"):
            return  # stopped while it was created
        if first != header:
            raise ShardError(
                f"{path} was written by another run ({first[:200].decode(errors='replace').strip()}"
                f", this is {header[:200].decode().strip()}); take another folder or remove it"
            )
        for line in handle:
            if line.endswith(b"\n"):
                yield line


def _entries(path: pathlib.Path, line: bytes) -> list[Any]:
    try:
        return list(json.loads(line)["results"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ShardError(
            f"{path}: damaged in the line of image {_image_id_of(path, line)}: {error}; remove the "
            "line, and the same command finds its people again"
        ) from error


def _image_id_of(path: pathlib.Path, line: bytes) -> int:
    match = _IMAGE_ID.match(line)
    if match is None:
        raise ShardError(f"{path}: not a line of results: {line[:80]!r}")
    return int(match[1])


def _cut_incomplete_line(path: pathlib.Path) -> None:
    """Removes what a stopped process left of its last line."""
    with open(path, "r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(end - (1 << 16), 0)
            handle.seek(start)
            newline = handle.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            handle.truncate(end)
