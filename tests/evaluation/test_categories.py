"""Scores of several categories: each by itself, and means by COCO's rule."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ktn_jax.evaluation import evaluator
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.options import ScoringOptions

NAMES = ("cat", "dog", "cow")


@pytest.fixture(scope="module")
def animals(flat_world, tmp_path_factory):
    """Results and annotations of cats and dogs; nobody is a cow, but one detection says so."""
    folder = tmp_path_factory.mktemp("animals")
    truth = copy.deepcopy(flat_world.annotations)
    truth["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    kinds = dict(zip(range(1, 7), (1, 2, 2, 1, 1, 1), strict=True))
    for person in truth["annotations"]:
        person["category_id"] = kinds[person["id"]]
    results, annotations = flat_world.write(folder, annotations=truth)
    found = json.loads(results.read_text())
    for number, entry in enumerate(found, 1):
        entry["category_id"] = kinds[number]
    found[0]["bbox"][0] += 9  # found beside itself
    found[2]["category_id"] = 1  # a dog that is taken for a cat
    found[5]["category_id"] = 3
    results.write_text(json.dumps(found))
    return results, annotations


def _evaluate(animals, flat_world, categories, **options):
    return evaluator.evaluate_files(
        *animals,
        flat_world.template_dir,
        ScoringOptions(workers=1, categories=categories),
        **options,
    )


def test_scores_are_means_over_the_categories_that_are_there(
    animals, flat_world, tmp_path, monkeypatch
):
    monkeypatch.setattr("ktn_jax.evaluation.report.render_report", lambda *_, **__: "a page")
    metrics = _evaluate(animals, flat_world, NAMES, output_dir=tmp_path)
    alone = {name: _evaluate(animals, flat_world, (name,)) for name in NAMES}
    assert metrics.by_category == {name: one.summaries for name, one in alone.items()}
    assert alone["cow"].summaries["GPS"]["AP"] is None
    cats, dogs = (alone[name].summaries["GPS"]["AP"] for name in NAMES[:2])
    assert 0 < cats < dogs < 100
    # detectron2 averages what is above -1 of an array with an axis of categories.
    precision = np.stack([one.curves.precision[..., 0] for one in alone.values()], -1)
    recall = np.stack([one.curves.recall[..., 0] for one in alone.values()], -1)
    for row, name in enumerate(evaluator.MEASURES):
        for values, column in ((precision[row], "AP"), (recall[row], "AR")):
            expected = 100 * values[values > -1].mean()
            assert metrics.summaries[name][column] == pytest.approx(expected, rel=1e-12)
        both = metrics.curves.precision[row, ..., 0]
        np.testing.assert_allclose(both, precision[row, ..., :2].mean(-1), rtol=1e-12)
    assert (metrics.curves.precision[..., 0] >= 0).all()
    assert metrics.patches.points.sum() == sum(one.patches.points.sum() for one in alone.values())
    assert len(metrics.people) == 6 and metrics.meta["detections"] == 6
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["categories"]["cat"]["GPSm"] == alone["cat"].summaries["GPSm"]
    assert written["GPSm"] == metrics.summaries["GPSm"]
    for name in NAMES:
        own = json.loads((tmp_path / name / "metrics.json").read_text())
        assert own["GPS"] == alone[name].summaries["GPS"]
        assert (tmp_path / name / "report.html").read_text() == "a page"
    # Said where one is left out, and not where all are scored.
    assert any("other categories than cat" in note for note in alone["cat"].notes)
    assert not any("other categories" in note for note in metrics.notes)
    line = next(line for line in metrics.table().splitlines() if line.startswith("dog"))
    shown = [float(cell) for cell in line.split()[1:]]
    summaries = alone["dog"].summaries
    assert shown == [round(summaries[name]["AP"], 2) for name in metrics.summaries]
    assert next(x for x in metrics.table().splitlines() if x.startswith("cow")).split()[1] == "-"


def test_boxes_score_as_pycocotools_scores_several_categories(animals, flat_world):
    metrics = _evaluate(animals, flat_world, NAMES)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(animals[1]))
        evaluation = COCOeval(truth, truth.loadRes(str(animals[0])), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = [100 * value for value in evaluation.stats]
    found = [-100 if x is None else x for x in metrics.summaries["bbox"].values()]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert 0 < metrics.summaries["bbox"]["AP"] < 100


def test_a_category_that_is_not_annotated_is_named(animals, flat_world):
    with pytest.raises(EvaluationError, match="no category is named horse: 'cat', 'dog', 'cow'"):
        _evaluate(animals, flat_world, ("cat", "horse"))


def test_categories_are_different_names():
    for wrong in ((), ("cat", "cat")):
        with pytest.raises(ValueError, match="categories must be different names"):
            ScoringOptions(categories=wrong)
