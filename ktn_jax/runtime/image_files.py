"""Finds the image files that a command line names, and says what it passed over."""

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from ktn_jax.runtime.images import ImageError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff"),
    *(".webp", ".avif", ".heic", ".heif", ".ppm", ".pgm"),
)
_SHOWN = 3  # files named in a note
_DIGITS = re.compile("([0-9]+)")


@dataclasses.dataclass(frozen=True)
class FoundImages:
    """Image files, and a sentence about each kind of file that was passed over."""

    paths: list[pathlib.Path]
    notes: list[str]


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    recursive: bool = False,
    own_endings: tuple[str, ...] = (),
) -> FoundImages:
    """Lists the image files that a command line names.

    Args:
        inputs: Files (taken whatever their name), folders and globs (`**` goes into subfolders).
            `~` is the home folder.
        recursive: Search the subfolders of folders too, hidden ones excepted.
        own_endings: Ends of names of files that the caller writes, which are no input.

    Returns:
        Paths in the order of `inputs`, in natural order (frame2 before frame10) inside a folder or
        glob, each file once. In folders and globs, hidden files, other suffixes than
        `IMAGE_SUFFIXES` and the caller's own files are passed over; the notes say so.

    Raises:
        ImageError: an input is no file and matches no image. All such inputs are named.
    """
    search = _Search(recursive, own_endings)
    found: dict[pathlib.Path, pathlib.Path] = {}  # by real path, so that two ways to it are one
    unmatched = []
    for name in inputs:
        paths = search.expand(os.path.expanduser(name))
        if not paths:
            unmatched.append(os.fspath(name))
        for path in paths:
            found.setdefault(path.resolve(), path)
    notes = search.notes()
    if unmatched:
        message = (
            f"no image found at {', '.join(unmatched)}: give image files, folders or quoted globs "
            f"(looked for {' '.join(IMAGE_SUFFIXES)})"
        )
        raise ImageError("; ".join([message, *notes]))
    return FoundImages(list(found.values()), notes)


def natural_key(path: pathlib.PurePath) -> tuple[list[list[str | int]], str]:
    """Sorts paths as people do: numbers inside names by value, frame2 before frame10."""
    parts: list[list[str | int]] = []
    for part in path.parts:
        # Text and digits in turn, text first: the same places hold the same types.
        pieces = _DIGITS.split(part)
        parts.append([int(piece) if n % 2 else piece for n, piece in enumerate(pieces)])
    return parts, str(path)  # 01 and 1 are told apart


class _Search:
    """Expands inputs, and remembers by reason what it passed over."""

    def __init__(self, recursive: bool, own_endings: tuple[str, ...]):
        self._recursive = recursive
        self._own_endings = own_endings
        self._passed_over: dict[str, dict[str, None]] = {}

    def expand(self, name: str) -> list[pathlib.Path]:
        path = pathlib.Path(name)
        if path.is_file():  # before globbing: a file may well be called "beach [2].jpg"
            return [path]
        if path.is_dir():
            candidates = self._files_in(path, set())
        else:
            candidates = map(pathlib.Path, glob.glob(name, recursive=True))
        return sorted(filter(self._is_wanted, candidates), key=natural_key)

    def notes(self) -> list[str]:
        notes = []
        for reason, names in self._passed_over.items():
            shown = [*list(names)[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])]
            notes.append(f"passed over {reason} ({len(names)}): {', '.join(shown)}")
        return notes

    def _files_in(self, folder: pathlib.Path, visited: set[pathlib.Path]) -> Iterator[pathlib.Path]:
        visited.add(folder.resolve())
        for path in sorted(folder.iterdir()):
            if not path.is_dir():
                yield path
            elif path.name.startswith("."):
                continue
            elif not self._recursive:
                self._pass_over("subfolders, which --recursive searches", path)
            elif path.resolve() not in visited:  # links may lead round in a circle
                yield from self._files_in(path, visited)

    def _is_wanted(self, path: pathlib.Path) -> bool:
        if path.is_dir():
            return False
        is_image = path.suffix.lower() in IMAGE_SUFFIXES
        if path.is_symlink() and not path.exists():
            self._pass_over("links to files that do not exist", path)
        elif path.name.startswith("."):
            if is_image:  # of others it is expected
                self._pass_over("hidden images", path)
        elif path.name.endswith(self._own_endings):
            self._pass_over("files named like those that are written", path)
        elif not is_image:
            self._pass_over("files without an image's suffix", path)
        elif not path.is_file():
            self._pass_over("pipes, sockets and devices", path)
        else:
            return True
        return False

    def _pass_over(self, reason: str, path: pathlib.Path) -> None:
        self._passed_over.setdefault(reason, {})[str(path)] = None
