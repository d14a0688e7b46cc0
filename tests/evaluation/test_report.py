"""What the report's figures show."""

import numpy as np
from PIL import Image

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import evaluator, report_figures
from ktn_jax.evaluation.ground_truth import read_ground_truth
from ktn_jax.evaluation.options import ScoringOptions
from ktn_jax.results import palette, shading


def _metrics(flat_world, folder, **options):
    results, truth = flat_world.write(folder)
    options = ScoringOptions(**options)
    return evaluator.evaluate_files(results, truth, flat_world.template_dir, options)


def test_patches_without_points_are_grey_and_exact_ones_are_not(flat_world):
    template = evaluator.load_evaluation_template(flat_world.template_dir)
    rows = {name: {"mean_cm": float(index - 1)} for index, name in enumerate(PATCH_NAMES)}
    rows[PATCH_NAMES[5]]["mean_cm"] = None
    figure = report_figures.error_on_template(template, rows)
    shown = [panel.images[0].get_array() for panel in figure.axes[:2]]
    assert all(np.ptp(picture, axis=-1).max() > 50 for picture in shown)
    errors = np.array([rows[name]["mean_cm"] for name in PATCH_NAMES], float)
    colours, scale = report_figures.error_colours(errors[template.part])
    is_grey = np.ptp(colours, axis=1) == 0
    np.testing.assert_array_equal(is_grey, template.part == 5)
    assert scale.get_clim() == (0, 23)  # patch 1 is without any error


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
    truth = read_ground_truth(truth)
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


def test_colours_are_those_of_other_pictures():
    assert report_figures.PATCH_COLOURS is palette.PATCH_COLOURS


def test_a_ball_is_shaded_and_coloured():
    turns = (np.arange(4000) + 0.5) / 4000
    radius, angle = 2 * np.sqrt(turns * (1 - turns)), 4000 * turns * np.pi * (1 + 5**0.5)
    points = np.stack([radius * np.cos(angle), 1 - 2 * turns, radius * np.sin(angle)], axis=1)
    colours = np.where(points[:, :1] < 0, [1.0, 0, 0], [0, 0, 1.0])  # left red, right blue
    picture = shading.shaded_points(points, colours).astype(int)
    height, width = picture.shape[:2]
    assert (picture[0, 0] == 255).all() and (picture[-1, -1] == 255).all()
    middle = picture[height // 2]
    assert middle[width // 4, 0] > 120 and middle[width // 4, 2] == 0
    assert middle[3 * width // 4, 2] > 120 and middle[3 * width // 4, 0] == 0
    right = picture[:, 5 * width // 8, 2]  # lit from above
    assert right[height // 4] > right[height // 2] > right[7 * height // 8]
