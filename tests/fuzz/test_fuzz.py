"""Damaged and hostile files: a value or an error that names the file, and soon.

Whatever reads them runs in another process, which may hang or die without taking the tests along.
A new reader gets an entry in `readers.py` and here. Longer: `make fuzz`.
"""

import copy
import json
import os
import pathlib
import pickletools
import select
import struct
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_EXAMPLES = int(os.environ.get("KTN_FUZZ_EXAMPLES", "0"))
_LONGEST = 30.0  # seconds; an example takes milliseconds


_PIECES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\xff\xff\xff\x7f", b"\xff" * 4, bytes(4), b"\x80" * 8, b"\n", b'"', b"{"]),
)
_PLACES = st.integers(0, 1 << 20)
_BYTE_EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "repeat", "delete"]), _PLACES, _PIECES),
    min_size=1,
    max_size=4,
)


def _edited_bytes(data, edits):
    """Overwrites, cuts, inserts, repeats and deletes."""
    for kind, place, piece in edits:
        at = place % (len(data) + 1)
        if kind == "set":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + 16 :]
        else:
            data = data[:at] + data[at : at + 64] * 3 + data[at + 64 :]
    return data


def _nested(kind):
    value = []
    for _ in range(500):
        value = [value] if kind is list else {"a": value}
    return value


_VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, "", "x", "\ud800", "1", [], {}, [[]], [{}], [None], {"counts": 5}]
        + [float("nan"), float("inf"), -float("inf"), 1e308, -1e-320, 0.5, -0.5]
        + [0, -1, 1, 2, 2**31, 2**63, -(2**63), 2**64, 10**400]
        + [_nested(list), _nested(dict), "0" * 5000, [0] * 3000]
        + [{"size": [1 << 16, 1 << 16], "counts": "0"}, {"size": [5, 7], "counts": [40, -5]}]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.text("0123456789:;<=>?@ABCPQ`abcno", max_size=12),  # run lengths
    st.lists(st.integers(-5, 70_000), max_size=6),
)
_KINDS = ["replace"] * 4 + ["delete", "repeat", "copy", "rename"]
_TREE_EDITS = st.lists(
    st.tuples(st.sampled_from(_KINDS), _PLACES, _PLACES, _VALUES), min_size=1, max_size=4
)


def _nodes(tree):
    """Every (container, key) of a tree, leaves of long lists excepted."""
    found = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(min(len(node), 4))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                pending.append(node[key])
    return found


def _edited_tree(tree, edits):
    """Replaces, deletes, repeats, copies and renames values; gives JSON as bytes."""
    tree = copy.deepcopy(tree)
    for kind, place, other, value in edits:
        nodes = _nodes(tree)
        if not nodes:
            break
        container, key = nodes[place % len(nodes)]
        if kind == "replace":
            container[key] = copy.deepcopy(value)
        elif kind == "delete":
            del container[key]
        elif kind == "copy":  # a value from elsewhere
            source, name = nodes[other % len(nodes)]
            container[key] = copy.deepcopy(source[name])
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif kind == "rename":
            container[str(value)[:50]] = container.pop(key)
    return json.dumps(tree).encode()


class _Process:
    """The process that reads; started again after it had to be ended."""

    def __init__(self, folder):
        self.folder = folder
        self._process = None

    def ask(self, action, reader, folder):
        if self._process is None:
            command = [sys.executable, str(pathlib.Path(__file__).parent / "readers.py")]
            self._errors = open(self.folder / "stderr", "w+b")  # noqa: SIM115
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        self._process.stdin.write(json.dumps([action, reader, str(folder)]).encode() + b"\n")
        self._process.stdin.flush()
        is_ready = select.select([self._process.stdout], [], [], 4 * _LONGEST)[0]
        line = self._process.stdout.readline() if is_ready else b""
        if line:
            return json.loads(line)
        self.close()
        self._errors.seek(0)
        text = self._errors.read()[-3000:].decode(errors="replace")
        raise AssertionError(f"the reader {'ended by itself' if is_ready else 'hangs'}: {text}")

    def close(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """The process that reads."""
    process = _Process(tmp_path_factory.mktemp("fuzz"))
    yield process
    process.close()


def _settings(examples):
    return settings(
        max_examples=_EXAMPLES or examples,
        deadline=None,
        database=None,
        derandomize=not _EXAMPLES,  # the suite tries the same examples every time
        suppress_health_check=list(HealthCheck),
    )


def _reads_or_refuses(process, reader, folder):
    answer = process.ask("read", reader, folder)
    assert answer is None or answer[0] == "refused", answer[1]
    assert answer is None or len(answer[1]) < 10_000


# Reader -> examples in the suite: fewer where one takes long.
READERS = {
    "annotations": 100,
    "evaluation": 60,
    "evaluated_results": 60,
    "results": 100,
    "template": 20,
    "masks": 120,
    "pictures": 120,
    "pickle": 60,
    "pickled_state": 60,
    "safetensors": 60,
    "torchscript": 60,
    "torch": 60,
    "older_torch": 60,
    "npz": 60,
    "mat": 60,
    "graph": 20,
    "relations": 60,
    "vectors": 10,
    "configuration": 30,
    "changes": 25,
    "shards": 60,
    "metrics": 12,
    "checkpoint": 30,
    "detectron2": 60,
    "yaml": 40,
    "videos": 30,
    "frame_lines": 60,
    "video_run": 60,
}


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(reader, process, tmp_path):
    paths = [pathlib.Path(path) for path in process.ask("make", reader, tmp_path)]
    whole = {path: path.read_bytes() for path in paths}
    assert process.ask("read", reader, tmp_path) is None
    has_json = paths[0].suffix == ".json"
    damage = st.one_of(_TREE_EDITS, _TREE_EDITS, _BYTE_EDITS) if has_json else _BYTE_EDITS

    @_settings(READERS[reader])
    @given(st.integers(0, len(paths) - 1), damage)
    def run(index, edits):
        for path, content in whole.items():
            path.write_bytes(content)
        content = whole[paths[index]]
        if len(edits[0]) == 4:
            content = _edited_tree(json.loads(content), edits)
        else:
            content = _edited_bytes(content, edits)
        paths[index].write_bytes(content)
        _reads_or_refuses(process, reader, tmp_path)

    run()


_OPCODES = st.sampled_from([code.code.encode("latin1") for code in pickletools.opcodes])
_ARGUMENTS = st.one_of(
    st.just(b""),
    st.binary(max_size=4),
    st.sampled_from([b"builtins\nset\n", b"numpy\ndtype\n", b"collections\nOrderedDict\n", b"1\n"]),
    st.integers(0, 255).map(lambda n: bytes([n])),
    st.integers(0, 2**32 - 1).map(lambda n: struct.pack("<I", n)),
)


def test_random_instructions_of_pickles(process, tmp_path):
    @_settings(100)
    @given(st.lists(st.tuples(_OPCODES, _ARGUMENTS), max_size=40))
    def run(instructions):
        body = b"".join(code + argument for code, argument in instructions)
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04]K\x01\x85\x94N" + body + b".")
        _reads_or_refuses(process, "pickle", tmp_path)

    run()


@pytest.mark.parametrize("shape", [(40_000, 40_000), (65_500, 1), (1, 1)])
def test_pictures_of_extreme_sizes(shape, process, tmp_path):
    """A header may promise anything; the pixels are not there."""
    for path in process.ask("make", "pictures", tmp_path):
        pathlib.Path(path).unlink()
    header = f"P6 {shape[0]} {shape[1]} 255\n".encode()
    (tmp_path / "p.ppm").write_bytes(header + bytes(12))
    _reads_or_refuses(process, "pictures", tmp_path)
