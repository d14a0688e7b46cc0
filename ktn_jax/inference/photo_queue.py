"""Collects photos that arrive one by one into batches for a predictor, within limits."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from ktn_jax.results.people import People


class QueueFullError(RuntimeError):
    """As many photos are waiting or in work as may be."""


@dataclasses.dataclass(frozen=True, eq=False)  # the same photo may wait twice
class _Waiting:
    photo: np.ndarray
    kind: Hashable
    answer: concurrent.futures.Future[People]


class PhotoQueue:
    """Predicts what waits, in batches, in a thread of its own; any thread may submit.

    While the network works on a batch, the photos of the next one collect: nobody waits for a batch
    to be filled.
    """

    def __init__(
        self,
        find: Callable[[list[np.ndarray]], Sequence[People]],
        kind_of: Callable[[np.ndarray], Hashable],
        batch_size: int,
        capacity: int,
    ):
        """Starts the thread.

        Args:
            find: the people of each photo of a batch; never called by two threads at once.
            kind_of: what the photos of a batch have in common, such as the size they are padded to.
            batch_size: most photos in a batch.
            capacity: places, see `place`.
        """
        self._find, self._kind_of = find, kind_of
        self._batch_size, self._capacity = batch_size, capacity
        self._num_taken = 0
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="photo queue", daemon=True)
        self._thread.start()

    @property
    def num_taken(self) -> int:
        """Places that are taken."""
        return self._num_taken

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Takes one of the places for what is done with one photo, from reading it to its answer.

        Raises:
            QueueFullError: there is none. Nothing waits for one.
        """
        with self._changed:
            if self._num_taken >= self._capacity:
                raise QueueFullError(f"{self._capacity} photos are waiting or in work")
            self._num_taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_taken -= 1

    def submit(self, photo: np.ndarray) -> concurrent.futures.Future[People]:
        """Has a photo predicted, uint8 [H, W, 3] RGB.

        Returns:
            Its people, or the error of its batch. Cancelling it takes the photo out.

        Raises:
            RuntimeError: the queue is closed.
        """
        waiting = _Waiting(photo, self._kind_of(photo), concurrent.futures.Future())
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the queue is closed")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self) -> None:
        """Predicts what was submitted, and stops the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            batch = [w for w in batch if w.answer.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                found = self._find([waiting.photo for waiting in batch])
            except Exception as error:  # of the photos of this batch; others go on
                for waiting in batch:
                    waiting.answer.set_exception(error)
            else:
                for waiting, people in zip(batch, found, strict=True):
                    waiting.answer.set_result(people)

    def _next_batch(self) -> list[_Waiting]:
        """Takes the photo that waits longest and others of its kind; none once all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return []
            kind = self._waiting[0].kind
            own = [waiting for waiting in self._waiting if waiting.kind == kind]
            batch = own[: self._batch_size]
            for waiting in batch:
                self._waiting.remove(waiting)
            return batch
