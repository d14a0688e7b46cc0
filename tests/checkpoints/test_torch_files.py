"""PyTorch's files, read without it: what it wrote, and what was made to hurt a reader."""

import collections
import io
import pickle
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ktn_jax.checkpoints import torch_files
from ktn_jax.checkpoints.files import read_state_dict


@pytest.mark.parity
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_pytorch_wrote(is_zip, tmp_path):
    torch = pytest.importorskip("torch", reason="writes the files")
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = collections.OrderedDict(
        whole=whole,
        same=whole,
        turned=whole.t(),
        cut=whole[1:, 2::2],
        parameter=torch.nn.Parameter(torch.ones(2)),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 3),
        repeated=torch.ones(1).expand(5),
        brain=torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16),
        **{
            str(dtype): torch.tensor([0, 1, 100]).to(dtype)
            for dtype in (
                torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
                torch.uint8, torch.uint16, torch.bool, torch.complex64, torch.complex128,
            )
        },
    )  # fmt: skip
    others = {
        "type": torch.float32,
        "device": torch.device("cuda:1"),
        "size": torch.Size([1, 2]),
        "set": {1, (2, 3)},
        "counter": collections.Counter("aab"),
        "bytes": b"\xff",
        "nested": [(None, 1.5, True, "text", -(2**70))],
    }
    path = tmp_path / "w.pth"
    torch.save({"model": tensors, **others}, path, _use_new_zipfile_serialization=is_zip)
    content = torch_files.read(path)
    assert list(content.pop("model")) == list(tensors)
    assert content == others | {"type": "torch.float32", "device": "cuda:1", "size": (1, 2)}
    state = read_state_dict(path)
    assert state["brain"].dtype == ml_dtypes.bfloat16
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        expected = (tensor.float() if name == "brain" else tensor).numpy()
        assert state[name].shape == expected.shape, name
        assert name == "brain" or state[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(state[name], expected, err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize("make", ["to_sparse", "conj"])
def test_tensors_that_are_not_plain(make, tmp_path):
    torch = pytest.importorskip("torch", reason="writes the files")
    torch.save({"w": getattr(torch.ones(2) + 1j, make)()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: refused .*(_rebuild_sparse_tensor|conjugate)"):
        read_state_dict(tmp_path / "w.pth")


def _body(value):
    return pickle.dumps(value, 2)[2:-1]


def _storage(*, kind=b"FloatStorage", key="0", count=4, rest=b""):
    """A reference to four numbers."""
    reference = _body("storage") + b"ctorch\n" + kind + b"\n" + _body(key) + _body("cpu")
    return b"(" + reference + _body(count) + rest + b"tQ"


def _tensor(storage=None, *, offset=0, size=(4,), stride=(1,)):
    where = _body(offset) + (size if isinstance(size, bytes) else _body(size)) + _body(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage or _storage()) + where + b"\x89NtR"


def _dict(body):
    return b"\x80\x02}(" + _body("other") + _tensor() + _body("w") + body + b"u."


def _zip(path, data, storages=(("0", bytes(16)),), method=zipfile.ZIP_STORED, declared=None):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("w/data.pkl", data)
        for key, content in storages:
            archive.writestr(f"w/data/{key}", content)
        if declared is not None:
            archive.infolist()[-1].file_size = declared  # in the directory at the end


def _older(path, data, keys=("0",), tail=b"\x04" + bytes(7 + 16)):
    begin = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in begin) + data)
    with open(path, "ab") as file:
        file.write(pickle.dumps(list(keys), 2) + tail)


_WRITERS = {"zip": _zip, "older": _older}


def _refused(path, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(path)
    assert time.monotonic() - start < 5
    assert str(path) in str(caught.value) and len(str(caught.value)) < 4000


def _tower(levels=60):
    """A tuple of two that are one, of two that are one, ..."""
    return b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(levels))


HOSTILE = {
    "function": (b"cposix\nsystem\n" + _body("true") + b"\x85R", "request for posix.system"),
    "key": (b"}" + _tower() + b"Ns", "a key of a dict"),
    "set": (b"cbuiltins\nset\n](" + _tower() + b"e\x85R", "a key or member"),
    "counter": (b"ccollections\nCounter\n](" + _tower() + b"e\x85R", "a counter"),
    "ordered": (b"ccollections\nOrderedDict\n](" + _tower() + b"N\x86e\x85R", "a key or member"),
    "bytes": (b"cbuiltins\nbytearray\n" + _body(2**40) + b"\x85R", "refused"),
    "codec": (b"c_codecs\nencode\n" + _body(("a", "idna")) + b"R", "refused _codecs.encode"),
    "memo": (b"Nr\x00\x00\x00\x08", "the memo's entry"),
    "deep": (b"}K\x01" + b"\x85" * 300_000 + b"Ns", "a key of a dict"),
    "deep value": (b"N" + b"\x85" * 100_000, "recursion"),
    "itself": (b"}q\x05" + _body("a") + b"h\x05s", "holds itself"),
    "size of towers": (_tensor(size=_tower()), "is not the shape"),
    "stored elsewhere": (_tensor(_tower() + b"Q"), "other than a storage"),
    "type of storage": (_tensor(_storage(kind=b"float32")), "other than a storage"),
    "no storage": (_tensor(b"N"), "without a storage"),
    "name of storage": (_tensor(_storage(key=7)), "other than a storage"),
    "beyond": (_tensor(offset=1), "shape|small"),
    "strides": (_tensor(stride=(2,)), "shape|small"),
    "changed": (_tensor() + b"}" + _body("resolve") + b"Nsb", "refused to change a Tensor"),
    "changed storage": (
        _tensor(_storage() + b"}" + _body("data") + b"Nsb"),
        "refused to change a storage",
    ),
    "backwards": (_tensor(offset=3, stride=(-1,)), "shape"),
    "fewer strides": (_tensor(stride=()), "0 strides"),
    "huge": (_tensor(size=(2**40,), stride=(0,)), "out of a storage"),
    "overflow": (_tensor(offset=2**62), "."),
    "view": (_tensor(_storage(rest=_body(("1", 0, 1)))), "a view of a storage"),
    "two sizes": (
        b"](" + _tensor() + _tensor(_storage(count=5)) + b"e",
        "two sizes",
    ),
    "storage of another size": (_tensor(_storage(count=5), size=(5,)), "20 bytes, 16|two sizes"),
    "enormous": (_tensor(_storage(count=2**61)), "are there|two sizes"),
    "cut": (b"X\xff\xff\xff\x7f", "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("form", _WRITERS)
def test_hostile_pickles(form, case, tmp_path):
    body, message = HOSTILE[case]
    path = tmp_path / "w.pth"
    _WRITERS[form](path, _dict(_tensor()))
    np.testing.assert_array_equal(read_state_dict(path)["w"], np.zeros(4, np.float32))
    _WRITERS[form](path, _dict(body))
    _refused(path, message)


@pytest.mark.parametrize("form", _WRITERS)
def test_a_model_that_is_its_own_wrapper(form, tmp_path):
    body = _body("w") + _tensor() + _body("model") + b"h\x05"
    _WRITERS[form](tmp_path / "w.pth", b"\x80\x02}q\x05(" + body + b"u.")
    _refused(tmp_path / "w.pth", "holds itself")


@pytest.mark.parametrize("form", _WRITERS)
def test_files_that_did_not_end(form, cases_dir, tmp_path):
    paths = sorted((cases_dir / "hostile").glob("*.pkl"))
    assert len(paths) == 3
    for source in paths:
        path = tmp_path / f"{source.stem}.pth"
        _WRITERS[form](path, source.read_bytes())
        _refused(path, "not a PyTorch file, or a damaged one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"declared": 1 << 40}, "would unpack to"),
        ({"declared": 15}, "are there|CRC"),
        ({"method": zipfile.ZIP_LZMA}, "another way than by deflate"),
        ({"storages": ()}, "no item named"),
        ({"storages": (("0", bytes(12)),)}, "16 bytes, 12 are there"),
    ],
)
def test_hostile_archives(options, message, tmp_path):
    _zip(tmp_path / "w.pth", _dict(_tensor()), **options)
    _refused(tmp_path / "w.pth", message)


def test_packed_archives_and_flipped_bits(tmp_path):
    path = tmp_path / "w.pth"
    values = np.arange(4, dtype=np.float32)
    _zip(path, _dict(_tensor()), (("0", values.tobytes()),), zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read_state_dict(path)["w"], values)
    _zip(path, _dict(_tensor()), (("0", values.tobytes()),))
    content = bytearray(path.read_bytes())
    content[content.index(values.tobytes()) + 9] ^= 1
    path.write_bytes(content)
    _refused(path, "Bad CRC-32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ()}, "not in the file"),
        ({"keys": ("1",)}, "storage 1 that nothing refers to"),
        ({"keys": (1,)}, "no list of storages"),
        ({"tail": struct.pack("<q", 4) + bytes(15)}, "16 bytes, 15 are there"),
        ({"tail": struct.pack("<q", -1)}, "two sizes"),
        ({"tail": b"\x00"}, "unpack"),
    ],
)
def test_damaged_older_files(options, message, tmp_path):
    _older(tmp_path / "w.pth", _dict(_tensor()), **options)
    _refused(tmp_path / "w.pth", message)


def test_other_files(tmp_path):
    path = tmp_path / "w.pth"
    for content, message in (
        (pickle.dumps({"w": np.zeros(3)}), "does not begin as PyTorch's files do"),
        (b"PK\x03\x04", "not a PyTorch file"),
        (b"{}", "unknown instruction"),
    ):
        path.write_bytes(content)
        _refused(path, message)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("w/data.pk", b"")
    path.write_bytes(archive.getvalue())
    _refused(path, "without one data.pkl")
