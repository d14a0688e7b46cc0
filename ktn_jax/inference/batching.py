"""Batches of photos: padded to few sizes, read ahead of the network, finished behind it.

A batch holds photos that are padded to the same size, so that a folder of photos compiles few
programs and little padding is computed. Prediction, evaluation and scoring while training use it.
"""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from ktn_jax.runtime import images
from ktn_jax.runtime.background import give_way

Item = TypeVar("Item")
Photo = TypeVar("Photo")
Found = TypeVar("Found")
Result = TypeVar("Result")
Size = tuple[int, int]

BATCHES_AHEAD = 2  # read ahead while the network runs
WINDOW = 16  # batches whose photos are grouped by size, where not all can be
_NEW_BUCKET_MULTIPLE = 64  # images larger than every bucket are padded to a multiple of this


def choose_bucket(size_hw: Size, buckets: Sequence[Size]) -> Size:
    """Chooses the smallest (height, width) that holds an image, or makes one for a larger image."""
    height, width = size_hw
    fitting = [(b[0], b[1]) for b in buckets if b[0] >= height and b[1] >= width]
    if fitting:
        return min(fitting, key=lambda bucket: bucket[0] * bucket[1])
    multiple = _NEW_BUCKET_MULTIPLE
    return (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def photo_bucket(size_hw: Size | None, test: ConfigDict) -> Size:
    """Chooses the size to which a photo is padded after resizing.

    Args:
        size_hw: (height, width) of the photo itself. Photos of unknown size are grouped together:
            reading them will raise the error.
        test: the `test` section of a configuration.
    """
    if size_hw is None:
        return (0, 0)
    resized = images.shortest_edge_size(size_hw, test.short_side, test.max_side)
    return choose_bucket(resized, test.size_buckets)


def batches_of_one_size(
    items: Iterable[Item],
    bucket_of: Callable[[Item], Size],
    batch_size: int,
    window: int | None = None,
) -> Iterator[list[Item]]:
    """Groups items that are padded to the same size.

    Args:
        items: items that identify photos, in any order.
        bucket_of: gives the size to which an item's photo is padded.
        batch_size: photos in a batch.
        window: number of items that are grouped together; None for all.

    Yields:
        Batches, ordered by size and then as the items were; of each size (and window) only the
        last may hold fewer than `batch_size`.
    """
    remaining = iter(items)
    while chunk := list(itertools.islice(remaining, window)):
        groups: dict[Size, list[Item]] = {}
        for item in chunk:
            groups.setdefault(bucket_of(item), []).append(item)
        for _, group in sorted(groups.items()):
            for start in range(0, len(group), batch_size):
                yield group[start : start + batch_size]


def pad(
    batch: Sequence[np.ndarray], bucket: Size, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads images to the network's input.

    Args:
        batch: at most `batch_size` images, uint8 [H, W, 3] that fit into the bucket.
        bucket: (height, width).
        batch_size: rows of the result.

    Returns:
        uint8 [batch_size, *bucket, 3], zero beyond each image, and int32 [batch_size, 2] the
        height and width of each; rows without an image have the bucket's size.
    """
    inputs = np.zeros((batch_size, *bucket, 3), np.uint8)
    sizes = np.full((batch_size, 2), bucket, np.int32)
    for row, image in enumerate(batch):
        inputs[row, : image.shape[0], : image.shape[1]] = image
        sizes[row] = image.shape[:2]
    return inputs, sizes


def batches_in_order(
    items: Iterable[Item], bucket_of: Callable[[Item], Size], batch_size: int
) -> Iterator[list[Item]]:
    """Groups items that follow each other and are padded to the same size.

    Args:
        items: items that identify photos.
        bucket_of: gives the size to which an item's photo is padded.
        batch_size: photos in a batch.

    Yields:
        Batches in the order of the items, each as soon as it is full or the next item is of another
        size.
    """
    batch: list[Item] = []
    bucket: Size | None = None
    for item in items:
        own = bucket_of(item)
        if batch and own != bucket:
            yield batch
            batch = []
        batch.append(item)
        bucket = own
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def run(
    batches: Iterable[Sequence[Item]],
    read: Callable[[Item], Photo | None],
    predict: Callable[[list[Photo]], Sequence[Found]],
    finish: Callable[[Sequence[Item], list[Photo], Sequence[Found]], Any],
) -> None:
    """Does the work of `stream`, for what `finish` does and not for what it returns."""
    for _ in stream(batches, read, predict, finish):
        pass


def stream(
    batches: Iterable[Sequence[Item]],
    read: Callable[[Item], Photo | None],
    predict: Callable[[list[Photo]], Sequence[Found]],
    finish: Callable[[Sequence[Item], list[Photo], Sequence[Found]], Result],
) -> Iterator[Result]:
    """Reads ahead of the network and finishes behind it, so that the network waits for neither.

    Args:
        batches: of items; taken as they are needed.
        read: makes the photo of an item, in several threads at once; None leaves the item out.
        predict: called in this thread with the photos of one batch, if there are any.
        finish: takes the items that were read, their photos and the results of each, batch by batch
            in another thread. An error that it raises stops the work.

    Yields:
        What `finish` returned, batch by batch in order, one batch behind the network. An error is
        raised after the results of the batches before.
    """
    finishing: concurrent.futures.Future[Result] | None = None
    with (
        concurrent.futures.ThreadPoolExecutor(BATCHES_AHEAD + 1) as readers,
        concurrent.futures.ThreadPoolExecutor(1, initializer=give_way) as finisher,
    ):
        try:
            for items, photos in read_ahead(readers, batches, read):
                found = predict(photos) if photos else []
                before, finishing = finishing, None
                ready = [] if before is None else [before.result()]
                finishing = finisher.submit(finish, items, photos, found)
                yield from ready
        except (Exception, KeyboardInterrupt):  # what was found before is not lost
            if finishing is not None:
                yield finishing.result()
            raise
        if finishing is not None:
            yield finishing.result()


def read_ahead(
    pool: concurrent.futures.Executor,
    batches: Iterable[Sequence[Item]],
    read: Callable[[Item], Photo | None],
) -> Iterator[tuple[list[Item], list[Photo]]]:
    """Reads batches while the ones before are worked on.

    Args:
        pool: of threads that read.
        batches: of items; taken as they are needed.
        read: makes the photo of an item; None leaves the item out.

    Yields:
        The items of each batch that were read, and their photos.
    """
    waiting: collections.deque[list[tuple[Item, concurrent.futures.Future[Photo | None]]]] = (
        collections.deque()
    )
    for batch in batches:
        waiting.append([(item, pool.submit(read, item)) for item in batch])
        if len(waiting) > BATCHES_AHEAD:
            yield _collect(waiting.popleft())
    while waiting:
        yield _collect(waiting.popleft())


def _collect(
    reading: Sequence[tuple[Item, concurrent.futures.Future[Photo | None]]],
) -> tuple[list[Item], list[Photo]]:
    read = [(item, future.result()) for item, future in reading]
    pairs = [(item, photo) for item, photo in read if photo is not None]
    return [item for item, _ in pairs], [photo for _, photo in pairs]
