"""Every small file of the cases that once failed, by the command line: the score, or what to do."""

import numpy as np
import pytest

from ktn_jax import cli
from ktn_jax.body import loading
from ktn_jax.data_pipelines.coco import checks
from ktn_jax.evaluation import template_files
from ktn_jax.runtime import jax_setup


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    # What the command sets for JAX must not reach the other tests.
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    template_files.ensure_own_template(folder)
    return folder


def _evaluate(results, annotations, template, *options):
    files = {"--results": results, "--annotations": annotations, "--template": template}
    given = [str(word) for pair in files.items() for word in pair]
    return cli.main(["eval", *given, "--quiet", *options])


def _files_of(folder, name):
    results = folder / f"{name}_r.json"
    return results if results.is_file() else folder / "perfect.json", folder / f"{name}.json"


def _scores(printed):
    """The table that `ktn eval` prints: measure -> name -> text."""
    scores, header = {}, []
    for words in map(str.split, printed.splitlines()):
        if words[:1] == ["AP"]:
            header = words
        elif len(words) == len(header) + 1:
            scores[words[0]] = dict(zip(header, words[1:], strict=True))
    return scores


RIGHT = ["dp_keys_empty", "ids_from_zero", "keypoints_null", "person_without_area"]
WRONG = {
    "iscrowd_string": "annotation 1001: iscrowd: error [crowd_flag] must be the number 0 or 1, got",
    "one_mask_cut": "annotation 1001: dp_masks[0]: error [mask_undecodable] runs add up to 26415",
    "seg_short_runs": "annotation 1001: segmentation: error [segmentation_rle] runs add up to",
    "segmentation_flat": "annotation 1001: segmentation: error [polygon_length] must be a list of "
    "polygons, got numbers: wrap the polygon in a list",
    "person_is_category_34_among_others": "all 10 detections are of other categories than person, "
    "which has category_id 34",
}


def test_no_case_is_left_out(cases_dir):
    covered = {*RIGHT, *WRONG, "other_names_ann", "other_names_results", "perfect"}
    names = {path.stem for path in (cases_dir / "eval").iterdir()}
    assert {name for name in names if name.removesuffix("_r") not in covered} == set()


@pytest.mark.parametrize("name", RIGHT)
def test_fields_that_may_be_missing_or_start_at_zero(name, cases_dir, template, capsys):
    assert _evaluate(*_files_of(cases_dir / "eval", name), template) == 0
    scores = _scores(capsys.readouterr().out)
    # The pictures fill their boxes: masks are wrong on purpose.
    for measure in ("GPS", "bbox", "keypoints"):
        assert (scores[measure]["AP"], scores[measure]["AR"]) == ("100.00", "100.00"), measure


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_refused(name, cases_dir, template, capsys):
    results, annotations = _files_of(cases_dir / "eval", name)
    assert _evaluate(results, annotations, template) == 1
    said = capsys.readouterr().err
    assert WRONG[name] in said and name in said and "Traceback" not in said
    report = checks.check_file(annotations)
    assert report.ok or report.format(max_findings=20) in said


def test_a_person_with_a_damaged_mask_is_left_out_of_the_surface(cases_dir, template, capsys):
    files = _files_of(cases_dir / "eval", "one_mask_cut")
    assert _evaluate(*files, template, "--on-bad", "skip") == 0
    printed = capsys.readouterr().out
    assert _scores(printed)["GPS"]["AP"] == "100.00"
    assert "bad records left out: 0 images, 0 people; 1 people lost" in printed


def test_results_in_another_order_are_refused(cases_dir, template, capsys):
    folder = cases_dir / "eval"
    files = folder / "other_names_results.json", folder / "other_names_ann.json"
    assert _evaluate(*files, template) == 1
    said = capsys.readouterr().err
    assert "other_names_results.json: detection 1" in said
    assert "'zoe.jpg', but the annotations call this image 'uma.jpg'" in said
    assert "ktn predict --annotations" in said


HOSTILE = {
    "long_binput.pkl": "the memo's entry 134217728 in byte 8",
    "laughs_tuple_key_40.pkl": "a key of a dict or member of a set that is neither text nor",
    "laughs_shape_repr_40.pkl": "is not the shape",
}


def test_hostile_files_are_refused(cases_dir, template, tmp_path, capsys):
    folder = cases_dir / "hostile"
    files = folder / "eval_hang_results.json", folder / "eval_hang_annotations.json"
    assert _evaluate(*files, template) == 1
    assert (
        "segmentation_rle] runs add up to 16385 pixels, size has 16384" in capsys.readouterr().err
    )
    for name, message in HOSTILE.items():
        assert cli.main(["convert", str(folder / name), str(tmp_path / "w.safetensors")]) == 1
        said = capsys.readouterr().err
        assert f"{name}: not a pickle" in said and message in said and len(said) < 1000
    tables = folder / "segfault_loadmat.mat"
    with pytest.raises(ValueError, match="segfault_loadmat.mat: "):
        loading.load_uv_symmetry(tables)
    np.save(tmp_path / "v.npy", np.zeros((6890, 3)))
    files = ["--charts", str(tables), "--body", str(tmp_path / "v.npy")]
    assert cli.main(["data", "template", "--output", str(tmp_path / "t"), *files]) == 1
    assert "segfault_loadmat.mat: no field All_Faces" in capsys.readouterr().err
    covered = {*HOSTILE, tables.name, "eval_hang_results.json", "eval_hang_annotations.json"}
    assert {path.name for path in folder.iterdir()} == covered
