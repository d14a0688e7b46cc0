"""Nearest vertices with the reference's tie rule, table lookups, and the similarity itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist, squareform

from ktn_jax.evaluation import geodesic_similarity as geodesic
from ktn_jax.evaluation.errors import EvaluationError


def _template(rng, per_patch=12, levels=None):
    count = 24 * per_patch
    uv = rng.random((count, 2)) if levels is None else rng.integers(0, levels, (count, 2)) / levels
    part = rng.permutation(np.repeat(np.arange(1, 25), per_patch)).astype(np.uint8)
    rows = rng.integers(0, 50, count)
    rows[0] = 49
    points = rng.random((50, 3))
    table = squareform(pdist(points))[np.tril_indices(50, -1)].astype(np.float32)
    return geodesic.EvaluationTemplate(uv[:, 0], uv[:, 1], part, rows, table, "test"), points


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 2, 3, 17]))
def test_nearest_vertex_is_the_first_minimum_of_all_distances(seed, levels):
    rng = np.random.default_rng(seed)
    template, _ = _template(rng, levels=levels)  # few levels: many equal and equidistant vertices
    finder = geodesic.VertexFinder(template)
    part = rng.integers(0, 26, 200)
    u, v = rng.random((2, 200)) if levels is None else rng.integers(0, 2 * levels, (2, 200)) / 2
    found = finder.find(part, u, v)
    for index in range(200):
        members = np.flatnonzero(template.part == part[index])
        if len(members) == 0:
            assert found[index] == -1
            continue
        points = np.stack([template.u[members], template.v[members]], axis=1)
        distances = cdist(points, [[u[index], v[index]]])
        assert found[index] == members[np.argmin(distances)]


def test_quantised_search_equals_the_search_of_the_same_numbers():
    rng = np.random.default_rng(0)
    template, _ = _template(rng)
    finder = geodesic.VertexFinder(template)
    part, u, v = rng.integers(0, [[25], [256], [256]], (3, 500)).astype(np.uint8)
    expected = finder.find(part, u / 255.0, v / 255.0)
    np.testing.assert_array_equal(finder.find_quantised(part, u, v), expected)
    np.testing.assert_array_equal(finder.find_quantised(part, u, v), expected)  # now remembered
    assert (expected[part == 0] == -1).all() and (part == 0).any()


def test_distance_reads_the_condensed_table():
    template, points = _template(np.random.default_rng(1))
    rows_a = np.array([3, 17, 17, 49, 0, 5])
    rows_b = np.array([17, 3, 17, 0, -1, 5])
    expected = np.linalg.norm(points[rows_a] - points[rows_b], axis=1)
    expected[[2, 5]], expected[4] = 0, np.inf
    found = template.distance(rows_a, rows_b)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_thirty_centimetres_on_an_average_part_score_one_half():
    kappa = np.array([0.255])
    value = geodesic.person_similarity(np.array([0.30]), np.array([False]), kappa)
    assert value == pytest.approx(0.5, abs=1e-3)
    same = geodesic.person_similarity(np.array([0.0, np.inf]), np.array([True, False]), kappa)
    assert same == 0.5  # one exact point, one on the background


def test_squares_are_rounded_as_the_reference_rounds_them():
    # Float32 distances are squared in float32, unless a point is exact or off the body.
    distances = np.array([0.1234567, 0.2345678], np.float32)
    kappa = np.array([0.1, 0.2])
    none = np.zeros(2, bool)
    single = np.exp(-(distances * distances).astype(np.float64) / (2 * kappa**2)).mean()
    double = np.exp(-(distances.astype(np.float64) ** 2) / (2 * kappa**2)).mean()
    assert abs(single - double) > 1e-10
    assert geodesic.person_similarity(distances, none, kappa) == pytest.approx(single, abs=1e-15)
    with_exact = geodesic.person_similarity(
        np.append(distances, np.float32(0)), np.append(none, True), np.append(kappa, 1)
    )
    assert with_exact == pytest.approx((2 * double + 1) / 3, abs=1e-15)


def test_no_points_score_zero():
    empty = np.zeros(0)
    assert geodesic.person_similarity(empty, empty.astype(bool), empty) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.zeros(3)}, "equally long"),
        ({"part": np.ones(288, np.uint8)}, r"no vertex in patches \[2, 3"),
        ({"row": np.arange(288)}, "needs 41328 distances"),
        ({"v": np.full(288, np.nan)}, "not finite"),
    ],
)
def test_a_template_that_does_not_fit_together_is_refused(change, message):
    template, _ = _template(np.random.default_rng(2))
    fields = {name: getattr(template, name) for name in ("u", "v", "part", "row", "geodesics")}
    with pytest.raises(EvaluationError, match=message):
        geodesic.EvaluationTemplate(**{**fields, **change}, origin="test")
