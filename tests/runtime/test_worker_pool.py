"""Worker processes end with the process that started them."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

# A file of its own: spawned processes import the main module again.
PARENT = """
import os, pathlib, sys, time
from ktn_jax.runtime.worker_pool import start_workers

def remember(folder):
    pathlib.Path(folder, str(os.getpid())).touch()

if __name__ == "__main__":
    with start_workers(2, remember, (sys.argv[1],)) as pool:
        for future in [pool.submit(time.sleep, 60) for _ in range(4)]:
            future.result()
"""


def _is_running(pid):
    """Whether a process exists and is more than an entry that nobody has waited for."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks processes up in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script, started = tmp_path / "parent.py", tmp_path / "started"
    script.write_text(PARENT)
    parents = {}
    for number in (signal.SIGKILL, signal.SIGTERM):
        folder = started / str(int(number))
        folder.mkdir(parents=True)
        parents[number] = folder, subprocess.Popen([sys.executable, script, folder])
    for number, (folder, parent) in parents.items():
        _wait_for(lambda folder=folder: len(list(folder.iterdir())) == 2)
        workers = [int(path.name) for path in folder.iterdir()]
        assert all(map(_is_running, workers))
        parent.send_signal(number)
        assert parent.wait() == -number
        _wait_for(lambda workers=workers: not any(map(_is_running, workers)))


UNGUARDED = """
from ktn_jax.runtime.worker_pool import explained, start_workers

try:
    with explained("workers=1"), start_workers(1, print, (bytes(1 << 20),)) as pool:
        pool.submit(print).result()
except ChildProcessError as error:
    print(error)
"""


def test_workers_that_cannot_start_break_the_pool_instead_of_hanging(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "a worker process ended by itself" in done.stdout and "workers=1 starts" in done.stdout
    assert "if __name__ ==" in done.stderr
