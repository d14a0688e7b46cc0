"""A sweep: what its grid means, and that its runs share a program."""

import json
import pathlib

import jax
import pytest
import studies
import sweep


def test_a_grid_is_every_combination():
    grid = sweep.parse_grid(["optimizer.decay_steps=(2,3),(4,)", "loss.point_weight=0.1, 0.2"])
    assert grid == {
        "optimizer.decay_steps": ["(2,3)", "(4,)"],
        "loss.point_weight": ["0.1", "0.2"],
    }
    found = sweep.combinations(grid)
    assert len(found) == 4
    assert found["decay_steps=(4,),point_weight=0.2"] == (
        "optimizer.decay_steps=(4,)",
        "loss.point_weight=0.2",
    )
    same = sweep.combinations({"loss.embedding.weight": ["1"], "loss.shape_cycle.weight": ["2"]})
    assert list(same) == ["loss.embedding.weight=1,loss.shape_cycle.weight=2"]


@pytest.mark.parametrize("text", ["seed", "=1", "seed=", "seed=1,,2", "seed=1,1"])
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(ValueError, match="--grid"):
        sweep.parse_grid([text])


def test_a_mistake_ends_it_before_anything_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep.main(
            ["--config=ktn:tiny", "--grid=loss.point_wait=1,2", f"--output={tmp_path / 'out'}"]
        )
    assert "no key 'loss.point_wait'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_ends_it_and_is_not_done(tmp_path, monkeypatch):
    codes = iter([0, 3])
    monkeypatch.setattr(studies.cli, "main", lambda words: next(codes))
    runs = [studies.Run(tmp_path / name, {"train": (name,)}) for name in ("a", "b")]
    with pytest.raises(studies.RunError, match=r"b: train failed \(3\)"):
        studies.run_here(runs)
    done = [json.loads((run.folder / "train.json").read_bytes())["is_done"] for run in runs]
    assert done == [True, False]
    monkeypatch.setattr(studies.cli, "main", lambda words: studies.EXIT_INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        studies.run_here(runs)


@pytest.mark.extended  # tests/training/test_arguments.py compares programs
def test_runs_of_other_numbers_share_a_program(tmp_path, capsys):
    output, cache = tmp_path / "out", pathlib.Path(jax.config.jax_compilation_cache_dir)
    arguments = ["--config=ktn:tiny", f"--output={output}", "--set=training.num_devices=1"]
    arguments += ["--set=total_steps=2", "--set=training.log_every=1", "--set=batch_size=1"]
    arguments += ["--grid=optimizer.learning_rate=0.001,0.1"]
    before = set(cache.glob("jit_train_step-*-cache"))
    sweep.main(arguments)
    compiled = set(cache.glob("jit_train_step-*-cache")) - before
    curves = [
        sweep.read_curves(output / f"learning_rate={rate}" / "training")["loss"]
        for rate in ("0.001", "0.1")
    ]
    assert len(compiled) == 1  # synthetic images are of one size
    assert curves[0][1] == curves[1][1] and curves[0][2] != curves[1][2]
    page = (output / "results.md").read_text()
    assert "| learning_rate=0.1 |" in page and f"{curves[1][2]:.4g}" in page
    assert (output / "curves.png").stat().st_size > 1000
    capsys.readouterr()
    sweep.main(arguments)  # all is done: only the page is written
    assert "train" not in capsys.readouterr().out
