"""What is computed from a mesh and kept in the cache: geodesic distances, features of vertices."""

import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ktn_jax.body import geodesics, laplacian, meshes
from ktn_jax.body.meshes import SurfaceMesh
from ktn_jax.runtime import atomic_files, caches, locks, npy_files, pickles, progress

_ROWS = 256  # of a table that are in memory


def load_geodesics(mesh: SurfaceMesh) -> np.ndarray:
    """Opens the distances along a mesh between all of its vertices.

    Those of released meshes are fetched and converted, others are computed along the edges
    (`body.geodesics`), once each: 27,554 vertices take 1.5 GB of disk.

    Args:
        mesh: from `load_mesh`.

    Returns:
        [V, V] float16 in the unit of the mesh, mapped into memory: 0.05 % of a distance is
        rounding. Infinite between parts that do not touch.

    Raises:
        ValueError: a damaged file; the message names it.
        ktn_jax.runtime.downloads.DownloadError: they could not be fetched.
    """
    count = len(mesh.vertices)

    def compute() -> Iterable[np.ndarray]:
        return _released_rows(mesh) if mesh.is_released else _computed_rows(mesh)

    return _made_once(_folder(mesh) / "geodesics.npy", compute, (count, count), np.float16)


def load_features(mesh: SurfaceMesh, number: int) -> np.ndarray:
    """Features of the vertices: the smoothest functions on the mesh (`body.laplacian`).

    Args:
        mesh: from `load_mesh`.
        number: of features, below V.

    Returns:
        [V, number] float32; computed once.

    Raises:
        ValueError: too many features, or a damaged file.
    """

    def compute() -> Iterable[np.ndarray]:
        if len(mesh.vertices) > _ROWS:
            progress.say(f"Computing {number} features of the vertices of {mesh.name}.")
        return [laplacian.eigenfunctions(mesh.vertices, mesh.faces, number)]

    path = _folder(mesh) / f"features_{number}.npy"
    return np.array(_made_once(path, compute, (len(mesh.vertices), number), np.float32))


def _made_once(
    path: pathlib.Path,
    compute: Callable[[], Iterable[np.ndarray]],
    shape: tuple[int, ...],
    dtype: type,
) -> np.ndarray:
    """Maps a table, whose blocks are computed where it is not there yet."""
    if not path.is_file():
        with locks.hold(path.parent, wait=True):  # another process may be doing it
            if not path.is_file():
                with atomic_files.replacing(path) as temporary:
                    npy_files.write_blocks(temporary, compute(), shape, dtype)
    return npy_files.open_mapped(path, shape)


def _folder(mesh: SurfaceMesh) -> pathlib.Path:
    """Where a mesh's tables are: another mesh of the same name has another folder."""
    return caches.folder("meshes") / f"{mesh.name}-{mesh.fingerprint}"


def _computed_rows(mesh: SurfaceMesh) -> Iterator[np.ndarray]:
    count = len(mesh.vertices)
    with progress.Progress(f"distances along {mesh.name}", "vertices", count) as shown:
        for rows in geodesics.geodesic_rows(mesh.vertices, mesh.faces, _ROWS):
            yield rows
            shown.advance(len(rows))


def _released_rows(mesh: SurfaceMesh) -> Iterator[np.ndarray]:
    """Reads the published table, which is removed once it is converted: it is twice as large."""
    path = meshes.fetch(mesh.name, "geodesics")
    count = len(mesh.vertices)
    table = np.asarray(pickles.load_arrays(path))
    if table.dtype.kind != "f" or table.shape != (count, count):
        raise ValueError(
            f"{path}: wanted distances {(count, count)}, got {table.dtype} {table.shape}. Remove "
            "it to get it again"
        )
    for start in range(0, count, _ROWS):
        rows = table[start : start + _ROWS]
        if not (rows >= 0).all():  # NaN compares false
            raise ValueError(f"{path}: a distance is negative or NaN. Remove it to get it again")
        yield rows
    path.unlink()
