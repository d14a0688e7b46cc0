"""The table of experiments/ablation.py says what the scores of its runs say."""

import importlib.util
import pathlib
import re

import pytest

_FILE = pathlib.Path(__file__).parents[2] / "experiments" / "ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", _FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(precision):
    return {"GPSm": dict.fromkeys(("AP", "AP50", "AP75", "AP_M"), precision) | {"AP_L": None}}


def _cells(table, name):
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_means_and_spreads_are_those_of_the_seeds(ablation):
    scores = {"base": [_run(10.0), _run(20.0)], "more": [_run(11.0), _run(24.0)]}
    table = ablation.table(scores, "GPSm")
    assert _cells(table, "base") == ["15.0 ± 7.1"] * 4 + ["–", ""]
    # Seed by seed 1 and 4 more: the spread of the gain is not that of the scores.
    assert _cells(table, "more") == ["17.5 ± 9.2"] * 4 + ["–", "2.5 ± 2.1"]


def test_one_seed_has_no_spread(ablation):
    table = ablation.table({"base": [_run(10.0)], "more": [_run(9.0)]}, "GPSm")
    assert _cells(table, "more")[0] == "9.0"
    assert _cells(table, "more")[-1] == "-1.0"
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_models_differ_from_ktn_in_what_they_are_named_after(ablation):
    from ktn_jax.runtime.configuration import load_config

    decoders, predictors = {}, {}
    for name, changes in ablation.MODELS.items():
        config = load_config("configs/ktn.py:demo", changes)
        decoders[name] = config.model.decoder.name
        predictors[name] = config.model.predictor.name
    assert [name for name, kind in decoders.items() if kind != "none"] == [
        name for name in ablation.MODELS if re.search("MID", name)
    ]
    assert [name for name, kind in predictors.items() if kind != "chart"] == [
        name for name in ablation.MODELS if re.search("KTM", name)
    ]
