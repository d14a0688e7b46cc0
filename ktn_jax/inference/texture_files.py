"""Textures from photos into an atlas file, and from an atlas file onto photos."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from ktn_jax.inference.known_people import PeopleOf
from ktn_jax.inference.photo_names import output_names
from ktn_jax.results import maps, styles, texture_layouts, textures
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.records import PersonResult
from ktn_jax.results.texture_layouts import Layout
from ktn_jax.runtime import atomic_files, image_files, images
from ktn_jax.runtime.progress import Progress
from ktn_jax.runtime.video_frames import Selection, Video

DRESSED_ENDING = "_dressed.jpg"
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
_JPEG_QUALITY = 95


class NothingSeenError(ValueError):
    """No photo shows the person whose texture was asked for."""


@dataclasses.dataclass(frozen=True)
class Person:
    """Which person of each photo is meant.

    Attributes:
        number: as in `*_instances.png`, see `maps.person_numbers`: of people who were not tracked
            1 has the highest score; None for all.
        min_score: People with a lower score are passed over, and not numbered.
    """

    number: int | None = 1
    min_score: float = 0.5

    def __post_init__(self) -> None:
        """Checks the number."""
        if self.number is not None and self.number < 1:
            raise ValueError(f"people are numbered from 1, got {self.number}")

    def numbers(self, people: Sequence[PersonResult]) -> list[int]:
        """The numbers of those who are meant, of people with sufficient scores."""
        numbers = sorted(maps.person_numbers(people))
        return [number for number in numbers if self.number in (None, number)]


@dataclasses.dataclass
class TextureSummary:
    """What was done.

    Attributes:
        num_people: People whose texture was read, or who were dressed.
        seen: Of an atlas, the share of all texels that were seen.
        failures: Photos that could not be read or written, and why.
        notes: Remarks about other photos.
    """

    num_people: int = 0
    seen: float = 0.0
    failures: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    notes: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)


def dressed_paths(photos: Sequence[pathlib.Path], output: pathlib.Path) -> list[pathlib.Path]:
    """Where `apply_texture` writes each photo.

    Args:
        photos: Image files.
        output: A .png or .jpg file for a single photo; else a folder.

    Returns:
        One path for each photo: `output`, or in that folder NAME_dressed.jpg.

    Raises:
        ValueError: several photos and one file, or a file of another format.
    """
    suffix = output.suffix.lower()
    if suffix in image_files.IMAGE_SUFFIXES and suffix not in _FORMATS:
        raise ValueError(f"--output {output}: wanted a .png or .jpg file, or a folder")
    if suffix not in _FORMATS:
        return [output / f"{name}{DRESSED_ENDING}" for name in output_names(photos)]
    if len(photos) > 1:
        raise ValueError(f"--output {output} is one file for {len(photos)} photos: name a folder")
    return [output]


def extract_texture(
    photos: Sequence[pathlib.Path],
    people_of: PeopleOf,
    output: pathlib.Path,
    *,
    person: Person | None = None,
    blend: str = "median",
    side: int = textures.TILE_SIDE,
    layouts: tuple[Layout, Layout] | None = None,
) -> TextureSummary:
    """Reads a person's texture off photos and writes it as a PNG.

    Args:
        photos: Image files that show one person.
        people_of: See `known_people`.
        output: The PNG, RGBA; alpha is 255 where the texture was seen. Its folder is made.
        person: Whose texture; None for the person with the highest score in each photo.
        blend: See `textures.AtlasBuilder`.
        side: Pixels along a side of a tile.
        layouts: The atlas's layout (of tiles of that side) and the one to write; None for the
            atlas.

    Returns:
        The summary.

    Raises:
        NothingSeenError: no photo shows the person; nothing is written.
    """
    summary = TextureSummary()
    builder = textures.AtlasBuilder(blend, side)
    person = person or Person()
    views = _photos_with_people(photos, people_of, person, summary)
    _collect(views, builder, side, person, summary)
    _write_atlas(builder, output, layouts, summary, f"{len(photos)} photos")
    return summary


def extract_video_texture(
    video: Video,
    selection: Selection,
    people_of: PeopleOf,
    output: pathlib.Path,
    *,
    person: Person | None = None,
    blend: str = "median",
    side: int = textures.TILE_SIDE,
    layouts: tuple[Layout, Layout] | None = None,
) -> TextureSummary:
    """Reads a person's texture off the frames of a video; see `extract_texture`.

    Args:
        video: That shows one person.
        selection: Which of its frames.
        people_of: See `known_people`; it gets the frame's number in the video.
        output: See `extract_texture`, as the following ones.
        person: See `extract_texture`.
        blend: See `extract_texture`.
        side: See `extract_texture`.
        layouts: See `extract_texture`.

    Returns:
        The summary. A video that cannot be read to its end is a failure, and the frames before
        count.

    Raises:
        NothingSeenError: no frame shows the person; nothing is written.
    """
    summary = TextureSummary()
    builder = textures.AtlasBuilder(blend, side)
    person = person or Person()
    path = pathlib.Path(video.name)
    found = TextureSummary()  # most frames may well show nobody: no note about each
    views = _frames_with_people(video, selection, people_of, person)
    _collect(views, builder, side, person, found)
    summary.num_people = found.num_people
    summary.notes = [(path, note) for note in video.notes]
    if video.failure is not None:
        summary.failures.append((path, video.failure))
    _write_atlas(builder, output, layouts, summary, "the frames")
    return summary


def _collect(
    views: Iterable[tuple[pathlib.Path, np.ndarray, list[PersonResult]]],
    builder: textures.AtlasBuilder,
    side: int,
    person: Person,
    summary: TextureSummary,
) -> None:
    """Adds the texture that each image shows."""
    for path, image, people in views:
        iuv, instances = maps.paste_iuv(people, image.shape[:2])
        numbers = person.numbers(people)
        if not numbers:
            found = f"of {len(people)} people none is number {person.number}"
            summary.notes.append((path, found if people else "nobody found"))
        for number in numbers:
            own = np.where((instances == number)[..., None], iuv, 0)
            if own.any():
                builder.add(textures.view_texture(image, own, side))
                summary.num_people += 1


def _write_atlas(
    builder: textures.AtlasBuilder,
    output: pathlib.Path,
    layouts: tuple[Layout, Layout] | None,
    summary: TextureSummary,
    views: str,
) -> None:
    atlas = builder.atlas()
    if not atlas[..., 3].any():
        failed = "; ".join(f"{path}: {why}" for path, why in [*summary.failures, *summary.notes])
        raise NothingSeenError(f"no texture was seen in {views}. {failed}".rstrip(" ."))
    if layouts is not None:
        atlas = texture_layouts.convert_texture(atlas, *layouts)
    summary.seen = float((atlas[..., 3] > 0).mean())
    _write(output, atlas)


def apply_texture(
    atlas: np.ndarray,
    photos: Sequence[pathlib.Path],
    people_of: PeopleOf,
    outputs: Sequence[pathlib.Path],
    *,
    person: Person | None = None,
) -> TextureSummary:
    """Dresses people in a texture.

    Args:
        atlas: See `atlas.read_atlas`.
        photos: Image files.
        people_of: See `known_people`.
        outputs: A file for each photo, see `dressed_paths`. Folders are made.
        person: Who is dressed; None for everybody.

    Returns:
        The summary.
    """
    person = person or Person(None)
    settings = styles.StyleSettings(atlas=atlas)
    summary = TextureSummary()
    output_of = dict(zip(photos, outputs, strict=True))
    for path, image, people in _photos_with_people(photos, people_of, person, summary):
        numbers = maps.person_numbers(people)
        dressed = [
            one
            for one, number in zip(people, numbers, strict=True)
            if person.number in (None, number)
        ]
        # The last one drawn is in front: in our pictures that is the one with the highest score.
        picture = styles.draw_styles(image, dressed[::-1], ["texture"], settings)
        try:
            _write(output_of[path], picture)
        except ValueError as error:  # such as too many pixels for a JPEG
            summary.failures.append((path, f"{output_of[path]} cannot be written: {error}"))
            continue
        summary.num_people += len(dressed)
        if not dressed:
            summary.notes.append((path, "nobody to dress: written without a change"))
    return summary


def _photos_with_people(
    photos: Sequence[pathlib.Path], people_of: PeopleOf, person: Person, summary: TextureSummary
) -> Iterator[tuple[pathlib.Path, np.ndarray, list[PersonResult]]]:
    """Yields each photo that can be read, with its people who have IUV pictures, best first.

    Photos that cannot be read, and those of damaged records, go into the summary.
    """
    with Progress("texture", "photos", len(photos)) as progress:
        for index, path in enumerate(photos):
            try:
                image = images.read_image(path)
                found = people_of(index, image)
            except (images.ImageError, ResultsError) as error:
                summary.failures.append((path, str(error).removeprefix(f"{path}: ")))
                continue
            if found and all(one.iuv is None for one in found):
                summary.notes.append(
                    (
                        path,
                        f"none of its {len(found)} people has an IUV picture, which textures need",
                    )
                )
            yield path, image, _usable(found, person)
            progress.set(index + 1, len(photos))


def _frames_with_people(
    video: Video, selection: Selection, people_of: PeopleOf, person: Person
) -> Iterator[tuple[pathlib.Path, np.ndarray, list[PersonResult]]]:
    """Yields the frames of a video, with people as `_photos_with_people`."""
    path = pathlib.Path(video.name)
    with Progress("texture", "frames", video.count(selection)) as progress:
        for frame in video.frames(selection):
            yield path, frame.image, _usable(people_of(frame.index, frame.image), person)
            progress.advance()


def _usable(people: Iterable[PersonResult], person: Person) -> list[PersonResult]:
    """Those with IUV pictures and sufficient scores, best first."""
    usable = [one for one in people if one.iuv is not None and one.score >= person.min_score]
    return sorted(usable, key=lambda one: -one.score)


def _write(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = _FORMATS[path.suffix.lower()]
    options = {"quality": _JPEG_QUALITY} if kind == "jpeg" else {}
    with atomic_files.replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format=kind, **options)


def find_photos(inputs: Sequence[str], recursive: bool) -> image_files.FoundImages:
    """Lists the photos that a command line names, without what `apply_texture` writes."""
    return image_files.find_images(inputs, recursive, (DRESSED_ENDING,))
