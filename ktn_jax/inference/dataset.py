"""Runs a predictor over a dataset and writes its results to disk, image by image.

Memory does not grow with the dataset. A stopped run can be resumed, and several processes can share
the images; see `results.shards` for the files.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth, ImageTruth
from ktn_jax.inference import batching
from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.inference.known_boxes import BoxedPhoto, KnownBoxPredictor, scored_boxes
from ktn_jax.inference.symmetries import Symmetry
from ktn_jax.results.categories import category_ids
from ktn_jax.results.records import PersonResult, people_to_records
from ktn_jax.results.shards import SHARD_PATTERN, ResultsWriter, merge_results
from ktn_jax.runtime import images
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.progress import Progress

_LOG = logging.getLogger(__name__)

SHARD_FOLDER = "shards"
RESULTS_FILE = "results.json"
_SHOWN = 3  # files named in a message
_DIGEST_LENGTH = 16
# Keys of `test` that change speed and not results: a run may be resumed with other values.
_FREE_KEYS = ("batch_size", "size_buckets")


def predict_dataset(
    predictor: CallablePredictor | KnownBoxPredictor,
    truths: Mapping[int, GroundTruth],
    images_dir: pathlib.Path,
    output_dir: pathlib.Path,
    run: Mapping[str, Any],
    processes: Processes | None = None,
    *,
    on_bad: Literal["raise", "skip"] = "raise",
    with_confidences: bool = False,
) -> tuple[pathlib.Path, list[GroundTruth]]:
    """Finds the people, or animals, of every image of a dataset.

    Args:
        predictor: with weights.
        truths: names the images, and the category in the dataset of each class of the model whose
            objects are written, by the number of the class; all are of one file. Only a
            `KnownBoxPredictor` is told of the people, whose boxes it describes.
        images_dir: the folder that their file names are relative to.
        output_dir: gets `shards/`, one file for each process, and `results.json`. A folder of the
            same run that was stopped is resumed.
        run: describes what the results depend on, see `describe_run`.
        processes: those that share the work; each calls this.
        on_bad: "raise" stops at images that cannot be read; "skip" leaves them out and notes it. A
            resumed run tries them again.
        with_confidences: write the confidences of a model that predicts them.

    Returns:
        The path of the results file, and the truths with the images that it covers: those of the
        dataset, with "skip" without those that cannot be read.

    Raises:
        EvaluationError: image files are missing, or were changed since they were predicted; with
            "skip", more than half of them cannot be read.
        ktn_jax.results.shards.ShardError: the folder holds another run.
        ktn_jax.runtime.images.ImageError: an image file cannot be read, or is of another size than
            annotated.
    """
    processes = processes or Processes()
    shards, results_path = output_dir / SHARD_FOLDER, output_dir / RESULTS_FILE
    # The split does not depend on what is done already: processes start at different times.
    dataset = next(iter(truths.values())).images
    share = dataset[processes.index :: processes.count]
    _check_files(share, images_dir, on_bad)
    # None: what cannot be read is an error.
    unreadable: dict[int, str] | None = {} if on_bad == "skip" else None
    changes = [path.stat().st_mtime_ns for path in shards.glob(SHARD_PATTERN)]
    with ResultsWriter(shards, run, processes.index) as writer:
        missing = [image for image in share if image.image_id not in writer.done]
        paths = [images_dir / image.file_name for image in share if image.image_id in writer.done]
        _check_unchanged(paths, max(changes, default=0), shards)
        with Progress(
            "predict",
            "images",
            total=len(share),
            done=len(share) - len(missing),
            is_shown=processes.is_first,
        ) as progress:
            _predict_images(
                predictor,
                dataset=missing,
                images_dir=images_dir,
                writer=writer,
                truths=truths,
                with_confidences=with_confidences,
                update=progress.advance,
                unreadable=unreadable,
            )
    if unreadable is not None:
        _write_unreadable(shards, processes.index, unreadable)
    processes.wait("predicted")
    if unreadable is not None:
        reasons = _read_unreadable(shards, processes.count)
        truths = {index: truth.without_unreadable(reasons) for index, truth in truths.items()}
        dataset = next(iter(truths.values())).images
    if processes.is_first:
        done, _ = merge_results(shards, results_path)
        if done != len(dataset):
            raise EvaluationError(
                f"{shards} holds {done} images, the dataset {len(dataset)}: a process stopped "
                "early, or its files are elsewhere (all processes must see the same folder)"
            )
    processes.wait("merged")
    return results_path, list(truths.values())


def _predict_images(
    predictor: CallablePredictor | KnownBoxPredictor,
    dataset: Sequence[ImageTruth],
    images_dir: pathlib.Path,
    writer: ResultsWriter,
    truths: Mapping[int, GroundTruth],
    with_confidences: bool,
    update: Callable[[int], Any],
    unreadable: dict[int, str] | None,
) -> None:
    """Reads ahead, and encodes and writes behind, so that the network waits for neither."""

    def read(image: ImageTruth) -> Any:
        try:
            photo = images.read_image(images_dir / image.file_name, image.image_size_hw)
            if isinstance(predictor, KnownBoxPredictor):
                return _boxed(photo, [(k, of_class[image.image_id]) for k, of_class in known])
            return photo
        except images.ImageError as error:
            if unreadable is None:
                raise
            unreadable[image.image_id] = str(error)
            _LOG.warning("left out: %s", error)
            return None

    def write(
        batch: Sequence[ImageTruth], _: object, found: Sequence[Sequence[PersonResult]]
    ) -> None:
        for image, objects in zip(batch, found, strict=True):
            kept = [person for person in objects if person.category_id in wanted]
            records = people_to_records(image.image_id, kept, with_confidences=with_confidences)
            named = [
                record | {"category_id": wanted[person.category_id]}
                for record, person in zip(records, kept, strict=True)
            ]
            writer.add(image.image_id, named)
        update(len(batch))

    test = predictor.config.test
    ids = category_ids(predictor.config.model.box_head.num_classes)
    wanted = {ids[index]: truth.category_id for index, truth in truths.items()}
    known = [
        (index, {image.image_id: image for image in truth.images})
        for index, truth in truths.items()
        if isinstance(predictor, KnownBoxPredictor)
    ]
    batches = batching.batches_of_one_size(
        dataset, lambda image: batching.photo_bucket(image.image_size_hw, test), test.batch_size
    )
    batching.run(batches, read, predictor, write)


def _boxed(photo: np.ndarray, annotated: Sequence[tuple[int, ImageTruth]]) -> BoxedPhoto:
    """A photo with the boxes of its people, each with its class."""
    boxes = [scored_boxes(image) for _, image in annotated]
    classes = np.repeat([index for index, _ in annotated], list(map(len, boxes)))
    return BoxedPhoto(photo, np.concatenate(boxes), classes)


def _check_files(
    dataset: Sequence[ImageTruth], folder: pathlib.Path, on_bad: Literal["raise", "skip"]
) -> None:
    """Checks all image files before the work starts."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder of images; name it with --images")
    if on_bad == "skip":  # reading finds them
        return
    missing = [
        image.file_name
        for image in dataset
        if not image.file_name or not (folder / image.file_name).is_file()
    ]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:_SHOWN])
        raise EvaluationError(
            f"{folder}: {len(missing)} of {len(dataset)} image files are missing, such as {shown}"
        )


def _check_unchanged(done: Sequence[pathlib.Path], since: int, shards: pathlib.Path) -> None:
    """Raises EvaluationError where images were written after their people were found.

    Args:
        done: image files whose people are in the shards.
        since: when the shards were last written, in nanoseconds.
        shards: their folder.
    """
    changed = [str(path) for path in done if path.is_file() and path.stat().st_mtime_ns > since]
    if changed:
        shown = ", ".join(changed[:_SHOWN])
        raise EvaluationError(
            f"{shards}: {len(changed)} of the images were changed after their people were found, "
            f"such as {shown}: remove the folder, or give another --output"
        )


def _unreadable_file(shards: pathlib.Path, index: int) -> pathlib.Path:
    return shards / f"unreadable-{index:05d}.json"


def _write_unreadable(shards: pathlib.Path, index: int, reasons: Mapping[int, str]) -> None:
    with replacing(_unreadable_file(shards, index)) as temporary:
        temporary.write_text(json.dumps({str(key): text for key, text in reasons.items()}))


def _read_unreadable(shards: pathlib.Path, count: int) -> dict[int, str]:
    """Why images cannot be read, by image id, from the files of all processes."""
    found: dict[int, str] = {}
    for index in range(count):
        content = json.loads(_unreadable_file(shards, index).read_bytes())
        found |= {int(image_id): reason for image_id, reason in content.items()}
    return found


def describe_run(
    config: ConfigDict,
    variables: Mapping[str, Any],
    data: bytes,
    augmented: bool = False,
    symmetry: Symmetry | None = None,
) -> dict[str, Any]:
    """Describes what a run's results depend on, so that a different run is not resumed by mistake.

    Args:
        config: a whole configuration, of which the name and the values of `model` and `test` that
            change results are read.
        variables: of the model: their values are compared, not their file's name.
        data: identifies the dataset: the content of the annotation file, or the settings that it is
            rendered from.
        augmented: whether views are averaged.
        symmetry: tables with which mirrored views are turned back.

    Returns:
        JSON values: digests, short enough for a message.
    """
    test = json.loads(config.test.to_json_best_effort())
    for key in _FREE_KEYS + (() if augmented else ("augmentation",)):
        test.pop(key, None)
    model = json.loads(config.model.to_json_best_effort())
    settings = hashlib.sha256(json.dumps([model, test], sort_keys=True).encode())
    tables = symmetry.values() if isinstance(symmetry, Mapping) else symmetry
    for table in tables or ():
        settings.update(np.ascontiguousarray(table).tobytes())
    return {
        "name": config.name,
        "settings": _digest(settings),
        "weights": _digest(_hash_values(variables)),
        "data": _digest(hashlib.sha256(data)),
        "augmented": augmented,
    }


def _hash_values(variables: Mapping[str, Any]) -> Any:
    """Hashes names, shapes and values, whatever file they came from.

    Kernels are read with their outputs first, as they lie in PyTorch's files: arrays that are
    mapped from those are then hashed without a copy.
    """

    def digest_of(item: tuple[str, Any]) -> bytes:
        name, values = item[0], np.asarray(item[1])
        digest = hashlib.sha256(f"{name} {values.shape} {values.dtype}\n".encode())
        if values.ndim > 1:
            values = np.moveaxis(values, (-1, -2), (0, 1))
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        return digest.digest()

    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return hashlib.sha256(b"".join(threads.map(digest_of, sorted(flat.items()))))


def default_folder(run: Mapping[str, Any], parent: str = "ktn_eval") -> pathlib.Path:
    """A folder name that only this run has, so that the same run finds it again."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    name = str(run["name"]).replace("/", "-")  # released models have names with folders
    return pathlib.Path(parent) / f"{name}-{digest[:8]}"


def _digest(digest: Any) -> str:
    return str(digest.hexdigest())[:_DIGEST_LENGTH]
