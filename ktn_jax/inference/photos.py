"""Runs a predictor over image files and writes results and pictures."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ktn_jax.inference import batching
from ktn_jax.inference.inputs import CallablePredictor
from ktn_jax.results import drawing, maps, records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import atomic_files, images

_JPEG_QUALITY = 90


@dataclasses.dataclass
class PhotosSummary:
    """Counts of photos and people, and the files that could not be read."""

    num_photos: int = 0
    num_people: int = 0
    failures: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)


def predict_files(
    predictor: CallablePredictor,
    photos: Sequence[pathlib.Path],
    output_dir: str | os.PathLike[str],
    min_score: float = 0.0,
) -> PhotosSummary:
    """Predicts photos and writes `*_iuv.png`, `*_instances.png`, `*_overlay.jpg`, `results.json`.

    Photos are read ahead of the network and pictures written behind it.

    Args:
        predictor: with weights.
        photos: image files.
        output_dir: made if it does not exist.
        min_score: people with a lower score are left out.

    Returns:
        The summary, with the photos that could not be read. `results.json` has the people of the
        others in the order of the photos, even of a run that was interrupted.
    """
    output_dir = pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    names, ids = output_names(photos), image_ids(photos)
    test = predictor.config.test
    failures: dict[int, str] = {}
    found_records: dict[int, list[dict[str, Any]]] = {}
    num_people = 0

    def bucket_of(index: int) -> batching.Size:
        return batching.photo_bucket(images.peek_size_hw(photos[index]), test)

    def read(index: int) -> np.ndarray | None:
        try:
            return images.read_image(photos[index])
        except (images.ImageError, OSError) as error:
            failures[index] = str(error)
            return None

    def write(
        batch: Sequence[int],
        pictures: Sequence[np.ndarray],
        found: Sequence[Sequence[PersonResult]],
    ) -> None:
        nonlocal num_people
        for index, picture, people in zip(batch, pictures, found, strict=True):
            people = [person for person in people if person.score >= min_score]
            _write_pictures(output_dir / names[index], picture, people)
            found_records[index] = records.people_to_records(
                ids[index], people, file_name=photos[index].name
            )
            num_people += len(people)
        progress.update(len(found_records) + len(failures) - progress.n)

    batches = batching.batches_of_one_size(
        range(len(photos)), bucket_of, test.batch_size, batching.WINDOW * test.batch_size
    )
    with (
        _written_at_the_end(output_dir / "results.json", found_records),
        tqdm(total=len(photos), unit=" photos", desc="predict") as progress,
    ):
        batching.run(batches, read, predictor, write)
    return PhotosSummary(
        len(found_records),
        num_people,
        [(photos[index], reason) for index, reason in sorted(failures.items())],
    )


@contextlib.contextmanager
def _written_at_the_end(
    path: pathlib.Path, found: Mapping[int, Sequence[dict[str, Any]]]
) -> Iterator[None]:
    """Writes the records gathered so far by photo, also when interrupted."""
    try:
        yield
    finally:
        in_order = [record for _, of_photo in sorted(found.items()) for record in of_photo]
        records.write_results(path, in_order)


def _write_pictures(
    prefix: pathlib.Path, image: np.ndarray, people: Sequence[PersonResult]
) -> None:
    iuv, instances = maps.paste_iuv(people, image.shape[:2])
    maps.write_iuv_png(f"{prefix}_iuv.png", iuv)
    maps.write_instances_png(f"{prefix}_instances.png", instances)
    overlay = Image.fromarray(drawing.draw_people(image, people, show_keypoints=True))
    with atomic_files.replacing(f"{prefix}_overlay.jpg") as temporary:
        overlay.save(temporary, format="jpeg", quality=_JPEG_QUALITY)


def output_names(photos: Sequence[pathlib.Path]) -> list[str]:
    """Names for the output files: the photo's without suffix, numbered where two are the same."""
    taken: set[str] = set()
    names = []
    for path in photos:
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name)
        names.append(name)
    return names


def image_ids(photos: Sequence[pathlib.Path]) -> list[int]:
    """COCO image ids: the number that names each photo (000000000785.jpg), else 1, 2, 3, ..."""
    numbers = [re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", path.stem) for path in photos]
    ids = [int(number[1]) for number in numbers if number is not None]
    if len(set(ids)) == len(photos):
        return ids
    return list(range(1, len(photos) + 1))
