"""Batches are a function of seed and step: whatever makes them, wherever a run resumes."""

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, parse_dataset
from ktn_jax.data_pipelines.loading import pipeline
from ktn_jax.data_pipelines.loading.examples import fitting_points, most_telling
from ktn_jax.data_pipelines.loading.known_meshes import KnownMeshes
from ktn_jax.data_pipelines.loading.plan import Augmentation, TrainingPlan
from ktn_jax.data_pipelines.loading.sources import ConcatenatedSource, FolderSource
from ktn_jax.data_pipelines.loading.transforms import PersonLabels

AUGMENTATION = Augmentation(
    short_sides=(64, 80, 96),
    max_long_side=160,
    max_rotation_degrees=15,
    zoom_range=(0.8, 1.25),
)


def _settings(**changes):
    defaults = {
        "batch_size": 4,
        "max_people": 3,
        "max_points": 24,
        "loader": "threads",
        "workers": 0,
        "augmentation": AUGMENTATION,
    }
    return pipeline.DataSettings(**(defaults | changes))


@pytest.fixture(scope="module")
def symmetry():
    rng = np.random.default_rng(0)
    return UVSymmetry(*rng.random((2, 24, 256, 256)))


@pytest.fixture
def source(folder):
    return FolderSource(annotations.parse_dataset(folder / "annotations.json"), folder / "images")


def _take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def _assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            assert array.dtype == other[name].dtype, name
            np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize(
    "loader,workers",
    [("threads", 1), ("threads", 4), ("tf_data", 0), ("tf_data", 1), ("tf_data", 4)],
)
def test_batches_do_not_depend_on_loader_or_workers(source, symmetry, loader, workers):
    expected = pipeline.make_training_data(_settings(), source, symmetry)
    actual = pipeline.make_training_data(
        _settings(loader=loader, workers=workers), source, symmetry
    )
    _assert_same(_take(actual.batches_from(0), 7), _take(expected.batches_from(0), 7))


class _Slow:
    """Takes long for every other image, so that workers overtake each other."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        time.sleep(0.1 if index % 2 else 0)
        return self._source[index]

    def facts(self):
        return self._source.facts()


@pytest.mark.parametrize("loader", ["threads", "tf_data"])
def test_workers_that_overtake_each_other_change_nothing(source, symmetry, loader):
    expected = _take(pipeline.make_training_data(_settings(), source, symmetry).batches_from(0), 6)
    changed = _settings(loader=loader, workers=4)
    actual = _take(pipeline.make_training_data(changed, _Slow(source), symmetry).batches_from(0), 6)
    _assert_same(actual, expected)


@pytest.mark.slow
def test_processes_give_the_same_batches(source, symmetry):
    expected = _take(pipeline.make_training_data(_settings(), source, symmetry).batches_from(2), 3)
    changed = _settings(loader="processes", workers=2)
    actual = _take(pipeline.make_training_data(changed, source, symmetry).batches_from(2), 3)
    _assert_same(actual, expected)


@pytest.mark.parametrize("loader", ["threads", "tf_data"])
@pytest.mark.parametrize("step", [1, 2, 5, 17])
def test_resuming_at_a_step_gives_what_would_have_come(source, symmetry, loader, step):
    whole = pipeline.make_training_data(_settings(), source, symmetry)
    again = pipeline.make_training_data(_settings(loader=loader, workers=2), source, symmetry)
    expected = _take(whole.batches_from(0), step + 2)[step:]
    _assert_same(_take(again.batches_from(step), 2), expected)


def test_resuming_costs_no_replay():
    sizes = np.tile([[48, 64], [64, 48], [40, 40]], (300, 1))
    plan = TrainingPlan(sizes, AUGMENTATION, 16, seed=3)
    far = plan[10**9]  # would take hours if steps were counted off
    assert (far.examples >= 0).all()
    again = TrainingPlan(sizes, AUGMENTATION, 16, seed=3)
    np.testing.assert_array_equal(again[10**9].examples, far.examples)


def test_epochs_differ_in_order_and_draws():
    sizes = np.tile([[48, 64], [64, 48]], (40, 1))
    plan = TrainingPlan(sizes, AUGMENTATION, 8, seed=0)
    steps = plan.steps_per_epoch
    first, second = ([plan[e * steps + step] for step in range(steps)] for e in (0, 1))
    for field in ("examples", "is_flipped", "rotation_degrees", "zoom"):
        one, other = (np.concatenate([getattr(b, field) for b in e]) for e in (first, second))
        assert not np.array_equal(one, other), field


def test_seed_decides_the_batches(source, symmetry):
    one, other = (
        _take(pipeline.make_training_data(_settings(seed=s), source, symmetry).batches_from(0), 4)
        for s in (0, 1)
    )
    pairs = zip(one, other, strict=True)
    assert any(not np.array_equal(a["image_id"], b["image_id"]) for a, b in pairs)


@pytest.mark.parametrize("processes", [2, 4])
def test_shards_are_the_rows_of_the_whole_batch(source, symmetry, processes):
    whole = pipeline.make_training_data(_settings(), source, symmetry)
    shards = [
        pipeline.make_training_data(_settings(), source, symmetry, index, processes)
        for index in range(processes)
    ]
    parts_of = [_take(shard.batches_from(3), 4) for shard in shards]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*parts_of, strict=True)
    ]
    _assert_same(joined, _take(whole.batches_from(3), 4))


def test_a_process_reads_the_images_of_its_own_rows_only(source, symmetry, monkeypatch):
    read, get = [], FolderSource.__getitem__

    def note(self, index):
        image, record = get(self, index)
        read.append(record.image_id)
        return image, record

    monkeypatch.setattr(FolderSource, "__getitem__", note)
    settings = _settings(batches_ahead=1)
    for process in (0, 1):
        read.clear()
        shard = pipeline.make_training_data(settings, source, symmetry, process, 2)
        batches = _take(shard.batches_from(3), 3)
        rows = np.concatenate([batch["image_id"] for batch in batches]).tolist()
        assert sorted(read[: len(rows)]) == sorted(rows)  # and then the next of its own
        assert len(read) <= len(rows) + 2 * (settings.batches_ahead + 1)


def test_batch_that_processes_cannot_share_is_refused(source, symmetry):
    with pytest.raises(ValueError, match="batch_size 4 cannot be shared by 3"):
        pipeline.make_training_data(_settings(), source, symmetry, 0, 3)


_SIZES = st.lists(st.tuples(st.integers(20, 90), st.integers(20, 90)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(_SIZES, st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 5))
# Both orientations in the last batch, and a square canvas that would shrink them all a little.
@example([(20, 20), (20, 24), (21, 20), (25, 20), (21, 20), (28, 20)], 5, 0, 0)
@example([(20, 27), (27, 20)], 2, 0, 0)
def test_every_image_comes_once_an_epoch(sizes, batch_size, seed, epoch):
    plan = TrainingPlan(np.array(sizes), AUGMENTATION, batch_size, seed)
    steps = plan.steps_per_epoch
    batches = [plan[step] for step in range(epoch * steps, (epoch + 1) * steps)]
    counts = np.bincount(np.concatenate([b.examples for b in batches]), minlength=len(sizes))
    assert counts.min() == 1 or len(sizes) < batch_size
    assert counts.min() >= 1 and counts.sum() == steps * batch_size
    assert counts.sum() - len(sizes) < batch_size
    for batch in batches:
        assert batch.canvas_hw in plan.canvases
        assert (batch.resized_hw <= batch.canvas_hw).all() and (batch.resized_hw >= 1).all()
    # Only the batch that mixes what is left of both orientations shrinks images.
    allowed = np.array(AUGMENTATION.short_sides)
    shrunk = 0
    for batch in batches:
        for number, (height, width) in zip(batch.examples, batch.resized_hw, strict=True):
            full = [_expected_size(sizes[number], side) for side in allowed]
            shrunk += (height, width) not in full
    assert shrunk < batch_size


@settings(max_examples=40, deadline=None)
@given(
    _SIZES,
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.25]), min_size=60, max_size=60),
    st.integers(1, 9),
    st.integers(0, 2**40),
)
def test_images_come_as_often_as_their_weight_says(sizes, weights, batch_size, seed):
    weights = np.array([*weights[: len(sizes) - 1], 1.0])  # one comes in any case
    plan = TrainingPlan(np.array(sizes), AUGMENTATION, batch_size, seed, weights)
    steps = plan.steps_per_epoch
    counts = np.zeros((3, len(sizes)), int)
    for step in range(3 * steps):
        batch = plan[step]
        assert batch.canvas_hw in plan.canvases
        np.add.at(counts[step // steps], batch.examples, 1)
    expected = {
        weight: int(np.floor(weight * (weights == weight).sum() + 0.5)) for weight in set(weights)
    }
    assert steps == -(-sum(expected.values()) // batch_size)
    assert not counts[:, weights == 0].any()
    repeats = steps * batch_size - sum(expected.values())
    assert 0 <= repeats < batch_size
    for epoch in counts:
        assert epoch.sum() == steps * batch_size
        assert (epoch >= np.floor(weights)).all()
        assert np.maximum(epoch - np.ceil(weights), 0).sum() <= repeats
        for weight, rows in expected.items():
            assert rows <= epoch[weights == weight].sum() <= rows + repeats


def test_a_fraction_of_a_source_changes_with_the_epochs(source, symmetry):
    """Twice of the first source and a quarter of the second: 16 and 2 of 18 rows."""
    both = ConcatenatedSource([source, source], [2.0, 0.25])
    data = pipeline.make_training_data(_settings(batch_size=6), both, symmetry)
    assert data.steps_per_epoch == 3
    plan = TrainingPlan(both.facts().sizes_hw, AUGMENTATION, 6, 0, both.facts().weights)
    seen, flips = set(), set()
    for epoch in range(20):
        rows = [plan[step] for step in range(3 * epoch, 3 * epoch + 3)]
        examples = np.concatenate([batch.examples for batch in rows])
        assert np.bincount(examples, minlength=16)[:8].tolist() == [2] * 8
        seen |= set(examples[examples >= 8])
        of_first = np.concatenate([batch.is_flipped for batch in rows])[examples == 0]
        flips.add(tuple(of_first))
    assert seen == set(range(8, 16))
    assert any(one != other for one, other in flips)  # each time is augmented on its own


def test_weights_of_one_change_nothing(source, symmetry):
    both = ConcatenatedSource([source, source], [1, 1])
    assert both.facts().weights is None
    sizes = both.facts().sizes_hw
    plain = TrainingPlan(sizes, AUGMENTATION, 6, 4)
    weighted = TrainingPlan(sizes, AUGMENTATION, 6, 4, np.ones(16))
    for step in range(9):
        assert weighted[step].canvas_hw == plain[step].canvas_hw
        for name, values in vars(plain[step]).items():
            np.testing.assert_array_equal(getattr(weighted[step], name), values)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, float("nan")], [1, float("inf")]])
def test_weights_of_sources_are_checked(source, weights):
    with pytest.raises(ValueError, match="weights of sources"):
        ConcatenatedSource([source, source], weights)
    with pytest.raises(ValueError, match="bring none of 2 images"):
        TrainingPlan(np.array([[9, 9], [9, 9]]), AUGMENTATION, 1, 0, np.full(2, 0.1))


def _expected_size(size_hw, short_side):
    scale = short_side / min(size_hw)
    scale = min(scale, AUGMENTATION.max_long_side / max(size_hw))
    return tuple(int(np.floor(side * scale + 0.5 + 1e-9)) for side in size_hw)


def test_draws_cover_what_the_settings_allow():
    sizes = np.tile([[48, 64], [64, 48]], (400, 1))
    plan = TrainingPlan(sizes, AUGMENTATION, 8, seed=0)
    batches = [plan[step] for step in range(plan.steps_per_epoch)]
    flips = np.concatenate([batch.is_flipped for batch in batches])
    rotation = np.concatenate([batch.rotation_degrees for batch in batches])
    zoom = np.concatenate([batch.zoom for batch in batches])
    short = np.concatenate([batch.resized_hw.min(axis=1) for batch in batches])
    # 800 draws: 4 standard deviations of a fair coin are 0.07, of three sizes 53.
    assert abs(flips.mean() - 0.5) < 0.07
    assert set(short) == {64, 80, 96} and np.bincount(short)[[64, 80, 96]].min() > 800 / 3 - 54
    assert -15 <= rotation.min() < -14 and 14 < rotation.max() <= 15
    assert 0.8 <= zoom.min() < 0.81 and 1.24 < zoom.max() <= 1.25


def test_batches_have_one_of_the_announced_specs(source, symmetry):
    data = pipeline.make_training_data(_settings(), source, symmetry)
    known = {spec["image"].shape: spec for spec in data.specs}
    for batch in _take(data.batches_from(0), 6):
        spec = known[batch["image"].shape]
        assert batch.keys() == spec.keys()
        for name, array in batch.items():
            assert array.shape == spec[name].shape and array.dtype == spec[name].dtype


def test_row_holds_what_the_annotations_say(source):
    plain = Augmentation(short_sides=(96,), max_long_side=160, flip_probability=0.0)
    data = pipeline.make_training_data(_settings(augmentation=plain), source)
    records = {record.image_id: record for record in (source[i][1] for i in range(len(source)))}
    seen = set()
    for batch in _take(data.batches_from(0), data.steps_per_epoch):
        for row, image_id in enumerate(batch["image_id"]):
            record = records[image_id]
            seen.add(image_id)
            height, width = batch["image_size_hw"][row]
            assert tuple(batch["original_size_hw"][row]) == (record.height, record.width)
            assert not batch["image"][row, height:].any()
            assert not batch["image"][row, :, width:].any()
            assert batch["image"][row, :height, :width].any(axis=-1).mean() > 0.9
            people = [person for person in record.people if not person.is_crowd]
            assert batch["is_valid"][row].sum() == len(people)
            scale = np.array([width / record.width, height / record.height])
            for slot, person in enumerate(people):
                box = person.box_xywh.copy()
                box[2:] += box[:2]
                expected = box * np.tile(scale, 2)
                np.testing.assert_allclose(batch["boxes"][row, slot], expected, rtol=1e-6)
                on = person.keypoints[:, 2] > 0
                expected = (person.keypoints[on, :2] + 0.5) * scale
                actual = batch["keypoints"][row, slot]
                np.testing.assert_allclose(actual[on, :2], expected, rtol=1e-5)
                np.testing.assert_array_equal(actual[:, 2], person.keypoints[:, 2])
                _assert_densepose(batch, row, slot, person.densepose)
    assert seen == set(records)


def _assert_densepose(batch, row, slot, dense):
    assert batch["has_densepose"][row, slot] == (dense is not None)
    if dense is None:
        assert not batch["point_is_valid"][row, slot].any()
        assert not batch["part_mask"][row, slot].any()
        return
    count = len(dense.x)
    assert batch["point_is_valid"][row, slot].sum() == count
    for name in "xyiuv":
        stored = batch[f"point_{name}"][row, slot]
        np.testing.assert_array_equal(stored[:count], getattr(dense, name))
        assert not stored[count:].any()
    np.testing.assert_array_equal(batch["part_mask"][row, slot], dense.part_mask)


def _points(count, annotated=None):
    """Points at x 0, 1, ..., of which `annotated` are the annotator's: all by default."""
    is_annotated = np.ones(count, bool) if annotated is None else np.isin(range(count), annotated)
    columns = np.zeros((5, count), np.float32)
    columns[0] = np.arange(count)
    confidence = np.linspace(0, 1, count, dtype=np.float32)
    return DensePoseRecord(*columns, np.zeros((256, 256), np.uint8), is_annotated, confidence)


def _person(side, has_densepose):
    box = np.array([0.0, 0.0, side, side])
    dense = _points(1)
    keypoints = np.zeros((17, 3), np.float32)
    return PersonLabels(box, keypoints, dense if has_densepose else None, np.zeros((1, 2)))


def test_too_many_people_keep_those_with_densepose_then_the_largest():
    people = [_person(9, False), _person(2, True), _person(5, False), _person(3, True)]
    sides = [
        [person.box_xyxy[2] for person in most_telling(tuple(people), count)]
        for count in (1, 2, 3, 4, 9)
    ]
    assert sides == [[3], [2, 3], [9, 2, 3], [9, 2, 5, 3], [9, 2, 5, 3]]


def test_batch_holds_no_more_people_than_it_has_room_for(source, symmetry):
    data = pipeline.make_training_data(_settings(max_people=1), source, symmetry)
    for batch in _take(data.batches_from(0), 4):
        assert batch["is_valid"].shape == (4, 1) and batch["boxes"].shape == (4, 1, 4)


def test_more_points_than_room_are_refused_before_the_first_batch(source, symmetry):
    with pytest.raises(ValueError, match="raise max_points"):
        pipeline.make_training_data(_settings(max_points=4), source, symmetry)


def test_points_of_a_model_fill_the_room_that_the_annotators_leave():
    kept = fitting_points(_points(8, annotated=[2, 5]), 5, "a.jpg")
    # Six others, 0 1 3 4 6 7, of which three fit: every second one.
    np.testing.assert_array_equal(kept.x, [0, 2, 3, 5, 6])
    np.testing.assert_array_equal(kept.is_annotated, [False, True, False, True, False])
    np.testing.assert_allclose(kept.confidence, np.array([0, 2, 3, 5, 6]) / 7)
    whole = _points(8, annotated=[2, 5])
    assert fitting_points(whole, 8, "a.jpg") is whole
    np.testing.assert_array_equal(fitting_points(whole, 2, "a.jpg").x, [2, 5])
    with pytest.raises(ValueError, match=r"a\.jpg: a person has 2 annotated points, max_points=1"):
        fitting_points(whole, 1, "a.jpg")


@pytest.mark.parametrize("loader", ["threads", "tf_data"])
def test_confidences_come_where_a_model_set_points(raw, folder, symmetry, loader):
    plain = pipeline.make_training_data(
        _settings(loader=loader), FolderSource(parse_dataset(raw), folder / "images"), symmetry
    )
    (expected,) = _take(plain.batches_from(0), 1)
    for person in raw["annotations"]:
        if "dp_x" in person:
            count = len(person["dp_x"])
            person["dp_annotated"] = [k % 2 for k in range(count)]
            # A thousandth of the id tells people apart.
            person["dp_confidence"] = [person["id"] % 1000 / 1000 + k / 1e5 for k in range(count)]
    source = FolderSource(parse_dataset(raw), folder / "images")
    data = pipeline.make_training_data(_settings(loader=loader, max_points=11), source, symmetry)
    (batch,) = _take(data.batches_from(0), 1)
    assert batch.keys() == data.specs[0].keys()
    new = {"point_is_annotated", "point_confidence", "ignored_boxes"}
    assert batch.keys() - plain.specs[0].keys() == new
    for name in ("image", "boxes", "part_mask", "keypoints"):
        np.testing.assert_array_equal(batch[name], expected[name])
    is_valid = batch["point_is_valid"]
    assert is_valid.any() and not (batch["point_confidence"] * ~is_valid).any()
    for row, slot in np.argwhere(batch["has_densepose"]):
        confidence = batch["point_confidence"][row, slot, is_valid[row, slot]]
        points = np.rint(confidence * 1e5).astype(int) % 100
        is_annotated = batch["point_is_annotated"][row, slot, is_valid[row, slot]]
        np.testing.assert_array_equal(is_annotated, points % 2)
        # Each point kept its place, also where not all had room.
        places = expected["point_x"][row, slot][points]
        np.testing.assert_array_equal(batch["point_x"][row, slot, is_valid[row, slot]], places)


def test_flips_without_symmetry_are_refused(source):
    with pytest.raises(ValueError, match="UV symmetry"):
        pipeline.make_training_data(_settings(), source)


@pytest.mark.parametrize(
    "changes", [{"loader": "torch"}, {"batch_size": 0}, {"loader": "processes"}, {"workers": -1}]
)
def test_settings_are_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes)) if len(changes) else ""):
        _settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"short_sides": ()},
        {"max_long_side": 90},
        {"flip_probability": 1.5},
        {"zoom_range": (0.0, 1.0)},
        {"aspect_limits": (0.5,)},
        {"canvas_levels": 0},
    ],
)
def test_augmentation_is_checked(changes):
    defaults = {"short_sides": (96,), "max_long_side": 160}
    with pytest.raises(ValueError, match=next(iter(changes))):
        Augmentation(**(defaults | changes))


def test_images_without_people_are_left_out_of_training(raw, folder):
    raw["annotations"] = [a for a in raw["annotations"] if a["image_id"] != 103]
    source = FolderSource(annotations.parse_dataset(raw), folder / "images")
    plain = Augmentation(short_sides=(96,), max_long_side=160, flip_probability=0.0)
    data = pipeline.make_training_data(_settings(augmentation=plain, batch_size=1), source)
    trained = [int(b["image_id"][0]) for b in _take(data.batches_from(0), data.steps_per_epoch)]
    assert sorted(trained) == [100, 101, 102, 104, 105, 106, 107]


def test_sources_in_a_row_are_one(source):
    both = ConcatenatedSource([source, source])
    assert len(both) == 16 and both.facts().sizes_hw.shape == (16, 2)
    for index in (0, 7, 8, 15):
        np.testing.assert_array_equal(both[index][0], source[index % 8][0])
        assert both[index][1].image_id == source[index % 8][1].image_id
    with pytest.raises(IndexError):
        both[16]


def test_broken_image_stops_the_loader_by_name(folder, source, symmetry):
    (folder / "images" / "103.jpg").write_bytes(b"no image")
    data = pipeline.make_training_data(_settings(workers=2), source, symmetry)
    with pytest.raises(ValueError, match=r"103\.jpg"):
        _take(data.batches_from(0), data.steps_per_epoch)


@pytest.mark.parametrize("loader", ["threads", "tf_data"])
def test_person_masks_come_when_they_are_wanted(source, symmetry, loader):
    wanted = _settings(with_person_masks=True, loader=loader)
    data = pipeline.make_training_data(wanted, source, symmetry)
    (batch,) = _take(data.batches_from(0), 1)
    assert batch.keys() == data.specs[0].keys() and "person_mask" in batch
    np.testing.assert_array_equal(batch["has_person_mask"], batch["is_valid"])
    filled = batch["person_mask"].mean(axis=(2, 3))
    # The polygons are the boxes, which only the image's border and turning cut.
    assert (filled[batch["is_valid"]] > 0.6).all() and not filled[~batch["is_valid"]].any()


def _with_vertices(raw, folder):
    """The dataset with vertices of two meshes, but for one person with charts alone."""
    dense = [person for person in raw["annotations"] if "dp_x" in person]
    for number, person in enumerate(dense[1:]):
        person["ref_model"] = ("ball", "cube")[number % 2]
        person["dp_vertex"] = [int(x) % 8 for x in person["dp_x"]]
    (folder / "annotations.json").write_text(json.dumps(raw))
    dataset = annotations.parse_dataset(folder / "annotations.json", categories=("dog", "person"))
    return FolderSource(dataset, folder / "images"), dense


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_rows_hold_vertices_meshes_and_classes(raw, folder, flip):
    source, dense = _with_vertices(raw, folder)
    mirror = np.arange(8)[::-1].astype(np.int32)
    meshes = KnownMeshes({"cube": 8, "ball": 9}, {"cube": mirror, "ball": np.arange(9)})
    augmentation = Augmentation(short_sides=(64,), max_long_side=160, flip_probability=flip)
    settings = _settings(augmentation=augmentation, batch_size=8, needs_surface=True)
    data = pipeline.make_training_data(settings, source, meshes=meshes)
    (batch,) = _take(data.batches_from(0), 1)
    assert data.specs[0].keys() == batch.keys() >= {"point_vertex", "mesh", "classes"}
    assert batch["classes"][batch["is_valid"]].sum() == batch["is_valid"].sum() - 1  # one dog
    assert not batch["point_vertex"][~batch["point_is_valid"]].any()
    found = {(int(i), int(p)) for i, p in zip(*np.nonzero(batch["has_densepose"]), strict=True)}
    rows = {int(image_id): row for row, image_id in enumerate(batch["image_id"])}
    for number, person in enumerate(dense):
        row, slot = rows[person["image_id"]], person["id"] % 10
        assert (row, slot) in found
        count = len(person["dp_x"])
        is_valid = batch["point_is_valid"][row, slot]
        assert is_valid.sum() == (count if number else 0)  # charts alone do not train embeddings
        if number:
            is_ball = person["ref_model"] == "ball"
            assert batch["mesh"][row, slot] == is_ball
            vertices = np.array(person["dp_vertex"])
            wanted = vertices if is_ball or not flip else mirror[vertices]
            np.testing.assert_array_equal(batch["point_vertex"][row, slot, :count], wanted)


@pytest.mark.parametrize(
    ("meshes", "message"),
    [
        (KnownMeshes({"cube": 8}), "points on the mesh 'ball'"),
        (KnownMeshes({"cube": 8, "ball": 7}), "vertex 7 of the mesh 'ball'"),
        (KnownMeshes({"cube": 8, "ball": 8}), "'ball' has no mirrored vertices"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(raw, folder, meshes, message):
    source, _ = _with_vertices(raw, folder)
    with pytest.raises(ValueError, match=message):
        pipeline.make_training_data(_settings(needs_surface=True), source, meshes=meshes)


def test_charts_alone_are_refused_by_an_embedding_model(source):
    with pytest.raises(ValueError, match="convert-cse"):
        pipeline.make_training_data(
            _settings(needs_surface=True), source, meshes=KnownMeshes({"cube": 8})
        )
