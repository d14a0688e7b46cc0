"""Arrays of .npz files: as NumPy wrote them, and nothing that asks for more than is there."""

import io
import zipfile

import numpy as np
import pytest

from ktn_jax.runtime.npz_files import NpzFile

_ARRAYS = {
    "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "scalar": np.float64(2.5),
    "text": np.array(["a", "äö"]),
    "bytes": np.array(b"xy"),
    "swapped": np.array([1, 256], ">i4"),
    "none": np.zeros((0, 3), np.float16),
    "under/folder": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote(save, tmp_path):
    save(tmp_path / "a.npz", **_ARRAYS)
    with NpzFile(tmp_path / "a.npz") as stored:
        assert list(stored) == list(_ARRAYS) and len(stored) == len(_ARRAYS)
        assert "rows" in stored and "row" not in stored
        arrays = dict(stored)
        with pytest.raises(KeyError):
            stored["row"]
    for name, array in _ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def _npy(array, **changes):
    """An array in the .npy format, with another header in front of the same numbers."""
    content = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue() + array.tobytes()


_SMALL = np.arange(3.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_npy(_SMALL, shape=(1 << 40,)), "needs 8796093022208 bytes, 24 are there"),
        (_npy(_SMALL, shape=(2,)), "needs 16 bytes, 24 are there"),
        (_npy(_SMALL, shape=(-3,)), "a: "),
        (_npy(_SMALL, shape=(0, 1 << 70)), "a: "),
        (_npy(_SMALL, descr="|O"), "a: an array of Python objects"),
        (_npy(_SMALL, descr=[("x", "|O"), ("y", "<f8")]), "a: an array of Python objects"),
        (_npy(_SMALL, descr="(" * 5000), "a: "),
        (_npy(_SMALL)[:-1], "needs 24 bytes, 23 are there"),
        (b"\x93NUMPY\x09\x00" + bytes(50), r"a: .*\(9, 0\)"),
        (b"", "a: "),
    ],
)
def test_arrays_that_are_refused(content, message, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", content)
    with NpzFile(path) as stored, pytest.raises(ValueError, match=message) as caught:
        stored["a"]
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def _declare(archive):
    archive.infolist()[0].file_size = 1 << 40


def _encrypt(archive):
    archive.infolist()[0].flag_bits |= 1


@pytest.mark.parametrize(
    ("change", "method", "message"),
    [
        (_declare, zipfile.ZIP_DEFLATED, "would unpack to 1099511627776 bytes"),
        (_encrypt, zipfile.ZIP_STORED, "a.npy: encrypted"),
        (None, zipfile.ZIP_BZIP2, "a.npy: packed in another way"),
    ],
)
def test_archives_that_are_refused(change, method, message, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", _npy(_SMALL))
        if change:
            change(archive)  # in the directory at the end
    with pytest.raises(ValueError, match=rf"x\.npz: damaged, or not an \.npz file: {message}"):
        NpzFile(path)


def test_flipped_bit_and_files_that_are_absent_or_cut(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError):
        NpzFile(path)
    np.savez(path, a=_SMALL)
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[whole.index(_SMALL.tobytes()) + 3] ^= 1
    path.write_bytes(spoilt)
    with NpzFile(path) as stored, pytest.raises(ValueError, match=r"x\.npz: .*a: Bad CRC-32"):
        stored["a"]
    for content in (b"", b"no archive", whole[:-5]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz: damaged, or not an \.npz file"):
            NpzFile(path)
