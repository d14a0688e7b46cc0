"""The study of in-painting measures the truth as right, and says of others how wrong they are."""

import json

import inpainting
import inpainting_tables
import inpainting_truth
import numpy as np
import pytest
import studies
from inpainting_truth import Errors, RenderedSet

from ktn_jax.body.loading import load_uv_symmetry
from ktn_jax.body.procedural import assembly
from ktn_jax.body.symmetry import mirror_by_tables
from ktn_jax.data_pipelines.coco import checks
from ktn_jax.data_pipelines.coco.annotations import parse_dataset
from ktn_jax.data_pipelines.synthetic.scene import EASY
from ktn_jax.evaluation import template_files
from ktn_jax.results.iuv_pictures import quantise, read_labels, write_labels


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Two rendered images, and their dense truth as labels; the template of the body."""
    folder = tmp_path_factory.mktemp("study")
    people = RenderedSet(folder / "people", 2, 5, EASY)
    studies.render_people(people.folder, people.num_images, people.seed, people.scene)
    output = folder / "truth" / "annotations.json"
    inpainting_truth.write_dense_truth(people, people.annotations, output, 150)
    template_files.ensure_own_template(folder / "template")
    return people, output, folder / "template"


def test_the_truth_has_no_errors_but_levels(truth):
    people, output, template = truth
    assert checks.check_file(output, people.images).ok
    measured = inpainting_truth.measure(people, output, template)
    assert measured.is_right.all() and np.nanmax(measured.uv) < 0.004
    summary = measured.summary()
    assert summary["right"] == 100 and summary["median_cm"] < 1.5
    assert measured.confidence.min() == 1
    classes = dict(inpainting_truth.by_distance(measured))
    assert sum(len(errors.is_right) for name, errors in classes.items() if name != "all") == len(
        measured.is_right
    )
    # Annotated points are dense enough that no pixel of these people is far from all.
    assert len(classes["0 to 2 px"].is_right) > 0 and measured.to_point.max() < 60


def test_few_have_points_and_everybody_part_masks(truth, tmp_path):
    people, _, _ = truth
    path = tmp_path / "few" / "annotations.json"
    inpainting_truth.write_points_of_few(people, path, 1)
    assert checks.check_file(path, people.images).ok
    before, after = (
        {
            person.annotation_id: person
            for image in parse_dataset(file).images
            for person in image.people
        }
        for file in (people.annotations, path)
    )
    first = {person.annotation_id for person in parse_dataset(path).images[0].people}
    assert 0 < len(first) < len(after) == len(before)
    for number, person in after.items():
        whole = before[number].densepose
        if whole is None:
            continue
        np.testing.assert_array_equal(person.densepose.part_mask, whole.part_mask)
        assert person.densepose.is_on_surface == (number in first and whole.is_on_surface)
        if number in first:
            np.testing.assert_array_equal(person.densepose.u, whole.u)


def test_the_mirror_of_the_rendered_body_is_read_back(tmp_path):
    path = tmp_path / inpainting.SYMMETRY_FILE
    inpainting_truth.write_symmetry(path)
    template = assembly.make_body().template
    # The right hand of a body that the mesh's own symmetry mirrors.
    hand = np.full(9, 4), np.linspace(0.2, 0.8, 9), np.linspace(0.3, 0.7, 9)
    expected = template.mirror_iuv(*hand)
    mirrored = mirror_by_tables(load_uv_symmetry(path), *hand)
    np.testing.assert_array_equal(mirrored[0], expected[0])
    np.testing.assert_allclose(mirrored[1:], expected[1:], atol=1 / 128)


def test_wrong_labels_are_measured(truth, tmp_path):
    people, output, template = truth
    raw = json.loads(output.read_bytes())
    (tmp_path / "iuv").mkdir()
    for number, person in enumerate(raw["annotations"]):
        patch, uv, confidence = read_labels(output.parent / person["dp_iuv"])
        if number == 0:
            patch = np.where(patch > 0, patch % 24 + 1, 0).astype(np.uint8)
        uv = np.where(uv < 0.5, uv + 0.2, uv - 0.2)  # both by 0.2
        person["dp_iuv"] = f"iuv/{number}.png"
        write_labels(tmp_path / person["dp_iuv"], quantise(patch, uv), confidence * 0.4)
    (tmp_path / "b.json").write_text(json.dumps(raw))
    measured = inpainting_truth.measure(people, tmp_path / "b.json", template)
    assert not measured.is_right.all() and measured.is_right.any()
    assert measured.summary()["uv"] == pytest.approx(0.2 * np.sqrt(2), abs=0.01)
    assert measured.summary()["mean_cm"] > 5
    by_confidence = dict(inpainting_truth.by_confidence(measured, (0, 0.3, 0.6)))
    assert len(by_confidence["0 to 0.3"].is_right) == 0
    assert by_confidence["0 to 0.3"].summary()["right"] is None
    assert len(by_confidence["0.3 to 0.6"].is_right) == len(measured.is_right)


def test_tables_say_what_the_runs_say():
    errors = Errors(
        is_right=np.array([True, True, False, True]),
        uv=np.array([0.1, 0.2, np.nan, 0.6]),
        centimetres=np.array([1.0, np.nan, np.nan, 4.0]),
        to_point=np.array([1.0, 3.0, 3.0, 90.0]),
        confidence=np.ones(4),
    )
    kinds = {"held out": {n: e.summary() for n, e in inpainting_truth.by_distance(errors)}}
    lines = inpainting_tables.error_table([kinds], "held out", "nearest point").splitlines()
    assert lines[-1] == "| all | 100 | 75.0 | 0.200 | 2.5 | 2.5 |"
    assert lines[3] == "| 2 to 4 px | 50 | 50.0 | 0.200 | – | – |"
    assert lines[4] == "| 4 to 8 px | – | – | – | – | – |"

    def run(precision):
        scores = {"AP": precision, "AP50": 50.0}
        found = {"GPSm": scores, "GPS": scores, "bbox": scores}
        points = {"mean_cm": 9.0, "within_10cm_percent": precision / 2}
        true = {"GPSm": {"AP": 2 * precision}, "patches": {"all": points}}
        return {inpainting.FOUND: found, inpainting.TRUE_BOXES: true}

    runs = {
        name: [run(value) for value in values]
        for name, values in zip(inpainting.STUDENTS, ([10, 20], [11, 23], [15, 26]), strict=True)
    }
    line = inpainting_tables.score_table(runs).splitlines()[2]
    means = "15.0 ± 7.1 | 50.0 ± 0.0 | 15.0 ± 7.1 | 15.0 ± 7.1"
    assert line == f"| sparse points | {means} | 30.0 ± 14.1 | 9.0 ± 0.0 | 7.5 ± 3.5 |"
    line = inpainting_tables.gain_table(runs).splitlines()[2]
    true = "+4.0 [+2.3, +5.7] | +2.0, +6.0"
    assert line == f"| + in-painted | +2.0 [+1.1, +2.8] | +1.0, +3.0 | {true} |"


@pytest.mark.slow
@pytest.mark.extended
def test_the_smallest_study_runs_and_is_not_run_twice(tmp_path, capsys):
    inpainting.main(["--size", "smoke", "--output", str(tmp_path / "study")])
    page = (tmp_path / "study" / "results.md").read_text()
    assert "| + dense truth |" in page and (tmp_path / "study" / "inpainting.png").is_file()
    capsys.readouterr()
    inpainting.main(["--size", "smoke", "--output", str(tmp_path / "study")])
    assert "student" not in capsys.readouterr().out  # nothing was run again
