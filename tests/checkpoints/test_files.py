"""Files of named arrays: each format read and written, and every way a file can be wrong."""

import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ktn_jax.checkpoints import files
from ktn_jax.checkpoints.files import read_state_dict, write_state_dict
from ktn_jax.runtime import pickles

RNG = np.random.default_rng(0)
STATE = {
    "roi_heads.conv.weight": RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "roi_heads.conv.bias": RNG.normal(size=4).astype(np.float32),
    "backbone.bn.num_batches_tracked": np.array(7, np.int64),
    "backbone.bn.running_var": RNG.normal(size=5),
    "half": np.array([1.5, np.inf], np.float16),
    "flags": np.array([True, False, True]),
    "brain": np.array([[1.0, -3.5]], ml_dtypes.bfloat16),
    "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3).T,  # a view in another memory order
    "swapped": np.array([1, 256], ">i4"),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason=".pth files need PyTorch, an optional extra")


def _assert_equal_states(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name, array in expected.items():
        assert actual[name].shape == array.shape, name
        assert actual[name].dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".pkl"])
def test_round_trip(suffix, tmp_path, request):
    if suffix in (".pth", ".pt"):
        request.getfixturevalue("torch")
    state = dict(STATE)
    if suffix == ".pkl":
        del state["brain"]
    path = tmp_path / f"weights{suffix}"
    write_state_dict(path, state)
    _assert_equal_states(read_state_dict(path), state)
    assert os.listdir(tmp_path) == [path.name]  # no temporary file stays


def test_safetensors_bytes_do_not_depend_on_order(tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_state_dict(first, STATE)
    shuffled = {name: np.asfortranarray(STATE[name]) for name in reversed(STATE)}
    shuffled["backbone.bn.num_batches_tracked"] = STATE["backbone.bn.num_batches_tracked"]
    write_state_dict(second, shuffled)
    assert first.read_bytes() == second.read_bytes()
    changed = STATE | {"flags": ~STATE["flags"]}
    write_state_dict(second, changed)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parity
def test_pytorch_reads_what_is_written(torch, tmp_path):
    write_state_dict(tmp_path / "w.pth", STATE)
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(loaded) == ["model"]
    model = loaded["model"]
    assert model["brain"].dtype == torch.bfloat16 and model["brain"].tolist() == [[1.0, -3.5]]
    assert model["backbone.bn.num_batches_tracked"].shape == ()
    assert model["bytes"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert model["swapped"].tolist() == [1, 256]
    model["bytes"].add_(1)  # the caller's array must not change with the tensor
    assert STATE["bytes"][0, 0] == 0


@pytest.mark.parity
def test_pytorch_checkpoints(torch, tmp_path):
    conv = torch.nn.Conv2d(2, 3, 1)
    norm = torch.nn.BatchNorm2d(3)
    module = torch.nn.DataParallel(torch.nn.Sequential(conv, norm))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    torch.save(
        {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
        tmp_path / "checkpoint.pth",
    )
    state = read_state_dict(tmp_path / "checkpoint.pth")
    assert list(state) == [name.removeprefix("module.") for name in module.state_dict()]
    np.testing.assert_array_equal(state["0.weight"], conv.weight.detach().numpy())
    assert state["1.num_batches_tracked"].shape == ()
    assert state["1.num_batches_tracked"].dtype == np.int64
    torch.save(conv.state_dict(), tmp_path / "flat.pt")
    assert list(read_state_dict(tmp_path / "flat.pt")) == ["weight", "bias"]


@pytest.mark.parity
def test_detectron2_and_pytorch_dumps_hold_the_same_weights(torch, golden_dir, tmp_path):
    dump = golden_dir / "ktnv2_hrnet_v3_tiny.npz"
    state = read_state_dict(dump)
    with np.load(dump) as archive:
        stored = [name for name in archive.files if name.startswith("state/")]
    assert ["state/" + name for name in state] == stored and len(stored) > 100
    assert state["pixel_mean"].ravel() == pytest.approx([103.53, 116.28, 123.675])
    for suffix in (".pth", ".pkl", ".safetensors"):
        write_state_dict(tmp_path / f"w{suffix}", state)
        _assert_equal_states(read_state_dict(tmp_path / f"w{suffix}"), state)


def test_module_prefix_is_taken_off_only_if_all_have_it(tmp_path):
    path = tmp_path / "w.safetensors"
    write_state_dict(path, {"module.a": np.zeros(1), "module.module.b": np.ones(1)})
    assert list(read_state_dict(path)) == ["a", "module.b"]
    write_state_dict(path, {"module.a": np.zeros(1), "b": np.ones(1)})
    assert sorted(read_state_dict(path)) == ["b", "module.a"]


def test_detectron2_and_caffe2_pickles(tmp_path):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "R-50.pkl"
    contents = {
        "detectron2": {"model": {"w": weight}, "__author__": "someone", "matching_heuristics": 1},
        "caffe2": {"blobs": {"w": weight, "w_momentum": weight, "lr": np.float32(1)}, "cfg": "x"},
        "flat": {"w": weight},
    }
    for name, content in contents.items():
        path.write_bytes(pickle.dumps(content, 2))
        state = read_state_dict(path)
        assert sorted(state) == (["lr", "w"] if name == "caffe2" else ["w"])
        np.testing.assert_array_equal(state["w"], weight)
    assert isinstance(read_state_dict(path)["w"], np.ndarray)


def test_written_pickle_tells_detectron2_not_to_guess_at_names(tmp_path):
    write_state_dict(tmp_path / "w.pkl", {"w": np.arange(3.0)})
    content = pickles.load_arrays(tmp_path / "w.pkl")
    assert set(content) == {"model", "__author__"}


def test_npz_without_the_dump_prefix(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.arange(3), b=np.float32(2))
    state = read_state_dict(tmp_path / "w.npz")
    assert list(state) == ["a", "b"] and state["b"].shape == () and state["b"].dtype == np.float32


class _Attack:
    """Makes a folder when an ordinary unpickler reads it."""

    def __init__(self, flag):
        self.flag = str(flag)

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.mark.parametrize("suffix", [".pkl", ".npz", ".safetensors", ".pth"])
def test_hostile_files_are_refused(suffix, tmp_path, request):
    path, attack = tmp_path / f"w{suffix}", _Attack(tmp_path / "flag")
    if suffix == ".npz":
        np.savez(path, w=np.array([attack], object))
    elif suffix == ".pth":
        request.getfixturevalue("torch").save({"model": {"w": attack}}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {"w": attack}}))
    message = {
        ".pkl": "request for posix.mkdir",
        ".npz": "array of Python objects",
        ".safetensors": "not a safetensors file",
        ".pth": "request for posix.mkdir.*state_dict",
    }
    with pytest.raises(ValueError, match=rf"w\{suffix}: .*" + message[suffix]):
        read_state_dict(path)
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pkl", ".npz", ".pth"])
def test_damaged_files_are_named(suffix, tmp_path, request):
    if suffix == ".pth":
        request.getfixturevalue("torch")
    path = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, w=RNG.normal(size=500))
    else:
        write_state_dict(path, {"w": RNG.normal(size=500)})
    whole = path.read_bytes()
    for content in (whole[:9], whole[: len(whole) // 2], whole[:-3], b"not a checkpoint" * 9):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"w\{suffix}: .*damaged|w\{suffix}: not a PyTorch"):
            read_state_dict(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_state_dict(path)


def test_damaged_data_inside_an_npz(tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, w=RNG.normal(size=500))
    content = bytearray(path.read_bytes())
    content[1000:1010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.npz: damaged"):
        read_state_dict(path)


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pkl: there is no such checkpoint"):
        read_state_dict(tmp_path / "absent.pkl")
    with pytest.raises(ValueError, match=r"read as \.pth, .*\.npz, not \.ckpt"):
        read_state_dict(tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"written as \.safetensors, .*, not \.npz"):
        write_state_dict(tmp_path / "w.npz", STATE)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_state_dict(tmp_path / "absent" / "w.safetensors", STATE)


@pytest.mark.parametrize(
    "content,message",
    [
        ({"model": {"w": np.zeros(2), "step": 3}}, r"1 of 2 entries are not arrays.*step \(int\)"),
        ({"model": {"w": np.array(["a"])}}, r"w \(array of <U1\)"),
        ({"model": {}}, "holds no arrays"),
        ({"w": {"nested": np.zeros(2)}}, r"w \(dict\)"),
        ({3: np.zeros(2)}, "3 is not the name"),
        ([np.zeros(2)], "holds a list, not a dict"),
        (np.zeros(2), "holds a ndarray"),
    ],
)
def test_entries_that_are_not_arrays(content, message, tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"w\.pkl: .*" + message):
        read_state_dict(path)


@pytest.mark.parametrize(
    "state,message",
    [
        ({}, "no arrays to write"),
        ({"w": np.array([{}], object)}, r"w is not an array of numbers \(array of object\)"),
        ({"w": "text"}, r"w is not an array of numbers \(str\)"),
        ({3: np.zeros(2)}, "the name 3"),
    ],
)
def test_what_cannot_be_written(state, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_state_dict(tmp_path / "w.safetensors", state)
    assert os.listdir(tmp_path) == []


def test_bfloat16_is_refused_by_pickle(tmp_path):
    with pytest.raises(ValueError, match="brain is bfloat16"):
        write_state_dict(tmp_path / "w.pkl", STATE)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_message_without_pytorch(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"PK")
    with pytest.raises(ImportError, match=rf"w\{suffix}: .*pip install 'ktn_jax\[torch\]'"):
        write_state_dict(path, STATE)
    assert path.read_bytes() == b"PK"


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_state_dict(path, STATE)
    before = path.read_bytes()

    def fail_halfway(arrays, file, metadata):
        pathlib.Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        write_state_dict(path, {"w": np.zeros(2)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_import_needs_neither_torch_nor_jax():
    code = "import sys, ktn_jax.checkpoints.files; print({'torch', 'jax'} & set(sys.modules))"
    root = pathlib.Path(files.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_safetensors_are_mapped_as_the_library_reads_them(tmp_path):
    """Types of every width and an empty array, in an order and alignment that the library chose."""
    rng = np.random.default_rng(0)
    arrays = {
        "odd": rng.random(3) > 0.5,
        "half": rng.random((2, 5)).astype(np.float16),
        "double": rng.random((3, 2)),
        "none": np.zeros((0, 4), np.float32),
        "byte": rng.integers(0, 255, 7, np.uint8),
        "scalar": np.float32(1.5),
    }
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in arrays.items()}, path)
    actual = read_state_dict(path)
    expected = safetensors.numpy.load_file(path)
    assert actual.keys() == expected.keys() == arrays.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype and actual[name].shape == array.shape, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
    # Mapped, not copied: the pages are the file's.
    base = actual["double"]
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(first: int, last: int, shape: object = (1,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 8, "a header of 18446744073709551615 bytes"),
        (b"123", "requires a buffer of 8"),
        (_safetensors(b"[" * 100_000), "recursion"),
        (_safetensors([]), "header is no dict"),
        (_safetensors({"w": _entry(0, 4, dtype="F8_E4M3")}, bytes(4)), "w: cannot be read"),
        (_safetensors({"w": _entry(0, 4, dtype=["F32"])}, bytes(4)), "w: cannot be read"),
        (_safetensors({"w": 3}), "w: cannot be read"),
        (_safetensors({"w": _entry(0, 4, (1.0,))}, bytes(4)), "w: .* whole numbers"),
        (_safetensors({"w": _entry(-4, 0)}, bytes(4)), "w: .* whole numbers"),
        (_safetensors({"w": _entry(0, 4, (1,) * 65)}, bytes(4)), "w: .* whole numbers"),
        (_safetensors({"w": _entry(0, 4, (2**40,))}, bytes(4)), "w: needs 4398046511104 bytes"),
        (_safetensors({"w": _entry(0, 8, (2,))}, bytes(4)), "w: needs 8 bytes"),
        (_safetensors({"a": _entry(0, 4), "b": _entry(0, 4)}, bytes(4)), "overlap or leave a gap"),
        (_safetensors({"w": _entry(4, 8)}, bytes(8)), "leave a gap at byte 0"),
        (_safetensors({"w": _entry(0, 4)}, bytes(9)), "9 bytes of arrays, of which 4 are used"),
        (_safetensors({f"w{i}": _entry(0, 0, (0,)) for i in range(50_001)}), "50001 arrays"),
    ],
)
def test_hostile_safetensors_headers(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\.safetensors: damaged, .*{message}"):
        read_state_dict(path)
