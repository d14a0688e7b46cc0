"""Runs a predictor over videos and writes videos of pictures and people as JSON lines."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ktn_jax.inference.inputs import StreamingPredictor
from ktn_jax.inference.output_files import check_targets
from ktn_jax.inference.video_inputs import VideoInput, names_of
from ktn_jax.inference.video_options import VideoOptions
from ktn_jax.inference.video_pipeline import VideoPipeline
from ktn_jax.inference.video_recording import Recording
from ktn_jax.runtime import atomic_files, locks
from ktn_jax.runtime.video_files import ENCODING
from ktn_jax.runtime.video_frames import VideoError

PARTIAL_FOLDER = "videos.partial"
_RUN_FILE, _DONE_FILE = "run.json", "done.json"


@dataclasses.dataclass
class VideoSummary:
    """What was made of a video.

    Attributes:
        name: of the input.
        num_frames: in the output, those of the part that was resumed included.
        num_people: in them.
        failure: why the video could not be read, or not to its end; None if it was.
        notes: remarks.
    """

    name: str
    num_frames: int = 0
    num_people: int = 0
    failure: str | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def output_paths(
    folder: pathlib.Path, name: str, options: VideoOptions
) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The JSON lines and the videos that are written for a video of this name."""
    videos = [folder / f"{name}_{picture}.mp4" for picture in options.pictures]
    return folder / f"{name}.jsonl", videos


def check_output(
    folder: pathlib.Path, videos: Sequence[VideoInput], options: VideoOptions, overwrite: bool
) -> None:
    """Checks that `predict_videos` would replace nothing but what a stopped run has left.

    Raises:
        ValueError: what would be written is there already, or is read.
    """
    targets: list[pathlib.Path] = []
    for name in names_of(videos):
        lines, outputs = output_paths(folder, name, options)
        targets += [lines, *outputs]
    is_stopped_run = (folder / PARTIAL_FOLDER).exists()  # checked when that run began
    inputs = [path for video in videos for path in video.files]
    check_targets(folder, targets, inputs, overwrite or is_stopped_run)


def predict_videos(
    predictor: StreamingPredictor,
    videos: Sequence[VideoInput],
    output_dir: str | os.PathLike[str],
    options: VideoOptions,
    *,
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[VideoSummary]:
    """Finds the people of videos; writes NAME_PICTURE.mp4 for each picture, and NAME.jsonl.

    Decoding, network, drawing and encoding overlap, and memory does not grow with the length. The
    videos have the times of the source's frames, and its sound. Frames are encoded in segments in
    the folder `videos.partial` and joined at the end; NAME.jsonl grows frame by frame, see
    `results.frame_lines`.

    Args:
        predictor: with weights.
        videos: see `video_inputs.find_videos`.
        output_dir: made if it does not exist.
        options: what to write of which frames.
        run: describes weights and configuration, see `dataset.describe_run`. The same call resumes
            a stopped one after its last complete segment; a camera or stream resumes there with
            what it shows now. None: nothing is resumed.
        overwrite: replace the files of another run; never what is read.

    Returns:
        A summary of each video. Of one that cannot be read to its end, the frames before are in
        the outputs.

    Raises:
        ValueError: the folder holds files of another run, or an input would be written over.
        FolderInUseError: another process writes into the folder.
        OSError: an output cannot be written; the same call resumes the run.
    """
    folder = pathlib.Path(output_dir)
    with locks.hold(folder):
        check_output(folder, videos, options, overwrite)
        description: dict[str, Any] = {"run": secrets.token_hex(8)} if run is None else dict(run)
        facts = json.dumps([[[v.name, v.facts] for v in videos], options.facts(), ENCODING])
        description["videos"] = hashlib.sha256(facts.encode()).hexdigest()[:16]
        partial = _open_partial(folder / PARTIAL_FOLDER, description, overwrite)
        summaries = []
        for video, name in zip(videos, names_of(videos), strict=True):
            summaries.append(
                _predict_video(predictor, video, folder, name, options, partial / name)
            )
        shutil.rmtree(partial)
    return summaries


def _open_partial(
    partial: pathlib.Path, description: Mapping[str, Any], overwrite: bool
) -> pathlib.Path:
    path, content = partial / _RUN_FILE, json.dumps(description, sort_keys=True)
    if partial.exists():
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == content:
            return partial
        if not overwrite and any(partial.iterdir()):
            raise ValueError(
                f"{partial} is a stopped run with other videos, weights or options: finish it with "
                "its own command, write to another folder, or replace it with overwrite "
                "(--overwrite)"
            )
        shutil.rmtree(partial)
    partial.mkdir()
    with atomic_files.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return partial


def _predict_video(
    predictor: StreamingPredictor,
    source: VideoInput,
    folder: pathlib.Path,
    name: str,
    options: VideoOptions,
    partial: pathlib.Path,
) -> VideoSummary:
    done = partial / _DONE_FILE
    if done.exists():  # in the part of the run that was stopped
        return _read_summary(done)
    lines_path, outputs = output_paths(folder, name, options)
    summary = VideoSummary(source.name)
    try:
        video = source.open()
    except VideoError as error:
        summary.failure = str(error).removeprefix(f"{source.name}: ")
        return summary
    with video, contextlib.closing(Recording(partial, lines_path, options.pictures, video)) as kept:
        pipeline = VideoPipeline(predictor, video, source.name, kept, options, partial)
        try:
            pipeline.run(f"predict {name}")
        except KeyboardInterrupt:
            if not video.is_live:  # of a camera it is the way to end
                raise
        summary.num_frames, summary.num_people = kept.num_frames, kept.num_people
        summary.failure = video.failure
        summary.notes = [*video.notes, *pipeline.notes]
        if not kept.num_frames:
            summary.failure = video.failure or "has no frame in the part that was asked for"
            lines_path.unlink()
            return summary
        note = kept.join(outputs, source.sound, pipeline.sound_range())
        summary.notes += [note] if note else []
    with atomic_files.replacing(done) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(summary)), encoding="utf-8")
    for segment in partial.glob("*.mp4"):
        segment.unlink()
    return summary


def _read_summary(path: pathlib.Path) -> VideoSummary:
    try:
        summary = VideoSummary(**json.loads(path.read_bytes()))
        counts = (summary.num_frames, summary.num_people)
        if not all(type(count) is int for count in counts) or not isinstance(summary.notes, list):
            raise TypeError(f"counts are numbers, notes a list, got {summary!r:.100}")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged: remove it to make its video again ({error})"
        ) from error
    return summary
