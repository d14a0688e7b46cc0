"""One self-contained HTML page about a run: numbers, curves, errors by patch, best and worst."""

import pathlib
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import report_figures
from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate
from ktn_jax.evaluation.ground_truth import GroundTruth
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.evaluation.patch_errors import WITHIN_CM
from ktn_jax.evaluation.result_files import ResultIndex
from ktn_jax.results import html_page

_NUM_PEOPLE = 6
_MIN_POINTS = 10  # with fewer points a person's GPS says little
_DPI = 110


def render_report(
    metrics: Metrics,
    truth: GroundTruth,
    results: ResultIndex,
    template: EvaluationTemplate | None,
    images_dir: str | pathlib.Path | None = None,
) -> str:
    """Renders the page.

    Args:
        metrics: of the run.
        truth: the annotations.
        results: index of the results file, which is read again for the people shown.
        template: if it has vertices, the errors are drawn on them; None if no detection has an
            IUV picture.
        images_dir: pictures for the people shown; None shows them on grey.

    Returns:
        HTML with all pictures embedded.
    """
    heading = f"DensePose scores of {metrics.meta.get('results', '')}"
    blocks: list[html_page.Block] = [
        html_page.Heading(heading, 1),
        _facts(metrics),
        *(html_page.Paragraph(note, is_note=True) for note in metrics.notes),
        html_page.Heading("Average precision and recall (%)"),
        *_score_tables(metrics),
    ]
    if metrics.patches is not None:
        blocks += _surface(metrics, metrics.patches.rows(PATCH_NAMES), template)
        blocks += _people(metrics, truth, results, images_dir)
    return html_page.render_page("DensePose scores", blocks)


def _surface(
    metrics: Metrics,
    rows: Mapping[str, Mapping[str, float | None]],
    template: EvaluationTemplate | None,
) -> list[html_page.Block]:
    blocks: list[html_page.Block] = [
        html_page.Heading("Precision over recall"),
        _picture(report_figures.precision_recall(metrics.curves), "precision over recall"),
        html_page.Heading("Geodesic error by patch"),
        html_page.Paragraph(
            "Points of people whose box was found (IoU of at least 0.5). Points predicted as "
            "background have no distance; they count as outside every limit."
        ),
        _picture(report_figures.patch_bars(rows), "error by patch"),
        _patch_table(rows),
    ]
    if template is not None and template.vertices is not None:
        figure = report_figures.error_on_template(template, rows)
        blocks += [html_page.Heading("Error on the body"), _picture(figure, "error on the body")]
    return blocks


def _facts(metrics: Metrics) -> html_page.Table:
    meta = metrics.meta
    facts = {name: meta.get(name) for name in ("annotations", "images", "detections")}
    if metrics.patches is not None:
        found = sum(person.detection_id > 0 for person in metrics.people)
        facts |= {
            "people with dense annotation": len(metrics.people),
            "of them found (box IoU of at least 0.5)": found,
            "mode": meta.get("mode"),
            "template": meta.get("template"),
        }
    for name, digest in (meta.get("template_sha256") or {}).items():
        facts[f"sha256 of {name}"] = digest
    return html_page.Table([], [[name, str(value)] for name, value in facts.items()])


def _score_tables(metrics: Metrics) -> list[html_page.Table]:
    by_columns: dict[tuple[str, ...], list[list[str]]] = {}
    for name, values in metrics.summaries.items():
        row = [name, *(html_page.number(value, 2) for value in values.values())]
        by_columns.setdefault(tuple(values), []).append(row)
    return [html_page.Table(["", *columns], rows) for columns, rows in by_columns.items()]


def _patch_table(rows: Mapping[str, Mapping[str, float | None]]) -> html_page.Table:
    header = ["patch", "points", "on body %", "mean cm", *(f"< {x} cm %" for x in WITHIN_CM)]
    cells = []
    for name, row in rows.items():
        numbers = [html_page.number(value, 2) for key, value in row.items() if key != "points"]
        cells.append([name, str(row["points"]), *numbers])
    return html_page.Table(header, cells)


def _people(
    metrics: Metrics,
    truth: GroundTruth,
    results: ResultIndex,
    images_dir: str | pathlib.Path | None,
) -> Sequence[html_page.Block]:
    shown = [p for p in metrics.people if p.detection_id and p.num_points >= _MIN_POINTS]
    if not shown or results.has_vertices:  # the pictures are of patches
        return []
    shown.sort(key=lambda person: (-person.gps, person.annotation_id))
    missed = sum(person.detection_id == 0 for person in metrics.people)
    blocks: list[html_page.Block] = [
        html_page.Heading("Best and worst people"),
        html_page.Paragraph(
            "The colour of a pixel is the patch predicted there, that of a dot the annotated one: "
            f"a dot that stands out is wrong. Found by no box, and so not shown: {missed}."
        ),
    ]
    half = min(_NUM_PEOPLE, (len(shown) + 1) // 2)
    for title, people in (("Best", shown[:half]), ("Worst", shown[::-1][: len(shown) - half])):
        if people := people[:_NUM_PEOPLE]:
            figure = report_figures.people_cards(people, truth, results, images_dir)
            blocks += [html_page.Heading(title, 3), _picture(figure, f"{title.lower()} people")]
    return blocks


def _picture(figure: Figure, text: str) -> html_page.PictureBlock:
    return html_page.figure_picture(figure, text, _DPI)
