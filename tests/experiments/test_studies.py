"""Runs of a study resume and report; its statistics are those of the textbook."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import studies
import study_results


@pytest.fixture
def programs(monkeypatch):
    """Commands are Python programs, given as text, instead of `ktn`."""
    monkeypatch.setattr(studies, "_command", lambda words: [sys.executable, "-c", *words])


def _run(folder, **programs):
    return studies.Run(folder, {step: (text,) for step, text in programs.items()})


def _append(path, text):
    return f"open({str(path)!r}, 'a').write({text!r})"


@pytest.mark.parametrize("jobs", [1, 2])
def test_steps_run_in_order_and_once(tmp_path, programs, jobs):
    files = [tmp_path / name for name in ("one.txt", "two.txt", "three.txt")]
    runs = [
        _run(tmp_path / file.stem, train=_append(file, "a"), eval=_append(file, "b"))
        for file in files
    ]
    studies.run_all(runs, jobs)
    studies.run_all(runs, jobs)
    assert [file.read_text() for file in files] == ["ab"] * 3
    seconds, cpu_seconds = studies.cost_of(runs)
    assert seconds > 0 and 0 < cpu_seconds < 30


def test_other_arguments_are_refused(tmp_path, programs):
    studies.run_all([_run(tmp_path / "mid", train="1")])
    with pytest.raises(ValueError, match=r"train\.json is of `ktn 1`, wanted `ktn 2`"):
        studies.run_all([_run(tmp_path / "mid", train="2")])


def test_a_failed_run_is_named_with_its_log_after_the_others(tmp_path, programs):
    done = tmp_path / "done.txt"
    bad = _run(tmp_path / "bad", train="raise SystemExit('no such file')", eval="1")
    with pytest.raises(studies.RunError, match=r"bad/train\.log.*failed \(1\)\s+no such file"):
        studies.run_all([bad, _run(tmp_path / "good", train=_append(done, "x"))])
    assert done.read_text() == "x"
    assert not (tmp_path / "bad" / "eval.json").exists()
    # The same call tries it again, and adds to its cost.
    first = json.loads((tmp_path / "bad" / "train.json").read_bytes())
    with pytest.raises(studies.RunError):
        studies.run_all([bad])
    second = json.loads((tmp_path / "bad" / "train.json").read_bytes())
    assert second["seconds"] > first["seconds"] > 0 and not second["is_done"]


_STUDY = """
import pathlib, sys
sys.path.insert(0, {folder!r})
import studies
studies._command = lambda words: [sys.executable, "-c", *words]
output = pathlib.Path({output!r})
with studies.resumable(output):
    studies.run_all([studies.Run(output / "run", {{"train": ({program!r},)}})])
"""
# Saves at SIGTERM as `ktn train` does; told twice it would die without.
_SAVING = """
import pathlib, signal, sys, time
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(0.3)
    pathlib.Path({saved!r}).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path({ready!r}).touch()
time.sleep(60 if not pathlib.Path({saved!r}).exists() else 0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_lets_its_run_save_and_resumes(tmp_path, number):
    ready, saved, output = tmp_path / "ready", tmp_path / "saved", tmp_path / "study"
    study = _STUDY.format(
        folder=str(pathlib.Path(studies.__file__).parent),
        output=str(output),
        program=_SAVING.format(ready=str(ready), saved=str(saved)),
    )
    process = subprocess.Popen([sys.executable, "-c", study], stdout=subprocess.PIPE)
    end = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and b"the same command resumes" in printed
    assert saved.exists()
    assert not json.loads((output / "run" / "train.json").read_bytes())["is_done"]
    if number == signal.SIGTERM:
        subprocess.run([sys.executable, "-c", study], check=True, timeout=60)
        assert json.loads((output / "run" / "train.json").read_bytes())["is_done"]


def test_an_interval_of_the_mean_is_that_of_all_resamples():
    # Means of the 27 resamples of (0, 3, 6): 0 once, 1 three times, 2 six times, ...
    means = sorted((a + b + c) / 3 for a in (0, 3, 6) for b in (0, 3, 6) for c in (0, 3, 6))
    expected = np.quantile(means, [0.05, 0.95])
    np.testing.assert_allclose(study_results.bootstrap_interval([0, 3, 6]), expected)
    # Of many values it is that of the normal distribution.
    values = np.random.default_rng(0).normal(5, 2, 400)
    half = 1.645 * values.std() / 20
    low, high = study_results.bootstrap_interval(values)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.02)


def test_means_and_gains_are_written_with_their_spread():
    assert study_results.format_mean([10.0, 20.0]) == "15.0 ± 7.1"
    assert study_results.format_mean([None, 9.0]) == "9.0"
    assert study_results.format_mean([None]) == "–"
    gains = study_results.paired_gains([11.0, 24.0], [10.0, 20.0])
    assert gains == [1.0, 4.0]
    assert study_results.format_gain(gains) == "+2.5 [+1.2, +3.8]"
    assert study_results.format_gain([-1.0]) == "-1.0"


def test_a_table_has_one_number_of_columns():
    table = study_results.markdown_table(["model", "AP"], [["KTN", "1.0"]])
    assert table.splitlines() == ["| model | AP |", "| --- | --- |", "| KTN | 1.0 |"]
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        study_results.markdown_table(["model", "AP"], [["KTN"]])


def test_the_page_says_where_its_numbers_come_from(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/elsewhere/cascade.py", "--size", "smoke"])
    run = _run(tmp_path / "run", train="1")
    studies.run_all([run])
    study_results.draw_bars({"AP": {"KTN": [1.0, 2.0, None]}}, tmp_path / "bars.png")
    curves = {"AP": {"KTN": {30: [1.0, 2.0], 100: [3.0]}, "+ MID": {30: [2.0]}}}
    study_results.draw_curves(curves, tmp_path / "curves.png", "people")
    page = study_results.write_page(tmp_path, "A study", ["| a |"], [run]).read_text()
    assert page.startswith("# A study\n\n    python experiments/cascade.py --size smoke\n\n| a |\n")
    assert ": 1 run, " in page and "commit" in page and f"{os.cpu_count()} cores" in page
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("bars.png", "curves.png"))
