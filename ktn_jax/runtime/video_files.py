"""Writes videos: H.264 in MP4 files, in segments that are joined without encoding them again."""

import contextlib
import errno
import heapq
import pathlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from ktn_jax.runtime import atomic_files

_ENCODERS = {
    # Without frames that refer to later ones, segments follow each other without a gap. Slower
    # presets take as much processor time as a small network, for files a seventh smaller; what
    # makes decoding slow takes a third of the time of encoding, for files a twentieth smaller.
    "libx264": {"preset": "superfast", "tune": "fastdecode", "crf": "18", "bf": "0"},
    "libopenh264": {"rc_mode": "quality"},
}
# Sound that MP4 files hold as it is.
_SOUND = ("aac", "mp3", "mp3float", "opus", "ac3", "eac3", "flac", "alac")
_SOUND_RATE, _AAC_FRAME = 48_000, 1024  # of other sound, which becomes AAC
_BT709 = 1  # in FFmpeg's tables of matrices, primaries and transfer functions
ENCODING = f"PyAV {av.__version__}, {_ENCODERS}"
"""What the bytes of videos depend on: segments of different encoders are not joined."""


class VideoWriter:
    """A video file that is written frame by frame."""

    def __init__(
        self,
        path: pathlib.Path,
        size_hw: tuple[int, int],
        time_base: Fraction,
        frame_rate: Fraction,
        pixel_aspect: Fraction = Fraction(1),
    ):
        """Opens the file.

        Args:
            path: of an MP4 file; an older one is replaced.
            size_hw: of the frames. Odd ones get a row or a column more, which repeats the last.
            time_base: times are multiples of it.
            frame_rate: on average, a hint for the encoder.
            pixel_aspect: width of a pixel over its height.

        Raises:
            OSError: the file cannot be written, or this FFmpeg has no encoder.
        """
        self._size_hw, self._time_base = size_hw, time_base
        name = _encoder()
        with _disk_errors(path):
            self._container = av.open(str(path), "w", format="mp4")
        stream = self._container.add_stream(name, rate=_nearby(frame_rate))
        self._stream = cast(VideoStream, stream)
        self._stream.height, self._stream.width = (side + side % 2 for side in size_hw)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(_ENCODERS[name])
        context = self._stream.codec_context
        context.time_base = time_base
        context.sample_aspect_ratio = pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        self._path = path
        self._reformatter = VideoReformatter()  # one of its own for each frame takes longer

    def add(self, image: np.ndarray, time: Fraction) -> None:
        """Writes a frame.

        Args:
            image: uint8 [H, W, 3] RGB.
            time: seconds, later than that of the frame before.

        Raises:
            OSError: the file cannot be written.
        """
        odd = [(0, side % 2) for side in self._size_hw]
        if any(after for _, after in odd):
            image = np.pad(image, [*odd, (0, 0)], mode="edge")
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.time_base = self._time_base
        frame.pts = round(time / self._time_base)
        self._write(frame)

    def close(self) -> None:
        """Completes the file.

        Raises:
            OSError: the file cannot be written.
        """
        try:
            self._write(None)
        finally:
            with _disk_errors(self._path):
                self._container.close()

    def _write(self, frame: av.VideoFrame | None) -> None:
        with _disk_errors(self._path):
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


def join_segments(
    segments: Sequence[tuple[pathlib.Path, Fraction]],
    output: pathlib.Path,
    time_base: Fraction,
    sound: pathlib.Path | None = None,
    sound_range: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0)),
) -> str | None:
    """Joins segments to one video file, with the sound of another file.

    Args:
        segments: files of `VideoWriter`, each with the time at which it begins.
        output: the file to write; an older one is replaced when the new one is complete.
        time_base: of the segments' times.
        sound: a file whose sound is copied; None for none.
        sound_range: seconds of `sound` from which and to which it is copied. Where it begins is 0
            in the output.

    Returns:
        Why the output has no sound although there is some, or not all of it; None if nothing is
        missing.

    Raises:
        ValueError: the segments were written by different encoders.
        OSError: a file cannot be read or written.
    """
    with (
        atomic_files.replacing(output) as temporary,
        _disk_errors(output),
        contextlib.ExitStack() as stack,
    ):
        first = stack.enter_context(av.open(f"file:{segments[0][0].absolute()}"))
        target = stack.enter_context(
            av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"})
        )
        video = target.add_stream_from_template(first.streams.video[0])
        video.time_base = time_base
        note, packets = None, _packets_of(segments, video, time_base)
        if sound is not None:
            source = stack.enter_context(
                av.open(f"file:{sound.absolute()}", metadata_errors="replace")
            )
            copied = _Sound(source, target, sound_range)
            packets = heapq.merge(packets, copied.packets(), key=lambda timed: timed[0])
        for _, packet in packets:
            target.mux(packet)
        if sound is not None:
            note = copied.note
    return note


def _packets_of(
    segments: Sequence[tuple[pathlib.Path, Fraction]], stream: VideoStream, time_base: Fraction
) -> "Iterator[tuple[Fraction, Packet[Any]]]":
    extradata: bytes | None = None
    for path, begins in segments:
        with av.open(f"file:{path.absolute()}") as segment:
            own = segment.streams.video[0].codec_context.extradata
            extradata = extradata or own
            if own != extradata:
                raise ValueError(f"{path} was written by another encoder than the one before it")
            for packet in segment.demux(video=0):
                if packet.pts is None:
                    continue
                time = packet.pts * packet.time_base + begins
                duration = (packet.duration or 0) * packet.time_base
                packet.stream, packet.time_base = stream, time_base
                packet.pts = packet.dts = round(time / time_base)
                packet.duration = max(round(duration / time_base), 1)
                yield time, packet


class _Sound:
    """The first sound of a file: its packets where an MP4 file holds such, else encoded again."""

    def __init__(
        self,
        source: InputContainer,
        target: OutputContainer,
        sound_range: tuple[Fraction, Fraction],
    ):
        self._source, self._range = source, sound_range
        self.note: str | None = None
        self._stream: AudioStream | None = None
        if not source.streams.audio:
            return
        stream = source.streams.audio[0]
        if stream.codec_context is None:
            self.note = "its sound is of a codec that FFmpeg does not know, and is left out"
            return
        self._stream = stream
        self._is_copied = stream.codec_context.name in _SOUND
        if self._is_copied:
            self._target = target.add_stream_from_template(stream)
        else:
            self._target = target.add_stream("aac", rate=_SOUND_RATE)
            self._target.layout = "mono" if stream.codec_context.channels == 1 else "stereo"

    def packets(self) -> "Iterator[tuple[Fraction, Packet[Any]]]":
        """Yields packets and their times in the output."""
        if self._stream is None:
            return
        try:
            yield from (self._copied if self._is_copied else self._encoded)(self._stream)
        except (av.FFmpegError, ValueError) as error:
            self.note = f"its sound ends early: {error}"

    def _copied(self, stream: AudioStream) -> "Iterator[tuple[Fraction, Packet[Any]]]":
        start, (begin, end) = self._start(), self._range
        for packet in self._source.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            time_base = packet.time_base
            time = packet.pts * time_base - start
            if time >= end:
                return
            if begin and time < begin:  # of a whole file, decoders start up before 0
                continue
            shift = round((start + begin) / time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._target
            yield time - begin, packet

    def _encoded(self, stream: AudioStream) -> "Iterator[tuple[Fraction, Packet[Any]]]":
        resampler = av.AudioResampler("fltp", self._target.layout, _SOUND_RATE, _AAC_FRAME)
        pts: int | None = None  # of the next samples
        for time, frame in self._decoded(stream):
            pts = round(time * _SOUND_RATE) if pts is None else pts
            for piece in resampler.resample(frame):
                piece.pts, piece.time_base = pts, Fraction(1, _SOUND_RATE)
                pts += piece.samples
                yield from self._timed(self._target.encode(piece))
        if pts is not None:
            yield from self._timed(self._target.encode(None))

    def _decoded(self, stream: AudioStream) -> Iterator[tuple[Fraction, av.AudioFrame | None]]:
        """Yields sound and its time in the output, and None at the end."""
        start, (begin, end) = self._start(), self._range
        time = Fraction(0)
        for packet in self._source.demux(stream):
            for frame in packet.decode():
                time = (frame.pts or 0) * Fraction(frame.time_base or 0) - start
                if time >= end:
                    yield time, None
                    return
                if time >= begin:
                    frame.pts = None  # counted by samples, which have no gaps
                    yield time - begin, frame
        yield time, None

    def _timed(self, packets: "list[Packet[Any]]") -> "Iterator[tuple[Fraction, Packet[Any]]]":
        return ((Fraction(packet.pts or 0) * packet.time_base, packet) for packet in packets)

    def _start(self) -> Fraction:
        return Fraction(self._source.start_time or 0, av.time_base)


def _encoder() -> str:
    for name in _ENCODERS:
        if name in av.codecs_available:
            return name
    raise OSError(f"PyAV {av.__version__} has no encoder of H.264 ({', '.join(_ENCODERS)})")


def _nearby(rate: Fraction) -> Fraction:
    """A frame rate that encoders take, whose numerator and denominator are small."""
    return max(rate, Fraction(1, 1000)).limit_denominator(1001)


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns PyAV's errors into those of the system, which name the file."""
    try:
        yield
    except av.FFmpegError as error:
        code = error.errno or errno.EIO
        raise OSError(
            code, f"cannot write the video: {error.strerror or error}", str(path)
        ) from error
