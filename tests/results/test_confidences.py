"""Confidences in results files, and pictures of them."""

import base64
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from ktn_jax.results import confidences, records
from ktn_jax.results.confidence_pictures import draw_confidences
from ktn_jax.results.detection_checks import CONFIDENCES, ResultsError
from ktn_jax.results.records import PersonResult


def _person(names=CONFIDENCES, score=0.5, box=(4, 6, 34, 26), seed=0):
    rng = np.random.default_rng(seed)
    height, width = box[3] - box[1], box[2] - box[0]
    iuv = rng.integers(0, 256, (3, height, width), np.uint8)
    iuv[0] = rng.integers(0, 2, (height, width)) * 7
    maps = {name: rng.normal(size=(height, width)).astype(np.float32) for name in names}
    for name in names:
        if name in confidences.ON_BODY:
            maps[name][iuv[0] == 0] = 0
    return PersonResult(np.float32(box), score, iuv, confidences=maps)


def test_confidences_come_back_to_within_a_level_of_16_bits(tmp_path):
    people = [_person(), _person(CONFIDENCES[:1], seed=1), _person(())]
    found = records.people_to_records(3, people, with_confidences=True)
    assert not any("confidences" in record for record in records.people_to_records(3, people))
    records.write_results(tmp_path / "results.json", found)
    back = records.records_to_people(records.read_results(tmp_path / "results.json"))[3]
    for old, new in zip(people, back, strict=True):
        assert list(new.confidences) == list(old.confidences)
        for name, values in old.confidences.items():
            level = (values.max() - values.min()) / 65_535
            # Half a level, and the rounding of float32.
            limit = 0.5 * level + 1e-6
            np.testing.assert_allclose(new.confidences[name], values, rtol=0, atol=limit)
            assert new.confidences[name].dtype == np.float32
            if name in confidences.ON_BODY:
                assert (new.confidences[name][old.iuv[0] == 0] == 0).all()


def test_the_range_of_a_patch_map_is_that_of_the_body():
    is_body = np.array([[False, True], [True, False]])
    maps = {
        "sigma": np.float32([[0, 5], [6, 0]]),
        "coarse_segm_confidence": np.float32([[1, 5], [6, 2]]),
    }
    encoded = confidences.encode_confidences(maps, is_body)
    assert encoded["sigma"]["range"] == [5, 6]
    assert encoded["coarse_segm_confidence"]["range"] == [1, 6]
    with Image.open(io.BytesIO(base64.b64decode(encoded["sigma"]["data"]))) as png:
        np.testing.assert_array_equal(np.array(png)[[0, 1], [1, 0]], [0, 65_535])
    nobody = confidences.encode_confidences({"sigma": maps["sigma"]}, np.zeros_like(is_body))
    back = confidences.decode_confidences("record", nobody, np.zeros_like(is_body))
    np.testing.assert_array_equal(back["sigma"], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [1], "confidences must be an object"),
        (lambda found: {"certainty": found["sigma"]}, "fields of sigma, kappa_u"),
        (lambda found: {"sigma": {"data": found["sigma"]["data"]}}, "sigma must have range and"),
        (lambda found: {"sigma": found["sigma"] | {"range": [1, 0]}}, r"sigma: range must be"),
        (lambda found: {"sigma": found["sigma"] | {"data": 7}}, "sigma: data must be text"),
        (lambda found: {"sigma": found["sigma"] | {"data": "AAAA"}}, "sigma: data is not a PNG"),
    ],
)
def test_malformed_confidences_are_named(change, message):
    (record,) = records.people_to_records(3, [_person()], with_confidences=True)
    broken = copy.deepcopy(record)
    broken["confidences"] = change(broken["confidences"])
    with pytest.raises(ResultsError, match=f"record 0.*{message}"):
        records.records_to_people([json.loads(json.dumps(broken))])


def test_pictures_that_are_damaged_or_of_another_kind_are_named():
    person = _person()
    (record,) = records.people_to_records(3, [person], with_confidences=True)
    other = records.people_to_records(3, [_person(box=(0, 0, 3, 5))], with_confidences=True)[0]
    of_eight_bits = {"data": record["uv_data"]}  # of the right size
    cut = {"data": record["confidences"]["sigma"]["data"][:200]}
    for change, message in (
        (other["confidences"]["sigma"], r"sigma: \[5, 3\] pixels, wanted .* \[20, 30\]"),
        (of_eight_bits, "sigma: wanted a grey PNG of 16 bits .* got RGB"),
        (cut, "sigma: not a PNG"),
    ):
        broken = copy.deepcopy(record)
        broken["confidences"]["sigma"] |= change
        with pytest.raises(ResultsError, match=message):
            records.records_to_people([broken])
    not_finite = dict(person.confidences)
    not_finite["sigma"] = np.full_like(not_finite["sigma"], np.inf)
    wrong = PersonResult(person.box_xyxy, 0.5, person.iuv, confidences=not_finite)
    with pytest.raises(ResultsError, match="sigma must be finite"):
        records.people_to_records(3, [wrong], with_confidences=True)
    for maps in ({"sigma": np.zeros((2, 2))}, {"certainty": np.zeros((20, 30))}):
        with pytest.raises(
            ResultsError, match=r"confidences must be \[h, w\] as iuv or vertices, \(20, 30"
        ):
            PersonResult(person.box_xyxy, 0.5, person.iuv, confidences=maps)


def test_drawn_confidences_cover_the_body_or_the_box_and_the_better_person_is_in_front():
    image = np.full((40, 50, 3), 128, np.uint8)
    person = _person(CONFIDENCES)
    alone = draw_confidences(image, [person], opacity=1)
    # Four panels with a gap of two pixels, under a title.
    assert alone.shape[1] == 4 * 50 + 3 * 2
    panels = [alone[-40:, start : start + 50] for start in range(0, 4 * 52, 52)]
    box = np.zeros((40, 50), bool)
    box[6:26, 4:34] = True
    body = np.zeros((40, 50), bool)
    body[6:26, 4:34] = person.iuv[0] > 0
    for panel, area in zip(panels, (body, body, box, box), strict=True):
        assert (panel[~area] == 128).all() and (panel[area] != 128).any(-1).all()
    # The colours run from dark to yellow with the deviation.
    rows, columns = np.nonzero(body)
    sigma = np.where(body[6:26, 4:34], person.confidences["sigma"], np.nan)
    least, most = (np.unravel_index(f(sigma), sigma.shape) for f in (np.nanargmin, np.nanargmax))
    np.testing.assert_array_equal(panels[0][6 + least[0], 4 + least[1]], [68, 1, 84])
    np.testing.assert_array_equal(panels[0][6 + most[0], 4 + most[1]], [253, 231, 37])
    behind = _person(CONFIDENCES[-1:], score=0.4, box=(4, 6, 44, 26), seed=2)
    both = draw_confidences(image, [behind, person], opacity=1)
    coarse = both[-40:, 3 * 52 :]
    assert (coarse[6:26, 34:44] != 128).any(-1).all()


def test_without_people_or_confidences():
    image = np.full((40, 50, 3), 128, np.uint8)
    np.testing.assert_array_equal(draw_confidences(image, []), image)
    with pytest.raises(ValueError, match="no confidences"):
        draw_confidences(image, [_person(())])
