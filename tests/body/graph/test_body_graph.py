"""The body graph: against the tables of the paper, hand-counted relationships and small vectors."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ktn_jax.body import parts
from ktn_jax.body.graph import body_graph, co_occurrence, word_similarity
from ktn_jax.body.graph.word_similarity import Name
from ktn_jax.configs import ktn
from ktn_jax.modeling.detector import build_model
from ktn_jax.runtime import json_stream

# Patches that each keypoint touches, KTN's table, by the numbers of the annotations.
TOUCHES = {
    "nose": (23, 24),
    "left_ear": (23, 24),
    "left_shoulder": (1, 2, 15, 17),
    "right_shoulder": (1, 2, 16, 18),
    "left_elbow": (15, 17, 19, 21),
    "right_elbow": (16, 18, 20, 22),
    "left_wrist": (4, 19, 21),
    "right_wrist": (3, 20, 22),
    "left_hip": (1, 2, 8, 10),
    "right_hip": (1, 2, 7, 9),
    "left_knee": (8, 10, 12, 14),
    "right_knee": (7, 9, 11, 13),
    "left_ankle": (5, 12, 14),
    "right_ankle": (6, 11, 13),
}


def write_relationships(path, pairs):
    """A file of Visual Genome's form, a relationship an image, with both kinds of names."""
    images = []
    for index, (subject, thing) in enumerate(pairs):
        ends = {"subject": {"name": subject}, "object": {"names": [thing, "other"]}}
        images.append({"image_id": index, "relationships": [{"predicate": "ON", **ends}]})
    path.write_text(json.dumps(images))
    return path


def write_vectors(path, seed=0, missing=()):
    rng = np.random.default_rng(seed)
    vectors = {}
    with open(path, "w") as file:
        for word in (
            "the",
            *word_similarity.NOUNS,
            *word_similarity.SIDES,
            *word_similarity.LEVELS,
        ):
            vectors[word] = np.round(rng.normal(size=300), 5)
            if word not in missing:
                print(word, *vectors[word], file=file)
    return vectors


def test_structure_is_the_papers_table():
    """With the similarity at most 0.3, what is above is where the structure has its 0.3."""
    graph = body_graph.build_graph()
    assert graph.keypoint.shape == (17, 25) and graph.part.shape == (15, 25)
    for keypoint, patches in TOUCHES.items():
        row = graph.keypoint[parts.KEYPOINT_NAMES.index(keypoint)]
        assert tuple(np.flatnonzero(row > 0.3 + 1e-6)) == patches, keypoint
    for part in range(1, 15):
        expected = np.flatnonzero(parts.FINE_TO_COARSE == part)
        assert set(np.flatnonzero(graph.part[part] > 0.45)) == set(expected)


def test_background_takes_no_part():
    graph = body_graph.build_graph()
    for matrix in (graph.keypoint, graph.part, graph.box):
        assert not matrix[:, 0].any()
        assert matrix.min() >= 0
    assert not graph.part[0].any()
    assert (graph.box[:, 1:] > 0.3).all() and (graph.box == graph.box[:1]).all()


def test_the_table_is_of_known_words_and_a_similarity():
    known = {*word_similarity.NOUNS, *word_similarity.SIDES, *word_similarity.LEVELS}
    listed = " ".join(word_similarity.SIMILAR.values()).replace(";", " ").split()
    assert set(listed) <= known
    arm, hand = Name("arm", "left", "upper"), Name("hand", "left")
    assert word_similarity.default_similarity(arm, arm) == 1
    # upper-full 0.4, left-left 1, arm-hand 0.7
    assert word_similarity.default_similarity(arm, hand) == pytest.approx(0.7)
    assert word_similarity.default_similarity(hand, arm) == pytest.approx(0.7)


def test_similarity_is_the_cosine_of_the_names_vectors(tmp_path):
    path = tmp_path / "glove.txt"
    vectors = write_vectors(path)
    similarity = word_similarity.load_similarity(path)
    first, second = Name("elbow", "left"), Name("arm", "right", "upper")
    a = np.concatenate([vectors["full"], vectors["left"], vectors["elbow"]])
    b = np.concatenate([vectors["upper"], vectors["right"], vectors["arm"]])
    expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert similarity(first, second) == pytest.approx(expected, abs=1e-9)
    graph = body_graph.build_graph(word_vectors=path, as_original=True)
    elbow = parts.KEYPOINT_NAMES.index("left_elbow")
    # Patch 16: the right upper arm, which the left elbow does not touch. The original compares two
    # words of keypoints.
    a, b = a[300:], b[300:]
    expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert graph.keypoint[elbow, 16] == pytest.approx(0.3 * expected, abs=1e-6)
    assert graph.keypoint[elbow, 15] > 0.3 * 0.9 + graph.keypoint[elbow, 16]


def test_relationships_are_counted_literally_first_then_by_synonym(tmp_path, monkeypatch):
    monkeypatch.setattr(
        json_stream, "_CHUNK_BYTES", 50
    )  # entries reach over the ends of the pieces
    path = write_relationships(
        tmp_path / "relationships.json",
        [
            ("elbow", "arm"),
            ("Arm ", "elbow"),  # case and blanks do not matter, nor does the direction
            ("forearm", "hand"),  # both stand for the wrist, and one is a hand: two pairs
            ("wrist", "glove"),  # and the wrist with the hand's synonym
            ("forearm", "glove"),  # both meant: counts for nothing
            ("dog", "tree"),
        ],
    )
    surfaces = {"arm": ("elbow",), "hand": ("glove",)}
    sources = {"keypoint": {"elbow": ("arm",), "wrist": ("hand", "forearm")}}
    counts = co_occurrence.count_pairs(path, sources, surfaces)
    assert counts == {"keypoint": {("elbow", "arm"): 2, ("wrist", "hand"): 3}}


def test_only_the_first_name_counts_and_there_may_be_none(tmp_path):
    path = tmp_path / "relationships.json"
    ends = [{"names": ["hand", "arm"]}, {}], [{"names": ["Arm"]}, {"name": "hand", "names": ["x"]}]
    images = [{"relationships": [{"subject": s, "object": o}]} for s, o in ends]
    path.write_text(json.dumps(images))
    words = {"arm": (), "hand": ()}
    both = {("hand", "hand"): 2, ("hand", "arm"): 1, ("arm", "hand"): 1, ("arm", "arm"): 1}
    assert co_occurrence.count_pairs(path, {"part": words}, words) == {"part": both}
    exact = co_occurrence.count_pairs(path, {"part": words}, words, is_exact=True)
    assert exact == {"part": {("hand", "hand"): 2}}


@pytest.mark.parity
@pytest.mark.parametrize("case", ["main", "sparse"])
def test_the_originals_matrices_are_its_scripts(golden_dir, case):
    """Words that never occur together: the script divides by zero; here term 1 is zero."""
    folder = golden_dir / "crkg" / case
    paths = (folder / "relationships.json", folder / "glove.6B.300d.txt")
    graph = body_graph.build_graph(*paths, as_original=True)
    without_counts = body_graph.build_graph(None, paths[1], as_original=True)
    expected = np.load(folder / "expected.npz")
    for source, name in (("keypoint", "kpt"), ("part", "part"), ("box", "person")):
        theirs, ours = expected[f"{name}_surf_crkg"], getattr(graph, source)
        is_number = np.isfinite(theirs)
        assert is_number.all() == (case == "main")
        np.testing.assert_allclose(ours[is_number], theirs[is_number], atol=1e-7)
        np.testing.assert_array_equal(ours[~is_number], getattr(without_counts, source)[~is_number])
    other = body_graph.build_graph(*paths)
    assert body_graph.is_symmetric(other) and not body_graph.is_symmetric(graph)
    assert np.isfinite(other.part).all() and not np.allclose(other.part, graph.part, atol=1e-2)


def graphs_with_and_without(tmp_path, pairs, **options):
    path = write_relationships(tmp_path / "relationships.json", pairs)
    with_counts = body_graph.build_graph(path, **options)
    return with_counts, body_graph.build_graph(**options)


def test_co_occurrence_is_spread_over_both_sides_and_normalised(tmp_path):
    """Knees with legs 3 times, ankles with feet once: the rest of term 1 is zero."""
    pairs = [("knee", "leg")] * 3 + [("ankle", "foot")]
    with_counts, without = graphs_with_and_without(tmp_path, pairs)
    term = (with_counts.keypoint - without.keypoint) / 0.3
    knee = parts.KEYPOINT_NAMES.index("left_knee")
    # Two knees and eight patches of legs, 3 each: 3 / sqrt((8 * 3) * (2 * 3)).
    np.testing.assert_allclose(term[knee : knee + 2, 7:15], 0.25, atol=1e-6)
    # "ankle" also stands for the foot in the parts' words, not here: 1 / sqrt(2 * 2).
    np.testing.assert_allclose(term[15:17, 5:7], 0.5, atol=1e-6)
    assert np.count_nonzero(np.abs(term) > 1e-6) == 2 * 8 + 2 * 2


@pytest.mark.parametrize("as_original", [True, False])
def test_pairing_of_upper_and_lower_limbs(tmp_path, as_original):
    """The original joins upper parts with left patches only, and lower ones with right ones."""
    pairs = [("leg", "leg"), ("arm", "torso")]
    with_counts, without = graphs_with_and_without(tmp_path, pairs, as_original=as_original)
    assert body_graph.is_symmetric(with_counts) != as_original
    is_joined = with_counts.part - without.part > 1e-6
    rows = {part: set(np.flatnonzero(is_joined[i])) for i, part in enumerate(parts.COARSE_NAMES)}
    left, right = {8, 10, 12, 14}, {7, 9, 11, 13}
    for side in ("left", "right"):
        assert rows[f"{side}_upper_leg"] == (left | right if not as_original else left)
        assert rows[f"{side}_lower_leg"] == (left | right if not as_original else right)
        # Patch 1 is the back, 2 the front. "torso" with "arm" counts from the arm's side.
        torso = {1, 2} if not as_original else {1}
        assert rows[f"{side}_upper_arm"] & {1, 2} == torso
    # Keypoints are joined with all four pairs in the original too.
    elbows = with_counts.keypoint - without.keypoint
    np.testing.assert_allclose(elbows[7], elbows[8], atol=1e-6)


def test_the_default_graph_is_symmetric_whatever_the_vectors(tmp_path):
    write_vectors(tmp_path / "glove.txt")
    assert body_graph.is_symmetric(body_graph.build_graph())
    assert body_graph.is_symmetric(body_graph.build_graph(word_vectors=tmp_path / "glove.txt"))
    lopsided = body_graph.build_graph(word_vectors=tmp_path / "glove.txt", as_original=True)
    assert not body_graph.is_symmetric(lopsided)


def test_a_file_keeps_the_graph_and_its_names(tmp_path):
    graph = body_graph.build_graph()
    body_graph.save_graph(tmp_path / "graph.npz", graph)
    loaded = body_graph.load_graph(tmp_path / "graph.npz")
    for source in body_graph.ROW_NAMES:
        np.testing.assert_array_equal(getattr(loaded, source), getattr(graph, source))
    with np.load(tmp_path / "graph.npz") as arrays:
        assert tuple(arrays["keypoint_rows"]) == parts.KEYPOINT_NAMES
        assert tuple(arrays["columns"]) == parts.PATCH_NAMES
    with pytest.raises(ValueError, match="written as .npz"):
        body_graph.save_graph(tmp_path / "graph.pkl", graph)


def _without_part(arrays):
    del arrays["part"]


def _transposed(arrays):
    arrays["keypoint"] = arrays["keypoint"].T


def _reordered(arrays):
    arrays["columns"] = arrays["columns"][::-1]


def _renamed(arrays):
    arrays["part_rows"] = np.array(["x"] * 15)


def _not_finite(arrays):
    arrays["box"][2, 3] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_part, "'part' must be floats .15, 25., got nothing"),
        (_transposed, "'keypoint' must be floats .17, 25., got float32 .25, 17."),
        (_reordered, "columns are in another order"),
        (_renamed, "part_rows must be background, torso"),
        (_not_finite, "'box' has values that are not finite"),
    ],
)
def test_another_shape_or_order_is_refused(tmp_path, spoil, message):
    path = tmp_path / "graph.npz"
    body_graph.save_graph(path, body_graph.build_graph())
    with np.load(path) as archive:
        arrays = dict(archive)
    spoil(arrays)
    np.savez(path, **arrays)
    with pytest.raises(body_graph.BodyGraphError, match=message):
        body_graph.load_graph(path)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "graph.npz"
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(body_graph.BodyGraphError, match=r"graph\.npz: damaged"):
        body_graph.load_graph(path)
    relationships = tmp_path / "relationships.json"
    for text, message in (
        ('{"a": 1}', "entry 0 has no relationships"),
        ("[1]", r"relationships\.json: expected an object \{...\} at byte 1"),
        ('[{"relationships": []}, {"relat', "is not complete; was the file cut short"),
        ('[{"objects": []}]', "entry 0 has no relationships"),
        ('[{"relationships": [{"subject": {"name": 1}, "object": {}}]}]', "name is no text"),
        ('[{"relationships": [{"subject": "x", "object": {}}]}]', "no relationships with subject"),
    ):
        relationships.write_text(text)
        with pytest.raises(ValueError, match=message):
            body_graph.build_graph(relationships)
    vectors = tmp_path / "glove.txt"
    write_vectors(vectors, missing=("elbow", "full"))
    with pytest.raises(ValueError, match="no vectors of elbow, full"):
        body_graph.build_graph(word_vectors=vectors)
    vectors.write_text("nose 1 2 3\n")
    with pytest.raises(ValueError, match="line 1: 'nose' must have 300"):
        body_graph.build_graph(word_vectors=vectors)


def test_the_model_takes_the_edges(tmp_path):
    edges = body_graph.build_graph().initial_edges()
    model = build_model(ktn.get_config("tiny").model, graph=edges)
    images = np.zeros((1, 64, 64, 3), np.uint8)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), images, np.full((1, 2), 64)))
    transfer = made["params"]["predictor"]["transfer"]
    for source, matrix in edges.items():
        assert transfer[f"edges_{source}"].shape == matrix.shape


def test_the_picture_shows_all_three(tmp_path):
    body_graph.draw_graph(tmp_path / "graph.png", body_graph.build_graph())
    with Image.open(tmp_path / "graph.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 600
    # The background column of each matrix is black, top to bottom.
    black = (pixels == np.array([0, 0, 3])).all(-1) | (pixels == 0).all(-1)
    assert black.sum(0).max() > 0.5 * len(pixels)
