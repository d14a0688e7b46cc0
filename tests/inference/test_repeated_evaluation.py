"""Scores of one configuration's weights, again and again with the same programs."""

import json
import types

import numpy as np
import pytest

from ktn_jax.inference import repeated_evaluation
from ktn_jax.inference.repeated_evaluation import RepeatedEvaluation
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.configuration import load_config


class _Predictor:
    """Finds one person on each photo, where its weights say."""

    made = 0

    def __init__(self, stages):
        self.stages, self.config = stages, stages.config
        type(self).made += 1

    def __call__(self, photos):
        left = 5 + self.stages.variables["shift"]
        box = np.float32([left, 5, left + 20, 35])
        return [[PersonResult(box, 0.9, np.full((3, 30, 20), 2, np.uint8))] for _ in photos]


def _stages(config, variables, programs):
    del programs
    stages = types.SimpleNamespace(config=config, variables=variables)
    stages.replace_variables = lambda new: setattr(stages, "variables", new)
    return stages


@pytest.fixture
def pretend(monkeypatch):
    """Puts people that are found without a network in the place of the model."""
    monkeypatch.setattr(_Predictor, "made", 0)
    monkeypatch.setattr(repeated_evaluation, "Stages", _stages)
    monkeypatch.setattr(repeated_evaluation, "Predictor", _Predictor)


def _config(dataset, template_dir, **changes):
    files = {
        "annotations": str(dataset / "annotations.json"),
        "images": str(dataset / "images"),
        "template": str(template_dir),
    }
    return load_config(
        "configs/ktn.py:tiny",
        [f"data.evaluation.{name}={value!r}" for name, value in (files | changes).items()],
    )


def test_other_weights_get_other_scores_from_one_predictor(dataset, template_dir, pretend):
    evaluate = RepeatedEvaluation(_config(dataset, template_dir), dataset / "out")
    first = evaluate({"shift": 0.0})
    assert first.keys() == {"box", "GPS", "GPSm"} and first["box"] == pytest.approx(100)
    assert evaluate({"shift": 15.0})["box"] == 0
    assert evaluate({"shift": 0.0}) == first
    assert _Predictor.made == 1
    assert (dataset / "out" / "metrics.json").is_file()


def test_the_first_images_stand_for_all(dataset, template_dir, pretend):
    """Nobody looks at the others, nor are people of theirs missed."""
    config = _config(dataset, template_dir, num_images=2)
    for number in (0, 1, 2, 3, 4):  # images by ascending id are those of descending number
        (dataset / "images" / f"{number}.png").unlink()
    assert RepeatedEvaluation(config, dataset / "out")({"shift": 0.0})["box"] == pytest.approx(100)


def test_the_best_metric_must_be_defined_by_the_annotations(dataset, template_dir):
    content = json.loads((dataset / "annotations.json").read_text())
    for person in content["annotations"]:
        for key in [key for key in person if key.startswith("dp_")]:
            del person[key]
    (dataset / "keypoints.json").write_text(json.dumps(content))
    config = _config(dataset, template_dir, annotations=str(dataset / "keypoints.json"))
    with pytest.raises(ValueError, match="0 of [0-9]+ people have surface points.*GPSm.*=box"):
        RepeatedEvaluation(config, dataset / "out")
    with config.unlocked():
        config.training.best_metric = "box"
    RepeatedEvaluation(config, dataset / "out")


@pytest.mark.parametrize("name", ["annotations", "images", "template"])
def test_what_is_missing_is_said_before_training(dataset, template_dir, name):
    config = _config(dataset, template_dir, **{name: ""})
    config.data.source = "densepose_coco"
    with pytest.raises(ValueError, match="needs data.evaluation.annotations, images and template"):
        RepeatedEvaluation(config, dataset / "out")
