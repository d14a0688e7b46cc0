"""Annotation files of people that a model finds in photos or a video, or of a results file.

What is made of each image is kept in the folder OUTPUT.unfinished as soon as it is known, so that
the same call resumes a stopped one. OUTPUT is written when all images are done.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.data_pipelines.coco.record_checks import MAX_IMAGE_ID
from ktn_jax.inference import batching
from ktn_jax.inference.bootstrapping import BootstrapSettings, label_people
from ktn_jax.inference.frame_files import write_frames
from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.inference.photo_names import as_text, image_ids
from ktn_jax.inference.result_photos import PhotoSearch, index_people, read_people
from ktn_jax.inference.video_inputs import VideoInput
from ktn_jax.results.categories import PERSON_CATEGORY
from ktn_jax.results.records import PersonResult
from ktn_jax.results.shards import ResultsWriter, merge_results
from ktn_jax.runtime import image_files, images, json_stream, locks
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.progress import Progress
from ktn_jax.runtime.video_frames import Selection

_FRAMES = "frames.json"  # says which frames of which video were written


@dataclasses.dataclass
class BootstrapSummary:
    """What was made.

    Attributes:
        images: in the file.
        people: labelled.
        points: of them.
        ignored: crowd regions, of people below `min_score`.
        failures: a sentence about each image that was left out, and of what is wrong with a video.
    """

    images: int = 0
    people: int = 0
    points: int = 0
    ignored: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image to label: its file, and what the annotation file says of it."""

    path: pathlib.Path
    file_name: str
    size_hw: tuple[int, int]


def check_output(output: pathlib.Path) -> None:
    """Checks what can be checked before a model is loaded.

    Raises:
        ValueError: the file is there already, or its name does not end in .json.
        FileNotFoundError: there is no folder for it.
    """
    if output.suffix != ".json":
        raise ValueError(f"--output {output}: must be a file NAME.json")
    if output.exists():
        raise ValueError(f"{output} exists: give another --output, or remove it")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no such folder")


def bootstrap_photos(
    predictor: CallablePredictor,
    images_dir: pathlib.Path,
    output: pathlib.Path,
    settings: BootstrapSettings,
    run: Mapping[str, Any],
) -> BootstrapSummary:
    """Labels the photos of a folder, and of its subfolders, with a model.

    Args:
        predictor: of a model with DensePose.
        images_dir: the folder; file names in the output are relative to it.
        output: annotation file to write.
        settings: who is labelled, and how.
        run: describes the model, see `dataset.describe_run`.

    Returns:
        What was made. Photos that cannot be read are left out, and tried again by the next call if
        this one is stopped.

    Raises:
        ValueError: see `check_output`; no photo; or the unfinished run there is another one.
        FolderInUseError: another process writes there.
    """
    check_output(output)
    paths = image_files.find_images([images_dir], recursive=True).paths
    return _bootstrap_paths(predictor, paths, images_dir, output, settings, run)


def bootstrap_video(
    predictor: CallablePredictor,
    video: VideoInput,
    selection: Selection,
    images_dir: pathlib.Path,
    output: pathlib.Path,
    settings: BootstrapSettings,
    run: Mapping[str, Any],
) -> BootstrapSummary:
    """Labels frames of a video with a model.

    Args:
        predictor: of a model with DensePose.
        video: that is read from files.
        selection: which frames.
        images_dir: folder in which a new one, named after the video, gets the frames as photos; the
            file names in the output are relative to it.
        output: annotation file to write.
        settings: who is labelled, and how.
        run: describes the model, see `dataset.describe_run`.

    Returns:
        What was made; what was wrong with the video is among the failures.

    Raises:
        ValueError: see `check_output` and `frame_files.write_frames`; or the unfinished run there
            is another one.
        FolderInUseError: another process writes there.
    """
    check_output(output)
    unfinished = _unfinished(output)
    with locks.hold(unfinished):
        folder, record = images_dir / video.stem, unfinished / _FRAMES
        paths, notes = write_frames(video, selection, folder, record)
    summary = _bootstrap_paths(predictor, paths, images_dir, output, settings, run)
    summary.failures += notes
    return summary


def _bootstrap_paths(
    predictor: CallablePredictor,
    paths: Sequence[pathlib.Path],
    images_dir: pathlib.Path,
    output: pathlib.Path,
    settings: BootstrapSettings,
    run: Mapping[str, Any],
) -> BootstrapSummary:
    """Labels photos within a folder with a model, see `bootstrap_photos`."""
    ids = _small_ids(image_ids(paths))
    planned, failures = _plan(dict(zip(ids, paths, strict=True)), images_dir, images.peek_size_hw)
    test = predictor.config.test

    def work(writer: ResultsWriter, advance: Callable[[], None]) -> None:
        def read(image_id: int) -> np.ndarray | None:
            image = planned[image_id]
            try:
                return images.read_image(image.path, image.size_hw)
            except (images.ImageError, OSError) as error:
                failures[image_id] = str(error)
                return None

        def finish(
            batch: Sequence[int], _: Sequence[np.ndarray], found: Sequence[Sequence[PersonResult]]
        ) -> None:
            for image_id, people in zip(batch, found, strict=True):
                size_hw = planned[image_id].size_hw
                writer.add(image_id, label_people(image_id, people, size_hw, settings))
            advance()

        def bucket_of(image_id: int) -> batching.Size:
            return batching.photo_bucket(planned[image_id].size_hw, test)

        missing = [image_id for image_id in planned if image_id not in writer.done]
        batches = batching.batches_of_one_size(
            missing, bucket_of, test.batch_size, batching.WINDOW * test.batch_size
        )
        batching.run(batches, read, predictor, finish)

    return _make(output, planned, failures, {"model": dict(run)}, settings, work)


def bootstrap_results(
    results: pathlib.Path,
    images_dir: pathlib.Path,
    output: pathlib.Path,
    settings: BootstrapSettings,
) -> BootstrapSummary:
    """Labels the images of a results file with its people.

    Args:
        results: as `ktn predict` writes it, or any in its format. People below `min_score` are
            ignored regions only if it holds them (`ktn predict --min-score`).
        images_dir: folder of the photos, which are found as `ktn draw` finds them.
        output: annotation file to write.
        settings: who is labelled, and how.

    Returns:
        What was made; images whose photo is not there or cannot be read are left out.

    Raises:
        ValueError: see `check_output`; or a damaged results file, or one without charts or without
            the confidence that the sampler needs.
        FolderInUseError: another process writes there.
    """
    check_output(output)
    found = index_people(results, settings.ignore_score)
    search = PhotoSearch(images_dir, {})
    ids = dict(zip(_small_ids(list(found)), found, strict=True))  # ours: the file's
    paths = {ours: search.find(theirs, found[theirs].file_name) for ours, theirs in ids.items()}
    known = {image_id: path for image_id, path in paths.items() if path is not None}
    planned, failures = _plan(known, images_dir, _size_hw)
    for image_id in paths.keys() - known.keys():
        failures[image_id] = f"{search.describe(ids[image_id], found)}: not found"
    if not planned:
        raise ValueError(
            f"{results}: none of its photos can be read, such as {next(iter(failures.values()))}"
        )

    def work(writer: ResultsWriter, advance: Callable[[], None]) -> None:
        with open(results, "rb") as handle:
            for image_id, image in planned.items():
                if image_id in writer.done:
                    continue
                people = read_people(results, handle, found[ids[image_id]])
                try:
                    entries = label_people(image_id, people, image.size_hw, settings)
                except ValueError as error:
                    raise ValueError(f"{results}: image {ids[image_id]}: {error}") from error
                writer.add(image_id, entries)
                advance()

    with open(results, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return _make(output, planned, failures, {"results": digest}, settings, work)


def _small_ids(ids: Sequence[int]) -> list[int]:
    """The same ids, or 1, 2, ... where one is no id of an annotation file."""
    is_sound = all(0 <= image_id <= MAX_IMAGE_ID for image_id in ids)
    return list(ids) if is_sound else list(range(1, len(ids) + 1))


def _size_hw(path: pathlib.Path) -> tuple[int, int] | None:
    """The size of a photo as it was predicted, for certain: `peek_size_hw` can miss that of PNG."""
    try:
        image = images.read_image(path)
    except (images.ImageError, OSError):
        return None
    return image.shape[0], image.shape[1]


def _plan(
    paths: Mapping[int, pathlib.Path],
    images_dir: pathlib.Path,
    size_of: Callable[[pathlib.Path], tuple[int, int] | None],
) -> tuple[dict[int, _Image], dict[int, str]]:
    """The images that have a size and a name, and why others are left out, by image id."""
    planned: dict[int, _Image] = {}
    failures: dict[int, str] = {}
    for image_id, path in sorted(paths.items()):
        size_hw = size_of(path)
        name = pathlib.Path(os.path.relpath(path, images_dir)).as_posix()
        if name.startswith("../"):
            failures[image_id] = f"{path}: is not in {images_dir}"
        elif size_hw is None:
            failures[image_id] = f"{path}: no image that can be read"
        elif as_text(name) != name:
            failures[image_id] = f"{as_text(path)}: its name is no UTF-8, which JSON needs"
        else:
            planned[image_id] = _Image(path, name, size_hw)
    return planned, failures


def _make(
    output: pathlib.Path,
    planned: Mapping[int, _Image],
    failures: dict[int, str],
    made_by: Mapping[str, Any],
    settings: BootstrapSettings,
    work: Callable[[ResultsWriter, Callable[[], None]], None],
) -> BootstrapSummary:
    """Labels the images that are not done, and writes the annotation file."""
    info = {**made_by, "settings": dataclasses.asdict(settings)}
    unfinished = _unfinished(output)
    with locks.hold(unfinished):
        with ResultsWriter(unfinished, {**info, "images": _digest(planned)}) as writer:
            done, total = len(writer.done), len(planned)
            with Progress("bootstrap", "images", total, done=done) as progress:
                work(writer, lambda: progress.set(len(writer.done), total))
        summary = _write(output, unfinished, planned, failures, info)
    shutil.rmtree(unfinished)
    return summary


def _unfinished(output: pathlib.Path) -> pathlib.Path:
    """The folder of what is done, until all is."""
    return output.with_name(f"{output.name}.unfinished")


def _digest(planned: Mapping[int, _Image]) -> str:
    """Identifies the images by id, name and size."""
    facts = [[image_id, image.file_name, *image.size_hw] for image_id, image in planned.items()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _write(
    output: pathlib.Path,
    unfinished: pathlib.Path,
    planned: Mapping[int, _Image],
    failures: Mapping[int, str],
    info: Mapping[str, Any],
) -> BootstrapSummary:
    merged = unfinished / "merged.json"
    merge_results(unfinished, merged)
    kept = [(image_id, image) for image_id, image in planned.items() if image_id not in failures]
    summary = BootstrapSummary(images=len(kept), failures=[failures[n] for n in sorted(failures)])
    annotations: list[dict[str, Any]] = []
    for _, _, entry in json_stream.iterate_objects(merged):
        annotations.append({"id": len(annotations) + 1, **entry})
        summary.ignored += entry["iscrowd"]
        summary.people += 1 - entry["iscrowd"]
        summary.points += len(entry.get("dp_x", ()))
    content = {
        "info": {"description": "People that a model found and labelled", **info},
        "images": [
            {
                "id": image_id,
                "file_name": image.file_name,
                "height": image.size_hw[0],
                "width": image.size_hw[1],
            }
            for image_id, image in kept
        ],
        "annotations": annotations,
        "categories": [{"id": PERSON_CATEGORY, "name": "person"}],
    }
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")
    return summary


def describe(summary: BootstrapSummary, output: str | os.PathLike[str]) -> str:
    """A sentence about what was made."""
    return (
        f"{summary.people} people with {summary.points} points in {summary.images} images, and "
        f"{summary.ignored} regions of people below the score, written to {output}"
    )
