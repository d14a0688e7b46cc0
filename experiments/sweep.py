"""Trains a configuration with every combination of some values, in one process.

    python experiments/sweep.py --config ktn:r50 --weights K --output sweep \\
        --grid optimizer.learning_rate=0.005,0.01,0.02 --grid loss.point_weight=0.01,0.05
    python experiments/sweep.py --config ktn:tiny --set total_steps=4 \\
        --grid "optimizer.decay_steps=(2,),(3,)"

A training step is compiled once for all runs that differ in rates, decays, weights of losses and
other numbers only (docs/training.md); those of other shapes are compiled anew. Each run has a
folder of its own, `training` in it as `ktn train` writes it. The same command resumes a stopped
sweep. `results.md` has the last losses and scores of all runs, `curves.png` their losses.
"""

import argparse
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import studies
import study_commands
import study_results
from studies import Run

from ktn_jax.checkpoints import named

PICTURE = "curves.png"
_COMMA = re.compile(r",(?![^()\[\]]*[)\]])")  # outside of brackets
_UNSAFE = re.compile(r"[^\w.,=()\[\]+-]")  # in a folder's name


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Reads `key=value,value` of each axis.

    Args:
        texts: values are separated by commas outside of brackets.

    Returns:
        Values by key, in order.

    Raises:
        ValueError: no key, no value, or a key or value twice.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, separator, rest = text.partition("=")
        values = [value.strip() for value in _COMMA.split(rest)]
        if not separator or not key or not all(values):
            raise ValueError(f"--grid {text!r} must be KEY=VALUE,VALUE")
        if key in grid or len(set(values)) < len(values):
            raise ValueError(f"--grid {text!r}: a key or a value is there twice")
        grid[key] = values
    return grid


def combinations(grid: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Changes of a configuration for every combination, by the name of the run.

    Names have the last word of each key, or the whole key where two have the same.
    """
    words = [key.rpartition(".")[2] for key in grid]
    shown = words if len(set(words)) == len(words) else list(grid)
    return {
        ",".join(f"{name}={value}" for name, value in zip(shown, values, strict=True)): tuple(
            f"{key}={value}" for key, value in zip(grid, values, strict=True)
        )
        for values in itertools.product(*grid.values())
    }


def make_runs(arguments: argparse.Namespace) -> dict[str, Run]:
    """The runs of a sweep by name.

    Raises:
        ValueError: a configuration that does not fit; nothing was trained then.
    """
    runs = {}
    for name, own in combinations(parse_grid(arguments.grid)).items():
        changes = (*arguments.changes, *own)
        named.load_config(arguments.config, changes)
        folder = arguments.output / _UNSAFE.sub("_", name)
        words = study_commands.train_words(
            arguments.config, changes, folder / "training", arguments.weights
        )
        runs[name] = Run(folder, {"train": words})
    return runs


def read_curves(workdir: pathlib.Path) -> dict[str, dict[int, float]]:
    """What a training reported: values by name and step."""
    curves: dict[str, dict[int, float]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values: dict[str, Any] = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, {})[step] = value
    return curves


def report(output: pathlib.Path, runs: Mapping[str, Run]) -> pathlib.Path:
    """Writes the page of a sweep; returns its path."""
    curves = {name: read_curves(run.folder / "training") for name, run in runs.items()}
    columns = sorted(
        {name for found in curves.values() for name in found if name.startswith(("loss", "eval/"))}
    )
    rows = [
        (name, *(_last(found.get(column)) for column in columns)) for name, found in curves.items()
    ]
    panels = {
        column.removeprefix("eval/"): {
            name: found.get(column, {}) for name, found in curves.items()
        }
        for column in columns
        if column == "loss" or column.startswith("eval/")
    }
    study_results.draw_lines(panels, output / PICTURE, label="step")
    blocks = [
        study_results.markdown_table(("run", *columns), rows),
        "Losses are means over the last lines of `metrics.jsonl`.",
        f"![Losses and scores of all runs]({PICTURE})",
    ]
    return study_results.write_page(output, "Sweep", blocks, list(runs.values()))


def _last(curve: Mapping[int, float] | None) -> str:
    return f"{curve[max(curve)]:.4g}" if curve else "–"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--grid", action="append", required=True, metavar="KEY=VALUE,VALUE")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--weights", type=pathlib.Path, help="what all runs start from")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("sweep"))
    arguments = parser.parse_args(argv)
    try:
        runs = make_runs(arguments)
    except ValueError as error:
        parser.error(str(error))
    with studies.resumable(arguments.output):
        studies.run_here(list(runs.values()))
        report(arguments.output, runs)


if __name__ == "__main__":
    main()
