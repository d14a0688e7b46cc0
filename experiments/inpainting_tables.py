"""The tables of the study of in-painting."""

from collections.abc import Mapping, Sequence
from typing import Any

import study_results
from study_commands import FOUND, TRUE_BOXES

SCORES = (("GPSm", "AP"), ("GPSm", "AP50"), ("GPS", "AP"), ("bbox", "AP"))
NEAR_CM = 10


def error_table(measured: Sequence[Mapping[str, Any]], kind: str, head: str) -> str:
    """Errors of what was filled in by class; mean ± standard deviation over the seeds."""
    columns = {"right": 1, "uv": 3, "mean_cm": 1, "median_cm": 1}
    rows = []
    for name in measured[0][kind]:
        values = [seed[kind][name] for seed in measured]
        share = [
            100 * row["cells"] / _all_cells(seed[kind]) if row["cells"] else None
            for row, seed in zip(values, measured, strict=True)
        ]
        cells = [
            study_results.format_mean([row[key] for row in values], digits)
            for key, digits in columns.items()
        ]
        rows.append([name, study_results.format_mean(share, 0), *cells])
    heads = [head, "% of the cells", "% on the right patch", "median UV error"]
    return study_results.markdown_table([*heads, "mean cm", "median cm"], rows)


def _all_cells(classes: Mapping[str, Any]) -> int:
    if "all" in classes:
        return int(classes["all"]["cells"])
    return sum(row["cells"] or 0 for row in classes.values())


def score_table(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Scores of the students in the boxes that they find and in the true ones."""
    heads = ["student", *(f"{measure} {column}" for measure, column in SCORES)]
    heads += ["true boxes: GPSm AP", "mean cm of points", f"% within {NEAR_CM} cm"]
    rows = []
    for name, runs in scores.items():
        cells = [
            study_results.format_mean([run[FOUND][measure].get(column) for run in runs])
            for measure, column in SCORES
        ]
        true = [run[TRUE_BOXES] for run in runs]
        cells.append(study_results.format_mean([run["GPSm"]["AP"] for run in true]))
        for key in ("mean_cm", f"within_{NEAR_CM}cm_percent"):
            points = [run["patches"]["all"][key] if "patches" in run else None for run in true]
            cells.append(study_results.format_mean(points))
        rows.append([name, *cells])
    return study_results.markdown_table(heads, rows)


def gain_table(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What each student gains in GPSm AP over the first, seed by seed."""
    first, *others = scores
    rows = []
    for name in others:
        cells = []
        for step in (FOUND, TRUE_BOXES):
            values, base = (
                [run[step]["GPSm"]["AP"] for run in scores[student]] for student in (name, first)
            )
            gains = study_results.paired_gains(values, base)
            cells.append(study_results.format_gain(gains))
            cells.append(", ".join(f"{value:+.1f}" for value in gains))
        rows.append([name, *cells])
    heads = ["student", "gain in GPSm AP", "of each seed", "in true boxes", "of each seed"]
    return study_results.markdown_table(heads, rows)
