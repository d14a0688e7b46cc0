"""The scores of a dataset: as numbers, as a table and as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation.patch_errors import WITHIN_CM, PatchErrors, PersonScore
from ktn_jax.evaluation.precision_recall import Curves

MEASURES = ("GPS", "GPSm", "IOU")


def percent(value: float) -> float | None:
    """Converts a score in [0, 1] to per cent, and the -1 of "nobody to find" to None."""
    return None if value < 0 else float(value) * 100


@dataclasses.dataclass(frozen=True)
class Metrics:
    """All scores of a run, in per cent; None where the dataset does not define one.

    Attributes:
        summaries: measure -> name -> value: GPS, GPSm, IOU, and bbox, segm, keypoints where the
            files allow.
        patches: sums of the geodesic errors by patch; None if no result has an IUV picture.
        people: score of every person with dense annotation.
        curves: precision and recall of GPS, GPSm and IOU.
        meta: how the numbers were computed.
        notes: remarks for the reader.
        by_category: the summaries of each category where there are several; `summaries` are their
            means.
    """

    summaries: dict[str, dict[str, float | None]]
    patches: PatchErrors | None
    people: tuple[PersonScore, ...]
    curves: Curves
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()
    by_category: Mapping[str, Mapping[str, Mapping[str, float | None]]] = dataclasses.field(
        default_factory=dict
    )

    def to_json(self) -> str:
        """Returns the content of `metrics.json`, numbers with all their digits."""
        content: dict[str, Any] = {**self.summaries}
        if self.by_category:
            content["categories"] = self.by_category
        if self.patches is not None:
            found = sum(person.detection_id > 0 for person in self.people)
            content["patches"] = self.patches.rows(PATCH_NAMES)
            content["people"] = {"annotated": len(self.people), "found": found}
        content |= {"meta": {"unit": "percent", **self.meta}, "notes": list(self.notes)}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def table(self) -> str:
        """Formats the scores as text: averages by measure, then by category and by patch."""
        lines = []
        for group in _groups(self.summaries):
            columns = list(self.summaries[group[0]])
            lines.append(_row([""] + columns, 11))
            for name in group:
                values = [_number(self.summaries[name][column]) for column in columns]
                lines.append(_row([name] + values, 11))
            lines.append("")
        if self.by_category:
            names = list(self.summaries)
            width = max(map(len, self.by_category)) + 1
            lines.append(_row(["AP of", *names], width))
            for category, summaries in self.by_category.items():
                values = [_number(summaries.get(name, {}).get("AP")) for name in names]
                lines.append(_row([category, *values], width))
            lines.append("")
        if self.patches is not None:
            header = ["patch", "points", "on body %", "mean cm"]
            lines.append(_row(header + [f"<{limit}cm %" for limit in WITHIN_CM], 24))
            for name, row in self.patches.rows(PATCH_NAMES).items():
                numbers = [_number(value) for key, value in row.items() if key != "points"]
                lines.append(_row([name, str(row["points"]), *numbers], 24))
            lines.append("")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"


def _groups(summaries: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    """Groups measures that have the same columns."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, values in summaries.items():
        groups.setdefault(tuple(values), []).append(name)
    return list(groups.values())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _row(cells: list[str], first: int) -> str:
    return (cells[0].ljust(first) + "".join(cell.rjust(10) for cell in cells[1:])).rstrip()
