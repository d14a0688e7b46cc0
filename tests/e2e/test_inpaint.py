"""A teacher from its training to a detector that learns from what it filled in."""

import json

import jax
import numpy as np
import pytest

from ktn_jax import cli
from ktn_jax.checkpoints import weights
from ktn_jax.runtime.configuration import load_config

pytestmark = [pytest.mark.slow, pytest.mark.extended]


def test_a_teachers_labels_train_a_detector(tmp_path, capsys):
    pytest.importorskip("torch", reason="PyTorch writes .pth")
    small = ["--set=total_steps=2", "--set=training.log_every=1", "--quiet"]
    teacher = ["--config=teacher:tiny", "--set=data.synthetic.num_images=4"]
    assert cli.main(["train", *teacher, *small, f"--workdir={tmp_path / 'teacher'}"]) == 0
    people = tmp_path / "people"
    synth = ["--images=3", "--seed=1", "--scene=easy", "--size", "128", "128", "--quiet"]
    assert cli.main(["data", "synth", f"--output={people}", *synth]) == 0
    # A training's checkpoint survives other formats, and labels from any.
    for source, target in (("teacher", "a.safetensors"), ("a.safetensors", "b.pth")):
        assert cli.main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 0
    config = load_config("teacher:tiny")
    trained, read = (weights.load(config, tmp_path / name) for name in ("teacher", "b.pth"))
    jax.tree.map(np.testing.assert_array_equal, trained, read)
    filled = tmp_path / "filled.json"
    inpaint = [
        *("data", "inpaint", *teacher, f"--weights={tmp_path / 'b.pth'}", "--points=60"),
        *(f"--annotations={people / 'annotations.json'}", f"--images={people / 'images'}"),
        *(f"--output={filled}", "--quiet"),
    ]
    assert cli.main(inpaint) == 0
    assert "people labelled" in capsys.readouterr().out
    assert cli.main(inpaint) == 1
    assert "exists: give another --output" in capsys.readouterr().err
    assert cli.main(["data", "check", str(filled), f"--images={people / 'images'}"]) == 0
    shown = [f"--images={people / 'images'}", f"--output={tmp_path / 'shown'}", "--count=1"]
    assert cli.main(["data", "show", str(filled), *shown]) == 0
    people_data = [
        "--set=data.source=densepose_coco",
        f"--set=data.annotations=('{filled}',)",
        f"--set=data.images=('{people / 'images'}',)",
    ]
    student = ["train", "--config=ktn:tiny", *people_data, *small]
    dense = ["--set=data.dense_points=50", "--set=loss.dense_weight=0.5"]
    assert cli.main([*student, *dense, f"--workdir={tmp_path / 'student'}"]) == 0
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    # A teacher has no boxes to score.
    scored = [*teacher, *small, "--set=training.evaluate_every=1"]
    assert cli.main(["train", *scored, f"--workdir={tmp_path / 'other'}"]) == 1
    assert "training.evaluate_every" in capsys.readouterr().err
