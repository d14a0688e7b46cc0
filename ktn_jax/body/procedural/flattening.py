"""Cutting a mesh into charts and flattening each onto the unit square without folds.

A patch is a disc. Its rim goes to the square's rim, four named vertices to the square's corners
and the rest of each side by arc length; every inner vertex is then a positive average of its
neighbours, which Tutte's theorem makes a bijection (W. T. Tutte, "How to draw a graph", 1963).
The weights are the mean value coordinates of M. S. Floater (2003), positive on every mesh and
fair to lengths.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg


def split_at_seams(
    faces: np.ndarray, face_patch: np.ndarray, cuts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gives each patch vertices of its own, and a slit patch two copies along its slits.

    Args:
        faces: [F, K] vertices of a closed mesh of K-gons.
        face_patch: [F].
        cuts: [E, 2] edges inside a patch along which it is slit.

    Returns:
        chart_faces [F, K] int32 into chart vertices, chart_to_vertex [C] int32, and on_rim [F, K]:
        whether the edge from corner k to k + 1 is on the rim of its chart.
    """
    num_corners = faces.shape[1]
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    ordered = np.sort(sides, axis=1)
    _, edge = np.unique(ordered, axis=0, return_inverse=True)
    pairs = np.argsort(edge.ravel(), kind="stable").reshape(-1, 2)
    owner = pairs // num_corners
    joined = face_patch[owner[:, 0]] == face_patch[owner[:, 1]]
    slit = {tuple(sorted(cut)) for cut in np.asarray(cuts).tolist()}
    joined &= np.array([tuple(side) not in slit for side in ordered[pairs[:, 0]].tolist()])
    first, second = pairs[joined].T
    # The two faces run along their common edge in opposite directions.
    after = np.arange(faces.size) // num_corners * num_corners
    after += (np.arange(faces.size) + 1) % num_corners
    links = np.concatenate([[first, after[second]], [after[first], second]], axis=1)
    graph = scipy.sparse.coo_matrix(
        (np.ones(links.shape[1]), (links[0], links[1])), shape=(faces.size, faces.size)
    )
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    chart_to_vertex = np.zeros(label.max() + 1, np.int32)
    chart_to_vertex[label] = faces.ravel()
    on_rim = np.ones(faces.size, bool)
    on_rim[pairs[joined].ravel()] = False
    chart_faces = label.reshape(faces.shape).astype(np.int32)
    return chart_faces, chart_to_vertex, on_rim.reshape(faces.shape)


def flatten(
    points: np.ndarray, triangles: np.ndarray, chart_to_vertex: np.ndarray, corners: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Flattens one patch onto the unit square.

    Args:
        points: [C, 3] position of every chart vertex.
        triangles: [T, 3] the patch's triangles, into chart vertices.
        chart_to_vertex: [C] vertex of every chart vertex.
        corners: [4] vertices at (0, 0), (1, 0), (1, 1) and (0, 1), in this order along the rim.

    Returns:
        members [M], the patch's chart vertices, and their uv [M, 2].

    Raises:
        ValueError: the patch has no single rim, or its rim does not meet the corners in order.
    """
    members, local = np.unique(triangles, return_inverse=True)
    local = local.reshape(triangles.shape)
    positions = points[members]
    rim = _rim(local)
    uv_rim = _square_rim(positions[rim], chart_to_vertex[members[rim]], corners)
    weights = _mean_value_weights(positions, local)
    is_rim = np.zeros(len(members), bool)
    is_rim[rim] = True
    uv = np.zeros((len(members), 2))
    uv[rim] = uv_rim
    inner = np.flatnonzero(~is_rim)
    total = scipy.sparse.diags(np.asarray(weights.sum(axis=1)).ravel())
    system = (total - weights).tocsr()[inner]
    right = -(system[:, rim] @ uv_rim)
    uv[inner] = scipy.sparse.linalg.spsolve(system[:, inner].tocsc(), right).reshape(-1, 2)
    return members, np.clip(uv, 0, 1)


def _rim(triangles: np.ndarray) -> np.ndarray:
    """Vertices of a disc's rim, in the direction that keeps the disc on the left."""
    sides = np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=-1).reshape(-1, 2)
    present = {tuple(side) for side in sides.tolist()}
    following = {a: b for a, b in present if (b, a) not in present}
    if not following:
        raise ValueError("the patch is closed: it has no rim")
    loop = [min(following)]
    while following[loop[-1]] != loop[0]:
        loop.append(following[loop[-1]])
    if len(loop) != len(following):
        raise ValueError(f"the patch has more than one rim: {len(loop)} of {len(following)} edges")
    return np.asarray(loop)


def _square_rim(points: np.ndarray, vertices: np.ndarray, corners: Sequence[int]) -> np.ndarray:
    """Lays a rim on the unit square, by arc length between the four corners."""
    for direction in (1, -1):
        order = np.arange(len(points))[::direction]
        places = _match_corners(vertices[order], corners)
        if places is not None:
            break
    else:
        raise ValueError(f"the rim does not meet the vertices {list(corners)} in this order")
    order = np.roll(order, -places[0])
    places = [place - places[0] for place in places] + [len(points)]
    closed = np.concatenate([points[order], points[order[:1]]])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], float)
    travelled = np.interp(length[:-1], length[places], np.arange(5.0))
    uv = np.empty((len(points), 2))
    for axis in range(2):
        uv[order, axis] = np.interp(travelled, np.arange(5.0), square[:, axis])
    return uv


def _match_corners(vertices: np.ndarray, corners: Sequence[int]) -> list[int] | None:
    """Places of the corners around a rim, ascending from the first; None if out of order.

    The two copies of a slit vertex may be two corners: the copies are told apart by the order.
    """
    hits = [(place, vertex) for place, vertex in enumerate(vertices) if vertex in corners]
    if len(hits) != 4:
        return None
    for turn in range(4):
        turned = hits[turn:] + hits[:turn]
        if [vertex for _, vertex in turned] == list(corners):
            start = turned[0][0]
            return [start + (place - start) % len(vertices) for place, _ in turned]
    return None


def _mean_value_weights(points: np.ndarray, triangles: np.ndarray) -> scipy.sparse.csr_matrix:
    rows, columns, values = [], [], []
    for corner in range(3):
        here, right, left = (triangles[:, (corner + k) % 3] for k in range(3))
        to_right, to_left = points[right] - points[here], points[left] - points[here]
        length_right = np.linalg.norm(to_right, axis=1)
        length_left = np.linalg.norm(to_left, axis=1)
        cosine = (to_right * to_left).sum(axis=1) / (length_right * length_left)
        half_tangent = np.tan(np.arccos(np.clip(cosine, -1, 1)) / 2)
        rows += [here, here]
        columns += [right, left]
        values += [half_tangent / length_right, half_tangent / length_left]
    return scipy.sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(points), len(points)),
    )
