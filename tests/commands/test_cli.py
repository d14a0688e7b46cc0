"""The ktn command: what a user types, and what comes of it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ktn_jax
from ktn_jax import cli
from ktn_jax.checkpoints import files, torch_names, weights, zoo
from ktn_jax.results import records
from ktn_jax.runtime import host_memory, jax_setup
from ktn_jax.runtime.configuration import load_config

CONFIG = "configs/ktn.py:tiny"
FAST = [
    "--set=test.short_side=96",
    "--set=test.max_side=128",
    "--set=test.size_buckets=((96,128),)",
    "--set=model.box_head.max_detections=3",
]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # What the command sets for JAX must not reach the other tests.
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    config = load_config(CONFIG)
    variables = {**weights.initialise(config, 0), "constants": weights.constants(config.model)}
    weights.write_variables(path, variables)
    return path


def test_predict_writes_every_picture_and_continues_after_a_bad_file(
    tmp_path, weights_file, capsys
):
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(photos / "000000000785.jpg")
    Image.fromarray(rng.integers(0, 256, (90, 120), np.uint8)).save(photos / "12.png")
    (photos / "3.jpg").write_bytes(b"no photo")
    out = tmp_path / "out"
    arguments = ["predict", str(photos), "--config", CONFIG, *FAST, "--output", str(out)]
    code = cli.main([*arguments, "--weights", str(weights_file), "--min-score", "0"])
    assert code == 1
    captured = capsys.readouterr()
    assert "3.jpg" in captured.err
    assert "6 people in 2 photos" in captured.out
    for name in ("000000000785", "12"):
        with Image.open(out / f"{name}_iuv.png") as iuv:
            assert iuv.mode == "RGB" and iuv.size == (120, 90)
            assert np.asarray(iuv)[..., 0].max() <= 24
        with Image.open(out / f"{name}_instances.png") as instances:
            assert np.asarray(instances).max() <= 3
        with Image.open(out / f"{name}_overlay.jpg") as overlay:
            assert overlay.size == (120, 90)
    found = records.read_results(out / "results.json")
    assert len(found) == 6
    people = records.records_to_people(found)
    assert set(people) == {785, 12}


def test_convert_goes_both_ways_and_comes_back_to_the_same_bytes(tmp_path, weights_file):
    steps = [weights_file, tmp_path / "a.pkl", tmp_path / "orbax", tmp_path / "b.safetensors"]
    for source, target in zip(steps, steps[1:], strict=False):
        assert cli.main(["convert", str(source), str(target)]) == 0
    assert steps[-1].read_bytes() == weights_file.read_bytes()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_converted_weights_can_be_read_by_whom_the_user_lets(umask, mode, tmp_path, weights_file):
    target = tmp_path / "w.safetensors"  # written as the weights of a demo are
    before = os.umask(umask)
    try:
        assert cli.main(["convert", str(weights_file), str(target)]) == 0
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode


def test_convert_names_keys_that_it_does_not_know(tmp_path, weights_file, capsys):
    state = files.read_state_dict(weights_file)
    state["roi_heads.mesh_head.deconv.bias"] = np.zeros(3, np.float32)
    files.write_state_dict(tmp_path / "w.safetensors", state)
    assert cli.main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "new")]) == 1
    assert "roi_heads.mesh_head.deconv.bias" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_models_are_listed_with_what_is_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("KTN_CACHE", str(tmp_path))
    model = zoo.find("densepose_rcnn_R_50_KTNv2")
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "name family box GPS GPSm MB licence weights".split()
    assert len([line for line in lines if line.startswith(tuple(zoo.models()))]) == 49 + 2
    assert "densepose_rcnn_R_50_FPN_s1x charts 61.2 63.7 65.3 256 CC BY-SA 3.0" in [
        " ".join(line.split()) for line in lines
    ]
    assert (
        f"pan.baidu.com/s/1OyuimZ4Xd6rtC3iD4SbyZQ (extraction code fccy); put it at {tmp_path}"
        in lines[-2]
    )
    model.cached.parent.mkdir(parents=True)
    model.cached.write_bytes(b"by hand")
    assert cli.main(["models", "r_50", "ktnv2"]) == 0
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.split()[0] == model.name and line.endswith("here")
    assert cli.main(["models", "--markdown", "X_101", "KTNv2"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "|---|---|---|---|---|---|---|",
        "|densepose_rcnn_X_101_KTNv2|KTN|||||not stated|",
    ]
    assert cli.main(["models", "none"]) == 1


def test_verify_tells_by_its_exit_code(golden_dir, tmp_path, capsys, monkeypatch):
    from ktn_jax.verification import comparison, dump

    good = dump.Row("a", (1,), 0.0, 0.0, 1.0)
    for rows, code in (([good], 0), ([good, dump.Row("b", (1,), 2.0, 0.0, 1.0)], 1), ([], 1)):
        monkeypatch.setattr(comparison, "verify", lambda path, rows=rows: iter(rows))
        assert cli.main(["verify", "x.npz"]) == code
    assert "b " in capsys.readouterr().out


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*([command] if command else []), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"ktn {command}" in text if command else all(name in text for name in cli.COMMANDS)


def test_wrong_arguments_are_said_in_one_line(tmp_path, capsys):
    common = ["--output", str(tmp_path), "--random-weights"]
    photo = tmp_path / "p.png"
    Image.new("RGB", (32, 32)).save(photo)
    for arguments, text in (
        (["predict", str(photo), "--config", "none.py:r50", *common], "no configuration 'none.py'"),
        (["predict", str(photo), "--config", "ktn.py:r51", *common], "unknown variant 'r51'"),
        (["predict", str(tmp_path / "none"), "--config", CONFIG, *common], "none"),
        (["predict", str(photo), "--model", "R50_s1x", *common], "`ktn models` lists all"),
        (["predict", str(photo), "--config", CONFIG], "has no weights of its own"),
        (["convert", str(tmp_path / "x.pkl")], "give a SOURCE and a TARGET, or --model NAME"),
        (["convert", "--model", "cse/densepose", str(tmp_path / "x.pkl")], "did you mean cse/"),
        (["config", "--config", str(tmp_path / "none.yaml")], "none.yaml: there is no such"),
        (["convert", str(tmp_path / "none.pth"), str(tmp_path / "x.pkl")], "none.pth"),
        (["verify", str(tmp_path / "none.npz")], "none.npz"),
    ):
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert text in error and "Traceback" not in error


def test_changes_are_given_as_ml_collections_users_do(capsys):
    changes = ["--set=seed=1", "--config.seed", "2", "--config.total_steps=12"]
    assert cli.main(["config", "--config=ktn:tiny", *changes, "--diff"]) == 0
    printed = capsys.readouterr().out
    assert "    config.seed = 2  # base: 0\n" in printed
    assert "    config.total_steps = 12  # base: 130000\n" in printed
    assert "config.optimizer.momentum" not in printed
    assert (
        cli.main(["config", "--config", "ktn:tiny", "--config.seed", "2", "--set", "seed=3"]) == 0
    )
    printed = capsys.readouterr().out
    assert "    config.seed = 3  # base: 0\n" in printed
    assert "    config.optimizer.momentum = 0.9\n" in printed


@pytest.mark.parametrize("end", [["--config.seed"], ["--config.seed", "--diff"]])
def test_a_change_without_a_value_is_a_usage_error(end, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["config", "--config=ktn:tiny", *end])
    assert stop.value.code == 2
    assert "argument --config.seed: expected one argument" in capsys.readouterr().err


def test_commands_without_a_configuration_take_no_changes(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify", "x.npz", "--config.seed=1"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --config.seed=1" in capsys.readouterr().err


@pytest.mark.extended
def test_packages_of_the_users_own_called_like_our_folders_do_no_harm(tmp_path):
    """Importing every module, worker processes and commands, beside packages that must not load."""
    for name in ("configs", "data_pipelines", "experiments", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('of the user')")
    code = """
import importlib, pkgutil, ktn_jax
from ktn_jax import cli
for module in pkgutil.walk_packages(ktn_jax.__path__, "ktn_jax."):
    if "densepose_coco.densepose_coco" not in module.name and not module.name.endswith(".builder"):
        importlib.import_module(module.name)  # but what loads TensorFlow
if __name__ == "__main__":
    synth = ["data", "synth", "--output=people", "--images=2", "--size", "64", "64"]
    assert cli.main(synth + ["--processes=2"]) == 0
    assert cli.main(["data", "check", "people/annotations.json", "--images=people/images"]) == 0
    assert cli.main(["config", "--config=configs/ktn.py:tiny"]) == 0
"""
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of the user" not in done.stderr and "config.name = 'ktn_tiny'" in done.stdout


def test_the_package_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "ktn_jax", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"ktn_jax {ktn_jax.__version__}\n"


def test_random_weights_are_those_of_the_original_by_name(weights_file):
    state = files.read_state_dict(weights_file)
    assert "roi_heads.densepose_predictor.kpt_crgk_matrix" in state
    assert torch_names.to_torch(torch_names.to_flax(state)).keys() == state.keys()
    assert json.dumps(sorted(state))  # names are text


def test_the_command_line_restarts_once_for_huge_pages(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ktn_jax", "predict"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    host_memory.restart_with_huge_pages()
    host_memory.restart_with_huge_pages()  # what was started finds the variable
    assert started == [[sys.executable, "-m", "ktn_jax", "predict"]]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    monkeypatch.delenv("GLIBC_TUNABLES")
    for other in (("glibc", "2.31"), ("", ""), ("glibc", "x")):
        monkeypatch.setattr(host_memory.platform, "libc_ver", lambda other=other: other)
        host_memory.restart_with_huge_pages()
    assert len(started) == 1


@pytest.mark.parametrize("value", ["nan", "-NaN", "inf", "1e999", "much"])
@pytest.mark.parametrize(
    "arguments",
    [
        "predict photo.jpg --config ktn:tiny --random-weights --output out --min-score",
        "eval --min-iou",
        "data build custom --manual-dir in --data-dir out --max-skipped",
        "data template --output out --metres-per-unit",
    ],
)
def test_options_that_are_numbers_are_finite(arguments, value, capsys):
    *before, option = arguments.split()
    with pytest.raises(SystemExit) as stop:
        cli.main([*before, f"{option}={value}"])
    assert stop.value.code == 2
    assert f"argument {option}: must be a finite number, got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--canvas", "800"), "HEIGHTxWIDTH wanted, such as 800x1344, got '800'"),
        (("--canvas", "0x32"), "HEIGHTxWIDTH wanted"),
        (("--max-people", "0"), "must be a whole number above 0, got '0'"),
        (("--max-people", "2.5"), "must be a whole number above 0"),
        (("--format", "onnx"), "jax2onnx .* refuses loops .* Write stablehlo or savedmodel"),
        (("--format", "tflite"), "unknown format 'tflite': one of"),
        (("--output", "."), ". is there already: give a new folder"),
    ],
)
def test_export_refuses_what_it_cannot_write_before_it_reads_weights(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    command = ["export", "--config=ktn:tiny", "--weights=absent.pth", "--output=new", *arguments]
    try:
        assert cli.main(command) == 1
    except SystemExit as stopped:  # argparse
        assert stopped.code == 2
    assert re.search(message, capsys.readouterr().err)
