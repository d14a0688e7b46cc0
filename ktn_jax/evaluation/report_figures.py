"""The figures of the report, with Matplotlib but without pyplot, which would keep them."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, hsv_to_rgb
from matplotlib.figure import Figure

from ktn_jax.body.parts import NUM_PATCHES, PATCH_NAMES
from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate
from ktn_jax.evaluation.ground_truth import GroundTruth, ImageTruth, PersonTruth
from ktn_jax.evaluation.metrics import MEASURES
from ktn_jax.evaluation.patch_errors import WITHIN_CM, PersonScore
from ktn_jax.evaluation.precision_recall import RECALL_LEVELS, Curves
from ktn_jax.evaluation.result_files import Detection, ResultIndex, read_payload
from ktn_jax.results.palette import PATCH_COLOURS
from ktn_jax.results.shading import shaded_points
from ktn_jax.runtime.images import ImageError, read_image

_SHOWN_THRESHOLDS = (0.5, 0.65, 0.75, 0.85, 0.95)
_GREY = 96
_NO_ERROR = 0.87
_MARGIN = 0.08


def precision_recall(curves: Curves) -> Figure:
    """Draws precision over recall of GPS, GPSm and IoU at some thresholds, all sizes of people."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for measure, (panel, name) in enumerate(zip(panels, MEASURES, strict=True)):
        for index, threshold in enumerate(_SHOWN_THRESHOLDS):
            row = int(np.abs(curves.thresholds - threshold).argmin())
            values = curves.precision[measure, row, :, 0]
            if abs(curves.thresholds[row] - threshold) < 0.001 and values.max() >= 0:
                shade = 0.15 + 0.7 * index / (len(_SHOWN_THRESHOLDS) - 1)
                colour = hsv_to_rgb([0.6 * (1 - shade), 0.85, 0.85])
                panel.plot(RECALL_LEVELS, values, color=colour, label=f"{threshold:.2f}")
        panel.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("precision")
    lines, labels = panels[-1].get_legend_handles_labels()
    if lines:  # beside the panels, where it covers no curve
        figure.legend(lines, labels, title="threshold", fontsize=8, loc="outside right center")
    return figure


def patch_bars(rows: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """Draws mean error and the share of points within each limit, by patch."""
    names = [name for name in rows if name != "all"]
    places = np.arange(len(names))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.bar(places, [rows[name]["mean_cm"] or 0 for name in names], color="#3b6ea5")
    overall = rows["all"]["mean_cm"]
    if overall is not None:
        top.axhline(overall, color="black", lw=1, ls="--", label=f"all: {overall:.1f} cm")
        top.legend(loc="upper right")  # "best" is slow
    top.set_ylabel("mean error (cm)")
    # Drawn from the widest limit to the narrowest, each over the one before.
    for limit, colour in zip(WITHIN_CM[::-1], ("#cfdcec", "#7fa3cc", "#2b4f7d"), strict=True):
        shares = [rows[name][f"within_{limit}cm_percent"] or 0 for name in names]
        bottom.bar(places, shares, color=colour, label=f"within {limit} cm")
    bottom.set(ylabel="points (%)", ylim=(0, 122), yticks=range(0, 101, 20))
    bottom.legend(loc="upper right", fontsize=8, ncols=len(WITHIN_CM))
    bottom.set_xticks(places, names, rotation=60, ha="right", fontsize=8)
    return figure


def error_on_template(
    template: EvaluationTemplate, rows: Mapping[str, Mapping[str, float | None]]
) -> Figure:
    """Draws the mean error of every patch on the vertices, from the front and from behind."""
    # None, a patch without points, becomes NaN and is drawn grey.
    errors = np.array([None] + [rows[name]["mean_cm"] for name in PATCH_NAMES[1:]], float)
    vertices, values = template.vertices, errors[template.part]
    if vertices is None:
        raise ValueError("the positions of the template's vertices are not known")
    colours, scale = error_colours(values)
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, side, title in zip(panels, (1, -1), ("front", "back"), strict=True):
        panel.imshow(shaded_points(vertices * [side, 1, side], colours), interpolation="bilinear")
        panel.set(title=title)
        panel.axis("off")
    figure.colorbar(scale, ax=panels, label="mean error (cm)", shrink=0.7)
    return figure


def error_colours(values: np.ndarray) -> tuple[np.ndarray, ScalarMappable]:
    """Colours of errors, RGB [N, 3] from 0 to 1, grey where one is NaN; and their scale."""
    known = values[np.isfinite(values)]
    scale = ScalarMappable(Normalize(0, known.max() if known.size else 1.0), "viridis")
    colours = np.asarray(scale.to_rgba(values))[:, :3]
    return np.where(np.isfinite(values)[:, None], colours, _NO_ERROR), scale


def people_cards(
    people: Sequence[PersonScore],
    truth: GroundTruth,
    results: ResultIndex,
    images_dir: str | pathlib.Path | None,
) -> Figure:
    """Draws people with their predictions and the annotated points."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(people)))
    images = {image.image_id: image for image in truth.images}
    with open(results.path, "rb") as handle:
        for panel, record in zip(panels, people, strict=True):
            image = images[record.image_id]
            person = next(p for p in image.people if p.annotation_id == record.annotation_id)
            detection = next(
                d
                for d in results.by_image[record.image_id]
                if d.detection_id == record.detection_id
            )
            iuv, _ = read_payload(handle, detection)
            _draw_person(panel, image, person, detection, iuv, images_dir)
            panel.set_title(
                f"GPS {record.gps:.2f}\nimage {record.image_id}, person {record.annotation_id}",
                fontsize=8,
            )
    return figure


def _draw_person(
    panel: Axes,
    image: ImageTruth,
    person: PersonTruth,
    detection: Detection,
    iuv: np.ndarray,
    images_dir: str | pathlib.Path | None,
) -> None:
    picture = _read_picture(images_dir, image.file_name, image.image_size_hw)
    colours = PATCH_COLOURS / 255
    left, top = int(detection.box_xywh[0]), int(detection.box_xywh[1])
    rows, columns = np.nonzero(iuv[0])
    labels = iuv[0][rows, columns]
    y, x = rows + top, columns + left
    inside = (y >= 0) & (y < picture.shape[0]) & (x >= 0) & (x < picture.shape[1])
    y, x, labels = y[inside], x[inside], labels[inside]
    picture[y, x] = 0.35 * picture[y, x] + 0.65 * 255 * colours[labels]
    panel.imshow(picture.astype(np.uint8), interpolation="nearest")
    px, py, width, height = person.box_xywh
    if person.points is not None:
        patch = np.clip(person.points[2].astype(int), 0, NUM_PATCHES)
        panel.scatter(
            px + person.points[0] * width / 255,
            py + person.points[1] * height / 255,
            c=colours[patch],
            s=14,
            edgecolors="white",
            linewidths=0.5,
        )
    margin = _MARGIN * max(width, height) + 2
    panel.set_xlim(px - margin, px + width + margin)
    panel.set_ylim(py + height + margin, py - margin)
    panel.axis("off")


def _read_picture(
    images_dir: str | pathlib.Path | None, file_name: str, size_hw: tuple[int, int]
) -> np.ndarray:
    """Returns float RGB [H, W, 3]; grey if there is no picture of the annotated size."""
    if images_dir is not None and file_name:
        for name in (file_name, pathlib.PurePosixPath(file_name).name):
            with contextlib.suppress(ImageError):
                return read_image(pathlib.Path(images_dir) / name, size_hw).astype(np.float64)
    return np.full((*size_hw, 3), float(_GREY))
