"""Runs a predictor over files of photos and writes what it finds, picture by picture."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ktn_jax.inference.predictor import Predictor
from ktn_jax.results import drawing, maps, records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import atomic_files, images

_JPEG_QUALITY = 90


@dataclasses.dataclass
class Report:
    """What was done: photos finished, people in them, and files that could not be read."""

    num_photos: int = 0
    num_people: int = 0
    failures: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)


def predict_files(
    predictor: Predictor,
    photos: Sequence[pathlib.Path],
    output_dir: str | os.PathLike,
    min_score: float = 0.0,
) -> Report:
    """Predicts photos and writes `*_iuv.png`, `*_instances.png`, `*_overlay.jpg`, `results.json`.

    Args:
        predictor: with weights.
        photos: image files.
        output_dir: made if it does not exist.
        min_score: people below are left out.

    Returns:
        What was done. A photo that cannot be read is reported there, the others are done all the
        same; `results.json` holds what was found even if something stops the run.
    """
    output_dir = pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    names = output_names(photos)
    ids = image_ids(photos)
    report, found_records = Report(), []
    batch_size = predictor.config.test.batch_size
    with _written_at_the_end(output_dir / "results.json", found_records):
        with tqdm(total=len(photos), unit=" photos", desc="predict") as progress:
            for batch in _read_in_batches(photos, batch_size, report):
                found = predictor([image for _, image in batch])
                for (index, image), people in zip(batch, found, strict=True):
                    people = [person for person in people if person.score >= min_score]
                    _write_pictures(output_dir / names[index], image, people)
                    found_records += records.people_to_records(
                        ids[index], people, file_name=photos[index].name
                    )
                    report.num_photos += 1
                    report.num_people += len(people)
                progress.update(report.num_photos + len(report.failures) - progress.n)
    return report


@contextlib.contextmanager
def _written_at_the_end(path: pathlib.Path, found: list[dict[str, Any]]) -> Iterator[None]:
    """Writes the records gathered so far, also when interrupted."""
    try:
        yield
    finally:
        records.write_results(path, found)


def _read_in_batches(
    photos: Sequence[pathlib.Path], batch_size: int, report: Report
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Reads photos as they are needed; those that cannot be read go into the report."""
    batch = []
    for index, path in enumerate(photos):
        try:
            batch.append((index, images.read_image(path)))
        except (images.ImageError, OSError) as error:
            report.failures.append((path, str(error)))
        if len(batch) == batch_size:
            yield batch
            batch = []
    # An empty batch lets the progress bar see trailing failures.
    yield batch


def _write_pictures(prefix: pathlib.Path, image: np.ndarray, people: list[PersonResult]) -> None:
    iuv, instances = maps.paste_iuv(people, image.shape[:2])
    maps.write_iuv_png(f"{prefix}_iuv.png", iuv)
    maps.write_instances_png(f"{prefix}_instances.png", instances)
    overlay = Image.fromarray(drawing.draw_people(image, people, show_keypoints=True))
    with atomic_files.replacing(f"{prefix}_overlay.jpg") as temporary:
        overlay.save(temporary, format="jpeg", quality=_JPEG_QUALITY)


def output_names(photos: Sequence[pathlib.Path]) -> list[str]:
    """Names for what is written: the photo's without suffix, numbered where two are the same."""
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
    if all(numbers):
        ids = [int(number[1]) for number in numbers]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(photos) + 1))
