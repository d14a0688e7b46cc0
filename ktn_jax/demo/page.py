"""The demo's page: loss curves, scores, pictures and how to go on, in one HTML file."""

import base64
import html
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from ktn_jax.evaluation.metrics import Metrics

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0 0 1.2em; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
pre { background: #f4f4f6; padding: .7em; white-space: pre-wrap; overflow-wrap: anywhere; }
"""
# The lines of a curve each get their own panel where they share no scale.
_PANELS = {
    "total": ("loss",),
    "people and boxes": (
        "loss/rpn_objectness",
        "loss/rpn_deltas",
        "loss/box_class",
        "loss/box_deltas",
    ),
    "surface": ("loss/fine_segm", "loss/coarse_segm", "loss/body_mask", "loss/u", "loss/v"),
    "keypoints": ("loss/keypoints",),
}
_MEASURES = {
    "bbox": "box: IoU of the boxes",
    "GPS": "GPS: surface points",
    "GPSm": "GPSm: surface points and mask",
    "IOU": "IoU of the masks",
    "keypoints": "keypoints (OKS)",
}
_COLUMNS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR")
_DPI = 90


def render(
    record: Mapping[str, Any],
    config: ConfigDict,
    metrics: Metrics,
    losses_path: pathlib.Path,
    rows: Sequence[np.ndarray],
    commands: Mapping[str, str],
) -> str:
    """Renders the page.

    Args:
        record: settings and seconds of the run.
        config: what was trained.
        metrics: on the test set.
        losses_path: JSON lines of the training.
        rows: pictures of test images.
        commands: what can be done with the weights: command by purpose.

    Returns:
        HTML with all pictures inside.
    """
    shown = "".join(_picture(_encode(row), "a test image") for row in rows)
    body = "\n".join(
        [
            "<h1>KTN on rendered people</h1>",
            f"<p>{html.escape(_summary(record, config, metrics))}</p>",
            "<h2>Scores on the test set (%)</h2>",
            "<p>Bodies, clothes, backgrounds and poses of the test people were never trained on. "
            "The surface they are measured on is the project's own: these numbers do not compare "
            "with published ones.</p>",
            _score_table(metrics),
            "<h2>Test pictures</h2>",
            "<p>The first of the test set, not the best. Warm colours are the right side of the "
            "body, cool ones the left; in the IUV columns a patch is darker towards U = 0 and paler"
            " towards V = 1.</p>",
            shown,
            "<h2>Losses</h2>",
            _picture(_loss_curves(losses_path), "losses over the steps"),
            "<h2>Go on</h2>",
            *(
                f"<p>{html.escape(purpose)}:</p><pre>{html.escape(command)}</pre>"
                for purpose, command in commands.items()
            ),
            "<h2>Time</h2>",
            _time_table(record),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>KTN demo</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _summary(record: Mapping[str, Any], config: ConfigDict, metrics: Metrics) -> str:
    settings, seconds = record["settings"], sum(record["seconds"].values())
    people = len(metrics.people)
    return (
        f"{settings['config']} was trained from scratch for {settings['steps']} steps of "
        f"{config.batch_size} images, out of {config.data.synthetic.num_images} rendered ones, "
        f"and tested on {settings['test_images']} others with {people} people. Seed "
        f"{settings['seed']}; {seconds / 60:.1f} minutes in all."
    )


def _score_table(metrics: Metrics) -> str:
    lines = [_cells("th", ["", *_COLUMNS])]
    for name, title in _MEASURES.items():
        if name in metrics.summaries:
            values = [metrics.summaries[name].get(column) for column in _COLUMNS]
            lines.append(_cells("td", [title, *map(_number, values)]))
    return f"<table>{''.join(lines)}</table>"


def _time_table(record: Mapping[str, Any]) -> str:
    lines = [_cells("th", ["stage", "seconds", "CPU seconds"])]
    for stage, seconds in record["seconds"].items():
        used = record["cpu_seconds"].get(stage, 0)
        lines.append(_cells("td", [stage, f"{seconds:.0f}", f"{used:.0f}"]))
    return f"<table>{''.join(lines)}</table>"


def _cells(kind: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in texts) + "</tr>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _loss_curves(path: pathlib.Path) -> bytes:
    """Draws the means that training logged."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it would keep figures and need a display's backend
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.removeprefix("loss/"))
        axes.set(title=title, xlabel="step", ylim=(0, None))
        if len(names) > 1:
            axes.legend(fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def _encode(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="png", optimize=True)
    return stream.getvalue()


def _picture(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></p>'
