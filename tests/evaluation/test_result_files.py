"""Reading results and annotations: layouts, streaming, and a clear word about what is wrong."""

import copy
import json
import tracemalloc

import numpy as np
import pytest

from ktn_jax.evaluation import ground_truth, result_files
from ktn_jax.evaluation.errors import EvaluationError


@pytest.fixture
def truth(flat_world):
    return ground_truth.read_ground_truth(flat_world.annotations)


def _entries(flat_world, folder):
    results, _ = flat_world.write(folder)
    return json.loads(results.read_text())


def _index(folder, content, truth):
    path = folder / "given.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return result_files.index_results(path, truth)


def _pictures(index):
    with open(index.path, "rb") as handle:
        return {
            detection.detection_id: result_files.read_payload(handle, detection)[0]
            for found in index.by_image.values()
            for detection in found
        }


def test_all_layouts_give_the_same_pictures(flat_world, truth, tmp_path):
    entries = _entries(flat_world, tmp_path)
    nested = [
        {k: v for k, v in entry.items() if not k.startswith("uv_")}
        | {"densepose": [[entry["uv_shape"], entry["uv_data"]], entry["bbox"]]}
        for entry in entries
    ]
    texts = {
        "list": json.dumps(entries),
        "indented": json.dumps(entries, indent=4, ensure_ascii=False),
        "with a byte order mark": "\ufeff" + json.dumps([{**e, "by": "Gül"} for e in entries]),
        "lines": "\n".join(json.dumps(entry) for entry in entries) + "\n",
        "nested": json.dumps(nested),
    }
    for name, text in texts.items():
        pictures = _pictures(_index(tmp_path, text, truth))
        assert len(pictures) == len(entries), name
        for number, entry in enumerate(flat_world.entries, start=1):
            np.testing.assert_array_equal(pictures[number], entry["iuv"], name)


def test_real_results_of_another_system(real_dir):
    path = real_dir / "pairs" / "example_results.json"
    images = [{"id": i, "height": 1000, "width": 1000} for i in (785, 872, 885)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    index = result_files.index_results(path, ground_truth.read_ground_truth(content))
    pictures = _pictures(index)
    assert len(pictures) == 21
    assert pictures[1].shape == (3, 342, 215)
    assert set(np.unique(pictures[1][0])) <= set(range(25))
    for found in index.by_image.values():
        scores = [detection.score for detection in found]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"detection 2: image_id 99 is not in annotations; were these results"),
        ({"image_id": "7"}, r"detection 2: image_id must be a whole number, got '7'"),
        ({"score": float("nan")}, r"detection 2: score must be a finite number, got nan"),
        ({"score": "0.9"}, r"detection 2: score must be a finite number, got '0.9'"),
        ({"score": None}, "detection 2: score must be a finite number, got None"),
        ({"bbox": [1, 2, 3]}, "detection 2: bbox must be four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "detection 2: bbox must be four finite numbers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "detection 2: bbox must be four finite numbers"),
        ({"category_id": 0}, r"detection 2: category_id 0 is not in .* \[1\]; person is 1"),
        ({"keypoints": [1, 2, 3]}, "detection 2: keypoints must be 51 finite numbers"),
        ({"uv_data": None, "uv_shape": None}, None),
    ],
)
def test_a_wrong_field_is_named(flat_world, truth, tmp_path, change, message):
    entries = _entries(flat_world, tmp_path)
    entries[1] |= change
    if message is None:
        del entries[1]["uv_data"]
        message = "detection 2: no IUV picture"
    with pytest.raises(EvaluationError, match=f"given.json: {message}"):
        _index(tmp_path, entries, truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bbox": [1, 2, 97.5, 64]},
            r"the IUV picture has shape \[3, 64, 96\], a box of \[97.5, 64.0\] needs \[3, 64",
        ),
        (
            {"bbox": [1, 2, 94.5, 64]},
            r"the IUV picture has shape \[3, 64, 96\], a box of \[94.5, 64.0\] needs",
        ),
        ({"uv_shape": [3, 64, 97]}, r"the PNG has shape \(3, 64, 96\), the entry says"),
        ({"uv_data": "bm90IGEgcG5n"}, "IUV picture: "),
        ({"uv_data": 5}, "IUV picture: "),
        ({"uv_shape": [3, "a", 5]}, "wanted 'densepose'"),
        ({"uv_shape": None}, "wanted 'densepose'"),
    ],
)
def test_a_wrong_picture_is_named(flat_world, truth, tmp_path, change, message):
    entries = _entries(flat_world, tmp_path)
    entries[0] |= change
    index = _index(tmp_path, entries, truth)
    with pytest.raises(EvaluationError, match=f"detection 1 of image 7: {message}"):
        _pictures(index)


def test_a_box_rounded_down_keeps_its_picture(flat_world, truth, tmp_path):
    entries = _entries(flat_world, tmp_path)
    entries[0]["bbox"][2] -= 0.25  # 95.75: the reference reads the first 95 columns
    assert _pictures(_index(tmp_path, entries, truth))[1].shape == (3, 64, 96)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file; an evaluation without detections is the list"),
        (" \n", "empty file"),
        ("{}", "image_id must be a whole number"),
        ("[1, 2]", r"expected a detection \{...\} at byte 1, found '1'"),
        ('"text"', "expected a detection"),
        ("[", "the list is not closed; was the file cut short"),
        ('[{"image_id": 7, "uv_data": "abc', "is not complete; was the file cut short"),
        ('[{"image_id": 7, "score": }' + " " * 100 + "]", "not JSON at byte"),
        ('[{"a": ' + "[" * 200_000, "nested too deeply|not complete"),
        ('{"image_id": 7, "results": []}', "shard of results; merge"),
    ],
)
def test_what_is_no_results_file_is_told(truth, tmp_path, text, message):
    with pytest.raises(EvaluationError, match=message):
        _index(tmp_path, text, truth)


def test_no_file_and_no_detections(truth, tmp_path):
    with pytest.raises(EvaluationError, match="no such results file"):
        result_files.index_results(tmp_path / "none.json", truth)
    assert len(_index(tmp_path, "[]", truth)) == 0


def test_equal_scores_keep_the_order_of_the_file(flat_world, truth, tmp_path):
    entries = [{**entry, "score": 0.5} for entry in _entries(flat_world, tmp_path)]
    index = _index(tmp_path, entries, truth)
    ids = [detection.detection_id for detection in index.by_image[3]]
    assert ids == sorted(ids) and len(ids) == 2


def test_a_large_file_is_not_held_in_memory(flat_world, truth, tmp_path):
    entry = _entries(flat_world, tmp_path)[0]
    entry["padding"] = "x" * (1 << 20)
    text = json.dumps(entry)
    path = tmp_path / "large.json"
    with open(path, "w") as handle:
        handle.write("[" + ",".join([text] * 60) + "]")
    tracemalloc.start()
    index = result_files.index_results(path, truth)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 60
    assert path.stat().st_size > 60 << 20
    assert peak < 24 << 20  # some copies of a 4 MiB window, whatever the file's size is


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "no list 'images'"),
        (lambda c: c["images"].append(c["images"][0]), "image id 7 appears twice"),
        (lambda c: c["images"][0].pop("height"), "an image needs id, height and width"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "annotation id 1 appears twice"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1 is of image 5, which"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, 1]), "annotation 1: bbox must be"),
        (lambda c: c["annotations"][0].pop("area"), "annotation 1: area must be a number"),
        (lambda c: c["annotations"][0]["dp_x"].pop(), "annotation 1: dp_x, dp_y, .* equally long"),
        (lambda c: c["annotations"][0].pop("dp_U"), "annotation 1: dp_x, dp_y, .* equally long"),
        (lambda c: c.update(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]), "no cat"),
    ],
)
def test_wrong_annotations_are_named(flat_world, change, message):
    content = copy.deepcopy(flat_world.annotations)
    change(content)
    with pytest.raises(EvaluationError, match=message):
        ground_truth.read_ground_truth(content)


def test_results_given_as_annotations_are_told(flat_world, tmp_path):
    results, _ = flat_world.write(tmp_path)
    with pytest.raises(EvaluationError, match="are annotations and results swapped"):
        ground_truth.read_ground_truth(results)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(EvaluationError, match="not a JSON file"):
        ground_truth.read_ground_truth(tmp_path / "text")
    with pytest.raises(EvaluationError, match="no such annotation file"):
        ground_truth.read_ground_truth(tmp_path / "none")
