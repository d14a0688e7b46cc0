"""Refinement and flattening on meshes with known answers."""

import numpy as np
import pytest

from ktn_jax.body.procedural import cage, flattening, refinement

CUBE = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
CUBE_QUADS = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)


def test_catmull_clark_on_a_cube_gives_the_known_points():
    matrix, quads, edges = refinement.catmull_clark(CUBE_QUADS, 8)
    fine = matrix @ CUBE
    assert len(edges) == 12 and fine.shape == (26, 3) and quads.shape == (24, 4)
    # At a cube's corner: (F + 2 R) / 3 with F, R the means of 3 face centres and 3 edge middles.
    np.testing.assert_allclose(fine[0], [2 / 9] * 3)
    centre_to_edge = np.linalg.norm(fine[8:20] - 0.5, axis=1)
    np.testing.assert_allclose(centre_to_edge, np.sqrt(2) * 0.375)
    np.testing.assert_allclose(np.linalg.norm(fine[20:] - 0.5, axis=1), 0.5)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1)


def test_catmull_clark_refuses_an_open_mesh():
    with pytest.raises(ValueError, match="not closed"):
        refinement.catmull_clark(CUBE_QUADS[:-1], 8)


def test_cutting_a_cube_open():
    patch = np.array([1, 1, 1, 1, 1, 2])  # five sides and a lid
    faces, to_vertex, on_rim = flattening.split_at_seams(CUBE_QUADS, patch, np.zeros((0, 2), int))
    assert len(to_vertex) == 8 + 4 and on_rim.sum() == 4 + 4
    np.testing.assert_array_equal(to_vertex[faces], CUBE_QUADS)
    slit = np.array([[1, 0], [0, 4]])  # from the lid's rim down an edge and along the bottom
    slit_faces, slit_vertex, slit_rim = flattening.split_at_seams(CUBE_QUADS, patch, slit)
    # The slit's start at the rim and its middle are doubled, its end inside is not.
    assert len(slit_vertex) == 8 + 4 + 2 and slit_rim.sum() == 4 + 4 + 4
    assert sorted(np.bincount(slit_vertex)) == [1, 1, 1, 2, 2, 2, 2, 3]
    assert slit_faces.max() == len(slit_vertex) - 1


def test_flattening_a_rectangle_is_a_scaling():
    rows, columns = 5, 9
    # Uneven steps: averages with equal weights would move the inner vertices.
    x = np.array([0.0, 1.0, 1.5, 5.0, 6.0, 9.0, 10.0, 13.0, 16.0])
    y = np.array([0.0, 5.0, 6.0, 9.0, 12.0])
    grid = np.array([[x[c], y[r], 0] for r in range(rows) for c in range(columns)])
    a = np.array([r * columns + c for r in range(rows - 1) for c in range(columns - 1)])
    triangles = np.concatenate(
        [np.stack([a, a + 1, a + columns + 1], 1), np.stack([a, a + columns + 1, a + columns], 1)]
    )
    corners = np.array([0, columns - 1, rows * columns - 1, (rows - 1) * columns])
    vertices = np.arange(len(grid))
    members, uv = flattening.flatten(grid, triangles, vertices, corners)
    # Mean value coordinates reproduce a plane exactly.
    np.testing.assert_allclose(uv, grid[members, :2] / [16.0, 12.0], atol=1e-12)
    _, transposed = flattening.flatten(grid, triangles, vertices, corners[[0, 3, 2, 1]])
    np.testing.assert_allclose(transposed, uv[:, ::-1], atol=1e-12)


def test_flattening_says_what_is_wrong():
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1.0, 0]])
    with pytest.raises(ValueError, match="does not meet"):
        flattening.flatten(square, triangles, np.arange(4), np.array([0, 2, 1, 3]))
    closed = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]])
    with pytest.raises(ValueError, match="no rim"):
        flattening.flatten(square, closed, np.arange(4), np.array([0, 1, 2, 3]))


def test_cage_is_symmetric_and_names_every_patch():
    control = cage.build_cage()
    assert set(control.quad_patch) == set(range(1, 25))
    index = {key: vertex for vertex, key in enumerate(control.keys)}
    mirror = [index[cage.mirror_key(key)] for key in control.keys]
    np.testing.assert_allclose(
        control.positions[mirror] * [-1, 1, 1], control.positions, atol=1e-12
    )
    assert control.index(("body", 0, 14, 1)) == index["body", 0, 14, 1]
