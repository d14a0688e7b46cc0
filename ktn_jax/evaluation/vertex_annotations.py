"""Annotation files of charts made into ones of vertices, which embedding models learn.

A point's vertex is the one that the evaluation compares it by: the nearest of its patch in U and V
(`geodesic_similarity.VertexFinder`), as a row of the template's table.
"""

import dataclasses
import json
import pathlib
from typing import Any, Literal

import numpy as np

from ktn_jax.body import meshes
from ktn_jax.body.mesh_names import BODY, RELEASED
from ktn_jax.data_pipelines.coco import checks
from ktn_jax.data_pipelines.coco.annotations import SKIP_ADVICE
from ktn_jax.data_pipelines.coco.densepose_checks import (
    DENSEPOSE_POINT_KEYS,
    EXTENSION_KEYS,
    MESH_KEY,
    VERTEX_KEY,
    has_charts,
)
from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate, VertexFinder
from ktn_jax.evaluation.template_files import load_evaluation_template
from ktn_jax.runtime.atomic_files import replacing


@dataclasses.dataclass(frozen=True)
class VertexCounts:
    """What was converted.

    Attributes:
        people: whose points have vertices now.
        points: of them.
        dropped: points on no patch, which no vertex stands for.
        others: annotations that were kept as they are.
    """

    people: int
    points: int
    dropped: int
    others: int


def convert_file(
    source: pathlib.Path,
    output: pathlib.Path,
    template_dir: pathlib.Path,
    mesh: str = "",
    on_bad: Literal["raise", "skip"] = "raise",
) -> VertexCounts:
    """Adds `dp_vertex` and `ref_model` to the people of an annotation file who have charts.

    Args:
        source: DensePose-COCO JSON.
        output: file to write; nothing may be there.
        template_dir: evaluation template, see `load_evaluation_template`.
        mesh: name of the mesh whose vertices the template's rows are; "" for `smpl_27554` or
            `body`, whichever has as many.
        on_bad: at records with errors, "raise", or "skip" to keep them as they are.

    Returns:
        What was converted.

    Raises:
        ValueError: the output is there, or the mesh has another number of vertices.
        FileNotFoundError: there is no folder for the output.
        ktn_jax.data_pipelines.coco.checks.DatasetError: the file cannot be read or has errors.
        ktn_jax.evaluation.errors.EvaluationError: the template cannot be read.
    """
    if output.exists():
        raise ValueError(f"{output} exists: give another --output, or remove it")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no such folder")
    raw, unreadable = checks.load_json(source)
    if unreadable is not None:
        report = checks.AnnotationReport(str(source), {}, (unreadable,))
        raise checks.DatasetError(str(unreadable), report)
    report = checks.check_dataset(raw, str(source))
    if not report.is_readable or (on_bad == "raise" and not report.ok):
        advice = f"\n{SKIP_ADVICE}" if report.is_readable else ""
        raise checks.DatasetError(report.format(max_findings=20) + advice, report)
    template = load_evaluation_template(template_dir)
    name = _mesh_name(template, mesh)
    finder = VertexFinder(template)
    people = points = dropped = 0
    bad = report.bad_annotations | report.bad_densepose
    for position, annotation in enumerate(raw["annotations"]):
        if position in bad or not checks.is_of_category(annotation, report.classes.keys()):
            continue
        if has_charts(annotation):
            count = len(annotation["dp_x"])
            kept = add_vertices(annotation, finder, template, name)
            people, points, dropped = people + bool(kept), points + kept, dropped + count - kept
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(raw, separators=(",", ":")), encoding="utf-8")
    return VertexCounts(people, points, dropped, len(raw["annotations"]) - people)


def add_vertices(
    annotation: dict[str, Any], finder: VertexFinder, template: EvaluationTemplate, mesh: str
) -> int:
    """Adds the vertices of one person's points.

    Args:
        annotation: that passed the checks, with charts; changed in place. Points on no patch are
            dropped; without any other it stays as it is.
        finder: of the template.
        template: whose rows are the vertices.
        mesh: their mesh's name.

    Returns:
        How many points there are now that have a vertex.
    """
    patch, u, v = (np.asarray(annotation[key], np.float64) for key in ("dp_I", "dp_U", "dp_V"))
    found = finder.find(patch, u, v)
    kept = np.flatnonzero(found >= 0)
    if not len(kept):
        return 0
    if len(kept) < len(found):
        for key in (*DENSEPOSE_POINT_KEYS, *EXTENSION_KEYS):
            if annotation.get(key):
                annotation[key] = [annotation[key][index] for index in kept]
    annotation[VERTEX_KEY] = template.row[found[kept]].tolist()
    annotation[MESH_KEY] = mesh
    return len(kept)


def _mesh_name(template: EvaluationTemplate, mesh: str) -> str:
    """The name of the template's mesh.

    Raises:
        ValueError: the mesh of that name has another number of vertices.
    """
    count = int(template.row.max()) + 1
    known = {"smpl_27554": RELEASED["smpl_27554"], BODY: meshes.num_vertices(BODY)}
    if not mesh:
        names = [name for name, number in known.items() if number == count]
        if not names:
            raise ValueError(
                f"template {template.origin} has {count} vertices, as neither of {known}: name "
                "its mesh with --mesh"
            )
        return names[0]
    number = (known | dict(RELEASED)).get(mesh, count)
    if number != count:
        raise ValueError(
            f"--mesh {mesh} has {number} vertices, template {template.origin} has {count}"
        )
    return mesh
