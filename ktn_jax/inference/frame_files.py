"""Frames of a video as photos: image files that annotations can name."""

import contextlib
import json
import pathlib

from ktn_jax.inference.video_inputs import VideoInput
from ktn_jax.results.pictures import write_jpeg
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.progress import Progress
from ktn_jax.runtime.read_ahead import read_ahead
from ktn_jax.runtime.video_frames import Selection

_FRAMES_AHEAD = 4


def write_frames(
    video: VideoInput, selection: Selection, folder: pathlib.Path, record: pathlib.Path
) -> tuple[list[pathlib.Path], list[str]]:
    """Writes frames of a video as FOLDER/000123.jpg, by their index; the same call resumes.

    Args:
        video: that is read from files.
        selection: which frames.
        folder: of these frames alone; made if it does not exist.
        record: file that says which video and frames the folder is of, for as long as the run that
            wants them is unfinished.

    Returns:
        The files, and what to say of the video: notes, and why it could not be read to its end.
        Broken frames, which a video replaces by the last good one, are left out.

    Raises:
        ValueError: the folder is there and no unfinished run has made it, or one of another video
            or other frames; or no frame is chosen.
        VideoError: the video cannot be opened.
    """
    facts = json.loads(json.dumps([video.facts, str(selection)]))  # as they are read again
    if record.exists():
        if json.loads(record.read_bytes()) != facts:
            raise ValueError(
                f"{record.parent} is of another video or other frames of it: give another "
                "--output, or remove it"
            )
    elif folder.exists():
        raise ValueError(
            f"{folder} exists and is of no unfinished run: give another --images, or remove it"
        )
    with video.open() as opened:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(facts))
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        with (
            contextlib.closing(read_ahead(opened.frames(selection), _FRAMES_AHEAD)) as frames,
            Progress(f"frames of {video.stem}", "frames", opened.count(selection)) as progress,
        ):
            for frame in frames:
                if frame.is_repeated:
                    continue
                path = folder / f"{frame.index:06d}.jpg"
                if not path.exists():
                    write_jpeg(path, frame.image)
                paths.append(path)
                progress.advance()
        said = [*opened.notes, *([opened.failure] if opened.failure else [])]
    if not paths:
        raise ValueError(": ".join([video.name, *said, "there is no frame to label"]))
    return paths, [f"{video.name}: {text}" for text in said]
