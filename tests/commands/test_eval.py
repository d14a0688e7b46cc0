"""ktn eval from the command line: a model, a file of any system, and what is said when it fails."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.checkpoints import weights
from ktn_jax.commands import EXIT_INTERRUPTED
from ktn_jax.commands import eval as eval_command
from ktn_jax.data_pipelines.synthetic.held_out import HELD_OUT_SEED, HeldOutPeople
from ktn_jax.data_pipelines.synthetic.scene import PRESETS
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource
from ktn_jax.inference import model_evaluation
from ktn_jax.results.iuv_pictures import encode_iuv
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import jax_setup
from ktn_jax.runtime.configuration import load_config
from ktn_jax.runtime.stores import Store

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANDOM = "--random-weights"
MODEL = [
    "--config=configs/ktn.py:tiny",
    RANDOM,
    "--set=test.short_side=96",
    "--set=test.max_side=96",
    "--set=test.size_buckets=((96,96),)",
    "--set=test.batch_size=2",
    "--set=model.box_head.max_detections=3",
    "--set=model.neck.channels=32",
    "--set=model.decoder.channels=32",
    "--set=model.decoder.out_channels=32",
    "--set=model.densepose_head.channels=32",
    "--set=data.synthetic.image_size_hw=(96,96)",
]
NUM_IMAGES = 3
SYNTHETIC = ["--data=synthetic", f"--num-images={NUM_IMAGES}", "--scene=easy"]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, draw_variables):
    # What the command sets for JAX must not reach the other tests.
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)
    monkeypatch.setattr(weights, "initialise", draw_variables)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, draw_variables):
    """The output folder of a run over synthetic people, and what it printed."""
    output = tmp_path_factory.mktemp("eval") / "out"
    with pytest.MonkeyPatch.context() as patch, _Printed(patch) as printed:
        patch.setattr(jax_setup, "prepare", lambda: None)
        patch.setattr(weights, "initialise", draw_variables)
        code = cli.main(["eval", *MODEL, *SYNTHETIC, "--output", str(output)])
    assert code == 0
    return output, printed.text


class _StandIn:
    """Finds one small person in the corner of each photo."""

    def __init__(self, stages):
        self.config = stages.config

    def __call__(self, photos):
        iuv = np.full((3, 20, 10), 9, np.uint8)
        return [[PersonResult(np.float32([0, 0, 10, 20]), 0.5, iuv)] for _ in photos]


@pytest.fixture
def stand_in(monkeypatch):
    """Spares what follows from compiling the network again."""
    monkeypatch.setattr(model_evaluation, "Predictor", _StandIn)


class _Printed:
    """What is written to standard output, where capsys is not at hand."""

    def __init__(self, patch):
        self._patch, self.text = patch, ""

    def __enter__(self):
        self._patch.setattr(sys, "stdout", self)
        return self

    def __exit__(self, *_):
        pass

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_model_on_synthetic_people(evaluated):
    output, text = evaluated
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["AP"][:3] == ["AP", "AP50", "AP75"] and float(lines["GPS"][1]) < 5
    assert "torso_back" in lines and "not comparable" in text and str(output) in text
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 <= metrics["GPSm"]["AP"] < 5 and metrics["meta"]["images"] == NUM_IMAGES
    assert metrics["people"]["annotated"] >= NUM_IMAGES
    page = (output / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "Error on the body" in page
    found = json.loads((output / "results.json").read_text())
    assert {entry["image_id"] for entry in found} <= set(range(1, NUM_IMAGES + 1))
    assert len(found) == 3 * NUM_IMAGES
    assert len(list((output / "people" / "images").iterdir())) == NUM_IMAGES


def test_the_same_command_again_predicts_nothing(evaluated, monkeypatch, capsys):
    output, text = evaluated
    monkeypatch.setattr(_StandIn, "__call__", None)
    monkeypatch.setattr(model_evaluation, "Predictor", _StandIn)
    before = (output / "results.json").read_bytes()
    assert cli.main(["eval", *MODEL, *SYNTHETIC, "--output", str(output)]) == 0
    assert capsys.readouterr().out == text
    assert (output / "results.json").read_bytes() == before


def test_a_folder_is_evaluated_as_its_files_are(evaluated, stand_in, tmp_path, monkeypatch, capsys):
    people, template = evaluated[0] / "people", evaluated[0] / "template"
    common = [*MODEL, "--template", str(template), "--output", str(tmp_path)]
    files = ["--annotations", str(people / "annotations.json"), "--images", str(people / "images")]
    assert cli.main(["eval", *common, "--data", str(people)]) == 0
    table = capsys.readouterr().out
    assert len(json.loads((tmp_path / "results.json").read_text())) == NUM_IMAGES
    monkeypatch.setattr(_StandIn, "__call__", None)
    assert cli.main(["eval", *common, *files]) == 0
    assert capsys.readouterr().out == table
    scored = ["--results", str(tmp_path / "results.json"), "--template", str(template)]
    assert cli.main(["eval", *scored, *files[:2]]) == 0
    alone = capsys.readouterr().out
    assert alone.startswith("  ") and table.startswith(alone.rstrip())


def test_another_run_is_refused_and_a_stopped_one_resumes(evaluated, stand_in, monkeypatch, capsys):
    output, _ = evaluated
    command = ["eval", *MODEL, *SYNTHETIC, "--output", str(output)]
    assert cli.main([*command, "--set=model.predictor.mask_threshold=0.4"]) == 1
    assert "another run" in capsys.readouterr().err
    assert cli.main([*command[:-3], "--scene=hard", *command[-2:]]) == 1
    assert "other settings" in capsys.readouterr().err

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ktn_jax.inference.dataset.predict_dataset", interrupt)
    assert cli.main(command) == EXIT_INTERRUPTED
    assert "resumes" in capsys.readouterr().err


def test_a_run_finds_its_own_folder_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def write(people, folder):
        seen.append(folder.parent)
        raise ValueError("nothing was made")

    monkeypatch.setattr(HeldOutPeople, "write", write)
    model = [f"--config={ROOT / 'configs/ktn.py:tiny'}", *MODEL[1:]]
    for more in ([], [], ["--seed=3"], ["--tta", "--set=test.augmentation.flip=False"]):
        assert cli.main(["eval", *model, *SYNTHETIC, *more]) == 1
    assert seen[0] == seen[1] and len(set(seen)) == 3
    assert all(folder.parent == pathlib.Path("ktn_eval") for folder in seen)


def test_augmented_views_from_the_command(evaluated, monkeypatch):
    output, _ = evaluated
    made, tables = [], (np.zeros((24, 256, 256)),) * 2
    monkeypatch.setattr("ktn_jax.inference.model_evaluation.load_symmetry", lambda _: tables)

    def predict(predictor, *, run, **_):
        made.append((predictor, run))
        raise ValueError("enough")

    monkeypatch.setattr("ktn_jax.inference.dataset.predict_dataset", predict)
    assert cli.main(["eval", *MODEL, *SYNTHETIC, "--output", str(output), "--tta"]) == 1
    ((predictor, run),) = made
    assert type(predictor).__name__ == "AugmentedPredictor" and run["augmented"]


def _rendered_truth(folder):
    """People rendered as the command does, written as results of a perfect system."""
    scene = dataclasses.replace(PRESETS["easy"], image_size_hw=(96, 96))
    source = SyntheticSource(NUM_IMAGES, HELD_OUT_SEED, scene)
    entries = []
    for index in range(NUM_IMAGES):
        picture = source.picture(index)
        truth, example = picture.truth, source.example(index, picture)
        people = np.flatnonzero(~picture.is_crowd)
        for person, record in zip(people, example.annotations, strict=False):
            x, y, width, height = (int(number) for number in record["bbox"])
            window = np.s_[y : y + height, x : x + width]
            colours = np.rint(np.stack([truth.u[window], truth.v[window]]) * 255)
            iuv = np.concatenate([truth.patch[window][None], colours]).astype(np.uint8)
            iuv = np.ascontiguousarray(iuv * (truth.instance[window] == person + 1))
            entries.append(
                {
                    "image_id": record["image_id"],
                    "category_id": 1,
                    "score": 0.9,
                    "bbox": record["bbox"],
                    "uv_shape": list(iuv.shape),
                    "uv_data": encode_iuv(iuv),
                    "keypoints": record["keypoints"],
                }
            )
    path = folder / "truth_as_results.json"
    path.write_text(json.dumps(entries))
    return path


def test_rendered_truth_as_results_scores_100(evaluated, tmp_path, capsys):
    output, _ = evaluated
    results = _rendered_truth(tmp_path)
    command = ["eval", "--results", str(results), "--data", str(output / "people")]
    command += ["--template", str(output / "template"), "--output", str(tmp_path / "scores")]
    for mode in ("upstream", "ktn"):
        assert cli.main([*command, "--mode", mode]) == 0
        metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
        assert metrics["meta"]["mode"] == mode
        for name in ("GPS", "bbox", "keypoints"):
            assert metrics[name]["AP"] == pytest.approx(100), name
    assert any(
        line.split()[:2] == ["GPS", "100.00"] for line in capsys.readouterr().out.splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --results FILE to score a file, or --model, or --config and --weights"),
        (MODEL[:1], "ktn.py:tiny has no weights of its own: name them with --weights"),
        (["--weights=none.pkl", "--data=synthetic"], "none.pkl"),  # the model is recognised
        (MODEL, "give --data DIR, --data synthetic, or --annotations and --images"),
        ([*MODEL, "--annotations=a.json"], "--annotations and --images"),
        ([*MODEL, "--data=here"], "ktn data template --output"),
        ([*MODEL, "--data=here", "--template=t"], "--data here: no such folder"),
        ([*MODEL, "--data=.", "--template=t"], "it has no images/; name them with --images"),
        ([*MODEL, "--data=synthetic", "--images=i"], "makes its own annotations"),
        ([*MODEL, "--data=synthetic", "--scene=odd"], "scene 'odd': one of ['busy', 'default'"),
        ([*MODEL, "--data=synthetic", "--min-iou=2"], "lowest threshold"),
        ([*MODEL, "--data=synthetic", "--process-id=1"], "need --coordinator"),
        (["--results=r.json"], "--results needs --annotations"),
        ([*MODEL, "--annotations=a.json", "--images=."], "--template is needed"),
        (["--results=r.json", *MODEL], "leave out --model, --config"),
        (["--results=r.json", "--key-vertices=k.json"], "leave out --key-vertices"),
        (["--results=r.json", "--true-boxes"], "leave out --true-boxes"),
        (["--results=r.json", "--annotations=a.json", "--template=t"], "a.json"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, text, tmp_path, capsys):
    assert cli.main(["eval", *arguments, "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


@pytest.mark.extended
def test_two_processes_write_what_one_does(evaluated, tmp_path, draw_variables):
    output, _ = evaluated
    config = load_config("configs/ktn.py:tiny", [c.partition("=")[2] for c in MODEL[2:]])
    variables = {**draw_variables(config), "constants": weights.constants(config.model)}
    weights.write_variables(tmp_path / "w.safetensors", variables)
    model = [f"--weights={tmp_path / 'w.safetensors'}" if m == RANDOM else m for m in MODEL]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "ktn_jax", "eval", *model, *SYNTHETIC]
    command += ["--output", str(tmp_path / "out"), f"--coordinator=127.0.0.1:{port}"]
    started = [
        subprocess.Popen(
            [*command, "--num-processes=2", f"--process-id={index}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        texts = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], texts
    assert "GPSm" in texts[0] and "GPSm" not in texts[1]
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2
    ours, theirs = (
        json.loads((folder / "results.json").read_text()) for folder in (output, tmp_path / "out")
    )
    assert [entry["image_id"] for entry in ours] == [entry["image_id"] for entry in theirs]
    np.testing.assert_allclose(
        [entry["score"] for entry in ours], [entry["score"] for entry in theirs], atol=1e-4
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["meta"]["images"] == 3


class _Climber:
    """Finds a person whose rows show the vertices of a ladder, one rung too high."""

    def __init__(self, stages):
        self.config = stages.config

    def __call__(self, photos):
        vertices = np.repeat(np.arange(1, 21, dtype=np.int32)[:, None], 10, axis=1)
        box = np.float32([0, 0, 10, 20])
        return [[PersonResult(box, 0.5, vertices=vertices, mesh="ladder")] for _ in photos]


def test_a_model_with_vertices_is_scored_on_the_annotated_mesh(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model_evaluation, "Predictor", _Climber)
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    rungs = np.arange(22)
    along = np.stack([rungs * 0.1, rungs % 2 * 1e-4, 0 * rungs], axis=1)
    faces = np.stack([rungs[:-2], rungs[1:-1], rungs[2:]], axis=1)
    np.savez(tmp_path / "ladder.npz", vertices=along, faces=faces)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 40)).save(tmp_path / "images" / "a.png")
    rows = np.arange(1, 19)
    person = {
        **{"id": 1, "image_id": 5, "category_id": 1, "iscrowd": 0, "area": 200},
        **{"bbox": [0, 0, 10, 20], "segmentation": [[0, 0, 10, 0, 10, 20, 0, 20]]},
        "dp_x": [100.0] * len(rows),
        "dp_y": ((rows + 0.5) / 20 * 255).tolist(),
        **{"dp_vertex": rows.tolist(), "ref_model": "ladder"},
    }
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 40, "width": 30}],
        "annotations": [person],
        "categories": [{"id": 1, "name": "person"}],
    }
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))
    command = ["eval", "--config=configs/cse.py:tiny", RANDOM, f"--data={tmp_path}"]
    options = ["--mesh", str(tmp_path / "ladder.npz"), "--output", str(tmp_path / "out")]
    assert cli.main([*command, *options]) == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # 10 cm everywhere: exp(-0.1^2 / (2 * 0.255^2)) = 0.926 passes all thresholds but 0.95.
    assert scores["GPS"]["AP"] == pytest.approx(90) and scores["IOU"]["AP50"] > 99.99
    assert scores["patches"]["all"]["mean_cm"] == pytest.approx(10, rel=2e-3)
    assert scores["patches"]["all"]["points"] == len(rows)
    # The same file, scored by itself; and what is missing is said.
    results = ["eval", f"--results={tmp_path / 'out' / 'results.json'}", f"--data={tmp_path}"]
    assert cli.main([*results, *options[:2]]) == 0
    assert "90.00" in capsys.readouterr().out
    assert cli.main(results) == 1
    assert "distances on the mesh 'ladder': no mesh is called" in capsys.readouterr().err
    charts = {**person, "dp_I": [1.0] * 18, "dp_U": [0.5] * 18, "dp_V": [0.5] * 18}
    charts["dp_masks"] = [[]] * 14
    del charts["dp_vertex"], charts["ref_model"]
    annotations.write_text(json.dumps(content | {"annotations": [charts]}))
    assert cli.main([*command, "--output", str(tmp_path / "other")]) == 1
    assert "--template is needed to score the surface" in capsys.readouterr().err


def test_meshes_are_aligned_by_the_command(tmp_path, capsys):
    for name in ("one", "two"):
        line = np.stack([np.arange(4) * 0.1, np.arange(4) % 2 * 1e-4, np.zeros(4)], axis=1)
        np.savez(tmp_path / f"{name}.npz", vertices=line, faces=[[0, 1, 2], [1, 2, 3]])
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"one": {"nose": 0, "tail": 3}, "two": {"nose": 3, "tail": 0}}))
    pairs = "(4,4)", "(0,0)", "(True,True)"
    sizes = dict(zip(("num_vertices", "num_features", "trains"), pairs, strict=True))
    sizes |= {"trains_features": sizes["trains"]}
    names = [f"--set=model.meshes.{key}=('one','two')" for key in ("names", "of_classes")]
    changes = [f"--set=model.meshes.{key}={value}" for key, value in sizes.items()]
    classes = ["--set=model.box_head.num_classes=2", "--set=training.vertex_init=('','')"]
    model = ["eval", "--config=configs/cse.py:tiny", RANDOM, *names, *changes, *classes]
    meshes = [f"--mesh={tmp_path / name}.npz" for name in ("one", "two")]
    assert cli.main([*model, *meshes, f"--key-vertices={keys}"]) == 0
    *_, one, two, both = (line.split() for line in capsys.readouterr().out.splitlines() if line)
    assert (one[0], two[0], both[0]) == ("one", "two", "all")
    assert 0 <= float(one[1]) <= 0.31 and 0 < float(one[2]) <= 1
    keys.write_text("[1]")
    assert cli.main([*model, *meshes, f"--key-vertices={keys}"]) == 1
    assert "keys.json: wanted {mesh: {meaning: vertex}}" in capsys.readouterr().err


def test_classes_are_those_of_the_categories():
    config = load_config("configs/cse.py:animals")
    assert model_evaluation.classes_of(config, ["cat", "bear"]) == [2, 0]
    assert model_evaluation.classes_of(config, config.data.categories) == list(range(9))
    single = load_config("configs/cse.py:tiny")
    assert model_evaluation.classes_of(single, ["hominid"]) == [0]
    with pytest.raises(ValueError, match="classes are bear, cow,.*none of them is 'person'"):
        model_evaluation.classes_of(config, ["person"])
    with pytest.raises(ValueError, match="classes are person, and none of them is 'cat'"):
        model_evaluation.classes_of(single, ["person", "cat"])


@pytest.mark.parametrize(
    "config,given,expected",
    [
        ("cse:tiny", [], ("person",)),
        ("cse:animals", ["--category=cat", "--category=dog"], ("cat", "dog")),
        ("cse:tiny", ["--category=hominid"], ("hominid",)),
    ],
)
def test_all_classes_are_scored_unless_some_are_named(config, given, expected):
    def options(*arguments):
        command = ["eval", f"--config={config}", *arguments]
        parsed = cli.build_parser().parse_args(command)
        return eval_command._options(parsed, load_config(config)).categories

    assert options(*given) == expected
    if config == "cse:animals":
        assert len(options()) == 9 and options()[2] == "cat"


def test_a_results_file_in_a_store_is_scored_into_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    store = Store("memory://bucket")
    image = {"id": 1, "file_name": "1.jpg", "height": 50, "width": 60}
    box = [5.0, 5.0, 20.0, 30.0]
    person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 600, "iscrowd": 0}
    truth = {
        "images": [image],
        "annotations": [person],
        "categories": [{"id": 1, "name": "person"}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9}]
    for name, content in (("truth.json", truth), ("results.json", found)):
        store.write(name, json.dumps(content).encode())
    there = ["--results=memory://bucket/results.json"]
    there += ["--annotations=memory://bucket/truth.json", "--output=memory://bucket/out"]
    assert cli.main(["eval", *there, "--workers=1"]) == 0
    assert "written to memory://bucket/out" in capsys.readouterr().out
    assert json.loads(store.read("out/metrics.json"))["bbox"]["AP"] == pytest.approx(100)
    assert "out/report.html" in store.files()
    fsspec.filesystem("memory").store.clear()
