"""The demo's page: loss curves, scores, pictures and next steps, in one HTML file."""

import fnmatch
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.results import html_page

# The lines of a curve each get their own panel where they share no scale.
_PANELS = {
    "total": ("loss",),
    "people and boxes": (
        "loss/rpn_objectness",
        "loss/rpn_deltas",
        "loss/box_class",
        "loss/box_deltas",
    ),
    "surface": (
        *("loss/fine_segm", "loss/coarse_segm", "loss/body_mask", "loss/u", "loss/v"),
        "loss/embedding_*",
    ),
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


def render_demo(
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
        commands: commands that use the weights, by purpose.

    Returns:
        HTML with all pictures embedded.
    """
    title = "Embeddings" if config.model.predictor.name == "embedding" else "KTN"
    blocks: list[html_page.Block] = [
        html_page.Heading(f"{title} on rendered people", 1),
        html_page.Paragraph(_summary(record, config, metrics)),
        html_page.Heading("Scores on the test set (%)"),
        html_page.Paragraph(
            "The bodies, clothes, backgrounds and poses of the test people were not in the "
            "training set. The surface is the project's own body, so these numbers do not compare "
            "with published ones."
        ),
        _score_table(metrics),
        html_page.Heading("Test pictures"),
        html_page.Paragraph(
            "The first pictures of the test set, not the best. Warm colours are the right side of "
            "the body, cool ones the left; in the IUV columns a patch is darker towards U = 0 and "
            "paler towards V = 1."
        ),
        *(html_page.image_picture(row, "a test image") for row in rows),
        html_page.Heading("Losses"),
        html_page.figure_picture(_loss_curves(losses_path), "losses over the steps", _DPI),
        html_page.Heading("Next steps"),
    ]
    for purpose, command in commands.items():
        blocks += [html_page.Paragraph(f"{purpose}:"), html_page.Command(command)]
    blocks += [html_page.Heading("Time"), _time_table(record)]
    return html_page.render_page("KTN demo", blocks)


def _summary(record: Mapping[str, Any], config: ConfigDict, metrics: Metrics) -> str:
    settings, seconds = record["settings"], sum(record["seconds"].values())
    people = len(metrics.people)
    return (
        f"{settings['config']} was trained from scratch for {settings['steps']} steps of "
        f"{config.batch_size} images, out of {config.data.synthetic.num_images} rendered ones, "
        f"and tested on {settings['test_images']} others with {people} people. Seed "
        f"{settings['seed']}; {seconds / 60:.1f} minutes in all."
    )


def _score_table(metrics: Metrics) -> html_page.Table:
    rows = []
    for name, title in _MEASURES.items():
        if name in metrics.summaries:
            values = [metrics.summaries[name].get(column) for column in _COLUMNS]
            rows.append([title, *(html_page.number(value, 1) for value in values)])
    return html_page.Table(["", *_COLUMNS], rows)


def _time_table(record: Mapping[str, Any]) -> html_page.Table:
    rows = []
    for stage, seconds in record["seconds"].items():
        used = record["cpu_seconds"].get(stage, 0)
        rows.append([stage, f"{seconds:.0f}", f"{used:.0f}"])
    return html_page.Table(["stage", "seconds", "CPU seconds"], rows)


def _loss_curves(path: pathlib.Path) -> Figure:
    """Draws the means that training logged."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    curves = {title: _curves(lines, names) for title, names in _PANELS.items()}
    curves = {title: found for title, found in curves.items() if found}
    every = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, found) in zip(every, curves.items(), strict=True):
        for name, points in found.items():
            axes.plot(*zip(*points, strict=True), label=name.removeprefix("loss/"))
        axes.set(title=title, xlabel="step", ylim=(0, None))
        if len(found) > 1:
            axes.legend(fontsize="small")
    return figure


def _curves(
    lines: Sequence[Mapping[str, Any]], patterns: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of the losses that a model has, by name."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {
        name: [(line["step"], line[name]) for line in lines if name in line]
        for pattern in patterns
        for name in fnmatch.filter(names, pattern)
    }
