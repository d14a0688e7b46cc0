"""Cells that triangles cover, against counting and closed forms."""

import numpy as np

from ktn_jax.body import triangles


def test_two_triangles_cover_a_rectangle_either_way_round():
    square = np.array([[1.2, 2.1], [6.8, 2.1], [6.8, 5.9], [1.2, 5.9]])
    for order in ([[0, 1, 2], [0, 2, 3]], [[2, 1, 0], [0, 2, 3]]):
        covered = triangles.cover(square[order], (8, 10))
        count = np.zeros((8, 10), int)
        np.add.at(count, (covered.row, covered.column), 1)
        expected = np.zeros((8, 10), bool)
        expected[2:6, 1:7] = True  # the cells whose centre is inside
        np.testing.assert_array_equal(count > 0, expected)
        assert count.max() <= 2
        centres = np.einsum("nk,nkd->nd", covered.barycentric, square[order][covered.triangle])
        np.testing.assert_allclose(centres[:, 0], covered.column + 0.5, atol=1e-9)
        np.testing.assert_allclose(centres[:, 1], covered.row + 0.5, atol=1e-9)


def test_slivers_and_what_is_outside_cover_nothing():
    line = [[0.0, 0.5], [4.0, 0.5], [8.0, 0.5]]
    outside = [[20.0, 1.0], [30.0, 1.0], [20.0, 9.0]]
    assert len(triangles.cover(np.array([line, outside]), (8, 10)).row) == 0
    assert len(triangles.cover(np.zeros((0, 3, 2)), (8, 10)).row) == 0
