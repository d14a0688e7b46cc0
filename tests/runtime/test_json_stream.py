"""Objects of a large file one by one, whatever the pieces are that it is read in."""

import json

import pytest

from ktn_jax.runtime import json_stream

OBJECTS = [{"a": "Gül"}, {"b": [1, {"c": "}{,"}], "d": 1.5}, {}, {"e": "x" * 300}]


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("form", ["list", "indented", "lines", "byte order mark"])
def test_objects_and_their_places(tmp_path, monkeypatch, chunk, form):
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk)
    path = tmp_path / "file.json"
    text = {
        "list": json.dumps(OBJECTS, ensure_ascii=False),
        "indented": json.dumps(OBJECTS, indent=2, ensure_ascii=False),
        "lines": "\n".join(json.dumps(entry, ensure_ascii=False) for entry in OBJECTS),
        "byte order mark": "\ufeff" + json.dumps(OBJECTS, ensure_ascii=False),
    }[form]
    path.write_bytes(text.encode())
    assert [entry for _, _, entry in json_stream.iterate_objects(path, "utf-8")] == OBJECTS
    content = path.read_bytes()
    places = [(start, length) for start, length, _ in json_stream.iterate_objects(path)]
    assert [json.loads(content[start : start + length]) for start, length in places] == OBJECTS


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(json_stream.JsonStreamError, match=r"file\.json: not text"):
        list(json_stream.iterate_objects(path, "utf-8"))


def test_a_number_of_thousands_of_digits_is_an_error(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('[{"a": ' + "1" * 5000 + "}]")
    with pytest.raises(json_stream.JsonStreamError, match="at byte 1 cannot be read"):
        list(json_stream.iterate_objects(path))
