"""One self-contained HTML page about a run: numbers, curves, errors by patch, best and worst."""

import base64
import html
import io
import pathlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import report_figures
from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate
from ktn_jax.evaluation.ground_truth import GroundTruth
from ktn_jax.evaluation.metrics import Metrics
from ktn_jax.evaluation.patch_errors import WITHIN_CM
from ktn_jax.evaluation.result_files import ResultIndex

_NUM_PEOPLE = 6
_MIN_POINTS = 10  # with fewer points a person's GPS says little
_DPI = 110
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; }
table { border-collapse: collapse; margin: 0 0 1.2em; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
.note { background: #fff6dc; padding: .3em .8em; margin: .3em 0; }
"""


def render(
    metrics: Metrics,
    truth: GroundTruth,
    results: ResultIndex,
    template: EvaluationTemplate,
    images_dir: str | pathlib.Path | None = None,
) -> str:
    """Renders the page.

    Args:
        metrics: of the run.
        truth: the annotations.
        results: index of the results file, which is read again for the people shown.
        template: its vertices, if it knows them, carry the errors by patch.
        images_dir: pictures for the people shown; without it they stand on grey.

    Returns:
        HTML with all pictures inside.
    """
    rows = metrics.patches.rows(PATCH_NAMES)
    parts = [
        f"<h1>DensePose scores of {html.escape(str(metrics.meta.get('results', '')))}</h1>",
        _facts(metrics),
        *(f'<p class="note">{html.escape(note)}</p>' for note in metrics.notes),
        "<h2>Average precision and recall (%)</h2>",
        *_score_tables(metrics),
        "<h2>Precision over recall</h2>",
        _picture(report_figures.precision_recall(metrics.curves), "precision over recall"),
        "<h2>Geodesic error by patch</h2>",
        "<p>Points of people whose box was found (IoU of at least 0.5). Points predicted as "
        "background have no distance; they count as outside every limit.</p>",
        _picture(report_figures.patch_bars(rows), "error by patch"),
        _patch_table(rows),
    ]
    if template.vertices is not None:
        figure = report_figures.error_on_template(template, rows)
        parts += ["<h2>Error on the body</h2>", _picture(figure, "error on the body")]
    parts += _people(metrics, truth, results, images_dir)
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>DensePose scores</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _facts(metrics: Metrics) -> str:
    meta = metrics.meta
    found = sum(person.detection_id > 0 for person in metrics.people)
    facts = {
        "annotations": meta.get("annotations"),
        "images": meta.get("images"),
        "people with dense annotation": len(metrics.people),
        "of them found (box IoU of at least 0.5)": found,
        "detections": meta.get("detections"),
        "mode": meta.get("mode"),
        "template": meta.get("template"),
    }
    for name, digest in (meta.get("template_sha256") or {}).items():
        facts[f"sha256 of {name}"] = digest
    return _table([], [[name, str(value)] for name, value in facts.items()])


def _score_tables(metrics: Metrics) -> list[str]:
    by_columns: dict[tuple, list] = {}
    for name, values in metrics.summaries.items():
        by_columns.setdefault(tuple(values), []).append([name, *map(_number, values.values())])
    return [_table(["", *columns], rows) for columns, rows in by_columns.items()]


def _patch_table(rows: dict[str, dict]) -> str:
    columns = ["patch", "points", "on body %", "mean cm", *(f"&lt; {x} cm %" for x in WITHIN_CM)]
    cells = [[name, str(row["points"])] for name, row in rows.items()]
    for line, row in zip(cells, rows.values(), strict=True):
        line += [_number(value) for key, value in row.items() if key != "points"]
    return _table(columns, cells)


def _people(metrics: Metrics, truth: GroundTruth, results: ResultIndex, images_dir) -> list[str]:
    shown = [p for p in metrics.people if p.detection_id and p.num_points >= _MIN_POINTS]
    if not shown:
        return []
    shown.sort(key=lambda person: (-person.gps, person.annotation_id))
    missed = sum(person.detection_id == 0 for person in metrics.people)
    parts = [
        "<h2>Best and worst people</h2>",
        "<p>The colour of a pixel is the patch predicted there, that of a dot the annotated one: "
        f"a dot that stands out is wrong. Found by no box, and so not shown: {missed}.</p>",
    ]
    half = min(_NUM_PEOPLE, (len(shown) + 1) // 2)
    for title, people in (("Best", shown[:half]), ("Worst", shown[::-1][: len(shown) - half])):
        if people := people[:_NUM_PEOPLE]:
            figure = report_figures.people_cards(people, truth, results, images_dir)
            parts += [f"<h3>{title}</h3>", _picture(figure, f"{title.lower()} people")]
    return parts


def _picture(figure: Figure, text: str) -> str:
    stream = io.BytesIO()
    FigureCanvasAgg(figure)  # no pyplot: it would keep figures and need a display's backend
    figure.savefig(stream, format="png", dpi=_DPI)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></p>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if header else ''}{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
