"""Short videos for tests, encoded by PyAV."""

from fractions import Fraction

import av
import numpy as np

RATE = Fraction(25)


def level(index):
    """The grey level of a frame, far enough from its neighbours to survive compression."""
    return 5 + index * 6 % 240


def picture(index, size_hw):
    """A frame: grey, its number in the level, with a red top left corner."""
    image = np.full((*size_hw, 3), level(index), np.uint8)
    image[:8, :16] = (250, 0, 0)
    return image


def write_clip(
    path,
    num_frames=40,
    *,
    size_hw=(48, 64),
    times=None,
    time_base=Fraction(1, 1000),
    codec="libx264",
    sound=None,
    rotation=0,
    pixel_aspect=None,
    container_options=None,
    **options,
):
    """Writes a video.

    Args:
        path: its suffix says the container.
        num_frames: of 25 a second.
        size_hw: of the stored frames.
        times: seconds of the frames, if not every 1/25.
        time_base: of the times.
        codec: of the frames.
        sound: codec of a tone of the same length; None for none.
        rotation: degrees in the header by which players turn the frames, counterclockwise.
        pixel_aspect: width of a pixel over its height.
        container_options: of FFmpeg.
        **options: of the codec.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = size_hw
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = time_base
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        tone = None if sound is None else container.add_stream(sound, rate=48_000, layout="mono")
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size_hw), format="rgb24")
            frame.time_base = time_base
            frame.pts = round((times[index] if times else index / RATE) / time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            container.mux(list(_encode_tone(tone, num_frames / RATE)))


def _encode_tone(stream, seconds):
    samples = np.arange(int(seconds * 48_000))
    wave = np.sin(samples * (2 * np.pi * 440 / 48_000)) * 8000
    frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = 48_000, 0
    size = stream.codec_context.frame_size or None
    resampler = av.AudioResampler(stream.format, "mono", 48_000, frame_size=size)
    for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
        yield from stream.encode(piece)
