"""Annotation files that were filled up: what stays, what is added, and runs that resume."""

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ktn_jax.body.parts import FINE_TO_COARSE, UNKNOWN_PART
from ktn_jax.data_pipelines.coco import annotations, checks
from ktn_jax.data_pipelines.synthetic import dataset_files
from ktn_jax.data_pipelines.synthetic.scene import EASY
from ktn_jax.inference import inpainted_files, inpainting
from ktn_jax.inference.inpainted_files import InpaintRequest
from ktn_jax.inference.inpainting import DenseLabels
from ktn_jax.results.iuv_pictures import read_labels
from ktn_jax.results.shards import ShardError
from ktn_jax.runtime.processes import Processes

RUN = {"name": "teacher", "weights": "1"}
FINE_OF_COARSE = np.array([np.flatnonzero(FINE_TO_COARSE == part % 15)[-1] for part in range(16)])
FINE_OF_COARSE[UNKNOWN_PART] = 1


class _Teacher:
    """Labels every part with its last patch, and counts whom it labels."""

    batch_size = 2

    def __init__(self, stops_after=99, needs_parts=False):
        self.needs_parts = needs_parts
        self.labelled, self._stops_after = 0, stops_after

    def __call__(self, people):
        labels = []
        for person in people:
            if self.labelled == self._stops_after:
                raise KeyboardInterrupt
            self.labelled += 1
            size_hw = inpainting.grid_size_hw(person.box_xywh)
            part = inpainting._parts_on_grid(person.part_mask, size_hw)
            patch = np.where(part > 0, FINE_OF_COARSE[part], 0).astype(np.uint8)
            values = np.where(patch > 0, 0.5, 0).astype(np.float32)
            labels.append(DenseLabels(patch, np.stack([values, values]), values))
        return labels


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder of rendered people; one of them has no DensePose, and one a point of a model."""
    folder = tmp_path_factory.mktemp("people") / "set"
    path = dataset_files.write_dataset(folder, 3, seed=3, scene=EASY)
    raw = json.loads(path.read_bytes())
    without = copy.deepcopy(raw["annotations"][0])
    without |= {"id": 77, "note": "kept"}
    for key in [key for key in without if key.startswith("dp_")]:
        del without[key]
    raw["annotations"].append(without)
    count = len(raw["annotations"][1]["dp_x"])
    raw["annotations"][1] |= {
        "dp_annotated": [0] + [1] * (count - 1),
        "dp_confidence": [0.3] * count,
    }
    path.write_text(json.dumps(raw))
    return folder


def _request(people, output, **changes):
    return InpaintRequest(
        people / "annotations.json", people / "images", output, **({"points": 90} | changes)
    )


@pytest.fixture(scope="module")
def filled(people, tmp_path_factory):
    request = _request(people, tmp_path_factory.mktemp("filled") / "b.json")
    teacher = _Teacher()
    counts = inpainted_files.inpaint_file(teacher, request, RUN)
    return request, counts, teacher.labelled


def test_points_are_added_and_the_rest_is_kept(people, filled):
    request, counts, labelled = filled
    before = json.loads((people / "annotations.json").read_bytes())
    after = json.loads(request.output.read_bytes())
    assert {key: after[key] for key in before if key != "annotations"} == {
        key: before[key] for key in before if key != "annotations"
    }
    others = points = annotated = 0
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        if "dp_x" not in old:
            assert new == old
            others += 1
            continue
        flags = old.get("dp_annotated", [1] * len(old["dp_x"]))
        kept = [index for index, flag in enumerate(flags) if flag]
        for key in ("dp_x", "dp_y", "dp_I", "dp_U", "dp_V"):
            # As they were written, to the last digit.
            assert new[key][: len(kept)] == [old[key][index] for index in kept]
        added = max(90 - len(kept), 0)
        assert new["dp_annotated"] == [1] * len(kept) + [0] * added
        assert new["dp_confidence"] == [1] * len(kept) + [0.5] * added
        assert new["dp_masks"] == old["dp_masks"] and new["bbox"] == old["bbox"]
        points, annotated = points + len(new["dp_x"]), annotated + len(kept)
    assert (counts.others, counts.points, counts.annotated) == (others, points, annotated)
    assert counts.people == labelled == len(before["annotations"]) - others
    assert not request.unfinished.exists()


def test_what_is_written_passes_the_checks_and_stays_in_the_part_masks(filled):
    request = filled[0]
    report = checks.check_file(request.output, request.images)
    assert report.ok, report.format()
    for record in annotations.parse_dataset(request.output).images:
        for person in record.people:
            if not inpainted_files.is_labelled(person, needs_parts=True):
                continue
            dense = person.densepose
            cells = (np.floor(axis).astype(int).clip(0, 255) for axis in (dense.y, dense.x))
            part = dense.part_mask[tuple(cells)]
            # The annotator's points are on pixels at the border of a part, which the mask rounds.
            new = ~dense.is_annotated
            assert (FINE_TO_COARSE[dense.i.astype(int)] == part)[new].all() and (part > 0)[
                new
            ].all()
            patch, uv, confidence = read_labels(request.output.parent / dense.iuv_file)
            height, width = patch.shape
            y = ((np.arange(height) + 0.5) * 256 / height).astype(int)
            x = ((np.arange(width) + 0.5) * 256 / width).astype(int)
            on_body = dense.part_mask[np.ix_(y, x)] > 0
            assert ((patch > 0) == on_body).all() and not confidence[~on_body].any()
            np.testing.assert_allclose(uv[:, on_body], 0.5, atol=0.003)


def test_a_stopped_run_resumes_to_the_same_file(people, filled, tmp_path):
    request = _request(people, tmp_path / "b.json")
    with pytest.raises(KeyboardInterrupt):
        inpainted_files.inpaint_file(_Teacher(stops_after=2), request, RUN)
    assert not request.output.exists()
    with pytest.raises(ShardError, match="another run"):
        inpainted_files.inpaint_file(_Teacher(), request, RUN | {"weights": "2"})
    teacher = _Teacher()
    counts = inpainted_files.inpaint_file(teacher, request, RUN)
    assert 0 < teacher.labelled < filled[2] and counts == filled[1]
    assert request.output.read_bytes() == filled[0].output.read_bytes()


def test_records_that_are_left_out_stay_as_they_are(people, tmp_path):
    raw = json.loads((people / "annotations.json").read_bytes())
    raw["categories"].append({"id": 18, "name": "dog"})
    labelled = raw["annotations"][0]
    dog = {"id": labelled["id"], "image_id": labelled["image_id"], "category_id": 18}
    others = [dog, {"id": [1]}, 7, {**labelled, "dp_x": []}, {**labelled, "id": True}]
    raw["annotations"] = [dog, labelled, *others[1:], *raw["annotations"][1:]]
    (tmp_path / "a.json").write_text(json.dumps(raw))
    request = InpaintRequest(
        tmp_path / "a.json",
        people / "images",
        tmp_path / "b.json",
        with_pictures=False,
        on_bad="skip",
        max_skipped_fraction=1.0,
    )
    counts = inpainted_files.inpaint_file(_Teacher(), request, RUN)
    after = json.loads(request.output.read_bytes())["annotations"]
    assert [after[0], *after[2:6]] == others
    assert len(after[1]["dp_x"]) > len(labelled["dp_x"])
    assert counts.people == sum("dp_confidence" in record for record in after[1:2] + after[6:])


@pytest.mark.parametrize("needs_parts", [True, False])
def test_people_with_a_mask_of_the_whole_body(people, tmp_path, needs_parts):
    raw = json.loads((people / "annotations.json").read_bytes())
    whole = raw["annotations"][0]
    merged = coco_mask.merge([mask for mask in whole["dp_masks"] if mask])
    whole["dp_masks"] = merged | {"counts": merged["counts"].decode()}
    (tmp_path / "a.json").write_text(json.dumps(raw))
    request = InpaintRequest(
        tmp_path / "a.json", people / "images", tmp_path / "b.json", with_pictures=False
    )
    counts = inpainted_files.inpaint_file(_Teacher(needs_parts=needs_parts), request, RUN)
    after = json.loads(request.output.read_bytes())["annotations"][0]
    assert counts.without_parts == needs_parts
    assert (after == whole) == needs_parts == ("dp_annotated" not in after)


def test_processes_share_the_people(people, filled, tmp_path):
    request = _request(people, tmp_path / "b.json")
    # One after the other: the second one finds what the first did, and writes the file.
    teachers = [_Teacher(), _Teacher()]
    later = Processes(index=1, count=2)
    dataset = annotations.parse_dataset(request.annotations)
    request.pictures.mkdir()
    run = RUN | {"points": 90, "pictures": True}
    request.unfinished.mkdir()
    with pytest.raises(ValueError, match="holds 2 images, the annotations 3: a process"):
        inpainted_files.inpaint_file(teachers[1], request, RUN, Processes(index=0, count=2))
    inpainted_files._label_share(teachers[0], request, dataset, run, later)
    assert (
        inpainted_files.inpaint_file(teachers[1], request, RUN, Processes(index=0, count=2))
        == filled[1]
    )
    assert sum(teacher.labelled for teacher in teachers) == filled[2]
    assert request.output.read_bytes() == filled[0].output.read_bytes()


def test_nothing_is_overwritten(people, filled, tmp_path):
    request = filled[0]
    with pytest.raises(ValueError, match="b.json exists: give another --output"):
        inpainted_files.inpaint_file(_Teacher(), request, RUN)
    mine = _request(people, tmp_path / "c.json")
    mine.pictures.mkdir()
    with pytest.raises(ValueError, match="c_iuv exists"):
        inpainted_files.check_request(mine)
    inpainted_files.check_request(_request(people, tmp_path / "c.json", with_pictures=False))
    for changes, message in (
        ({"output": tmp_path / "folder" / "c.json"}, "there is no such folder"),
        ({"output": tmp_path / "c.txt"}, "must be a file NAME.json"),
        ({"points": 0}, "--points"),
    ):
        request = InpaintRequest(
            **{
                "annotations": people / "annotations.json",
                "images": people / "images",
                "output": tmp_path / "d.json",
                **changes,
            }
        )
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            inpainted_files.check_request(request)
