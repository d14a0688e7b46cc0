"""COCO's own measures, beside the DensePose ones."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ktn_jax.evaluation import evaluator
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.results.iuv_pictures import encode_iuv


def _real_truth(real_dir):
    return json.loads((real_dir / "coco_keypoints" / "test_coco.json").read_text())


def _result(person, score, shift=0.0):
    x, y, width, height = person["bbox"]
    iuv = np.ones((3, max(int(height), 1), max(int(width), 1)), np.uint8)
    keypoints = np.array(person["keypoints"], float).reshape(17, 3) + [shift, 0, 0]
    return {
        "image_id": person["image_id"],
        "category_id": 1,
        "score": score,
        "bbox": [x + shift, y, width, height],
        "uv_shape": list(iuv.shape),
        "uv_data": encode_iuv(iuv),
        "keypoints": keypoints.ravel().tolist(),
    }


def _run(flat_world, folder, truth, results):
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return evaluator.evaluate_files(
        folder / "results.json", folder / "truth.json", flat_world.template_dir
    )


def _truth_as_results(truth):
    results = []
    for person in truth["annotations"]:
        image = next(i for i in truth["images"] if i["id"] == person["image_id"])
        # A person without visible keypoints is a false positive to them: at the end of the list.
        result = _result(person, 0.9 if person["num_keypoints"] else 0.1)
        segmentation = person["segmentation"]
        if isinstance(segmentation, list):
            size = image["height"], image["width"]
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        if not person["iscrowd"]:
            results.append(result)
    return results


def test_real_annotations_against_themselves(flat_world, real_dir, tmp_path):
    truth = _real_truth(real_dir)
    before = copy.deepcopy(truth)
    metrics = _run(flat_world, tmp_path, truth, _truth_as_results(truth))
    for name in ("bbox", "segm", "keypoints"):
        assert metrics.summaries[name]["AP"] == pytest.approx(100), name
        assert metrics.summaries[name]["AR"] == pytest.approx(100), name
    assert metrics.summaries["GPS"]["AP"] is None
    assert any("people have surface points: GPS and" in note for note in metrics.notes)
    assert truth == before


def _without_picture(result):
    return {name: value for name, value in result.items() if not name.startswith("uv_")}


def test_plain_coco_results_are_scored_without_the_surface(real_dir, tmp_path):
    """No template is needed. Two boxes are moved, so that the scores say something."""
    truth = _real_truth(real_dir)
    results = _truth_as_results(truth)
    for moved in (0, 3):
        results[moved]["bbox"][0] += results[moved]["bbox"][2] / 8
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([_without_picture(result) for result in results]))
    metrics = evaluator.evaluate_files(plain, tmp_path / "truth.json", None, output_dir=tmp_path)
    assert set(metrics.summaries) == {"bbox", "segm", "keypoints"}
    assert metrics.summaries["keypoints"]["AP"] == pytest.approx(100)
    assert 80 < metrics.summaries["bbox"]["AP"] < 100
    note = "no detection has an IUV picture: GPS, GPSm, IOU and patches are left out"
    assert note in metrics.notes and note in metrics.table() and "patch " not in metrics.table()
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["bbox"] == metrics.summaries["bbox"]
    assert not {"GPS", "GPSm", "IOU", "patches", "people"} & set(written)
    page = (tmp_path / "report.html").read_text()
    assert note in page and "Geodesic error" not in page

    del results[2]["segmentation"]
    plain.write_text("\n".join(json.dumps(_without_picture(result)) for result in results))
    metrics = evaluator.evaluate_files(plain, tmp_path / "truth.json", None)
    assert set(metrics.summaries) == {"bbox", "keypoints"}
    assert f"segm left out: 1 of {len(results)} detections have no mask" in metrics.notes
    for wrong in ([[1, 1, 9, 1, 9, 9]], {"size": [5, 5], "counts": "0"}):
        results[2]["segmentation"] = wrong
        plain.write_text(json.dumps([_without_picture(result) for result in results]))
        with pytest.raises(EvaluationError, match="detection 3 .* compressed RLE of size"):
            evaluator.evaluate_files(plain, tmp_path / "truth.json", None)


def test_coco_results_need_no_boxes(real_dir, tmp_path):
    """As those of COCO's own examples; pycocotools measures people by keypoints or masks then."""
    truth = _real_truth(real_dir)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    path = tmp_path / "results.json"
    for kept, absent in (("keypoints", "segmentation"), ("segmentation", "keypoints")):
        results = [_without_picture(result) for result in _truth_as_results(truth)]
        results = [one for one in results if one.get(kept)]
        for result in results:
            del result["bbox"]
            result.pop(absent, None)
        path.write_text(json.dumps(results))
        metrics = evaluator.evaluate_files(path, tmp_path / "truth.json", None)
        name = {"keypoints": "keypoints", "segmentation": "segm"}[kept]
        assert set(metrics.summaries) == {name}
        assert metrics.summaries[name]["AP"] == pytest.approx(100)
        count = len(results)
        assert f"bbox left out: {count} of {count} detections have none" in metrics.notes
    results[0].pop("segmentation")
    path.write_text(json.dumps(results))
    with pytest.raises(EvaluationError, match="detection 1: missing bbox"):
        evaluator.evaluate_files(path, tmp_path / "truth.json", None)


def test_detections_without_a_picture_among_others_count_as_background(flat_world, tmp_path):
    empty = [dict(entry) for entry in flat_world.entries]
    empty[0]["iuv"] = np.zeros_like(empty[0]["iuv"])
    mixed = [dict(entry) for entry in flat_world.entries]
    del mixed[0]["iuv"]
    empty, mixed = (
        evaluator.evaluate_files(*flat_world.write(tmp_path, entries), flat_world.template_dir)
        for entries in (empty, mixed)
    )
    assert mixed.summaries == empty.summaries and 0 < mixed.summaries["GPS"]["AP"] < 90
    assert mixed.people == empty.people
    assert mixed.patches.rows([]) == empty.patches.rows([])
    note = "1 of 6 detections have no IUV picture: they count as background in GPS, GPSm and IOU"
    assert note in mixed.notes


def test_pictures_need_a_template(flat_world, tmp_path):
    with pytest.raises(EvaluationError, match="results.json: --template is needed to score"):
        evaluator.evaluate_files(*flat_world.write(tmp_path), None)


def test_boxes_fall_by_the_thresholds_they_miss(flat_world, tmp_path):
    # Moved by an eighth of the width: IoU 7 / 9, which passes 0.5 .. 0.75, six of ten.
    entries = [
        {**e, "bbox": [e["bbox"][0] + e["bbox"][2] / 8, *e["bbox"][1:]]} for e in flat_world.entries
    ]
    results, truth = flat_world.write(tmp_path, entries)
    metrics = evaluator.evaluate_files(results, truth, flat_world.template_dir)
    assert metrics.summaries["bbox"]["AP"] == pytest.approx(60)
    assert metrics.summaries["bbox"]["AP75"] == pytest.approx(100)
    # The masks are the body pixels: an ellipse against the annotated box covers pi / 4.
    assert metrics.summaries["segm"]["AP50"] == pytest.approx(100)
    assert metrics.summaries["segm"]["AP75"] == 0
    assert any("keypoints left out: the annotations" in note for note in metrics.notes)


def test_the_size_of_a_segment_is_that_of_its_mask(flat_world, tmp_path):
    # A false alarm in a medium box with nine body pixels: not one among medium people.
    iuv = np.zeros((3, 64, 96), np.uint8)
    iuv[0, :3, :3] = 1
    alarm = {**flat_world.entries[0], "bbox": [300, 10, 96, 64], "score": 0.99, "iuv": iuv}
    results, truth = flat_world.write(tmp_path, [*flat_world.entries, alarm])
    metrics = evaluator.evaluate_files(results, truth, flat_world.template_dir)
    results, truth = flat_world.write(tmp_path)
    without = evaluator.evaluate_files(results, truth, flat_world.template_dir)
    assert metrics.summaries["segm"]["AP50"] < without.summaries["segm"]["AP50"] == 100
    assert metrics.summaries["segm"]["AP_M"] == without.summaries["segm"]["AP_M"] > 0
    assert metrics.summaries["bbox"]["AP_M"] < without.summaries["bbox"]["AP_M"]


@pytest.mark.parametrize("segmentation", [{"size": [5, 5], "counts": "aa"}, {"size": [300, 500]}])
def test_a_segmentation_of_another_size_is_named(flat_world, tmp_path, segmentation):
    entries = [flat_world.entries[0], {**flat_world.entries[1], "segmentation": segmentation}]
    results, truth = flat_world.write(tmp_path, entries)
    with pytest.raises(EvaluationError, match=r"detection 2 of image 7: .*size \[300, 500\]"):
        evaluator.evaluate_files(results, truth, flat_world.template_dir)


def test_runs_that_do_not_fit_the_image_are_named(flat_world, tmp_path):
    # pycocotools does not come back from the sum that is one too large.
    for runs in ([100, 149_901], [100, 149_899]):
        counts = coco_mask.frPyObjects({"size": [300, 500], "counts": runs}, 300, 500)["counts"]
        segmentation = {"size": [300, 500], "counts": counts.decode()}
        entries = [flat_world.entries[0], {**flat_world.entries[1], "segmentation": segmentation}]
        results, truth = flat_world.write(tmp_path, entries)
        with pytest.raises(EvaluationError, match=r"detection 2 of image 7: segmentation must be"):
            evaluator.evaluate_files(results, truth, flat_world.template_dir)


def test_keypoints_fall_with_their_distance(flat_world, real_dir, tmp_path):
    truth = _real_truth(real_dir)
    people = [p for p in truth["annotations"] if not p["iscrowd"]]
    close = _run(flat_world, tmp_path, truth, [_result(p, 0.9, 1.0) for p in people])
    far = _run(flat_world, tmp_path, truth, [_result(p, 0.9, 40.0) for p in people])
    assert 100 > close.summaries["keypoints"]["AP"] > far.summaries["keypoints"]["AP"] + 30


def test_results_where_some_lack_keypoints(flat_world, real_dir, tmp_path):
    truth = _real_truth(real_dir)
    people = [p for p in truth["annotations"] if not p["iscrowd"]]
    results = [_result(p, 0.9) for p in people]
    del results[0]["keypoints"]
    metrics = _run(flat_world, tmp_path, truth, results)
    assert "keypoints" not in metrics.summaries
    wanted = f"keypoints left out: 1 of {len(people)} detections have none"
    assert wanted in metrics.notes
    nothing = _run(flat_world, tmp_path, truth, [])
    assert nothing.summaries["keypoints"]["AP"] == 0
