"""Small files after what users of DensePose tools report: the right score, or what to do."""

import pytest

from ktn_jax.data_pipelines.coco import checks
from ktn_jax.evaluation import evaluator, template_files
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.options import ScoringOptions


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    template_files.ensure_own_template(folder)
    return folder


def _evaluate(folder, name, template, **options):
    results = folder / f"{name}_r.json"
    if not results.is_file():
        results = folder / "perfect.json"
    annotations = folder / f"{name}.json"
    return evaluator.evaluate_files(results, annotations, template, ScoringOptions(**options))


@pytest.mark.parametrize(
    "name", ["dp_keys_empty", "ids_from_zero", "keypoints_null", "person_without_area"]
)
def test_fields_that_may_be_missing_or_start_at_zero(cases_dir, template, name):
    metrics = _evaluate(cases_dir / "eval", name, template)
    # The pictures fill their boxes: masks are wrong on purpose.
    for measure in ("GPS", "bbox", "keypoints"):
        assert metrics.summaries[measure]["AP"] == pytest.approx(100), measure
        assert metrics.summaries[measure]["AR"] == pytest.approx(100), measure


ERRORS = {
    "iscrowd_string": "annotation 1001: iscrowd: .*must be the number 0 or 1, got the text '0'",
    "one_mask_cut": r"annotation 1001: dp_masks\[0\]: .*runs add up to 26415 pixels, .* 65536",
    "seg_short_runs": "annotation 1001: segmentation: .*runs add up to 10240 pixels, .* 16384",
    "segmentation_flat": "annotation 1001: segmentation: .*wrap the polygon in a list",
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_the_check_says_stops_the_evaluation(cases_dir, template, name):
    folder = cases_dir / "eval"
    with pytest.raises(EvaluationError, match=ERRORS[name]) as caught:
        _evaluate(folder, name, template)
    assert checks.check_file(folder / f"{name}.json").format(max_findings=20) in str(caught.value)


def test_a_person_with_a_damaged_mask_is_left_out_of_the_surface(cases_dir, template):
    metrics = _evaluate(cases_dir / "eval", "one_mask_cut", template, on_bad="skip")
    assert metrics.summaries["GPS"]["AP"] == pytest.approx(100)
    assert len(metrics.people) == 6
    assert "bad records left out: 0 images, 0 people; 1 people lost" in metrics.notes[0]


def test_results_of_another_category_or_order_stop(cases_dir, template):
    folder = cases_dir / "eval"
    with pytest.raises(EvaluationError, match="all 10 detections .* which has category_id 34"):
        _evaluate(folder, "person_is_category_34_among_others", template)
    with pytest.raises(EvaluationError, match="'zoe.jpg', but the annotations call .* 'uma.jpg'"):
        evaluator.evaluate_files(
            folder / "other_names_results.json", folder / "other_names_ann.json", template
        )


def test_a_run_length_wrong_by_a_pixel_is_named(cases_dir, template):
    folder = cases_dir / "hostile"
    files = folder / "eval_hang_results.json", folder / "eval_hang_annotations.json"
    with pytest.raises(EvaluationError, match="runs add up to 16385 pixels, size has 16384"):
        evaluator.evaluate_files(*files, template)
