"""`ktn texture`: dress a person, read the texture back, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.body.procedural import assembly
from ktn_jax.results import atlas, records
from ktn_jax.results.frame_lines import FrameLine
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import jax_setup


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    # What the command sets for JAX must not reach the other tests.
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)


def person(x, score, patch):
    """A square of one patch, U to the right and V upwards, 0.2 to 0.8."""
    level = np.linspace(51, 204, 60).astype(np.uint8)
    u, v = np.meshgrid(level, level[::-1])
    return PersonResult([x, 10, x + 60, 70], score, np.stack([np.full_like(u, patch), u, v]))


@pytest.fixture
def folder(tmp_path):
    """Two photos of two people each, their results, and an atlas of noise."""
    rng = np.random.default_rng(0)
    found = []
    for number, name in enumerate(("a.png", "b.png"), start=1):
        Image.fromarray(rng.integers(1, 256, (80, 160, 3), np.uint8)).save(tmp_path / name)
        people = [person(10, 0.7, 2), person(90, 0.9, 24), person(50, 0.1, 1)]
        found += records.people_to_records(number, people, file_name=str(tmp_path / name))
    records.write_results(tmp_path / "results.json", found)
    Image.fromarray(rng.integers(1, 256, (1200, 800, 3), np.uint8)).save(tmp_path / "noise.png")
    return tmp_path


def pixels(path):
    return np.asarray(Image.open(path))


def run(folder, action, *arguments):
    return cli.main(
        ["texture", action, *map(str, arguments), "--results", str(folder / "results.json")]
    )


def test_a_texture_goes_onto_a_person_and_comes_back(folder, capsys):
    noise = pixels(folder / "noise.png")
    dressed = folder / "dressed.png"
    assert run(folder, "apply", folder / "noise.png", folder / "a.png", "--output", dressed) == 0
    assert "people dressed: 2" in capsys.readouterr().out
    changed = (pixels(dressed) != pixels(folder / "a.png")).any(axis=-1)
    assert changed[10:70, 10:70].mean() > 0.99 and changed[10:70, 90:150].mean() > 0.99
    assert not changed[:, 70:90].any()  # who has 0.1 is not drawn

    # The dressed photo has another name than the results say: it takes the place of the photo.
    dressed.replace(folder / "a.png")
    found = folder / "atlas.png"
    assert run(folder, "extract", folder / "a.png", "--output", found) == 0
    read = atlas.read_atlas(found)
    seen = read[..., 3] > 0
    rows, columns = np.nonzero(seen)
    assert rows.min() >= 1000 and columns.min() >= 600  # patch 24, the better one: the last tile
    assert 1036 < rows.min() < 1045 and 1155 < rows.max() < 1163
    exact = (read[seen][:, :3] == noise[seen]).all(axis=-1)
    assert exact.sum() >= 58 * 58  # all but the outline, one texel each; others lie between

    assert run(folder, "extract", folder / "a.png", "--output", folder / "c.png", "--person=2") == 0
    assert np.nonzero(pixels(folder / "c.png")[..., 3])[0].max() < 400  # patch 2


def test_several_photos_are_dressed_into_a_folder(folder, capsys):
    output = folder / "out"
    photos = [folder / "a.png", folder / "b.png"]
    (folder / "c.png").write_bytes(b"no image")
    arguments = (folder / "noise.png", *photos, folder / "c.png", "--output", output)
    assert run(folder, "apply", *arguments) == 1
    assert f"skipped {folder / 'c.png'}" in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == ["a_dressed.jpg", "b_dressed.jpg"]
    both = folder / "both.png"
    assert run(folder, "extract", *photos, "--output", both, "--person", "all") == 0
    assert "views: 4" in capsys.readouterr().out


def test_a_texture_of_another_layout(folder, capsys):
    template = assembly.make_body().template
    mesh = [f"v {x} {y} {z}" for x, y, z in template.vertices]
    (folder / "map.obj").write_text("\n".join([*mesh, "vt 0 0", "f 1/1 2/1 3/1"]))
    arguments = (folder / "a.png", "--output", folder / "o.png", "--uv-map", folder / "map.obj")
    assert run(folder, "extract", *arguments) == 1
    assert "--charts" in capsys.readouterr().err
    assert run(folder, "extract", *arguments, "--charts", folder / "none.mat") == 1
    assert "none.mat" in capsys.readouterr().err
    assert not (folder / "o.png").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("extract", "a.png", "--output", "b.png"), "would replace"),
        (("extract", "a.png", "--output", "a.png", "--overwrite"), "would be written over"),
        (("extract", "a.png", "--output", "atlas.jpg"), "is a .png"),
        (("extract", "a.png", "--output", "new.png", "--person=7"), "none is number 7"),
        (("extract", "noise.png", "--output", "new.png"), "none of its 6 records"),
        (("apply", "noise.png", "a.png", "--output", "noise.png", "--overwrite"), "written over"),
        (("apply", "noise.png", "a.png", "b.png", "--output", "new.jpg"), "name a folder"),
        (("apply", "noise.png", "a.png", "--output", "new.tiff"), "a .png or .jpg file, or a"),
        (("apply", "a.png", "b.png", "--output", "new.jpg"), "6 rows and 4 columns"),
        (("apply", "noise.png", "a.png", "--output", "new.jpg", "--config=ktn:tiny"), "both"),
        (("apply", "noise.png", "a.png", "--output", "new.jpg", "--set=seed=1"), "both"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_changes(folder, arguments, message, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    full = [str(folder / word) if "." in word else word for word in arguments]
    assert run(folder, *full) == 1
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_record_costs_one_photo(folder, capsys):
    entries = json.loads((folder / "results.json").read_text())
    entries[4]["uv_data"] = entries[4]["uv_data"][:60] + "AAAA" + entries[4]["uv_data"][64:]
    (folder / "results.json").write_text(json.dumps(entries))
    photos = (folder / "b.png", folder / "a.png")
    assert run(folder, "apply", folder / "noise.png", *photos, "--output", folder / "out") == 1
    captured = capsys.readouterr()
    assert f"skipped {photos[0]}: {folder / 'results.json'}: record 4: uv_data" in captured.err
    assert "people dressed: 2" in captured.out
    assert [path.name for path in (folder / "out").iterdir()] == ["a_dressed.jpg"]


def test_models_and_people_without_patches_are_refused_by_name(folder, capsys):
    model = ("--config", "cse:tiny", "--random-weights")
    for action in (("extract",), ("apply", folder / "noise.png")):
        given = ["texture", *action, folder / "a.png", "--output", folder / "new.png", *model]
        assert cli.main([str(word) for word in given]) == 1
        assert "finds no patches, U and V" in capsys.readouterr().err
    entries = json.loads((folder / "results.json").read_text())
    for entry in entries:
        del entry["uv_data"], entry["uv_shape"]
    (folder / "results.json").write_text(json.dumps(entries))
    assert run(folder, "extract", folder / "a.png", "--output", folder / "new.png") == 1
    assert "none of its 3 people has an IUV picture" in capsys.readouterr().err
    assert not (folder / "new.png").exists()


def test_people_of_a_video_are_dressed_by_their_own_number(folder, capsys):
    entries = json.loads((folder / "results.json").read_text())
    for entry, number in zip(entries, (7, 4, 9) * 2, strict=True):
        entry["track_id"] = number
    (folder / "results.json").write_text(json.dumps(entries))
    for number, left in ((7, 10), (4, 90)):
        arguments = (folder / "noise.png", folder / "a.png", "--output", folder / f"{number}.png")
        assert run(folder, "apply", *arguments, "--person", number) == 0
        assert "people dressed: 1" in capsys.readouterr().out
        changed = (pixels(folder / f"{number}.png") != pixels(folder / "a.png")).any(axis=-1)
        assert changed[10:70, left : left + 60].mean() > 0.99
        changed[10:70, left : left + 60] = False
        assert not changed.any()


def test_results_of_other_systems_are_found_by_image_id(folder, capsys):
    entries = json.loads((folder / "results.json").read_text())
    for entry in entries:
        del entry["file_name"]
        entry["image_id"] += 100
    (folder / "results.json").write_text(json.dumps(entries))
    (folder / "a.png").rename(folder / "000000000101.png")
    assert run(folder, "extract", folder / "000000000101.png", "--output", folder / "o.png") == 0
    assert "views: 1" in capsys.readouterr().out


def test_a_video_gives_the_texture_that_its_frames_give_as_photos(folder, capsys):
    frames = ("a.png", "b.png")
    found = records.read_results(folder / "results.json")
    lines = []
    for number, name in enumerate(frames):
        (folder / name).rename(folder / f"frame{number}.png")
        own = [{**record, "file_name": "x"} for record in found if record["image_id"] == number + 1]
        lines.append(FrameLine(number, number / 25, own))
    (folder / "frames.jsonl").write_bytes(b"".join(line.encode() for line in lines))
    for record in found:
        number = record["image_id"] - 1
        record["file_name"] = str(folder / f"frame{number}.png")
    records.write_results(folder / "results.json", found)
    photos = [folder / f"frame{number}.png" for number in (0, 1)]
    assert run(folder, "extract", *photos, "--output", folder / "photos.png") == 0

    def extract(output, *options):
        lines = ("--results", str(folder / "frames.jsonl"))
        given = [str(folder / "frame%d.png"), "--output", str(folder / output), *options]
        return cli.main(["texture", "extract", *given, *lines])

    assert extract("video.png") == 0
    assert "views: 2" in capsys.readouterr().out
    np.testing.assert_array_equal(pixels(folder / "video.png"), pixels(folder / "photos.png"))
    # The second frame alone.
    assert extract("second.png", "--start", "0.04") == 0
    assert run(folder, "extract", photos[1], "--output", folder / "one.png") == 0
    np.testing.assert_array_equal(pixels(folder / "second.png"), pixels(folder / "one.png"))
    assert extract("none.png", "--person", "3") == 1
    assert "no texture was seen in the frames" in capsys.readouterr().err
    assert run(folder, "extract", photos[0], "--every", "2", "--output", folder / "x.png") == 1
    assert "--every is for videos" in capsys.readouterr().err
    noise = folder / "noise.png"
    assert run(folder, "apply", noise, folder / "frame%d.png", "--output", folder / "x.png") == 1
    assert "ktn predict VIDEO --style texture" in capsys.readouterr().err
