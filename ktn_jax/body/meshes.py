"""Triangle meshes that embedding models know by name: a body, animals, or a user's own.

A mesh is the project's own body (`BODY`), one that was released with detectron2's models, which is
fetched into the cache and converted once, or an .npz file of the user's. `body.mesh_tables` has
what is computed from it.
"""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ktn_jax.body.mesh_names import BODY, RELEASED
from ktn_jax.body.procedural import assembly
from ktn_jax.runtime import atomic_files, caches, downloads, locks, npz_files, pickles

_FOLDER = f"{downloads.SERVER}/meshes"
_FILES = {
    "mesh": "{name}.pkl",
    "geodesics": "geodists/geodists_{name}.pkl",
    "symmetry": "symmetry/symmetry_{name}.pkl",
    "uv": "texcoords/texcoords_{name}.pkl",
}
# Of whose mesh the texture coordinates are, where there is no file of its own.
_UV_OF = {"horse_5004": "zebra_5002"}


@dataclasses.dataclass(frozen=True)
class SurfaceMesh:
    """A triangle mesh.

    Attributes:
        name: such as "smpl_27554".
        vertices: [V, 3] float32; the body and SMPL's in metres, y up.
        faces: [F, 3] int32.
        uv: [V, 2] float32 texture coordinates in [0, 1]; None where it has none.
        mirror: [V] int32, the vertex that takes each one's place in a mirror; None where the mesh
            is not symmetric.
        is_released: whether its geodesic distances are fetched rather than computed.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None = None
    mirror: np.ndarray | None = None
    is_released: bool = False

    def __post_init__(self) -> None:
        for field, (dtype, columns) in _ARRAYS.items():
            values = getattr(self, field)
            if values is not None:
                object.__setattr__(self, field, self._checked(field, values, dtype, columns))

    def _checked(self, field: str, values: Any, dtype: type, columns: tuple[int, ...]) -> Any:
        """Raises ValueError, naming the field, for an array that cannot be one of a mesh."""
        array = np.asarray(values)
        count, rows = (len(np.atleast_1d(x)) for x in (self.vertices, array))
        wanted = (rows if field in ("vertices", "faces") else count, *columns)
        if array.dtype.kind not in "iuf" or array.shape != wanted or not array.size:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"mesh {self.name}: {field} must be numbers {wanted}, got {found}")
        if not np.isfinite(array).all():
            raise ValueError(f"mesh {self.name}: {field} must be finite")
        if dtype is np.int32:
            if (array != np.round(array)).any() or array.min() < 0 or array.max() >= count:
                raise ValueError(f"mesh {self.name}: {field} must be vertices, 0..{count - 1}")
        return array.astype(dtype)

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that differ where the vertices or the faces do."""
        value = zlib.crc32(np.ascontiguousarray(self.faces).tobytes())
        return f"{zlib.crc32(np.ascontiguousarray(self.vertices).tobytes(), value):08x}"


_ARRAYS: dict[str, tuple[type, tuple[int, ...]]] = {
    "vertices": (np.float32, (3,)),
    "faces": (np.int32, (3,)),
    "uv": (np.float32, (2,)),
    "mirror": (np.int32, ()),
}


def load_mesh(name: str, files: Sequence[str | os.PathLike[str]] = ()) -> SurfaceMesh:
    """Loads a mesh by its name.

    Args:
        name: `BODY`, one of `RELEASED`, or that of one of the files.
        files: the user's own meshes, NAME.npz, with `vertices` [V, 3], `faces` [F, 3] and, where
            the mesh has them, `uv` [V, 2] and `mirror` [V]. They win over released ones.

    Returns:
        The mesh. A released one is fetched the first time, from the mirror that `KTN_MODELS_URL`
        names, if any, and converted to an .npz in the cache.

    Raises:
        ValueError: no such mesh, or a damaged file; the message names it.
        FileNotFoundError: one of the files is not there.
        ktn_jax.runtime.downloads.DownloadError: it could not be fetched.
    """
    for path in map(pathlib.Path, files):
        if path.stem == name:
            return _read_own(path)
    if name == BODY:
        template = assembly.make_body().template
        return SurfaceMesh(name, template.vertices, template.faces, mirror=template.vertex_mirror)
    if name in RELEASED:
        return _load_released(name)
    raise ValueError(
        f"no mesh is called {name!r}: {BODY}, {', '.join(RELEASED)}, or a file {name}.npz of your "
        "own, which model.meshes.files must name"
    )


def num_vertices(name: str, files: Sequence[str | os.PathLike[str]] = ()) -> int:
    """The number of vertices of a mesh; nothing is fetched. See `load_mesh`."""
    is_own = any(pathlib.Path(path).stem == name for path in files)
    if name in RELEASED and not is_own:
        return RELEASED[name]
    return len(load_mesh(name, files).vertices)


def fetch(name: str, kind: str) -> pathlib.Path:
    """Fetches a file of a released mesh into the cache unless it is there.

    Args:
        name: one of `RELEASED`.
        kind: mesh, geodesics, symmetry or uv.

    Raises:
        ktn_jax.runtime.downloads.DownloadError: it could not be fetched.
    """
    file = _FILES[kind].format(name=_UV_OF.get(name, name) if kind == "uv" else name)
    target = caches.folder("meshes") / name / pathlib.PurePosixPath(file).name
    return downloads.fetch(downloads.mirrored(f"{_FOLDER}/{file}"), target)


def _load_released(name: str) -> SurfaceMesh:
    folder = caches.folder("meshes") / name
    converted = folder / "mesh.npz"
    if not converted.is_file():
        with locks.hold(folder, wait=True):  # another process may be doing it
            if not converted.is_file():
                _convert(name, converted)
    with npz_files.NpzFile(converted) as stored:
        return _make(name, {key: stored[key] for key in stored}, is_released=True)


def _convert(name: str, target: pathlib.Path) -> None:
    """Fetches the files of a mesh and writes their arrays."""
    path = fetch(name, "mesh")
    arrays = {key: _array(path, pickles.load_arrays(path), key) for key in ("vertices", "faces")}
    if len(arrays["vertices"]) != RELEASED[name]:
        count = len(arrays["vertices"])
        raise ValueError(f"{path}: {count} vertices, wanted {RELEASED[name]}. Get the file again")
    path = fetch(name, "symmetry")
    arrays["mirror"] = _array(path, pickles.load_arrays(path), "vertex_transforms")
    uv = np.asarray(pickles.load_arrays(fetch(name, "uv")))
    if name not in _UV_OF or len(uv) == len(arrays["vertices"]):
        arrays["uv"] = uv
    try:
        _make(name, arrays)
    except ValueError as error:
        raise ValueError(f"{target.parent}: {error}. Remove the folder to get it again") from error
    with atomic_files.replacing(target) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its second parameter is a bool


def _make(name: str, arrays: Mapping[str, np.ndarray], is_released: bool = False) -> SurfaceMesh:
    return SurfaceMesh(
        name,
        arrays["vertices"],
        arrays["faces"],
        uv=arrays.get("uv"),
        mirror=arrays.get("mirror"),
        is_released=is_released,
    )


def _array(path: pathlib.Path, content: Any, key: str) -> np.ndarray:
    if not isinstance(content, Mapping) or key not in content:
        raise ValueError(f"{path}: wanted a dictionary with {key!r}. Get the file again")
    return np.asarray(content[key])


def _read_own(path: pathlib.Path) -> SurfaceMesh:
    with npz_files.NpzFile(path) as stored:
        missing = [key for key in ("vertices", "faces") if key not in stored]
        if missing:
            raise ValueError(f"{path}: lacks {missing}: a mesh has vertices [V, 3], faces [F, 3]")
        arrays = {key: stored[key] for key in _ARRAYS if key in stored}
    try:
        return _make(path.stem, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
