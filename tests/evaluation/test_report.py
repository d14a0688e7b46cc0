"""What the report's figures show."""

import numpy as np
from PIL import Image

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import evaluator, report_figures
from ktn_jax.evaluation.options import ScoringOptions


def _metrics(flat_world, folder, **options):
    results, truth = flat_world.write(folder)
    options = ScoringOptions(**options)
    return evaluator.evaluate_files(results, truth, flat_world.template_dir, options)


def test_patches_without_points_are_grey_and_exact_ones_are_not(flat_world):
    template = evaluator.load_evaluation_template(flat_world.template_dir)
    rows = {name: {"mean_cm": float(index - 1)} for index, name in enumerate(PATCH_NAMES)}
    rows[PATCH_NAMES[5]]["mean_cm"] = None
    figure = report_figures.error_on_template(template, rows)
    shown = figure.axes[0].collections[1].get_array()
    assert np.ma.getmaskarray(shown).sum() == (template.part == 5).sum()
    assert np.ma.min(shown) == 0  # patch 1, without any error
    assert np.ma.max(shown) == 23


def test_curves_show_the_thresholds_there_are(flat_world, tmp_path):
    metrics = _metrics(flat_world, tmp_path, min_iou=0.75)
    panel = report_figures.precision_recall(metrics.curves).axes[0]
    assert [line.get_label() for line in panel.lines] == ["0.75", "0.85", "0.95"]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), 1)


def test_people_stand_on_their_picture(flat_world, tmp_path):
    for image in flat_world.annotations["images"]:
        colours = np.full((image["height"], image["width"], 3), (0, 0, 255), np.uint8)
        Image.fromarray(colours).save(tmp_path / image["file_name"])
    metrics = _metrics(flat_world, tmp_path)
    results, truth = flat_world.write(tmp_path)
    truth = evaluator.read_ground_truth(truth)
    results = evaluator.index_results(results, truth)
    person = metrics.people[0]
    figures = [
        report_figures.people_cards([person], truth, results, folder)
        for folder in (tmp_path, None, tmp_path / "nowhere")
    ]
    drawn = [figure.axes[0].images[0].get_array() for figure in figures]
    assert (drawn[0][0, 0] == [0, 0, 255]).all()
    assert (drawn[1][0, 0] == drawn[1][0, 0, 0]).all()  # grey where there is no picture
    np.testing.assert_array_equal(drawn[1], drawn[2])
    assert f"person {person.annotation_id}" in figures[0].axes[0].get_title()


def test_colours_of_patches_differ():
    colours = report_figures.patch_colours()
    assert colours.shape == (25, 3)
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1)
    assert distance[~np.eye(25, dtype=bool)].min() > 0.1
