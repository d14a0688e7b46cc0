"""Where images and annotations come from: a folder, memory, a renderer, or several in a row."""

import bisect
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.mesh_names import BODY
from ktn_jax.data_pipelines.coco.annotations import (
    Dataset,
    ImageFacts,
    ImageRecord,
    PersonRecord,
    parse_person,
)
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.runtime.images import read_image


class Source(Protocol):
    """Numbered images with their annotations. Read by several threads at once."""

    def __len__(self) -> int:
        """How many images."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        """The image, [H, W, 3] uint8 RGB, and its record; ImageError if it cannot be read."""

    def facts(self) -> ImageFacts:
        """Sizes and numbers of people of all images, known without reading them."""


class SourceError(ValueError):
    """Images that are not those that were planned, or too many that cannot be read."""


class FolderSource:
    """Annotations and the image folder they belong to."""

    def __init__(
        self,
        dataset: Dataset,
        images_dir: str | os.PathLike[str],
        labels_dir: str | os.PathLike[str] = "",
    ):
        """Takes a parsed dataset and the folders that its file names are relative to.

        Args:
            dataset: annotations.
            images_dir: of the images.
            labels_dir: of pictures of labels: that of the annotation file.
        """
        self._images = dataset.images
        self._images_dir = pathlib.Path(images_dir)
        self._labels_dir = pathlib.Path(labels_dir)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        record = self._images[index]
        path = self._images_dir / record.file_name
        people = tuple(map(self._with_place_of_labels, record.people))
        record = dataclasses.replace(record, people=people)
        return read_image(path, (record.height, record.width)), record

    def _with_place_of_labels(self, person: PersonRecord) -> PersonRecord:
        if person.densepose is None or not person.densepose.iuv_file:
            return person
        path = os.fspath(self._labels_dir / person.densepose.iuv_file)
        return dataclasses.replace(
            person, densepose=dataclasses.replace(person.densepose, iuv_file=path)
        )

    def facts(self) -> ImageFacts:
        """Sizes and numbers of people, from the annotations."""
        return self._images.facts()


class RenderedSource:
    """Synthetic people, rendered on demand and optionally kept in memory.

    Rendering is Python: only the loader with processes spreads it over cores.
    """

    def __init__(self, people: SyntheticSource, keep: bool = False):
        """Takes the generator.

        Args:
            people: makes the image and the annotations of an index.
            keep: whether images stay in memory once made, for sets that are small and used often.
        """
        self._people = people
        self._kept: dict[int, tuple[np.ndarray, ImageRecord]] | None = {} if keep else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without the images that were kept."""
        return RenderedSource, (self._people, self._kept is not None)

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        example = self._people[index]
        entry = example.image_record
        record = ImageRecord(
            image_id=entry["id"],
            file_name=entry["file_name"],
            height=entry["height"],
            width=entry["width"],
            people=tuple(parse_person(annotation) for annotation in example.annotations),
        )
        if self._kept is not None:
            self._kept[index] = example.image, record
        return example.image, record

    def facts(self) -> ImageFacts:
        """Sizes and largest numbers of people, from the scene's settings: nothing is rendered."""
        scene = self._people.scene
        count = len(self._people)
        return ImageFacts(
            sizes_hw=np.tile(np.array(scene.image_size_hw, np.int32), (count, 1)),
            people=np.full(count, scene.people_range[1], np.int32),
            max_points=scene.points_per_part * parts.NUM_COARSE,
            vertices={BODY: len(self._people.body.template.vertices)},
        )


class ConcatenatedSource:
    """Several sources as one: training uses two annotation files of DensePose-COCO."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] = ()):
        """Takes the sources in the order of their images.

        Args:
            sources: images.
            weights: how often an epoch has the images of each source; () for once.

        Raises:
            ValueError: not a weight for each source, a negative or infinite one, or zeros alone.
        """
        self._sources = tuple(sources)
        self._weights = np.asarray(weights if len(weights) else [1.0] * len(sources), np.float64)
        if len(self._weights) != len(sources):
            raise ValueError(f"wanted {len(sources)} weights of sources, got {tuple(weights)}")
        is_sound = np.isfinite(self._weights) & (self._weights >= 0)
        if not is_sound.all() or not self._weights.any():
            raise ValueError(f"weights of sources must be 0 or more, not all 0: {tuple(weights)}")
        self._ends = list(itertools.accumulate(len(source) for source in self._sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        which = bisect.bisect_right(self._ends, index)
        start = self._ends[which - 1] if which else 0
        return self._sources[which][index - start]

    def facts(self) -> ImageFacts:
        """Those of the sources, one after the other."""
        every = [source.facts() for source in self._sources]
        return ImageFacts(
            sizes_hw=np.concatenate([facts.sizes_hw for facts in every]),
            people=np.concatenate([facts.people for facts in every]),
            max_points=max(facts.max_points for facts in every),
            vertices=_largest([facts.vertices for facts in every]),
            all_annotated=all(facts.all_annotated for facts in every),
            with_keypoints=_join([facts.with_keypoints for facts in every]),
            with_surface=_join([facts.with_surface for facts in every]),
            weights=None if (self._weights == 1).all() else self._repeated_weights(),
        )

    def _repeated_weights(self) -> np.ndarray:
        return np.repeat(self._weights, [len(source) for source in self._sources])


def _largest(every: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The largest of the numbers of each name."""
    names = dict.fromkeys(itertools.chain.from_iterable(every))
    return {name: max(vertices.get(name, 0) for vertices in every) for name in names}


def _join(counts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [values for values in counts if values is not None]
    return np.concatenate(known) if len(known) == len(counts) else None
