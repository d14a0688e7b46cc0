"""Counts which words occur together in the relationships of Visual Genome."""

import collections
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ktn_jax.runtime.json_stream import iterate_objects

Synonyms = Mapping[str, tuple[str, ...]]  # words, each with others that stand for it


def count_pairs(
    path: str | os.PathLike[str],
    sources: Mapping[str, Synonyms],
    surfaces: Synonyms,
    is_exact: bool = False,
) -> dict[str, dict[tuple[str, str], int]]:
    """Counts the relationships that join a source word and a surface word.

    A relationship has a subject and an object. It counts for every pair of its words that are both
    meant literally; only where there is none, for pairs in which the source word is a synonym, and
    then for those in which the surface word is.

    Args:
        path: `relationships.json`: a list of {"relationships": [{"subject", "object"}]}, where both
            have a "name" or "names", of which the first counts, or none. It is read piece by
            piece.
        sources: kinds of words to count for.
        surfaces: the words of the surface.
        is_exact: whether capitals and blanks around words matter.

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
    for words in _read_words(path, is_exact):
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


def _read_words(path: str | os.PathLike[str], is_exact: bool) -> Iterator[frozenset[str]]:
    """The words of subject and object of every relationship."""
    images = iterate_objects(pathlib.Path(path), "utf-8")
    for index, (_, _, image) in enumerate(images):
        try:
            for relationship in image["relationships"]:
                words = [_word(relationship[end], index, path) for end in ("subject", "object")]
                yield frozenset(words if is_exact else (word.strip().lower() for word in words))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: entry {index} has no relationships with subject and object: {error!r}"
            ) from error


def _word(node: Mapping[str, Any], index: int, path: str | os.PathLike[str]) -> str:
    """The first name of a subject or object; empty for one without."""
    name = node["name"] if "name" in node else (node.get("names") or [""])[0]
    if not isinstance(name, str):
        raise ValueError(f"{path}: entry {index} has a subject or object whose name is no text")
    return name
