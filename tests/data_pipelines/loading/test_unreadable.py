"""Images that cannot be read while a run trains: left out, named and counted by every loader."""

import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from ktn_jax.configs import base
from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.data_pipelines.loading import configured, pipeline
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import FolderSource, SourceError
from ktn_jax.data_pipelines.loading.unreadable import StandIns
from ktn_jax.runtime.images import ImageError

PLAIN = Augmentation(short_sides=(64, 96), max_long_side=160, flip_probability=0.0)


@pytest.fixture
def source(folder):
    return FolderSource(annotations.parse_dataset(folder / "annotations.json"), folder / "images")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def _data(source, **changes):
    settings = {"batch_size": 4, "max_people": 4, "max_points": 30, "augmentation": PLAIN}
    settings |= {"loader": "threads", "workers": 2, "on_bad": "skip", "max_skipped_fraction": 0.3}
    return pipeline.make_training_data(pipeline.DataSettings(**(settings | changes)), source)


def _take(data, count, start=0):
    batches = data.batches_from(start)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def test_stand_ins_are_the_next_of_the_same_orientation_then_the_others():
    stand_ins = StandIns(np.array([[4, 6], [6, 4], [5, 5], [4, 8], [9, 4]]))
    assert list(stand_ins.after(0)) == [2, 3, 1, 4]
    assert list(stand_ins.after(3)) == [0, 2, 4, 1]
    assert list(stand_ins.after(4)) == [1, 0, 2, 3]
    assert stand_ins.resized_hw(3, (40, 60), (64, 96)) == (40, 80)
    assert stand_ins.resized_hw(4, (40, 60), (64, 96)) == (64, 28)
    assert StandIns(np.array([[480, 640]] * 2)).resized_hw(1, (96, 128), (96, 160)) == (96, 128)


@pytest.mark.parametrize("damage", ["cut", "missing", "other size", "no image"])
def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(folder, source, damage, caplog):
    whole = _take(_data(source), 4)
    path = folder / "images" / "104.jpg"  # landscape; the next landscape is 105
    if damage == "cut":
        _cut(path)
    elif damage == "missing":
        path.unlink()
    elif damage == "other size":
        Image.new("RGB", (20, 20)).save(path)
    else:
        path.write_bytes(b"")
    data = _data(source)
    batches = _take(data, 4)
    for before, after in zip(whole, batches, strict=True):
        wanted = np.where(before["image_id"] == 104, 105, before["image_id"])
        np.testing.assert_array_equal(after["image_id"], wanted)
        kept = before["image_id"] != 104
        for name, array in before.items():
            assert after[name].shape == array.shape and after[name].dtype == array.dtype
            np.testing.assert_array_equal(after[name][kept], array[kept], err_msg=name)
        for row in np.flatnonzero(~kept):
            height, width = after["image_size_hw"][row]
            assert min(height, width) == before["image_size_hw"][row].min()
            assert after["original_size_hw"][row].tolist() == [48, 72]
            assert abs(width / height - 72 / 48) < 0.02
            assert after["is_valid"][row].any()
    named = [record.message for record in caplog.records if "104.jpg" in record.message]
    assert len(named) == 1 and "1 of 8 images cannot be read" in named[0]


@pytest.mark.parametrize(
    "loader", ["threads", "tf_data", pytest.param("processes", marks=pytest.mark.extended)]
)
def test_every_loader_and_a_resumed_run_make_the_same_batches(folder, source, loader):
    _cut(folder / "images" / "101.jpg")
    (folder / "images" / "106.jpg").unlink()  # the next portrait after 101
    expected = _take(_data(source, workers=0), 5)
    ids = np.concatenate([batch["image_id"] for batch in expected])
    assert not {101, 106} & set(ids) and set(ids) == {100, 102, 103, 104, 105, 107}
    actual = _take(_data(source, loader=loader), 3, start=2)
    for one, other in zip(actual, expected[2:], strict=True):
        for name, array in other.items():
            np.testing.assert_array_equal(one[name], array, err_msg=name)


def test_too_many_or_all_unreadable_images_stop_the_run(folder, source):
    _cut(folder / "images" / "101.jpg")
    _take(_data(source, max_skipped_fraction=0.0), 4)  # a single one is never too many
    _cut(folder / "images" / "103.jpg")
    with pytest.raises(SourceError, match=r"2 of 8 .*above max_skipped_fraction=0\.2(.|\n)*jpg"):
        _take(_data(source, max_skipped_fraction=0.2), 4)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SourceError, match="none of the 8 images can be read, such as .*jpg"):
        _take(_data(source, max_skipped_fraction=1.0), 4)


@pytest.mark.parametrize("loader", ["threads", "tf_data"])
def test_raise_is_one_error_that_names_the_file(folder, source, loader, capfd):
    _cut(folder / "images" / "101.jpg")
    with pytest.raises(ImageError, match=r"101\.jpg: .*truncated"):
        _take(_data(source, loader=loader, on_bad="raise"), 4)
    assert "Traceback" not in capfd.readouterr().err


def test_settings_of_skipping_are_checked():
    for wrong in ({"on_bad": "ignore"}, {"max_skipped_fraction": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            pipeline.DataSettings(**wrong)


def test_a_folder_with_a_cut_image(cases_dir):
    """As `ktn train` with the default share, of which a single image never is above."""
    config = base.get_config()
    config.batch_size = 2
    folder = cases_dir / "train" / "cut_jpeg"
    config.data.update({"short_sides": (64,), "max_long_side": 120, "flip_probability": 0.0})
    config.data.update({"annotations": (str(folder / "annotations.json"),), "workers": 1})
    config.data.update({"images": (str(folder / "images"),), "on_bad": "skip"})
    data = configured.make_training_data(config)
    ids = np.concatenate([batch["image_id"] for batch in _take(data, data.steps_per_epoch)])
    assert sorted(ids) == [1, 3, 3, 4, 5, 6]
    config.data.on_bad = "raise"
    with pytest.raises(ImageError, match=r"000000000002\.jpg: .*truncated"):
        _take(configured.make_training_data(config), 3)


def test_makers_travel_to_processes_with_their_stand_ins():
    stand_ins = pickle.loads(pickle.dumps(StandIns(np.array([[2, 3], [3, 2]]))))  # noqa: S301
    assert list(stand_ins.after(1)) == [0]
