"""MATLAB files: what SciPy writes comes back, and nothing in a file can end the process."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from ktn_jax.body import loading
from ktn_jax.runtime import mat_files

ARRAYS = {
    "double": np.arange(12.0).reshape(3, 4) / 7,
    "single": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "short": np.array([[-3, 300]], np.int16),
    "long": np.array([[2**40]], np.int64),
    "small": np.array([[7]], np.uint16),  # fits into its tag
    "empty": np.zeros((0, 3)),
}


def _element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def _matrix(name: str, shape, *content: bytes, kind: int = 6, order: str = "<") -> bytes:
    description = (
        _element(6, struct.pack(f"{order}II", kind, 0), order)
        + _element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
        + _element(1, name.encode(), order)
    )
    return _element(14, description + b"".join(content), order)


def _file(path, *variables: bytes, order: str = "<"):
    version = struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + version + b"".join(variables))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_and_cells_come_back_as_scipy_reads_them(tmp_path, compressed):
    cells = np.empty((2, 2), object)
    cells[0, 0], cells[1, 0], cells[0, 1], cells[1, 1] = (
        np.full((1, n), float(n)) for n in (1, 2, 3, 4)
    )
    others = {"text": "words", "sparse": scipy.sparse.eye_array(3).tocsc(), "record": {"a": 1.0}}
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, others | ARRAYS | {"cells": cells}, do_compression=compressed)
    expected = scipy.io.loadmat(path)
    result = mat_files.read_arrays(path, tuple(ARRAYS))
    assert list(result) == list(ARRAYS)
    for name, array in result.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    (read,) = mat_files.read_cells(path, ("cells",)).values()
    assert [cell.tolist() for cell in read] == [[[1.0]], [[2, 2]], [[3] * 3], [[4] * 4]]


def test_big_endian(tmp_path):
    numbers = _element(3, struct.pack(">3h", 1, 2, -3), ">")
    path = _file(tmp_path / "big.mat", _matrix("x", (1, 3), numbers, order=">"), order=">")
    assert mat_files.read_arrays(path, ("x",))["x"].tolist() == [[1, 2, -3]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "variable text: wanted an array of real numbers, got text"),
        ("sparse", "variable sparse: .* got a sparse matrix"),
        ("record", "variable record: .* got a structure"),
        ("complex", "variable complex: .* got an array of complex numbers"),
        ("cells", "variable cells: .* got a cell array"),
        ("absent", "no field absent"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, name, message):
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.ones((1, 1))
    others = {"text": "words", "sparse": scipy.sparse.eye_array(3).tocsc(), "record": {"a": 1.0}}
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, others | {"complex": np.array([1j]), "cells": cells})
    with pytest.raises(ValueError, match=rf"a\.mat: .*{message}"):
        mat_files.read_arrays(path, (name,))


def test_nested_cells_are_refused(tmp_path):
    inner, outer = np.empty((1, 1), object), np.empty((1, 1), object)
    inner[0, 0] = np.ones((1, 1))
    outer[0, 0] = inner
    scipy.io.savemat(tmp_path / "a.mat", {"x": outer})
    with pytest.raises(ValueError, match=r"a\.mat: .*variable x: .*got a cell array"):
        mat_files.read_cells(tmp_path / "a.mat", ("x",))


ONE = _element(9, struct.pack("<d", 1.0))
_SMALL = struct.pack("<I", 9 << 16 | 1) + b"abcd"
DAMAGED = {
    "more numbers than bytes": (_matrix("x", (1, 1 << 30), ONE), "needs 8589934592 bytes, 8 are"),
    "negative": (_matrix("x", (-1, -1), ONE), r"shape \(-1, -1\)"),
    "one axis": (_matrix("x", (1,), ONE), "dimensions cannot be read"),
    "many axes": (_matrix("x", (1,) * 33, ONE), "dimensions cannot be read"),
    "cells": (_matrix("x", (1 << 30, 1), kind=1), "wanted an array of real numbers"),
    "unknown type": (_matrix("x", (1, 1), _element(77, b"12345678")), r"unknown type \(77\)"),
    "unknown class": (_matrix("x", (1, 1), ONE, kind=99), r"unknown class \(99\)"),
    "not a variable": (_element(9, b"12345678"), "type 9 where a variable should be"),
    "small element": (_element(14, _SMALL), "small element of 9 bytes"),
    "too long": (struct.pack("<II", 14, 1 << 31) + ONE, "an element of 2147483648 bytes, 16 are"),
    "no content": (_element(14, b""), "unpack_from requires"),
    "not zlib": (struct.pack("<II", 15, 8) + b"12345678", "incorrect header"),
    "cut zlib": (
        (lambda packed: struct.pack("<II", 15, len(packed)) + packed)(
            zlib.compress(_matrix("x", (1, 1), ONE))[:-6]
        ),
        "cut short",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path, case):
    variable, message = DAMAGED[case]
    with pytest.raises(ValueError, match=rf"a\.mat: not a readable MATLAB 5 file: .*{message}"):
        mat_files.read_arrays(_file(tmp_path / "a.mat", variable), ("x",))


def test_cells_without_content(tmp_path):
    path = _file(tmp_path / "a.mat", _matrix("x", (1 << 30, 1), kind=1))
    with pytest.raises(ValueError, match="1073741824 cells in 0 bytes"):
        mat_files.read_cells(path, ("x",))


def test_variable_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(mat_files, "_MAX_VARIABLE_BYTES", 1 << 16)
    path = tmp_path / "bomb.mat"
    scipy.io.savemat(path, {"x": np.zeros((1, 1 << 16)), "y": np.ones((1, 2))}, do_compression=True)
    with pytest.raises(ValueError, match=r"bomb\.mat: .* more than 0 MiB"):
        mat_files.read_arrays(path, ("x",))
    assert mat_files.read_arrays(path, ("y",))["y"].tolist() == [[1, 1]]  # x is not unpacked


def test_version_7_3_says_how_to_save_it(tmp_path):
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n")
    with pytest.raises(ValueError, match="7.3 .HDF5.*save -v7"):
        mat_files.read_arrays(tmp_path / "new.mat", ("x",))


@pytest.mark.parametrize("values", [[], [1.5], [np.nan], [np.inf], [1e300]])
def test_whole_numbers(values):
    with pytest.raises(ValueError, match="f: x (is empty|must be whole numbers)"):
        mat_files.whole_numbers("f", "x", np.array(values))
    assert mat_files.whole_numbers("f", "x", np.array([3.0, -1.0])).dtype == np.int64


def test_file_that_ended_the_process_inside_scipy(cases_dir):
    with pytest.raises(ValueError, match=r"segfault_loadmat\.mat: .*variable U_transforms"):
        loading.load_uv_symmetry(cases_dir / "hostile" / "segfault_loadmat.mat")
