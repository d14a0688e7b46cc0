"""Which records of a results file are of which photo."""

import pathlib

from ktn_jax.inference.known_people import match_records


def matched(photos, records):
    records = [dict(record, n=number) for number, record in enumerate(records)]
    found = match_records([pathlib.Path(photo) for photo in photos], records)
    return [[record["n"] for record in own] for own in found]


def named(name):
    return {"image_id": 1, "file_name": name}


def test_paths_come_first_then_names_that_nothing_shares():
    photos = ["x/a.jpg", "x/b.jpg", "./y/b.jpg"]
    records = [named("y/b.jpg"), named("old/a.jpg"), named("x/b.jpg"), named("y/b.jpg")]
    assert matched(photos, records) == [[1], [2], [0, 3]]
    # Two folders have an a.jpg: which one is meant, nothing says.
    assert matched(["x/a.jpg", "y/a.jpg"], [named("old/a.jpg")]) == [[], []]
    assert matched(["x/a.jpg"], [named("old/a.jpg"), named("new/a.jpg")]) == [[]]


def test_without_names_the_number_counts_and_a_single_image_is_the_single_photo():
    records = [{"image_id": 785}, {"image_id": 872}, {"image_id": 785}]
    photos = ["000000000872.jpg", "COCO_val2014_000000000785.jpg", "other.jpg"]
    assert matched(photos, records) == [[1], [0, 2], []]
    assert matched(["photo.jpg"], records[::2]) == [[0, 1]]
    assert matched(["photo.jpg"], records) == [[]]
    # A file name that is known is not overruled by a number.
    assert matched(["785.jpg", "b.jpg"], [named("b.jpg"), {"image_id": 785}]) == [[1], [0]]
