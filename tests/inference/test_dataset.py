"""Predicting a dataset: stopped, resumed, shared between processes, and described."""

import dataclasses
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from ktn_jax.evaluation import evaluator, scorer, sharing
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import read_ground_truth, read_ground_truths
from ktn_jax.evaluation.result_files import index_results
from ktn_jax.inference import dataset as dataset_inference
from ktn_jax.inference.dataset import predict_dataset
from ktn_jax.inference.known_boxes import KnownBoxPredictor, scored_boxes
from ktn_jax.results import iuv_pictures, records
from ktn_jax.results.categories import category_ids
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.configuration import load_config
from ktn_jax.runtime.images import ImageError
from ktn_jax.runtime.processes import Processes

NUM_IMAGES = 7
RUN = {"name": "run"}
CONFIG = load_config("configs/ktn.py:tiny", ["test.batch_size=2"])


class _Predictor:
    """Finds as many people as the colour of the image says, and remembers what it saw."""

    config = CONFIG

    def __init__(self, fails_at=None, fault=RuntimeError):
        self.seen, self._fails_at, self._fault = [], fails_at, fault

    def __call__(self, photos):
        if len(self.seen) == self._fails_at:
            raise self._fault("stopped")
        self.seen.append([photo.shape[:2] for photo in photos])
        return [self._people(photo) for photo in photos]

    @staticmethod
    def _people(photo):
        number = photo[0, 0, 0] // 10
        iuv = np.full((3, 30, 20), number, np.uint8)
        box = np.float32([5, 5, 25, 35])
        return [PersonResult(box, 0.9 - 0.1 * i, iuv) for i in range(number % 3)]


def _predict(dataset, output, predictor, processes=None):
    truth = read_ground_truth(dataset / "annotations.json")
    return predict_dataset(predictor, {0: truth}, dataset / "images", output, RUN, processes)[0]


def test_every_image_is_written_with_its_people_and_the_category_of_the_file(dataset):
    found_records = records.read_results(_predict(dataset, dataset / "out", _Predictor()))
    counts = {70 - number: number % 3 for number in range(NUM_IMAGES)}
    found = [record["image_id"] for record in found_records]
    assert {i: found.count(i) for i in counts} == counts
    assert found == sorted(found)
    assert {record["category_id"] for record in found_records} == {7}
    iuv = iuv_pictures.decode_iuv(next(r for r in found_records if r["image_id"] == 66)["uv_data"])
    assert iuv.shape == (3, 30, 20) and (iuv == 4).all()


class _Boxes(KnownBoxPredictor):
    config = CONFIG

    def __init__(self):
        pass

    def __call__(self, photos):
        iuv = np.zeros((3, 30, 20), np.uint8)
        return [[PersonResult(box, 1.0, iuv) for box in photo.boxes_xyxy] for photo in photos]


def test_people_with_surface_points_are_described_in_their_boxes(dataset):
    truth = read_ground_truth(dataset / "annotations.json")
    written = records.read_results(_predict(dataset, dataset / "out", _Boxes()))
    expected = [
        [image.image_id, *person.box_xywh]
        for image in truth.images
        for person in image.people
        if person.points is not None
    ]
    assert len(expected) > 3
    np.testing.assert_allclose([[r["image_id"], *r["bbox"]] for r in written], expected, rtol=1e-6)


def test_batches_hold_images_that_are_padded_alike(dataset):
    predictor = _Predictor()
    _predict(dataset, dataset / "out", predictor)
    assert sum(map(len, predictor.seen)) == NUM_IMAGES
    assert all(len(set(batch)) == 1 for batch in predictor.seen)
    assert sorted(map(len, predictor.seen)) == [1, 2, 2, 2]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_stopped_run_resumes_without_doing_anything_twice(dataset, fault):
    whole = _predict(dataset, dataset / "whole", _Predictor()).read_bytes()
    first, second, third = _Predictor(2, fault), _Predictor(), _Predictor()
    with pytest.raises(fault):
        _predict(dataset, dataset / "out", first)
    assert not (dataset / "out" / "results.json").exists()
    assert _predict(dataset, dataset / "out", second).read_bytes() == whole
    assert sum(map(len, first.seen)) + sum(map(len, second.seen)) == NUM_IMAGES
    assert _predict(dataset, dataset / "out", third).read_bytes() == whole
    assert third.seen == []


def _in_processes(count, work):
    """Runs work(processes) in threads that wait for each other as processes would."""
    barrier = threading.Barrier(count, timeout=60)
    outcomes = [None] * count

    def start(index):
        outcomes[index] = work(Processes(index, count, lambda name: barrier.wait()))

    threads = [threading.Thread(target=start, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_processes_share_the_images_and_the_file_is_the_same(dataset):
    whole = _predict(dataset, dataset / "whole", _Predictor()).read_bytes()
    predictors = [_Predictor() for _ in range(3)]
    paths = _in_processes(3, lambda p: _predict(dataset, dataset / "out", predictors[p.index], p))
    assert [path.read_bytes() for path in paths] == [whole] * 3
    assert [sum(map(len, predictor.seen)) for predictor in predictors] == [3, 2, 2]


def test_another_number_of_processes_resumes(dataset):
    whole = _predict(dataset, dataset / "whole", _Predictor()).read_bytes()
    stopped, predictors = _Predictor(2), [_Predictor() for _ in range(2)]
    with pytest.raises(RuntimeError):
        _predict(dataset, dataset / "out", stopped)
    paths = _in_processes(2, lambda p: _predict(dataset, dataset / "out", predictors[p.index], p))
    assert paths[0].read_bytes() == whole
    assert sum(sum(map(len, p.seen)) for p in [stopped, *predictors]) == NUM_IMAGES


def test_files_that_do_not_fit_are_named_before_the_work(dataset):
    predictor = _Predictor()
    (dataset / "images" / "3.png").unlink()
    with pytest.raises(EvaluationError, match="1 of 7 image files are missing, such as '3.png'"):
        _predict(dataset, dataset / "out", predictor)
    Image.new("RGB", (40, 60)).save(dataset / "images" / "3.png")
    with pytest.raises(ImageError, match="3.png: the image is 60 x 40.*50 x 50"):
        _predict(dataset, dataset / "out", predictor)
    truth = read_ground_truth(dataset / "annotations.json")
    with pytest.raises(EvaluationError, match="no such folder of images"):
        predict_dataset(predictor, {0: truth}, dataset / "none", dataset / "out", RUN)


def _skip(dataset, output, processes=None):
    truth = read_ground_truth(dataset / "annotations.json")
    images = dataset / "images"
    path, (truth,) = predict_dataset(
        _Predictor(), {0: truth}, images, output, RUN, processes, on_bad="skip"
    )
    return path, truth


@pytest.mark.parametrize("count", [1, 3])
def test_images_that_cannot_be_read_are_left_out_by_all_processes_and_noted(dataset, count):
    (dataset / "images" / "3.png").write_bytes((dataset / "images" / "3.png").read_bytes()[:-40])
    (dataset / "images" / "5.png").unlink()
    outcomes = _in_processes(count, lambda p: _skip(dataset, dataset / "out", p))
    left_out = {67, 65}
    for path, truth in outcomes:
        assert {image.image_id for image in truth.images} == set(range(64, 71)) - left_out
        assert {image["id"] for image in truth.coco["images"]} == set(range(64, 71)) - left_out
        assert not left_out & {person["image_id"] for person in truth.coco["annotations"]}
        assert truth.skipped_images == left_out
        assert "2 of 7 images cannot be read and are left out, such as" in truth.notes[-1]
        assert "3.png" in truth.notes[-1] and "5.png" in truth.notes[-1]
        found = {record["image_id"] for record in records.read_results(path)}
        assert found and not found & left_out
    # Mended, they are found by the same call.
    whole = dataset / "whole"
    Image.new("RGB", (50, 50), (30, 0, 0)).save(dataset / "images" / "3.png")
    Image.open(dataset / "images" / "6.png").save(dataset / "images" / "5.png")
    (path, truth), *_ = _in_processes(count, lambda p: _skip(dataset, dataset / "out", p))
    assert len(truth.images) == NUM_IMAGES and not truth.skipped_images
    assert path.read_bytes() == _skip(dataset, whole)[0].read_bytes()


def test_objects_of_several_classes_get_their_categories(dataset):
    raw = json.loads((dataset / "annotations.json").read_bytes())
    raw["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    raw["annotations"][0]["category_id"] = 3
    (dataset / "annotations.json").write_text(json.dumps(raw))
    cats, dogs = read_ground_truths(dataset / "annotations.json", categories=("cat", "dog"))
    assert (cats.others, dogs.others) == ({3}, {7})
    predictor = _Predictor()
    predictor.config = load_config("configs/ktn.py:tiny", ["model.box_head.num_classes=3"])
    ids = category_ids(3)

    def kinds(photo):  # the first of a photo is a dog, the second of a class that is not wanted
        people = _Predictor._people(photo)
        return [dataclasses.replace(p, category_id=ids[i + 1]) for i, p in enumerate(people)]

    predictor._people = kinds
    images = dataset / "images"
    path, truths = predict_dataset(predictor, {0: cats, 1: dogs}, images, dataset / "out", RUN)
    assert truths == [cats, dogs]
    found = records.read_results(path)
    assert {record["category_id"] for record in found} == {3}
    assert len(found) == sum(number % 3 > 0 for number in range(NUM_IMAGES))
    # Boxes that are given have the class of their truth.
    photo = np.zeros((5, 5, 3), np.uint8)
    image_id = dogs.images[0].image_id
    for image in dogs.images:
        if any(person.points is not None for person in image.people):
            image_id = image.image_id
    annotated = [
        (index, next(image for image in truth.images if image.image_id == image_id))
        for index, truth in enumerate(truths)
    ]
    boxed = dataset_inference._boxed(photo, annotated)
    counts = [len(scored_boxes(image)) for _, image in annotated]
    assert boxed.classes.tolist() == [0] * counts[0] + [1] * counts[1]
    assert len(boxed.boxes_xyxy) == sum(counts) > 0


def test_more_than_half_unreadable_is_an_error(dataset):
    for number in range(4):
        (dataset / "images" / f"{number}.png").unlink()
    with pytest.raises(EvaluationError, match="4 of 7 images cannot be read, above 50%, such as"):
        _skip(dataset, dataset / "out")


def test_images_that_changed_after_they_were_predicted_are_noticed(dataset):
    _predict(dataset, dataset / "out", _Predictor())
    os.utime(dataset / "images" / "2.png", ns=(2**62, 2**62))
    with pytest.raises(EvaluationError, match="1 of the images were changed .*/2.png"):
        _predict(dataset, dataset / "out", _Predictor())


@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_full_disk_stops_the_run(dataset, monkeypatch, fails_at):
    written = []

    def write(writer, image_id, entries):
        written.append(image_id)
        if len(written) > 2 * fails_at:
            raise OSError("no space left")

    monkeypatch.setattr(dataset_inference.ResultsWriter, "add", write)
    with pytest.raises(OSError, match="no space left"):
        _predict(dataset, dataset / "out", _Predictor())


def test_a_run_that_lacks_images_is_not_scored(dataset):
    """As when each process sees a disk of its own."""
    alone = Processes(0, 2)
    with pytest.raises(EvaluationError, match="holds 4 images, the dataset 7"):
        _predict(dataset, dataset / "out", _Predictor(), alone)


def test_a_run_is_described_by_what_decides_its_results(golden_dir):
    variables = {"params": {"a": np.ones(3, np.float32)}, "batch_stats": {}}
    other = {"params": {"a": np.float32([1, 1, 1.5])}, "batch_stats": {}}

    def describe(*changes, variables=variables, data=b"data", augmented=False, symmetry=None):
        config = load_config("configs/ktn.py:tiny", changes)
        return dataset_inference.describe_run(config, variables, data, augmented, symmetry)

    tables = (np.zeros((1, 2, 2)), np.ones((1, 2, 2)))
    base = describe()
    assert json.loads(json.dumps(base)) == base
    assert base == describe("test.batch_size=8", "test.size_buckets=()", "batch_size=99")
    assert base == describe("test.augmentation.flip=False")
    kernel = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    mapped = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)).transpose(2, 3, 1, 0)
    same, turned = ({"params": {"kernel": k}} for k in (kernel, kernel.swapaxes(2, 3)))
    assert describe(variables={"params": {"kernel": mapped}}) == describe(variables=same)
    assert describe(variables=turned) != describe(variables=same)
    assert describe(augmented=True) != describe("test.augmentation.flip=False", augmented=True)
    changed = [
        describe("model.predictor.mask_threshold=0.5"),
        describe("test.short_side=100"),
        describe(variables=other),
        describe(data=b"other"),
        describe(augmented=True),
        describe(augmented=True, symmetry=tables),
        describe(augmented=True, symmetry=tables[::-1]),
    ]
    assert len({json.dumps(run) for run in [base, *changed]}) == 1 + len(changed)


def test_processes_that_score_their_share_get_the_scores_of_one(dataset, template_dir):
    path = _predict(dataset, dataset / "out", _Predictor())
    annotations = dataset / "annotations.json"
    alone = evaluator.evaluate_files(path, annotations, template_dir)
    outcomes = _in_processes(
        3,
        lambda p: sharing.evaluate_shared(
            path, read_ground_truth(annotations), template_dir, p, output_dir=dataset / "out"
        ),
    )
    assert outcomes[1:] == [None, None]
    assert outcomes[0].to_json() == alone.to_json()
    assert (dataset / "out" / "metrics.json").read_text() == alone.to_json()
    assert not list((dataset / "out").glob("scores-*"))


def test_scores_come_through_json_unchanged(dataset, template_dir):
    path = _predict(dataset, dataset / "out", _Predictor())
    truth = read_ground_truth(dataset / "annotations.json")
    all_scores = list(scorer.score_images(truth, index_results(path, truth), template_dir))
    assert {len(image.scores) for image in all_scores} == {0, 1, 2}
    for image in all_scores:
        text = json.dumps(sharing.to_json(image))
        again = sharing.from_json(json.loads(text))
        for field in dataclasses.fields(image):
            before, after = getattr(image, field.name), getattr(again, field.name)
            if isinstance(before, np.ndarray):
                assert before.dtype == after.dtype, field.name
                np.testing.assert_array_equal(before, after, field.name, strict=True)
        for field in dataclasses.fields(image.patches):
            name = field.name
            np.testing.assert_array_equal(
                getattr(image.patches, name), getattr(again.patches, name), name
            )
        assert image.people == again.people
        assert image.segmentations.keys() == again.segmentations.keys()
