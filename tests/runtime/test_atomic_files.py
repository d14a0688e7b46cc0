"""Files that are replaced whole."""

import os

import pytest

from ktn_jax.runtime import atomic_files


def test_replacing_writes_beside_and_moves(tmp_path):
    path = tmp_path / "out.png"
    with atomic_files.replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_the_file_is_synchronised_before_its_new_name_and_the_folder_after(tmp_path, monkeypatch):
    path, synchronised = tmp_path / "out.bin", []
    fsync = os.fsync

    def note(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synchronised.append((os.path.isdir(name), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert synchronised == [(False, False), (True, True)]


def test_every_name_that_a_folder_holds_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    with atomic_files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with (
        pytest.raises(OSError, match="File name too long"),
        atomic_files.replacing(tmp_path / ("n" * 256)) as temporary,
    ):
        temporary.write_bytes(b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_files_get_the_permissions_that_the_user_gives_new_ones(tmp_path):
    path, private = tmp_path / "out.bin", tmp_path / "private"
    before = os.umask(0o027)
    try:
        with atomic_files.replacing(path) as temporary:
            private.touch(0o600)  # as a library does that writes beside and moves
            private.replace(temporary)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(ZeroDivisionError), atomic_files.creating_folder(path) as temporary:
        (temporary / "file").write_text("half")
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # an empty one may be there
    with atomic_files.creating_folder(path) as temporary:
        (temporary / "file").write_text("whole")
        assert list(path.iterdir()) == []
    assert (path / "file").read_text() == "whole"
    for taken in (path, path / "file"):
        with pytest.raises(ValueError, match="is there already"):
            atomic_files.creating_folder(taken).__enter__()
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]
