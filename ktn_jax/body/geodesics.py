"""Distances along the surface: shortest paths over the edges of a triangle mesh (Dijkstra).

A path along edges is longer than the true geodesic, by up to about a tenth on meshes like these;
refining the mesh first (`evaluation_mesh`) gives it more edges to choose from.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph


def mesh_edges(faces: np.ndarray) -> np.ndarray:
    """The [E, 2] edges of triangles [F, 3], each once, lower vertex first, in ascending order."""
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    return np.unique(np.sort(sides, axis=1), axis=0)


def edge_graph(vertices: np.ndarray, faces: np.ndarray) -> scipy.sparse.csr_matrix:
    """[V, V] symmetric sparse matrix of edge lengths, in the unit of `vertices` [V, 3]."""
    edges = mesh_edges(faces)
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    if (length == 0).any():
        # A sparse graph cannot tell an edge of length zero from no edge.
        length = np.maximum(length, np.finfo(np.float64).tiny)
    rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
    size = (len(vertices), len(vertices))
    return scipy.sparse.csr_matrix((np.tile(length, 2), (rows, columns)), shape=size)


def geodesic_rows(
    vertices: np.ndarray, faces: np.ndarray, block_rows: int = 256
) -> Iterator[np.ndarray]:
    """Computes the distances of all pairs, a block of rows at a time.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        block_rows: sources solved at once; memory is block_rows x V x 8 bytes.

    Yields:
        float64 [at most block_rows, V], V rows in all; infinite between parts that do not touch.
    """
    graph = edge_graph(vertices, faces)
    for start in range(0, len(vertices), block_rows):
        sources = np.arange(start, min(start + block_rows, len(vertices)))
        # The graph holds both directions of every edge: SciPy need not look for reversed ones.
        yield scipy.sparse.csgraph.dijkstra(graph, directed=True, indices=sources)


def condensed_geodesics(
    vertices: np.ndarray, faces: np.ndarray, block_rows: int = 256
) -> Iterator[np.ndarray]:
    """Computes all pairs in the layout of the published evaluation, a block at a time.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        block_rows: see `geodesic_rows`.

    Yields:
        float32 blocks that follow each other: pair (i, j), i > j, at i (i - 1) / 2 + j. There are
        V (V - 1) / 2 values in all.
    """
    start = 0
    for rows in geodesic_rows(vertices, faces, block_rows):
        sources = np.arange(start, start + len(rows))
        below = np.arange(len(vertices))[None] < sources[:, None]
        yield rows[below].astype(np.float32)
        start += len(rows)
