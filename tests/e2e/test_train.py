"""`ktn train` on synthetic people, in processes of its own: devices, kills, exports, learning."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import run_folders, runs
from ktn_jax.data_pipelines.loading.configured import make_training_data
from ktn_jax.ops.chart_reads import read_points
from ktn_jax.runtime.configuration import load_config
from ktn_jax.training import initialisation

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 5
SETTINGS = {
    "total_steps": STEPS,
    "batch_size": 8,
    "checkpoint_every": 1,
    "training.log_every": 1,
    "training.keep_last": STEPS,
    "data.synthetic.num_images": 8,
    # At the full rate a fresh detector multiplies a difference by ten at every step.
    "optimizer.learning_rate": 3e-4,
    "optimizer.warmup_steps": 5,
    # Which proposals are sampled depends on their order. Of few, none are so close that rounding
    # could swap them.
    "model.rpn.pre_nms_top_k_train": 8,
    "model.rpn.post_nms_top_k_train": 8,
    "model.densepose_head.num_convs": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def start(folder):
    """Starts `ktn train` with some devices; programs are compiled once, and quickly."""
    processes = []

    def begin(name, num_devices=1, *arguments, **changes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        command = [sys.executable, "-m", "ktn_jax", "train", "--config=configs/ktn.py:tiny"]
        command += [f"--workdir={folder / name}", *arguments]
        command += [f"--set={key}={value!r}" for key, value in (SETTINGS | changes).items()]
        log = open(folder / f"{name}.{len(processes)}.log", "w+")  # noqa: SIM115
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=log, stdout=log)
        processes.append((process, log))
        return process

    yield begin
    for process, log in processes:
        process.kill()
        process.wait()
        log.close()


def finish(folder, process):
    code = process.wait(timeout=1200)
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    assert code == 0, logs[-1].read_text()[-3000:]


@pytest.fixture(scope="module")
def straight(folder, start):
    """Five steps on one device."""
    finish(folder, start("straight"))
    return folder / "straight"


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_state(workdir, step=STEPS):
    """The arrays of a checkpoint, by path."""
    variables, _ = runs.read_checkpoint(workdir / "checkpoints" / str(step))
    return jax.tree_util.tree_leaves_with_path(variables)


def assert_same_training(workdir, straight, last=STEPS):
    """Other sums, the same training: 1e-5 is rounding, and of single terms twice that.

    Without a common normaliser, or with batch statistics a device, it is off by 1e-1.
    """
    for ours, theirs in zip(read_metrics(workdir), read_metrics(straight), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        for name in (name for name in theirs if name.startswith("loss/")):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=2e-5), name
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=3e-4)
    actual, expected = dict(read_state(workdir, last)), dict(read_state(straight, last))
    assert actual.keys() == expected.keys()
    for path, theirs in expected.items():
        atol, rtol = 1e-5, 0
        if path[-1].key == "var":
            rtol = 3e-5  # of pixels, in the thousands
        elif path[-1].key == "mean":  # as exact as its values are wide
            deviation = np.sqrt(expected[(*path[:-1], jax.tree_util.DictKey("var"))])
            atol = 1e-5 * max(1, deviation.max())
        np.testing.assert_allclose(
            actual[path], theirs, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        )
    moved = [
        np.abs(after - before).max()
        for (path, after), (_, before) in zip(
            read_state(straight, last), read_state(straight, 1), strict=True
        )
        if path[0].key == "params"
    ]
    assert max(moved) > 1e-4  # or nothing was compared


@pytest.mark.extended
def test_eight_devices_with_everything_split_are_one(folder, start, straight):
    finish(folder, start("eight", 8, **{"training.shard": "all"}))
    assert_same_training(folder / "eight", straight)


def train_together(folder, start, name, **changes):
    """Two processes of four devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    common = (f"--coordinator={coordinator}", "--num-processes=2")
    both = [start(name, 4, *common, f"--process-id={index}", **changes) for index in (0, 1)]
    for process in both:
        finish(folder, process)


@pytest.mark.extended
def test_two_processes_of_four_devices_are_one(folder, start, straight):
    train_together(folder, start, "together")
    assert_same_training(folder / "together", straight)


# Batch norms would take their moments over a part of a batch: there are none. The parts that
# compile soonest, with knowledge transfer.
WITHOUT_BATCH_NORM = {
    "total_steps": 3,
    "batch_size": 16,
    "model.backbone.norm": "GN",  # of 32 channels at least
    "model.backbone.stem_channels": 32,
    "model.backbone.width": 32,
    "model.decoder.name": "none",
    "model.densepose_head.name": "conv_stack",
    "model.densepose_head.norm": "",
}
IN_PARTS = WITHOUT_BATCH_NORM | {
    "training.accumulate": 2,  # each of eight devices takes its two images one by one
    "training.remat": True,
    "training.shard": "all",
}


@pytest.fixture(scope="module")
def plain(folder, start):
    """Three steps on one device, whole batches at a time."""
    finish(folder, start("plain", **WITHOUT_BATCH_NORM))
    return folder / "plain"


@pytest.mark.extended
def test_accumulated_recomputed_and_split_steps_are_those_of_one_device(folder, start, plain):
    finish(folder, start("parts", 8, **IN_PARTS, **{"training.profile_steps": "1:3"}))
    assert_same_training(folder / "parts", plain, last=3)
    # Where TensorBoard looks for traces, from the work folder on.
    (trace,) = (folder / "parts" / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
    # Of a device, which has an eighth of the images.
    for ours, theirs in zip(read_metrics(folder / "parts"), read_metrics(plain), strict=True):
        seconds = [16 / line["images_per_second"] for line in (ours, theirs)]
        flops = [line["flops_per_second"] for line in (ours, theirs)]
        assert 0 < flops[0] * seconds[0] < flops[1] * seconds[1]


@pytest.mark.extended
def test_accumulated_recomputed_and_split_steps_are_those_of_two_processes(folder, start, plain):
    train_together(folder, start, "parts together", **IN_PARTS)
    assert_same_training(folder / "parts together", plain, last=3)


@pytest.mark.extended
def test_a_killed_run_ends_in_the_same_bits_and_the_same_file(folder, start, straight):
    process = start("killed")
    while not (folder / "killed" / "checkpoints" / "2").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert int(run_folders.find_checkpoint(folder / "killed").name) < STEPS
    finish(folder, start("killed"))
    for (path, ours), (_, theirs) in zip(
        read_state(folder / "killed"), read_state(straight), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=str(path))
    for name in ("killed", "straight"):
        convert = [sys.executable, "-m", "ktn_jax", "convert"]
        convert += [str(folder / name), str(folder / f"{name}.safetensors")]
        subprocess.run(convert, cwd=ROOT, check=True, capture_output=True)
    exported = [(folder / f"{name}.safetensors").read_bytes() for name in ("killed", "straight")]
    assert exported[0] == exported[1]


@pytest.mark.extended
def test_scores_stand_beside_the_losses(folder, start):
    """On rendered people; a resumed run scores what is left and forgets no score."""
    changes = {"training.evaluate_every": 2, "data.evaluation.num_images": 3}
    changes |= {"training.keep_last": 1, "checkpoint_every": 1000}
    finish(folder, start("scored", **changes, total_steps=4))
    finish(folder, start("scored", **changes))
    lines = [line for line in read_metrics(folder / "scored") if "eval/GPSm" in line]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert all({"eval/box", "eval/GPS"} <= line.keys() for line in lines)
    written = json.loads((folder / "scored" / "evaluation" / "metrics.json").read_text())
    for name, measure in (("box", "bbox"), ("GPS", "GPS"), ("GPSm", "GPSm")):
        assert lines[-1][f"eval/{name}"] == pytest.approx(written[measure]["AP"])
    best = max(lines, key=lambda line: (line["eval/GPSm"], line["step"]))["step"]
    with runs.Checkpoints(folder / "scored", keep_last=1) as checkpoints:
        assert checkpoints.best_step() == best
        assert checkpoints.steps() == sorted({best, 5})


@pytest.mark.extended
def test_four_images_are_learnt_by_heart(tmp_path):
    """Every loss falls, and nearly every point on a body gets its patch."""
    changes = ["data.synthetic.num_images=4", "total_steps=200", "checkpoint_every=1000"]
    changes += ["training.num_devices=1", "optimizer.decay_steps=(150,)"]
    # Optimised, unlike in the other tests: so many steps would take thrice as long.
    command = [sys.executable, "-m", "ktn_jax", "train", "--config=configs/ktn.py:tiny"]
    command += [f"--workdir={tmp_path}", *(f"--set={change}" for change in changes)]
    subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, cwd=ROOT, check=True)
    lines = read_metrics(tmp_path)
    for name in (name for name in lines[0] if name.startswith("loss")):
        assert lines[-1][name] < 0.9 * lines[0][name], name
    config = load_config("configs/ktn.py:tiny", changes)
    model = initialisation.build_trained_model(config, "cpu")
    batch = next(make_training_data(config).batches_from(0))
    variables, _ = runs.read_checkpoint(run_folders.find_checkpoint(tmp_path))
    assert patch_accuracy(model, variables, batch) > 0.95


def patch_accuracy(model, variables, batch):
    """Share of the annotated points on bodies whose patch is right, in the true boxes."""
    size = batch["boxes"].shape[1]
    flat = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in batch.items()}

    def charts(detector):
        inputs = detector.normalise(batch["image"], batch["image_size_hw"])
        pyramid = detector.extract(inputs, batch["image_size_hw"])
        index = jax.numpy.repeat(jax.numpy.arange(len(batch["boxes"])), size)
        features = detector.roi_features(pyramid)
        return detector.describe(features, flat["boxes"], index, jax.numpy.zeros_like(index)).charts

    outputs = jax.jit(lambda variables: model.apply(variables, method=charts))(variables)
    logits, is_inside = read_points(
        outputs.fine_segm, flat["point_x"], flat["point_y"], flat["boxes"], flat["boxes"]
    )
    is_body = flat["point_is_valid"] & (flat["point_i"] > 0)
    is_right = (np.argmax(logits, axis=-1) == flat["point_i"]) & np.asarray(is_inside)
    assert is_body.sum() > 200
    return is_right[is_body].mean()
