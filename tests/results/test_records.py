"""People and results files: round trips, both layouts, and messages for malformed records."""

import base64
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ktn_jax.results import iuv_pictures, records
from ktn_jax.results.records import PersonResult, ResultsError

PICTURE = np.array([[[1, 0, 24]], [[255, 7, 0]], [[3, 0, 128]]], np.uint8).swapaxes(1, 2)  # 3 x 1


def _person(**changes):
    fields = {"box_xyxy": [10.5, 20.25, 11.75, 23.5], "score": 0.75, "iuv": PICTURE}
    return PersonResult(**(fields | changes))


def _record():
    return records.people_to_records(7, [_person()])[0]


@pytest.mark.parity
def test_published_results_survive_a_round_trip(real_dir, tmp_path):
    source = json.loads((real_dir / "pairs" / "example_results.json").read_text())
    found = records.read_results(real_dir / "pairs" / "example_results.json")
    assert found == source  # every field and value, unknown ones included
    people = records.records_to_people(found)
    assert {image_id: len(found) for image_id, found in people.items()} == {785: 1, 872: 2, 885: 18}

    rewritten = []
    for image_id, found in people.items():
        for person in found:
            sides = person.box_xyxy[2:] - person.box_xyxy[:2]  # float32: 215 can become 214.99997
            assert person.iuv.shape[:0:-1] == (int(sides[0]), int(sides[1]))
        rewritten += records.people_to_records(image_id, found)
    records.write_results(tmp_path / "results.json", rewritten)
    again = records.read_results(tmp_path / "results.json")
    for old, new in zip(source, again, strict=True):  # the images come in order in this file
        assert new["image_id"] == old["image_id"] and new["category_id"] == old["category_id"]
        assert new["score"] == old["score"] and new["uv_shape"] == old["uv_shape"]
        np.testing.assert_allclose(new["bbox"], old["bbox"], rtol=0, atol=4e-5)  # float32 at 600
        assert [int(size) for size in new["bbox"][2:]] == new["uv_shape"][:0:-1]
        expected = np.asarray(Image.open(io.BytesIO(base64.b64decode(old["uv_data"]))))
        np.testing.assert_array_equal(
            iuv_pictures.decode_iuv(new["uv_data"]), expected.transpose(2, 0, 1)
        )


def test_vertices_have_the_size_of_the_box_and_a_mesh():
    vertices = np.array([[0], [-1], [5]], np.int32)
    person = _person(iuv=None, vertices=vertices, mesh="cat")
    assert person.vertices is not None and person.size_hw == (3, 1)
    for changes in (
        {"mesh": ""},
        {"vertices": vertices.astype(np.int64)},
        {"vertices": vertices - 2},
        {"vertices": vertices[None]},
    ):
        with pytest.raises(ResultsError, match="vertices must be"):
            _person(**({"iuv": None, "vertices": vertices, "mesh": "cat"} | changes))
    with pytest.raises(ResultsError, match=r"vertices is 2 x 1 \(h x w\), the box 3.25 x 1.25"):
        _person(iuv=None, vertices=vertices[:2], mesh="cat")


@pytest.mark.parity
def test_evaluator_layout_reads_the_same(golden_dir):
    path = golden_dir / "eval" / "predictions.json"
    found = records.read_results(path)
    people = records.records_to_people(found)
    assert sum(map(len, people.values())) == len(found) == 52
    source = json.loads(path.read_text())
    assert found[5]["uv_data"] == source[5]["densepose"][0][1]
    assert "densepose" not in found[5] and found[5]["bbox"] == source[5]["bbox"]


def test_person_to_record_and_back():
    keypoints = np.arange(51, dtype=np.float32).reshape(17, 3)
    people = [_person(), _person(score=0.5, keypoints=keypoints)]
    found = records.people_to_records(7, people, file_name="a.jpg")
    assert found[0]["bbox"] == [10.5, 20.25, 1.25, 3.25] and found[0]["uv_shape"] == [3, 3, 1]
    assert found[0]["category_id"] == 1 and found[0]["file_name"] == "a.jpg"
    # COCO counts pixels where boxes and our keypoints are continuous: half a pixel between them.
    expected = (keypoints - [0.5, 0.5, 0]).ravel().tolist()
    assert "keypoints" not in found[0] and found[1]["keypoints"] == expected
    back = records.records_to_people(json.loads(json.dumps(found)))
    assert list(back) == [7]
    for old, new in zip(people, back[7], strict=True):
        np.testing.assert_array_equal(new.box_xyxy, old.box_xyxy)
        assert new.box_xyxy.dtype == np.float32
        assert new.score == old.score
        np.testing.assert_array_equal(new.iuv, old.iuv)
    assert back[7][0].keypoints is None
    np.testing.assert_array_equal(back[7][1].keypoints, keypoints)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(0, 2000, width=32),
    st.floats(0, 2000, width=32),
    st.floats(0, 40, width=32),
    st.floats(0, 40, width=32),
)
def test_box_and_picture_size_agree_whatever_the_rounding(x0, y0, width, height):
    box = np.array([x0, y0, np.float32(x0 + width), np.float32(y0 + height)], np.float32)
    shape = [max(int(box[3] - box[1]), 1), max(int(box[2] - box[0]), 1)]
    person = PersonResult(box, 0.5, np.zeros((3, *shape), np.uint8))
    record = records.people_to_records(1, [person])[0]
    for _ in range(2):
        assert [max(int(side), 1) for side in record["bbox"][:1:-1]] == shape
        np.testing.assert_allclose(record["bbox"][2:], box[2:] - box[:2], atol=5e-4)
        again = records.records_to_people([record])[1][0]
        sides = again.box_xyxy[2:] - again.box_xyxy[:2]
        assert [max(int(side), 1) for side in sides[::-1]] == shape
        record = records.people_to_records(1, [again])[0]


def test_box_that_another_system_rounded_gets_its_pictures_size():
    record = _record() | {"bbox": [10.5, 20.3, 1.3, 4.0]}  # from 3.96: the picture has 3 rows
    person = records.records_to_people([record])[7][0]
    assert int(person.box_xyxy[3] - person.box_xyxy[1]) == 3
    assert person.box_xyxy[3] - person.box_xyxy[1] == pytest.approx(4, abs=1e-4)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"box_xyxy": [0, 0, 1]}, "box_xyxy"),
        ({"box_xyxy": [5, 0, 4, 3]}, "x0 <= x1"),
        ({"box_xyxy": [0, 0, np.nan, 3]}, "box_xyxy"),
        ({"score": np.nan}, "score must be finite"),
        ({"iuv": PICTURE.astype(np.float32)}, r"iuv must be \[3, h, w\] uint8"),
        ({"iuv": PICTURE[:2]}, r"iuv must be \[3, h, w\]"),
        ({"iuv": PICTURE[:, :2]}, r"iuv is 2 x 1 \(h x w\), the box 3.25 x 1.25"),
        ({"iuv": PICTURE.swapaxes(1, 2)}, r"iuv is 1 x 3"),
        ({"keypoints": np.zeros((17, 2))}, r"keypoints must be \[17, 3\]"),
    ],
)
def test_malformed_people(changes, message):
    with pytest.raises(ResultsError, match=message):
        _person(**changes)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_picture_round_trip(height, width, seed):
    rng = np.random.default_rng(seed)
    iuv = rng.integers(0, 256, (3, height, width), np.uint8)
    iuv[0] %= 25
    np.testing.assert_array_equal(iuv_pictures.decode_iuv(iuv_pictures.encode_iuv(iuv)), iuv)


def test_picture_is_an_rgb_png_of_i_u_v():
    png = Image.open(io.BytesIO(base64.b64decode(iuv_pictures.encode_iuv(PICTURE))))
    assert png.mode == "RGB" and png.format == "PNG" and png.size == (1, 3)
    assert png.getpixel((0, 0)) == (1, 255, 3) and png.getpixel((0, 2)) == (24, 0, 128)


def _png(array, file_format="png"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=file_format)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "text,message",
    [
        ("not base64!", "not a PNG in base64"),
        ("", "not a PNG"),
        (iuv_pictures.encode_iuv(PICTURE).replace("A", "*A", 1), "not a PNG in base64"),
        (_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3) % 25)[:-60], "not a PNG"),
        (_png(np.zeros((4, 4, 3), np.uint8), "bmp"), "not a PNG"),
        (_png(np.zeros((4, 4), np.uint8)), "the PNG is L, not RGB"),
        (_png(np.full((4, 4, 3), 25, np.uint8)), r"patch 25 .* are its channels I, U, V\?"),
    ],
)
def test_malformed_pictures(text, message):
    with pytest.raises(ResultsError, match=message):
        iuv_pictures.decode_iuv(text)


def test_line_breaks_in_base64_are_no_damage():
    text = iuv_pictures.encode_iuv(PICTURE)
    broken = "\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n"
    np.testing.assert_array_equal(iuv_pictures.decode_iuv(broken), PICTURE)


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("image_id", "7", "image_id must be a whole number, got '7'"),
        ("image_id", True, "image_id"),
        ("category_id", 1.5, "category_id must be a whole number"),
        ("score", float("nan"), "score must be a finite number"),
        ("score", "0.5", "score must be a finite number"),
        ("bbox", [1, 2, 3], r"bbox must be \[x, y, w, h\]"),
        ("bbox", [1, 2, -3, 4], "bbox must be"),
        ("bbox", [1, 2, float("inf"), 4], "bbox must be"),
        ("bbox", [1e30, 2, 3, 4], "bbox must be"),
        ("bbox", [1, 2, 9.0, 3.0], r"uv_shape \[3, 3, 1\] does not fit bbox"),
        ("bbox", [1, 2, 3.25, 1.25], "does not fit bbox"),
        ("uv_shape", [3, 1, 3], "does not fit bbox"),
        ("uv_shape", [3, 3], r"uv_shape must be \[3, h, w\]"),
        ("uv_shape", "331", r"uv_shape must be"),
        ("uv_data", 5, "uv_data must be text"),
        ("uv_data", "?", "uv_data is not a PNG"),
        ("uv_data", _png(np.zeros((3, 2, 3), np.uint8)), r"not that of uv_data, \[3, 3, 2\]"),
        ("keypoints", [0.0] * 50, "keypoints must be 51 finite numbers"),
        ("densepose", "text", r"densepose must be \[\[shape, base64 PNG\], box\]"),
    ],
)
def test_malformed_records_are_named(field, value, message, tmp_path):
    good, bad = _record(), _record() | {field: value}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good, good, bad]))
    with pytest.raises(ResultsError, match=r"results\.json: record 2: .*" + message):
        records.read_results(path)
    with pytest.raises(ResultsError, match="record 1: .*" + message):
        records.records_to_people([good, bad])
    with pytest.raises(ResultsError, match="record 1: .*" + message):
        records.write_results(tmp_path / "new.json", [good, bad])
    assert not (tmp_path / "new.json").exists()


def test_missing_fields_and_broken_pictures_are_named(tmp_path):
    record = _record()
    for name in ("score", "uv_data"):
        partial = {key: value for key, value in record.items() if key != name}
        with pytest.raises(ResultsError, match=f"record 0: missing {name}"):
            records.records_to_people([partial])
    damaged = record | {"uv_data": record["uv_data"][:-30]}
    path = tmp_path / "results.json"
    records.write_results(path, [record, damaged])  # the header is whole: found when decoded
    with pytest.raises(ResultsError, match="record 1: uv_data: not a PNG"):
        records.records_to_people(records.read_results(path))


def test_files_that_are_no_results(tmp_path):
    path = tmp_path / "results.json"
    for content, message in (
        ("", "not a JSON file, or cut short"),
        (json.dumps([_record()])[:-9], "not a JSON file, or cut short"),
        ("{}", "wanted a list of results, got a dict"),
        ("[3]", "record 0: wanted an object with fields, got 3"),
    ):
        path.write_text(content)
        with pytest.raises(ResultsError, match=r"results\.json: " + message):
            records.read_results(path)
    with pytest.raises(FileNotFoundError):
        records.read_results(tmp_path / "absent.json")


def test_no_people(tmp_path):
    records.write_results(tmp_path / "results.json", [])
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert records.read_results(tmp_path / "results.json") == []
    assert records.records_to_people([]) == {}


def test_numbers_and_arrays_of_numpy_are_written(tmp_path):
    plain = _record() | {"keypoints": [float(n) for n in range(51)], "extra": {"n": [1, 2]}}
    given = plain | {
        "image_id": np.int64(plain["image_id"]),
        "score": np.float32(0.5),
        "bbox": np.array(plain["bbox"]),
        "uv_shape": tuple(map(np.int32, plain["uv_shape"])),
        "keypoints": np.arange(51, dtype=np.float32),
        "extra": {"n": np.array([1, 2])},
    }
    records.write_results(tmp_path / "results.json", [given])
    assert records.read_results(tmp_path / "results.json") == [plain | {"score": 0.5}]
    with pytest.raises(ResultsError, match="record 0: score must be a finite number"):
        records.write_results(tmp_path / "results.json", [given | {"score": np.float32("nan")}])


def test_records_are_not_changed(tmp_path):
    found = [_record()]
    before = copy.deepcopy(found)
    records.write_results(tmp_path / "results.json", found)
    records.records_to_people(found)
    assert found == before


def test_vertices_survive_a_round_trip():
    vertices = np.array([[-1], [65_534 - 1], [0]], np.int32)
    confidence = np.array([[0.5], [2], [1]], np.float32)
    person = _person(
        iuv=None, vertices=vertices, mesh="cat", confidences={"coarse_segm_confidence": confidence}
    )
    np.testing.assert_array_equal(person.is_body, [[False], [True], [True]])
    (record,) = records.people_to_records(7, [person], with_confidences=True)
    assert "uv_data" not in record and record["vertices"]["shape"] == [3, 1]
    ((again,),) = records.records_to_people([json.loads(json.dumps(record))]).values()
    np.testing.assert_array_equal(again.vertices, vertices)
    assert again.vertices.dtype == np.int32 and again.mesh == "cat" and again.size_hw == (3, 1)
    np.testing.assert_allclose(again.confidences["coarse_segm_confidence"], confidence, atol=3e-5)
    # A model with both, as from a mesh with charts.
    (both,) = records.people_to_records(7, [_person(vertices=vertices, mesh="cat")])
    ((again,),) = records.records_to_people([both]).values()
    np.testing.assert_array_equal(again.iuv, PICTURE)
    np.testing.assert_array_equal(again.vertices, vertices)
    with pytest.raises(ResultsError, match="vertex 65535 of cat: results files hold meshes of up"):
        records.people_to_records(1, [_person(iuv=None, vertices=vertices + 2, mesh="cat")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: "AAAA", "vertices must have mesh, shape and data"),
        (lambda found: found | {"mesh": ""}, "mesh must be the name of a mesh"),
        (lambda found: found | {"shape": [3, 4]}, r"shape must be \[int\(h\), int\(w\)\]"),
        (lambda found: found | {"shape": [2, 1]}, r"shape \[2, 1\] is not that of data, \[3, 1\]"),
        (lambda found: found | {"data": "no png"}, "vertices: data is not a PNG"),
        (lambda found: found | {"data": found["data"][:40]}, "vertices: not a PNG in base64"),
        (lambda found: found | {"data": _record()["uv_data"]}, "a grey PNG of 16 bits"),
    ],
)
def test_vertices_that_are_wrong_are_named(change, message):
    person = _person(iuv=None, vertices=np.zeros((3, 1), np.int32), mesh="cat")
    (record,) = records.people_to_records(7, [person])
    wrong = record | {"vertices": change(record["vertices"])}
    with pytest.raises(ResultsError, match=f"record 0: .*{message}"):
        records.records_to_people([wrong])


def test_a_picture_and_vertices_of_different_sizes_are_named():
    box = {"box_xyxy": [10.0, 20.0, 11.0, 23.0]}
    vertices = np.zeros((3, 1), np.int32)
    (record,) = records.people_to_records(7, [_person(**box, vertices=vertices, mesh="cat")])
    # Either size fits the box, as some systems round it.
    (larger,) = records.people_to_records(
        7, [_person(**box | {"box_xyxy": [10, 20, 12, 23]}, iuv=np.repeat(PICTURE, 2, axis=2))]
    )
    wrong = record | {name: larger[name] for name in ("uv_shape", "uv_data")}
    with pytest.raises(ResultsError, match=r"record 0: vertices: shape \[3, 1\] is not that"):
        records.records_to_people([wrong])
