"""COCO's own measures of boxes, masks and keypoints, computed by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ktn_jax.body.parts import NUM_KEYPOINTS
from ktn_jax.evaluation.ground_truth import GroundTruth
from ktn_jax.evaluation.metrics import percent
from ktn_jax.evaluation.result_files import ResultIndex
from ktn_jax.evaluation.scorer import COCO_MAX_DETECTIONS

_BOX_NAMES = (
    *("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L"),
    *("AR1", "AR10", "AR", "AR_S", "AR_M", "AR_L"),
)
_KEYPOINT_NAMES = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")


def evaluate_coco(
    truth: GroundTruth, results: ResultIndex, masks: Mapping[int, dict[str, Any]]
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Scores boxes, and masks and keypoints where the annotations have them.

    Args:
        truth: the annotations.
        results: index of the results file.
        masks: COCO RLE by detection id: those of the results file if it has any, else the body
            pixels of the IUV pictures.

    Returns:
        Measure -> name -> per cent (None where there is nobody to find), and notes.
    """
    people = truth.coco["annotations"]
    summaries, notes = {}, []
    if results.num_boxless:
        notes.append(f"bbox left out: {results.num_boxless} of {len(results)} detections have none")
    else:
        summaries["bbox"] = _evaluate("bbox", truth, people, [box for _, box in _boxes(results)])
    maskless = sum(number not in masks for number, _ in _boxes(results))
    if not people or not all(person.get("segmentation") for person in people):
        notes.append("segm left out: not every person has a segmentation")
    elif maskless:
        notes.append(f"segm left out: {maskless} of {len(results)} detections have no mask")
    else:
        summaries["segm"] = _evaluate("segm", truth, people, _segments(results, masks))
    if not any("keypoints" in person for person in people):
        notes.append("keypoints left out: the annotations have none")
    elif len(results) and not results.keypoints:
        notes.append("keypoints left out: the results have none")
    elif len(results.keypoints) != len(results):
        notes.append(
            f"keypoints left out: {len(results) - len(results.keypoints)} of {len(results)} "
            "detections have none"
        )
    else:
        nothing = {"keypoints": [0] * (3 * NUM_KEYPOINTS), "num_keypoints": 0}
        annotated = [nothing | person for person in people]
        detected = [
            {**entry, "keypoints": results.keypoints[number].tolist()}
            for number, entry in _boxes(results)
        ]
        summaries["keypoints"] = _evaluate("keypoints", truth, annotated, detected)
    return summaries, notes


def _boxes(results: ResultIndex) -> list[tuple[int, dict[str, Any]]]:
    """Detections as COCO reads them, each with its number, in the order of the file."""
    entries = []
    for image_id, found in results.by_image.items():
        for detection in found[:COCO_MAX_DETECTIONS]:
            entry = {
                "image_id": image_id,
                "category_id": 1,
                "score": detection.score,
                "bbox": list(detection.box_xywh),
            }
            entries.append((detection.detection_id, entry))
    entries.sort(key=lambda item: item[0])
    return entries


def _segments(results: ResultIndex, masks: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in entry.items() if key != "bbox"}
        | {"segmentation": masks[number]}
        for number, entry in _boxes(results)
    ]


def _evaluate(
    kind: str, truth: GroundTruth, people: Sequence[dict[str, Any]], detected: list[dict[str, Any]]
) -> dict[str, float | None]:
    names = _KEYPOINT_NAMES if kind == "keypoints" else _BOX_NAMES
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        # It modifies the entries it is given, so pass copies. To it, id 0 means "no match", so
        # people get new ids. All categories of people become one.
        numbered = [{**p, "id": i, "category_id": 1} for i, p in enumerate(people, start=1)]
        coco_truth = _dataset(truth, numbered)
        coco_results = coco_truth.loadRes(detected) if detected else _dataset(truth, [])
        evaluation = COCOeval(coco_truth, coco_results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {n: percent(float(x)) for n, x in zip(names, evaluation.stats, strict=True)}


def _dataset(truth: GroundTruth, annotations: list[dict[str, Any]]) -> COCO:
    dataset = COCO()
    dataset.dataset = {
        "info": {},
        "images": truth.coco["images"],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    dataset.createIndex()
    return dataset
