"""Frames of videos, upright and in order; `video_sources` opens videos.

Times are exact: fractions of seconds since the beginning of the source. A frame that cannot be
decoded is replaced by the last good one, so that the frames stay as many as the source's.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from ktn_jax.runtime import images

DEFAULT_RATE = Fraction(25)
"""Frames a second where nothing else is said, FFmpeg's default too."""

_SHOWN = 5  # frames named in a note


class VideoError(ValueError):
    """A video cannot be read, or not to its end. The message names it and the reason."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which frames of a video are wanted.

    Attributes:
        every: every so many frames, the first one included.
        start: seconds; earlier frames are left out.
        end: seconds; frames from there on are left out. None: to the end.
        max_rate: frames a second at most, evenly in time. None: all.

    Raises:
        ValueError: a number that is not positive, or no time between start and end.
    """

    every: int = 1
    start: Fraction = Fraction(0)
    end: Fraction | None = None
    max_rate: Fraction | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if self.start < 0:
            raise ValueError(f"start must not be negative, got {float(self.start)}")
        if self.end is not None and self.end <= self.start:
            raise ValueError(
                f"the end, {float(self.end)} s, is not after the start, {float(self.start)} s"
            )
        if self.max_rate is not None and self.max_rate <= 0:
            raise ValueError(f"the largest frame rate must be positive, got {self.max_rate}")


ALL_FRAMES = Selection()


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video.

    Attributes:
        image: uint8 [H, W, 3] RGB, upright.
        index: in the source, from 0.
        time: seconds since the beginning of the source.
        is_repeated: whether it is the last good frame in place of one that is broken.
    """

    image: np.ndarray
    index: int
    time: Fraction
    is_repeated: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class UndecodedFrame:
    """A frame whose pixels are made when they are wanted.

    Attributes:
        to_image: makes the image of a `Frame`; raises `ImageError` of a file that is damaged. None
            for a frame that is broken.
        index: see `Frame`, as `time`.
    """

    to_image: Callable[[], np.ndarray] | None
    index: int
    time: Fraction


class Video(abc.ABC):
    """A source of frames, which is read once, by one thread at a time.

    Attributes:
        name: of the source, for messages.
        frame_rate: frames a second on average.
        time_base: all times are multiples of it.
        pixel_aspect: width of a pixel over its height, upright.
        num_frames: as the source promises them; None where it does not.
        is_live: a camera or a stream, which cannot be read again from its beginning.
        notes: what was wrong and could be mended, known when all frames were read.
        failure: why there are no more frames, if that is not the end of the source.
    """

    def __init__(self, name: str):
        """Names the source; the subclass fills in the rest."""
        self.name = name
        self.frame_rate = DEFAULT_RATE
        self.time_base = 1 / DEFAULT_RATE
        self.pixel_aspect = Fraction(1)
        self.num_frames: int | None = None
        self.is_live = False
        self.notes: list[str] = []
        self.failure: str | None = None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abc.abstractmethod
    def decode(self) -> Iterator[UndecodedFrame]:
        """Yields all frames, times ascending; sets `notes` and `failure`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the source."""

    def frames(self, selection: Selection = ALL_FRAMES, after: int = -1) -> Iterator[Frame]:
        """Yields frames.

        Args:
            selection: which ones.
            after: the index of the last frame that was read before: it and those before it are
                left out.

        Yields:
            Frames of one size. `failure` says why they end early, if they do: a frame of another
            size ends them too. Broken frames before the first good one are left out.
        """
        good: UndecodedFrame | None = None  # the last one
        image: np.ndarray | None = None  # of it, once it was wanted
        broken: list[int] = []
        for frame in _select(self.decode(), selection):
            if frame.index <= after:
                good = good if frame.to_image is None else frame
                continue
            made = _image_of(frame)
            if made is not None:
                if image is not None and made.shape != image.shape:
                    self.failure = _other_size(frame, made, image)
                    break
                good, image = frame, made
            else:
                broken.append(frame.index)
                image = _image_of(good) if image is None and good is not None else image
            if image is not None:
                yield Frame(image, frame.index, frame.time, is_repeated=made is None)
        if broken:
            shown = ", ".join(map(str, broken[:_SHOWN])) + (", ..." if broken[_SHOWN:] else "")
            self.notes.append(
                f"{len(broken)} broken frames, in whose place the last good one is ({shown})"
            )

    def count(self, selection: Selection) -> int | None:
        """About how many frames are selected, as far as the source promises; None if unknown."""
        if self.num_frames is None:
            return None
        first = min(int(selection.start * self.frame_rate), self.num_frames)
        last = self.num_frames
        if selection.end is not None:
            last = min(int(selection.end * self.frame_rate), last)
        count = -(-max(last - first, 0) // selection.every)
        if selection.max_rate is not None:
            count = min(count, int((last - first) / self.frame_rate * selection.max_rate) + 1)
        return count


def _image_of(frame: UndecodedFrame) -> np.ndarray | None:
    """The image of a frame, or None of one that is broken."""
    try:
        return None if frame.to_image is None else frame.to_image()
    except images.ImageError:
        return None


def _other_size(frame: UndecodedFrame, image: np.ndarray, before: np.ndarray) -> str:
    return (
        f"frame {frame.index} is {image.shape[1]} x {image.shape[0]} pixels, those before are "
        f"{before.shape[1]} x {before.shape[0]}: a video has frames of one size, so it ends there; "
        f"--start {float(frame.time):.3f} begins with the others"
    )


def _select(frames: Iterator[UndecodedFrame], selection: Selection) -> Iterator[UndecodedFrame]:
    first: UndecodedFrame | None = None
    slot = -1  # of the largest frame rate, since the first frame
    for number, frame in enumerate(f for f in frames if f.time >= selection.start):
        if selection.end is not None and frame.time >= selection.end:
            return
        first = first or frame
        if number % selection.every:
            continue
        if selection.max_rate is not None:
            own_slot = int((frame.time - first.time) * selection.max_rate)
            if own_slot == slot:
                continue
            slot = own_slot
        yield frame
