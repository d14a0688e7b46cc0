"""Evaluating a predictor: again when its weights changed, resumed when told which run it is."""

import json

import numpy as np
import pytest

from ktn_jax.inference.model_evaluation import AnnotatedFiles, evaluate_model
from ktn_jax.results.records import PersonResult, read_results
from ktn_jax.runtime.configuration import load_config
from ktn_jax.runtime.processes import Processes

CONFIG = load_config("configs/ktn.py:tiny", ["test.batch_size=2"])
RUN = {"name": "run"}


class _Predictor:
    """Finds one person on each photo, moved sideways by what stands for its weights."""

    config = CONFIG

    def __init__(self, shift=0.0):
        self.shift, self.calls = shift, 0

    def __call__(self, photos):
        self.calls += len(photos)
        box = np.float32([5 + self.shift, 5, 25 + self.shift, 35])
        return [[PersonResult(box, 0.9, np.full((3, 30, 20), 2, np.uint8))] for _ in photos]


def test_changed_weights_are_evaluated_again(dataset, template_dir):
    files = AnnotatedFiles(str(dataset / "annotations.json"), str(dataset / "images"))
    predictor = _Predictor()
    before = evaluate_model(predictor, files, str(template_dir))  # read in the call
    assert before.summaries["bbox"]["AP"] == pytest.approx(100)
    data = files.read()
    predictor.shift = 15.0
    after = evaluate_model(predictor, data, template_dir)
    assert after.summaries["bbox"]["AP"] == 0
    # The same with a folder, which then holds the last results only.
    for shift, ap in ((0.0, 100), (15.0, 0)):
        predictor.shift = shift
        metrics = evaluate_model(predictor, data, template_dir, output_dir=dataset / "out")
        assert metrics.summaries["bbox"]["AP"] == pytest.approx(ap)
    assert {r["bbox"][0] for r in read_results(dataset / "out" / "results.json")} == {20}
    assert predictor.calls == 4 * len(data.truths[0].images)


def test_a_run_by_name_is_resumed(dataset, template_dir):
    data = AnnotatedFiles(dataset / "annotations.json", dataset / "images").read()
    predictor, folder = _Predictor(), dataset / "out"
    first = evaluate_model(predictor, data, template_dir, output_dir=folder, run=RUN)
    predictor.shift = 15.0
    again = evaluate_model(predictor, data, template_dir, output_dir=folder, run=RUN)
    assert predictor.calls == len(data.truths[0].images)
    assert again.to_json() == first.to_json()
    assert json.loads((folder / "metrics.json").read_text())["bbox"]["AP"] == pytest.approx(100)


def test_what_has_no_folder_cannot_be_resumed_or_shared(dataset, template_dir):
    data = AnnotatedFiles(dataset / "annotations.json", dataset / "images").read()
    for given in ({"run": RUN}, {"processes": Processes(0, 2)}):
        with pytest.raises(ValueError, match="needs an output_dir"):
            evaluate_model(_Predictor(), data, template_dir, **given)
