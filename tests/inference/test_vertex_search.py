"""The search by runs against a comparison of all with all."""

import cv2
import numpy as np
import pytest

from ktn_jax.inference import vertex_search


def _nearest(pixels, vertices):
    """In float64; the second result is how much nearer the nearest is than the next."""
    x, v = pixels.astype(np.float64), vertices.astype(np.float64)
    nearness = x @ v.T - 0.5 * np.square(v).sum(axis=1)
    best = np.partition(nearness, -2, axis=1)[:, -2:]
    return nearness.argmax(axis=1), best[:, 1] - best[:, 0]


def _smooth(rng, size_hw, depth):
    small = rng.normal(size=(4, 3, depth)).astype(np.float32)
    return cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (0.1, 4.0)])
def test_the_result_is_that_of_a_whole_comparison(lengths, monkeypatch):
    monkeypatch.setattr(vertex_search, "_FEW", 2000)  # also runs of few pixels are split
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(3000, 4)).astype(np.float32)
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    vertices *= rng.uniform(*lengths, (3000, 1)).astype(np.float32)
    row, column = np.ogrid[:90, :70]
    is_person = (row - 45) ** 2 + (column - 30) ** 2 < 42**2
    order = vertex_search.neighbours_together(is_person)
    pixels = _smooth(rng, is_person.shape, 4)[is_person][order]
    compared = []
    product = vertex_search._Search._product

    def counted(self, a, b, name):
        compared.append(len(a) * len(b))
        return product(self, a, b, name)

    monkeypatch.setattr(vertex_search._Search, "_product", counted)
    found = vertex_search.nearest_by_runs(pixels, vertices)
    expected, margin = _nearest(pixels, vertices)
    is_sure = margin > 1e-5
    assert is_sure.mean() > 0.99
    np.testing.assert_array_equal(found[is_sure], expected[is_sure])
    assert sum(compared) < 0.6 * pixels.shape[0] * 3000


def test_runs_of_different_parts_and_of_equal_pixels_are_searched():
    rng = np.random.default_rng(1)
    vertices = rng.normal(size=(500, 3)).astype(np.float32)
    # Some runs have pixels of two places that are far apart; the last ones are all equal, and zero.
    pixels = vertices[np.repeat(rng.integers(0, 500, 12), 80)] * np.float32(1.001)
    pixels = np.concatenate([pixels, np.zeros((9, 3), np.float32)])
    found = vertex_search.nearest_by_runs(pixels, vertices)
    np.testing.assert_array_equal(found, _nearest(pixels, vertices)[0])
    assert found.dtype == np.int32


def test_pixels_that_are_not_alike_are_left_to_a_whole_comparison():
    rng = np.random.default_rng(2)
    vertices = rng.normal(size=(500, 8)).astype(np.float32)
    pixels = rng.normal(size=(2000, 8)).astype(np.float32)
    assert vertex_search.nearest_by_runs(pixels, vertices) is None


def test_few_pixels_and_none():
    vertices = np.eye(3, dtype=np.float32)
    found = vertex_search.nearest_by_runs(vertices[[2, 0]], vertices)
    np.testing.assert_array_equal(found, [2, 0])
    assert vertex_search.nearest_by_runs(np.zeros((0, 3), np.float32), vertices).shape == (0,)


def test_pixels_that_are_not_finite_spoil_no_others():
    rng = np.random.default_rng(3)
    vertices = rng.normal(size=(400, 3)).astype(np.float32)
    pixels = vertices[np.repeat(rng.integers(0, 400, 20), 64)]
    wrong = pixels.copy()
    wrong[[100, 700, 1279]] = np.nan, np.inf, -np.inf
    is_finite = np.isfinite(wrong).all(axis=1)
    found = vertex_search.nearest_by_runs(wrong, vertices)
    np.testing.assert_array_equal(found[is_finite], _nearest(pixels, vertices)[0][is_finite])
    assert ((found >= 0) & (found < 400)).all()


def test_neighbours_follow_each_other():
    order = vertex_search.neighbours_together(np.ones((4, 4), bool))
    curve = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    np.testing.assert_array_equal(np.argsort(order).reshape(4, 4), curve)
    large = vertex_search.neighbours_together(np.ones((300, 70), bool))
    np.testing.assert_array_equal(np.sort(large), np.arange(21_000))
    row, column = np.divmod(large, 70)
    # Half of the steps are to a neighbour of the pixel, and 256 pixels fill a square.
    assert (np.abs(np.diff(row)) + np.abs(np.diff(column)) == 1).mean() >= 0.5
    assert np.ptp(row[:256]) == np.ptp(column[:256]) == 15
