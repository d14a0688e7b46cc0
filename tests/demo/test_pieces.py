"""The demo's pieces by themselves; tests/e2e runs all of it."""

import dataclasses
import json

import numpy as np
import pytest

from ktn_jax.data_pipelines.loading import configured
from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED
from ktn_jax.data_pipelines.synthetic.scene import EASY, FRONTAL, HARD
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.demo import pictures, run
from ktn_jax.results import maps, records


@pytest.fixture(scope="module")
def people():
    scene = dataclasses.replace(EASY, image_size_hw=(96, 96), people_range=(2, 2))
    return SyntheticSource(4, 5, scene)


def test_truth_as_people_covers_the_truth_exactly(people):
    truth = people.picture(0).truth
    found = pictures.true_people(truth)
    iuv, _ = maps.paste_iuv(found, truth.patch.shape)
    np.testing.assert_array_equal(iuv[..., 0], truth.patch)
    on_body = truth.patch > 0
    assert on_body.sum() > 300
    assert np.abs(iuv[on_body, 1] / 255 - truth.u[on_body]).max() <= 0.5 / 255 + 1e-6
    assert np.abs(iuv[on_body, 2] / 255 - truth.v[on_body]).max() <= 0.5 / 255 + 1e-6


def test_a_perfect_result_is_drawn_as_the_truth(people, tmp_path):
    truth = people.picture(1).truth
    path = tmp_path / "results.json"
    records.write_results(path, records.people_to_records(2, pictures.true_people(truth)))
    (row,) = pictures.test_pictures(people, path, [1])
    width = (row.shape[1] - 5 * (gap := max(2, (96 * 3) // 60))) // 6
    columns = [row[:, i * (width + gap) : i * (width + gap) + width] for i in range(6)]
    bar = row.shape[0] - 96 * 3  # titles above
    np.testing.assert_array_equal(columns[4][bar:], columns[5][bar:])
    assert (columns[4][bar:] > 0).any()
    assert (columns[0][bar:] != columns[2][bar:]).any()


def test_training_and_test_people_are_not_the_same():
    training, test = (SyntheticSource(1, seed) for seed in (0, HELD_OUT_SEED))
    assert (training.picture(0).image != test.picture(0).image).mean() > 0.5


def test_the_configuration_trains_on_the_folder_that_was_rendered(tmp_path):
    request = run.DemoRequest(tmp_path, "configs/ktn.py:demo", steps=7, seed=3)
    config = run.make_config(request, lambda text: None)
    assert config.total_steps == 7 and config.seed == config.data.synthetic.seed == 3
    assert config.data.annotations == (str(tmp_path / "people" / "annotations.json"),)


def test_pictures_of_charts_are_made_of_vertices_by_the_template(tmp_path):
    request = run.DemoRequest(tmp_path)
    for predictor, count in (("embedding", 2), ("ktn", 0)):
        commands = run._commands(request, "cse:demo", predictor).values()
        predicted = [command for command in commands if command.startswith("ktn predict")]
        assert sum(f"--template {tmp_path / 'template'}" in one for one in predicted) == count


def test_on_a_cpu_the_small_model_is_chosen_and_said(tmp_path):
    said = []
    config = run.make_config(run.DemoRequest(tmp_path), said.append)
    assert config.name == "ktn_demo"
    assert "ktn:demo," in said[0] and "CPU" in said[0]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        run.run_demo(run.DemoRequest(tmp_path), lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_settings_name_both(tmp_path):
    record = {"settings": {"seed": 9}, "seconds": {}, "cpu_seconds": {}, "scores": None}
    (tmp_path / run.RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"\{'seed': 9\}.*'seed': 0"):
        run.run_demo(run.DemoRequest(tmp_path), lambda text: None)


def test_presets_make_scenes(tmp_path):
    config = run.make_config(run.DemoRequest(tmp_path, "configs/ktn.py:demo"), lambda text: None)
    assert configured.make_scene(config.data.synthetic).facing_degrees == FRONTAL.facing_degrees
    with config.unlocked():
        config.data.synthetic.preset = "hard"
    scene = configured.make_scene(config.data.synthetic)
    assert scene.stature_range == HARD.stature_range
    assert scene.image_size_hw == config.data.synthetic.image_size_hw
    config.data.synthetic.preset = "harder"
    with pytest.raises(ValueError, match="'harder'"):
        configured.make_scene(config.data.synthetic)


def test_commands_break_between_options():
    text = run._in_lines(["ktn", "predict", "a photo.jpg", "--config", "ktn:demo", "--output", "o"])
    assert text == "ktn predict 'a photo.jpg' \\\n    --config ktn:demo \\\n    --output o"
