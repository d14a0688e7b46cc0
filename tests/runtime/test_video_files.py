"""Videos that are written in segments and joined: the frames, their times and the sound."""

import errno
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest

from ktn_jax.runtime.video_files import VideoWriter, join_segments
from ktn_jax.runtime.video_sources import open_video


def _write(path, images, times, time_base, **options):
    writer = VideoWriter(path, images[0].shape[:2], time_base, Fraction(25), **options)
    for image, time in zip(images, times, strict=True):
        writer.add(image, time - times[0])
    writer.close()
    return path, times[0]


def _read(path):
    with open_video(path) as video:
        frames = list(video.frames())
        assert video.failure is None
    return video, frames


def _packets(path):
    """Time and content of the packets of sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


@pytest.mark.parametrize(
    "time_base", [Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 10)], ids=str
)
def test_segments_are_joined_without_a_change(tmp_path, time_base):
    rng = np.random.default_rng(0)
    images = [np.full((47, 63, 3), level, np.uint8) for level in rng.integers(0, 255, 9)]
    images[3][:16, :32] = (240, 20, 30)
    ticks = [0, 1, 3, 4, 5, 11, 12, 13, 40]
    times = [tick * time_base + Fraction(1, 3) // time_base * time_base for tick in ticks]
    segments = [
        _write(tmp_path / f"{a}.mp4", images[a:b], times[a:b], time_base, pixel_aspect=Fraction(2))
        for a, b in ((0, 1), (1, 5), (5, 9))
    ]
    assert join_segments(segments, tmp_path / "all.mp4", time_base) is None
    video, frames = _read(tmp_path / "all.mp4")
    # The reader counts from the first frame.
    assert [frame.time for frame in frames] == [time - times[0] for time in times]
    assert video.num_frames == 9 and video.pixel_aspect == 2
    for frame, image in zip(frames, images, strict=True):
        assert frame.image.shape == (48, 64, 3)  # even, by repeating the last row and column
        difference = np.abs(frame.image[:47, :63].astype(int) - image)
        assert difference.mean() < 2 and difference[4, 4].max() < 8  # colours too
        assert np.abs(frame.image[47, 63].astype(int) - frame.image[46, 62]).max() < 8


@pytest.mark.parametrize("name, codec", [("a.mp4", "aac"), ("a.mkv", "libopus")])
def test_the_sound_is_copied_as_it_is_from_where_the_frames_begin(
    tmp_path, write_clip, name, codec
):
    source, out = tmp_path / name, tmp_path / "out.mp4"
    write_clip(source, 50, sound=codec)
    _, frames = _read(source)
    times = [frame.time for frame in frames]
    base = Fraction(1, 1000)
    whole = _write(tmp_path / "s.mp4", [frame.image for frame in frames], times, base)
    assert join_segments([whole], out, base, source, (Fraction(0), Fraction(2))) is None
    assert [content for _, content in _packets(out)] == [c for _, c in _packets(source)]
    part = _write(tmp_path / "p.mp4", [f.image for f in frames[20:40]], times[20:40], base)
    part = (part[0], Fraction(0))
    begin, end = times[20], times[40]
    assert join_segments([part], out, base, source, (begin, end)) is None
    expected = [(t, content) for t, content in _packets(source) if begin <= t < end]
    copied = _packets(out)
    assert [content for _, content in copied] == [content for _, content in expected]
    assert 20 < len(copied)
    for (time, _), (before, _) in zip(copied, expected, strict=True):
        assert abs(time - (before - begin)) <= Fraction(1, 500)
    assert [frame.time for frame in _read(out)[1]] == [time - begin for time in times[20:40]]


def test_sound_that_an_mp4_file_cannot_hold_is_encoded(tmp_path, write_clip):
    source, out, base = tmp_path / "a.avi", tmp_path / "out.mp4", Fraction(1, 25)
    write_clip(source, 50, codec="mpeg4", sound="pcm_s16le", time_base=base)
    images = [np.zeros((16, 16, 3), np.uint8)]
    segments = [_write(tmp_path / "s.mp4", images, [Fraction(0)], base)]
    part = (Fraction(1, 2), Fraction(3, 2))
    assert join_segments(segments, out, base, source, part) is None
    with av.open(str(out)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
    assert len(sound) / 48_000 == pytest.approx(1, abs=0.06)
    # The tone of `clips`: its frequency, and its amplitude of 8000 of 32768.
    spectrum = np.abs(np.fft.rfft(sound[4_800:43_200])) / 19_200
    assert np.argmax(spectrum) * 48_000 / 38_400 == pytest.approx(440, abs=2)
    assert spectrum.max() == pytest.approx(8_000 / 32_768, rel=0.1)
    write_clip(source, 10, codec="mpeg4", time_base=base)
    assert join_segments(segments, out, base, source, part) is None
    assert len(_read(out)[1]) == 1


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path):
    writer = VideoWriter(tmp_path / "none" / "a.mp4", (16, 16), Fraction(1, 25), Fraction(25))
    with pytest.raises(OSError, match=r"cannot write the video.*none/a\.mp4") as caught:
        writer.add(np.zeros((16, 16, 3), np.uint8), Fraction(0))
        writer.close()
    assert caught.value.errno == errno.ENOENT
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "full.mp4").symlink_to("/dev/full")
    writer = VideoWriter(tmp_path / "full.mp4", (64, 64), Fraction(1, 25), Fraction(25))
    rng = np.random.default_rng(0)
    with pytest.raises(OSError, match="No space left"):
        for index in range(200):
            writer.add(rng.integers(0, 255, (64, 64, 3), np.uint8), index * Fraction(1, 25))
        writer.close()
