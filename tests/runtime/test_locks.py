"""Locks of folders, between processes and after one that was killed."""

import concurrent.futures
import dataclasses
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from ktn_jax import cli
from ktn_jax.runtime import locks
from ktn_jax.runtime.processes import Processes

HOLD = """
import sys
from ktn_jax.runtime import locks
from ktn_jax.runtime.processes import Processes
with locks.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_until_its_process_ends_however_it_does(
    tmp_path, holder, capsys
):
    expected = (
        rf"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 20\d\d"
    )
    with pytest.raises(locks.FolderInUseError, match=expected), locks.hold(tmp_path):
        pass
    # A command says the same, and touches nothing.
    assert cli.main(["data", "synth", f"--output={tmp_path}", "--images=1"]) == 1
    assert f"ktn data: {tmp_path} is in use by process {holder.pid}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK_FILE]
    holder.kill()
    holder.wait()
    assert (tmp_path / locks.LOCK_FILE).exists()
    with locks.hold(tmp_path):
        assert json.loads((tmp_path / locks.LOCK_FILE).read_text())["process"] == os.getpid()
        assert locks.is_empty(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_the_block_and_makes_the_folder(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), locks.hold(tmp_path / "new"):
        raise RuntimeError("inside")
    with locks.hold(tmp_path / "new"):
        pass


def test_waiting_lets_one_at_a_time_in(tmp_path):
    """Each adds 1 to a number in a file, in two steps; removed lock files admit nobody."""
    number = tmp_path / "number"
    number.write_text("0")

    def add(_):
        with locks.hold(tmp_path, wait=True):
            before = int(number.read_text())
            number.write_text("in between")
            number.write_text(str(before + 1))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert number.read_text() == "200"


def test_without_locks_of_the_system_the_record_decides(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / locks.LOCK_FILE
    this = locks.Owner.this_process()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = [{"process": ended.pid}, {"process": 2**62}, {"started": "5"}, {"process": "1"}]
    for changes in stale:
        path.write_text(json.dumps(dataclasses.asdict(this) | changes))
        with locks.hold(tmp_path):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert not path.exists()
    for changes in ({}, {"host": "elsewhere", "process": ended.pid}):
        path.write_text(json.dumps(dataclasses.asdict(this) | changes))
        with pytest.raises(locks.FolderInUseError, match=f"if it has ended, remove {path}"):
            with locks.hold(tmp_path):
                pass


def test_all_processes_of_a_run_are_refused_together(tmp_path):
    said = []
    first = Processes(0, 2, share=lambda text: said.append(text) or text)
    other = Processes(1, 2, share=lambda text: said[-1])
    with first.hold(tmp_path), other.hold(tmp_path):
        assert said == [""]
        with pytest.raises(locks.FolderInUseError, match=f"{tmp_path} is in use by process"):
            first.hold(tmp_path).__enter__()
        refused = f"first process was refused: {tmp_path} is in use by process {os.getpid()} on"
        with pytest.raises(locks.FolderInUseError, match=refused):
            other.hold(tmp_path).__enter__()
    with first.hold(tmp_path), other.hold(tmp_path):
        assert said[-1] == ""
