"""The TFDS builder: its own test case, lossless reading back, and what it does with bad records."""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import socket
import tempfile

import fsspec
import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets import testing

from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.data_pipelines.coco.checks import DatasetError
from ktn_jax.data_pipelines.densepose_coco import builder, densepose_coco_dataset_builder, layout
from ktn_jax.data_pipelines.loading import pipeline
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import FolderSource, SourceError
from ktn_jax.runtime.stores import Store


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach another machine fails the test."""

    def refuse(*arguments):
        raise AssertionError(f"tried to connect to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="class")
def manual_folder(request, dataset_writer):
    """Writes a dataset in the layout that the class asks for, and points the class at it."""
    with tempfile.TemporaryDirectory() as name:
        for annotation_file, image_folder, ids in request.cls.FILES:
            dataset_writer(pathlib.Path(name), annotation_file, image_folder, ids)
        request.cls.EXAMPLE_DIR = name
        yield


@pytest.mark.usefixtures("manual_folder")
class TestCoco(testing.DatasetBuilderTestCase):
    DATASET_CLASS = densepose_coco_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["densepose_coco_2014"]
    SPLITS = {"train": 4, "valminusminival": 2, "minival": 2}
    FILES = (
        ("annotations/densepose_train2014.json", "train2014", range(100, 104)),
        ("annotations/densepose_coco_2014_valminusminival.json", "val2014", range(104, 106)),
        ("annotations/densepose_minival2014.json", "val2014", range(106, 108)),
    )


@pytest.mark.usefixtures("manual_folder")
class TestUltraPose(testing.DatasetBuilderTestCase):
    DATASET_CLASS = densepose_coco_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["ultrapose"]
    SPLITS = {"train": 5, "valminusminival": 3}
    FILES = (
        ("annotations/densepose_train2014.json", "train2014", range(100, 105)),
        ("annotations/densepose_valminusminival2014.json", "val2014", range(105, 108)),
    )


@pytest.mark.usefixtures("manual_folder")
class TestCustom(testing.DatasetBuilderTestCase):
    DATASET_CLASS = densepose_coco_dataset_builder.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["custom"]
    SPLITS = {"mine": 3, "yours": 5}
    FILES = (
        ("annotations/mine.json", "images", range(100, 103)),
        ("annotations/yours.json", "images/yours", range(103, 108)),
    )


def _assert_same_record(one, other):
    """Equal in value, shape and dtype, to the last bit."""
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            _assert_same_record(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_same_record(a, b)
    else:
        assert type(one) is type(other) and one == other


def test_built_dataset_reads_back_as_the_folder(folder, tmp_path, raw):
    count = len(raw["annotations"][0]["dp_x"])
    raw["annotations"][0]["dp_annotated"] = [1] + [0] * (count - 1)
    raw["annotations"][0]["dp_confidence"] = [1] + [0.625] * (count - 1)
    raw["annotations"][0] |= {"dp_vertex": list(range(count)), "ref_model": "ball"}
    (folder / "annotations.json").write_text(json.dumps(raw))
    categories = ("dog", "person")
    built = builder.build("custom", folder, tmp_path / "built", categories=categories)
    nothing = {"images": 0, "people": 0, "densepose": 0}
    assert built.splits == {"train": {"images": 8, "skipped": nothing}}
    assert not built.was_complete
    source = builder.TfdsSource("custom", "train", tmp_path / "built")
    dataset = annotations.parse_dataset(folder / "annotations.json", categories=categories)
    expected = FolderSource(dataset, folder / "images")
    assert len(source) == len(expected) == 8
    _assert_same_record(source.facts(), expected.facts())
    for index in range(8):
        (image, record), (other_image, other_record) = source[index], expected[index]
        np.testing.assert_array_equal(image, other_image)
        _assert_same_record(record, other_record)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[3][0], source[3][0])  # noqa: S301


def test_image_bytes_are_kept(folder, tmp_path, monkeypatch):
    builder.build("custom", folder, tmp_path / "built")
    source = builder.TfdsSource("custom", "train", tmp_path / "built")
    for index in range(8):
        assert source._rows[index]["image"] == (folder / f"images/{100 + index}.jpg").read_bytes()
    # The same from a store, in a worker process too, which finds it fetched.
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    store = Store("memory://bucket/data")
    for path in (tmp_path / "built").rglob("*"):
        if path.is_file():
            store.send(path, path.relative_to(tmp_path / "built").as_posix())
    fetched = builder.TfdsSource("custom", "train", store.address)
    fsspec.filesystem("memory").store.clear()
    for other in (fetched, pickle.loads(pickle.dumps(fetched))):  # noqa: S301
        np.testing.assert_array_equal(other[0][0], source[0][0])


def test_built_dataset_makes_the_same_batches_as_the_folder(folder, tmp_path):
    builder.build("custom", folder, tmp_path / "built")
    settings = pipeline.DataSettings(
        batch_size=3,
        max_people=3,
        max_points=20,
        workers=2,
        augmentation=Augmentation(short_sides=(64,), max_long_side=120, flip_probability=0.0),
    )
    folder_source = FolderSource(
        annotations.parse_dataset(folder / "annotations.json"), folder / "images"
    )
    tfds_source = builder.TfdsSource("custom", "train", tmp_path / "built")
    one = pipeline.make_training_data(settings, folder_source).batches_from(0)
    other = pipeline.make_training_data(settings, tfds_source).batches_from(0)
    for _ in range(4):
        expected, actual = next(one), next(other)
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_missing_files_are_all_named(tmp_path, dataset_writer):
    with pytest.raises(layout.MissingFilesError) as caught:
        builder.build("densepose_coco_2014", tmp_path, tmp_path / "built")
    message = str(caught.value)
    for name in (
        "densepose_train2014.json",
        "densepose_minival2014.json",
        "train2014/",
        "val2014/",
    ):
        assert f"{tmp_path}/" in message and name in message
    dataset_writer(tmp_path, "annotations/densepose_train2014.json", "train2014", [100])
    with pytest.raises(layout.MissingFilesError) as caught:
        builder.build("densepose_coco_2014", tmp_path, tmp_path / "built")
    listed = str(caught.value).split("densepose_coco_2014 needs")[0]
    assert "train2014" not in listed and "val2014/" in listed


def test_custom_folder_without_annotations_says_what_it_needs(tmp_path):
    with pytest.raises(layout.MissingFilesError, match=r"annotations\.json or annotations/SPLIT"):
        builder.build("custom", tmp_path, tmp_path / "built")


def _damage(folder):
    """One damage of each sort: an image that is cut short, a person, somebody's DensePose."""
    raw = json.loads((folder / "annotations.json").read_text())
    path = folder / "images/107.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    Image.new("RGB", (5, 5)).save(folder / "images/106.jpg")
    raw["annotations"][0]["bbox"] = [0, 0, 0, 0]
    raw["annotations"][5]["dp_I"][0] = 99
    (folder / "annotations.json").write_text(json.dumps(raw))
    return raw


def test_bad_records_stop_the_build_or_are_skipped_and_counted(folder, tmp_path):
    _damage(folder)
    with pytest.raises(DatasetError, match="box_empty"):
        builder.build("custom", folder, tmp_path / "built")
    with pytest.raises(DatasetError, match=r"3 of 25 records are bad, above 10\.00%"):
        builder.build("custom", folder, tmp_path / "built", "skip", max_skipped_fraction=0.1)
    built = builder.build("custom", folder, tmp_path / "built", "skip", max_skipped_fraction=0.2)
    assert built.splits["train"] == {
        "images": 6,
        "skipped": {"images": 2, "people": 1, "densepose": 1},
    }
    source = builder.TfdsSource("custom", "train", tmp_path / "built")
    ids = [source[index][1].image_id for index in range(len(source))]
    assert ids == [100, 101, 102, 103, 104, 105]
    assert source.facts().sizes_hw.shape == (6, 2)


def test_bad_image_stops_the_build_by_name(folder, tmp_path):
    (folder / "images/105.jpg").unlink()
    with pytest.raises(DatasetError, match=r"image 105: file_name: error \[image_missing\]"):
        builder.build("custom", folder, tmp_path / "built")


def _ids(data_dir):
    source = builder.TfdsSource("custom", "train", data_dir)
    return [source[index][1].image_id for index in range(len(source))]


def test_a_build_of_other_files_is_not_taken_for_this_one(folder, tmp_path, monkeypatch, raw):
    data_dir = tmp_path / "built"
    builder.build("custom", folder, data_dir)
    with monkeypatch.context() as context:  # nothing is decoded again
        context.setattr(densepose_coco_dataset_builder, "parse_dataset", None)
        again = builder.build("custom", folder, data_dir)
    assert again.was_complete and again.splits["train"]["images"] == 8
    with pytest.raises(ValueError, match=r"options were .*'raise'.*, now .*'skip'"):
        builder.build("custom", folder, data_dir, "skip")
    os.utime(folder / "images" / "103.jpg", ns=(1, 1))
    with pytest.raises(ValueError, match=r"images in .*/images are others or were changed\. Build"):
        builder.build("custom", folder, data_dir)
    raw["images"].pop()
    raw["annotations"] = [one for one in raw["annotations"] if one["image_id"] != 107]
    (folder / "annotations.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"annotations\.json is another file; images .*--over"):
        builder.build("custom", folder, data_dir)
    assert _ids(data_dir) == list(range(100, 108))
    raw["annotations"][0]["bbox"] = []
    (folder / "annotations.json").write_text(json.dumps(raw))
    with pytest.raises(DatasetError):  # and the old one stays
        builder.build("custom", folder, data_dir, overwrite=True)
    assert _ids(data_dir) == list(range(100, 108))
    built = builder.build("custom", folder, data_dir, "skip", overwrite=True)
    assert not built.was_complete and _ids(data_dir) == list(range(100, 107))
    assert [path.name for path in data_dir.iterdir()] == ["densepose_coco"]
    (folder / "annotations").mkdir()
    (folder / "annotations.json").rename(folder / "annotations" / "mine.json")
    with pytest.raises(ValueError, match="split mine is new; split train is not there any more"):
        builder.build("custom", folder, data_dir, "skip")


def test_a_photo_annotated_as_it_is_stored_is_built_so(cases_dir, tmp_path):
    folder = cases_dir / "data" / "exif"
    built = builder.build("custom", folder, tmp_path / "built")
    assert built.splits["train"]["images"] == 6
    image, record = builder.TfdsSource("custom", "train", tmp_path / "built")[0]
    with Image.open(folder / "images" / record.file_name) as file:
        np.testing.assert_array_equal(image, np.asarray(file))


def test_a_cut_photo_is_left_out_of_a_build(cases_dir, tmp_path):
    folder = cases_dir / "train" / "cut_jpeg"
    with pytest.raises(DatasetError, match=r"image 2: .*image_truncated.*000000000002\.jpg"):
        builder.build("custom", folder, tmp_path / "built")
    built = builder.build("custom", folder, tmp_path / "built", "skip")
    assert built.splits["train"]["skipped"] == {"images": 1, "people": 0, "densepose": 0}


def test_source_says_what_is_not_there(folder, tmp_path):
    with pytest.raises(ValueError, match="ktn data build"):
        builder.TfdsSource("custom", "train", tmp_path / "built")
    builder.build("custom", folder, tmp_path / "built")
    with pytest.raises(ValueError, match="split must be one of"):
        builder.TfdsSource("custom", "minival", tmp_path / "built")
    with pytest.raises(ValueError, match="config must be one of"):
        builder.build("coco", folder, tmp_path / "built")


def test_metadata_of_another_build_are_noticed(folder, tmp_path):
    builder.build("custom", folder, tmp_path / "built")
    metadata = next((tmp_path / "built").rglob("metadata.json"))
    content = json.loads(metadata.read_text())
    content["train"]["image_ids"].reverse()
    metadata.write_text(json.dumps(content))
    with pytest.raises(SourceError, match="build the dataset again"):
        builder.TfdsSource("custom", "train", tmp_path / "built")[0]
    shutil.rmtree(tmp_path / "built")
