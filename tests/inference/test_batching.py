"""Batches: of one padded size, read ahead in order, finished behind; and what stops them."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktn_jax.inference import batching
from ktn_jax.runtime.configuration import load_config


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_bucket_holds_the_image_and_is_the_smallest(height, width):
    buckets = ((800, 1088), (800, 1344), (1088, 800), (1344, 800))
    bucket = batching.choose_bucket((height, width), buckets)
    assert bucket[0] >= height and bucket[1] >= width
    fitting = [b for b in buckets if b[0] >= height and b[1] >= width]
    if fitting:
        assert bucket[0] * bucket[1] == min(h * w for h, w in fitting)
    else:
        assert bucket[0] - height < 64 and bucket[1] - width < 64


def test_photos_are_put_where_their_resized_images_fit():
    test = load_config("configs/ktn.py:r50").test
    assert batching.photo_bucket((480, 640), test) == (800, 1088)  # 800 x 1067
    assert batching.photo_bucket((640, 480), test) == (1088, 800)
    assert batching.photo_bucket(None, test) == (0, 0)


def test_batches_are_of_one_size_and_only_the_last_of_each_is_short():
    items = list("aBcDeFgA")
    batches = list(batching.batches_of_one_size(items, lambda x: (x.isupper(), 0), 2))
    assert batches == [["a", "c"], ["e", "g"], ["B", "D"], ["F", "A"]]
    batches = list(batching.batches_of_one_size(items, lambda x: (x.isupper(), 0), 2, window=5))
    assert batches == [["a", "c"], ["e"], ["B", "D"], ["g"], ["F", "A"]]
    assert list(batching.batches_of_one_size([], lambda x: (0, 0), 2)) == []


def test_no_more_than_a_window_is_taken_ahead():
    taken = []
    items = (taken.append(i) or i for i in range(100))
    batches = batching.batches_of_one_size(items, lambda i: (0, 0), 2, window=6)
    assert next(batches) == [0, 1]
    assert len(taken) == 6


def test_padding_is_zero_and_sizes_are_those_of_the_images():
    images = [np.full((2, 3, 3), 7, np.uint8), np.full((4, 1, 3), 9, np.uint8)]
    inputs, sizes = batching.pad(images, (4, 5), 3)
    assert inputs.shape == (3, 4, 5, 3) and inputs.dtype == np.uint8
    assert inputs.sum() == 7 * 18 + 9 * 12
    assert (inputs[0, :2, :3] == 7).all() and (inputs[1, :, :1] == 9).all()
    np.testing.assert_array_equal(sizes, [[2, 3], [4, 1], [4, 5]])


def _run(batches, read=lambda x: 10 * x, predict=None, finish=None):
    done = []
    batching.run(
        batches,
        read,
        predict or (lambda photos: [photo + 1 for photo in photos]),
        finish or (lambda *batch: done.append(batch)),
    )
    return done


def test_every_batch_is_finished_in_order_with_what_was_found():
    assert _run([[1, 2], [3]]) == [([1, 2], [10, 20], [11, 21]), ([3], [30], [31])]
    assert _run([]) == []


def test_items_that_cannot_be_read_are_left_out():
    seen = []

    def predict(photos):
        seen.append(photos)
        return photos

    done = _run([[1, 2], [3], [4]], lambda x: None if x in (1, 3) else x, predict)
    assert seen == [[2], [4]]
    assert done == [([2], [2], [2]), ([], [], []), ([4], [4], [4])]


def test_reading_is_ahead_and_finishing_behind():
    """Each waits for the other two at once: were they one after the other, it would stop here."""
    read_ahead, finished = threading.Event(), threading.Event()

    def read(item):
        if item == 2:
            read_ahead.set()
        return item

    def predict(photos):
        if photos == [0]:
            assert read_ahead.wait(30)
        if photos == [1]:
            finished.set()
        return photos

    def finish(items, *_):
        if items == [0]:
            assert finished.wait(30)

    _run([[0], [1], [2], [3]], read, predict, finish)


def test_not_all_is_read_at_once():
    read, most = [], []

    def predict(photos):
        most.append(len(read) - photos[0])
        return photos

    _run([[i] for i in range(50)], lambda x: read.append(x) or x, predict)
    assert max(most) <= batching.BATCHES_AHEAD + 1


@pytest.mark.parametrize("place", ["read", "predict", "finish"])
@pytest.mark.parametrize("bad", [0, 3])
def test_what_is_raised_anywhere_stops_the_work(place, bad):
    def fail(value, *rest):
        if bad in (value if isinstance(value, list) else [value]):
            raise OSError("no space left")
        return value

    finished = []
    calls = {
        "read": lambda x: x,
        "predict": lambda photos: photos,
        "finish": lambda items, *_: finished.append(items),
    }
    with pytest.raises(OSError, match="no space left"):
        batching.run([[i] for i in range(4)], **(calls | {place: fail}))
    if place == "predict":  # what was found before is not lost
        assert finished == [[i] for i in range(bad)]
    yielded = []
    with pytest.raises(OSError, match="no space left"):
        keep = calls | {"finish": lambda items, *_: items[0]} | {place: fail}
        for value in batching.stream([[i] for i in range(4)], **keep):
            yielded.append(value if place != "finish" else value[0])
    assert yielded == list(range(bad))


def test_batches_in_order_are_of_one_size_and_come_when_they_are_full():
    taken = []
    items = (taken.append(item) or item for item in "aabbbcaaa")
    batches = batching.batches_in_order(items, lambda letter: (ord(letter), 0), 2)
    assert next(batches) == ["a", "a"] and len(taken) == 2
    assert list(batches) == [["b", "b"], ["b"], ["c"], ["a", "a"], ["a"]]
    assert list(batching.batches_in_order([], lambda _: (0, 0), 2)) == []
