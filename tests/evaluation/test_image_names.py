"""Which file names of results contradict those of the annotations."""

import pytest

from ktn_jax.evaluation.image_names import AnnotatedNames

ANNOTATED = {
    1: "a/001.jpg",
    2: "b/001.jpg",
    3: "COCO_val2014_000000000785.jpg",
    4: "val/11.jpg",
    5: "deep/b/002.jpg",
}


@pytest.mark.parametrize(
    ("image_id", "given"),
    [
        (1, "a/001.jpg"),
        (2, "/photos/b/001.png"),
        (2, "C:\\photos\\b\\001.jpg"),
        (1, "001.jpg"),  # of either folder
        (2, "elsewhere/001.jpg"),
        (3, "000000000785.jpg"),
        (3, "val/785.png"),
        (3, "COCO_train2014_000000000785.jpg"),
        (4, "images/11.jpg"),
        (5, "b/002.jpg"),
    ],
)
def test_names_that_fit(image_id, given):
    assert not AnnotatedNames(ANNOTATED.items()).contradicts(image_id, given)


@pytest.mark.parametrize(
    ("image_id", "given"),
    [
        (1, "b/001.jpg"),  # two folders with the same names
        (2, "photos/a/001.jpg"),
        (4, "1.jpg"),
        (4, "val/111.jpg"),
        (3, "COCO_val2014_000000000786.jpg"),
        (1, "zoe.jpg"),
        (1, ""),
    ],
)
def test_names_that_contradict(image_id, given):
    assert AnnotatedNames(ANNOTATED.items()).contradicts(image_id, given)
