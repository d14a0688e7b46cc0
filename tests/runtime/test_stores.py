"""Folders of object stores, in a store that is in this process's memory."""

import os
import pathlib
import threading
from unittest import mock

import fsspec
import pytest

from ktn_jax import cli
from ktn_jax.runtime import locks, stores
from ktn_jax.runtime.stores import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty folder of a store, and a cache of our own."""
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    stores._fetch.cache_clear()  # fetched once in a process, which tests are not
    fsspec.filesystem("memory").store.clear()
    yield Store("memory://bucket/run")
    fsspec.filesystem("memory").store.clear()


def test_addresses_are_told_from_paths_and_streams():
    assert stores.is_address("gs://bucket/run") and stores.is_address("s3://b")
    for path in (
        "run",
        "/gs/run",
        "C:/run",
        pathlib.Path("gs"),
        "https://x.org/a",
        "rtsp://camera",
    ):
        assert not stores.is_address(path)
    # What pathlib makes of an address would become a folder named "gs:".
    with pytest.raises(ValueError, match="^gs:/bucket/run is an address, and"):
        stores.is_address(pathlib.Path("gs://bucket/run"))


def test_objects_are_written_listed_and_removed(store, tmp_path):
    store.write("a/b.txt", b"one")
    (tmp_path / "c").write_bytes(b"three")
    store.send(tmp_path / "c", "c")
    store.copy("c", "deep/er/c")
    Store("memory://bucket/runaway").write("x", b"")  # begins alike, and is another folder
    files = store.files()
    assert {name: file.size for name, file in files.items()} == {
        "a/b.txt": 3,
        "c": 5,
        "deep/er/c": 5,
    }
    assert list((store / "deep").files()) == ["er/c"]
    assert store.read("a/b.txt") == b"one"
    store.write("a/b.txt", b"two")
    assert store.files()["a/b.txt"].version != files["a/b.txt"].version
    store.remove(["c", "is not there", "a/b.txt"])
    assert list(store.files()) == ["deep/er/c"]
    with pytest.raises(FileNotFoundError, match="memory://bucket/run/c is not there"):
        store.read("c")


def test_only_one_creates_an_object(store):
    assert store.create("lock", b"first") and not store.create("lock", b"second")
    assert store.read("lock") == b"first"


def test_a_refusal_to_create_is_no_sign_of_an_object(store, monkeypatch):
    """Else a lock that nobody holds and that cannot be written would be waited for for ever."""

    def refuse(*arguments, **options):
        raise OSError("Forbidden: https://storage.googleapis.com/b/run412/o")

    monkeypatch.setattr(store._system, "pipe_file", refuse)
    with pytest.raises(stores.StoreError, match="bucket/run/lock: Forbidden"):
        store.create("lock", b"1")
    monkeypatch.undo()
    store.write("lock", b"0")
    # Other servers of S3 than AWS: s3fs makes this of their answer.
    refusal = OSError(22, "At least one of the pre-conditions you specified did not hold")
    monkeypatch.setattr(store._system, "pipe_file", mock.Mock(side_effect=refusal))
    assert not store.create("lock", b"1")


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ValueError, match="nostore://x: .*give a local path, gs://"):
        Store("nostore://x")

    def no_library(*arguments, **options):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", no_library)
    with pytest.raises(
        ValueError, match=r"gs:// needs another package: pip install 'ktn_jax\[gcs\]"
    ):
        Store("gs://bucket/run")
    with pytest.raises(ValueError, match="az:// needs another package: Please install"):
        Store("az://bucket/run")


def test_inputs_are_fetched_once_and_only_what_changed(store, monkeypatch):
    store.write("images/1.jpg", b"one")
    store.write("images/2.jpg", b"two")
    store.write("weights.bin", b"w")
    folder = stores.fetched(f"{store}/images/")
    assert folder.name == "images" and (folder / "2.jpg").read_bytes() == b"two"
    assert stores.fetched(f"{store}/weights.bin").read_bytes() == b"w"
    with pytest.raises(FileNotFoundError, match="memory://bucket/run/none is not there"):
        stores.fetched(f"{store}/none")
    # The next process: it finds the copies, fetches what is new and drops what is gone.
    stores._fetch.cache_clear()
    store.write("images/2.jpg", b"2nd")
    store.remove(["images/1.jpg"])
    store.write("images/3.jpg", b"three")
    fetched, fetch = [], Store.fetch
    monkeypatch.setattr(
        Store, "fetch", lambda self, name, path: (fetched.append(name), fetch(self, name, path))
    )
    assert stores.fetched(f"{store}/images") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "2.jpg": b"2nd",
        "3.jpg": b"three",
    }
    assert sorted(fetched) == ["2.jpg", "3.jpg"]
    # Times are those of the store: whether images are newer than results is asked later.
    modified = store.files()["images/3.jpg"].modified
    assert (folder / "3.jpg").stat().st_mtime == pytest.approx(modified, abs=1e-5)
    assert stores.fetched("local") == pathlib.Path("local")


def test_processes_that_share_the_cache_fetch_one_after_the_other(store):
    store.write("a.json", b"{}")
    (folder,) = {stores.fetched(f"{store}/a.json").parent}
    stores._fetch.cache_clear()
    store.write("a.json", b"new")
    other = threading.Thread(target=stores.fetched, args=(f"{store}/a.json",))
    with locks.hold(folder):  # of a process that is writing
        unfinished = folder / ".a.0123456789ab.json"
        unfinished.write_bytes(b"ne")
        other.start()
        other.join(0.2)
        assert other.is_alive() and unfinished.exists()
        assert (folder / "a.json").read_bytes() == b"{}"
        unfinished.unlink()
    other.join(10)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.json": b"new"}


def test_a_part_of_a_folder_is_fetched(store):
    store.write("data/name/small/1", b"1")
    store.write("data/name/large/2", b"2")
    folder = stores.fetched(f"{store}/data", only="name/small")
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert found == ["name/small/1"]


def test_names_that_lead_out_of_a_folder_are_refused(tmp_path):
    for name in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(stores.StoreError, match="leads out of its folder"):
            stores.inside(tmp_path, name)


def test_files_are_written_to_addresses(store, tmp_path):
    with stores.written(f"{store}/out.bin") as path:
        path.write_bytes(b"all")
        assert not store.files()  # nothing before it is complete
    with stores.written(f"{store}/folder/") as path:
        (path / "in").mkdir(parents=True)
        (path / "in" / "file").write_bytes(b"1")
    assert list(store.files()) == ["folder/in/file", "out.bin"]
    with stores.written(tmp_path / "x") as path:
        assert path == tmp_path / "x"


def test_errors_of_a_library_name_the_object(store, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("403: forbidden\na page of trace")

    monkeypatch.setattr(store._system, "pipe_file", broken)
    with pytest.raises(stores.StoreError, match="^memory://bucket/run/x: 403: forbidden$"):
        store.write("x", b"")


def test_commands_that_take_no_address_make_no_folder_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["draw", "results.json", "--output", "gs://bucket/drawn"]) == 1
    said = "ktn draw: --output: gs:/bucket/drawn is an address, and a local path is wanted here"
    assert said in capsys.readouterr().err
    for path in ("gs://bucket/x", pathlib.Path("s3://bucket/x")):
        with pytest.raises(ValueError, match="is an address"), locks.hold(path):
            pass
    assert os.listdir(tmp_path) == []
