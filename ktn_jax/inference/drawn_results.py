"""Draws the people of a results file of any system over their photos."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from ktn_jax.evaluation.ground_truth import ImageTruth
from ktn_jax.inference.output_files import check_targets
from ktn_jax.inference.photo_names import output_names
from ktn_jax.inference.result_photos import PhotoSearch, index_people, read_people
from ktn_jax.results import pictures
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import StyleSettings
from ktn_jax.runtime import images
from ktn_jax.runtime.progress import Progress


@dataclasses.dataclass
class DrawnSummary:
    """Counts of what was drawn, and what could not be.

    Attributes:
        num_images: drawn.
        num_people: drawn on them.
        failures: a sentence about each image that was not.
    """

    num_images: int = 0
    num_people: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


def keep_wanted(
    people: Sequence[PersonResult], min_score: float, only_tracks: Sequence[int]
) -> list[PersonResult]:
    """Those who score enough and, if there are any, have one of the numbers, in order."""
    return [
        person
        for person in people
        if person.score >= min_score and (not only_tracks or person.track_id in only_tracks)
    ]


def draw_results(
    results: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    names: Sequence[str] = (pictures.OVERLAY,),
    settings: StyleSettings | None = None,
    *,
    images_dir: str | os.PathLike[str] | None = None,
    annotated: Sequence[ImageTruth] = (),
    min_score: float = 0.0,
    only_tracks: Sequence[int] = (),
    overwrite: bool = False,
) -> DrawnSummary:
    """Draws every image of a results file; the file is not held in memory.

    The photo of an image is the annotated one, else the one that `file_name` of its detections
    names, else the one that is named by the image id (000000000785.jpg). A name is looked for in
    `images_dir`, first with its folders and then without.

    Args:
        results: a JSON list of detections, or JSON lines, as `ktn eval` takes them.
        output_dir: made if it does not exist.
        names: of pictures, see `results.pictures`.
        settings: of detectron2's styles.
        images_dir: folder of the photos; None takes `file_name` as a path.
        annotated: images of an annotation file, for their file names; photos are then read in the
            frame of their annotations, see `images.decode_image`.
        min_score: detections with a lower score are left out.
        only_tracks: `track_id` of the people who are drawn; none for all.
        overwrite: replace files that are there, but no photo.

    Returns:
        The summary.

    Raises:
        EvaluationError: the file is missing or damaged, or a detection has a wrong or missing
            field; the message names file, detection and field.
        ValueError: an unknown picture, no photo found, or a file that would be replaced.
    """
    results, output_dir = pathlib.Path(results), pathlib.Path(output_dir)
    settings = settings or StyleSettings()
    names = pictures.check_names(names, settings)
    found = index_people(results, min_score)
    search = PhotoSearch(images_dir, {image.image_id: image.file_name for image in annotated})
    paths = {image_id: search.find(image_id, found[image_id].file_name) for image_id in found}
    photos = {image_id: path for image_id, path in sorted(paths.items()) if path is not None}
    missing = [image_id for image_id in found if image_id not in photos]
    if missing and not photos:
        raise ValueError(
            f"{results}: found none of the photos, such as {search.describe(missing[0], found)}; "
            "give their folder (--images) and, if ids and names differ, --annotations"
        )
    sizes_hw = {image.image_id: image.image_size_hw for image in annotated}
    summary = DrawnSummary()
    summary.failures = [f"{search.describe(number, found)}: not found" for number in missing]
    chosen = list(photos.values())
    stems = dict(zip(photos, output_names(chosen), strict=True))
    endings = [pictures.ending(name) for name in names]
    targets = [output_dir / f"{stem}{end}" for stem in stems.values() for end in endings]
    check_targets(output_dir, targets, [*chosen, results], overwrite)
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(results, "rb") as handle, Progress("draw", "photos", len(photos)) as progress:
        for image_id, path in photos.items():
            try:
                found_here = read_people(results, handle, found[image_id])
                people = keep_wanted(found_here, min_score, only_tracks)
                image = images.read_image(path, sizes_hw.get(image_id))
                stem = stems[image_id]
                pictures.write_pictures(output_dir, stem, names, image, people, settings)
            except ValueError as error:  # of the photo, or of a detection's picture
                summary.failures.append(f"image {image_id} ({path}): {error}")
            else:
                summary.num_images += 1
                summary.num_people += len(people)
            progress.advance()
    return summary
