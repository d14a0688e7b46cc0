"""The study of experiments/cascade.py: its models, its table, and a run of two steps."""

import cascade
import pytest
import study_results

from ktn_jax.runtime.configuration import load_config


def _scores(precision, keypoints=None):
    surface = dict.fromkeys(("AP", "AP50", "AP75"), precision)
    in_boxes = None if precision is None else 2 * precision
    scores = {"GPSm": surface, "GPSm in true boxes": {"AP": in_boxes}, "GPS": {"AP": 1.0}}
    if keypoints is not None:
        scores["keypoints"] = {"AP": keypoints}
    return scores


def _cells(table, name):
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_models_have_the_tasks_and_stages_that_they_are_named_after():
    for name, changes in (cascade.MODELS | cascade.DESIGNS).items():
        model = load_config(cascade.CONFIG, changes).model
        assert model.cascade.num_stages == 1 + name.startswith("cascade"), name
        for task in ("keypoints", "masks"):
            assert (task in model.tasks) == (task in name), name
        assert "densepose" in model.tasks


def test_the_table_pairs_seeds_and_leaves_out_what_a_model_lacks():
    scores = {
        "DensePose": [_scores(10.0), _scores(20.0)],
        "+ keypoints": [_scores(11.0, 40.0), _scores(24.0, 50.0)],
        "cascade with keypoints": [_scores(12.0, 41.0), _scores(23.0, 51.0)],
    }
    text = study_results.score_table(scores, cascade.COLUMNS)
    assert _cells(text, "DensePose")[:2] == ["15.0 ± 7.1", "30.0 ± 14.1"]
    assert _cells(text, "DensePose")[-1] == "–"
    assert _cells(text, "+ keypoints")[-1] == "45.0 ± 7.1"
    gains = cascade.gain_table(scores)
    # Of 1 and 4.
    in_boxes = ["+5.0 [+2.4, +7.5]", "2 of 2"]
    assert _cells(gains, "+ keypoints, over DensePose") == [
        "+2.5 [+1.2, +3.8]",
        "2 of 2",
        *in_boxes,
    ]
    after = _cells(gains, "cascade with keypoints, over + keypoints")
    assert after[1::2] == ["1 of 2", "1 of 2"] and after[0].startswith("+0.0 ")
    assert "| cascade with keypoints, over DensePose |" in gains
    design, _ = cascade.DESIGNS
    with_design = cascade.gain_table(scores | {design: [_scores(14.0), _scores(26.0)]})
    assert _cells(with_design, f"{design}, over + keypoints")[0].startswith("+2.5 ")
    assert len(with_design.splitlines()) == len(gains.splitlines()) + 1
    # Nobody to find in the second seed, nor in any.
    scores["+ keypoints"][1] = _scores(None, 50.0)
    assert _cells(cascade.gain_table(scores), "+ keypoints, over DensePose")[:2] == [
        "+1.0",
        "1 of 1",
    ]
    nobody = dict.fromkeys(scores, [_scores(None)])
    cells = _cells(cascade.gain_table(nobody), "+ keypoints, over DensePose")
    assert cells == ["–", "0 of 0"] * 2


@pytest.mark.extended
def test_a_run_of_two_steps_trains_scores_and_reports(tmp_path, monkeypatch):
    name = "cascade with keypoints"
    monkeypatch.setattr(cascade, "MODELS", {name: cascade.MODELS[name]})
    monkeypatch.setattr(cascade, "DESIGNS", {})
    cascade.main(["--size", "smoke", "--output", str(tmp_path)])
    text = (tmp_path / "results.md").read_text()
    assert f"| {name} |" in text and (tmp_path / cascade.PICTURE).stat().st_size > 1000
    scores = cascade.studies.read_scores(tmp_path / "model0_seed0" / cascade.FOUND)
    assert {"GPSm", "GPS", "bbox", "segm", "keypoints"} <= scores.keys()
