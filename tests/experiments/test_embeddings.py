"""The study of experiments/embeddings.py: its models, its table, and a run of two steps."""

import embeddings
import pytest
from study_commands import FOUND

from ktn_jax.runtime.configuration import load_config


def test_charts_and_embeddings_differ_in_the_predictor_alone():
    charts, vertices = (
        load_config(*embeddings.MODELS[name]) for name in (embeddings.CHARTS, embeddings.EMBEDDINGS)
    )
    assert (charts.model.predictor.name, vertices.model.predictor.name) == ("chart", "embedding")
    with charts.unlocked():
        charts.model.predictor.name = "embedding"
    assert charts.to_dict() == vertices.to_dict()


def test_each_model_is_trained_on_its_seed_and_scored(tmp_path):
    for name, runs in embeddings.make_runs(embeddings.SIZES["small"], tmp_path).items():
        config, own = embeddings.MODELS[name]
        for seed, run in enumerate(runs):
            assert list(run.commands) == ["train", FOUND]
            for step, flag in (("train", "--workdir"), (FOUND, "--weights")):
                words = run.commands[step]
                assert words[words.index(flag) + 1] == str(run.folder / "training")
                changes = [b for a, b in zip(words, words[1:], strict=False) if a == "--set"]
                read = load_config(words[words.index("--config") + 1], changes)
                assert read.model == load_config(config, own).model and read.seed == seed
                assert read.data.images == (str(tmp_path / f"people_seed{seed}" / "images"),)
            words = run.commands[FOUND]
            assert words[words.index("--output") + 1] == str(run.folder / FOUND)
            assert words[words.index("--data") + 1] == str(tmp_path / f"test_seed{seed}")


def test_the_table_pairs_seeds():
    def of(*precisions):
        keys = ("AP", "AP50", "AP75")
        return [{"GPSm": dict.fromkeys(keys, precision)} for precision in precisions]

    scores = {"KTN": of(5.0, 7.0), "charts": of(10.0, 20.0), "embeddings": of(11.0, 24.0)}
    lines = embeddings.table(scores).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[-1][:2] == ["embeddings, over charts", "+2.5 [+1.2, +3.8]"]  # of 1 and 4
    assert cells[-2][:3] == ["embeddings", "17.5 ± 9.2", "–"]


@pytest.mark.extended
def test_a_run_of_two_steps_trains_scores_and_reports(tmp_path, monkeypatch):
    models = {name: embeddings.MODELS[name] for name in (embeddings.CHARTS, embeddings.EMBEDDINGS)}
    monkeypatch.setattr(embeddings, "MODELS", models)
    embeddings.main(["--size", "smoke", "--output", str(tmp_path)])
    text = (tmp_path / "results.md").read_text()
    assert "| embeddings |" in text and (tmp_path / embeddings.PICTURE).stat().st_size > 1000
