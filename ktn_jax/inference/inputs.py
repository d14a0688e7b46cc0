"""Inputs of a predictor: one photo or several, as paths, PIL images or arrays."""

import collections.abc
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ktn_jax.inference import batching
from ktn_jax.results.people import People
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import images

Photo = str | os.PathLike[str] | Image.Image | np.ndarray
Photos = list[Any] | tuple[Any, ...] | Iterator[Any]  # of `Photo`

Prepared = TypeVar("Prepared")
Found = TypeVar("Found")


# Pillow decodes an image on first use, and the same image may be in a list twice.
_PIL_IMAGES = threading.Lock()


class CallablePredictor(Protocol):
    """A `Predictor` or `AugmentedPredictor` that is called with a list of images."""

    config: ConfigDict

    def __call__(self, photos: list[np.ndarray], /) -> Sequence[Sequence[PersonResult]]:
        """Finds the people of each image, RGB uint8 [H, W, 3]."""
        ...


def map_photos(
    photos: Photo | Photos,
    test: ConfigDict,
    prepare: Callable[[np.ndarray], Prepared],
    find: Callable[[list[Prepared]], Sequence[Found]],
    finish: Callable[[Prepared, Found], list[PersonResult]],
) -> People | list[People]:
    """Applies functions to one photo, or to each of several, in batches.

    Args:
        photos: a photo as `images.to_image` takes it, or a list, a tuple or an iterator of photos.
            Of an iterator, the photos of `batching.WINDOW` batches are in memory at once.
        test: the `test` section of a configuration.
        prepare: called with each image, uint8 [H, W, 3], in threads that read ahead.
        find: called in this thread with the results of `prepare` for a batch.
        finish: makes the people of a photo, in another thread.

    Returns:
        The people of one photo, or a list of these in the order of the photos.

    Raises:
        TypeError: `photos` is not a photo, or contains something that is not.
        ValueError: an array of a wrong shape, or a file that cannot be read (`ImageError`).
    """
    if is_one_photo(photos):
        prepared = prepare(images.to_image(photos))
        return People(finish(prepared, find([prepared])[0]), photos)
    if not isinstance(photos, (list, tuple, collections.abc.Iterator)):
        raise TypeError(
            "give a photo (a path, a PIL image or a uint8 array [H, W, 3]) or a list, tuple or "
            f"iterator of photos, got {type(photos).__name__}"
        )
    results: dict[int, People] = {}

    def read(item: tuple[int, Any]) -> Prepared:
        index, photo = item
        try:
            with _alone(photo):
                image = images.to_image(photo)
            return prepare(image)
        except images.ImageError:
            raise
        except (TypeError, ValueError) as error:
            raise type(error)(f"photo {index}: {error}") from error

    def keep(
        items: Sequence[tuple[int, Any]], prepared: list[Prepared], found: Sequence[Found]
    ) -> None:
        for (index, photo), before, after in zip(items, prepared, found, strict=True):
            results[index] = People(finish(before, after), photo)

    def bucket_of(item: tuple[int, Any]) -> batching.Size:
        with _alone(item[1]):
            size_hw = images.peek_size_hw(item[1])
        return batching.photo_bucket(size_hw, test)

    batches = batching.batches_of_one_size(
        enumerate(photos), bucket_of, test.batch_size, batching.WINDOW * test.batch_size
    )
    batching.run(batches, read, find, keep)
    return [results[index] for index in range(len(results))]


def _alone(photo: Any) -> contextlib.AbstractContextManager[Any]:
    """Locks out other threads while a PIL image is decoded."""
    return _PIL_IMAGES if isinstance(photo, Image.Image) else contextlib.nullcontext()


def is_one_photo(photos: Any) -> bool:
    """Whether the argument is one photo and not several."""
    return isinstance(photos, (str, os.PathLike, Image.Image)) or hasattr(photos, "__array__")
