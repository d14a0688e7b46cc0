"""Runs in processes of their own: killed, asked to stop, or two that train together."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import run_folders, runs
from ktn_jax.runtime import locks

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 60


@pytest.fixture
def start(stand_in, compiled_programs):
    """Starts the stand-in as a process, with some devices."""
    processes = []

    def begin(workdir, num_devices=1, **changes):
        # Otherwise compiled as in this process: what runs here must end in the same bits.
        devices = f"--xla_force_host_platform_device_count={num_devices}"
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "JAX_COMPILATION_CACHE_DIR": str(compiled_programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        arguments = [sys.executable, stand_in.__file__, str(workdir), json.dumps(changes)]
        process = subprocess.Popen(
            arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if not process.stderr.closed:
            process.kill()
            process.communicate()


def end_of(workdir):
    variables, _ = runs.read_checkpoint(run_folders.find_checkpoint(workdir))
    return jax.tree.leaves(variables)


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def finish(process, code=0):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors[-2000:]


def wait_for_checkpoint(workdir, process):
    """The first checkpoint's step, once it is there."""
    deadline = time.monotonic() + 120
    while run_folders.find_checkpoint(workdir) is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return int(run_folders.find_checkpoint(workdir).name)


@pytest.fixture(scope="module")
def straight(stand_in, tmp_path_factory):
    """Where a run ends that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    stand_in.train(stand_in.make_config(total_steps=STEPS, checkpoint_every=1000), folder)
    return end_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("KTN_KILLS", "1"))))
def test_a_killed_run_loses_nothing_beyond_its_last_save(stand_in, start, straight, tmp_path, seed):
    """Saves take most of the time here, so a random moment often falls into one."""
    changes = {"total_steps": STEPS, "checkpoint_every": 2}
    process = start(tmp_path, delay=0.03, **changes)
    wait_for_checkpoint(tmp_path, process)
    time.sleep(random.Random(seed).uniform(0, 1.5))
    # What is on disk now was saved; it must be there afterwards, or something newer.
    before = int(run_folders.find_checkpoint(tmp_path).name)
    assert process.poll() is None
    process.kill()
    process.communicate()
    after = run_folders.find_checkpoint(tmp_path)
    runs.read_checkpoint(after)
    assert before <= int(after.name) < STEPS
    stand_in.train(stand_in.make_config(**changes), tmp_path)
    for ours, theirs in zip(end_of(tmp_path), straight, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(2, STEPS + 1, 2))


@pytest.mark.slow
def test_sigterm_ends_with_its_own_code_and_the_run_resumes(stand_in, start, straight, tmp_path):
    changes = {"total_steps": STEPS, "checkpoint_every": 1000}
    process = start(tmp_path, delay=0.1, **changes)
    lines = tmp_path / "metrics.jsonl"
    while not lines.exists() or not lines.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    assert 0 < int(run_folders.find_checkpoint(tmp_path).name) < STEPS
    stand_in.train(stand_in.make_config(**changes), tmp_path)
    for ours, theirs in zip(end_of(tmp_path), straight, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.extended
def test_two_processes_of_four_devices_are_one_device(stand_in, start, tmp_path):
    """One of them is asked to stop: both do, in the same step, and resume together."""
    together = tmp_path / "together"
    changes = {
        "total_steps": 24,
        "checkpoint_every": 1000,
        "training.num_devices": 0,
        "training.shard": "transfer",
    }

    def start_both(**more):
        coordinator = f"127.0.0.1:{free_port()}"
        return [
            start(together, 4, coordinator=coordinator, process=index, **changes, **more)
            for index in (0, 1)
        ]

    both = start_both(delay=0.1)
    lines = together / "metrics.jsonl"
    while not lines.exists() or not lines.read_text():
        assert all(process.poll() is None for process in both)
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
        finish(process, code=75)
    assert 0 < int(run_folders.find_checkpoint(together).name) < 24
    for process in start_both():
        finish(process)
    alone = tmp_path / "alone"
    stand_in.train(stand_in.make_config(total_steps=24, checkpoint_every=1000), alone)
    for ours, theirs in zip(end_of(together), end_of(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    ours, theirs = read_metrics(together)[-1], read_metrics(alone)[-1]
    assert ours["step"] == theirs["step"] == 24
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("victim", "how"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)]
)
def test_where_one_process_dies_the_other_ends_and_one_resumes(
    stand_in, start, tmp_path, victim, how
):
    """Killed, or stopped: a host that does not answer. Then one process goes on alone."""
    workdir, alone = tmp_path / "run", tmp_path / "alone"
    changes = {"total_steps": 40, "checkpoint_every": 5, "training.num_devices": 0}
    coordinator = f"127.0.0.1:{free_port()}"
    both = [
        start(workdir, 2, coordinator=coordinator, process=index, delay=0.2, **changes)
        for index in (0, 1)
    ]
    saved = wait_for_checkpoint(workdir, both[0])
    both[victim].send_signal(how)
    _, said = both[1 - victim].communicate(timeout=60)
    assert both[1 - victim].returncode not in (0, 75)
    assert "another task died" in said
    both[victim].kill()
    both[victim].communicate()
    # No half checkpoint counts, and nothing is left locked.
    found = run_folders.find_checkpoint(workdir)
    assert saved <= int(found.name) < 40
    runs.read_checkpoint(found)
    finish(start(workdir, 2, **changes))
    stand_in.train(stand_in.make_config(total_steps=40, checkpoint_every=1000), alone)
    for ours, theirs in zip(end_of(workdir), end_of(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [line["step"] for line in read_metrics(workdir)] == list(range(2, 41, 2))


@pytest.mark.extended
def test_processes_train_in_a_bucket_and_others_resume(stand_in, start, bucket_server, tmp_path):
    """In gs://, through its library, on a server of this machine; it ends as in a folder.

    One process is killed; the lock that it leaves is taken over.
    """
    changes = {
        "total_steps": 24,
        "checkpoint_every": 4,
        "training.num_devices": 0,
        "training.shard": "transfer",
    }
    workdir, objects = "gs://bucket/run", bucket_server.objects
    coordinator = f"127.0.0.1:{free_port()}"
    both = [
        start(workdir, 4, coordinator=coordinator, process=index, delay=0.3, **changes)
        for index in (0, 1)
    ]
    deadline = time.monotonic() + 120
    while "run/checkpoints/8/checksums.json" not in objects:
        assert both[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    for process in both:
        process.kill()
        process.communicate()
    assert "run/.ktn.lock" in objects
    coordinator = f"127.0.0.1:{free_port()}"
    both = [start(workdir, 2, coordinator=coordinator, process=i, **changes) for i in (0, 1)]
    for process in both:
        finish(process)
    changes |= {"total_steps": 28}
    finish(start(workdir, 2, **changes))
    assert "run/.ktn.lock" not in objects
    steps = {name.split("/")[2] for name in objects if "/checkpoints/" in name}
    assert "28" in steps and len(steps) <= 4
    lines = objects["run/metrics.jsonl"].splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(2, 29, 2))
    fetched = tmp_path / "fetched" / "checkpoints"
    for name, content in objects.items():
        if name.startswith("run/checkpoints/28/"):
            path = fetched / name.removeprefix("run/checkpoints/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    stand_in.train(stand_in.make_config(total_steps=28, checkpoint_every=1000), tmp_path / "alone")
    for ours, theirs in zip(end_of(fetched), end_of(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.extended  # tests/runtime/test_locks.py has the same without JAX
def test_no_process_trains_where_the_first_is_refused(start, tmp_path):
    changes = {"total_steps": 2, "training.num_devices": 0}
    coordinator = f"127.0.0.1:{free_port()}"
    with locks.hold(tmp_path):
        both = [
            start(tmp_path, coordinator=coordinator, process=index, **changes) for index in (0, 1)
        ]
        errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    used = f"{tmp_path} is in use by process {os.getpid()}"
    assert f"FolderInUseError: {used}" in errors[0]
    assert f"FolderInUseError: the run's first process was refused: {used}" in errors[1]
    assert not any(tmp_path.iterdir())
