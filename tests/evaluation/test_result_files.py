"""Reading results and annotations: layouts, streaming, and errors that say what is wrong."""

import copy
import json
import tracemalloc

import numpy as np
import pytest

from ktn_jax.evaluation import ground_truth, result_files
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.results.frame_lines import FrameLine


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
    frames = [[entries[0]], [], entries[1:]]  # of a video, whose name is no image's
    texts = {
        "list": json.dumps(entries),
        "indented": json.dumps(entries, indent=4, ensure_ascii=False),
        "with a byte order mark": "\ufeff" + json.dumps([{**e, "by": "Gül"} for e in entries]),
        "lines": "\n".join(json.dumps(entry) for entry in entries) + "\n",
        "nested": json.dumps(nested),
        "lines of frames": "".join(
            FrameLine(n, n / 25, [{**e, "file_name": "clip.mp4"} for e in frame]).encode().decode()
            for n, frame in enumerate(frames)
        ),
    }
    for name, text in texts.items():
        pictures = _pictures(_index(tmp_path, text, truth))
        assert len(pictures) == len(entries), name
        for number, entry in enumerate(flat_world.entries, start=1):
            np.testing.assert_array_equal(pictures[number], entry["iuv"], name)


def test_real_results_of_another_system(real_dir):
    path = real_dir / "pairs" / "example_results.json"
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": 1000, "width": 1000}
        for i in (785, 872, 885)
    ]
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
        ({"bbox": [1, 2, 3]}, r"detection 2: bbox must be \[x, y, w, h\]"),
        ({"bbox": [1, 2, -3, 4]}, r"detection 2: bbox must be \[x, y, w, h\]"),
        ({"bbox": [1, 2, float("inf"), 4]}, r"detection 2: bbox must be \[x, y, w, h\]"),
        ({"bbox": [1, 2, 10**400, 4]}, r"detection 2: bbox must be \[x, y, w, h\]"),
        ({"category_id": 0}, r"detection 2: category_id 0 is not in .* \[1\]; person is 1"),
        ({"keypoints": [1, 2, 3]}, "detection 2: keypoints must be 51 finite numbers"),
        ({"category_id": "1"}, "detection 2: category_id must be a whole number, got '1'"),
        ({"bbox": [1, 2, 98.5, 64]}, r"detection 2: uv_shape \[3, 128, 192\] does not fit bbox"),
        ({"bbox": [1, 2, 190.5, 128]}, r"detection 2: uv_shape \[3, 128, 192\] does not fit bbox"),
        ({"uv_shape": [3, 128, 193]}, r"detection 2: uv_shape .* is not that of uv_data"),
        ({"uv_shape": [3, "a", 5]}, r"detection 2: uv_shape must be \[3, h, w\]"),
        ({"uv_shape": None}, "detection 2: missing uv_shape"),
        ({"uv_data": "bm90IGEgcG5n"}, "detection 2: uv_data is not a PNG"),
        ({"uv_data": 5}, "detection 2: uv_data must be text"),
        ({"densepose": []}, "detection 2: densepose must be"),
        ({"densepose": {"a": 1}}, "detection 2: densepose must be"),
        ({"file_name": "zoe.jpg"}, "detection 2: image_id 7 with file_name 'zoe.jpg', but .*7.png"),
        ({"uv_data": None}, "detection 2: missing uv_data"),
    ],
)
def test_a_wrong_field_is_named(flat_world, truth, tmp_path, change, message):
    entries = _entries(flat_world, tmp_path)
    entries[1] |= change
    with pytest.raises(EvaluationError, match=f"given.json: {message}"):
        _index(tmp_path, entries, truth)


def test_the_category_that_is_scored_is_named(flat_world, tmp_path):
    annotations = copy.deepcopy(flat_world.annotations)
    annotations["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    truth = ground_truth.read_ground_truth(annotations, category="cat")
    entries = _entries(flat_world, tmp_path)
    entries[1]["category_id"] = 2
    notes = _index(tmp_path, entries, truth).notes
    assert "1 detections of other categories than cat left out" in notes
    entries[1]["category_id"] = 3
    with pytest.raises(EvaluationError, match=r"category_id 3 is not in .* \[1, 2\]; cat is 1"):
        _index(tmp_path, entries, truth)
    wrong = [entry | {"category_id": 2} for entry in entries]
    with pytest.raises(EvaluationError, match="other categories than cat, which has category_id 1"):
        _index(tmp_path, wrong, truth)


def test_a_damaged_picture_is_named(flat_world, truth, tmp_path):
    entries = _entries(flat_world, tmp_path)
    entries[0]["uv_data"] = entries[0]["uv_data"][:-40]  # its header is whole
    index = _index(tmp_path, entries, truth)
    with pytest.raises(EvaluationError, match="detection 1 of image 7: uv_data: not a PNG"):
        _pictures(index)


@pytest.mark.parametrize(("width", "columns"), [(95.75, 96), (96.0, 96), (96.9, 96), (97.5, 97)])
def test_a_box_that_was_rounded_keeps_its_picture(flat_world, truth, tmp_path, width, columns):
    # Down: the reference reads the first 95 columns. Up: what the picture lacks is background.
    entries = _entries(flat_world, tmp_path)
    entries[0]["bbox"][2] = width
    picture = _pictures(_index(tmp_path, entries, truth))[1]
    assert picture.shape == (3, 64, columns)
    np.testing.assert_array_equal(picture[:, :, :96], flat_world.entries[0]["iuv"])
    assert not picture[:, :, 96:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"empty file .*\[\] for none"),
        (" \n", "empty file"),
        ("{}", "missing image_id, score, bbox$"),
        ("[1, 2]", r"expected an object \{...\} at byte 1, found '1'"),
        ('"text"', "expected an object"),
        ("[", "the list is not closed; was the file cut short"),
        ('[{"image_id": 7, "uv_data": "abc', "is not complete; was the file cut short"),
        ('[{"image_id": 7, "score": }' + " " * 100 + "]", "not JSON at byte"),
        ('[{"a": ' + "[" * 200_000, "cannot be read|not complete"),
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
        (lambda c: c.pop("images"), "(file): images: .*is missing or not a list"),
        (lambda c: c["images"].append(c["images"][0]), "image 7: id: .*was there before"),
        (lambda c: c["images"][0].pop("height"), "image 7: height: .*is missing"),
        (lambda c: c["images"][0].update(height=None), "image 7: height: .*an integer, got None"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "annotation 1: id: .*was there"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1: image_id: .*has id 5"),
        (lambda c: c["annotations"][0].update(bbox=[0, 0, 1]), "annotation 1: bbox: .*must be"),
        (lambda c: c["annotations"][0].update(area=float("nan")), "annotation 1: area: .*got nan"),
        (
            lambda c: c["annotations"][0].update(iscrowd="0"),
            "iscrowd: .*the text '0'",
        ),
        (lambda c: c["annotations"][0].update(keypoints=[1] * 45), "keypoints: .*got 45 numbers"),
        (lambda c: c["annotations"][0]["dp_x"].pop(), "annotation 1: dp_x: .*lengths differ"),
        (lambda c: c["annotations"][0].pop("dp_U"), "annotation 1: dp_U: .*is missing or empty"),
        (
            lambda c: c["annotations"][0].update(segmentation=[1, 2, 3, 4, 5, 6]),
            r"segmentation: .*wrap the polygon in a list",
        ),
        (lambda c: c.update(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]), "no cat"),
        (lambda c: c.update(categories=[{"id": "1", "name": "person"}]), "must be an integer, got"),
        (
            lambda c: c["images"][0].update(ignore_regions_x=[[1, 2, 3]], ignore_regions_y=[[1]]),
            r"image 7: ignore_regions_x\[0\]: .*three or more x, and as many y",
        ),
    ],
)
def test_wrong_annotations_are_named(flat_world, change, message):
    content = copy.deepcopy(flat_world.annotations)
    change(content)
    with pytest.raises(EvaluationError, match=message.replace("(file)", r"\(file\)")):
        ground_truth.read_ground_truth(content)


def test_results_given_as_annotations_are_told(flat_world, tmp_path):
    results, _ = flat_world.write(tmp_path)
    with pytest.raises(EvaluationError, match="are these results, not annotations"):
        ground_truth.read_ground_truth(results)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(EvaluationError, match="not_json"):
        ground_truth.read_ground_truth(tmp_path / "text")
    with pytest.raises(EvaluationError, match="no such file"):
        ground_truth.read_ground_truth(tmp_path / "none")


def test_bad_records_are_left_out_and_counted(flat_world, tmp_path):
    content = copy.deepcopy(flat_world.annotations)
    content["images"][2]["height"] = None  # image 12, with two people
    content["annotations"][2]["dp_U"][0] = 1.5
    truth = ground_truth.read_ground_truth(content, "skip")
    assert [image.image_id for image in truth.images] == [3, 7]
    assert [len(image.people) for image in truth.images] == [2, 2]
    assert truth.images[0].people[0].points is None
    assert truth.notes == (
        "bad records left out: 1 images, 2 people; 1 people lost their dense annotation",
    )
    index = _index(tmp_path, _entries(flat_world, tmp_path), truth)
    assert set(index.by_image) == {3, 7}
    assert index.notes == ("2 detections on images that were left out",)
    content["annotations"] = [{**a, "bbox": None} for a in content["annotations"]]
    with pytest.raises(EvaluationError, match=r"7 of 9 records are bad, above 50\.00%"):
        ground_truth.read_ground_truth(content, "skip")


def test_detections_that_are_all_of_another_category_stop(flat_world, tmp_path):
    content = copy.deepcopy(flat_world.annotations)
    content["categories"].append({"id": 2, "name": "dog"})
    truth = ground_truth.read_ground_truth(content)
    entries = [{**entry, "category_id": 2} for entry in _entries(flat_world, tmp_path)]
    with pytest.raises(EvaluationError, match="all 6 detections are of other .* category_id 1"):
        _index(tmp_path, entries, truth)
    entries[0]["category_id"] = 1
    assert len(_index(tmp_path, entries, truth)) == 1
