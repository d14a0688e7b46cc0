"""Random damage to files of arrays: a value or a `ValueError` that names the file, and soon.

Minutes of more examples: `make fuzz`, or KTN_FUZZ_EXAMPLES=10000.
"""

import os
import pickle
import pickletools
import struct
import time

import numpy as np
import pytest
import safetensors.numpy
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktn_jax.checkpoints.detectron2_config import from_detectron2
from ktn_jax.checkpoints.files import read_state_dict
from ktn_jax.runtime import mat_files
from ktn_jax.runtime.pickles import load_arrays

_SETTINGS = settings(
    max_examples=int(os.environ.get("KTN_FUZZ_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((1, 4), np.uint8)}
_LONGEST = 5.0  # seconds; the largest example takes milliseconds


def _pickled(path):
    path.write_bytes(pickle.dumps({"model": _ARRAYS | {"c": np.float64(2)}}, 2))


def _mat(path):
    cells = np.empty((1, 2), object)
    cells[0, 0] = cells[0, 1] = np.ones((2, 2))
    scipy.io.savemat(path, _ARRAYS | {"cells": cells})


def _read_mat(path):
    for read, field in ((mat_files.read_arrays, "a"), (mat_files.read_cells, "cells")):
        read(path, (field,))


_KINDS = {
    "pkl": (_pickled, load_arrays),
    "safetensors": (lambda path: safetensors.numpy.save_file(_ARRAYS, path), read_state_dict),
    "npz": (lambda path: np.savez(path, **_ARRAYS), read_state_dict),
    "mat": (_mat, _read_mat),
}
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]),
        st.integers(0, 1 << 16),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\xff\xff\xff\x7f", b"\xff" * 4, bytes(4), b"\x80" * 8]),
        ),
    ),
    min_size=1,
    max_size=4,
)


def _edited(data: bytes, edits) -> bytes:
    for kind, place, piece in edits:
        at = place % (len(data) + 1)
        if kind == "set":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        else:
            data = data[:at] + data[at : at + 64] * 3 + data[at + 64 :]
    return data


def _reads_or_refuses(read, path):
    start = time.monotonic()
    try:
        read(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 4000
    assert time.monotonic() - start < _LONGEST


@pytest.mark.parametrize("kind", _KINDS)
def test_damaged_files(kind, tmp_path):
    write, read = _KINDS[kind]
    path = tmp_path / f"a.{kind}"
    write(path)
    whole = path.read_bytes()

    @_SETTINGS
    @given(_EDITS)
    def run(edits):
        path.write_bytes(_edited(whole, edits))
        _reads_or_refuses(read, path)

    run()


_OPCODES = st.sampled_from([code.code.encode("latin1") for code in pickletools.opcodes])
_ARGUMENTS = st.one_of(
    st.just(b""),
    st.binary(max_size=4),
    st.sampled_from([b"builtins\nset\n", b"numpy\ndtype\n", b"collections\nOrderedDict\n", b"1\n"]),
    st.integers(0, 255).map(lambda n: bytes([n])),
    st.integers(0, 2**32 - 1).map(lambda n: struct.pack("<I", n)),
)


def test_random_instructions_of_pickles(tmp_path):
    path = tmp_path / "a.pkl"

    @_SETTINGS
    @given(st.lists(st.tuples(_OPCODES, _ARGUMENTS), max_size=40))
    def run(instructions):
        body = b"".join(code + argument for code, argument in instructions)
        path.write_bytes(b"\x80\x04]K\x01\x85\x94N" + body + b".")
        _reads_or_refuses(load_arrays, path)

    run()


_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_PLACES = st.sampled_from(
    ["INPUT", "MODEL", "MODEL.PIXEL_MEAN", "MODEL.BACKBONE.NAME", "MODEL.RESNETS", "INPUT.FORMAT"]
)


@_SETTINGS
@given(_PLACES, _TREES)
def test_detectron2_configurations(place, value):
    tree = {
        "INPUT": {"FORMAT": "BGR"},
        "MODEL": {
            "PIXEL_MEAN": [1.0],
            "PIXEL_STD": [1.0],
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {"NUM_GROUPS": 1},
        },
    }
    *folders, last = place.split(".")
    inner = tree
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    with pytest.raises(ValueError):
        from_detectron2(tree)
