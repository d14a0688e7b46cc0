"""The commands of docs/training.md for clusters, as they stand there: two processes on loopback.

In place of `srun`, `scontrol` and `gcloud` stand scripts that set what a cluster would set.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from ktn_jax.checkpoints import run_folders, runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = {
    "batch_size": 2,
    "checkpoint_every": 100,
    "training.log_every": 1,
    "data.synthetic.num_images": 4,
    "model.rpn.pre_nms_top_k_train": 8,
    "model.rpn.post_nms_top_k_train": 8,
    "model.densepose_head.num_convs": 1,
}
pytestmark = pytest.mark.extended

# Starts the command twice, with the variables of `srun`; ends with the highest exit code.
SRUN = """#!/bin/bash
for i in 0 1; do
    SLURM_STEP_NODELIST='localhost,other[1-2]' SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i \\
        "$@" 2> "$LOGS/$i" & pids[$i]=$!
done
echo "${pids[@]}" > "$LOGS/pids"
code=0
for pid in "${pids[@]}"; do wait "$pid"; last=$?; [ $last -gt $code ] && code=$last; done
exit $code
"""
# The same as workers of a TPU slice, whose hosts Google names.
GCLOUD = """#!/bin/bash
while [ "$1" != --command ]; do shift; done
for i in 0 1; do
    JAX_FORCE_TPU_INIT=1 TPU_WORKER_HOSTNAMES=localhost,other TPU_WORKER_ID=$i \\
        MEGASCALE_COORDINATOR_ADDRESS=localhost MEGASCALE_NUM_SLICES=1 MEGASCALE_SLICE_ID=0 \\
        bash -c "$2" 2> "$LOGS/$i" & pids[$i]=$!
done
code=0
for pid in "${pids[@]}"; do wait "$pid"; last=$?; [ $last -gt $code ] && code=$last; done
exit $code
"""


def block(name):
    """The block of a name in the documentation."""
    text = (ROOT / "docs" / "training.md").read_text()
    (found,) = re.findall(rf"```{name}\n(.*?)```", text, re.DOTALL)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(**changes):
    return [f"--set={key}={value}" for key, value in (SETTINGS | changes).items()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def cluster(tmp_path, compiled, monkeypatch):
    """A folder of commands in front of the others, and the environment to run them in."""
    commands = tmp_path / "bin"
    commands.mkdir()
    ours = f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m ktn_jax "$@"\n'
    requeue = '#!/bin/bash\necho "$@" >> "$LOGS/scontrol"\n'
    scripts = {"srun": SRUN, "gcloud": GCLOUD, "ktn": ours, "scontrol": requeue}
    for name, content in scripts.items():
        (commands / name).write_text(content)
        (commands / name).chmod(stat.S_IRWXU)
    logs = tmp_path / "logs"
    logs.mkdir()
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LOGS": str(logs),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_PORT": str(free_port()),
        "SLURM_JOB_ID": "4711",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return logs


def said(logs):
    return "\n".join((logs / str(index)).read_text()[-2000:] for index in (0, 1))


@contextlib.contextmanager
def started(command, folder):
    """A script, which ends with all that it started."""
    process = subprocess.Popen(command, cwd=folder, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_job_of_slurm_is_queued_again_and_ends(cluster, tmp_path):
    script = tmp_path / "train.sbatch"
    script.write_text(block("sbatch"))
    workdir = tmp_path / "W"
    job = ["bash", str(script), "--config", "ktn:tiny", "--workdir", str(workdir)]
    lines = workdir / "metrics.jsonl"
    with started([*job, *settings(total_steps=1000)], tmp_path) as process:
        deadline = time.monotonic() + 500
        while not lines.exists() or not lines.read_text():
            assert process.poll() is None and time.monotonic() < deadline, said(cluster)
            time.sleep(0.2)
        # As SLURM does it before the time is over: to the processes, not to the script.
        for pid in (cluster / "pids").read_text().split():
            os.kill(int(pid), signal.SIGTERM)
        assert process.wait(timeout=120) == 75, said(cluster)
    assert (cluster / "scontrol").read_text() == "requeue 4711\n"
    step = int(run_folders.find_checkpoint(workdir).name)
    with started([*job, *settings(total_steps=step + 2)], tmp_path) as process:
        assert process.wait(timeout=500) == 0, said(cluster)
    assert int(run_folders.find_checkpoint(workdir).name) == step + 2
    assert "2 devices of 2 processes" in (cluster / "0").read_text()
    assert (cluster / "scontrol").read_text() == "requeue 4711\n"
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == list(range(1, step + 3))


def test_the_command_for_tpu_vms_trains_in_a_bucket(cluster, tmp_path, bucket_server):
    command = block("tpu")
    assert "--weights gs://bucket/K ..." in command
    command = command.replace("ktn:r50", "ktn:tiny").replace(
        "--weights gs://bucket/K ...", " ".join(settings(total_steps=2))
    )
    with started(["bash", "-c", command], tmp_path) as process:
        assert process.wait(timeout=500) == 0, said(cluster)
    assert "2 devices of 2 processes" in (cluster / "0").read_text()
    names = [name for name in bucket_server.objects if name.startswith("W/")]
    assert "W/checkpoints/2/checksums.json" in names and "W/metrics.jsonl" in names
    # And no folder "gs:".
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "logs"]
    for name in names:
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket_server.objects[name])
    runs.read_checkpoint(run_folders.find_checkpoint(tmp_path / "fetched" / "W"))
