"""The restricted unpickler: what it reads, what it refuses, and that nothing refused is run."""

import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest
import scipy.sparse

from ktn_jax.runtime.pickled_values import UnsafePickleError
from ktn_jax.runtime.pickles import load_arrays


class _Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _read(data: bytes):
    return load_arrays(io.BytesIO(data))


VALUE = {
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "half": np.array([1.5, -2.0], np.float16),
    "mask": np.array([True, False]),
    "text": np.array(["res2", "stem"]),
    "empty": np.zeros((0, 4), np.int64),
    "zero_d": np.array(7, np.int64),
    "scalar": np.float32(3),
    "plain": [1, (2.5, {"x"}), None, 1j, b"\xff\x00", b"", bytearray(b"ab"), frozenset({2})],
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_data_come_back_as_they_were(protocol):
    result = _read(pickle.dumps(VALUE, protocol))
    assert list(result) == list(VALUE)
    assert result["plain"] == VALUE["plain"]
    for key in list(VALUE)[:-1]:
        assert result[key].dtype == VALUE[key].dtype, key
        assert type(result[key]) is type(VALUE[key]), key
        np.testing.assert_array_equal(result[key], VALUE[key], err_msg=key)


def test_ordered_dict_and_shared_arrays():
    array = np.arange(3.0)
    result = _read(pickle.dumps(collections.OrderedDict(b=array, a=[array])))
    assert type(result) is dict and list(result) == ["b", "a"]
    assert result["b"] is result["a"][0]


def test_python2_pickle_reads_bytes_as_latin1():
    # What Python 2.7 with NumPy 1.11 writes for {"conv1_w": float32 array, "lr": np.float64} at
    # protocol 2: str is a byte string (opcode U), and so are the contents of the array.
    floats = np.array([[1.0, -0.15625], [3e-8, 200.0]], np.float32)
    short = lambda text: b"U" + bytes([len(text)]) + text  # noqa: E731
    dtype = lambda code: (  # noqa: E731
        _global("numpy", "dtype") + short(code) + b"K\x00K\x01\x87R(K\x03" + short(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )  # fmt: skip
    array = (
        _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray")
        + b"K\x00\x85" + short(b"b") + b"\x87R(K\x01K\x02K\x02\x86" + dtype(b"f4") + b"\x89"
        + short(floats.tobytes()) + b"tb"
    )  # fmt: skip
    scalar = _global("numpy.core.multiarray", "scalar") + dtype(b"f8")
    scalar += short(struct.pack("<d", 0.1)) + b"\x86R"
    stream = b"\x80\x02}(" + short(b"conv1_w") + array + short(b"lr") + scalar + b"u."
    # The stand-in is a true pickle: Python's own unpickler agrees on what it means.
    expected = pickle.loads(stream, encoding="latin1")  # noqa: S301 (written three lines above)
    np.testing.assert_array_equal(expected["conv1_w"], floats)
    result = _read(stream)
    np.testing.assert_array_equal(result["conv1_w"], floats)
    assert result["conv1_w"].dtype == np.float32
    assert result["lr"] == 0.1 and isinstance(result["lr"], np.float64)


def test_published_distance_table(golden_dir):
    distances = load_arrays(golden_dir / "eval" / "Pdist_matrix.pkl")["Pdist_matrix"]
    assert distances.shape == (49455, 1) and distances.dtype == np.float32
    vertices = (1 + np.sqrt(1 + 8 * len(distances))) / 2  # n (n - 1) / 2 pairs
    assert vertices == 315
    assert distances.min() >= 0 and 0 < distances.mean() < 3


HOSTILE = {
    "os.system": ("posix.system", _Calls(os.system, "touch {flag}")),
    "eval": ("builtins.eval", _Calls(eval, "open('{flag}', 'w')")),
    "exec": ("builtins.exec", _Calls(exec, "open('{flag}', 'w')")),
    "open": ("io.open", _Calls(open, "{flag}", "w")),
    "getattr": ("builtins.getattr", _Calls(getattr, "x", "upper")),
    "numpy.save": ("numpy.save", _Calls(np.save, "{flag}", 1)),
    "numpy.load": ("numpy.load", _Calls(np.load, "{flag}")),
    "numpy.fromfile": ("numpy.fromfile", _Calls(np.fromfile, "{flag}")),
    "numpy.memmap": ("numpy.memmap", _Calls(np.memmap, "{flag}", "u1", "w+", 0, (4,))),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("case", HOSTILE)
def test_functions_are_refused_by_name_and_not_run(case, protocol, tmp_path):
    refused, call = HOSTILE[case]
    flag = tmp_path / "flag"
    function, arguments = call.reduced
    arguments = tuple(a.format(flag=flag) if isinstance(a, str) else a for a in arguments)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps({"model": _Calls(function, *arguments)}, protocol))
    with pytest.raises(UnsafePickleError) as error:
        load_arrays(path)
    assert str(path) in str(error.value)
    assert refused.split(".")[1] in str(error.value)
    assert not flag.exists() and not flag.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    "module,name",
    [
        ("numpy.f2py", "compile"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy", "core.multiarray.fromfile"),  # protocol 4 follows dots in an ordinary unpickler
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__"),
        ("builtins", "getattr"),
        ("builtins", "type"),
        ("copyreg", "_reconstructor"),
        ("copyreg", "__newobj__"),
        ("copy_reg", "_reconstructor"),
        ("operator", "attrgetter"),
        ("functools", "partial"),
        ("ktn_jax.runtime.pickles", "load_arrays"),
        ("numpy.core.multiarray", "fromfile"),
        ("torch", "load"),
    ],
)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_every_other_name_is_refused_whatever_the_opcode(module, name, opcode):
    names = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    stream = {
        "GLOBAL": b"\x80\x02" + _global(module, name) + b")R.",
        "STACK_GLOBAL": b"\x80\x04" + names[0] + names[1] + b"\x93)R.",
        "INST": b"(" + _global(module, name).replace(b"c", b"i", 1) + b".",
    }[opcode]
    with pytest.raises(UnsafePickleError, match=f"request for {module}.{name}:"):
        _read(stream)


def test_listed_functions_cannot_be_bent():
    encode = _global("_codecs", "encode")
    zip_codec = encode + b"\x8c\x01b\x8c\x04zlib\x86R."
    with pytest.raises(UnsafePickleError, match="_codecs.encode with 'zlib'"):
        _read(b"\x80\x04" + zip_codec)
    # BUILD: as __setstate__, as attributes, and as slots (where functions keep their code).
    for state in (b"}\x8c\x08__code__Ns", b"N}\x8c\x08__code__Ns\x86"):
        with pytest.raises(UnsafePickleError, match="refused to change the state of _codecs"):
            _read(b"\x80\x04" + encode + state + b"b.")
    with pytest.raises(UnsafePickleError, match="as data: numpy.ndarray"):
        _read(b"\x80\x02" + _global("numpy", "ndarray") + b".")


@pytest.mark.parametrize(
    "content", [b"\x80\x02K\x01Q.", b"PK\x03\x04archive/data\n", b"\x89PNG\r\n"]
)
def test_persistent_references_are_refused(content):
    # Zip files (what torch.save writes) and PNGs happen to start like one.
    with pytest.raises(UnsafePickleError, match="suffix .pth, or no pickle"):
        _read(content)


@pytest.mark.parametrize(
    "value,message",
    [
        (np.array([{}, 1], object), "type 'O8'"),
        (np.zeros(2, [("x", "f4"), ("y", "f4")]), "array of records|type 'V8'"),
        (np.zeros(2, "datetime64[s]"), "type 'M8'"),
        (np.zeros(2, "V4"), "type 'V4'"),
        (scipy.sparse.eye_array(2).tocsr(), "scipy"),
    ],
)
def test_arrays_of_anything_but_numbers_and_text_are_refused(value, message):
    for protocol in (2, 5):
        with pytest.raises(UnsafePickleError, match=message):
            _read(pickle.dumps(value, protocol))


def test_array_that_claims_more_than_its_bytes():
    stream = pickle.dumps(np.arange(4, dtype=np.int32), 2)
    assert stream.count(b"K\x04\x85") == 1
    with pytest.raises(ValueError, match=r"shape \(5,\) and type int32 needs 20 bytes, 16 are"):
        _read(stream.replace(b"K\x04\x85", b"K\x05\x85"))
    with pytest.raises(ValueError, match="not the shape"):
        _read(stream.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"))


def test_damaged_files_are_named(tmp_path):
    whole = pickle.dumps({"w": np.arange(100.0)}, 2)
    path = tmp_path / "weights.pkl"
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b'{"a": 1}', b"\x80\x02q."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pkl: not a pickle, or a damaged one"):
            load_arrays(path)
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "absent.pkl")


def test_list_that_holds_itself():
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="holds itself"):
        _read(pickle.dumps(endless))


def test_arrays_are_read_only_views():
    array = _read(pickle.dumps(np.arange(3.0), 5))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
