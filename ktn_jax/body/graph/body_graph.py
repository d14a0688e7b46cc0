"""The commonsense graph of the body: how keypoints, parts and the person relate to the patches.

Three matrices against background and 24 patches, each 0.3 x the sum of

1. how often two words occur in one relationship of Visual Genome, over sqrt(row sum x column sum);
2. how similar their names are: the cosine of the names' word vectors;
3. structure: 1 where the keypoint or part touches the patch.

Visual Genome and GloVe are large and not part of the project. Without them term 1 is left out and
term 2 comes from the small table of `word_similarity`.

KTN's own matrices differ where its script is not the same for left and right, and for the person,
whose matrix is 0.5 x the sum of terms 1 and 2; `build_graph` makes those too.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.graph import word_similarity
from ktn_jax.body.graph.co_occurrence import Synonyms, count_pairs
from ktn_jax.body.graph.word_similarity import Name
from ktn_jax.runtime import atomic_files, npz_files

SCALE = 0.3
_ORIGINAL_PERSON_SCALE = 0.5
NUM_BOX_ROWS = 6  # rows of the box head: two classes, then four deltas; all describe the person

SURFACE_WORDS = ("torso", "hand", "foot", "leg", "arm", "head")
_SURFACE_SYNONYMS = {
    "torso": ("body", "shoulder", "hip"),
    "hand": ("glove", "gesture"),
    "foot": ("ankle",),
    "arm": ("elbow",),
    "head": ("neck", "brain"),
}
_KEYPOINT_WORDS = ("nose", "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_KEYPOINT_SYNONYMS = {
    "shoulder": ("torso", "body"),
    "elbow": ("arm",),
    "wrist": ("hand", "forearm"),
    "hip": ("buttocks", "arse", "ass", "thigh"),
    "knee": ("lap", "crus", "shank", "shin"),
    "ankle": ("foot",),
}
_PERSON_SYNONYMS = {"person": ("body", "human")}

# Which coarse parts a keypoint is on; of its own side where there are two.
_KEYPOINT_PARTS = {
    "nose": ("head",),
    "eye": ("head",),
    "ear": ("head",),
    "shoulder": ("torso", "upper_arm"),
    "elbow": ("upper_arm", "lower_arm"),
    "wrist": ("hand", "lower_arm"),
    "hip": ("torso", "upper_leg"),
    "knee": ("upper_leg", "lower_leg"),
    "ankle": ("foot", "lower_leg"),
}


class BodyGraphError(ValueError):
    """A file that holds no body graph; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class BodyGraph:
    """Relations to background and the 24 patches, columns in the order of `parts.PATCH_NAMES`."""

    keypoint: np.ndarray  # [17, 25] float32, rows as `parts.KEYPOINT_NAMES`
    part: np.ndarray  # [15, 25], rows as `parts.COARSE_NAMES`
    box: np.ndarray  # [6, 25], equal rows

    def initial_edges(self) -> dict[str, np.ndarray]:
        """The matrices as the model's knowledge transfer starts from them: [25, rows] each."""
        return {source: np.ascontiguousarray(getattr(self, source).T) for source in ROW_NAMES}


ROW_NAMES: Mapping[str, tuple[str, ...]] = {
    "keypoint": parts.KEYPOINT_NAMES,
    "part": parts.COARSE_NAMES,
    "box": (
        "person_class",
        "background_class",
        "person_dx",
        "person_dy",
        "person_dw",
        "person_dh",
    ),
}
_ROW_FLIPS = {
    "keypoint": parts.KEYPOINT_FLIP,
    "part": parts.COARSE_FLIP,
    "box": np.arange(NUM_BOX_ROWS),
}


def build_graph(
    relationships: str | os.PathLike[str] | None = None,
    word_vectors: str | os.PathLike[str] | None = None,
    as_original: bool = False,
) -> BodyGraph:
    """Builds the graph.

    A row or column that occurs in no relationship is 0 in term 1, where the original's matrices are
    not a number.

    Args:
        relationships: Visual Genome's `relationships.json`; None leaves term 1 out.
        word_vectors: `glove.6B.300d.txt`; None takes term 2 from constants of the project.
        as_original: the matrices of KTN's script instead of those that are the same for left and
            right. It pairs parts and patches in term 1 in its own way: upper arms and legs of
            either side with left patches and the back, lower ones with right patches and the
            front. Term 2 is as the vectors give it ("left" and "right" have different ones), its
            patches without upper and lower, for keypoints of side and noun only. Words of the
            relationships must match to the letter.

    Returns:
        The graph; its background row and column are 0.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or lacks a word.
    """
    similarity = (
        word_similarity.default_similarity
        if word_vectors is None
        else word_similarity.load_similarity(word_vectors)
    )
    surfaces = [_name(patch) for patch in parts.PATCH_NAMES[1:]]
    if as_original:
        surfaces = [_original_surface(surface) for surface in surfaces]
    rows = {
        "keypoint": [_name(keypoint) for keypoint in parts.KEYPOINT_NAMES],
        "part": [_name(part) for part in parts.COARSE_NAMES[1:]],
        "box": [Name("person")],
    }
    counts = None if relationships is None else _count(relationships, is_exact=as_original)
    structure = {
        "keypoint": _keypoint_touches(),
        "part": _part_touches(),
        "box": np.ones((1, parts.NUM_PATCHES)),
    }
    matrices = {}
    for source, names in rows.items():
        scale, without_level = SCALE, as_original and source == "keypoint"
        matrix = _similarities(names, surfaces, similarity, without_level)
        if as_original and source == "box":
            scale = _ORIGINAL_PERSON_SCALE
        else:
            matrix += structure[source]
        if counts is not None:
            in_halves = as_original and source == "part"
            matrix += _co_occurrence(counts[source], names, surfaces, in_halves)
        matrices[source] = np.pad(scale * matrix, ((0, 0), (1, 0)))
    matrices["part"] = np.pad(matrices["part"], ((1, 0), (0, 0)))
    matrices["box"] = np.repeat(matrices["box"], NUM_BOX_ROWS, axis=0)
    if not as_original:
        matrices = {source: (m + _mirror(source, m)) / 2 for source, m in matrices.items()}
    return BodyGraph(**{source: m.astype(np.float32) for source, m in matrices.items()})


def _mirror(source: str, matrix: np.ndarray) -> np.ndarray:
    mirrored: np.ndarray = matrix[_ROW_FLIPS[source]][:, parts.PATCH_FLIP]
    return mirrored


def is_symmetric(graph: BodyGraph, tolerance: float = 1e-6) -> bool:
    """Whether a graph is the same for left and right."""
    matrices = {source: getattr(graph, source) for source in ROW_NAMES}
    return all(
        np.allclose(matrix, _mirror(source, matrix), atol=tolerance)
        for source, matrix in matrices.items()
    )


def _name(text: str) -> Name:
    """Splits `left_upper_arm_inside` into words; the facet of a limb is in no other name."""
    words = text.split("_")
    nouns = set(SURFACE_WORDS) | set(_KEYPOINT_WORDS)
    (noun,) = [word for word in words if word in nouns]
    side = [word for word in words if word in ("left", "right")]
    if noun == "torso":  # its patches are front and back, not left and right
        side = [word for word in words if word in ("front", "back")]
    level = [word for word in words if word in ("upper", "lower")]
    return Name(noun, side[0] if side else "middle", level[0] if level else "full")


def _original_surface(name: Name) -> Name:
    """A patch's name in the original: no limb is upper or lower, and the head's halves change."""
    other_side = {"left": "right", "right": "left"}
    side = other_side[name.side] if name.noun == "head" else name.side
    return Name(name.noun, side)


def _similarities(
    rows: list[Name],
    columns: list[Name],
    similarity: Callable[[Name, Name], float],
    without_level: bool,
) -> np.ndarray:
    if without_level:
        rows, columns = (
            [dataclasses.replace(name, level="") for name in names] for names in (rows, columns)
        )
    return np.array([[similarity(row, column) for column in columns] for row in rows])


def _keypoint_touches() -> np.ndarray:
    """[17, 24] 1 where a keypoint is on a patch."""
    touches = np.zeros((parts.NUM_KEYPOINTS, parts.NUM_PATCHES))
    for row, keypoint in enumerate(parts.KEYPOINT_NAMES):
        side, _, joint = keypoint.rpartition("_")
        for part in _KEYPOINT_PARTS[joint]:
            sided = part if part in parts.COARSE_NAMES else f"{side}_{part}"
            touches[row] += parts.FINE_TO_COARSE[1:] == parts.COARSE_NAMES.index(sided)
    return touches


def _part_touches() -> np.ndarray:
    """[14, 24] 1 where a patch belongs to a part."""
    part = np.arange(1, parts.NUM_COARSE + 1)[:, None]
    touches: np.ndarray = part == parts.FINE_TO_COARSE[None, 1:]
    return touches.astype(np.float64)


def _count(
    relationships: str | os.PathLike[str], is_exact: bool
) -> dict[str, dict[tuple[str, str], int]]:
    """Counts word pairs for the three matrices in one reading of the file."""
    surfaces = {word: _SURFACE_SYNONYMS.get(word, ()) for word in SURFACE_WORDS}
    sources: dict[str, Synonyms] = {
        "keypoint": {word: _KEYPOINT_SYNONYMS.get(word, ()) for word in _KEYPOINT_WORDS},
        "part": surfaces,
        "box": _PERSON_SYNONYMS,
    }
    return count_pairs(relationships, sources, surfaces, is_exact=is_exact)


def _co_occurrence(
    counts: Mapping[tuple[str, str], int],
    rows: list[Name],
    columns: list[Name],
    in_halves: bool,
) -> np.ndarray:
    """Spreads counts of words over the names that have them, and normalises.

    With `in_halves`, upper limbs are joined with one half of the patches and lower ones with the
    other.
    """
    matrix = np.array(
        [[float(counts.get((row.noun, column.noun), 0)) for column in columns] for row in rows]
    )
    if in_halves:
        columns_of = {"upper": ("left", "back"), "lower": ("right", "front")}
        for index, row in enumerate(rows):
            if row.level in columns_of:
                matrix[index] *= [column.side in columns_of[row.level] for column in columns]
    totals = matrix.sum(axis=1, keepdims=True) * matrix.sum(axis=0, keepdims=True)
    return matrix / np.sqrt(np.where(totals > 0, totals, 1))


def save_graph(path: str | os.PathLike[str], graph: BodyGraph) -> None:
    """Writes a graph as .npz: the matrices, and the names of their rows and columns.

    Raises:
        ValueError: the path has another suffix.
    """
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a body graph is written as .npz")
    arrays = {source: getattr(graph, source) for source in ROW_NAMES}
    arrays |= {f"{source}_rows": np.array(names) for source, names in ROW_NAMES.items()}
    with atomic_files.replacing(path) as temporary:
        np.savez(temporary, columns=np.array(parts.PATCH_NAMES), **arrays)


def load_graph(path: str | os.PathLike[str]) -> BodyGraph:
    """Reads a graph that `save_graph` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        BodyGraphError: it is damaged, or a matrix is missing, of another shape, not finite, or in
            another order of rows or columns than the model's.
    """
    try:
        with npz_files.NpzFile(path) as stored:
            arrays = dict(stored)
    except ValueError as error:
        raise BodyGraphError(str(error)) from error
    matrices = {}
    _check_names(path, arrays, "columns", parts.PATCH_NAMES)
    for source, names in ROW_NAMES.items():
        _check_names(path, arrays, f"{source}_rows", names)
        matrix = arrays.get(source)
        wanted = (len(names), len(parts.PATCH_NAMES))
        if matrix is None or matrix.shape != wanted or matrix.dtype.kind != "f":
            got = "nothing" if matrix is None else f"{matrix.dtype} {matrix.shape}"
            raise BodyGraphError(f"{path}: {source!r} must be floats {wanted}, got {got}")
        if not np.isfinite(matrix).all():
            raise BodyGraphError(f"{path}: {source!r} has values that are not finite")
        matrices[source] = matrix.astype(np.float32)
    return BodyGraph(**matrices)


def _check_names(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], key: str, names: tuple[str, ...]
) -> None:
    found = tuple(str(name) for name in np.ravel(arrays.get(key, ())))
    if found != names:
        if sorted(found) == sorted(names):
            raise BodyGraphError(f"{path}: {key} are in another order than {', '.join(names)}")
        raise BodyGraphError(f"{path}: {key} must be {', '.join(names)}; got {', '.join(found)}")


def draw_graph(path: str | os.PathLike[str], graph: BodyGraph) -> None:
    """Draws the matrices as heatmaps, one below the other, with the names of rows and columns.

    Args:
        path: picture to write, of a format that Matplotlib knows by its suffix.
        graph: what to draw.
    """
    from matplotlib.figure import Figure

    matrices = {source: getattr(graph, source) for source in ROW_NAMES}
    heights = [len(matrix) for matrix in matrices.values()]
    figure = Figure(figsize=(11, 0.28 * sum(heights) + 3.5), layout="constrained")
    axes = figure.subplots(len(matrices), 1, sharex=True, height_ratios=heights)
    highest = max(matrix.max() for matrix in matrices.values())
    for axis, (source, matrix) in zip(axes, matrices.items(), strict=True):
        picture = axis.imshow(matrix, cmap="magma", vmin=0, vmax=highest, aspect="auto")
        axis.set_title(f"{source} to surface patch", fontsize=10)
        axis.set_yticks(range(len(matrix)), ROW_NAMES[source], fontsize=7)
    axes[-1].set_xticks(
        range(len(parts.PATCH_NAMES)), parts.PATCH_NAMES, rotation=60, ha="right", fontsize=7
    )
    figure.colorbar(picture, ax=axes, label="relation", shrink=0.6)
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
