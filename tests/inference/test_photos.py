"""Files of photos: read ahead, written behind, in order, whatever cannot be read."""

import numpy as np
import pytest
from PIL import Image

from ktn_jax.inference import photos
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

    def __call__(self, batch):
        if len(self.seen) == self._fails_at:
            raise KeyboardInterrupt
        self.seen.append([photo.shape[:2] for photo in batch])
        return [[self._person(int(photo[0, 0, 0]) / 100)] for photo in batch]

    @staticmethod
    def _person(score):
        return PersonResult(np.float32([2, 3, 12, 18]), score, np.ones((3, 15, 10), np.uint8))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_are_of_one_size_and_results_in_the_order_of_the_photos(
    files, tmp_path, batch_size
):
    predictor = _Predictor(batch_size)
    summary = photos.predict_files(predictor, files, tmp_path / "out", min_score=0.15)
    assert (summary.num_photos, summary.num_people) == (5, 4)
    ((path, reason),) = summary.failures
    assert path.name == "d.png" and "not an image" in reason
    assert all(len(set(batch)) == 1 for batch in predictor.seen)
    assert sorted(map(len, predictor.seen)) == ([1] * 5 if batch_size == 1 else [1, 2, 2])
    found = records.read_results(tmp_path / "out" / "results.json")
    assert [record["file_name"] for record in found] == ["b.png", "c.png", "e.png", "f.png"]
    assert [record["image_id"] for record in found] == [2, 3, 5, 6]
    np.testing.assert_allclose([record["score"] for record in found], [0.2, 0.3, 0.4, 0.5])
    for name, (height, width) in SIZES.items():
        with Image.open(tmp_path / "out" / f"{name}_iuv.png") as picture:
            assert picture.size == (width, height)


def test_what_was_found_is_written_when_the_run_is_interrupted(files, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        photos.predict_files(_Predictor(1, fails_at=2), files, tmp_path / "out")
    assert len(records.read_results(tmp_path / "out" / "results.json")) == 2


def test_photos_of_the_same_name_are_told_apart(tmp_path):
    paths = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "x.png", tmp_path / "x-2.jpg"]
    assert len(set(photos.output_names(paths))) == 3
    assert photos.output_names(paths)[:2] == ["x", "x-2"]
    numbered = [tmp_path / "COCO_val2014_000000000785.jpg", tmp_path / "12.png"]
    assert photos.image_ids(numbered) == [785, 12]
    assert photos.image_ids([*numbered, tmp_path / "785.jpg"]) == [1, 2, 3]
