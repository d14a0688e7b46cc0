"""Annotation files of people that a model found: made, resumed, checked and trained on."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.data_pipelines.coco import annotations, checks
from ktn_jax.data_pipelines.loading import pipeline
from ktn_jax.data_pipelines.loading.plan import Augmentation
from ktn_jax.data_pipelines.loading.sources import FolderSource
from ktn_jax.inference import bootstrapped_files, frame_files, video_inputs
from ktn_jax.inference.bootstrapping import BootstrapSettings
from ktn_jax.results import records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.configuration import load_config
from ktn_jax.runtime.video_frames import Selection

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
        numbers = [int(photo[20, 40, 0]) // 10 for photo in batch]
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


def test_frames_of_a_video_become_photos(tmp_path, write_clip, monkeypatch):
    write_clip(tmp_path / "clip.mp4", 7)
    (tmp_path / "photos").mkdir()
    (tmp_path / "whole").mkdir()
    (video,) = video_inputs.find_videos([str(tmp_path / "clip.mp4")])
    odd = Selection(every=2, start=Fraction(1, 25))

    def label(output, predictor, selection=odd, folder="photos"):
        target = tmp_path / output
        return bootstrapped_files.bootstrap_video(
            predictor, video, selection, tmp_path / folder, target, SETTINGS, {"run": "a"}
        )

    write, written = frame_files.write_jpeg, []

    def write_one(path, pixels):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(frame_files, "write_jpeg", write_one)
        label("a.json", _Predictor())
    time = (tmp_path / "photos" / "clip" / written[0]).stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        label("a.json", _Predictor(fails_at=1))
    with pytest.raises(ValueError, match="another video or other frames"):
        label("a.json", _Predictor(), Selection())
    with pytest.raises(ValueError, match=r"photos/clip exists .* give another --images"):
        label("b.json", _Predictor())
    with pytest.raises(ValueError, match=r"clip.mp4: there is no frame to label"):
        label("c.json", _Predictor(), Selection(start=Fraction(9)), "whole")
    (tmp_path / "whole" / "clip").rmdir()
    predictor = _Predictor()
    summary = label("a.json", predictor)
    assert predictor.calls == 2 and (summary.images, summary.people, summary.failures) == (3, 3, [])
    frames = sorted((tmp_path / "photos" / "clip").iterdir())
    assert [path.name for path in frames] == ["000001.jpg", "000003.jpg", "000005.jpg"]
    assert frames[0].stat().st_mtime_ns == time
    assert checks.check_file(tmp_path / "a.json", tmp_path / "photos").ok
    content = json.loads((tmp_path / "a.json").read_bytes())
    named = {image["id"]: image["file_name"] for image in content["images"]}
    assert named == {number: f"clip/{number:06d}.jpg" for number in (1, 3, 5)}
    patches = {one["image_id"]: one["dp_I"][0] for one in content["annotations"] if "dp_I" in one}
    assert patches == {1: 1, 3: 2, 5: 3}  # of the grey of the frames
    label("whole.json", _Predictor(), folder="whole")
    assert (tmp_path / "whole.json").read_bytes() == (tmp_path / "a.json").read_bytes()


def test_a_video_that_breaks_off_is_labelled_so_far(tmp_path, write_clip):
    path = tmp_path / "clip.mp4"
    write_clip(path, g="10", container_options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (video,) = video_inputs.find_videos([str(path)])
    summary = bootstrapped_files.bootstrap_video(
        _Predictor(), video, Selection(), tmp_path, tmp_path / "a.json", SETTINGS, {}
    )
    (failure,) = summary.failures
    assert failure.startswith(f"{path}: ends after {summary.images} of the 40 frames")
    assert checks.check_file(tmp_path / "a.json", tmp_path).ok


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
        (["--every", "2"], "--every chooses frames of a video"),
        (["--video", "gone.mp4"], "must be a video file"),
        (["--video", "rtsp://host/a"], "must be a video file"),
        (["--video", "{results}", "--every", "0"], "every must be at least 1"),
        (["--results", "{results}", "--video", "{results}"], "--video needs a model"),
        (["--config", "ktn:tiny", "--random-weights", "--video", "{results}"], "results.json"),
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
