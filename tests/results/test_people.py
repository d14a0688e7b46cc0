"""People that draw themselves over their photo and save themselves, and are arrays and tables."""

import base64
import copy
import dataclasses
import io
import pickle
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ktn_jax.results import drawing, maps, records
from ktn_jax.results.people import People
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.styles import StyleSettings, draw_styles
from ktn_jax.results.tracking import Tracker

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
    with pytest.raises(ValueError, match=r"not known any more: give it, people.draw\(photo="):
        people.draw()
    assert people.draw(photo=PHOTO).shape == PHOTO.shape
    with pytest.raises(TypeError, match=r"a name, got ndarray; people.draw\(photo="):
        people.draw(PHOTO)
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


def test_people_are_arrays_too():
    mask = np.zeros((20, 30), bool)
    mask[15:, 25:] = True
    other = dataclasses.replace(
        PERSON, box_xyxy=[-4, 15, 6, 25], score=0.8, mask=PlacedMask.from_whole(mask)
    )
    people = People([PERSON, other], PHOTO)
    np.testing.assert_array_equal(people.boxes, [[2, 3, 12, 13], [-4, 15, 6, 25]])
    np.testing.assert_array_equal(people.scores, np.array([0.9, 0.8], np.float32))
    assert people.keypoints.shape == (2, 17, 3) and people.image_size_hw == (20, 30)
    expected = np.zeros((2, 20, 30), bool)
    expected[0, 3:13, 2:12] = True
    expected[1] = mask  # the mask head's, not that of its IUV picture
    np.testing.assert_array_equal(people.masks, expected)
    iuv, instances = maps.paste_iuv(people, (20, 30))
    np.testing.assert_array_equal(people.iuv, iuv)
    np.testing.assert_array_equal(people.instances, instances)
    for nothing in (people[:0], People([], image_size_hw=(20, 30))):
        assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,)
        assert nothing.masks.shape == (0, 20, 30) and nothing.iuv.shape == (20, 30, 3)
        assert nothing.keypoints is None
    box_only = dataclasses.replace(PERSON, iuv=None, keypoints=None)
    assert People([PERSON, box_only]).masks is None
    assert People([PERSON, box_only]).keypoints is None
    with pytest.raises(ValueError, match=r"size is not known: give it, People\(people, photo\)"):
        _ = People([PERSON]).iuv


def test_a_slice_is_of_the_same_photo():
    people = People([PERSON] * 3, PHOTO)
    best = people[:1]
    assert isinstance(best, People) and len(best) == 1 and best[0] is PERSON
    np.testing.assert_array_equal(best.draw(), drawing.draw_people(PHOTO, [PERSON]))
    assert repr(best) == "<People: 1, scores 0.90>" and repr(best[:0]) == "<People: 0>"
    numbered = people.replaced(Tracker().update(people, 0.0))
    assert [person.track_id for person in numbered] == [1, 2, 3]
    assert numbered.draw().shape == PHOTO.shape
    assert pickle.loads(pickle.dumps(best)).image_size_hw == (20, 30)  # noqa: S301 (our own)


def test_people_draw_themselves_in_every_style(tmp_path):
    people = People([PERSON], PHOTO)
    settings = StyleSettings(background="black", opacity=1.0)
    drawn = people.draw("u+bbox", background="black", opacity=1.0)
    expected = draw_styles(PHOTO, people, ["u", "bbox"], settings)
    np.testing.assert_array_equal(drawn, expected)
    people.save(tmp_path / "u.png", style="u+bbox", background="black", opacity=1.0)
    with Image.open(tmp_path / "u.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), expected)
    for style, values in (
        ("iuv", people.iuv),
        ("labels", people.iuv[..., 0]),
        ("instances", people.instances),
    ):
        np.testing.assert_array_equal(people.draw(style=style), values)
        people.save(tmp_path / f"{style}.png", style=style)
        with Image.open(tmp_path / f"{style}.png") as saved:
            np.testing.assert_array_equal(np.asarray(saved), values)
        with pytest.raises(ValueError, match=f"{style} needs every bit of it"):
            people.save(tmp_path / "x.jpg", style=style)
    with pytest.raises(ValueError, match="unknown style 'w'"):
        people.draw(style="w")
    with pytest.raises(TypeError, match="show_parts"):
        people.draw(style="u", show_parts=False)


def test_records_are_those_of_a_results_file():
    assert People([PERSON]).to_records(7) == records.people_to_records(7, [PERSON])
    (record,) = People([PERSON]).to_records(7, file_name="a.jpg")
    assert record["file_name"] == "a.jpg"


def test_notebooks_show_a_picture_and_a_table():
    photo = np.full((900, 1200, 3), 200, np.uint8)
    people = People([dataclasses.replace(PERSON, track_id=4)], photo)
    with Image.open(io.BytesIO(people._repr_png_())) as shown:
        assert shown.size == (800, 600)
    html = people._repr_html_()
    assert base64.b64encode(people._repr_png_()).decode() in html
    assert "<td>4</td><td>person</td><td>0.900</td><td>2.0, 3.0, 12.0, 13.0</td>" in html
    unknown = People([PERSON])
    assert unknown._repr_png_() is None and "img" not in unknown._repr_html_()


class _Detections:
    """What supervision's Detections take."""

    def __init__(self, *, xyxy, mask, confidence, class_id, tracker_id, data):
        self.xyxy, self.mask, self.confidence, self.class_id = xyxy, mask, confidence, class_id
        self.tracker_id, self.data = tracker_id, data

    def __len__(self):
        return len(self.xyxy)


@pytest.mark.parametrize("real", [True, False])
def test_people_become_detections_of_supervision(real, monkeypatch):
    if real:
        pytest.importorskip("supervision")
    else:
        stand_in = types.SimpleNamespace(Detections=_Detections)
        monkeypatch.setitem(sys.modules, "supervision", stand_in)
    people = People([PERSON, dataclasses.replace(PERSON, score=0.5, category_id=18)], PHOTO)
    found = people.to_supervision()
    np.testing.assert_array_equal(found.xyxy, people.boxes)
    np.testing.assert_array_equal(found.mask, people.masks)
    np.testing.assert_array_equal(found.confidence, people.scores)
    assert found.class_id.tolist() == [1, 18] and found.tracker_id is None
    assert found.data["class_name"].tolist() == ["person", "dog"]
    numbered = people.replaced(Tracker().update(people, 0.0)).to_supervision()
    assert numbered.tracker_id.tolist() == [1, 2]
    assert len(People([]).to_supervision()) == 0


def test_supervision_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        People([PERSON], PHOTO).to_supervision()
