"""The videos that a command line names: files, folders of frames, streams and cameras."""

import dataclasses
import functools
import glob
import os
import pathlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

from ktn_jax.inference.photo_names import as_text, output_names
from ktn_jax.runtime import image_files, video_sources
from ktn_jax.runtime.addresses import is_address, without_secrets
from ktn_jax.runtime.video_frames import DEFAULT_RATE, Video, VideoError


@dataclasses.dataclass(frozen=True)
class VideoInput:
    """A video that can be opened.

    Attributes:
        name: for messages and records, without passwords.
        stem: what names of output files begin with, unless another one has it.
        open: opens it.
        files: what it is read from; empty for streams and cameras.
        sound: the file whose sound goes with it, if there is any.
        facts: JSON values that differ where another video is meant.
    """

    name: str
    stem: str
    open: Callable[[], Video]
    files: tuple[pathlib.Path, ...] = ()
    sound: pathlib.Path | None = None
    facts: tuple[Any, ...] = ()


def has_videos(inputs: Sequence[str]) -> bool:
    """Whether inputs of a command are videos by their names; see `find_videos`.

    Raises:
        VideoError: some are, others are not.
    """
    videos = [name for name in inputs if video_sources.is_video_name(name)]
    if videos and len(videos) < len(inputs):
        other = next(name for name in inputs if name not in videos)
        raise VideoError(
            f"{videos[0]} is a video and {other} is not: give videos and photos to commands of "
            "their own, or take all for videos (--as-video)"
        )
    return bool(videos)


def find_videos(
    inputs: Sequence[str], rate: Fraction = DEFAULT_RATE, camera: int | None = None
) -> list[VideoInput]:
    """Lists the videos that a command line names, each once.

    Args:
        inputs: files, globs, addresses of streams; folders of image files, and patterns such as
            frames/%05d.png, which are a video each.
        rate: of image files, frames a second.
        camera: number of a camera, which comes first; None for none.

    Raises:
        VideoError: an input is not there.
    """
    found: dict[str, VideoInput] = {}
    if camera is not None:
        found[""] = _camera(camera)
    for given in inputs:
        if is_address(given):
            found.setdefault(given, _stream(given))
            continue
        name = os.path.expanduser(given)
        paths = [pathlib.Path(name)]
        if glob.has_magic(name) and not os.path.lexists(name):
            matching = [pathlib.Path(match) for match in glob.glob(name, recursive=True)]
            paths = [path for path in matching if path.is_file() or path.is_dir()]
            paths.sort(key=image_files.natural_key)
        if not paths:
            raise VideoError(f"{given}: no file is there")
        for path in paths:
            found.setdefault(str(path.resolve()), _at_path(path, rate))
    return list(found.values())


def names_of(videos: Sequence[VideoInput]) -> list[str]:
    """What the names of each video's output files begin with, numbered where two are the same."""
    # A suffix, so that a dot in the stem is none.
    return output_names([pathlib.Path(f"{video.stem}.video") for video in videos])


def _camera(index: int) -> VideoInput:
    def open_camera() -> Video:
        from ktn_jax.runtime import video_streams

        return video_streams.open_camera(index)

    return VideoInput(f"camera {index}", f"camera{index}", open_camera, facts=("camera", index))


def _stream(address: str) -> VideoInput:
    parts, name = urlsplit(address), without_secrets(address)
    stem = pathlib.PurePosixPath(parts.path).stem.strip(".") or parts.hostname or "stream"
    opening = functools.partial(video_sources.open_video, address)
    return VideoInput(name, stem, opening, facts=("stream", name))


def _at_path(path: pathlib.Path, rate: Fraction) -> VideoInput:
    opening = functools.partial(video_sources.open_video, path, rate)
    files = video_sources.files_of(path)
    facts: list[Any] = [str(rate)]
    for file in files:
        status = file.stat()
        facts.append((as_text(file), status.st_size, status.st_mtime_ns))
    if path.is_file():
        return VideoInput(as_text(path), path.stem, opening, (path,), path, tuple(facts))
    folder = path if path.is_dir() else path.parent
    return VideoInput(
        as_text(path), folder.resolve().name or "root", opening, tuple(files), None, tuple(facts)
    )
