"""Draws the people of a video's JSON lines over its frames: another style without the network."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction

from ktn_jax.inference.drawn_results import DrawnSummary, keep_wanted
from ktn_jax.inference.output_files import check_targets
from ktn_jax.inference.video_inputs import VideoInput, find_videos
from ktn_jax.inference.video_options import check_pictures
from ktn_jax.results import pictures
from ktn_jax.results.frame_lines import read_frame_lines
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import StyleSettings
from ktn_jax.runtime.progress import Progress
from ktn_jax.runtime.read_ahead import read_ahead
from ktn_jax.runtime.video_files import VideoWriter, join_segments
from ktn_jax.runtime.video_frames import Frame, Video

_FRAMES_AHEAD = 4


def draw_video(
    lines: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    names: Sequence[str] = (pictures.OVERLAY,),
    settings: StyleSettings | None = None,
    *,
    video: str | os.PathLike[str] | None = None,
    min_score: float = 0.0,
    only_tracks: Sequence[int] = (),
    overwrite: bool = False,
) -> DrawnSummary:
    """Draws NAME_PICTURE.mp4 of the frames that NAME.jsonl has, with their times and sound.

    Args:
        lines: as `ktn predict` writes them for a video, see `results.frame_lines`.
        output_dir: made if it does not exist.
        names: of pictures, see `results.pictures`; no maps.
        settings: of detectron2's styles.
        video: file, folder of frames or pattern, as it was predicted; None for the one that the
            people's `file_name` names.
        min_score: people with a lower score are left out.
        only_tracks: numbers of the people who are drawn; none for all.
        overwrite: replace videos that are there, but not what is read.

    Returns:
        The summary; its images are frames.

    Raises:
        ValueError: damaged lines, an unknown picture, a map, a file that would be replaced, or a
            video that is not there or another one. No video is written then.
    """
    lines, output_dir = pathlib.Path(lines), pathlib.Path(output_dir)
    settings = settings or StyleSettings()
    names = check_pictures(names, settings)
    source = _find_video(lines, video)
    targets = [output_dir / f"{lines.stem}_{name}.mp4" for name in names]
    check_targets(output_dir, targets, [*source.files, lines], overwrite)
    output_dir.mkdir(parents=True, exist_ok=True)
    summary = DrawnSummary()
    with (
        tempfile.TemporaryDirectory(dir=output_dir, prefix=".drawn") as folder,
        source.open() as opened,
        contextlib.ExitStack() as being_written,
    ):
        drawn = [pathlib.Path(folder) / target.name for target in targets]
        times: list[Fraction] = []
        for frame, people in _people_of(lines, opened, min_score, only_tracks):
            if not times:
                size_hw = (frame.image.shape[0], frame.image.shape[1])
                writers = [
                    being_written.enter_context(_writer(path, size_hw, opened)) for path in drawn
                ]
            made = pictures.draw_pictures(names, frame.image, people, settings)
            times.append(frame.time)
            for writer, (_, picture) in zip(writers, made, strict=True):
                writer.add(picture, frame.time - times[0])
            summary.num_people += len(people)
        summary.num_images = len(times)
        if not times:
            raise ValueError(f"{lines}: no frames, so there is nothing to do")
        being_written.close()  # they are complete now
        sound_range = (times[0], times[-1] + 1 / opened.frame_rate)
        for path, target in zip(drawn, targets, strict=True):
            segments = [(path, Fraction(0))]
            note = join_segments(segments, target, opened.time_base, source.sound, sound_range)
        summary.failures += [text for text in (opened.failure, note) if text]
    return summary


def _find_video(lines: pathlib.Path, video: str | os.PathLike[str] | None) -> VideoInput:
    if video is None:
        named = (
            record.get("file_name") for line in read_frame_lines(lines) for record in line.records
        )
        video = next(filter(None, named), None)
        if video is None:
            raise ValueError(f"{lines}: names no video: give it (--images)")
    found = find_videos([os.fspath(video)])
    if len(found) > 1:
        raise ValueError(f"{lines} is of one video, and {video} are {len(found)}")
    return found[0]


def _people_of(
    lines: pathlib.Path, video: Video, min_score: float, only_tracks: Sequence[int]
) -> Iterator[tuple[Frame, list[PersonResult]]]:
    """Yields the frames that have a line, and the people of it who are wanted.

    Raises:
        ValueError: a damaged line, or one whose frame the video does not have.
    """
    wanted = read_frame_lines(lines)
    line = next(wanted, None)
    with (
        contextlib.closing(read_ahead(video.frames(), _FRAMES_AHEAD)) as frames,
        Progress(f"draw {lines.stem}", "frames") as progress,
    ):
        for frame in frames:
            if line is None or line.frame < frame.index:
                break
            if line.frame == frame.index:
                try:
                    people = line.people()
                except ValueError as error:
                    raise ValueError(f"{lines}: {error}") from error
                yield frame, keep_wanted(people, min_score, only_tracks)
                progress.advance()
                line = next(wanted, None)
    if line is not None:
        raise ValueError(
            f"{lines}: frame {line.frame} is not in {video.name}: is it another video?"
        )


def _writer(
    path: pathlib.Path, size_hw: tuple[int, int], video: Video
) -> contextlib.closing[VideoWriter]:
    return contextlib.closing(
        VideoWriter(path, size_hw, video.time_base, video.frame_rate, video.pixel_aspect)
    )
