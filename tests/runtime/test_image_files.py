"""Finding images: in which order, and what is said of the files that are passed over."""

import os
import pathlib

import pytest

from ktn_jax.runtime.image_files import find_images, natural_key
from ktn_jax.runtime.images import ImageError


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def _names(*inputs, **options):
    return [path.name for path in find_images(inputs, **options).paths]


def test_files_folders_and_globs(tmp_path, monkeypatch):
    _touch(tmp_path, "b.jpg", "a.PNG", "c.txt", ".hidden.jpg", "sub/d.jpeg", "x [1].jpg", "odd.dat")
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _names(str(tmp_path)) == ["a.PNG", "b.jpg", "x [1].jpg"]
    assert _names("*.jpg") == ["b.jpg", "x [1].jpg"]
    assert _names("**/*") == ["a.PNG", "b.jpg", "d.jpeg", "x [1].jpg"]
    assert _names("x [1].jpg", "odd.dat") == ["x [1].jpg", "odd.dat"]  # named files: any suffix
    assert _names("b.jpg", tmp_path, "./b.jpg", "sub/../a.PNG") == ["b.jpg", "a.PNG", "x [1].jpg"]
    assert _names() == []
    _touch(tmp_path, "none/readme.txt")
    with pytest.raises(ImageError, match=r"no image found at \*\.webp, none, gone\.jpg: .*\.jpeg"):
        find_images(["*.webp", "b.jpg", "none", "gone.jpg"])


def test_numbers_in_names_are_sorted_by_value(tmp_path):
    _touch(tmp_path, "frame10.jpg", "frame2.jpg", "frame1.jpg", "7.jpg", "x/1.jpg", "b2c10.jpg")
    expected = ["7.jpg", "b2c10.jpg", "frame1.jpg", "frame2.jpg", "frame10.jpg", "1.jpg"]
    assert _names(tmp_path, recursive=True) == expected
    paths = [pathlib.Path(name) for name in ("a10/1.jpg", "a9/2.jpg", "01.jpg", "1.jpg", "a.jpg")]
    ordered = [str(path) for path in sorted(paths, key=natural_key)]
    assert ordered == ["01.jpg", "1.jpg", "a9/2.jpg", "a10/1.jpg", "a.jpg"]


def test_what_is_passed_over_is_said(tmp_path):
    _touch(
        tmp_path, "a.jpg", "notes.txt", "b.mp4", ".c.jpg", ".DS_Store", "sub/d.avif", "e_iuv.png"
    )
    (tmp_path / "gone.png").symlink_to(tmp_path / "moved.png")
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    found = find_images([tmp_path, tmp_path], own_endings=("_iuv.png",))
    assert [path.name for path in found.paths] == ["a.jpg"]
    notes = "\n".join(found.notes)
    assert f"passed over files without an image's suffix (2): {tmp_path / 'b.mp4'}, " in notes
    assert f"passed over links to files that do not exist (1): {tmp_path / 'gone.png'}" in notes
    assert f"passed over hidden images (1): {tmp_path / '.c.jpg'}" in notes
    assert f"named like those that are written (1): {tmp_path / 'e_iuv.png'}" in notes
    assert f"subfolders, which --recursive searches (1): {tmp_path / 'sub'}" in notes
    assert f"pipes, sockets and devices (1): {tmp_path / 'pipe.jpg'}" in notes
    assert len(found.notes) == 6 and "DS_Store" not in notes
    assert _names(tmp_path / "e_iuv.png", own_endings=("_iuv.png",)) == ["e_iuv.png"]
    with pytest.raises(ImageError, match=r"no image found at .*gone\.png.*that do not exist"):
        find_images([tmp_path / "gone.png"])


def test_long_lists_are_cut_short(tmp_path):
    _touch(tmp_path, "a.jpg", *(f"{number}.txt" for number in range(9)))
    (note,) = find_images([tmp_path]).notes
    assert "(9): " in note and note.endswith("2.txt, ...")


def test_subfolders_are_searched_when_asked(tmp_path):
    _touch(tmp_path, "a.jpg", "sub/b.jpg", "sub/deep/c.jpg", ".git/d.jpg")
    (tmp_path / "sub" / "circle").symlink_to(tmp_path, target_is_directory=True)
    found = find_images([tmp_path], recursive=True)
    assert [path.name for path in found.paths] == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.notes == []


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _touch(tmp_path, "a.jpg")
    assert find_images(["~/a.jpg", "~/*.jpg", "~"]).paths == [tmp_path / "a.jpg"]
