"""Runs every benchmark at a small size, and keeps a line of its figures, so that a change is seen.

    python experiments/bench/track.py                          # minutes; needs the extra `bench`
    python experiments/bench/track.py --only ops inference     # some of them
    python experiments/bench/track.py --draw-only              # the curves of what is there

Each run appends a line of JSON to the history: commit, date, machine, the ratios to PyTorch by
benchmark, section and name, and the median seconds of every row. Ratios compare across machines,
seconds do not. The picture beside it shows the ratios of all lines, one panel for each benchmark. A
benchmark that fails is named in its line and at the end, and the others run all the same.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import study_results
from studies import say

FOLDER = pathlib.Path(__file__).resolve().parent
# Script and arguments of each, which take seconds to few minutes.
BENCHES: Mapping[str, tuple[str, ...]] = {
    "ops": ("ops.py", "--repeats", "3"),
    "inference": ("inference.py", "--peer", "eager", "tuned", "openvino"),
    "train_step": ("train_step.py",),
    "train_step, compared": (
        *("train_step.py", "--compare", "--config", "configs/ktn.py:tiny", "--size", "128x128"),
    ),
    "startup": ("startup.py", "--repeats", "2"),
    "pipeline": ("pipeline.py", "--repeats", "2", "--steps", "4"),
    "video": ("video.py", "--repeats", "2", "--frames", "30"),
    "throughput": ("throughput.py", "--repeats", "2", "--photos", "24"),
    "export": ("export.py",),
    "serve": ("serve.py", "--seconds", "2", "--batch-sizes", "1"),
    "evaluation": (
        *("evaluation.py", "--images", "150", "--people", "500", "--vertices", "3000"),
        *("--repeats", "1"),
    ),
}
_RATIOS = ("ratio", "times_as_fast")  # in the name of a value that is one


def run_bench(name: str) -> list[dict[str, Any]] | None:
    """Runs a benchmark; the sections of its report, or None if it failed."""
    script, *arguments = BENCHES[name]
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "figures.json"
        command = [sys.executable, str(FOLDER / script), *arguments, "--output", str(output)]
        done = subprocess.run(command, cwd=FOLDER.parents[1])
        if done.returncode or not output.is_file():
            return None
        sections: list[dict[str, Any]] = json.loads(output.read_bytes())["sections"]
        return sections


def figures_of(sections: Iterable[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Ratios and median seconds of a report, by section and name."""
    ratios, seconds = {}, {}
    for section in sections:
        title = section["title"]
        for row in section["rows"]:
            seconds[f"{title}: {row['name']}"] = row["median_s"]
        for name, value in section.items():
            if isinstance(value, int | float) and any(word in name for word in _RATIOS):
                ratios[f"{title}: {name}"] = value
    return ratios, seconds


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a history; none if it is not there.

    Raises:
        ValueError: a line is damaged.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is damaged: remove it") from error
    return history


def measure(names: Iterable[str]) -> dict[str, Any]:
    """Runs benchmarks one after the other; returns the line of the history."""
    ratios, seconds, failed = {}, {}, []
    for name in names:
        say(name)
        sections = run_bench(name)
        if sections is None:
            failed.append(name)
            continue
        ratios[name], seconds[name] = figures_of(sections)
    return {
        "commit": study_results.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": study_results.machine(),
        "ratios": ratios,
        "seconds": seconds,
        "failed": failed,
    }


def draw(history: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws the ratios of all lines, if there are any."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for number, line in enumerate(history, start=1):
        for bench, ratios in line["ratios"].items():
            for name, value in ratios.items():
                panels.setdefault(bench, {}).setdefault(name, {})[number] = value
    if panels:
        study_results.draw_lines(panels, path, label="line of the history")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the arguments ask for; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(BENCHES), default=list(BENCHES))
    parser.add_argument("--history", type=pathlib.Path, default=pathlib.Path("bench.jsonl"))
    parser.add_argument("--draw-only", action="store_true", help="run nothing")
    arguments = parser.parse_args(argv)
    path = arguments.history
    history = read_history(path)  # an error before minutes of measuring
    failed = []
    if not arguments.draw_only:
        line = measure(arguments.only)
        failed = line["failed"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
        history.append(line)
    draw(history, path.with_suffix(".png"))
    say(f"{path}: {len(history)} lines" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
