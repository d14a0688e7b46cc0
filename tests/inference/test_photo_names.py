"""Names of the pictures and image ids of photos."""

import json
import os
import pathlib

import pytest

from ktn_jax.evaluation.ground_truth import read_ground_truth
from ktn_jax.inference.photo_names import annotated_ids, as_text, image_ids, output_names


def _paths(*names):
    return [pathlib.Path(name) for name in names]


def test_photos_of_the_same_name_are_told_apart():
    names = output_names(_paths("a/x.jpg", "b/x.png", "x-2.jpg"))
    assert len(set(names)) == 3
    assert names[:2] == ["x", "x-2"]


def test_numbers_in_names_are_ids():
    assert image_ids(_paths("COCO_val2014_000000000785.jpg", "12.png")) == [785, 12]
    # One name that is no number, or is there twice, changes no other id.
    assert image_ids(_paths("beach.jpg", "2.jpg", "1.jpg", "dog.jpg")) == [3, 2, 1, 4]
    assert image_ids(_paths("a/001.jpg", "b/001.jpg", "b/2.jpg")) == [1, 3, 2]
    assert image_ids(_paths("0.jpg", "9" * 30 + ".jpg")) == [0, 1]
    assert image_ids([]) == []


def test_paths_become_text_that_json_takes():
    assert as_text(pathlib.Path("a/\u00e9.jpg")) == "a/\u00e9.jpg"
    assert as_text(os.fsdecode(b"a/\xff.jpg")) == "a/\\xff.jpg"


@pytest.fixture
def truth(tmp_path):
    def write(*names):
        images = [
            {"id": 70 - number, "file_name": name, "height": 20, "width": 30}
            for number, name in enumerate(names)
        ]
        categories = [{"id": 3, "name": "dog"}, {"id": 7, "name": "person"}]
        path = tmp_path / "truth.json"
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
        return read_ground_truth(path, on_bad="skip")

    return write


def test_ids_of_an_annotation_file(truth):
    photos = _paths("photos/b.jpg", "photos/a.jpg")
    assert annotated_ids(photos, truth("a.jpg", "b.jpg", "c.jpg")) == [69, 70]
    assert annotated_ids(photos, truth("val/a.jpg", "val/b.jpg")) == [69, 70]


def test_folders_tell_images_of_one_name_apart(truth):
    annotated = truth("one/1.jpg", "two/1.jpg", "1.jpg")
    photos = _paths("x/two/1.jpg", "x/one/1.jpg", "x/three/1.jpg")
    assert annotated_ids(photos, annotated) == [69, 70, 68]


def test_photos_that_are_not_annotated_are_named(truth):
    with pytest.raises(
        ValueError, match=r"1 of 2 photos are not .* truth\.json .*such as x/d\.jpg"
    ):
        annotated_ids(_paths("x/d.jpg", "a.jpg"), truth("a.jpg"))
    with pytest.raises(ValueError, match=r"x/a\.jpg and y/a\.jpg are both image 70"):
        annotated_ids(_paths("x/a.jpg", "y/a.jpg"), truth("a.jpg"))
