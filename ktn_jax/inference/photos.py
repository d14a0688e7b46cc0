"""Runs a predictor over image files and writes results and pictures."""

import collections
import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.inference import batching
from ktn_jax.inference.dataset import RESULTS_FILE
from ktn_jax.inference.inputs import StreamingPredictor
from ktn_jax.inference.output_files import check_targets
from ktn_jax.inference.photo_names import as_text, image_ids, output_names
from ktn_jax.inference.photo_products import Products
from ktn_jax.modeling.person_branches import has_charts
from ktn_jax.results import records
from ktn_jax.results.categories import PERSON_CATEGORY
from ktn_jax.results.detection_checks import check_record
from ktn_jax.results.dumps import Dump
from ktn_jax.results.pictures import LONGEST_JPEG_SIDE
from ktn_jax.results.records import PersonResult
from ktn_jax.results.shards import ResultsWriter, ShardError, merge_results
from ktn_jax.runtime import images, json_stream, locks
from ktn_jax.runtime.background import give_way, short_turns
from ktn_jax.runtime.progress import Progress

PARTIAL_FOLDER = "results.partial"
_PHOTOS_BEHIND = 2  # found and not yet written
NO_MORE = Products()
"""The usual pictures alone."""

# What no other photo could be written after.
_ERRORS_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclasses.dataclass
class PhotosSummary:
    """Counts of photos and people, and what could not be done.

    Attributes:
        num_photos: in the results, those of the part that was resumed included.
        num_people: in the results.
        failures: photos that could not be read or written, and why.
        notes: remarks about photos that are in the results.
    """

    num_photos: int = 0
    num_people: int = 0
    failures: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    notes: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)


def predict_files(
    predictor: StreamingPredictor,
    photos: Sequence[pathlib.Path],
    output_dir: str | os.PathLike[str],
    min_score: float = 0.0,
    *,
    ids: Sequence[int] | None = None,
    sizes_hw: Sequence[tuple[int, int]] | None = None,
    category_id: int = PERSON_CATEGORY,
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    products: Products = NO_MORE,
) -> PhotosSummary:
    """Predicts photos and writes `*_iuv.png`, `*_instances.png`, `*_overlay.jpg`, `results.json`.

    A model without DensePose gives no `*_iuv.png`.
    Photos are read ahead of the network and pictures written behind it. The people of each photo
    are kept in the folder `results.partial` as soon as they are found; `results.json` is written
    when all photos are done, and an older one is whole until then.

    Args:
        predictor: with weights.
        photos: image files.
        output_dir: made if it does not exist.
        min_score: people with a lower score are left out.
        ids: image ids of the photos, all different; None for `photo_names.image_ids`.
        sizes_hw: height and width in the annotations of the photos, which are then read in that
            frame, see `images.decode_image`; None where there are none.
        category_id: of people.
        run: describes weights and configuration, see `dataset.describe_run`. The same call resumes
            a stopped one, photos that could not be read are tried again. None: nothing is resumed.
        overwrite: replace the files of another run; never those of `photos`.
        products: what else to write. Confidences go into the results too.

    Returns:
        The summary, with the photos that could not be read or written. `results.json` has the
        people of the others by ascending image id, each with the `file_name` that was given and the
        `output_name` with which the names of its pictures begin.

    Raises:
        ValueError: `min_score` is not a number, `ids` are not as many as the photos or not all
            different, the folder holds files of another run, or a photo would be written over.
        FolderInUseError: another process writes into the folder.
    """
    if math.isnan(min_score):
        raise ValueError("min_score must be a number, got nan")
    output_dir = pathlib.Path(output_dir)
    ids = image_ids(photos) if ids is None else ids
    if len(ids) != len(photos) or len(set(ids)) != len(ids):
        raise ValueError(f"wanted {len(photos)} different image ids, got {len(set(ids))}")
    names = output_names(photos)
    sizes = [None] * len(photos) if sizes_hw is None else sizes_hw
    with locks.hold(output_dir):
        check_output(output_dir, photos, overwrite, products)
        # Of a run that nothing describes, nobody can tell whether it is the same.
        description: dict[str, Any] = {"run": secrets.token_hex(8)} if run is None else dict(run)
        options = (category_id, min_score, products.options(), *sizes)
        description["photos"] = _digest(photos, ids, options)
        with _open_partial(output_dir, description, overwrite) as writer:
            work = _Work(
                photos,
                names,
                ids,
                sizes,
                output_dir,
                min_score,
                category_id,
                products,
                writer,
            )
            work.run(predictor)
        num_photos, _ = merge_results(output_dir / PARTIAL_FOLDER, output_dir / RESULTS_FILE)
        shutil.rmtree(output_dir / PARTIAL_FOLDER)
    num_people = sum(1 for _ in json_stream.iterate_objects(output_dir / RESULTS_FILE))
    return PhotosSummary(
        num_photos,
        num_people,
        [(photos[index], reason) for index, reason in sorted(work.failures.items())],
        [(photos[index], note) for index, note in sorted(work.notes.items())],
    )


class _Work:
    """The photos of a run that are not done yet: read, written and kept one by one."""

    def __init__(
        self,
        photos: Sequence[pathlib.Path],
        names: Sequence[str],
        ids: Sequence[int],
        sizes_hw: Sequence[tuple[int, int] | None],
        output_dir: pathlib.Path,
        min_score: float,
        category_id: int,
        products: Products,
        writer: ResultsWriter,
    ):
        self._photos, self._names, self._ids = photos, names, ids
        self._sizes_hw = sizes_hw
        self._output_dir = output_dir
        self._min_score, self._category_id = min_score, category_id
        self._products = products
        self._writer = writer
        self.failures: dict[int, str] = {}
        self.notes: dict[int, str] = {}

    def run(self, predictor: StreamingPredictor) -> None:
        test = predictor.config.test
        charts = self._products.charts
        self._with_charts = has_charts(predictor.config.model) or charts is not None
        missing = [n for n, image_id in enumerate(self._ids) if image_id not in self._writer.done]

        def bucket_of(index: int) -> batching.Size:
            return batching.photo_bucket(images.peek_size_hw(self._photos[index]), test)

        batches = batching.batches_of_one_size(
            missing, bucket_of, test.batch_size, batching.WINDOW * test.batch_size
        )
        done, total = len(self._writer.done), len(self._photos)
        taken = collections.deque[tuple[int, np.ndarray]]()
        waiting = collections.deque[concurrent.futures.Future[None]]()
        with (
            short_turns(),
            Progress("predict", "photos", total, done=done) as progress,
            concurrent.futures.ThreadPoolExecutor(batching.BATCHES_AHEAD) as readers,
            concurrent.futures.ThreadPoolExecutor(1, initializer=give_way) as writer,
        ):

            def finish(index: int, picture: np.ndarray, people: Sequence[PersonResult]) -> None:
                self._write(index, picture, people)
                progress.set(len(self._writer.done) + len(self.failures), total)

            # The predictor makes batches of photos that follow each other.
            order = ([index] for batch in batches for index in batch)
            read = batching.read_ahead(readers, order, self._read)
            for people in predictor(_pictures(read, taken)):
                waiting.append(writer.submit(finish, *taken.popleft(), people))
                while len(waiting) > _PHOTOS_BEHIND:
                    waiting.popleft().result()
            for task in waiting:
                task.result()

    def _read(self, index: int) -> np.ndarray | None:
        path = self._photos[index]
        try:
            image = images.read_image(path, self._sizes_hw[index])
        except (images.ImageError, OSError) as error:
            self.failures[index] = str(error).removeprefix(f"{path}: ")
            return None
        height, width = image.shape[:2]
        if max(height, width) > LONGEST_JPEG_SIDE:
            self.failures[index] = (
                f"{width} x {height} pixels: its overlay would be a JPEG, whose sides have at most "
                f"{LONGEST_JPEG_SIDE:,}"
            )
            return None
        frames = images.count_frames(path)
        if frames > 1:
            self.notes[index] = f"the first of {frames} frames is used"
        return image

    def _write(self, index: int, picture: np.ndarray, people: Sequence[PersonResult]) -> None:
        people = [person for person in people if person.score >= self._min_score]
        name, charts = self._names[index], self._products.charts
        try:
            if charts is not None:
                people = [charts.add_iuv(person) for person in people]
            entries = self._entries(index, people)
            dump = Dump(
                as_text(self._photos[index]), self._ids[index], picture.shape[:2], tuple(people)
            )
            self._products.write(self._output_dir, name, picture, dump, self._with_charts)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _ERRORS_OF_THE_DISK:
                raise
            reason = error.strerror if isinstance(error, OSError) else None
            self.failures[index] = (
                f"its results cannot be written to {self._output_dir}: {reason or error}"
            )
            return
        # Outside: after half a line nothing can be appended.
        self._writer.add(self._ids[index], entries)

    def _entries(self, index: int, people: Sequence[PersonResult]) -> list[dict[str, Any]]:
        found = records.people_to_records(
            self._ids[index],
            people,
            with_confidences=self._products.with_confidences,
            category_id=self._category_id,
            file_name=as_text(self._photos[index]),
            output_name=as_text(self._names[index]),
        )
        return [check_record(f"person {number}", record) for number, record in enumerate(found)]


def _pictures(
    read: Iterable[tuple[list[int], list[np.ndarray]]],
    taken: collections.deque[tuple[int, np.ndarray]],
) -> Iterator[np.ndarray]:
    """Yields the photos that were read, and remembers them until their people are found."""
    for items, pictures in read:
        for index, picture in zip(items, pictures, strict=True):
            taken.append((index, picture))
            yield picture


def check_output(
    folder: pathlib.Path,
    photos: Sequence[pathlib.Path],
    overwrite: bool = False,
    products: Products = NO_MORE,
) -> None:
    """Checks that `predict_files` would replace nothing but what a stopped run has left.

    Args:
        folder: to write into.
        photos: image files.
        overwrite: files of another run may be replaced, photos never.
        products: see `predict_files`.

    Raises:
        ValueError: what would be written is there already, or is one of the photos.
    """
    names = output_names(photos)
    targets = [folder / RESULTS_FILE]
    targets += [folder / f"{name}{ending}" for name in names for ending in products.endings]
    is_stopped_run = (folder / PARTIAL_FOLDER).exists()  # checked when that run began
    check_targets(folder, targets, photos, overwrite or is_stopped_run)


def _open_partial(
    folder: pathlib.Path, description: Mapping[str, Any], overwrite: bool
) -> ResultsWriter:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL_FOLDER
    try:
        return ResultsWriter(partial, description)
    except ShardError as error:
        if not overwrite:
            raise ValueError(
                f"{partial} is a stopped run with other photos, weights or options: finish it with "
                "its own command, write to another folder, or replace it with overwrite "
                "(--overwrite)"
            ) from error
    shutil.rmtree(partial)
    return ResultsWriter(partial, description)


def _digest(photos: Sequence[pathlib.Path], ids: Sequence[int], options: Sequence[Any]) -> str:
    """Identifies photos by path, id, size and time of change, and the options of a run."""
    digest = hashlib.sha256(json.dumps(list(options)).encode())
    for path, image_id in zip(photos, ids, strict=True):
        try:
            status = path.stat()
            facts = (status.st_size, status.st_mtime_ns)
        except OSError:
            facts = (-1, -1)  # it will be reported when it is read
        digest.update(json.dumps([as_text(path), int(image_id), *facts]).encode())
    return digest.hexdigest()[:16]
