"""Points drawn from pictures of labels: where they are, and that a step always draws the same."""

import json

import numpy as np
import pytest

from ktn_jax.configs import base
from ktn_jax.data_pipelines.coco import annotations, checks
from ktn_jax.data_pipelines.loading import configured, pipeline
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import FolderSource
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.iuv_pictures import quantise, read_labels, write_labels

SIZE_HW = (20, 10)


@pytest.fixture
def labelled(folder, raw):
    """The dataset with pictures: the left half of everybody's box is patch 5, U down, V across."""
    (folder / "b_iuv").mkdir()
    for person in raw["annotations"]:
        if "dp_x" not in person:
            continue
        patch = np.zeros(SIZE_HW, np.uint8)
        patch[:, :5] = 5
        v, u = np.meshgrid((np.arange(10) + 0.5) / 10, (np.arange(20) + 0.5) / 20)
        confidence = np.where(np.arange(20)[:, None] < 15, 0.6, 0) * np.ones(10)
        path = folder / "b_iuv" / f"{person['id']}.png"
        write_labels(path, quantise(patch, np.stack([u, v])), confidence)
        count = len(person["dp_x"])
        person |= {
            "dp_iuv": f"b_iuv/{path.name}",
            "dp_annotated": [1] * 3 + [0] * (count - 3),
            "dp_confidence": [1.0] * count,
        }
    (folder / "b.json").write_text(json.dumps(raw))
    return folder


def _batches(folder, step=0, **changes):
    augmentation = Augmentation((64,), 96, flip_probability=0.0, aspect_limits=(1.5,))
    values = {"max_points": 40, "dense_points": 30, "loader": "threads", "workers": 0} | changes
    settings = pipeline.DataSettings(4, max_people=3, augmentation=augmentation, **values)
    dataset = annotations.parse_dataset(folder / "b.json")
    source = FolderSource(dataset, folder / "images", folder)
    return pipeline.make_training_data(settings, source).batches_from(step)


def test_points_are_cells_with_a_label_and_come_after_the_annotators(labelled):
    batches = _batches(labelled)
    batch = next(batches)
    batches.close()
    dense = batch["has_densepose"]
    is_valid, is_annotated = batch["point_is_valid"][dense], batch["point_is_annotated"][dense]
    assert (is_valid.sum(-1) == 33).all() and (is_annotated.sum(-1) == 3).all()
    assert is_annotated[:, :3].all()
    x, y, i, u, v, confidence = (
        batch[f"point_{name}"][dense][:, 3:33] for name in ("x", "y", "i", "u", "v", "confidence")
    )
    assert (i == 5).all() and (x < 128).all() and (y < 192).all()
    np.testing.assert_allclose(confidence, 0.6)
    # What is at a place is what the picture says there, up to its 256 levels.
    np.testing.assert_allclose(u, y / 256, atol=0.003)
    np.testing.assert_allclose(v, x / 256, atol=0.003)


def test_pictures_beside_annotators_points_alone_have_their_confidence(labelled, raw):
    """As `ktn data inpaint` writes people who have as many points as it fills up to."""
    for person in raw["annotations"]:
        person.pop("dp_annotated", None)
    (labelled / "b.json").write_text(json.dumps(raw))
    batches = _batches(labelled, max_points=60)
    batch = next(batches)
    batches.close()
    is_drawn = batch["point_is_valid"] & ~batch["point_is_annotated"]
    np.testing.assert_array_equal(is_drawn.sum(-1), 30 * batch["has_densepose"])
    np.testing.assert_allclose(batch["point_confidence"][is_drawn], 0.6)


def test_every_step_draws_anew_and_a_resumed_run_the_same(labelled):
    straight = _batches(labelled)
    steps = [next(straight) for _ in range(4)]
    straight.close()
    resumed = _batches(labelled, step=3, workers=2)
    again = next(resumed)
    resumed.close()
    for name, values in steps[3].items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    drawn = {}
    for batch in steps:
        for row, image_id in enumerate(batch["image_id"]):
            drawn.setdefault(int(image_id), []).append(batch["point_x"][row, 0, 3:33])
    repeated = [draws for draws in drawn.values() if len(draws) > 1]
    assert repeated
    assert all((draws[0] != draws[1]).any() for draws in repeated if draws[0].any())


def test_no_more_points_than_there_is_space_for(labelled):
    batches = _batches(labelled, max_points=20)
    batch = next(batches)
    batches.close()
    dense = batch["has_densepose"]
    assert (batch["point_is_valid"][dense].sum(-1) == 20).all()
    assert (batch["point_is_annotated"][dense].sum(-1) == 3).all()


def test_pictures_that_cannot_be_read_are_named(labelled):
    path = next(labelled.glob("b_iuv/*.png"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ResultsError, match=path.name):
        read_labels(path)
    path.unlink()
    batches = _batches(labelled)
    with pytest.raises(ResultsError, match=path.name):
        for _ in range(3):
            next(batches)


def test_pictures_that_are_no_labels_are_refused(tmp_path):
    iuv = np.full((3, 4, 4), 30, np.uint8)
    write_labels(tmp_path / "a.png", iuv, np.ones((4, 4)))
    with pytest.raises(ResultsError, match=r"a\.png: no labels"):
        read_labels(tmp_path / "a.png")
    with pytest.raises(ResultsError, match="confidence must be"):
        write_labels(tmp_path / "b.png", iuv, np.ones((4, 5)))
    assert not (tmp_path / "b.png").exists()


def test_names_of_pictures_are_checked(labelled, raw):
    person = next(person for person in raw["annotations"] if "dp_iuv" in person)
    for name in (7, "/b.png", ["b.png"]):
        person["dp_iuv"] = name
        report = checks.check_dataset(raw)
        assert [finding.field for finding in report.errors] == ["dp_iuv"], name


def test_points_cannot_be_drawn_without_pictures(labelled):
    data = base.get_config().data
    data.annotations, data.images = (str(labelled / "annotations.json"),), (str(labelled),)
    data.flip_probability, data.dense_points = 0.0, 10
    with pytest.raises(ValueError, match="nobody in .*annotations.json has a picture of labels"):
        configured.make_source(data)
    data.annotations = ("gs://bucket/annotations.json",)
    with pytest.raises(ValueError, match="annotations.json: data.dense_points reads the pictures"):
        configured.make_source(data)
    data.source = "synthetic"
    with pytest.raises(ValueError, match="set it to densepose_coco"):
        configured.make_source(data)
