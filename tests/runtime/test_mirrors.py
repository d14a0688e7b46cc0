"""Local folders that are kept as folders of a store, and shared by processes through it."""

import os
import threading

import fsspec
import pytest

from ktn_jax.runtime import atomic_files, locks, mirrors, stores
from ktn_jax.runtime.mirrors import Mirror
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.stores import Store


@pytest.fixture
def store():
    """An empty folder of a store."""
    fsspec.filesystem("memory").store.clear()
    return Store("memory://bucket/out")


def contents(store):
    return {name: store.read(name) for name in store.files()}


def test_what_is_written_here_is_sent(store):
    store.write("before", b"0")
    with Mirror(store, leave_out=["checkpoints"]) as mirror:
        assert (mirror.folder / "before").read_bytes() == b"0"
        (mirror.folder / "sub").mkdir()
        lines = mirror.folder / "sub" / "lines"
        lines.write_text("1\n")
        (mirror.folder / "checkpoints").mkdir()
        (mirror.folder / "checkpoints" / "1").write_text("of others")
        with locks.hold(mirror.folder), atomic_files.replacing(mirror.folder / "x") as temporary:
            temporary.write_text("half")
            mirror.push()
        assert contents(store) == {"before": b"0", "sub/lines": b"1\n"}
        with open(lines, "a") as file:  # which a store cannot do
            file.write("2\n")
        (mirror.folder / "before").unlink()
        sent, send = [], store.send
        store.send = lambda path, name: (sent.append(name), send(path, name))
        mirror.push()
        assert sorted(sent) == ["sub/lines", "x"]
    assert sorted(sent) == ["sub/lines", "x"]  # nothing twice
    assert contents(store) == {"sub/lines": b"1\n2\n", "x": b"half"}
    assert not mirror.folder.exists()


def test_processes_see_what_others_wrote_before_they_met(store):
    barrier = threading.Barrier(2)
    seen = {}

    def run(index):
        processes = Processes(index, 2, wait=lambda name: barrier.wait(10))
        with Mirror(store, processes) as mirror:
            (mirror.folder / f"part-{index}").write_text(str(index))
            mirror.processes.wait("written")
            seen[index] = sorted(os.listdir(mirror.folder))
            if index == 0:
                for name in seen[0]:
                    (mirror.folder / name).unlink()
                (mirror.folder / "joined").write_text("01")
            mirror.processes.wait("joined")
            seen[index] = seen[index], sorted(os.listdir(mirror.folder))

    other = threading.Thread(target=run, args=(1,))
    other.start()
    run(0)
    other.join()
    assert seen[0] == seen[1] == (["part-0", "part-1"], ["joined"])
    assert contents(store) == {"joined": b"01"}


def test_a_stopped_output_is_sent_and_resumed(store):
    with pytest.raises(KeyboardInterrupt), mirrors.output_folder(f"{store}/") as (folder, _):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt
    with mirrors.output_folder(str(store)) as (folder, processes):
        assert (folder / "half").read_text() == "1" and processes.is_first
        with (
            pytest.raises(locks.FolderInUseError),
            mirrors.output_folder(str(store)),
        ):
            pass
        (folder / "half").rename(folder / "whole")
    assert contents(store) == {"whole": b"1"}


def test_a_local_output_is_itself(tmp_path):
    with mirrors.output_folder(tmp_path / "out") as (folder, processes):
        assert folder == tmp_path / "out" and processes == Processes()
    assert not folder.exists()


@pytest.mark.parametrize("kind", [stores.StoreError, OSError])  # of the network, of the disk
def test_nothing_is_lost_where_it_cannot_be_sent(store, monkeypatch, kind):
    def refuse(path, name):
        raise kind(f"{name}: no network")

    mirror = Mirror(store)
    (mirror.folder / "result").write_text("7")
    monkeypatch.setattr(store, "send", refuse)
    with pytest.raises(stores.StoreError, match=f"no network; what was .* {mirror.folder}"):
        mirror.close()
    assert (mirror.folder / "result").read_text() == "7"
    monkeypatch.undo()
    mirror.close()
    assert contents(store) == {"result": b"7"}
