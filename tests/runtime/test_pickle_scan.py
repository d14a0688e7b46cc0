"""Pickles that ask for endless time or memory are refused before anything is made."""

import collections
import io
import pickle
import struct
import time

import numpy as np
import pytest

from ktn_jax.runtime import pickle_scan
from ktn_jax.runtime.pickles import load_arrays

_PROTO = b"\x80\x04"
_SET = b"cbuiltins\nset\n"
_FROZENSET = b"cbuiltins\nfrozenset\n"
_ORDERED = b"ccollections\nOrderedDict\n"
_ENCODE = b"c_codecs\nencode\n"
_COMPLEX = b"cbuiltins\ncomplex\n"


def _tower(levels: int) -> bytes:
    """A tuple of two that are one, of two that are one, ..."""
    return b"K\x01\x85\x94" + b"".join(b"h%c\x86\x94" % level for level in range(levels))


def _dtype(state: bytes) -> bytes:
    return b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(" + state + b"tb"


HOSTILE = {
    "key of shared tuples": (b"}" + _tower(60) + b"Ns.", "a key of a dict"),
    "keys": (b"}(" + _tower(60) + b"Nu.", "a key of a dict"),
    "dict from a mark": (b"(" + _tower(60) + b"Nd.", "a key of a dict"),
    "member": (b"\x8f(" + _tower(60) + b"\x90.", "a key of a dict"),
    "frozen member": (b"(" + _tower(60) + b"\x91.", "a key of a dict"),
    "set by call": (_SET + b"](" + _tower(60) + b"e\x85R.", "a key or member"),
    "frozenset by call": (_FROZENSET + b"](" + _tower(60) + b"e\x85R.", "a key or member"),
    "ordered dict by call": (_ORDERED + b"](" + _tower(60) + b"N\x86e\x85R.", "a key or member"),
    "deep key": (b"}K\x01" + b"\x85" * 300_000 + b"Ns.", "a key of a dict"),
    "deep value": (b"N" + b"\x85" * 100_000 + b".", "recursion"),
    "set of long tuples by call": (
        _SET + b"]((" + b"K\x01" * 17 + b"tK\x01e\x85R.",
        "a key or member",
    ),
    "set of tuples of tuples by call": (_SET + b"](K\x01\x85\x85e\x85R.", "a key or member"),
    "set of tuples of long numbers by call": (
        _SET + b"](\x8a\x09" + b"\x01" * 9 + b"\x85e\x85R.",
        "a key or member",
    ),
    "set of tuples of an array's type by call": (
        _SET + b"](cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R\x85e\x85R.",
        "a key or member",
    ),
    "many tuples in sets by call": (
        b"](" + (_SET + b"](" + b"".join(b"K%c\x85" % i for i in range(101)) + b"e\x85R") * 100
        + b"e.",
        "more than 10000 keys",
    ),
    "long key": (b"}" + b"\x8a\xff" + b"\x01" * 255 + b"Ns.", "a key of a dict"),
    "long number": (b"\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b".", "a number of"),
    "long digits": (b"L0x" + b"f" * 100_000 + b"L\n.", "a number of 100003 digits"),
    "memo": (b"Nr\x00\x00\x00\x08.", "the memo's entry 134217728"),
    "memo in digits": (b"Np134217728\n.", "the memo's entry 134217728"),
    "negative memo": (b"Np-1\n.", "the memo's entry -1"),
    "frame": (b"\x95" + struct.pack("<Q", 1 << 40) + b"N.", "cut short in a frame"),
    "bytes": (b"\x8e" + struct.pack("<Q", 1 << 40) + b"N.", "cut short"),
    "text": (b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"N.", "cut short"),
    "many costly keys": (
        b"}("
        + b"".join(_COMPLEX + b"M" + struct.pack("<H", i) + b"\x85RN" for i in range(10_001))
        + b"u.",
        "more than 10000 keys",
    ),
    "copies": (
        b"]X" + struct.pack("<I", 1000) + b"x" * 1000 + b"\x94("
        + (_ENCODE + b"h\x00\x85R") * 1000 + b"e.",
        "copy the same data again",
    ),
    "encoding": (_ENCODE + b"\x8c\x01a" + _tower(60) + b"\x86R.", "refused _codecs.encode"),
    "byte order": (
        b"]" + b"cnumpy.core.multiarray\nscalar\n"
        + _dtype(b"K\x03" + _tower(60) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")
        + b"C\x04abcd\x86Ra.",
        "unknown byte order",
    ),
    "type code": (
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + _tower(60) + b"\x85RC\x04abcd\x86R.",
        "refused an array of type",
    ),
    "no instruction": (b"\xff.", "unknown instruction"),
    "empty stack": (b"\x94.", "damaged"),
    "absent memo": (b"h\x05.", "damaged"),
    "absent mark": (b"u.", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_at_once_in_a_short_message(case, tmp_path):
    stream, message = HOSTILE[case]
    path = tmp_path / "weights.pkl"
    path.write_bytes(_PROTO + stream)
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load_arrays(path)
    assert time.monotonic() - start < 5
    assert str(path) in str(caught.value) and len(str(caught.value)) < 4000


def test_files_that_did_not_end(cases_dir):
    paths = sorted((cases_dir / "hostile").glob("*.pkl"))
    assert len(paths) == 3
    for path in paths:
        with pytest.raises(ValueError, match=f"{path.name}: not a pickle, or a damaged one: "):
            load_arrays(path)


@pytest.mark.parametrize("protocol", range(6))
def test_honest_keys_pass(protocol):
    value = {
        "name": 1, b"bytes": 2, 3: 4, -5.5: 6, None: 7, True: 8, (1, "a"): 9, (): 10, 2**40: 11,
        np.int64(12): 13, "set": {1, "a"}, "frozen": frozenset({2}),
        "ordered": collections.OrderedDict(a=1), "nested": ((1, (2, (3,))), [(4, [5])]),
        "large": [2**70, -(2**900)], "sets": [{(1, "a"), np.float32(1.5)}, frozenset({(2, None)})],
    }  # fmt: skip
    assert load_arrays(io.BytesIO(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(6))
def test_scan_keeps_pace_with_the_unpickler(protocol):
    # A value pushed too many or too few would be found in the key's place further on.
    value = [{f"n{i}": (np.full(i, 1.5), [i, {"x": (i, None)}], b"y" * i)} for i in range(300)]
    pickle_scan.check(pickle.dumps(value, protocol))
