"""Image files that are the frames of a video: those of a folder, or of a pattern of numbers."""

import functools
import pathlib
import re
from collections.abc import Iterator
from fractions import Fraction

from ktn_jax.runtime import image_files, images
from ktn_jax.runtime.video_frames import UndecodedFrame, Video, VideoError

_NUMBER = re.compile(r"%(0?)(\d{0,2})d")


def is_pattern(path: pathlib.Path) -> bool:
    """Whether the name of a file is a pattern of numbers, and no file has that name."""
    return _NUMBER.search(path.name) is not None and not path.exists()


def list_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the image files of a folder in natural order, frame2 before frame10.

    Raises:
        VideoError: there are none.
    """
    try:
        return image_files.find_images([folder]).paths
    except images.ImageError as error:
        raise VideoError(f"{folder}: a folder without image files") from error


def list_sequence(pattern: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files of a pattern such as frames/%05d.png, by their numbers.

    Raises:
        VideoError: there are none.
    """
    match = _NUMBER.search(pattern.name)
    files: list[tuple[int, pathlib.Path]] = []
    if match is not None and pattern.parent.is_dir():
        before, after = pattern.name[: match.start()], pattern.name[match.end() :]
        digits = f"[0-9]{{{match[2]},}}" if match[1] and match[2] else "[0-9]+"
        wanted = re.compile(f"{re.escape(before)}({digits}){re.escape(after)}")
        for path in pattern.parent.iterdir():
            if found := wanted.fullmatch(path.name):
                files.append((int(found[1]), path))
    if not files:
        raise VideoError(f"{pattern}: there is no file of this pattern")
    return [path for _, path in sorted(files)]


class ImageSequence(Video):
    """Image files, one a frame."""

    def __init__(self, name: pathlib.Path, paths: list[pathlib.Path], rate: Fraction):
        """Takes the files in their order, and their frames a second.

        Raises:
            VideoError: the rate is not positive.
        """
        super().__init__(str(name))
        if rate <= 0:
            raise VideoError(f"frames a second must be positive, got {float(rate)}")
        self.paths = paths
        self.frame_rate, self.time_base, self.num_frames = rate, 1 / rate, len(paths)

    def decode(self) -> Iterator[UndecodedFrame]:
        """See `Video`."""
        for index, path in enumerate(self.paths):
            to_image = functools.partial(images.read_image, path)
            yield UndecodedFrame(to_image, index, index * self.time_base)

    def close(self) -> None:
        """Nothing is open."""
