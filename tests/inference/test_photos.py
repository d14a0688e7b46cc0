"""Files of photos: read ahead, written behind, in order, whatever cannot be read."""

import errno

import numpy as np
import pytest
from PIL import Image

from ktn_jax.inference import photos
from ktn_jax.inference.inputs import map_photos
from ktn_jax.inference.photo_products import Products
from ktn_jax.results import records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.configuration import load_config

SIZES = {"a": (20, 30), "b": (30, 20), "c": (20, 30), "e": (30, 20), "f": (20, 30)}


@pytest.fixture
def files(tmp_path):
    """Photos of two sizes, their number in their colour, and one that is none between them."""
    for number, (name, (height, width)) in enumerate(SIZES.items(), 1):
        Image.new("RGB", (width, height), (10 * number, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"no photo")
    return sorted(tmp_path.glob("*.png"))


class _Predictor:
    """Finds one person in each photo, whose score is the photo's number in tenths."""

    def __init__(self, batch_size, fails_at=None):
        self.config = load_config("ktn:tiny", [f"test.batch_size={batch_size}"])
        self.seen, self._fails_at = [], fails_at

    def __call__(self, photos):
        return map_photos(
            photos,
            test=self.config.test,
            prepare=lambda photo: photo,
            find=self._find,
            finish=lambda photo, people: people,
        )

    def _find(self, batch):
        if len(self.seen) == self._fails_at:
            raise KeyboardInterrupt
        self.seen.append([photo.shape[:2] for photo in batch])
        return [[self._person(int(photo[0, 0, 0]) / 100)] for photo in batch]

    def _person(self, score):
        return PersonResult(np.float32([2, 3, 12, 18]), score, np.ones((3, 15, 10), np.uint8))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_are_of_one_size_and_results_in_the_order_of_the_photos(
    files, tmp_path, batch_size
):
    predictor, out = _Predictor(batch_size), tmp_path / "out"
    summary = photos.predict_files(predictor, files, out, min_score=0.15, category_id=7)
    assert (summary.num_photos, summary.num_people) == (5, 4)
    ((path, reason),) = summary.failures
    assert path.name == "d.png" and reason.startswith("not an image")
    assert all(len(set(batch)) == 1 for batch in predictor.seen)
    assert sorted(map(len, predictor.seen)) == ([1] * 5 if batch_size == 1 else [1, 2, 2])
    found = records.read_results(out / "results.json")
    assert [record["file_name"] for record in found] == [
        str(tmp_path / name) for name in ("b.png", "c.png", "e.png", "f.png")
    ]
    assert [record["output_name"] for record in found] == ["b", "c", "e", "f"]
    assert [record["image_id"] for record in found] == [2, 3, 5, 6]
    assert {record["category_id"] for record in found} == {7}
    np.testing.assert_allclose([record["score"] for record in found], [0.2, 0.3, 0.4, 0.5])
    for name, (height, width) in SIZES.items():
        with Image.open(out / f"{name}_iuv.png") as picture:
            assert picture.size == (width, height)
    assert not (out / "results.partial").exists()


def _snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_stopped_run_is_resumed_by_the_same_call(files, tmp_path):
    out = tmp_path / "out"
    run = {"weights": "a"}
    with pytest.raises(KeyboardInterrupt):
        photos.predict_files(_Predictor(1, fails_at=2), files, out, run=run)
    assert not (out / "results.json").exists()
    (kept,) = (out / "results.partial").iterdir()
    assert len(kept.read_text().splitlines()) == 1 + 2
    with pytest.raises(ValueError, match="stopped run with other photos, weights or options"):
        photos.predict_files(_Predictor(1), files, out, run={"weights": "b"})
    with pytest.raises(ValueError, match="stopped run with other photos"):
        photos.predict_files(_Predictor(1), files[1:], out, run=run)
    with pytest.raises(ValueError, match="stopped run"):  # of unknown weights
        photos.predict_files(_Predictor(1), files, out)
    predictor = _Predictor(1)
    summary = photos.predict_files(predictor, files, out, run=run)
    assert len(predictor.seen) == 3
    assert (summary.num_photos, summary.num_people, len(summary.failures)) == (5, 5, 1)
    photos.predict_files(_Predictor(1), files, tmp_path / "whole", run=run)
    assert _snapshot(out) == _snapshot(tmp_path / "whole")


def test_an_older_result_is_whole_until_the_new_one_is(files, tmp_path):
    out = tmp_path / "out"
    photos.predict_files(_Predictor(1), files, out)
    before = _snapshot(out)
    with pytest.raises(
        ValueError, match=r"out holds files.*results\.json.*and \d+ more.*overwrite"
    ):
        photos.predict_files(_Predictor(1), files, out)
    run = {"weights": "b"}
    with pytest.raises(KeyboardInterrupt):
        photos.predict_files(_Predictor(1, fails_at=1), files[:3], out, run=run, overwrite=True)
    assert _snapshot(out) == before
    predictor = _Predictor(1)
    photos.predict_files(predictor, files[:3], out, run=run, overwrite=True)
    assert len(predictor.seen) == 2  # one was kept
    assert len(records.read_results(out / "results.json")) == 3


def test_another_stopped_run_is_replaced_when_asked(files, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        photos.predict_files(_Predictor(1, fails_at=2), files, out, run={"weights": "a"})
    predictor = _Predictor(1)
    photos.predict_files(predictor, files, out, run={"weights": "b"}, overwrite=True)
    assert len(predictor.seen) == 5
    assert len(records.read_results(out / "results.json")) == 5


def test_nothing_of_the_users_is_written_over(files, tmp_path):
    own = tmp_path / "a_overlay.jpg"
    Image.new("RGB", (30, 20), (70, 0, 0)).save(own)
    before = _snapshot(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds files that this would replace: \S+a_overlay\.jpg;"
    ):
        photos.predict_files(_Predictor(1), files, tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"a_overlay\.jpg would be written over"):
            photos.predict_files(_Predictor(1), [*files, own], tmp_path, overwrite=overwrite)
    assert _snapshot(tmp_path) == before


def test_a_photo_that_cannot_be_written_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch):
    long, longest, wide = "n" * 235, "n" * 245, "wide"
    for name, size in ((long, (30, 20)), (longest, (30, 20)), (wide, (65_501, 1)), ("z", (30, 20))):
        Image.new("RGB", size, (10, 0, 0)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    summary = photos.predict_files(_Predictor(1), sorted(tmp_path.glob("*.png")), out)
    assert [(path.stem, reason) for path, reason in summary.failures] == [
        (longest, f"its results cannot be written to {out}: File name too long"),
        (wide, "65501 x 1 pixels: its overlay would be a JPEG, whose sides have at most 65,500"),
    ]
    assert (summary.num_photos, summary.num_people) == (2, 2)
    ends = ("_instances.png", "_iuv.png", "_overlay.jpg")
    written = {f"{name}{end}" for name in (long, "z") for end in ends}
    assert {path.name for path in out.iterdir()} == {*written, "results.json"}


def test_a_person_who_is_not_finite_costs_one_photo(files, tmp_path):
    class NotFinite(_Predictor):
        def _person(self, score):
            person = super()._person(score)
            keypoints = np.full((17, 3), np.inf if score == 0.3 else 1, np.float32)
            return PersonResult(person.box_xyxy, score, person.iuv, keypoints)

    summary = photos.predict_files(NotFinite(1), files, tmp_path / "out")
    assert [path.name for path, _ in summary.failures] == ["c.png", "d.png"]
    assert "person 0: keypoints must be 51 finite numbers" in summary.failures[0][1]
    assert len(records.read_results(tmp_path / "out" / "results.json")) == 4
    assert not (tmp_path / "out" / "c_iuv.png").exists()


def test_a_full_disk_stops_the_run_and_loses_nothing(files, tmp_path, monkeypatch):
    out, run = tmp_path / "out", {"weights": "a"}
    write = Products.write

    def fill_up(products, folder, name, *rest):
        if name == "e":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(products, folder, name, *rest)

    monkeypatch.setattr(Products, "write", fill_up)
    with pytest.raises(OSError, match="No space left"):
        photos.predict_files(_Predictor(1), files, out, run=run)
    monkeypatch.undo()
    predictor = _Predictor(1)
    assert photos.predict_files(predictor, files, out, run=run).num_people == 5
    assert len(predictor.seen) < 5


def test_the_first_frame_of_an_animation_is_used_and_said(tmp_path):
    frames = [Image.new("RGB", (30, 20), (10 * number, 0, 0)) for number in (1, 2, 3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    summary = photos.predict_files(_Predictor(1), [tmp_path / "a.webp"], tmp_path / "out")
    assert summary.notes == [(tmp_path / "a.webp", "the first of 3 frames is used")]
    (record,) = records.read_results(tmp_path / "out" / "results.json")
    assert record["score"] == pytest.approx(0.1)


def test_arguments_are_checked(files, tmp_path):
    with pytest.raises(ValueError, match="min_score must be a number"):
        photos.predict_files(_Predictor(1), files, tmp_path / "out", float("nan"))
    for ids in ([1] * 6, [1, 2]):
        with pytest.raises(ValueError, match="wanted 6 different image ids"):
            photos.predict_files(_Predictor(1), files, tmp_path / "out", ids=ids)
    assert not (tmp_path / "out").exists()
