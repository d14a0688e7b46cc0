"""Items made in another thread: in order, few at a time, errors in their place."""

import threading

import pytest

from ktn_jax.runtime.read_ahead import read_ahead


def test_items_come_in_order_and_errors_in_their_place():
    threads = []

    def items():
        for number in range(5):
            threads.append(threading.get_ident())
            yield number
        raise OSError("the end")

    taken = []
    with pytest.raises(OSError, match="the end"):
        for item in read_ahead(items(), 2):
            taken.append(item)
    assert taken == [0, 1, 2, 3, 4]
    assert threading.get_ident() not in threads
    assert list(read_ahead([], 3)) == []


def test_items_are_made_ahead_and_no_further_than_asked_for():
    made = threading.Semaphore(0)
    numbers = []

    def items():
        for number in range(100):
            numbers.append(number)
            made.release()
            yield number

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 0
    for _ in range(3):  # the one taken and two more, without asking for them
        assert made.acquire(timeout=30)
    ahead.close()
    assert numbers == [0, 1, 2]
    assert list(ahead) == []
