"""Which annotation files a folder holds, and what `ktn data check` makes of it."""

import json
import re

import pytest

from ktn_jax import cli
from ktn_jax.data_pipelines.densepose_coco import layout


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_annotation_files_and_their_images_are_found(tmp_path):
    own, coco, flat = tmp_path / "own", tmp_path / "coco", tmp_path / "flat"
    _touch(own, "annotations/a.json", "annotations/b.json", "images/b/1.jpg", "metadata.json")
    assert layout.find_annotation_files(own) == {
        own / "annotations/a.json": own / "images",
        own / "annotations/b.json": own / "images/b",
    }
    published = "densepose_minival2014.json", "densepose_coco_2014_train.json"
    _touch(coco, *(f"annotations/{name}" for name in published), "val2014/1.jpg")
    assert layout.find_annotation_files(coco) == {
        coco / "annotations" / published[0]: coco / "val2014",
        coco / "annotations" / published[1]: None,
    }
    _touch(flat, "x.json", "y.json")
    assert layout.find_annotation_files(flat) == {flat / "x.json": None, flat / "y.json": None}
    _touch(flat, "annotations.json")
    assert layout.find_annotation_files(flat) == {flat / "annotations.json": None}
    with pytest.raises(layout.MissingFilesError, match=re.escape(f"mean {flat}/annotations.json")):
        layout.find_annotation_files(tmp_path)
    with pytest.raises(layout.MissingFilesError, match="name the annotation file$"):
        layout.find_annotation_files(own / "images")


def test_check_takes_a_folder(folder, capsys, cases_dir):
    assert cli.main(["data", "check", str(folder)]) == 0
    (folder / "images" / "103.jpg").unlink()
    assert cli.main(["data", "check", str(folder)]) == 1  # the images are checked too
    assert "[image_missing] 103.jpg" in capsys.readouterr().out
    raw = json.loads((folder / "annotations.json").read_text())
    (folder / "annotations").mkdir()
    (folder / "annotations.json").rename(folder / "annotations" / "bad.json")
    raw["images"].pop(3)
    raw["annotations"] = [one for one in raw["annotations"] if one["image_id"] != 103]
    (folder / "annotations" / "good.json").write_text(json.dumps(raw))
    assert cli.main(["data", "check", str(folder)]) == 1
    assert capsys.readouterr().out.endswith("1 of 2 files have errors\n")
    assert cli.main(["data", "check", str(folder / "images")]) == 1
    assert "name the annotation file" in capsys.readouterr().err
    for name, code, kind in (("data/exif", 0, "annotated_as"), ("train/cut_jpeg", 1, "truncated")):
        assert cli.main(["data", "check", str(cases_dir / name)]) == code
        assert kind in capsys.readouterr().out
