"""The history of benchmarks, of benchmarks that only pretend."""

import json

import pytest
import track

REPORT = """
import json, pathlib, sys
assert sys.argv[1:3] == ["--repeats", "1"]
rows = [{"name": "ours", "median_s": 0.5}, {"name": "PyTorch", "median_s": 1.0}]
values = {"time_ratio": 0.5, "times_as_fast": 2, "peer": "PyTorch 2", "ratio of": "none"}
sections = [{"title": "tiny", "rows": rows, **values}]
pathlib.Path(sys.argv[4]).write_text(json.dumps({"sections": sections}))
"""


@pytest.fixture
def benches(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text(REPORT)
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "silent.py").write_text("")
    names = {"good": ("good.py", "--repeats", "1"), "bad": ("bad.py",), "silent": ("silent.py",)}
    monkeypatch.setattr(track, "BENCHES", names)
    monkeypatch.setattr(track, "FOLDER", tmp_path)
    return tmp_path / "history.jsonl"


def test_every_run_is_a_line_with_its_ratios(benches, capsys):
    arguments = [f"--history={benches}"]
    assert track.main([*arguments, "--only", "good"]) == 0
    assert track.main(arguments) == 1  # what fails is named, and the rest is there
    first, second = (json.loads(line) for line in benches.read_text().splitlines())
    assert first["ratios"] == {"good": {"tiny: time_ratio": 0.5, "tiny: times_as_fast": 2}}
    assert first["seconds"] == {"good": {"tiny: ours": 0.5, "tiny: PyTorch": 1.0}}
    assert first["failed"] == [] and second["failed"] == ["bad", "silent"]
    assert second["ratios"] == first["ratios"]
    assert first["commit"] and "cores" in first["machine"]
    assert benches.with_suffix(".png").stat().st_size > 1000
    assert "2 lines; failed: bad, silent" in capsys.readouterr().out
    benches.with_suffix(".png").unlink()
    assert track.main([*arguments, "--draw-only"]) == 0
    assert benches.with_suffix(".png").is_file() and len(benches.read_text().splitlines()) == 2


def test_a_damaged_line_is_named_before_anything_runs(benches):
    benches.write_text('{"ratios": {}}\n{"rat')
    with pytest.raises(ValueError, match=r"history\.jsonl: line 2 is damaged"):
        track.main([f"--history={benches}"])


def test_the_benchmarks_are_there_and_take_their_arguments():
    for script, *arguments in track.BENCHES.values():
        text = (track.FOLDER / script).read_text() + (track.FOLDER / "common.py").read_text()
        for option in arguments:
            assert not option.startswith("--") or f'"{option}"' in text, f"{script} {option}"
