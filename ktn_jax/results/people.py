"""The people of one photo, which can be drawn and saved."""

import contextlib
import os
import pathlib
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from ktn_jax.results import drawing, records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import atomic_files, images


class People(list[PersonResult]):
    """The people of one photo, best first.

    people = model("photo.jpg")
    people[0].box_xyxy, people[0].score
    people.save("drawn.jpg")
    """

    def __init__(self, people: Iterable[PersonResult] = (), photo: Any = None):
        """Takes the people of a photo: a path, a PIL image or an array; None where it is not known.

        A photo in memory is not kept there: it can be drawn on while something else keeps it.
        """
        super().__init__(people)
        self._path = photo if isinstance(photo, (str, os.PathLike)) else None
        self._in_memory: weakref.ref[Any] | None = None
        if photo is not None and self._path is None:
            with contextlib.suppress(TypeError):  # some objects that are arrays cannot be watched
                self._in_memory = weakref.ref(photo)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self._path)

    def draw(self, photo: Any = None, **options: Any) -> np.ndarray:
        """Draws the people over their photo.

        Args:
            photo: a path, a PIL image or an array; None for the one that the people were found in.
            **options: of `drawing.draw_people`.

        Returns:
            [H, W, 3] uint8 RGB.

        Raises:
            ValueError: the photo is not known any more, cannot be read, or an unknown option.
        """
        if photo is None:
            photo = self._path if self._in_memory is None else self._in_memory()
        if photo is None:
            raise ValueError("the photo is not known any more: give it, people.draw(photo)")
        return drawing.draw_people(images.to_image(photo), self, **options)

    def save(self, path: str | os.PathLike[str], photo: Any = None) -> None:
        """Saves a drawing, or with the suffix .json the people as a results file (image id 1).

        Args:
            path: the file to write; an older one is replaced.
            photo: as `draw` takes it.

        Raises:
            ValueError: as `draw`, or an unknown suffix.
            FileNotFoundError: the folder does not exist.
        """
        path = pathlib.Path(path)
        if path.suffix.lower() == ".json":
            records.write_results(path, records.people_to_records(1, self, with_confidences=True))
            return
        if path.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{path}: give a name that ends as pictures do, or in .json")
        picture = Image.fromarray(self.draw(photo))
        with atomic_files.replacing(path) as temporary:
            picture.save(temporary)
