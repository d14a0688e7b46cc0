"""Counts which words occur together in the relationships of Visual Genome."""

import collections
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

Synonyms = Mapping[str, tuple[str, ...]]  # words, each with others that stand for it

_CHUNK = 1 << 20  # characters
_BETWEEN = re.compile(r"[\s,]*")  # between two items


def count_pairs(
    path: str | os.PathLike, sources: Mapping[str, Synonyms], surfaces: Synonyms
) -> dict[str, dict[tuple[str, str], int]]:
    """Counts the relationships that join a source word and a surface word.

    A relationship has a subject and an object. It counts for every pair of its words that are both
    meant literally; only where there is none, for pairs in which the source word is a synonym, and
    then for those in which the surface word is.

    Args:
        path: `relationships.json`: a list of {"relationships": [{"subject", "object"}]}, where both
            have a "name" or "names". It is read piece by piece.
        sources: kinds of words to count for.
        surfaces: the words of the surface.

    Returns:
        For each kind, counts by (source word, surface word); pairs never seen are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such list.
    """
    stands_for = {kind: _inverse(synonyms) for kind, synonyms in sources.items()}
    surface_stands_for = _inverse(surfaces)
    counts: dict[str, dict[tuple[str, str], int]] = {
        kind: collections.Counter() for kind in sources
    }
    for words in _read_words(path):
        for kind, synonyms in sources.items():
            for pair in _pairs(words, synonyms, stands_for[kind], surfaces, surface_stands_for):
                counts[kind][pair] += 1
    return {kind: dict(counted) for kind, counted in counts.items()}


def _inverse(synonyms: Synonyms) -> dict[str, str]:
    return {other: word for word, others in synonyms.items() for other in others}


def _pairs(
    words: frozenset[str],
    sources: Synonyms,
    source_for: Mapping[str, str],
    surfaces: Synonyms,
    surface_for: Mapping[str, str],
) -> list[tuple[str, str]]:
    literal = [word for word in words if word in sources]
    literal_surface = [word for word in words if word in surfaces]
    meant = [source_for[word] for word in words if word in source_for]
    meant_surface = [surface_for[word] for word in words if word in surface_for]
    for left, right in (
        (literal, literal_surface),
        (meant, literal_surface),
        (literal, meant_surface),
    ):
        if left and right:
            return [(a, b) for a in left for b in right]
    return []


def _read_words(path: str | os.PathLike) -> Iterator[frozenset[str]]:
    """The words of subject and object of every relationship."""
    with open(path, encoding="utf-8") as file:
        for index, image in enumerate(_read_items(file, path)):
            try:
                for relationship in image["relationships"]:
                    yield frozenset(
                        _word(relationship[end], index, path) for end in ("subject", "object")
                    )
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}: entry {index} has no relationships with subject and object: {error!r}"
                ) from error


def _word(node: Mapping[str, Any], index: int, path: str | os.PathLike) -> str:
    names = [node["name"]] if "name" in node else node.get("names")
    if not names or not isinstance(names[0], str):
        raise ValueError(f"{path}: entry {index} has a subject or object without a name")
    return names[0].strip().lower()


def _read_items(file: TextIO, path: str | os.PathLike) -> Iterator[Any]:
    """The items of a JSON list, one after the other: the whole list may not fit in memory."""
    decoder = json.JSONDecoder()
    text, position = file.read(_CHUNK), 0
    is_open = False
    while True:
        match = _BETWEEN.match(text, position)
        position = match.end()
        if not is_open and text[position : position + 1] == "[":
            is_open, position = True, position + 1
            continue
        if not is_open and position < len(text):
            raise ValueError(f"{path}: is not a JSON list")
        if text[position : position + 1] == "]":
            return
        try:
            item, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            # Doubles what is buffered, so that a long entry is not parsed again and again.
            more = file.read(max(_CHUNK, len(text) - position))
            if not more:
                raise ValueError(f"{path}: ends early, or is damaged: {error}") from error
            text, position = text[position:] + more, 0
            continue
        yield item
