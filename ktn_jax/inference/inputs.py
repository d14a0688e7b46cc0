"""Inputs of a predictor: one photo or several, as paths, PIL images or arrays."""

import collections.abc
import contextlib
import itertools
import operator
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
Photos = list[Any] | tuple[Any, ...]  # of `Photo`
PhotoStream = Iterator[Any]  # of `Photo`

Prepared = TypeVar("Prepared")
Found = TypeVar("Found")


# Pillow decodes an image on first use, and the same image may be in a list twice.
_PIL_IMAGES = threading.Lock()

_BY_INDEX = operator.itemgetter(0)


class CallablePredictor(Protocol):
    """A `Predictor` or `AugmentedPredictor` that is called with a list of images."""

    config: ConfigDict

    def __call__(self, photos: list[np.ndarray], /) -> Sequence[Sequence[PersonResult]]:
        """Finds the people of each image, RGB uint8 [H, W, 3]."""
        ...


class StreamingPredictor(Protocol):
    """A `Predictor` or `AugmentedPredictor` that is given images one after the other."""

    config: ConfigDict

    def __call__(self, photos: Iterator[np.ndarray], /) -> Iterator[Sequence[PersonResult]]:
        """Finds the people of each image, RGB uint8 [H, W, 3], in their order."""
        ...


def map_photos(
    photos: Photo | Photos | PhotoStream,
    test: ConfigDict,
    prepare: Callable[[np.ndarray], Prepared],
    find: Callable[[list[Prepared]], Sequence[Found]],
    finish: Callable[[Prepared, Found], list[PersonResult]],
) -> People | list[People] | Iterator[People]:
    """Applies functions to one photo, or to each of several, in batches.

    Args:
        photos: a photo as `images.to_image` takes it, or a list, a tuple or an iterator of photos.
        test: the `test` section of a configuration.
        prepare: called with each image, uint8 [H, W, 3], in threads that read ahead.
        find: called in this thread with the results of `prepare` for a batch.
        finish: makes the people of a photo, in another thread.

    Returns:
        The people of one photo; of a list or tuple a list of these in the order of the photos; of
        an iterator an iterator of these, which takes photos as it is asked for their people and a
        few batches ahead. Batches of a list hold photos of one size, those of an iterator photos
        that follow each other.

    Raises:
        TypeError: `photos` is not a photo, or contains something that is not.
        ValueError: an array of a wrong shape, or a file that cannot be read (`ImageError`).
    """
    if is_one_photo(photos):
        image = images.to_image(photos)
        prepared = prepare(image)
        return People(finish(prepared, find([prepared])[0]), photos, image.shape[:2])
    if not isinstance(photos, (list, tuple, collections.abc.Iterator)):
        raise TypeError(
            "give a photo (a path, a PIL image or a uint8 array [H, W, 3]) or a list, tuple or "
            f"iterator of photos, got {type(photos).__name__}"
        )

    def read(item: tuple[int, Any]) -> tuple[Prepared, tuple[int, ...]]:
        index, photo = item
        try:
            with _alone(photo):
                image = images.to_image(photo)
            return prepare(image), image.shape[:2]
        except images.ImageError:
            raise
        except (TypeError, ValueError) as error:
            raise type(error)(f"photo {index}: {error}") from error

    def make_people(
        items: Sequence[tuple[int, Any]],
        read: list[tuple[Prepared, tuple[int, ...]]],
        found: Sequence[Found],
    ) -> list[tuple[int, Any, People]]:
        return [
            (index, photo, People(finish(prepared, after), photo, size_hw))
            for (index, photo), (prepared, size_hw), after in zip(items, read, found, strict=True)
        ]

    def bucket_of(item: tuple[int, Any]) -> batching.Size:
        with _alone(item[1]):
            size_hw = images.peek_size_hw(item[1])
        return batching.photo_bucket(size_hw, test)

    def find_read(batch: list[tuple[Prepared, tuple[int, ...]]]) -> Sequence[Found]:
        return find([prepared for prepared, _ in batch])

    if isinstance(photos, (list, tuple)):
        batches = batching.batches_of_one_size(
            enumerate(photos), bucket_of, test.batch_size, batching.WINDOW * test.batch_size
        )
        done = batching.stream(batches, read, find_read, make_people)
        return [people for _, _, people in sorted(itertools.chain(*done), key=_BY_INDEX)]
    batches = batching.batches_in_order(enumerate(photos), bucket_of, test.batch_size)
    done = batching.stream(batches, read, find_read, make_people)
    # A batch holds its photos as long as its people are given out, so that they can be drawn.
    return (people for batch in done for _, _, people in batch)


def _alone(photo: Any) -> contextlib.AbstractContextManager[Any]:
    """Locks out other threads while a PIL image is decoded."""
    return _PIL_IMAGES if isinstance(photo, Image.Image) else contextlib.nullcontext()


def is_one_photo(photos: Any) -> bool:
    """Whether the argument is one photo and not several."""
    return isinstance(photos, (str, os.PathLike, Image.Image)) or hasattr(photos, "__array__")
