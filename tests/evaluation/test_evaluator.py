"""Whole runs in a flat world: right predictions score 100, wrong ones fall by a known amount."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import evaluator, geodesic_similarity
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import read_ground_truth
from ktn_jax.evaluation.options import ScoringOptions

SHIFT = 2  # pixels; one vertex for small people, half a vertex for large ones


def _run(world, folder, entries=None, output_dir=None, **scoring):
    results, truth = world.write(folder, entries)
    return evaluator.evaluate_files(
        results, truth, world.template_dir, ScoringOptions(**scoring), output_dir=output_dir
    )


def _with_pictures(world, change):
    return [{**entry, "iuv": change(entry["iuv"])} for entry in world.entries]


def _expected_gps(person, iuv, origin_shift=0):
    """GPS by the definition: exp of the distance between true and predicted (I, U, V)."""
    left, top, width, height = person["bbox"]
    # Truncated towards zero: a point less than a pixel left of the box reads its first column.
    x = (np.array(person["dp_x"]) * width / 255 - origin_shift).astype(int)
    y = (np.array(person["dp_y"]) * height / 255).astype(int)
    inside = (x >= 0) & (x < iuv.shape[2])
    patch, u, v = np.where(inside, iuv[:, y, np.clip(x, 0, iuv.shape[2] - 1)], 0).astype(float)
    same = patch == np.array(person["dp_I"])
    steps = np.hypot(u / 255 - person["dp_U"], v / 255 - person["dp_V"])
    distance = np.where(same, steps * 0.3, np.where(patch > 0, 1.0, np.inf))
    kappa = geodesic_similarity.PATCH_MEAN_DISTANCE[np.array(person["dp_I"])]
    return float(np.exp(-(distance**2) / (2 * kappa**2)).mean()), distance


def _expected_ap(similarities):
    """AP of one detection a person, by falling score, from the definition at 101 recalls."""
    precision = []
    for threshold in np.linspace(0.5, 0.95, 10):
        found = np.cumsum(np.array(similarities) >= threshold)
        values = found / np.arange(1, len(found) + 1)
        for recall in np.linspace(0, 1, 101):
            reached = values[found / len(found) >= recall - 1e-12]
            precision.append(reached.max(initial=0.0))
    return 100 * np.mean(precision)


def test_truth_against_itself_scores_100(flat_world, tmp_path):
    metrics = _run(flat_world, tmp_path)
    for name in ("GPS", "GPSm", "IOU", "bbox"):
        values = {k: v for k, v in metrics.summaries[name].items() if k not in ("AR1", "AP_S")}
        values.pop("AR_S", None)  # no small people
        assert set(np.round(list(values.values()), 9)) == {100.0}, name
    table = metrics.patches.rows(PATCH_NAMES)["all"]
    assert table["mean_cm"] == 0 and table["within_5cm_percent"] == 100
    assert table["points"] == 6 * 60


def test_points_that_a_model_set_are_no_truth(flat_world):
    raw = copy.deepcopy(flat_world.annotations)
    first, second = raw["annotations"][:2]
    first["dp_annotated"] = [0, 1, 1] + [0] * (len(first["dp_x"]) - 3)
    second["dp_annotated"] = [0] * len(second["dp_x"])
    truth = read_ground_truth(raw)
    points = {p.annotation_id: p.points for image in truth.images for p in image.people}
    np.testing.assert_array_equal(points[first["id"]][0], first["dp_x"][1:3])
    assert points[second["id"]] is None


def test_shuffled_predictions_keep_masks_and_lose_the_surface(flat_world, tmp_path):
    # Every person gets the picture of another one of the same size.
    pictures = [entry["iuv"] for entry in flat_world.entries]
    entries = [
        {**entry, "iuv": pictures[(index + 2) % len(pictures)]}
        for index, entry in enumerate(flat_world.entries)
    ]
    metrics = _run(flat_world, tmp_path, entries)
    assert metrics.summaries["GPS"]["AP"] == 0
    assert metrics.summaries["IOU"]["AP"] == pytest.approx(100, abs=1e-9)
    best = max(person.gps for person in metrics.people)
    assert 0 < best < 0.25  # 1 m apart, and some patches coincide by chance


def test_flipped_pictures_keep_masks_and_lose_the_surface(flat_world, tmp_path):
    metrics = _run(flat_world, tmp_path, _with_pictures(flat_world, lambda iuv: iuv[:, :, ::-1]))
    assert metrics.summaries["GPS"]["AP"] == 0
    assert metrics.summaries["IOU"]["AP"] == pytest.approx(100, abs=1e-9)
    for person, truth, entry in zip(
        sorted(metrics.people, key=lambda p: p.annotation_id),
        flat_world.annotations["annotations"],
        flat_world.entries,
        strict=True,
    ):
        assert person.gps == pytest.approx(_expected_gps(truth, entry["iuv"][:, :, ::-1])[0])


def test_shifted_boxes_fall_by_the_distance_they_moved(flat_world, tmp_path):
    entries = [
        {**entry, "bbox": [entry["bbox"][0] + SHIFT, *entry["bbox"][1:]]}
        for entry in flat_world.entries
    ]
    metrics = _run(flat_world, tmp_path, entries)
    expected, distances = zip(
        *(
            _expected_gps(truth, entry["iuv"], SHIFT)
            for truth, entry in zip(
                flat_world.annotations["annotations"], flat_world.entries, strict=True
            )
        ),
        strict=True,
    )
    people = sorted(metrics.people, key=lambda p: p.annotation_id)
    np.testing.assert_allclose([p.gps for p in people], expected, rtol=1e-6)
    small, large = expected[::2], expected[1::2]
    assert metrics.summaries["GPS"]["AP_M"] == pytest.approx(_expected_ap(small))
    assert metrics.summaries["GPS"]["AP_L"] == pytest.approx(_expected_ap(large))
    assert 50 < metrics.summaries["GPS"]["AP_M"] < metrics.summaries["GPS"]["AP_L"] < 95
    every = np.concatenate(distances) * 100
    row = metrics.patches.rows(PATCH_NAMES)["all"]
    on_body = np.isfinite(every)
    assert row["mean_cm"] == pytest.approx(every[on_body].mean(), rel=1e-6)
    assert row["within_5cm_percent"] == pytest.approx(100 * (every <= 5).mean())
    assert row["within_20cm_percent"] == pytest.approx(100 * (every <= 20).mean())
    assert row["on_body_percent"] == pytest.approx(100 * on_body.mean()) != 100


def test_no_detections_score_zero(flat_world, tmp_path):
    metrics = _run(flat_world, tmp_path, [], output_dir=tmp_path / "out")
    for name in ("GPS", "GPSm", "IOU", "bbox"):
        assert metrics.summaries[name]["AP"] == 0
        assert metrics.summaries[name]["AR"] == 0
    assert any("3 of 3 images have no detection" in note for note in metrics.notes)
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_an_image_without_detections_costs_its_people(flat_world, tmp_path):
    entries = [entry for entry in flat_world.entries if entry["image_id"] != 7]
    metrics = _run(flat_world, tmp_path, entries)
    assert metrics.summaries["GPS"]["AR"] == pytest.approx(100 * 4 / 6)
    # Precision 1 at the recall levels 0 .. 0.66 of 101.
    assert metrics.summaries["GPS"]["AP"] == pytest.approx(100 * 67 / 101)


def test_a_duplicate_is_a_false_positive_and_is_told(flat_world, tmp_path):
    metrics = _run(flat_world, tmp_path, [*flat_world.entries, flat_world.entries[0]])
    assert any(
        note.startswith("1 detections have the image, box and score") for note in metrics.notes
    )
    # The copy has the best score but one: two of the first two found, one of them wrong; 6/7 after.
    expected = (np.floor(100 / 6) + 1) * 1 + (101 - np.floor(100 / 6) - 1) * 6 / 7
    assert metrics.summaries["GPS"]["AP"] == pytest.approx(100 * expected / 101)


def test_processes_do_not_change_a_digit(flat_world, tmp_path):
    one = _run(flat_world, tmp_path, workers=1)
    two = _run(flat_world, tmp_path, workers=2)
    assert one.to_json() == two.to_json()


def test_errors_come_out_of_a_process_as_they_are(flat_world, tmp_path):
    entries = [{**e, "iuv": np.full_like(e["iuv"], 25)} for e in flat_world.entries[:1]]
    for workers in (1, 2):
        with pytest.raises(EvaluationError, match=r"detection 1 of image 7: .*25.*wanted 0\.\.24"):
            _run(flat_world, tmp_path, entries, workers=workers)


def test_parts_of_a_run_join_to_the_whole(flat_world, tmp_path):
    results, truth_path = flat_world.write(tmp_path)
    truth = read_ground_truth(truth_path)
    index = evaluator.index_results(results, truth)
    scores = list(evaluator.score_images(truth, index, flat_world.template_dir))
    # The second process filled its last batch up with an image of the first.
    joined = evaluator.combine_scores([[scores[2]], [scores[0], scores[1], scores[2]]])
    assert [image.image_id for image in joined] == [3, 7, 12]
    whole = evaluator.summarise_scores(scores)
    assert evaluator.summarise_scores(joined).to_json() == whole.to_json()
    wrong = scores[2].gps + 0.1
    with pytest.raises(EvaluationError, match="image 12 was scored twice"):
        evaluator.combine_scores([scores, [dataclasses.replace(scores[2], gps=wrong)]])


def test_metrics_file_has_the_layout_and_all_digits(flat_world, tmp_path):
    entries = flat_world.entries[:-1]
    metrics = _run(flat_world, tmp_path, entries, output_dir=tmp_path / "out", min_iou=0.2)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    names = "AP AP20 AP30 AP40 AP50 AP75 AP_M AP_L AR AR50 AR75 AR_M AR_L".split()
    for name in ("GPS", "GPSm", "IOU"):
        assert list(written[name]) == names
    assert written["GPS"]["AP"] == metrics.summaries["GPS"]["AP"]
    assert written["bbox"]["AP_S"] is None  # no small people: not a number, not -1
    assert written["people"] == {"annotated": 6, "found": 5}
    assert written["meta"]["unit"] == "percent"
    text = metrics.table()
    assert "GPSm" in text and "not comparable with published numbers" in text
    assert f"{written['GPS']['AP']:.2f}" in text


def test_report_holds_everything_it_shows(flat_world, tmp_path):
    _run(flat_world, tmp_path, output_dir=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5  # curves, bars, body, best, worst
    assert "http" not in page and 'src="/' not in page
    for text in ("flat test template", "right_hand", "GPSm", "100.00"):
        assert text in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dp_masks": [{"size": [100, 100], "counts": "aa"}]}, r"dp_masks\[0\]: .*256x256"),
        ({"dp_masks": [7]}, r"dp_masks\[0\]: .*must be a run-length mask, got int"),
        ({"dp_masks": None}, "dp_masks: .*is missing or empty though other dp_ keys are there"),
        ({"segmentation": [[1, 2]]}, r"segmentation\[0\]: .*three or more x, y pairs, got 2"),
        ({"segmentation": {"size": [300, 500]}}, "segmentation: .*'size' and 'counts'"),
        ({"segmentation": [[0, 0, 1e9, 0, 5, 5]]}, r"segmentation\[0\]: .*must be in the image"),
    ],
)
def test_masks_that_cannot_be_drawn_are_named(flat_world, tmp_path, change, message):
    annotations = copy.deepcopy(flat_world.annotations)
    annotations["annotations"][2].update(change)
    results, truth = flat_world.write(tmp_path, annotations=annotations)
    with pytest.raises(EvaluationError, match=f"annotations.json: annotation 3: {message}"):
        evaluator.evaluate_files(results, truth, flat_world.template_dir)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"mode": "Upstream"}, "mode must be one of"),
        ({"mode": ""}, "mode must be one of"),
        ({"min_iou": 0}, "lowest threshold"),
        ({"min_iou": float("nan")}, "lowest threshold"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_an_option_out_of_range_is_refused(option, text):
    with pytest.raises(ValueError, match=text):
        ScoringOptions(**option)


def test_a_mask_of_the_whole_body_is_scored_as_the_union_of_its_parts(flat_world, tmp_path):
    expected = _run(flat_world, tmp_path).summaries
    annotations = copy.deepcopy(flat_world.annotations)
    for person in annotations["annotations"]:
        if "dp_masks" in person:
            whole = coco_mask.merge([mask for mask in person["dp_masks"] if mask])
            person["dp_masks"] = whole | {"counts": whole["counts"].decode()}
    results, truth = flat_world.write(tmp_path, annotations=annotations)
    found = evaluator.evaluate_files(results, truth, flat_world.template_dir)
    assert found.summaries == expected and found.summaries["IOU"]["AP"] > 0


def test_ktn_masks_are_larger(flat_world, tmp_path):
    # It resizes part labels before comparing with 0.5, so parts 13 and 14 grow at their borders.
    upstream = _run(flat_world, tmp_path)
    fork = _run(flat_world, tmp_path, mode="ktn")
    assert upstream.summaries["GPS"] == fork.summaries["GPS"]
    results, truth_path = flat_world.write(tmp_path)
    truth = read_ground_truth(truth_path)
    index = evaluator.index_results(results, truth)
    iou = {
        mode: np.concatenate(
            [
                image.mask_iou.max(axis=0)
                for image in evaluator.score_images(
                    truth, index, flat_world.template_dir, ScoringOptions(mode)
                )
            ]
        )
        for mode in ("upstream", "ktn")
    }
    large = slice(1, None, 2)  # the small ones' masks are sampled at points on no border
    assert (iou["ktn"][large] < iou["upstream"][large] - 1e-4).all()
