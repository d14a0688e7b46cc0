"""Mirroring vertices, chart vertices and chart coordinates."""

import numpy as np
import pytest
import scipy.spatial

from ktn_jax.body import parts, symmetry
from ktn_jax.body.procedural import assembly


def test_mirroring_twice_is_the_identity(body):
    rng = np.random.default_rng(0)
    patch, u, v = rng.integers(1, 25, 5000), rng.random(5000), rng.random(5000)
    once = body.template.mirror_iuv(patch, u, v)
    twice = body.template.mirror_iuv(*once)
    np.testing.assert_array_equal(twice.patch, patch)
    np.testing.assert_allclose(twice.u, u, atol=1e-9)
    np.testing.assert_allclose(twice.v, v, atol=1e-9)


def test_mirrored_iuv_is_the_reflected_point(body):
    template = body.template
    rng = np.random.default_rng(1)
    patch, u, v = rng.integers(1, 25, 5000), rng.random(5000), rng.random(5000)
    here = template.iuv_to_surface(patch, u, v)
    there = template.iuv_to_surface(*template.mirror_iuv(patch, u, v))
    np.testing.assert_allclose(
        template.surface_to_point(there.face, there.barycentric),
        template.surface_to_point(here.face, here.barycentric) * [-1.0, 1.0, 1.0],
        atol=1e-9,
    )


def mean_error(template, patch, mirror):
    """Mean absolute error in UV of the mirror rule over a patch's chart vertices."""
    chart = np.flatnonzero(template.chart_patch == patch)
    expected = assembly.reflect_uv(patch, template.chart_uv[chart])
    return np.abs(template.chart_uv[mirror[chart]] - expected).mean()


def test_published_charts_mirror_by_the_measured_rules(real_template):
    """(u, 1 - v) on the torso, (u, v) on limbs, (1 - u, v) on the head, hands and feet."""
    error = {p: mean_error(real_template, p, real_template.chart_mirror) for p in range(1, 25)}
    assert (error[1] + error[2]) / 2 == pytest.approx(0.01, abs=0.002)
    limbs = [error[p] for p in range(7, 23)]
    assert min(limbs) == pytest.approx(0.003, abs=0.001)
    assert max(limbs) == pytest.approx(0.011, abs=0.001)
    assert error[23] == pytest.approx(0.001, abs=0.0005)
    assert error[24] == pytest.approx(0.001, abs=0.0005)
    assert max(error[p] for p in range(3, 7)) < 0.03
    # The rule tells: with another the error is far larger.
    for patch in (1, 3, 5, 23):
        chart = np.flatnonzero(real_template.chart_patch == patch)
        mirrored = real_template.chart_uv[real_template.chart_mirror[chart]]
        assert np.abs(mirrored - real_template.chart_uv[chart]).mean() > 0.1


def test_one_copy_per_vertex_blurs_hands_and_feet(real_template):
    """Through vertices alone a seam's other copy is taken: the error that the faces avoid."""
    template = real_template
    first = {}
    for chart in range(len(template.chart_uv)):
        first.setdefault((template.chart_patch[chart], template.chart_to_vertex[chart]), chart)
    naive = np.array(
        [
            first[parts.PATCH_FLIP[patch], template.vertex_mirror[vertex]]
            for patch, vertex in zip(template.chart_patch, template.chart_to_vertex, strict=True)
        ]
    )
    for patch in (3, 4, 5, 6):
        blurred = mean_error(template, patch, naive)
        assert 0.055 < blurred < 0.085
        assert mean_error(template, patch, template.chart_mirror) < blurred / 2


def test_real_mirror_is_an_involution_of_the_whole_mesh(real_template):
    mirror = real_template.vertex_mirror
    np.testing.assert_array_equal(mirror[mirror], np.arange(6890))
    chart = real_template.chart_mirror
    np.testing.assert_array_equal(chart[chart], np.arange(7829))
    np.testing.assert_array_equal(
        real_template.chart_patch[chart], parts.PATCH_FLIP[real_template.chart_patch]
    )


def test_tables_are_read_row_v_column_u_by_the_label_before_the_swap():
    tables = symmetry.UVSymmetry(np.zeros((24, 256, 256)), np.zeros((24, 256, 256)))
    tables.u[2, 51, 204] = 0.25  # patch 3, v = 0.2, u = 0.8
    tables.v[2, 51, 204] = 0.75
    patch, u, v = symmetry.mirror_by_tables(
        tables, np.array([3, 4, 0]), np.array([0.801, 0.801, 0.3]), np.array([0.201, 0.201, 0.6])
    )
    np.testing.assert_array_equal(patch, [4, 3, 0])
    np.testing.assert_array_equal(u, [0.25, 0, 0.3])
    np.testing.assert_array_equal(v, [0.75, 0, 0.6])


def test_tables_agree_with_the_mesh_to_half_a_cell(body):
    rng = np.random.default_rng(4)
    patch, u, v = rng.integers(1, 25, 4000), rng.random(4000), rng.random(4000)
    exact = body.template.mirror_iuv(patch, u, v)
    _, table_u, table_v = symmetry.mirror_by_tables(body.template.uv_symmetry_tables, patch, u, v)
    assert np.abs(table_u - exact.u).max() <= 0.5 / 255 + 1e-9
    assert np.abs(table_v - exact.v).max() <= 0.5 / 255 + 1e-9


def test_symmetry_is_found_on_the_mesh_alone(body):
    template = body.template
    noise = 0.002 * np.random.default_rng(0).normal(size=template.vertices.shape)
    found = symmetry.find_vertex_mirror(template.vertices + noise, template.faces, 0.05)
    np.testing.assert_array_equal(found, template.vertex_mirror)
    # Positions alone would fail here.
    reflected = (template.vertices + noise) * [-1.0, 1.0, 1.0]
    nearest = scipy.spatial.cKDTree(template.vertices + noise).query(reflected)[1]
    assert (nearest != found).sum() > 10


def test_charts_mirror_where_a_diagonal_has_no_reflection(body):
    template = body.template
    # Faces 2 q and 2 q + 1 share a diagonal; turn it in a few quads along the left hand's slit,
    # where a vertex has two copies and only a face tells them apart.
    faces = template.chart_faces.copy()
    in_hand = template.chart_to_vertex[template.chart_patch == 4]
    slit = np.flatnonzero(np.bincount(in_hand, minlength=len(template.vertices)) == 2)
    beside = (template.face_patch == 4) & np.isin(template.faces, slit).any(axis=1)
    for first in np.unique(np.flatnonzero(beside) // 2)[::6] * 2:
        pair = faces[first : first + 2]
        shared = [v for v in pair[0] if v in pair[1]]
        (alone_0,) = set(pair[0]) - set(shared)
        (alone_1,) = set(pair[1]) - set(shared)
        at = list(pair[0]).index(alone_0)
        start, end = pair[0][(at + 1) % 3], pair[0][(at + 2) % 3]
        faces[first : first + 2] = [[alone_0, start, alone_1], [alone_0, alone_1, end]]
    mirror = symmetry.mirror_chart_vertices(
        template.chart_to_vertex, faces, template.face_patch, template.vertex_mirror
    )
    np.testing.assert_array_equal(mirror, template.chart_mirror)
    nowhere = np.where(template.face_patch == 3, 5, template.face_patch)
    with pytest.raises(ValueError, match="no reflection"):
        symmetry.mirror_chart_vertices(
            template.chart_to_vertex, faces, nowhere, template.vertex_mirror
        )


def test_asymmetric_bodies_are_refused(body):
    template = body.template
    turned = template.vertices @ np.array([[0.9, 0.1, 0], [-0.1, 0.9, 0], [0, 0, 1.0]])
    with pytest.raises(ValueError, match="not symmetric"):
        symmetry.find_vertex_mirror(turned, template.faces, 0.01)
    moved = template.vertices.copy()
    moved[100] += [0.05, 0, 0]
    with pytest.raises(ValueError, match="not symmetric"):
        symmetry.find_vertex_mirror(moved, template.faces, 0.01)
    with pytest.raises(ValueError, match="not symmetric"):
        symmetry.find_vertex_mirror(template.vertices, template.faces[:-40], 0.01)
