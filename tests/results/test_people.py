"""People that draw themselves over their photo and save themselves."""

import copy
import pickle

import numpy as np
import pytest
from PIL import Image

from ktn_jax.results import drawing, records
from ktn_jax.results.people import People

PHOTO = np.full((20, 30, 3), 200, np.uint8)
PERSON = records.PersonResult(
    np.array([2, 3, 12, 13]), 0.9, np.full((3, 10, 10), 7, np.uint8), np.ones((17, 3))
)


def test_people_draw_themselves_over_their_photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    image = Image.fromarray(PHOTO)
    expected = drawing.draw_people(PHOTO, [PERSON])
    for photo in (path, str(path), image, PHOTO):
        people = People([PERSON], photo)
        np.testing.assert_array_equal(people.draw(), expected)
    again = copy.copy(People([PERSON], path))  # through __reduce__, as pickling
    np.testing.assert_array_equal(again.draw(), expected)
    plain = people.draw(show_parts=False, show_boxes=False, show_scores=False)
    np.testing.assert_array_equal(plain, PHOTO)


def test_a_photo_in_memory_is_not_kept_there():
    people = People([PERSON], PHOTO.copy())
    with pytest.raises(ValueError, match=r"not known any more: give it, people.draw\(photo\)"):
        people.draw()
    assert people.draw(PHOTO).shape == PHOTO.shape
    assert len(pickle.dumps(people)) > 0


def test_people_save_themselves(tmp_path):
    people = People([PERSON], PHOTO)
    people.save(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), people.draw())
    people.save(tmp_path / "people.json")
    (found,) = records.records_to_people(records.read_results(tmp_path / "people.json"))[1]
    np.testing.assert_array_equal(found.iuv, PERSON.iuv)
    for name in ("x", "x.odd"):
        with pytest.raises(ValueError, match="give a name that ends as pictures do"):
            people.save(tmp_path / name)
    assert not list(tmp_path.glob("x*"))
