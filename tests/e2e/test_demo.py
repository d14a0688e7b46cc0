"""A shorter demo: people rendered, a model trained on them, scored, shown, and loaded."""

import html
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_CHANGES = (
    "optimizer.warmup_steps=20",
    "batch_size=3",
    # Half of the time is compilation: fewer layers of kinds that are there more than once.
    "model.backbone.num_blocks=(1, 1, 1, 1)",
    "model.densepose_head.num_convs=1",
)
_OPTIONS = [item for change in _CHANGES for item in ("--set", change)]
# A run that shows everything, and one that learns, which takes two minutes.
_SHORT = ("--steps", 40, "--test-images", 12, *_OPTIONS, "--set", "data.synthetic.num_images=90")
_LONG = ("--steps", 160, "--test-images", 24, *_OPTIONS, "--set", "data.synthetic.num_images=240")
# Of AP50, well below what the steps reach. Untrained weights score 0 in all of these.
_FLOORS = {"bbox": 40.0, "IOU": 15.0, "GPSm": 2.0}


@pytest.fixture(scope="module")
def ktn(quick_compiler):
    """Runs a command in a folder, on one device, as a user has."""

    def run(folder, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "ktn_jax", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"XLA_FLAGS": quick_compiler},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(ktn, folder):
    return ktn(folder, "demo", *_SHORT)


def _losses(folder):
    lines = (folder / "demo" / "training" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def learnt(ktn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    done = ktn(folder, "demo", *_LONG)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.extended
def test_a_demo_learns_to_find_people(learnt):
    scores = json.loads((learnt / "demo" / "demo.json").read_text())["scores"]
    for measure, floor in _FLOORS.items():
        assert scores[measure]["AP50"] > floor, scores[measure]
    losses = _losses(learnt)
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    assert losses[-1]["loss/fine_segm"] < 0.8 * losses[0]["loss/fine_segm"]


def test_losses_of_a_short_demo_fall(first, folder):
    assert first.returncode == 0, first.stderr[-3000:]
    losses = _losses(folder)
    assert losses[-1]["step"] == 40
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]
    assert losses[-1]["loss/fine_segm"] < losses[0]["loss/fine_segm"]


def test_the_page_holds_everything(first, folder):
    page = (folder / "demo" / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,', page)
    assert pictures.count("a test image") == 10
    assert "losses over the steps" in pictures
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must need no other file"
    assert str(pathlib.Path("demo") / "report.html") in first.stdout


def test_the_same_command_again_says_that_it_is_done(ktn, first, folder):
    again = ktn(folder, "demo", *_SHORT)
    assert again.returncode == 0
    assert "done already" in again.stdout
    assert "report.html" in again.stdout


@pytest.mark.extended
def test_other_settings_do_not_mix(ktn, first, folder):
    other = ktn(folder, "demo", *_SHORT, "--steps", 41)
    assert other.returncode == 1
    assert "other settings" in other.stderr


@pytest.mark.extended
def test_the_commands_on_the_page_load_the_weights(ktn, learnt):
    page = (learnt / "demo" / "report.html").read_text(encoding="utf-8")
    texts = [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    assert all(len(line) < 100 for text in texts for line in text.splitlines())
    own, predict, draw, score, _ = (shlex.split(text.replace("\\\n", "")) for text in texts)
    assert own[:3] == ["ktn", "predict", "photo.jpg"]
    assert predict[:2] == ["ktn", "predict"] and score[:2] == ["ktn", "eval"]
    done = ktn(learnt, *score[1:])
    assert done.returncode == 0, done.stderr[-2000:]
    stored = json.loads((learnt / "demo" / "demo.json").read_text())["scores"]
    scored = json.loads((learnt / "demo" / "scored" / "metrics.json").read_text())
    for measure in ("bbox", "GPS", "GPSm"):
        assert scored[measure] == stored[measure]
    predict[2] = "demo/test_people/images/000000000001.jpg"
    done = ktn(learnt, *predict[1:])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (learnt / "demo" / "predicted" / "000000000001_iuv.png").is_file()
    done = ktn(learnt, *draw[1:])
    assert done.returncode == 0, done.stderr[-2000:]
    assert (learnt / "demo" / "drawn" / "000000000001_contour+bbox.png").is_file()
