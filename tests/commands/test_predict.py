"""The command ktn predict around a predictor that needs no network."""

import io
import json
import sys

import fsspec
import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.evaluation import template_files
from ktn_jax.inference.inputs import map_photos
from ktn_jax.results import dumps, records
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime.stores import Store


class _Predictor:
    """Finds one person in each photo, whose score is the red of the photo in percent."""

    stops_at = None  # batches until Ctrl-C

    def __init__(self, config):
        self.config, self._calls = config, 0

    def __call__(self, photos):
        return map_photos(
            photos,
            test=self.config.test,
            prepare=lambda photo: photo,
            find=self._find,
            finish=lambda photo, people: people,
        )

    def _find(self, batch):
        self._calls += 1
        if self._calls == self.stops_at:
            raise KeyboardInterrupt
        iuv = np.ones((3, 15, 10), np.uint8)
        box = np.float32([2, 3, 12, 18])
        maps = {"sigma": np.linspace(-1, 1, 150).reshape(15, 10).astype(np.float32)}
        return [[PersonResult(box, int(p[0, 0, 0]) / 100, iuv, confidences=maps)] for p in batch]


@pytest.fixture(autouse=True)
def _no_network(use_predictor):
    use_predictor(_Predictor)


@pytest.fixture
def own(tmp_path):
    """A folder of a user's own: photos and other files."""
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    for name in ("frame10.png", "frame2.png", "sub/frame2.png"):
        Image.new("RGB", (30, 20), (90, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("mine")
    return folder


def _predict(*arguments):
    options = ["--config", "ktn:tiny", "--random-weights", "--set", "test.batch_size=1"]
    return cli.main(["predict", *map(str, arguments), *options])


def test_own_pictures_are_no_photos(own, capsys):
    assert _predict(own, "--output", own) == 0
    captured = capsys.readouterr()
    assert "2 people in 2 photos" in captured.out
    assert "notes.txt" in captured.err and "--recursive" in captured.err
    written = sorted(path.name for path in own.iterdir())
    assert _predict(own, "--output", own) == 1
    assert "results.json" in (error := capsys.readouterr().err) and "--overwrite" in error
    assert _predict(own, "--output", own, "--overwrite") == 0
    captured = capsys.readouterr()
    assert "2 people in 2 photos" in captured.out
    assert "passed over files named like those that are written (7)" in captured.err
    assert sorted(path.name for path in own.iterdir()) == written


def test_results_name_what_was_given_and_what_was_written(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _predict("own", "--recursive", "--output", "out") == 0
    found = records.read_results("out/results.json")
    assert [(r["image_id"], r["file_name"], r["output_name"]) for r in found] == [
        (1, "own/frame2.png", "frame2"),
        (2, "own/frame10.png", "frame10"),
        (3, "own/sub/frame2.png", "frame2-2"),
    ]
    for record in found:
        assert (tmp_path / "out" / f"{record['output_name']}_overlay.jpg").is_file()


def test_the_home_folder_is_meant_by_a_tilde(own, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _predict("~/own", "--output=~/out") == 0
    assert (tmp_path / "out" / "frame2_iuv.png").is_file()


def test_ids_and_category_come_from_the_annotations(own, tmp_path, capsys):
    images = [
        {"id": number, "file_name": name, "height": 20, "width": 30}
        for number, name in ((40, "frame10.png"), (50, "frame2.png"))
    ]
    path = tmp_path / "truth.json"
    categories = [{"id": 1, "name": "dog"}, {"id": 5, "name": "person"}]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    assert _predict(own, "--output", tmp_path / "out", "--annotations", path) == 0
    found = records.read_results(tmp_path / "out" / "results.json")
    assert [(r["image_id"], r["category_id"]) for r in found] == [(40, 5), (50, 5)]
    assert [r["output_name"] for r in found] == ["frame10", "frame2"]
    # Annotated without its EXIF orientation: people are found in the frame of the annotations.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(own / "frame2.png", exif=exif)
    assert _predict(own, "--output", tmp_path / "turned", "--annotations", path) == 0
    with Image.open(tmp_path / "turned" / "frame2_iuv.png") as picture:
        assert picture.size == (30, 20)
    Image.new("RGB", (30, 30)).save(own / "frame2.png")
    assert _predict(own, "--output", tmp_path / "square", "--annotations", path) == 1
    assert "frame2.png: the image is 30 x 30" in capsys.readouterr().err
    Image.new("RGB", (30, 20)).save(own / "other.png")
    assert _predict(own, "--output", tmp_path / "new", "--annotations", path) == 1
    assert "other.png" in capsys.readouterr().err
    results = tmp_path / "results.json"
    path.rename(results)
    arguments = ("--output", tmp_path, "--annotations", results, "--overwrite")
    assert _predict(own / "frame2.png", *arguments) == 1
    assert "would be written over" in capsys.readouterr().err
    assert json.loads(results.read_text())["images"] == images


def test_a_stopped_command_resumes(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_Predictor, "stops_at", 2)
    arguments = (own, "--recursive", "--output", tmp_path / "out")
    assert _predict(*arguments) == 75
    assert "the same command resumes it" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()
    assert _predict(*arguments, "--min-score", "0.1") == 1
    assert "other photos, weights or options" in capsys.readouterr().err
    monkeypatch.setattr(_Predictor, "stops_at", 3)
    assert _predict(*arguments) == 0
    assert "3 people in 3 photos" in capsys.readouterr().out


def test_photos_and_output_may_be_in_a_store(own, tmp_path, monkeypatch, capsys):
    """A stopped command resumes there as well: what was found is fetched and not found again."""
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").store.clear()
    store = Store("memory://bucket")
    for name in ("frame2.png", "frame10.png"):
        store.send(own / name, f"photos/{name}")
    arguments = ("memory://bucket/photos/", "--output", "memory://bucket/out")
    monkeypatch.setattr(_Predictor, "stops_at", 2)
    assert _predict(*arguments) == 75
    assert not any(name.endswith("results.json") for name in store.files())
    monkeypatch.setattr(_Predictor, "stops_at", 2)  # of the two photos one is left
    assert _predict(*arguments) == 0
    assert "2 people in 2 photos, written to memory://bucket/out" in capsys.readouterr().out
    found = json.loads(store.read("out/results.json"))
    assert [record["output_name"] for record in found] == ["frame2", "frame10"]
    names = [name for name in store.files() if name.startswith("out/")]
    assert "out/frame2_overlay.jpg" in names and not any("partial" in name for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "own"]


def test_the_report_survives_a_terminal_that_lacks_characters(own, tmp_path, monkeypatch):
    (own / "été.jpg").write_bytes(b"no photo")
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert _predict(own, "--output", tmp_path / "fotos_é") == 1
    for stream in streams:
        stream.flush()
    output, error = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    assert "2 people in 2 photos" in output and r"fotos_\xe9" in output
    assert r"\xe9t\xe9.jpg: not an image, or a damaged one: its first bytes" in error
    assert "BytesIO" not in error and error.count("not an image") == 1


def test_confidences_are_written_and_drawn_on_request(own, tmp_path, capsys):
    photo, out = own / "frame2.png", tmp_path / "out"
    confident = ["--set", "model.predictor.uv_confidence='iid_iso'"]
    assert _predict(photo, "--output", tmp_path / "plain", *confident) == 0
    (record,) = records.read_results(tmp_path / "plain" / "results.json")
    assert "confidences" not in record
    assert not (tmp_path / "plain" / "frame2_confidence.jpg").exists()
    assert _predict(photo, "--output", out, "--confidences", *confident) == 0
    (people,) = records.records_to_people(records.read_results(out / "results.json")).values()
    sigma = people[0].confidences["sigma"]
    np.testing.assert_allclose(sigma.ravel(), np.linspace(-1, 1, 150), atol=2e-5)
    with Image.open(out / "frame2_confidence.jpg") as picture:
        assert picture.size[0] == 30
    capsys.readouterr()
    assert _predict(photo, "--output", out, "--confidences", "--overwrite") != 0
    assert "predicts no confidences" in capsys.readouterr().err


def test_a_used_folder_is_refused_before_the_weights_are_read(tmp_path, capsys, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("[]")
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["predict", str(tmp_path / "p.png"), "--config=ktn:tiny"]
    assert cli.main([*command, "--weights=~/none.pth", "--output=~/out"]) == 1
    assert f"{tmp_path}/out holds files that this would replace" in capsys.readouterr().err
    assert cli.main([*command, "--weights=~/none.pth", "--output=~/new"]) == 1
    assert f"{tmp_path}/none.pth" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_styles_and_dumps_are_written_and_kept_apart(own, tmp_path, capsys):
    out = tmp_path / "out"
    chosen = ("--style", "u", "--style", "contour+bbox", "--background", "black", "--dump")
    assert _predict(own, "--output", out, *chosen) == 0
    ends = ("iuv.png", "instances.png", "overlay.jpg", "u.png", "contour+bbox.png")
    ends += ("dump.npz", "dump.json")
    names = ("frame2", "frame10")
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        *(f"{name}_{end}" for name in names for end in ends),
    }
    dump = dumps.read_dump(out / "frame2_dump.npz")
    assert dump.file_name == str(own / "frame2.png") and dump.image_size_hw == (20, 30)
    assert dump.image_id == 1 and len(dump.people) == 1 and "sigma" in dump.people[0].confidences
    with Image.open(out / "frame2_u.png") as picture:
        pixels = np.asarray(picture)
    assert picture.mode == "RGB" and not pixels[:3].any() and pixels[3:18, 2:12].all(-1).all()
    (out / "results.json").unlink()
    capsys.readouterr()
    (out / "frame2_iuv.png").unlink()
    assert _predict(own, "--output", out, *chosen) == 1
    assert "frame2_instances.png" in capsys.readouterr().err
    for wrong, message in (
        (("--style", "dp_u"), "unknown style 'dp_u'"),
        (("--style", "texture"), "--atlas"),
        (("--style", "bbox+vertex"), "the style vertex needs a model with vertices"),
        (("--opacity", "2"), "opacity must be 0 to 1"),
    ):
        assert _predict(own, "--output", tmp_path / "new", *wrong) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


class _Embedder:
    """Finds a person in each photo whose pixels show the vertices of a mesh, one after another."""

    def __init__(self, config):
        self.config = config

    def __call__(self, batch):
        vertices = np.arange(-1, 149, dtype=np.int32).reshape(15, 10) % 72
        confidences = {"coarse_segm_confidence": np.full((15, 10), 0.5, np.float32)}
        box = np.float32([2, 3, 12, 18])
        fields = {"vertices": vertices, "mesh": "own", "confidences": confidences}
        return [[PersonResult(box, 0.9, **fields)] for _ in batch]


def test_people_with_vertices_are_written_drawn_and_given_charts(
    own, tmp_path, use_predictor, capsys
):
    use_predictor(_Embedder)
    mesh = tmp_path / "own.npz"
    np.savez(mesh, vertices=np.random.default_rng(0).normal(size=(72, 3)), faces=[[0, 1, 2]])
    part, place = np.divmod(np.arange(72), 3)
    template_files.write_template(
        tmp_path / "template",
        u=place / 2,
        v=1 - place / 2,
        part=part + 1,
        row=np.arange(72),
        geodesics=[np.ones(72 * 71 // 2)],
        num_distances=72 * 71 // 2,
        origin="points",
    )
    photo = str(own / "frame2.png")
    embedding = ["--config=cse:tiny", "--random-weights", "--set=test.batch_size=1"]
    embedding += ["--set=model.predictor.has_segm_confidence=True", "--confidences", "--dump"]
    drawn = ["--style=vertex", f"--mesh={mesh}"]
    plain, charted = tmp_path / "plain", tmp_path / "charted"
    assert cli.main(["predict", photo, *embedding, *drawn, f"--output={plain}"]) == 0
    names = {
        "instances.png",
        "overlay.jpg",
        "vertex.png",
        "confidence.jpg",
        "dump.npz",
        "dump.json",
    }
    files = {path.name.removeprefix("frame2_") for path in plain.iterdir()}
    assert files == {*names, "results.json"}
    ((person,),) = records.records_to_people(records.read_results(plain / "results.json")).values()
    (expected,) = _Embedder(None)([0])[0]
    np.testing.assert_array_equal(person.vertices, expected.vertices)
    np.testing.assert_allclose(person.confidences["coarse_segm_confidence"], 0.5)
    (dumped,) = dumps.read_dump(plain / "frame2_dump.npz").people
    np.testing.assert_array_equal(dumped.vertices, expected.vertices)
    # The same from the file.
    results = str(plain / "results.json")
    assert cli.main(["draw", results, *drawn, f"--output={tmp_path / 'again'}"]) == 0
    pictures = [folder / "frame2_vertex.png" for folder in (plain, tmp_path / "again")]
    first, second = (np.asarray(Image.open(path)) for path in pictures)
    np.testing.assert_array_equal(first, second)
    assert (first[4:18, 2:12] != [90, 0, 0]).any(axis=-1).all()

    template = ["--template", str(tmp_path / "template")]
    assert cli.main(["predict", photo, *embedding, *template, f"--output={charted}"]) == 0
    ((person,),) = records.records_to_people(
        records.read_results(charted / "results.json")
    ).values()
    np.testing.assert_array_equal(person.vertices, expected.vertices)
    is_body = expected.vertices >= 0
    np.testing.assert_array_equal(person.iuv[0][is_body], expected.vertices[is_body] // 3 + 1)
    levels = np.array([0, 127, 255])
    np.testing.assert_array_equal(person.iuv[1][is_body], levels[expected.vertices[is_body] % 3])
    np.testing.assert_array_equal(
        person.iuv[2][is_body], levels[::-1][expected.vertices[is_body] % 3]
    )
    assert not person.iuv[:, ~is_body].any() and (charted / "frame2_iuv.png").is_file()
    # A template of another mesh, and a model that has charts.
    few = np.arange(72) % 24
    template_files.write_template(
        tmp_path / "template",
        **{"u": few / 24, "v": few / 24, "part": part + 1, "row": few},
        geodesics=[np.ones(24 * 23 // 2)],
        num_distances=24 * 23 // 2,
        origin="few points",
    )
    arguments = [*embedding, *template, f"--output={tmp_path / 'few'}"]
    assert cli.main(["predict", photo, *arguments]) == 1
    assert "vertex 71 of mesh own, and the template few points has 24" in capsys.readouterr().err
    assert _predict(photo, *template) == 1
    assert "--template is for models with vertices" in capsys.readouterr().err
