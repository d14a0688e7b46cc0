"""Results files of any system drawn over their photos."""

import json

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.inference.drawn_results import draw_results
from ktn_jax.results import records, styles
from ktn_jax.results.records import PersonResult

PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def _person(x0, score, patch=9):
    iuv = np.full((3, 12, 8), 128, np.uint8)
    iuv[0] = patch
    return PersonResult([x0, 5, x0 + 8, 17], score, iuv)


@pytest.fixture
def folder(tmp_path):
    """Photos that are found by folder and name, by name, and by number; and results of them."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("sub/a.png", "\u00e4.png", "000000000785.png"):
        Image.fromarray(PHOTO).save(tmp_path / "photos" / name)
    entries = records.people_to_records(1, [_person(2, 0.6)], file_name="sub/a.png")
    entries += records.people_to_records(785, [_person(3, 0.7, 2), _person(20, 0.9)])
    entries += records.people_to_records(3, [_person(4, 0.4)], file_name="old/\u00e4.png")
    entries += records.people_to_records(785, [_person(6, 0.8, 5)])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def _draw(folder, *arguments):
    given = [folder / "results.json", "--images", folder / "photos", "--output", folder / "out"]
    return cli.main(["draw", *map(str, [*given, *arguments])])


def test_photos_are_found_and_people_drawn_best_first(folder, capsys):
    chosen = ("--style", "fine_segm+bbox", "--style", "labels", "--background", "lowest")
    assert _draw(folder, *chosen, "--colormap", "viridis", "--opacity", "1") == 0
    assert "4 people drawn on 3 photos" in capsys.readouterr().out
    names = ("000000000785", "a", "\u00e4")
    ends = ("_fine_segm+bbox.png", "_labels.png")
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {name + end for name in names for end in ends}
    people = [_person(20, 0.9), _person(6, 0.8, 5), _person(3, 0.7, 2)]
    settings = styles.StyleSettings("lowest", "viridis", 1.0)
    expected = styles.draw_styles(PHOTO, people, ("fine_segm", "bbox"), settings)
    with Image.open(folder / "out" / "000000000785_fine_segm+bbox.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), expected)
    with Image.open(folder / "out" / "000000000785_labels.png") as labels:
        assert labels.mode == "L" and labels.size == (40, 30)
        assert np.asarray(labels)[10, [2, 3, 6, 13, 14, 20]].tolist() == [0, 2, 5, 5, 0, 9]


def test_what_is_there_is_not_replaced(folder, capsys):
    assert _draw(folder) == 0
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    assert len(before) == 3 and all(path.name.endswith("_overlay.jpg") for path in before)
    assert _draw(folder) == 1
    assert "holds files that this would replace" in capsys.readouterr().err
    assert _draw(folder, "--overwrite", "--min-score", "0.95") == 0
    assert "0 people drawn on 3 photos" in capsys.readouterr().out
    path = folder / "photos" / "000000000785_iuv.png"
    Image.fromarray(PHOTO).save(path)
    entries = records.people_to_records(1, [_person(2, 0.6)], file_name="000000000785_iuv.png")
    entries += records.people_to_records(785, [_person(2, 0.6)])
    records.write_results(folder / "results.json", entries)
    photos = folder / "photos"
    with pytest.raises(ValueError, match=r"785_iuv\.png would be written over, and is read"):
        draw_results(folder / "results.json", photos, ["iuv"], images_dir=photos, overwrite=True)


def test_mistakes_are_named_and_cost_one_image(folder, capsys):
    path = folder / "results.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    (folder / "photos" / "\u00e4.png").unlink()
    entries[0]["uv_data"] = entries[0]["uv_data"][:60] + "AAAA" + entries[0]["uv_data"][64:]
    path.write_text(json.dumps(entries))
    assert _draw(folder) == 1
    captured = capsys.readouterr()
    assert "3 people drawn on 1 photos" in captured.out
    assert "skipped image 3 (old/\u00e4.png)" in captured.err and "not found" in captured.err
    assert "results.json: detection 1: uv_data: not a PNG" in captured.err
    assert [p.name for p in (folder / "out").iterdir()] == ["000000000785_overlay.jpg"]
    entries[2]["bbox"] = [1, 2]
    path.write_text(json.dumps(entries))
    assert _draw(folder, "--overwrite") == 1
    assert "results.json: detection 3: bbox must be" in capsys.readouterr().err
    path.write_text("[]")
    assert _draw(folder) == 1
    assert "no detections" in capsys.readouterr().err
    records.write_results(path, records.people_to_records(5, [_person(2, 0.6)]))
    assert _draw(folder) == 1
    assert "found none of the photos, such as image 5" in capsys.readouterr().err
    for wrong, message in (
        (("--style", "dp_segm"), "unknown style 'dp_segm'"),
        (("--style", "texture"), "needs an atlas"),
        (("--images", folder / "none"), "no such folder"),
        (("--background", "white"), "unknown background"),
    ):
        assert _draw(folder, *wrong) == 1
        assert message in capsys.readouterr().err


def test_names_and_frames_of_annotations(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(folder / "photos" / "turned.png", exif=exif)
    images = [{"id": 5, "file_name": "turned.png", "height": 30, "width": 40}]
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    records.write_results(folder / "results.json", records.people_to_records(5, [_person(2, 0.6)]))
    assert _draw(folder, "--annotations", folder / "truth.json", "--style", "bbox") == 0
    with Image.open(folder / "out" / "turned_bbox.png") as drawn:
        assert drawn.size == (40, 30)


def test_all_photos_may_be_in_subfolders(folder):
    for path in (folder / "photos").glob("*.png"):
        path.unlink()
    entries = records.people_to_records(1, [_person(2, 0.6)], file_name="sub/a.png")
    entries += records.people_to_records(2, [_person(2, 0.6)], file_name="a" * 5000)  # nowhere
    records.write_results(folder / "results.json", entries)
    summary = draw_results(folder / "results.json", folder / "out", images_dir=folder / "photos")
    assert summary.num_images == 1 and len(summary.failures) == 1
    assert "image 2 (aaa" in summary.failures[0] and len(summary.failures[0]) < 400
    assert (folder / "out" / "a_overlay.jpg").is_file()


def test_without_a_folder_file_names_are_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    entries = records.people_to_records(1, [_person(2, 0.6)], file_name="photos/sub/a.png")
    records.write_results(folder / "results.json", entries)
    assert draw_results("results.json", "out", ["v"]).num_images == 1
    assert (folder / "out" / "a_v.png").is_file()
