"""What a predictor may be called with: a photo or several, as paths, PIL images or arrays."""

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
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import images

Photo = str | os.PathLike[str] | Image.Image | np.ndarray
Photos = list[Any] | tuple[Any, ...] | Iterator[Any]  # of `Photo`

Prepared = TypeVar("Prepared")
Found = TypeVar("Found")
Result = TypeVar("Result")


# Pillow decodes an image when it is first looked at, and the same one may be in a list twice.
_PIL_IMAGES = threading.Lock()


class CallablePredictor(Protocol):
    """`Predictor` or `AugmentedPredictor`, as those need it who give it batches of images."""

    config: ConfigDict

    def __call__(self, photos: list[np.ndarray], /) -> list[list[PersonResult]]:
        """Finds the people of each image, RGB uint8 [H, W, 3]."""
        ...


def map_photos(
    photos: Photo | Photos,
    test: ConfigDict,
    prepare: Callable[[np.ndarray], Prepared],
    find: Callable[[list[Prepared]], Sequence[Found]],
    finish: Callable[[Prepared, Found], Result],
) -> Result | list[Result]:
    """Computes something of a photo, or of each of several, in batches.

    Args:
        photos: what `images.to_image` takes, or a list, a tuple or an iterator of that. Of an
            iterator as many photos are held as make `batching.WINDOW` batches.
        test: the `test` section of a configuration.
        prepare: called with each image, uint8 [H, W, 3], in threads that read ahead.
        find: called in this thread with what `prepare` made of a batch.
        finish: makes a photo's result, in a thread behind.

    Returns:
        The result of one photo, or a list of them in the order of the photos.

    Raises:
        TypeError: what came is no photo, or holds one that is none.
        ValueError: an array of a wrong shape, or a file that cannot be read (`ImageError`).
    """
    if is_one_photo(photos):
        prepared = prepare(images.to_image(photos))
        return finish(prepared, find([prepared])[0])
    if not isinstance(photos, (list, tuple, collections.abc.Iterator)):
        raise TypeError(
            "give a photo (a path, a PIL image or a uint8 array [H, W, 3]) or a list, tuple or "
            f"iterator of photos, got {type(photos).__name__}"
        )
    results: dict[int, Result] = {}

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
        for (index, _), before, after in zip(items, prepared, found, strict=True):
            results[index] = finish(before, after)

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
    """Keeps other threads away from PIL images meanwhile."""
    return _PIL_IMAGES if isinstance(photo, Image.Image) else contextlib.nullcontext()


def is_one_photo(photos: Any) -> bool:
    """Whether something stands for one photo and not for several."""
    return isinstance(photos, (str, os.PathLike, Image.Image)) or hasattr(photos, "__array__")
