"""How similar the names of body parts are: from word vectors, or from a small table.

A name has three words: a level (upper, lower, full), a side (left, right, middle, front, back) and
a noun. Its vector is theirs in a row, so that the cosine of two names compares word with word.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

NUM_DIMENSIONS = 300

NOUNS = (
    *("nose", "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"),
    *("torso", "hand", "foot", "leg", "arm", "head", "person"),
)
SIDES = ("left", "right", "middle", "front", "back")
LEVELS = ("upper", "lower", "full")


@dataclasses.dataclass(frozen=True)
class Name:
    """The words of a name."""

    noun: str
    side: str = "middle"
    level: str = "full"  # or empty, for a name of two words

    @property
    def words(self) -> tuple[str, ...]:
        """Level, side and noun."""
        words = (self.level, self.side, self.noun)
        return words if self.level else words[1:]


# Estimates of how near two words are in English, in tenths, made by hand for this project: they
# are not GloVe's. Words that are not listed are 0.3 apart from each other, as nouns of the body are
# at least; a word and itself are 1.
_UNLISTED = 0.3
SIMILAR = {
    0.8: "left right;upper lower;elbow knee;wrist ankle;leg arm;eye nose;front back",
    0.7: "shoulder elbow;elbow wrist;hip knee;knee ankle;eye ear;nose ear;hand arm;foot leg",
    0.6: "arm shoulder;arm elbow;leg knee;foot ankle;hand wrist;head nose;head eye;head ear"
    ";leg ankle;arm wrist;hip leg;hand foot;left front;right front;left back;right back",
    0.5: "torso shoulder;torso hip;torso leg;torso arm;head torso;head hand;middle front"
    ";middle back;middle left;middle right;shoulder hip;person hand"
    ";upper middle;lower middle",
    0.4: "person head;person arm;person leg;person torso;person foot;full upper;full lower"
    ";head shoulder;head arm;head leg;head foot;torso hand;torso foot",
}


def _read_table() -> dict[frozenset[str], float]:
    table = {}
    for value, text in SIMILAR.items():
        for pair in text.split(";"):
            table[frozenset(pair.split())] = value
    return table


_TABLE = _read_table()


def default_similarity(first: Name, second: Name) -> float:
    """Similarity of two names, 0..1, from the project's table: the mean over their words."""
    pairs = zip(first.words, second.words, strict=True)
    return float(
        np.mean([1.0 if a == b else _TABLE.get(frozenset((a, b)), _UNLISTED) for a, b in pairs])
    )


def load_similarity(path: str | os.PathLike[str]) -> Callable[[Name, Name], float]:
    """Reads word vectors and returns the cosine of two names.

    Args:
        path: text file of GloVe, a word and its 300 numbers a line: `glove.6B.300d.txt`.

    Returns:
        A function of two names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of a word that is needed is damaged, or a word is not in the file.
    """
    vectors = _read_vectors(path, {*NOUNS, *SIDES, *LEVELS})

    def similarity(first: Name, second: Name) -> float:
        a, b = (np.concatenate([vectors[word] for word in name.words]) for name in (first, second))
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    return similarity


def _read_vectors(path: str | os.PathLike[str], wanted: set[str]) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    # What is not text stands in words that are not wanted, or is no number.
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            word, _, rest = line.partition(" ")
            if word not in wanted:
                continue
            try:
                vector = np.array(rest.split(), np.float64)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {word!r}: {error}") from error
            if (
                vector.shape != (NUM_DIMENSIONS,)
                or not np.isfinite(vector).all()
                or not any(vector)
            ):
                raise ValueError(
                    f"{path}, line {number}: {word!r} must have {NUM_DIMENSIONS} finite numbers, "
                    f"not all 0; got {len(vector)}"
                )
            vectors[word] = vector
            if len(vectors) == len(wanted):
                break
    missing = sorted(wanted - vectors.keys())
    if missing:
        raise ValueError(f"{path}: there are no vectors of {', '.join(missing)}")
    return vectors
