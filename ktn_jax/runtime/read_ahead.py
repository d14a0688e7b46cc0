"""Makes items before they are needed, in a thread of its own."""

import collections
import concurrent.futures
from collections.abc import Generator, Iterable
from typing import TypeVar, cast

Item = TypeVar("Item")


def read_ahead(items: Iterable[Item], count: int) -> Generator[Item, None, None]:
    """Yields items in order, while a thread makes the following ones.

    Args:
        items: made by an iterator that only this uses from now on.
        count: so many are kept in memory, at least 1.

    Yields:
        The items. An error that was raised in making one is raised in its place. Close it where
        not all are taken: the thread has ended then.
    """
    iterator, end = iter(items), object()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        waiting = collections.deque(pool.submit(next, iterator, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield cast(Item, item)
    finally:
        pool.shutdown(cancel_futures=True)
