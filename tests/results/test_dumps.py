"""Dumps give back what was found, and say what is wrong with those that are none."""

import json

import numpy as np
import pytest

from ktn_jax.body.procedural import assembly
from ktn_jax.results import dumps
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.iuv_pictures import quantise
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.records import PersonResult

RNG = np.random.default_rng(0)


def _dump():
    labels = RNG.integers(0, 25, (9, 6), np.uint8)
    uv = RNG.uniform(-0.1, 1.1, (2, 9, 6)).astype(np.float32)
    keypoints = RNG.uniform(0, 20, (17, 3)).astype(np.float32)
    mask = np.zeros((20, 30), bool)
    mask[4:9, 3:7] = True
    whole = PersonResult(
        [2.25, 3.5, 8.5, 13],
        0.9,
        quantise(labels, uv),
        keypoints,
        {"sigma": uv[0], "coarse_segm_confidence": uv[1]},
        PlacedMask.from_whole(mask),
        uv=uv,
    )
    vertices = RNG.integers(-1, 27554, (4, 3)).astype(np.int32)
    boxed = PersonResult([1, 1, 4, 5], 0.25, category_id=3, vertices=vertices, mesh="cat")
    rounded = PersonResult([0, 0, 256, 1], 0.5, np.arange(768).reshape(3, 1, 256).astype(np.uint8))
    rounded.iuv[0] %= 25
    return dumps.Dump("photos/\u00e4.jpg", 7, (20, 30), (whole, boxed, rounded))


def test_a_dump_is_read_back_exactly(tmp_path):
    dump = _dump()
    dumps.write_dump(tmp_path, "a", dump)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_dump.json", "a_dump.npz"]
    read = dumps.read_dump(tmp_path / "a_dump.npz")
    assert (read.file_name, read.image_id, read.image_size_hw) == ("photos/\u00e4.jpg", 7, (20, 30))
    assert len(read.people) == 3
    for person, expected in zip(read.people, dump.people, strict=True):
        np.testing.assert_array_equal(person.box_xyxy, expected.box_xyxy)
        assert person.score == pytest.approx(expected.score, abs=1e-7)
        assert person.category_id == expected.category_id
        assert person.mesh == expected.mesh
        for name in ("iuv", "keypoints", "vertices"):
            np.testing.assert_array_equal(getattr(person, name), getattr(expected, name))
        assert person.confidences.keys() == expected.confidences.keys()
        for name, values in expected.confidences.items():
            np.testing.assert_array_equal(person.confidences[name], values)
    np.testing.assert_array_equal(read.people[0].uv, dump.people[0].uv)
    np.testing.assert_array_equal(read.people[0].mask.whole(), dump.people[0].mask.whole())
    listed = json.loads((tmp_path / "a_dump.json").read_text())
    assert listed["people"][0]["box_xyxy"] == [2.25, 3.5, 8.5, 13]
    with np.load(tmp_path / listed["arrays_file"], allow_pickle=False) as arrays:
        assert {name for person in listed["people"] for name in person["arrays"]} < set(arrays)
    dumps.write_dump(tmp_path, "empty", dumps.Dump("b.jpg", 1, (4, 5), ()))
    assert dumps.read_dump(tmp_path / "empty_dump.npz").people == ()


def test_other_files_are_no_dumps(tmp_path):
    dumps.write_dump(tmp_path, "a", _dump())
    path = tmp_path / "a_dump.npz"
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    for damage, message in (
        (content[: len(content) // 2], r"a_dump\.npz: damaged, or not an \.npz"),
        (b"text", r"a_dump\.npz: damaged, or not an \.npz"),
    ):
        path.write_bytes(damage)
        with pytest.raises(ResultsError, match=message):
            dumps.read_dump(path)
    for change, message in (
        ({"scores": None}, "the array scores is missing"),
        ({"scores": np.zeros(2)}, "must be as many as scores"),
        ({"0/uv": None}, "person 0: labels and uv belong together"),
        ({"0/uv": np.zeros((2, 3, 4))}, r"person 0: labels \(9, 6\) and uv \(2, 3, 4\)"),
        ({"image_size_hw": np.zeros(3, int)}, "image_size_hw must be"),
        ({"scores": np.array(0.5)}, r"a_dump\.npz: scores must have .* 1 axes, got float64 \(\)"),
        ({"image_id": np.array([1, 2])}, "image_id must have values of kind iu and 0 axes"),
        ({"category_ids": np.full(3, np.nan)}, "category_ids must have values of kind iu"),
        ({"0/mask": np.ones(4, bool)}, "0/mask must have values of kind b and 2 axes"),
        ({"0/keypoints": np.full((17, 3), "z")}, "0/keypoints must have .*, got <U1"),
        ({"0/labels": np.full((9, 6), 25, np.uint8)}, r"person 0: labels must be 0\.\.24, got 25"),
        (
            {"0/labels": np.array([object()])},
            r"a_dump\.npz: damaged.*: 0/labels",
        ),
    ):
        changed = {name: value for name, value in (arrays | change).items() if value is not None}
        np.savez(path, **changed)
        with pytest.raises(ResultsError, match=message):
            dumps.read_dump(path)
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ResultsError, match=r"a\.npy: damaged, or not"):
        dumps.read_dump(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError):
        dumps.read_dump(tmp_path / "none.npz")


def test_a_dump_has_the_vertices_of_a_body(tmp_path):
    template = assembly.make_body().template
    dump = _dump()
    dumps.write_dump(tmp_path, "a", dump, template)
    assert len(dumps.read_dump(tmp_path / "a_dump.npz").people) == 3
    listed = json.loads((tmp_path / "a_dump.json").read_text())["people"]
    assert "0/points" in listed[0]["arrays"] and "1/points" not in listed[1]["arrays"]
    seen = dump.people[0].to_vertices(template)
    with np.load(tmp_path / "a_dump.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["0/vertex_is_visible"], seen.is_visible)
        np.testing.assert_array_equal(arrays["0/vertex_pixels"], seen.pixel_xy)
        np.testing.assert_array_equal(arrays["0/points"], seen.points)
    assert seen.is_visible.any()
