"""Catmull-Clark refinement of quads as one sparse matrix, and splitting quads into triangles.

One matrix refines whatever lives on the vertices: positions, skinning weights.
Catmull and Clark, "Recursively generated B-spline surfaces on arbitrary topological meshes", 1978.
"""

import numpy as np
import scipy.sparse


def catmull_clark(quads: np.ndarray, num_vertices: int) -> tuple[scipy.sparse.csr_matrix, ...]:
    """Refines a closed quad mesh once.

    Args:
        quads: [Q, 4] vertex indices of a closed manifold.
        num_vertices: N.

    Returns:
        (matrix [N + E + Q, N], fine_quads [4 Q, 4], edges [E, 2]): old vertices keep their index,
        edge e becomes vertex N + e, quad q becomes vertex N + E + q; the fine quads of quad q are
        rows 4 q .. 4 q + 3, in the same orientation.

    Raises:
        ValueError: an edge does not belong to exactly two quads.
    """
    num_quads = len(quads)
    sides = np.stack([quads, np.roll(quads, -1, axis=1)], axis=-1)
    edges, edge_of_side, uses = np.unique(
        np.sort(sides.reshape(-1, 2), axis=1), axis=0, return_inverse=True, return_counts=True
    )
    if (uses != 2).any():
        raise ValueError(f"the mesh is not closed: edge {edges[uses != 2][0]} is not shared by two")
    edge_of_side = edge_of_side.reshape(num_quads, 4)
    num_edges = len(edges)

    def matrix(
        rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> scipy.sparse.csr_matrix:
        return scipy.sparse.csr_matrix((values, (rows.ravel(), columns.ravel())), shape=shape)

    face_points = matrix(
        np.repeat(np.arange(num_quads), 4), quads, np.full(4 * num_quads, 0.25),
        (num_quads, num_vertices),
    )  # fmt: skip
    midpoints = matrix(
        np.repeat(np.arange(num_edges), 2), edges, np.full(2 * num_edges, 0.5),
        (num_edges, num_vertices),
    )  # fmt: skip
    faces_of_edge = matrix(
        edge_of_side, np.repeat(np.arange(num_quads), 4), np.full(4 * num_quads, 0.5),
        (num_edges, num_quads),
    )  # fmt: skip
    edge_points = (midpoints + faces_of_edge @ face_points) / 2
    valence = np.bincount(edges.ravel(), minlength=num_vertices).astype(float)

    def average_over(rows: np.ndarray, columns: np.ndarray, count: int) -> scipy.sparse.csr_matrix:
        ones = matrix(rows, columns, np.ones(rows.size), (num_vertices, count))
        return scipy.sparse.diags(1 / valence) @ ones

    faces_mean = average_over(quads, np.repeat(np.arange(num_quads), 4), num_quads) @ face_points
    edges_mean = average_over(edges, np.repeat(np.arange(num_edges), 2), num_edges) @ midpoints
    vertex_points = scipy.sparse.diags(1 / valence) @ (
        faces_mean + 2 * edges_mean + scipy.sparse.diags(valence - 3)
    )
    corner = quads
    after = num_vertices + edge_of_side
    before = np.roll(after, 1, axis=1)
    centre = np.repeat(num_vertices + num_edges + np.arange(num_quads)[:, None], 4, axis=1)
    fine_quads = np.stack([corner, after, centre, before], axis=-1).reshape(-1, 4)
    refine = scipy.sparse.vstack([vertex_points, edge_points, face_points]).tocsr()
    return refine, fine_quads.astype(np.int32), edges


def split_quads(
    quads: np.ndarray, positions: np.ndarray, on_rim: np.ndarray, mirror: np.ndarray
) -> np.ndarray:
    """Chooses the diagonal of every quad: the shorter, but never one that cuts off a rim's corner.

    A triangle whose two outer edges are both on one straight side of a chart would have no area
    there; the diagonal through their common corner avoids it. The choice is left-right symmetric.

    Args:
        quads: [Q, 4].
        positions: [N, 3], exactly symmetric.
        on_rim: [Q, 4] whether the edge from corner k to k + 1 is on the rim of the quad's chart.
        mirror: [N] reflected vertex.

    Returns:
        [Q, 2, 3] corners (0..3) of both triangles, in the quad's orientation.
    """
    corners = positions[quads]
    first = np.linalg.norm(corners[:, 0] - corners[:, 2], axis=1)
    second = np.linalg.norm(corners[:, 1] - corners[:, 3], axis=1)
    rank = np.minimum(quads, mirror[quads])  # the same for a vertex and its reflection
    tie = np.minimum(rank[:, 0], rank[:, 2]) < np.minimum(rank[:, 1], rank[:, 3])
    use_first = (first < second) | ((first == second) & tie)
    rim_corner = on_rim & np.roll(on_rim, 1, axis=1)
    even, odd = rim_corner[:, [0, 2]].any(axis=1), rim_corner[:, [1, 3]].any(axis=1)
    use_first = np.where(even, True, np.where(odd, False, use_first))
    splits = np.array([[[1, 2, 3], [1, 3, 0]], [[0, 1, 2], [0, 2, 3]]])
    triangles: np.ndarray = splits[use_first.astype(int)]
    return triangles
