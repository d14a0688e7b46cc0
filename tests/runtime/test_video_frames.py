"""Frames of videos: their times and pixels, which ones are chosen, and what is wrong with files."""

import os
import socket
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ktn_jax.runtime import video_streams
from ktn_jax.runtime.addresses import without_secrets
from ktn_jax.runtime.video_frames import Selection, VideoError
from ktn_jax.runtime.video_sources import is_video_name, open_video, read_video


def frames_of(path, *arguments, **options):
    with open_video(path) as video:
        frames = list(video.frames(*arguments, **options))
        return video, frames


def indices(frames):
    """The numbers of frames, by the grey level of `clips.picture`."""
    return [(round(float(frame.image[30, 40].mean())) - 5) / 6 for frame in frames]


def test_frames_have_the_times_of_the_file(tmp_path, write_clip):
    times = [Fraction(n, 1000) for n in (0, 40, 100, 101, 333, 2000)]
    write_clip(tmp_path / "a.mkv", 6, times=times, bf="2")
    video, frames = frames_of(tmp_path / "a.mkv")
    assert [frame.time for frame in frames] == times
    assert [frame.index for frame in frames] == list(range(6))
    np.testing.assert_allclose(indices(frames), range(6), atol=0.4)
    assert frames[0].image.shape == (48, 64, 3) and frames[0].image[2, 2, 0] > 200
    assert video.failure is None and video.notes == [] and not video.is_live
    # A transport stream begins at 1.4 s; its beginning is 0 all the same.
    write_clip(tmp_path / "a.ts", 6)
    assert [f.time for f in frames_of(tmp_path / "a.ts")[1]] == [Fraction(n, 25) for n in range(6)]


@pytest.mark.parametrize("rotation, corner", [(90, (-3, 2)), (180, (-3, -3)), (-90, (2, -3))])
def test_frames_are_upright_and_so_are_their_pixels(tmp_path, write_clip, rotation, corner):
    path = tmp_path / "a.mp4"
    write_clip(path, 2, rotation=rotation, pixel_aspect=Fraction(4, 3))
    video, (frame, _) = frames_of(path)
    is_on_its_side = rotation != 180
    assert frame.image.shape == ((64, 48, 3) if is_on_its_side else (48, 64, 3))
    red = frame.image[..., 0].astype(int) - frame.image[..., 1]
    assert red[corner] > 200 and (red > 100).sum() == pytest.approx(8 * 16, abs=8)
    assert video.pixel_aspect == (Fraction(3, 4) if is_on_its_side else Fraction(4, 3))


def test_frames_are_chosen_by_number_time_and_rate(tmp_path, write_clip):
    path = tmp_path / "a.mp4"
    write_clip(path)

    def chosen(after=-1, **selection):
        video, frames = frames_of(path, Selection(**selection), after)
        np.testing.assert_allclose(indices(frames), [f.index for f in frames], atol=0.4)
        return [frame.index for frame in frames], video.count(Selection(**selection))

    assert chosen() == (list(range(40)), 40)
    assert chosen(every=7) == ([0, 7, 14, 21, 28, 35], 6)
    half = {"start": Fraction(1, 2), "end": Fraction(1)}
    assert chosen(**half) == (list(range(13, 25)), 13)
    assert chosen(**half, every=5) == ([13, 18, 23], 3)
    numbers, count = chosen(max_rate=Fraction(10))
    assert numbers == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38] and count == 17
    assert chosen(max_rate=Fraction(60))[0] == list(range(40))
    # What was read before is left out, and changes nothing of the choice.
    assert chosen(after=18, **half, every=5)[0] == [23]
    for wrong in ({"every": 0}, {"start": Fraction(-1)}, {"max_rate": Fraction(0)}):
        with pytest.raises(ValueError, match="must"):
            Selection(**wrong)
    with pytest.raises(ValueError, match=r"the end, 1\.0 s, is not after the start, 2\.0 s"):
        Selection(start=Fraction(2), end=Fraction(1))


def test_a_sequence_of_images_is_a_video(tmp_path):
    for number in (2, 10, 11, 1):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "g1.png")
    with open_video(tmp_path / "f%d.png", Fraction(10)) as video:
        frames = list(video.frames())
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 10, 11]
    assert [frame.time for frame in frames] == [Fraction(n, 10) for n in range(4)]
    assert [frame.index for frame in frames] == list(range(4)) and video.num_frames == 4
    assert len(frames_of(tmp_path)[1]) == 5
    with pytest.raises(VideoError, match=r"f%03d\.png: there is no file of this pattern"):
        open_video(tmp_path / "f%03d.png")
    # A broken one is replaced by the one before, also where that was read in an earlier run.
    (tmp_path / "f2.png").write_bytes(b"damaged")
    for after in (-1, 0):
        video, frames = frames_of(tmp_path / "f%d.png", after=after)
        assert [int(frame.image[0, 0, 0]) for frame in frames][-3:] == [1, 10, 11]
        assert [frame.is_repeated for frame in frames][-3:] == [True, False, False]
        assert video.notes == ["1 broken frames, in whose place the last good one is (1)"]
    # Nothing stands for one that is the first.
    (tmp_path / "f1.png").write_bytes(b"damaged")
    assert [frame.index for frame in frames_of(tmp_path / "f%d.png")[1]] == [2, 3]
    # Another size is the end.
    Image.new("RGB", (6, 8)).save(tmp_path / "f11.png")
    video, frames = frames_of(tmp_path / "f%d.png")
    assert [frame.index for frame in frames] == [2]
    assert video.failure.startswith("frame 3 is 6 x 8 pixels, those before are 8 x 6: ")
    assert "--start 0.120 begins with the others" in video.failure


def test_damaged_frames_are_replaced_and_counted(tmp_path, write_clip):
    path = tmp_path / "a.mp4"
    write_clip(path, g="10", container_options={"movflags": "+faststart"}, crf="1")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 300] = bytes(300)
    path.write_bytes(content)
    video, frames = frames_of(path)
    assert [frame.time for frame in frames] == [Fraction(n, 25) for n in range(40)]
    repeated = [frame.index for frame in frames if frame.is_repeated]
    assert repeated and video.failure is None
    assert video.notes[0].startswith(f"{len(repeated)} broken frames, in whose place")
    for index in repeated:
        np.testing.assert_array_equal(frames[index].image, frames[index - 1].image)
    good = [frame for frame in frames[:15] + frames[-5:] if not frame.is_repeated]
    assert len(good) > 10
    np.testing.assert_allclose(indices(good), [frame.index for frame in good], atol=0.4)


def test_a_file_that_is_cut_off_gives_the_frames_that_it_has(tmp_path, write_clip):
    path = tmp_path / "a.mp4"
    write_clip(path, g="10", container_options={"movflags": "+faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    video, frames = frames_of(path)
    assert 0 < len(frames) < 40
    assert video.failure == (
        f"ends after {len(frames)} of the 40 frames that its header promises: the file is cut off"
    )
    with pytest.raises(VideoError, match=r"a\.mp4: ends after"):
        list(read_video(path))
    # Its index at the end is lost with it.
    write_clip(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(VideoError, match=r"a\.mp4: not a video, or a damaged one"):
        open_video(path)


def test_another_size_ends_a_video(tmp_path, write_clip):
    for name, size_hw in (("a", (48, 64)), ("b", (32, 64))):
        write_clip(tmp_path / f"{name}.mjpeg", 5, size_hw=size_hw, codec="mjpeg")
    parts = [(tmp_path / f"{name}.mjpeg").read_bytes() for name in "ab"]
    (tmp_path / "both.mjpeg").write_bytes(b"".join(parts))
    video, frames = frames_of(tmp_path / "both.mjpeg")
    assert [frame.index for frame in frames] == list(range(5))
    assert video.failure.startswith("frame 5 is 64 x 32 pixels, those before are 64 x 48")
    _, others = frames_of(tmp_path / "both.mjpeg", Selection(start=Fraction(1, 5)))
    assert [frame.image.shape for frame in others] == [(32, 64, 3)] * 5


def test_what_is_no_video_is_said(tmp_path, write_clip):
    write_clip(tmp_path / "a.avi", codec="mpeg4", time_base=Fraction(1, 25))
    (tmp_path / "codec.avi").write_bytes(
        (tmp_path / "a.avi").read_bytes().replace(b"FMP4", b"ZQZQ")
    )
    write_clip(tmp_path / "b.mkv", sound="aac")
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")  # which nobody writes into: opening it would wait for ever
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"
    )
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {tmp_path}/b.mkv\n")
    for name, message in (
        ("none.mp4", "there is no such file"),
        ("text.mp4", "not a video, or a damaged one"),
        ("empty.mp4", "not a video, or a damaged one"),
        ("codec.avi", "has no decoder for its codec"),
        ("folder", "a folder without image files"),
        ("pipe.mp4", "not a file or a folder"),
        ("list.m3u8", "not a video"),
        ("list.ffconcat", "not a video"),
    ):
        with pytest.raises(VideoError, match=rf"{name}: .*{message}"):
            open_video(tmp_path / name)


def test_a_sound_file_is_no_video(tmp_path):
    import av

    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(VideoError, match=r"song\.m4a: has no video stream \(only audio\)"):
        open_video(tmp_path / "song.m4a")


def test_names_say_what_is_a_video(tmp_path):
    (tmp_path / "100%02d.png").touch()
    for name, expected in (
        ("a.mp4", True),
        ("a/b.MOV", True),
        ("rtsp://camera/1", True),
        ("frames/%05d.png", True),
        ("a.jpg", False),
        ("folder", False),
        (tmp_path / "100%02d.png", False),
    ):
        assert is_video_name(name) == expected


def test_addresses_are_named_without_secrets_and_open_no_files(tmp_path):
    address = "rtsp://me:secret@camera.example/live?token=secret"
    assert without_secrets(address) == "rtsp://camera.example/live"
    with pytest.raises(VideoError, match=r"^file://\S+: not a video"):
        open_video(f"file://{tmp_path}/a.mp4")
    with pytest.raises(VideoError, match=r"^http://127\.0\.0\.1:9/a\.mp4: Connection refused"):
        open_video("http://127.0.0.1:9/a.mp4?key=secret")


def test_streams_are_read_and_do_not_hang(tmp_path, write_clip, file_server, monkeypatch):
    write_clip(tmp_path / "a.mp4")
    file_server.files["/a.mp4?key=secret"] = (tmp_path / "a.mp4").read_bytes()
    video, frames = frames_of(f"{file_server.url}/a.mp4?key=secret")
    assert len(frames) == 40 and video.failure is None and not video.is_live
    assert video.name == f"{file_server.url}/a.mp4"
    with pytest.raises(VideoError, match=r"none\.mp4: Server returned 404"):
        open_video(f"{file_server.url}/none.mp4")
    monkeypatch.setattr(video_streams, "_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(VideoError, match="no data came for"):
            open_video(f"http://127.0.0.1:{silent.getsockname()[1]}/a.mp4")
