"""Runs a predictor over a dataset and writes its results to disk, image by image.

Memory does not grow with the dataset. A stopped run can be resumed, and several processes can share
the images; see `results.shards` for the files.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import GroundTruth, ImageTruth
from ktn_jax.inference import batching
from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.results.records import PersonResult, people_to_records
from ktn_jax.results.shards import ResultsWriter, merge_results
from ktn_jax.runtime import images
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.progress import Progress

SHARD_FOLDER = "shards"
RESULTS_FILE = "results.json"
_SHOWN = 3  # files named in a message
_DIGEST_LENGTH = 16
# Keys of `test` that change speed and not results: a run may be resumed with other values.
_FREE_KEYS = ("batch_size", "size_buckets")


def predict_dataset(
    predictor: CallablePredictor,
    truth: GroundTruth,
    images_dir: pathlib.Path,
    output_dir: pathlib.Path,
    run: Mapping[str, Any],
    processes: Processes | None = None,
    *,
    with_confidences: bool = False,
) -> pathlib.Path:
    """Finds the people of every image of a dataset.

    Args:
        predictor: with weights.
        truth: names the images; its people are not used.
        images_dir: the folder that their file names are relative to.
        output_dir: gets `shards/`, one file for each process, and `results.json`. A folder of the
            same run that was stopped is resumed.
        run: describes what the results depend on, see `describe_run`.
        processes: those that share the work; each calls this.
        with_confidences: write the confidences of a model that predicts them.

    Returns:
        The path of the results file, which covers every image of the dataset.

    Raises:
        EvaluationError: image files are missing or of another size than annotated, or the folder
            holds another run.
        ktn_jax.runtime.images.ImageError: an image file cannot be read.
    """
    processes = processes or Processes()
    shards, results_path = output_dir / SHARD_FOLDER, output_dir / RESULTS_FILE
    # The split does not depend on what is done already: processes start at different times.
    share = truth.images[processes.index :: processes.count]
    _check_files(share, images_dir)
    with ResultsWriter(shards, run, processes.index) as writer:
        missing = [image for image in share if image.image_id not in writer.done]
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
                category_id=truth.category_id,
                with_confidences=with_confidences,
                update=progress.advance,
            )
    processes.wait("predicted")
    if processes.is_first:
        done, _ = merge_results(shards, results_path)
        if done != len(truth.images):
            raise EvaluationError(
                f"{shards} holds {done} images, the dataset {len(truth.images)}: a process stopped "
                "early, or its files are elsewhere (all processes must see the same folder)"
            )
    processes.wait("merged")
    return results_path


def _predict_images(
    predictor: CallablePredictor,
    dataset: Sequence[ImageTruth],
    images_dir: pathlib.Path,
    writer: ResultsWriter,
    category_id: int,
    with_confidences: bool,
    update: Callable[[int], Any],
) -> None:
    """Reads ahead, and encodes and writes behind, so that the network waits for neither."""

    def write(
        batch: Sequence[ImageTruth], _: object, found: Sequence[Sequence[PersonResult]]
    ) -> None:
        for image, people in zip(batch, found, strict=True):
            records = people_to_records(
                image.image_id,
                people,
                with_confidences=with_confidences,
                category_id=category_id,
            )
            writer.add(image.image_id, records)
        update(len(batch))

    test = predictor.config.test
    batches = batching.batches_of_one_size(
        dataset, lambda image: batching.photo_bucket(image.image_size_hw, test), test.batch_size
    )
    batching.run(batches, lambda image: _read(image, images_dir), predictor, write)


def _read(image: ImageTruth, folder: pathlib.Path) -> np.ndarray:
    path = folder / image.file_name
    photo = images.read_image(path)
    if photo.shape[:2] != image.image_size_hw:
        height, width = image.image_size_hw
        raise EvaluationError(
            f"{path}: the image is {photo.shape[0]} x {photo.shape[1]} (height x width), the "
            f"annotations say {height} x {width}: is it the right folder?"
        )
    return photo


def _check_files(dataset: Sequence[ImageTruth], folder: pathlib.Path) -> None:
    """Checks all image files before the work starts."""
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder of images; name it with --images")
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


def describe_run(
    config: ConfigDict,
    variables: Mapping[str, Any],
    data: bytes,
    augmented: bool = False,
    symmetry: UVSymmetry | None = None,
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
    for table in symmetry or ():
        settings.update(np.ascontiguousarray(table).tobytes())
    weights = hashlib.sha256()
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    for name in sorted(flat):
        values = np.ascontiguousarray(flat[name])
        weights.update(f"{name} {values.shape} {values.dtype}\n".encode())
        weights.update(values.reshape(-1).view(np.uint8).data)
    return {
        "name": config.name,
        "settings": _digest(settings),
        "weights": _digest(weights),
        "data": _digest(hashlib.sha256(data)),
        "augmented": augmented,
    }


def default_folder(run: Mapping[str, Any]) -> pathlib.Path:
    """A folder name that only this run has, so that the same run finds it again."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return pathlib.Path("ktn_eval") / f"{run['name']}-{digest[:8]}"


def _digest(digest: Any) -> str:
    return str(digest.hexdigest())[:_DIGEST_LENGTH]
