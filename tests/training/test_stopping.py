"""Signals to a process that is busy in a library and runs no Python."""

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A lock that nobody opens stands for a long compilation: signals do not interrupt it.
BUSY = """
import ctypes, multiprocessing, signal, sys, time
from ktn_jax.training import stopping

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopping._GRACE_SECONDS = 0.5
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    mutex = ctypes.create_string_buffer(128)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    with stopping.StopSignal() as stop:
        print(child.pid, flush=True)
        lock(mutex)
        lock(mutex)
"""


def test_the_first_signal_is_answered_and_the_second_ends_the_process(tmp_path):
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    child = int(process.stdout.readline())
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "training stops after the current step and saves; again to abort" in (
        process.stderr.readline()
    )
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert said == "\naborted\n"
    deadline = time.monotonic() + 10
    while pathlib.Path(f"/proc/{child}").exists():  # the processes that load data end too
        assert time.monotonic() < deadline
        time.sleep(0.05)
