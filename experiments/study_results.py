"""Statistics, tables, pictures and the page of a study."""

import datetime
import itertools
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from studies import Run, cost_of, say

from ktn_jax.runtime import atomic_files

Scores = Mapping[str, Sequence[Mapping[str, Any]]]  # by model, `read_scores` of each seed
Columns = Sequence[tuple[str, str]]  # measure and name, such as ("GPSm", "AP")

_MOST_RESAMPLED = 5  # values of which all resamples are made; of more a random part
_NUM_RESAMPLES = 10_000


def paired_gains(values: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """What each seed gains over the base model of the same seed, of seeds where both have one."""
    pairs = zip(values, base, strict=True)
    return [value - other for value, other in pairs if value is not None and other is not None]


def bootstrap_interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float]:
    """Interval of the mean by the percentile bootstrap over the values (Efron, 1979).

    Of few values all resamples are made, so that the interval of three is no matter of chance; it
    lies between the smallest and the largest.
    """
    array = np.asarray(values, np.float64)
    if len(array) <= _MOST_RESAMPLED:
        chosen = np.array(list(itertools.product(range(len(array)), repeat=len(array))))
    else:
        rng = np.random.default_rng(0)
        chosen = rng.integers(len(array), size=(_NUM_RESAMPLES, len(array)))
    tail = (1 - level) / 2
    low, high = np.quantile(array[chosen].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def format_mean(values: Iterable[float | None], digits: int = 1) -> str:
    """Mean ± standard deviation over the seeds; a dash where no seed has a value."""
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    spread = f" ± {statistics.stdev(present):.{digits}f}" if len(present) > 1 else ""
    return f"{statistics.mean(present):.{digits}f}{spread}"


def format_gain(gains: Sequence[float], digits: int = 1) -> str:
    """Mean of paired gains with its 90 % bootstrap interval; a dash where there are none."""
    if not gains:
        return "–"
    mean = f"{statistics.mean(gains):+.{digits}f}"
    if len(gains) == 1:
        return mean
    low, high = bootstrap_interval(gains)
    return f"{mean} [{low:+.{digits}f}, {high:+.{digits}f}]"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Raises:
        ValueError: a row has another number of cells.
    """
    lines = [heads, ["---"] * len(heads), *rows]
    for line in lines:
        if len(line) != len(heads):
            raise ValueError(f"a row of {len(line)} cells for {len(heads)} columns: {line}")
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def score_of_seeds(runs: Sequence[Mapping[str, Any]], measure: str, name: str) -> list[Any]:
    """A score of every seed; None where a run does not have it."""
    return [run.get(measure, {}).get(name) for run in runs]


def score_table(scores: Scores, columns: Columns, more: Iterable[Sequence[str]] = ()) -> str:
    """Markdown: a row for each model with the means of its scores, and `more` rows below."""
    heads = ("model", *(f"{measure} {name}" for measure, name in columns))
    rows = [
        (model, *(format_mean(score_of_seeds(runs, *column)) for column in columns))
        for model, runs in scores.items()
    ]
    return markdown_table(heads, [*rows, *more])


def draw_scores(scores: Scores, columns: Columns, path: pathlib.Path) -> None:
    """Draws the bars of some scores, see `draw_bars`."""
    panels = {
        f"{measure} {name}": {
            model: score_of_seeds(runs, measure, name) for model, runs in scores.items()
        }
        for measure, name in columns
    }
    draw_bars(panels, path)


def draw_bars(
    panels: Mapping[str, Mapping[str, Sequence[float | None]]], path: pathlib.Path
) -> None:
    """Draws a bar of the mean for each model, and a dot for each seed.

    Args:
        panels: by title, the values of the seeds by model; None, which a run does not have, is
            drawn as 0.
        path: file to write.
    """
    figure, axes_of = _figure(list(panels), width=3.0)
    for title, models in panels.items():
        axes = axes_of[title]
        for place, given in enumerate(models.values()):
            values = [value or 0.0 for value in given]
            axes.bar(place, statistics.mean(values), color=f"C{place}", alpha=0.5)
            axes.plot([place] * len(values), values, ".", color="black")
        axes.set(title=title)
        axes.set_xticks(range(len(models)), list(models), rotation=60, ha="right", fontsize="small")
    figure.savefig(path, dpi=110)


def draw_curves(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    path: pathlib.Path,
    label: str,
) -> None:
    """Draws a line through the means of each model, and a dot for each seed.

    Args:
        panels: by title, model and place on the logarithmic axis, the values of the seeds.
        path: file to write.
        label: of the axis.
    """
    figure, axes_of = _figure(list(panels), width=4.2)
    for title, models in panels.items():
        axes = axes_of[title]
        for number, (name, curve) in enumerate(models.items()):
            means = [statistics.mean(values) for values in curve.values()]
            axes.plot(list(curve), means, color=f"C{number}", label=name)
            for place, values in curve.items():
                # Beside each other, so that no model's dots hide another's.
                x = place * 1.03 ** (number - (len(models) - 1) / 2)
                axes.plot([x] * len(values), values, ".", color=f"C{number}")
        axes.set(title=title, xlabel=label, xscale="log")
        places = sorted({place for curve in models.values() for place in curve})
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    next(iter(axes_of.values())).legend(fontsize="small")
    figure.savefig(path, dpi=110)


def draw_lines(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]], path: pathlib.Path, label: str
) -> None:
    """Draws a line for each of some curves.

    Args:
        panels: by title and name, values by their place on the axis.
        path: file to write.
        label: of the axis.
    """
    figure, axes_of = _figure(list(panels), width=4.2)
    for title, curves in panels.items():
        for name, curve in curves.items():
            axes_of[title].plot(list(curve), list(curve.values()), ".-", label=name)
        axes_of[title].set(title=title, xlabel=label)
    next(iter(axes_of.values())).legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _figure(titles: Sequence[str], width: float) -> tuple[Any, dict[str, Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(titles), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    return figure, dict(zip(titles, axes, strict=True))


def write_page(
    output: pathlib.Path,
    title: str,
    blocks: Sequence[str],
    runs: Sequence[Run],
    name: str = "results.md",
) -> pathlib.Path:
    """Writes a page: the command, the blocks (paragraphs, tables, pictures), and the origin.

    The origin is commit, date, machine and the time that all runs took.
    """
    program = pathlib.Path(sys.argv[0]).name
    command = shlex.join(["python", f"experiments/{program}", *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"    {command}", *blocks, _origin(runs)])
    path = output / name
    with atomic_files.replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    say(f"{path} written")
    return path


def _origin(runs: Sequence[Run]) -> str:
    seconds, cpu_seconds = cost_of(runs)
    today, number = datetime.date.today().isoformat(), len(runs)
    return (
        f"Measured on {today} at commit {commit()} on {machine()}: "
        f"{number} {'run' if number == 1 else 'runs'}, "
        f"{seconds / 60:.0f} minutes one after the other, {cpu_seconds / 60:.0f} minutes of "
        "processor time."
    )


def commit() -> str:
    """The commit of the code, marked where files differ from it; "unknown" without git."""
    folder = os.fspath(pathlib.Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty"]
    return _output_of(command) or "unknown"


def machine() -> str:
    """The processor and its cores, and the GPUs."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpus = _output_of(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return ", ".join([f"{os.cpu_count()} cores of {cpu}", *gpus.splitlines()])


def _output_of(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
