"""Masks as part of results: run lengths, records, instances and drawings."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.results import categories, drawing, maps, records
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.records import PersonResult, ResultsError

SIZE = (30, 40)


def _mask(rows=slice(5, 20), columns=slice(8, 16)):
    mask = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
    mask[0, 0] = False
    return PlacedMask(rows.start, columns.start, mask, SIZE)


def _person(**changes):
    fields = {"box_xyxy": [8.25, 5.5, 15.75, 19.5], "score": 0.5, "mask": _mask()}
    return PersonResult(**(fields | changes))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_mask_survives_its_run_lengths(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(0, 12, 2)
    top, left = rng.integers(0, SIZE[0] - height), rng.integers(0, SIZE[1] - width)
    placed = PlacedMask(int(top), int(left), rng.random((height, width)) < 0.4, SIZE)
    encoded = json.loads(json.dumps(placed.to_rle()))
    again = PlacedMask.from_rle(encoded)
    np.testing.assert_array_equal(again.whole(), placed.whole())
    assert again.image_size_hw == SIZE and again.mask.size <= placed.mask.size


def test_people_without_a_picture_and_other_objects_come_back(tmp_path):
    keypoints = np.arange(51, dtype=np.float32).reshape(17, 3)
    people = [_person(keypoints=keypoints), _person(category_id=17, mask=None)]
    found = records.people_to_records(7, people, category_id=3)
    assert [record["category_id"] for record in found] == [3, 17]
    assert "uv_data" not in found[0] and found[0]["segmentation"]["size"] == [30, 40]
    np.testing.assert_allclose(found[0]["bbox"], [8.25, 5.5, 7.5, 14])
    records.write_results(tmp_path / "results.json", found)
    person, cat = records.records_to_people(records.read_results(tmp_path / "results.json"))[7]
    assert person.iuv is None and person.size_hw == (14, 7) and cat.category_id == 17
    np.testing.assert_array_equal(person.mask.whole(), people[0].mask.whole())
    np.testing.assert_allclose(person.keypoints, keypoints, atol=1e-5)
    np.testing.assert_allclose(person.box_xyxy, people[0].box_xyxy)
    assert cat.mask is None


def test_a_damaged_mask_is_named():
    record = records.people_to_records(7, [_person()])[0]
    record["segmentation"]["counts"] = "01"
    with pytest.raises(ResultsError, match="record 0: segmentation: runs add up to"):
        records.records_to_people([record])


def test_masks_are_instances_where_there_is_no_picture():
    behind = _person(score=0.4, mask=_mask(slice(10, 30), slice(10, 40)))
    iuv, instances = maps.paste_iuv([behind, _person()], SIZE)
    assert not iuv.any()
    front = _mask().whole()
    np.testing.assert_array_equal(instances == 1, front)
    np.testing.assert_array_equal(instances == 2, behind.mask.whole() & ~front)
    with pytest.raises(ValueError, match=r"mask is of an image of \(30, 40\)"):
        maps.paste_iuv([_person()], (31, 40))


def test_masks_are_outlined_and_filled():
    image = np.full((*SIZE, 3), 100, np.uint8)
    plain = {"show_boxes": False, "show_scores": False}
    drawn = drawing.draw_people(image, [_person()], opacity=0.5, **plain)
    inside = _mask().whole()
    np.testing.assert_array_equal((drawn != 100).any(-1), inside)
    colour = drawn[19, 12]  # on the outline
    filled = np.rint(0.75 * 100 + 0.25 * colour.astype(float))
    np.testing.assert_array_equal(drawn[12, 12], filled)
    same = drawing.draw_people(image, [_person()], show_masks=False, **plain)
    np.testing.assert_array_equal(same, image)
    with_picture = _person(iuv=np.zeros((3, 14, 7), np.uint8))
    for size in ((15, 40), (60, 80)):
        with pytest.raises(ValueError, match=r"mask is of an image of \(30, 40\)"):
            drawing.draw_people(np.zeros((*size, 3), np.uint8), [with_picture])


def test_coco_has_eighty_categories():
    ids = categories.category_ids(80)
    assert len(set(ids)) == 80 and ids[0] == 1 and ids[-1] == 90
    assert categories.CATEGORY_NAMES[17] == "cat" and categories.CATEGORY_NAMES[90] == "toothbrush"
    assert categories.CATEGORY_NAMES[27] == "backpack" and 26 not in categories.CATEGORY_NAMES
    assert categories.category_ids(1) == (1,) and categories.category_ids(3) == (1, 2, 3)
