"""Eigenfunctions of a mesh's Laplacian: smooth functions that tell its vertices apart.

As features of vertices they make embeddings of neighbours alike (Neverova et al., "Continuous
Surface Embeddings", NeurIPS 2020, section 3).
"""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

_SHIFT = 1e-3  # below the smallest eigenvalue, 0, in units of the area: the matrix is inverted


def cotangent_laplacian(
    vertices: np.ndarray, faces: np.ndarray
) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Computes the discrete Laplacian of linear finite elements.

    Args:
        vertices: [V, 3].
        faces: [F, 3].

    Returns:
        The stiffness matrix [V, V], symmetric, positive semidefinite, with rows that add up to 0,
        and the area of each vertex [V], a third of that of its triangles.
    """
    corners = vertices[faces].astype(np.float64)
    count = len(vertices)
    rows, columns, weights = [], [], []
    twice_area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    # A triangle without area has no angles: it joins nothing.
    is_flat = twice_area <= 1e-12 * twice_area.max()
    divisor = np.where(is_flat, 1, twice_area)
    for corner in range(3):
        first, second = (corner + 1) % 3, (corner + 2) % 3
        dot = np.sum(
            (corners[:, first] - corners[:, corner]) * (corners[:, second] - corners[:, corner]),
            axis=1,
        )
        half_cotangent = np.where(is_flat, 0, 0.5 * dot / divisor)
        rows += [faces[:, first], faces[:, second]]
        columns += [faces[:, second], faces[:, first]]
        weights += [half_cotangent, half_cotangent]
    joined = scipy.sparse.csr_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    stiffness = scipy.sparse.diags(np.asarray(joined.sum(axis=1)).ravel()) - joined
    area = np.bincount(faces.ravel(), np.repeat(twice_area / 6, 3), count)
    return stiffness.tocsr(), area


def eigenfunctions(vertices: np.ndarray, faces: np.ndarray, number: int) -> np.ndarray:
    """Computes the smoothest functions on a mesh, without the constant one.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        number: of functions.

    Returns:
        [V, number] float32, the smoothest first, orthogonal in the sense of areas, of mean square
        1. Their signs are such that the largest value is positive.

    Raises:
        ValueError: the mesh has too few vertices.
    """
    if not 0 < number < len(vertices) - 1:
        raise ValueError(f"a mesh of {len(vertices)} vertices has no {number} such functions")
    stiffness, area = cotangent_laplacian(vertices, faces)
    # In units of the whole area, so that the shift suits every mesh. No vertex may weigh nothing.
    share = np.maximum(area / area.sum(), 1e-3 / len(vertices))
    mass = scipy.sparse.diags(share)
    start = np.random.default_rng(0).normal(size=len(vertices))  # else it differs from run to run
    values, functions = scipy.sparse.linalg.eigsh(
        stiffness.tocsc(), k=number + 1, M=mass, sigma=-_SHIFT, which="LM", v0=start
    )
    functions = functions[:, np.argsort(values)][:, 1:]
    largest = functions[np.abs(functions).argmax(axis=0), np.arange(number)]
    signed: np.ndarray = (functions * np.sign(largest)).astype(np.float32)
    return signed
