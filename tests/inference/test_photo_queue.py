"""Photos of several threads in batches: together, in order, within limits."""

import threading

import numpy as np
import pytest

from ktn_jax.inference.photo_queue import PhotoQueue, QueueFullError


class SlowFinder:
    """Returns the first value of each photo; every call waits until it is let through."""

    def __init__(self):
        self.batches, self.may_go, self.began = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, photos):
        self.batches.append([int(photo.flat[0]) for photo in photos])
        self.began.release()
        assert self.may_go.acquire(timeout=30)
        if any(photo.flat[0] == 13 for photo in photos):
            raise ValueError("thirteen")
        return [int(photo.flat[0]) for photo in photos]


@pytest.fixture
def finder():
    return SlowFinder()


@pytest.fixture
def queue(finder):
    queue = PhotoQueue(finder, lambda photo: photo.shape, batch_size=3, capacity=2)
    yield queue
    for _ in range(20):
        finder.may_go.release()
    queue.close()


def photo(number, side=2):
    return np.full((side, side, 3), number, np.uint8)


def test_what_waits_goes_together_by_kind_and_in_order(queue, finder):
    answers = [queue.submit(photo(0))]
    assert finder.began.acquire(timeout=30)  # the first goes alone; the others collect meanwhile
    answers += [queue.submit(photo(n, side=4 if n in (2, 4) else 2)) for n in range(1, 8)]
    for _ in range(4):
        finder.may_go.release()
    assert [answer.result(30) for answer in answers] == list(range(8))
    assert finder.batches == [[0], [1, 3, 5], [2, 4], [6, 7]]


def test_an_error_is_that_of_its_batch_and_a_cancelled_photo_is_left_out(queue, finder):
    first = queue.submit(photo(0))
    assert finder.began.acquire(timeout=30)
    bad, beside = queue.submit(photo(13)), queue.submit(photo(1))
    cancelled, after = queue.submit(photo(2, side=4)), queue.submit(photo(3, side=4))
    assert cancelled.cancel()
    for _ in range(3):
        finder.may_go.release()
    assert first.result(30) == 0 and after.result(30) == 3
    for answer in (bad, beside):
        with pytest.raises(ValueError, match="thirteen"):
            answer.result(30)
    assert finder.batches == [[0], [13, 1], [3]]


def test_places_are_bounded_and_given_back(queue):
    with queue.place(), pytest.raises(ZeroDivisionError):
        with queue.place():
            with pytest.raises(QueueFullError, match="2 photos are waiting or in work"):
                queue.place().__enter__()
            assert queue.num_taken == 2
            raise ZeroDivisionError
    assert queue.num_taken == 0


def test_closing_answers_what_was_submitted(finder):
    queue = PhotoQueue(finder, lambda photo: 0, batch_size=1, capacity=2)
    answers = [queue.submit(photo(n)) for n in range(3)]
    for _ in answers:
        finder.may_go.release()
    queue.close()
    assert [answer.result(0) for answer in answers] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(photo(1))
