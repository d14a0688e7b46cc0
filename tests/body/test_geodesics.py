"""Distances along a surface against closed forms and an independent Dijkstra."""

import heapq

import numpy as np
import pytest
import scipy.sparse.csgraph

from ktn_jax.body import evaluation_mesh, geodesics


def distances(vertices, faces, sources=None):
    """[S, V] from some vertices, or from all."""
    graph = geodesics.edge_graph(vertices, faces)
    return scipy.sparse.csgraph.dijkstra(graph, directed=True, indices=sources)


def plain_dijkstra(vertices, faces, source):
    """The textbook algorithm, to compare with."""
    neighbours = [set() for _ in vertices]
    for face in faces.tolist():
        for a, b in ((0, 1), (1, 2), (2, 0)):
            neighbours[face[a]].add(face[b])
            neighbours[face[b]].add(face[a])
    distance = np.full(len(vertices), np.inf)
    distance[source] = 0
    queue = [(0.0, source)]
    while queue:
        reached, here = heapq.heappop(queue)
        if reached > distance[here]:
            continue
        for there in neighbours[here]:
            length = reached + np.linalg.norm(vertices[here] - vertices[there])
            if length < distance[there]:
                distance[there] = length
                heapq.heappush(queue, (length, there))
    return distance


def test_distances_are_those_of_a_plain_dijkstra(make_cylinder):
    vertices, faces = make_cylinder(around=9, along=6)
    vertices = vertices + 0.05 * np.random.default_rng(0).normal(size=vertices.shape)
    for source in (0, 20, 53):
        np.testing.assert_allclose(
            distances(vertices, faces, [source])[0],
            plain_dijkstra(vertices, faces, source),
        )


def test_distances_on_a_cylinder_are_the_unrolled_ones(make_cylinder):
    around, along, radius, length = 128, 81, 0.5, 2.0
    vertices, faces = make_cylinder(around, along, radius, length)
    distance = distances(vertices, faces, [0])[0].reshape(along, around)
    chord = 2 * radius * np.sin(np.pi / around)
    # Along an axis or a ring there is a straight path of edges: exact.
    np.testing.assert_allclose(distance[:, 0], np.linspace(0, length, along))
    steps = np.minimum(np.arange(around), around - np.arange(around))
    np.testing.assert_allclose(distance[0], steps * chord)
    # Elsewhere a path of edges is longer than the unrolled line; with one diagonal a quad, at most
    # sqrt(2) times.
    unrolled = np.hypot(np.linspace(0, length, along)[:, None], steps * chord)[1:]
    ratio = distance[1:] / unrolled
    assert (ratio > 1 - 1e-9).all()
    assert ratio.max() < np.sqrt(2) + 1e-6
    assert ratio.mean() < 1.2


def test_distance_is_a_metric_on_the_body(body):
    template = body.template
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(template.vertices), 60, replace=False)
    table = distances(template.vertices, template.faces, chosen)[:, chosen]
    np.testing.assert_allclose(table, table.T, atol=1e-12)
    np.testing.assert_array_equal(np.diag(table), 0)
    assert (table[:, :, None] + table[None] >= table[:, None, :] - 1e-12).all()
    straight = np.linalg.norm(
        template.vertices[chosen][:, None] - template.vertices[chosen], axis=-1
    )
    assert (table >= straight - 1e-12).all()


def test_distance_is_the_same_in_a_mirror(body):
    template = body.template
    mirror = template.vertex_mirror
    left_hand = np.flatnonzero(template.vertices[:, 0] > 0.6)[:5]
    here = distances(template.vertices, template.faces, left_hand)
    there = distances(template.vertices, template.faces, mirror[left_hand])
    np.testing.assert_allclose(there[:, mirror], here, atol=1e-12)
    # From hand to hand is farther than the span of both arms and shorter than over the feet.
    across = here[np.arange(len(left_hand)), mirror[left_hand]]
    assert (across > 1.2).all() and (across < 2.0).all()


def test_condensed_table_has_the_published_layout(make_cylinder):
    vertices, faces = make_cylinder(around=7, along=5)
    blocks = list(geodesics.condensed_geodesics(vertices, faces, block_rows=8))
    assert len(blocks) == 5 and all(block.dtype == np.float32 for block in blocks)
    condensed = np.concatenate(blocks)
    full = distances(vertices, faces)
    i, j = np.tril_indices(len(vertices), -1)
    np.testing.assert_allclose(condensed, full[i, j], rtol=1e-6)


def test_parts_that_do_not_touch_are_infinitely_far(make_cylinder):
    vertices, faces = make_cylinder(around=5, along=3)
    both = np.concatenate([vertices, vertices + 10])
    apart = np.concatenate([faces, faces + len(vertices)])
    assert np.isinf(distances(both, apart, [0])[0, len(vertices) :]).all()


def test_subdivision_splits_every_triangle_in_four_equal_parts(make_cylinder):
    vertices, faces = make_cylinder(around=6, along=4)
    edges, fine = evaluation_mesh.subdivide(faces, len(vertices))
    all_vertices = np.concatenate([vertices, vertices[edges].mean(axis=1)])

    def normals(triangles):
        corners = all_vertices[triangles]
        return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    np.testing.assert_allclose(
        normals(fine).reshape(-1, 4, 3),
        np.repeat(normals(faces)[:, None] / 4, 4, axis=1),
        atol=1e-12,
    )
    assert len(geodesics.mesh_edges(fine)) == 2 * len(edges) + 3 * len(faces)


@pytest.mark.parametrize("subdivided", [False, True])
def test_evaluation_mesh_carries_the_charts(body, subdivided):
    template = body.template
    mesh = evaluation_mesh.make_evaluation_mesh(template, subdivided)
    points = template.iuv_to_surface(mesh.patch, mesh.u, mesh.v)
    np.testing.assert_allclose(
        template.surface_to_point(points.face, points.barycentric),
        mesh.vertices[mesh.chart_to_vertex],
        atol=1e-9,
    )
    assert len(np.unique(mesh.chart_to_vertex)) == len(mesh.vertices)
    np.testing.assert_array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))


def test_evaluation_mesh_of_the_published_body_has_the_published_size(real_template):
    mesh = evaluation_mesh.make_evaluation_mesh(real_template)
    assert len(mesh.vertices) == 27_554
    assert len(mesh.faces) == 4 * 13_774
    np.testing.assert_array_equal(np.unique(mesh.chart_to_vertex), np.arange(27_554))


def test_subdividing_only_shortens_paths(body):
    template = body.template
    mesh = evaluation_mesh.make_evaluation_mesh(template)
    coarse = distances(template.vertices, template.faces, [0, 500])
    fine = distances(mesh.vertices, mesh.faces, [0, 500])
    assert (fine[:, : len(template.vertices)] <= coarse + 1e-12).all()
