"""Which records of a results file are of which photo."""

import os
import pathlib

from ktn_jax.inference.known_people import match_records
from ktn_jax.inference.photo_names import as_text


def matched(photos, records):
    return match_records([pathlib.Path(photo) for photo in photos], records)


def named(name):
    return {"image_id": 1, "file_name": name}


def test_paths_come_first_then_names_that_nothing_shares():
    photos = ["x/a.jpg", "x/b.jpg", "./y/b.jpg"]
    records = [named("y/b.jpg"), named("old/a.jpg"), named("x/b.jpg"), named("y/b.jpg")]
    assert matched(photos, records) == [[1], [2], [0, 3]]
    # Two folders have an a.jpg: which one is meant, nothing says.
    assert matched(["x/a.jpg", "y/a.jpg"], [named("old/a.jpg")]) == [[], []]
    assert matched(["x/a.jpg"], [named("old/a.jpg"), named("new/a.jpg")]) == [[]]


def test_names_that_are_not_utf_8_are_found_as_they_were_written():
    path = pathlib.Path(os.fsdecode(b"x/\xff.jpg"))
    assert matched([path], [named("b.jpg"), named(as_text(path))]) == [[1]]
    assert matched([path], [named("b.jpg"), named("old/" + as_text(path.name))]) == [[1]]


def test_without_names_the_number_counts_and_a_single_image_is_the_single_photo():
    records = [{"image_id": 785}, {"image_id": 872}, {"image_id": 785}]
    photos = ["000000000872.jpg", "COCO_val2014_000000000785.jpg", "other.jpg"]
    assert matched(photos, records) == [[1], [0, 2], []]
    assert matched(["photo.jpg"], records[::2]) == [[0, 1]]
    assert matched(["photo.jpg"], records) == [[]]
    # What is no text is no name.
    assert matched(["785.jpg"], [named(5) | {"image_id": 785}, named(None), named("a")]) == [[0]]
    # A file name that is known is not overruled by a number.
    assert matched(["785.jpg", "b.jpg"], [named("b.jpg"), {"image_id": 785}]) == [[1], [0]]
