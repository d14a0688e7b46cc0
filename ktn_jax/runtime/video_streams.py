"""Video files, streams and cameras, decoded by FFmpeg through PyAV."""

import heapq
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ktn_jax.runtime.addresses import without_secrets
from ktn_jax.runtime.video_frames import DEFAULT_RATE, UndecodedFrame, Video, VideoError

_LARGEST_AREA = 178_956_970  # pixels of a frame: Pillow's limit for photos
_TIMEOUT = 30.0  # seconds without any data from a stream or a camera
# A file must not make FFmpeg open addresses, nor an address files.
_PROTOCOLS_OF_FILES = "file,crypto,data"
# And none of the formats that are lists of other files, or wait for more of themselves.
_FORMATS_OF_FILES = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,rm,mxf,nut,ivf,obu,dv,h264,hevc,vvc,"
    "av1,m4v,mjpeg,yuv4mpegpipe,gif,apng,webp,mp3,aac,wav,flac,ac3"
)
_PROTOCOLS_OF_ADDRESSES = "http,https,httpproxy,tls,tcp,udp,rtp,rtsp,rtmp,rtmps,srt,crypto,data"
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
_VERSION = f"(PyAV {av.__version__})"
_NO_VIDEO = (av.error.InvalidDataError, av.error.EOFError, av.error.ArgumentError)
# Headers may count a few frames too many: a file is cut off if more are missing.
_MISSING_FRAMES, _MISSING_SHARE, _MISSING_SECONDS = 2, 0.01, 2


def open_file(path: pathlib.Path) -> "StreamVideo":
    """Opens a video file.

    Raises:
        VideoError: see `video_sources.open_video`.
    """
    # With the protocol, so that no part of a name is taken for one.
    address = f"file:{path.absolute()}"
    options = {"protocol_whitelist": _PROTOCOLS_OF_FILES, "format_whitelist": _FORMATS_OF_FILES}
    return StreamVideo(str(path), address, options)


def open_address(address: str) -> "StreamVideo":
    """Opens a stream by its address.

    Raises:
        VideoError: see `video_sources.open_video`.
    """
    name = without_secrets(address)
    options = {"protocol_whitelist": _PROTOCOLS_OF_ADDRESSES}
    video = StreamVideo(name, address, options, timeout=_TIMEOUT)
    video.is_live = video.duration is None
    return video


def open_camera(index: int) -> "StreamVideo":
    """Opens a camera by its number.

    Raises:
        VideoError: there is no such camera, or this system has no way to it.
    """
    if sys.platform not in _CAMERAS:
        raise VideoError(f"camera {index}: cameras are read on Linux and macOS only")
    kind, address = _CAMERAS[sys.platform]
    address = address.format(index)
    if kind == "v4l2" and not os.path.exists(address):
        raise VideoError(f"camera {index}: there is no {address}")
    video = StreamVideo(f"camera {index}", address, {}, kind=kind, timeout=_TIMEOUT)
    video.is_live = True
    return video


class StreamVideo(Video):
    """The first video stream of a container."""

    def __init__(
        self,
        name: str,
        address: str,
        options: dict[str, str],
        *,
        kind: str | None = None,
        timeout: float | None = None,
    ):
        """Opens a container.

        Args:
            name: for messages.
            address: as FFmpeg takes it.
            options: of FFmpeg's.
            kind: FFmpeg's format; None to find out.
            timeout: seconds to wait for data.

        Raises:
            VideoError: it cannot be opened or decoded.
        """
        super().__init__(name)
        try:
            container = av.open(
                address,
                format=kind,
                options=options,
                container_options={},
                timeout=timeout,
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{name}: {_explain(error)}") from error
        self._container: InputContainer = container
        try:
            self._stream = _video_stream(container, name)
            self._read_facts()
        except VideoError:
            container.close()
            raise

    def _read_facts(self) -> None:
        stream, container = self._stream, self._container
        self.frame_rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        self.time_base = Fraction(stream.time_base or 1 / self.frame_rate)
        self._start = Fraction(0)
        if container.start_time is not None:
            self._start = Fraction(container.start_time, av.time_base)
        elif stream.start_time is not None:
            self._start = stream.start_time * self.time_base
        self._has_own_duration = stream.duration is not None
        self.duration: Fraction | None = None
        if stream.duration is not None:
            self.duration = stream.duration * self.time_base
        elif container.duration is not None:
            self.duration = Fraction(container.duration, av.time_base)
        if stream.frames > 0:
            self.num_frames = stream.frames
        elif self.duration is not None:
            self.num_frames = round(self.duration * self.frame_rate)
        self.pixel_aspect = Fraction(stream.codec_context.sample_aspect_ratio or 1)

    def close(self) -> None:
        """Closes the container."""
        self._container.close()

    def decode(self) -> Iterator[UndecodedFrame]:
        """See `Video`."""
        clock = _Clock(self._start, self.time_base, self.frame_rate)
        index, time = -1, Fraction(-1)
        reformatter = VideoReformatter()  # one of its own for each frame takes longer
        for frame, time in clock.in_order(self._decode_packets(clock)):
            index += 1
            if index == 0 and frame is not None and _is_on_its_side(_display_matrix(frame)):
                self.pixel_aspect = 1 / self.pixel_aspect
            to_image = None if frame is None else _converter(frame, reformatter)
            yield UndecodedFrame(to_image, index, time)
        if self.failure is None:
            self._look_for_the_end(index + 1, time)

    def _decode_packets(self, clock: "_Clock") -> Iterator[VideoFrame]:
        """Yields what can be decoded, and tells the clock of packets and errors."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    clock.expect(packet.pts)
                try:
                    frames = packet.decode()
                except av.error.EOFError:
                    return
                except (av.FFmpegError, ValueError):
                    clock.count_error(packet.pts)
                    continue
                yield from frames
        except (av.FFmpegError, OSError, ValueError) as error:
            self.failure = f"cannot be read any further: {_explain(error)}"

    def _look_for_the_end(self, count: int, last: Fraction) -> None:
        """Says so if the file is shorter than its header promises."""
        if count == 0:
            self.failure = "has no frame that can be decoded"
        elif self._stream.frames > 0:
            missing = self._stream.frames - count
            if missing > _MISSING_FRAMES + _MISSING_SHARE * self._stream.frames:
                self.failure = (
                    f"ends after {count} of the {self._stream.frames} frames that its header "
                    "promises: the file is cut off"
                )
        elif self.duration is not None and not self.is_live:
            missing_time = self.duration - last
            if missing_time > _MISSING_SECONDS + _MISSING_SHARE * self.duration:
                self.notes.append(
                    f"the last frame is at {float(last):.1f} s of {float(self.duration):.1f} s: it "
                    "may be cut off"
                )


class _Clock:
    """Puts frames in order of time, and broken ones where packets say that they belong."""

    def __init__(self, start: Fraction, time_base: Fraction, rate: Fraction):
        self._start, self._time_base = start, time_base
        self._step = max(round(1 / (rate * time_base)), 1)
        self._expected: list[int] = []  # a heap of times that packets named and no frame had yet
        self._untimed_errors = 0
        self._is_damaged = False
        self._last: int | None = None  # time of the last frame, in time bases

    def expect(self, pts: int | None) -> None:
        """A packet came."""
        if pts is not None:
            heapq.heappush(self._expected, pts)

    def count_error(self, pts: int | None) -> None:
        """A packet could not be decoded; it need not be this one that is damaged."""
        self._is_damaged = True
        self._untimed_errors += pts is None

    def in_order(
        self, frames: Iterator[VideoFrame]
    ) -> Iterator[tuple[VideoFrame | None, Fraction]]:
        """Yields frames with their time, None in place of broken ones."""
        for frame in frames:
            if frame.pts is not None:
                if self._is_damaged and self._last is not None and frame.pts <= self._last:
                    continue  # decoders put frames late after damage: the last one is in its place
                yield from self._broken_before(frame.pts)
            while self._untimed_errors:
                self._untimed_errors -= 1
                yield None, self._next(None)
            yield None if frame.is_corrupt else frame, self._next(frame.pts)
        yield from self._broken_before(None)

    def _broken_before(self, pts: int | None) -> Iterator[tuple[None, Fraction]]:
        while self._expected and (pts is None or self._expected[0] <= pts):
            missing = heapq.heappop(self._expected)
            # In a sound file it is no frame of its own: a field, or one that is not to be shown.
            if missing != pts and self._is_damaged:
                yield None, self._next(missing)

    def _next(self, pts: int | None) -> Fraction:
        """The time of the next frame; times of broken files are made to ascend."""
        if self._last is not None:
            pts = self._last + self._step if pts is None else max(pts, self._last + 1)
        elif pts is None:
            pts = round(self._start / self._time_base)
        self._last = pts
        return pts * self._time_base - self._start


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    pictures = av.stream.Disposition.attached_pic  # the cover of a song
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"{name}: has no video stream (only {' and '.join(kinds) or 'nothing'})")
    stream = streams[0]
    # PyAV has no context for a codec that this FFmpeg lacks.
    if stream.codec_context is None:
        raise VideoError(f"{name}: FFmpeg {_VERSION} has no decoder for its codec")
    if stream.width * stream.height > _LARGEST_AREA:
        raise VideoError(
            f"{name}: {stream.width} x {stream.height} pixels are too many for a frame"
        )
    stream.thread_type = "AUTO"
    # Frames with errors are wanted, and marked: they are counted, and replaced.
    stream.codec_context.flags |= av.codec.context.Flags.output_corrupt
    return stream


def _converter(frame: VideoFrame, reformatter: VideoReformatter) -> Callable[[], np.ndarray]:
    def to_image() -> np.ndarray:
        image = reformatter.reformat(frame, format="rgb24").to_ndarray()
        return _turn_upright(image, _display_matrix(frame))

    return to_image


def _display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """The matrix [2, 2] that takes (x, y) of the stored frame to the screen; None for no turn."""
    side_data: Any = frame.side_data
    try:
        stored = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return None
    values = np.frombuffer(bytes(stored), np.int32)
    return np.array([[values[0], values[3]], [values[1], values[4]]])


def _is_on_its_side(matrix: np.ndarray | None) -> bool:
    return matrix is not None and bool(abs(matrix[0, 1]) > abs(matrix[0, 0]))


def _turn_upright(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    if matrix is None or not matrix.any():
        return image
    x_sign, y_sign = np.diag(matrix)
    if _is_on_its_side(matrix):
        image, x_sign, y_sign = image.transpose(1, 0, 2), matrix[0, 1], matrix[1, 0]
    image = image[:, ::-1] if x_sign < 0 else image
    image = image[::-1] if y_sign < 0 else image
    return np.ascontiguousarray(image)


def _explain(error: BaseException) -> str:
    if isinstance(error, _NO_VIDEO):
        return "not a video, or a damaged one (a file that is cut off can lack its index)"
    if isinstance(error, av.error.TimeoutError | av.error.ExitError):
        return f"no data came for {_TIMEOUT:.0f} seconds"
    if isinstance(error, av.error.LookupError):
        return f"FFmpeg {_VERSION} cannot read it: {error.strerror or error}"
    return str(getattr(error, "strerror", None) or error)
