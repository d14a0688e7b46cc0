"""Parsing and mask decoding, against pycocotools and recorded annotations."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from ktn_jax.data_pipelines.coco import annotations, part_masks
from ktn_jax.data_pipelines.coco.checks import DatasetError
from ktn_jax.runtime import rle


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.floats(0, 1))
def test_rle_decodes_what_pycocotools_encodes(seed, height, width, fill):
    rng = np.random.default_rng(seed)
    mask = (rng.random((height, width)) < fill).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(mask))
    np.testing.assert_array_equal(rle.decode_rle(packed, (height, width)), mask)
    as_text = {"size": packed["size"], "counts": packed["counts"].decode()}
    np.testing.assert_array_equal(rle.decode_rle(as_text), mask)
    runs = rle.decode_counts(packed["counts"]).tolist()
    np.testing.assert_array_equal(rle.decode_rle({"size": [height, width], "counts": runs}), mask)


def test_rle_decodes_runs_longer_than_a_character_holds():
    mask = np.zeros((3000, 50), np.uint8)
    mask[:, 20:45] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    np.testing.assert_array_equal(rle.decode_rle(packed), mask)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 40), st.integers(1, 40))
def test_rle_of_any_bytes_decodes_or_raises_its_own_error(counts, height, width):
    try:
        mask = rle.decode_rle({"size": [height, width], "counts": counts})
    except rle.RleError:
        return
    assert mask.shape == (height, width)


@pytest.mark.parametrize(
    "counts", ["\x7f", "é", "P", "0" * 5 + "P" * 9 + "0", [5, -1, 12], [1.5, 2], 12, None, [True]]
)
def test_rle_refuses(counts):
    with pytest.raises(rle.RleError):
        rle.decode_rle({"size": [4, 4], "counts": counts})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 1)), min_size=1, max_size=6),
    st.integers(-1, 5),
)
def test_many_masks_together_are_sound_as_each_is(masks, damaged):
    size = 30, 7
    entries = []
    for seed, fill in masks:
        mask = np.random.default_rng(seed).random(size) < fill
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        entries.append({"size": list(size), "counts": packed["counts"].decode()})
    if 0 <= damaged < len(entries):
        entries[damaged]["counts"] += "1"
    sound = []
    for entry in entries:
        try:
            rle.check_rle(entry, size)
            sound.append(True)
        except rle.RleError:
            sound.append(False)
    assert all(sound) == (damaged < 0 or damaged >= len(entries))
    assert rle.are_packed_masks(entries, size) == all(sound)


def test_masks_that_are_not_packed_are_looked_at_one_by_one():
    packed = {"size": [4, 4], "counts": "`0"}
    assert rle.are_packed_masks([], (4, 4)) and rle.are_packed_masks([packed], (4, 4))
    for other in ({"size": [4, 4], "counts": [16]}, {"size": [4, 5], "counts": "`0"}, 7, {}):
        assert not rle.are_packed_masks([packed, other], (4, 4))


def test_later_part_wins_where_masks_overlap():
    first, second = np.zeros((2, 256, 256), np.uint8)
    first[:, :100], second[:, 50:150] = 1, 1
    entries = [[]] * 14
    entries[3] = coco_mask.encode(np.asfortranarray(first))
    entries[11] = coco_mask.encode(np.asfortranarray(second))
    labels = part_masks.decode_part_mask(entries)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(labels[:, :50]), [4])
    np.testing.assert_array_equal(np.unique(labels[:, 50:150]), [12])
    np.testing.assert_array_equal(np.unique(labels[:, 150:]), [0])


@pytest.mark.parametrize("entries", [[], [None], [{}], [[]] * 9])
def test_part_mask_of_empty_entries_is_background(entries):
    assert not part_masks.decode_part_mask(entries).any()


@pytest.mark.parity
@pytest.mark.parametrize("case", ["ktnv2_r50_tiny", "densepose_r50_tiny"])
def test_records_match_what_the_original_read(golden_dir, case):
    golden = np.load(golden_dir / f"{case}.npz")
    raw = json.loads(str(golden["train/annotations_json"]))
    for image in raw["images"]:
        image["file_name"] = "not recorded.jpg"
    dataset = annotations.parse_dataset(raw)
    assert len(dataset.images) == 2
    compared = 0
    for number, image in enumerate(dataset.images):
        people = [person for person in image.people if not person.is_crowd]
        boxes = np.array([person.box_xywh for person in people])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, golden[f"train/gt/{number}/boxes"], rtol=1e-6)
        for slot, person in enumerate(people):
            key = f"train/gt/{number}/dp_segm/{slot}"
            if person.densepose is not None and key in golden.files:
                np.testing.assert_array_equal(person.densepose.part_mask, golden[key])
                compared += 1
    assert compared >= 2


def test_dataset_keeps_crowds_and_people_without_densepose(raw):
    dataset = annotations.parse_dataset(raw)
    assert [image.image_id for image in dataset.images] == [entry["id"] for entry in raw["images"]]
    first, second = dataset.images[0].people, dataset.images[1].people
    assert [person.is_crowd for person in first] == [False, True]
    assert first[0].densepose is not None and first[1].densepose is None
    assert len(second) == 2  # the dog is not a person
    np.testing.assert_array_equal(first[1].keypoints, np.zeros((17, 3), np.float32))
    assert first[0].keypoints.dtype == np.float32 and first[0].box_xywh.dtype == np.float64
    source = raw["annotations"][0]
    np.testing.assert_array_equal(first[0].densepose.u, np.float32(source["dp_U"]))
    np.testing.assert_array_equal(first[0].keypoints.ravel(), np.float32(source["keypoints"]))
    assert dataset.skipped.total == 0


def test_facts_agree_with_the_records(raw):
    dataset = annotations.parse_dataset(raw)
    facts = dataset.images.facts()
    sizes = [(image.height, image.width) for image in dataset.images]
    np.testing.assert_array_equal(facts.sizes_hw, sizes)
    people = [sum(not person.is_crowd for person in image.people) for image in dataset.images]
    np.testing.assert_array_equal(facts.people, people)
    dense = [p.densepose for image in dataset.images for p in image.people if p.densepose]
    assert facts.all_annotated
    assert facts.max_points == max(len(record.x) for record in dense)
    assert facts.with_surface.sum() == sum(record.i.any() for record in dense) > 0
    labelled = [
        sum(not person.is_crowd and person.keypoints[:, 2].any() for person in image.people)
        for image in dataset.images
    ]
    np.testing.assert_array_equal(facts.with_keypoints, labelled)


@pytest.mark.parametrize("absent", ["gone", None, []])
def test_points_of_a_model_are_told_from_the_annotators(raw, absent):
    first, second = [one for one in raw["annotations"] if "dp_x" in one][:2]
    count = len(first["dp_x"])
    first["dp_annotated"] = [1, 0, 1] + [0] * (count - 3)
    first["dp_confidence"] = [1, 0.25] + [0.5] * (count - 2)
    if absent != "gone":
        second |= {"dp_annotated": absent, "dp_confidence": absent}
    images = annotations.parse_dataset(raw).images
    dense = {p.annotation_id: p.densepose for image in images for p in image.people}
    np.testing.assert_array_equal(dense[first["id"]].is_annotated, first["dp_annotated"])
    np.testing.assert_array_equal(dense[first["id"]].confidence, first["dp_confidence"])
    assert dense[second["id"]].is_annotated.all() and (dense[second["id"]].confidence == 1).all()
    kept = dense[first["id"]].take(np.array([2, 1]))
    np.testing.assert_array_equal(kept.confidence, [0.5, 0.25])
    np.testing.assert_array_equal(kept.x, np.float32(first["dp_x"])[[2, 1]])
    assert not images.facts().all_annotated
    for one in raw["annotations"]:
        if "dp_x" in one:
            one["dp_annotated"] = [1, 1] + [0] * (len(one["dp_x"]) - 2)
    assert annotations.parse_dataset(raw).images.facts().max_points == 2
    assert "dp_annotated" not in annotations.clean_person(first, with_densepose=False)


@pytest.mark.parametrize("absent", ["gone", None, []])
def test_masks_without_points_are_found_and_are_no_densepose(raw, absent):
    dense = next(one for one in raw["annotations"] if "dp_I" in one)
    before = annotations.parse_dataset(raw).images.facts().with_surface.sum()
    for key in ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V"):
        dense[key] = absent
        if absent == "gone":
            del dense[key]
    with pytest.raises(DatasetError, match=f"annotation {dense['id']}: dp_x: error.*incomplete"):
        annotations.parse_dataset(raw)
    dataset = annotations.parse_dataset(raw, "skip", max_skipped_fraction=1)
    assert dataset.skipped.densepose == 1 and dataset.skipped.people == 0
    assert dataset.images.facts().with_surface.sum() == before - 1
    person = next(p for i in dataset.images for p in i.people if p.annotation_id == dense["id"])
    assert person.densepose is None


def test_background_points_are_not_on_the_surface(raw):
    before = annotations.parse_dataset(raw).images.facts().with_surface.sum()
    dense = next(one for one in raw["annotations"] if "dp_I" in one)
    dense["dp_I"] = [0] * len(dense["dp_I"])
    assert annotations.parse_dataset(raw).images.facts().with_surface.sum() == before - 1


def test_skip_leaves_out_the_record_and_counts(raw):
    whole = annotations.parse_dataset(raw)
    raw = copy.deepcopy(raw)
    raw["annotations"][0]["bbox"] = [1, 2, 0, 5]  # a person
    raw["annotations"][5]["dp_U"][0] = 1.5  # only DensePose
    raw["images"][7]["height"] = -1  # an image with two people
    assert raw["annotations"][5]["image_id"] == 102
    with pytest.raises(DatasetError, match="box_empty"):
        annotations.parse_dataset(raw)
    dataset = annotations.parse_dataset(raw, "skip", max_skipped_fraction=0.5)
    in_last = sum(a["image_id"] == 107 for a in raw["annotations"])
    assert dataset.skipped == annotations.SkipCounts(images=1, people=1 + in_last, densepose=1)
    assert len(dataset.images) == len(whole.images) - 1
    assert len(dataset.images[0].people) == len(whole.images[0].people) - 1
    bad = [p for p in dataset.images[2].people if p.annotation_id == raw["annotations"][5]["id"]]
    assert len(bad) == 1 and bad[0].densepose is None


def test_skip_refuses_a_file_that_is_mostly_bad(raw):
    for annotation in raw["annotations"][:4]:
        annotation["bbox"] = [0, 0, 0, 0]
    with pytest.raises(DatasetError, match=r"4 of 25 records are bad, above 10\.00%"):
        annotations.parse_dataset(raw, "skip", max_skipped_fraction=0.1)
    assert annotations.parse_dataset(raw, "skip", max_skipped_fraction=0.2).skipped.people == 4


def test_parse_refuses_another_way_of_handling_errors(raw):
    for share in (float("nan"), -0.1, 1.1):
        with pytest.raises(ValueError, match="must be in 0..1"):
            annotations.parse_dataset({}, "skip", max_skipped_fraction=share)
    with pytest.raises(ValueError, match="on_bad"):
        annotations.parse_dataset(raw, "ignore")


def test_fractional_visibility_is_read_as_labelled_or_not(raw):
    keypoints = raw["annotations"][0]["keypoints"]
    keypoints[2::3] = [0.1, 0.9, 1] + [0] * 14
    dataset = annotations.parse_dataset(raw)
    visibility = dataset.images[0].people[0].keypoints[:3, 2]
    np.testing.assert_array_equal(visibility, [0, 2, 1])


def test_real_annotations_parse(real_dir):
    dataset = annotations.parse_dataset(
        real_dir / "coco_keypoints/test_coco.json", images_dir=real_dir / "coco_keypoints"
    )
    assert sum(len(image.people) for image in dataset.images) == 14
    assert not dataset.report.findings
