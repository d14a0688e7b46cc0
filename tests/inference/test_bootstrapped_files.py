"""Annotation files of people that a model found: made, resumed, checked and trained on."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.data_pipelines.coco import annotations, checks
from ktn_jax.data_pipelines.loading import pipeline
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import FolderSource
from ktn_jax.inference import bootstrapped_files
from ktn_jax.inference.bootstrapping import BootstrapSettings
from ktn_jax.results import records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.configuration import load_config

SIZE_HW = (40, 60)
SETTINGS = BootstrapSettings(points_per_patch=3)


def _person(number, score):
    box = np.float32([2 + number, 3, 22 + number, 33])
    iuv = np.full((3, 30, 20), 20 * number, np.uint8)
    iuv[0] = number
    confidences = {"sigma": np.full((30, 20), 0.5, np.float32)}
    return PersonResult(box, score, iuv, confidences=confidences)


class _Predictor:
    """Finds a person of the patch that a photo's colour tells, and one it is not sure of."""

    def __init__(self, fails_at=None):
        self.config = load_config("ktn:tiny", ["test.batch_size=1"])
        self.calls, self._fails_at = 0, fails_at

    def __call__(self, batch):
        if self.calls == self._fails_at:
            raise KeyboardInterrupt
        self.calls += 1
        numbers = [int(photo[0, 0, 0]) // 10 for photo in batch]
        return [[_person(number, 0.9), _person(number + 3, 0.4)] for number in numbers]


@pytest.fixture
def photos(tmp_path):
    """Four photos, one in a subfolder, and one that cannot be read."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png", "more/d.png"), 1):
        Image.new("RGB", SIZE_HW[::-1], (10 * number, 0, 0)).save(folder / name)
    (folder / "damaged.png").write_bytes(b"no image")
    return folder


def _photos(photos, output, predictor, settings=SETTINGS, run="a"):
    return bootstrapped_files.bootstrap_photos(predictor, photos, output, settings, {"run": run})


def test_a_stopped_run_is_resumed_by_the_same_call(photos, tmp_path):
    whole, output = tmp_path / "whole.json", tmp_path / "out.json"
    summary = _photos(photos, whole, _Predictor())
    assert (summary.images, summary.people, summary.points, summary.ignored) == (4, 4, 12, 4)
    (failure,) = summary.failures
    assert "damaged.png" in failure
    with pytest.raises(KeyboardInterrupt):
        _photos(photos, output, _Predictor(fails_at=2))
    assert not output.exists()
    for other in ({"settings": BootstrapSettings(seed=1)}, {"run": "b"}):
        with pytest.raises(ValueError, match=r"out\.json\.unfinished.*another run"):
            _photos(photos, output, _Predictor(), **other)
    predictor = _Predictor()
    assert _photos(photos, output, predictor) == summary
    assert predictor.calls == 2
    assert output.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.json.unfinished").exists()
    with pytest.raises(ValueError, match=r"out\.json exists"):
        _photos(photos, output, predictor)


def test_the_file_is_sound_and_trains(photos, tmp_path):
    output = tmp_path / "out.json"
    _photos(photos, output, _Predictor())
    report = checks.check_file(output, photos)
    assert report.ok and not report.findings and report.counts["crowd regions"] == 4
    source = FolderSource(annotations.parse_dataset(output), photos)
    names = [source[index][1].file_name for index in range(4)]
    assert sorted(names) == ["a.png", "b.png", "c.png", "more/d.png"]
    assert not source.facts().all_annotated
    plain = Augmentation(
        short_sides=(80,), max_long_side=120, flip_probability=0.0, aspect_limits=(1.5,)
    )
    settings = pipeline.DataSettings(
        batch_size=4, max_people=3, max_points=9, loader="threads", workers=0, augmentation=plain
    )
    data = pipeline.make_training_data(settings, source)
    (batch,) = itertools.islice(data.batches_from(0), 1)
    assert batch["is_valid"].tolist() == [[True, False, False]] * 4
    points = batch["point_is_valid"]
    assert points.sum() == 12 and not batch["point_is_annotated"].any()
    confidence = 0.9 * 0.01 / (np.log1p(np.exp(0.5)) + 0.01)
    np.testing.assert_allclose(batch["point_confidence"][points], confidence, atol=1e-4)
    # Twice as large as in the file; patch n + 3 stands n + 3 pixels further right.
    patch = batch["point_i"][:, 0, 0]
    np.testing.assert_allclose(batch["ignored_boxes"][:, 0, 0], 2 * (2 + patch + 3))
    np.testing.assert_allclose(batch["ignored_boxes"][:, 0, [1, 3]], [[6, 66]] * 4)
    assert not batch["ignored_boxes"][:, 1:].any()


def _write_results(path, names):
    entries = []
    for number, name in enumerate(names, 1):
        people = [_person(number, 0.9), _person(number + 3, 0.4)]
        # Above what an annotation file takes.
        image_id = 2**31 + number
        entries += records.people_to_records(
            image_id, people, with_confidences=True, file_name=name
        )
    path.write_text(json.dumps(entries))


def _run(*arguments):
    return cli.main(["data", "bootstrap", *map(str, arguments)])


def test_results_of_any_source_are_labelled(photos, tmp_path, capsys):
    results, output = tmp_path / "results.json", tmp_path / "out.json"
    _write_results(results, ["a.png", "b.png", "gone.png"])
    arguments = ["--results", results, "--images", photos, "--output", output]
    sampler = ["--sampler", "uv_confidence", "--search-proportion", 0.5]
    assert _run(*arguments, *sampler, "--points-per-patch", 3) == 1
    printed = capsys.readouterr()
    assert "2 people with 6 points in 2 images, and 2 regions" in printed.out
    assert "gone.png" in printed.err
    assert checks.check_file(output, photos).ok
    content = json.loads(output.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert content["info"]["settings"]["sampler"] == "uv_confidence"
    assert _run(*arguments) == 1 and "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments,text",
    [
        (["--results", "{results}", "--sampler", "fine_segm_confidence"], "fine_segm_confidence"),
        (["--results", "{results}", "--model", "x"], "give one of them"),
        (["--results", "gone.json"], "no such results file"),
        (["--results", "{results}", "--images", "nowhere"], "no such folder"),
        (["--results", "{results}", "--output", "{results}.txt"], r"NAME\.json"),
        (["--results", "{results}", "--min-score", "0.05"], "ignore_score"),
        (["--config", "rcnn:keypoint_r50"], "has no charts"),
        (["--config", "cse:tiny"], "has no charts"),
        (["--config", "ktn:tiny", "--sampler", "uv_confidence"], "predicts no confidences"),
    ],
)
def test_mistakes_are_named(photos, tmp_path, capsys, arguments, text):
    results = tmp_path / "results.json"
    _write_results(results, ["a.png"])
    given = {"--images": photos, "--output": tmp_path / "out.json"}
    named = [argument.format(results=results) for argument in arguments]
    given = [x for key, value in given.items() if key not in named for x in (key, value)]
    assert _run(*named, *given) == 1
    assert text.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
