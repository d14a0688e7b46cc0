"""TorchScript archives: parameters by name, without PyTorch and without running their code."""

import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ktn_jax.checkpoints import files, torchscript
from ktn_jax.runtime.pickled_values import UnsafePickleError


def _archive(path, pickled, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/constants.pkl", b"\x80\x02).")
        archive.writestr("m/byteorder", b"little")
        for name, content in entries.items():
            archive.writestr(f"m/data/{name[1:]}", content)
    return path


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _tensor(kind="FloatStorage", key="0", count=6, offset=0, shape=(2, 3), strides=(3, 1)):
    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"

    storage = b"(" + _text("storage") + f"ctorch\n{kind}\n".encode() + _text(key) + _text("cpu")
    storage += b"J" + struct.pack("<i", count) + b"tQ"
    start = b"J" + struct.pack("<i", offset)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + start
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def _module(**attributes):
    items = b"".join(_text(name) + value for name, value in attributes.items())
    return b"c__torch__.any.place\nModule\n)\x81}(" + items + b"ub"


def _pickled(**attributes):
    return b"\x80\x02" + _module(**attributes) + b"."


SIX = np.arange(6, dtype=np.float32)


def test_parameters_of_nested_modules_are_read_by_name(tmp_path):
    inner = _module(
        weight=_tensor(), n=b"K\x05", names=b"ctorch.jit._pickle\nbuild_intlist\n]\x85R"
    )
    transposed = _tensor(shape=(3, 2), strides=(1, 3))
    half = _tensor("BFloat16Storage", "1", 2, 1, (1,), (1,))
    outer = _pickled(
        model=_module(backbone=inner, training=b"\x88"), pixel_mean=transposed, half=half
    )
    path = _archive(
        tmp_path / "x.torchscript",
        outer,
        _0=SIX.tobytes(),
        _1=np.array([1, 2], ml_dtypes.bfloat16).tobytes(),
    )
    state = files.read_state_dict(path)
    # The detector was one module of another: its names begin with its own.
    assert set(state) == {"backbone.weight", "pixel_mean", "half"}
    np.testing.assert_array_equal(state["backbone.weight"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(state["pixel_mean"], SIX.reshape(2, 3).T)
    assert state["half"].dtype == ml_dtypes.bfloat16 and state["half"] == 2
    renamed = path.rename(tmp_path / "x.pt")
    assert set(files.read_state_dict(renamed)) == set(state)


class _Call:
    def __reduce__(self):
        return (print, ("run",))


def test_nothing_is_run(tmp_path, capsys):
    for pickled in (
        pickle.dumps(_Call(), 2),
        _pickled(x=b"cos\nsystem\n(" + _text("true") + b"tR"),
        _pickled(x=b"ctorch\nload\n)R"),
        _pickled(x=_tensor() + b"}(" + _text("_parts") + b"Nub"),  # changes a tensor
        _pickled(x=b"ctorch._utils\n_rebuild_tensor_v2\n}(" + _text("__defaults__") + b"Nub"),
        _pickled(x=b"ctorch\nFloatStorage\n}(" + _text("dtype") + b"Nub"),
        _pickled(x=_text("1") + b"Q"),
        # What follows a reference in text has not been scanned.
        _pickled(x=b"P1\n}K\x01" + b"\x85" * 300_000 + b"Ns"),
    ):
        path = _archive(tmp_path / "x.torchscript", pickled, _0=SIX.tobytes())
        with pytest.raises(UnsafePickleError, match=f"{path}: refused"):
            torchscript.read_tensors(path)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (_tensor(offset=1), "larger than its bytes"),
        (_tensor(shape=(1000, 1000), strides=(0, 0)), "larger than its bytes"),
        (_tensor(strides=(3,)), "with 1 strides"),
        (_tensor(shape=(-2, 3)), "not the shape"),
        (_tensor(count=7), "28 bytes, 24 are there"),
        (_tensor(key="9"), "data/9"),
        (_tensor(key="../data"), "no item named"),
        (_tensor("DoubleStorage"), "48 bytes, 24 are there"),
        (b"ctorch.jit._pickle\nrestore_type_tag\n))\x86R", "where TorchScript has a list"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tensor, text):
    path = _archive(tmp_path / "x.torchscript", _pickled(weight=tensor), _0=SIX.tobytes())
    with pytest.raises(ValueError, match=text):
        torchscript.read_tensors(path)


def test_files_that_are_no_archive_are_named(tmp_path):
    path = tmp_path / "x.torchscript"
    for content in (b"", b"no archive", b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.torchscript"):
            files.read_state_dict(path)
    itself = b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + _text("a") + b"h\x00ub."
    # Each module has the one before twice: 2**40 paths, and not a tensor.
    tower = b"\x80\x02c__torch__\nM\nq\x63)\x81q\x00" + b"".join(
        b"hc)\x81}(" + _text("a") + b"h%c" % n + _text("b") + b"h%cubq%c" % (n, n + 1)
        for n in range(40)
    )
    for pickled, text in (
        (_pickled(training=b"\x88"), "this module has no parameters. A frozen one"),
        (b"\x80\x02K\x01.", "it holds a int, no module"),
        (itself, "without end"),
        (tower + b".", "more than 50000 modules and tensors"),
        (_pickled(**{"a" * 1001: _module()}), "a name of more than 1000 characters"),
    ):
        with pytest.raises(ValueError, match=text):
            files.read_state_dict(_archive(path, pickled))


@pytest.mark.parity
@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("is_traced", [False, True])
def test_archives_of_pytorch(tmp_path, is_traced):
    torch = pytest.importorskip("torch")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)
            self.names, self.sizes = ["a", "b"], {"a": 1}

        def forward(self, x):
            return self.norm(self.conv(x))

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Detector()

        def forward(self, x):
            return self.model(x)

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(Block())
            self.head = torch.nn.ConvTranspose2d(4, 2, 4)

        def forward(self, x):
            return self.head(self.backbone(x))

    wrapper = Wrapper().eval()
    example = torch.zeros(1, 3, 16, 16)
    exported = torch.jit.trace(wrapper, example) if is_traced else torch.jit.script(wrapper)
    path = tmp_path / "x.torchscript"
    exported.save(str(path))
    state = torchscript.read_tensors(path)
    expected = wrapper.model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name], tensor.numpy(), strict=True)
