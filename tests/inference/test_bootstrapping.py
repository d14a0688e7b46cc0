"""Annotations made of the people that a model finds: which points are drawn, and what they say."""

import json

import numpy as np
import pytest

from ktn_jax.body import parts
from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.inference import bootstrapping
from ktn_jax.inference.bootstrapping import BootstrapSettings
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import rle

SIZE_HW = (60, 80)


def _person(box=(10.5, 5.25, 30.9, 36.0), score=0.9, **fields):
    """A person whose left half is patch 9, right half patch 24, with a border of background."""
    box = np.float32(box)
    height, width = (max(int(box[i + 2] - box[i]), 1) for i in (1, 0))
    iuv = np.random.default_rng(0).integers(0, 256, (3, height, width)).astype(np.uint8)
    iuv[0] = np.where(np.arange(width) < width // 2, 9, 24)
    iuv[0, :, 0] = iuv[0, 0] = 0
    return PersonResult(box, score, iuv, **fields)


def _rng(seed=0):
    return np.random.default_rng(seed)


def test_uniform_points_are_spread_evenly_over_each_patch():
    patches = np.zeros((6, 10), np.uint8)
    patches[1:5, :5], patches[0, 7:9] = 3, 20  # 20 pixels and 2
    settings = BootstrapSettings(points_per_patch=5)
    rng, counts = _rng(), np.zeros(60)
    for _ in range(2000):
        pixels = bootstrapping.sample_pixels(patches, None, settings, rng)
        assert len(set(pixels)) == len(pixels) == 7
        counts[pixels] += 1
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(patches))
    assert (counts.reshape(6, 10)[0, 7:9] == 2000).all()
    # A pixel of the large patch is in a quarter of the draws: 500, with a deviation of 19.
    assert abs(counts[patches.reshape(-1) == 3] - 500).max() < 90


def _drawn(certainty, **search):
    settings = BootstrapSettings(sampler="uv_confidence", points_per_patch=4, **search)
    patches = np.full((5, 8), 7, np.uint8)
    rng = _rng()
    return [bootstrapping.sample_pixels(patches, certainty, settings, rng) for _ in range(400)]


@pytest.mark.parametrize(
    "search,among",
    [
        ({}, 4),
        ({"search_multiplier": 2.5}, 10),
        ({"search_multiplier": 100.0}, 40),
        ({"search_proportion": 0.5}, 20),
        ({"search_proportion": 0.01}, 4),
    ],
)
def test_points_by_confidence_are_drawn_among_the_surest(search, among):
    certainty = _rng(3).permutation(40).reshape(5, 8).astype(float)
    drawn = _drawn(certainty, **search)
    assert all(len(set(pixels)) == 4 for pixels in drawn)
    surest = set(np.argsort(-certainty.reshape(-1))[:among])
    counts = np.bincount(np.concatenate(drawn), minlength=40)
    assert set(np.flatnonzero(counts)) == surest
    expected = 400 * 4 / among
    assert abs(counts[list(surest)] - expected).max() <= 6 * np.sqrt(expected * (1 - 4 / among))


def test_a_small_variance_and_a_large_factor_are_sure():
    """detectron2 takes the smallest values of every channel; of factors these are the unsurest."""
    size = _person().size_hw
    ramp = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    for name, sampler, rises in (
        ("sigma", "uv_confidence", False),
        ("fine_segm_confidence", "fine_segm_confidence", True),
        ("coarse_segm_confidence", "coarse_segm_confidence", True),
    ):
        person = _person(confidences={name: ramp / 1000})
        settings = BootstrapSettings(sampler=sampler, points_per_patch=1)
        fields = bootstrapping.label_person(person, SIZE_HW, settings, _rng())
        rows = np.array(fields["dp_y"]) / 256 * size[0]
        edge = size[0] - 0.5 if rises else 1.5
        np.testing.assert_allclose(rows, edge, atol=1e-3)
        with pytest.raises(ValueError, match=f"needs the confidence {name}.*uniform"):
            bootstrapping.label_person(_person(), SIZE_HW, settings, _rng())


def test_confidence_is_that_of_the_least_variance():
    size = _person().size_hw
    sigma = np.full(size, 0.3, np.float32)
    kappa = {name: np.full(size, value, np.float32) for name, value in (("u", 0.2), ("v", -0.4))}
    variance = np.log1p(np.exp(0.3)) + 0.01
    for confidences, expected in (
        ({}, 1),
        ({"sigma": sigma}, 0.01 / variance),
        (
            {"sigma": sigma, "kappa_u": kappa["u"], "kappa_v": kappa["v"]},
            # The mean of the diagonal of variance * I + k k^T.
            0.01 / np.trace(variance * np.eye(2) + np.outer([0.2, -0.4], [0.2, -0.4])) * 2,
        ),
        ({"fine_segm_confidence": np.full(size, 3, np.float32)}, 0.75),
        ({"coarse_segm_confidence": np.full(size, 3, np.float32)}, 1),
    ):
        actual = bootstrapping.point_confidence(_person(confidences=confidences))
        np.testing.assert_allclose(actual, np.full(size, expected), rtol=1e-6)


def _parsed(entries):
    """The people as training reads them."""
    image = {"id": 5, "file_name": "a.jpg", "height": SIZE_HW[0], "width": SIZE_HW[1]}
    people = [{"id": number, **entry} for number, entry in enumerate(entries, 1)]
    content = {"images": [image], "annotations": people, "categories": [{"id": 1, "name": "p"}]}
    return annotations.parse_dataset(json.loads(json.dumps(content)), "raise")


def test_annotations_say_what_the_charts_say():
    person = _person(confidences={"fine_segm_confidence": np.ones(_person().size_hw, np.float32)})
    settings = BootstrapSettings(points_per_patch=50)
    (entry,) = bootstrapping.label_people(5, [person], SIZE_HW, settings)
    assert entry["score"] == person.score and entry["category_id"] == 1
    (record,) = _parsed([entry]).images[0].people
    x0, y0, x1, y1 = person.box_xyxy
    np.testing.assert_allclose(record.box_xywh, [x0, y0, x1 - x0, y1 - y0], rtol=1e-6)
    dense = record.densepose
    height, width = person.size_hw
    columns, rows = (dense.x / 256 * width).astype(int), (dense.y / 256 * height).astype(int)
    # The middles of pixels, up to the file's digits.
    np.testing.assert_allclose(dense.x / 256 * width - columns, 0.5, atol=1e-3)
    assert len(set(zip(columns, rows, strict=True))) == len(dense.x) == 100
    np.testing.assert_array_equal(dense.i, person.iuv[0, rows, columns])
    np.testing.assert_allclose(dense.u, person.iuv[1, rows, columns] / 255, atol=1e-6)
    np.testing.assert_allclose(dense.v, person.iuv[2, rows, columns] / 255, atol=1e-6)
    assert not dense.is_annotated.any()
    np.testing.assert_allclose(dense.confidence, 0.9 * 0.5, atol=1e-4)
    cells = (np.arange(256) + 0.5) / 256
    by_cell = person.iuv[0][np.ix_((cells * height).astype(int), (cells * width).astype(int))]
    np.testing.assert_array_equal(dense.part_mask, parts.FINE_TO_COARSE[by_cell])
    whole = np.zeros(SIZE_HW, bool)
    whole[int(y0) : int(y0) + height, int(x0) : int(x0) + width] = person.iuv[0] > 0
    np.testing.assert_array_equal(rle.decode_rle(record.segmentation), whole)
    assert record.area == whole.sum()


def test_exact_u_and_v_and_the_mask_head_come_first():
    size = _person().size_hw
    uv = np.stack([np.full(size, -0.25), np.full(size, 0.123456789)]).astype(np.float32)
    mask = PlacedMask(6, 12, np.ones((3, 4), bool), SIZE_HW)
    (entry,) = bootstrapping.label_people(
        5, [_person(uv=uv, mask=mask)], SIZE_HW, BootstrapSettings()
    )
    assert set(entry["dp_U"]) == {0.0} and set(entry["dp_V"]) == {0.123457}
    assert entry["area"] == 12 and rle.decode_rle(entry["segmentation"]).sum() == 12


def test_scores_decide_who_is_labelled_and_who_is_left_open():
    nobody = _person(score=0.95)
    nobody.iuv[0] = 0
    people = [
        _person(score=0.9),
        nobody,
        _person(score=0.5),
        _person(score=0.3, box=(1, 2, 1, 9)),  # no width
        _person(score=0.2),
        _person(score=0.85, box=(-8, 50, 12, 90)),  # leaves the image
        _person(score=0.85, box=(90, 5, 99, 20)),  # is beside it
        _person(score=0.19),
        _person(score=0.99, category_id=18),
    ]
    settings = BootstrapSettings(min_score=0.8, ignore_score=0.2)
    entries = bootstrapping.label_people(5, people, SIZE_HW, settings)
    assert [(entry["score"], entry["iscrowd"]) for entry in entries] == [
        (0.9, 0),
        (0.95, 1),
        (0.5, 1),
        (0.2, 1),
        (0.85, 1),
    ]
    assert entries[-1]["bbox"] == [0, 50, 12, 10] and entries[-1]["area"] == 120
    facts = _parsed(entries).images.facts()
    assert facts.people.tolist() == [1] and not facts.all_annotated and facts.max_points == 0
    with pytest.raises(ValueError, match="have no charts"):
        bootstrapping.label_people(5, [PersonResult([1, 2, 9, 8], 0.9)], SIZE_HW, settings)


def test_points_depend_on_the_image_and_the_seed():
    def points(image_id, seed):
        settings = BootstrapSettings(seed=seed)
        return bootstrapping.label_people(image_id, [_person()], SIZE_HW, settings)[0]["dp_x"]

    assert points(5, 0) == points(5, 0)
    assert points(5, 0) != points(6, 0) != points(6, 1)


@pytest.mark.parametrize(
    "changes,text",
    [
        ({"sampler": "best"}, "sampler must be one of"),
        ({"min_score": 0.1, "ignore_score": 0.2}, "ignore_score <= min_score"),
        ({"min_score": float("nan")}, "min_score"),
        ({"points_per_patch": 0}, "points_per_patch"),
        ({"seed": -1}, "seed"),
        ({"search_multiplier": 2.0}, "need a sampler by confidence"),
        (
            {"sampler": "uv_confidence", "search_multiplier": 2.0, "search_proportion": 0.5},
            "not both",
        ),
        ({"sampler": "uv_confidence", "search_multiplier": 0.5}, "search_multiplier must"),
        ({"sampler": "uv_confidence", "search_proportion": 0.0}, "search_proportion must"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        BootstrapSettings(**changes)
