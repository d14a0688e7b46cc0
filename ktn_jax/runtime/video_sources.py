"""Opens videos: files, streams, and sequences of image files."""

import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction

from ktn_jax.runtime import image_sequences
from ktn_jax.runtime.addresses import is_address
from ktn_jax.runtime.video_frames import DEFAULT_RATE, Frame, Selection, Video, VideoError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".wmv", ".flv", ".3gp", ".ogv", ".mjpeg", ".mjpg", ".h264", ".h265", ".hevc", ".y4m"),
)


def is_video_name(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a video by its name: a suffix, an address or a pattern of numbers."""
    if is_address(source) or image_sequences.is_pattern(pathlib.Path(source)):
        return True
    return os.fspath(source).lower().endswith(VIDEO_SUFFIXES)


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that a path stands for: itself, or image files of a folder or a pattern, in order.

    Raises:
        VideoError: there are none.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        return image_sequences.list_folder(path)
    if image_sequences.is_pattern(path):
        return image_sequences.list_sequence(path)
    is_there = os.path.lexists(path)
    raise VideoError(f"{path}: {'not a file or a folder' if is_there else 'there is no such file'}")


def open_video(source: str | os.PathLike[str], rate: Fraction = DEFAULT_RATE) -> Video:
    """Opens a video.

    Args:
        source: a file; the address of a stream; or image files: a folder of them, or a pattern
            with a number in its name, frames/%05d.png.
        rate: of image files, frames a second.

    Raises:
        VideoError: it is not there, no video, without frames, or of a codec that is not known.
    """
    # PyAV takes a while to load, and image files do without it.
    if is_address(source):
        from ktn_jax.runtime import video_streams

        return video_streams.open_address(os.fspath(source))
    path = pathlib.Path(source)
    if path.is_file():
        from ktn_jax.runtime import video_streams

        return video_streams.open_file(path)
    return image_sequences.ImageSequence(path, files_of(path), rate)


def read_video(
    source: str | os.PathLike[str],
    *,
    every: int = 1,
    start: float = 0,
    end: float | None = None,
    max_rate: float | None = None,
    rate: float = float(DEFAULT_RATE),
) -> Iterator[Frame]:
    """Reads a video frame by frame, in memory that does not grow.

    Example:
        for frame in ktn_jax.read_video("clip.mp4"):
            people = model(frame.image)

    Args:
        source: See `open_video`.
        every: See `Selection`, as the following ones.
        start: Seconds.
        end: Seconds.
        max_rate: Frames a second.
        rate: Of a sequence of image files, frames a second.

    Yields:
        Frames.

    Raises:
        VideoError: the video cannot be read, or (after its good frames) not to its end.
        ValueError: a wrong number.
    """
    selection = Selection(
        every,
        Fraction(start),
        None if end is None else Fraction(end),
        None if max_rate is None else Fraction(max_rate),
    )
    with open_video(source, Fraction(rate)) as video:
        yield from video.frames(selection)
        if video.failure is not None:
            raise VideoError(f"{video.name}: {video.failure}")
