"""From a results file and annotations to all scores, in one run."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ktn_jax.evaluation import (
    assignment,
    boxes_keypoints,
    categories,
    metrics,
    patch_errors,
    precision_recall,
)
from ktn_jax.evaluation.errors import TEMPLATE_ADVICE, EvaluationError
from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate
from ktn_jax.evaluation.ground_truth import GroundTruth, read_ground_truths
from ktn_jax.evaluation.options import DEFAULT_OPTIONS, ScoringOptions
from ktn_jax.evaluation.result_files import ResultIndex, index_results, read_segmentations
from ktn_jax.evaluation.scorer import COCO_MAX_DETECTIONS, ImageScores, score_images
from ktn_jax.evaluation.template_files import load_evaluation_template
from ktn_jax.runtime import locks

MEASURES = metrics.MEASURES


def evaluate_files(
    results_path: str | pathlib.Path,
    annotations_path: str | pathlib.Path,
    template_dir: str | pathlib.Path | None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    output_dir: str | pathlib.Path | None = None,
    images_dir: str | pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> metrics.Metrics:
    """Scores a results file of any system.

    Args:
        results_path: detections in the DensePose-COCO results format, with IUV pictures or
            vertices, or plain COCO ones, of which only boxes, masks and keypoints are scored.
        annotations_path: DensePose-COCO annotations.
        template_dir: evaluation template, see `template_files.load_evaluation_template`; None if
            no detection has an IUV picture, and vertices are compared with annotated vertices.
        options: how to score.
        output_dir: where `metrics.json` and `report.html` go; None writes nothing.
        images_dir: pictures for the report's best and worst people.
        progress: called with (images scored, number of images) during the run.

    Returns:
        All scores.

    Raises:
        EvaluationError: a file cannot be scored; the message says which entry and why.
        FolderInUseError: another process writes into `output_dir`.
    """
    truths = read_ground_truths(annotations_path, options.on_bad, options.categories)
    output = None if output_dir is None else pathlib.Path(output_dir)
    with contextlib.nullcontext() if output is None else locks.hold(output):
        found = {
            truth.category: evaluate_results(
                results_path,
                truth,
                template_dir,
                options,
                output_dir=folder,
                images_dir=images_dir,
                progress=progress,
            )
            for truth, folder in categories.with_folders(truths, output)
        }
        return categories.combine(found, output)


def evaluate_results(
    results_path: str | pathlib.Path,
    truth: GroundTruth,
    template_dir: str | pathlib.Path | None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    output_dir: str | pathlib.Path | None = None,
    images_dir: str | pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> metrics.Metrics:
    """Does the same as `evaluate_files` with annotations that are already read."""
    results = index_results(results_path, truth)
    scores = []
    if results.has_surface:
        if template_dir is None:
            check_no_template(results, truth)
        else:  # converts official files once, before processes open them
            load_evaluation_template(template_dir)
        scores = list(score_images(truth, results, template_dir, options, progress=progress))
    return evaluate_scores(
        scores,
        truth=truth,
        results=results,
        template_dir=template_dir,
        options=options,
        output_dir=output_dir,
        images_dir=images_dir,
    )


def check_no_template(results: ResultIndex, truth: GroundTruth) -> None:
    """Checks that results can be scored on the surface without a template.

    Raises:
        EvaluationError: an IUV picture, or vertices where only charts are annotated.
    """
    has_charts_alone = truth.has_charts and not truth.has_vertices
    if has_charts_alone or (results.has_pictures and len(results)):
        raise EvaluationError(f"{results.path.name}: {TEMPLATE_ADVICE}")


def evaluate_scores(
    scores: Sequence[ImageScores],
    truth: GroundTruth,
    results: ResultIndex,
    template_dir: str | pathlib.Path | None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    output_dir: str | pathlib.Path | None = None,
    images_dir: str | pathlib.Path | None = None,
) -> metrics.Metrics:
    """Does the rest of `evaluate_files` once images are scored, here or by several processes.

    Args:
        scores: of all images, ascending ids; none if no detection has an IUV picture or vertices.
        truth: the annotations.
        results: index of the results file.
        template_dir: the template that the images were scored with, None if they were not.
        options: the options of scoring.
        output_dir: see `evaluate_files`.
        images_dir: see `evaluate_files`.

    Returns:
        All scores.
    """
    template = None
    if results.has_surface and template_dir is not None:
        # Whoever scored the images has compared the checksum, which reads the whole table.
        template = load_evaluation_template(template_dir, verify=False)
    if scores:
        segmentations = {k: rle for image in scores for k, rle in image.segmentations.items()}
    else:
        segmentations = read_segmentations(results, truth, COCO_MAX_DETECTIONS)
    extra, extra_notes = boxes_keypoints.evaluate_coco(truth, results, segmentations)
    found = sum(1 for image in truth.images if image.image_id in results.by_image)
    notes = [*truth.notes, *results.notes, *extra_notes]
    if results.has_vertices and truth.has_vertices:
        notes.append("vertices are scored by the distances along the mesh that was annotated")
    if results.has_pictures and len(results) and not truth.has_charts and truth.has_vertices:
        notes.append(
            "IUV pictures cannot be compared with vertices: nobody has a patch, U and V annotated, "
            "so that GPS is 0"
        )
    if found < len(truth.images):
        notes.append(f"{len(truth.images) - found} of {len(truth.images)} images have no detection")
    meta = {
        "images": len(truth.images),
        "annotations": truth.name,
        "results": results.path.name,
        "detections": len(results),
    }
    if template is not None:
        if not template.is_official:
            notes.append(f"template: {template.origin}; not comparable with published numbers")
        meta |= {
            "template": template.origin,
            "template_is_official": template.is_official,
            "template_sha256": dict(template.source_sha256),
        }
    result = summarise_scores(scores, options, extra=extra, notes=notes)
    result.meta.update(meta)
    if output_dir is not None:
        folder = pathlib.Path(output_dir)
        _write(folder, result, truth, results=results, template=template, images_dir=images_dir)
    return result


def match_scores(image: ImageScores, thresholds: np.ndarray) -> assignment.ImageMatches:
    """Matches one image under GPS, GPSm and IoU, in the order of `MEASURES`."""
    similarity = np.stack([image.gps, np.sqrt(image.mask_iou * image.gps), image.mask_iou])
    return assignment.match_image(
        similarity=similarity,
        box_iou=image.box_iou,
        is_crowd=image.is_crowd,
        is_person_ignored=image.is_ignored | assignment.is_outside(image.person_area),
        is_detection_outside=assignment.is_outside(image.detection_area),
        thresholds=thresholds,
    )


def combine_scores(parts: Iterable[Sequence[ImageScores]]) -> list[ImageScores]:
    """Joins the scores of several processes, each image once, in the order of their ids.

    Args:
        parts: of every process. An image in several parts (a filled-up last batch) counts once.

    Returns:
        All scores.

    Raises:
        EvaluationError: two processes have different scores for an image.
    """
    joined: dict[int, ImageScores] = {}
    for scores in (image for part in parts for image in part):
        known = joined.setdefault(scores.image_id, scores)
        same = np.array_equal(known.gps, scores.gps) and np.array_equal(known.scores, scores.scores)
        if not same:
            raise EvaluationError(
                f"image {scores.image_id} was scored twice with different results; were the "
                "parts made by the same run?"
            )
    return [joined[image_id] for image_id in sorted(joined)]


def accumulate_scores(
    scores: Sequence[ImageScores], thresholds: np.ndarray
) -> precision_recall.Curves:
    """Pools images (ascending ids) to precision and recall of every measure."""
    matches = [match_scores(image, thresholds) for image in scores]
    return precision_recall.accumulate(matches, [image.scores for image in scores], thresholds)


def summarise_scores(
    scores: Sequence[ImageScores],
    options: ScoringOptions = DEFAULT_OPTIONS,
    extra: dict[str, dict[str, float | None]] | None = None,
    notes: Sequence[str] = (),
) -> metrics.Metrics:
    """Turns the scores of images into the numbers of a dataset.

    Args:
        scores: of all images, ascending ids; none leaves out the measures of the surface.
        options: those that they were scored with.
        extra: further measures (boxes, masks, keypoints) by name.
        notes: remarks for the reader.

    Returns:
        The metrics.
    """
    curves = accumulate_scores(scores, options.thresholds)
    summaries = {}
    for row, name in enumerate(MEASURES if scores else ()):
        values = precision_recall.summarise(curves, row, exact_thresholds=options.mode == "ktn")
        summaries[name] = {key: metrics.percent(value) for key, value in values.items()}
    return metrics.Metrics(
        summaries={**summaries, **(extra or {})},
        patches=patch_errors.add_up(image.patches for image in scores) if scores else None,
        people=tuple(person for image in scores for person in image.people),
        curves=curves,
        meta={
            "mode": options.mode,
            "images": len(scores),
            "thresholds": options.thresholds.tolist(),
        },
        notes=tuple(notes),
    )


def _write(
    folder: pathlib.Path,
    result: metrics.Metrics,
    truth: GroundTruth,
    *,
    results: ResultIndex,
    template: EvaluationTemplate | None,
    images_dir: str | pathlib.Path | None,
) -> None:
    from ktn_jax.evaluation import report  # Matplotlib is slow to import and needed only here

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(result.to_json())
    page = report.render_report(result, truth, results, template, images_dir=images_dir)
    (folder / "report.html").write_text(page, encoding="utf-8")
