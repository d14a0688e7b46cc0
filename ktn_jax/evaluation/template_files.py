"""Evaluation templates on disk: the three official files, and this project's own format.

A folder in our format holds `template.npz` (U, V, patch, row of the table, and if known the
vertices) and `geodesics.npy`, the condensed table, which is memory mapped: the 27,554 vertices of
the official one make 1.5 GB, of which an evaluation touches what it needs. The official table is a
pickle; it is converted once, without running code from it.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ktn_jax.body.evaluation_mesh import make_evaluation_mesh
from ktn_jax.body.geodesics import condensed_geodesics
from ktn_jax.body.procedural import assembly
from ktn_jax.body.surface import Template
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.geodesic_similarity import EvaluationTemplate
from ktn_jax.runtime import checksums, locks, mat_files, npy_files, npz_files
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.pickles import load_arrays

SURFACE_FILE = "template.npz"
GEODESICS_FILE = "geodesics.npy"
UV_FILE, INDEX_FILE, DISTANCE_FILE = OFFICIAL_FILES = (
    "SMPL_subdiv.mat",
    "SMPL_SUBDIV_TRANSFORM.mat",
    "Pdist_matrix.pkl",
)
CONVERTED_FOLDER = "ktn_template"
OFFICIAL_VERTICES = 27_554  # the mid-point subdivision of 6,890 vertices and 20,664 edges
_WRITE_BLOCK = 1 << 24
_CHECKSUM = "geodesics_crc32"


def load_evaluation_template(
    folder: str | pathlib.Path, *, verify: bool = True
) -> EvaluationTemplate:
    """Opens an evaluation template.

    Args:
        folder: in our format, or with the three official files. Those are converted on the first
            call, into the sub-folder `ktn_template`.
        verify: compare the table with its checksum, which reads all of it.

    Returns:
        The template; its table is memory mapped.

    Raises:
        EvaluationError: files are missing, damaged or do not belong together.
    """
    folder = pathlib.Path(folder)
    if (folder / SURFACE_FILE).is_file():
        return _open_template(folder, verify)
    missing = [name for name in OFFICIAL_FILES if not (folder / name).is_file()]
    if missing:
        raise EvaluationError(
            f"{folder} holds no evaluation template: neither {SURFACE_FILE} and {GEODESICS_FILE}, "
            f"nor the official files ({', '.join(missing)} missing)"
        )
    converted = folder / CONVERTED_FOLDER
    if not (converted / SURFACE_FILE).is_file():
        try:
            with locks.hold(converted, wait=True):  # another evaluation may be doing it
                if not (converted / SURFACE_FILE).is_file():
                    convert_official_files(folder, converted)
        except OSError as error:
            raise EvaluationError(
                f"{converted}: cannot write the converted template ({error}); convert the files "
                "to a folder that can be written, and name that one"
            ) from error
    return _open_template(converted, verify)


def convert_official_files(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    expected_sha256: Mapping[str, str] | None = None,
) -> None:
    """Converts the three files of the DensePose evaluation to our format.

    No hashes of these files are published, so their hashes are written to the result and shown in
    reports. Pass `expected_sha256` to check them.

    Args:
        source: folder with `SMPL_subdiv.mat`, `SMPL_SUBDIV_TRANSFORM.mat` and `Pdist_matrix.pkl`.
        target: folder to write.
        expected_sha256: hash by file name, checked before anything is read.

    Raises:
        EvaluationError: a file is missing, has another hash or lacks an array.
    """
    source = pathlib.Path(source)
    hashes = {}
    for name in OFFICIAL_FILES:
        if not (source / name).is_file():
            raise EvaluationError(f"{source / name}: no such file")
        hashes[name] = _sha256(source / name)
        expected = (expected_sha256 or {}).get(name, hashes[name])
        if hashes[name] != expected:
            raise EvaluationError(
                f"{source / name}: sha256 {hashes[name]}, expected {expected}; get it again"
            )
    surface = _load_mat(
        source / UV_FILE, ("U_subdiv", "V_subdiv", "Part_ID_subdiv"), whole=("Part_ID_subdiv",)
    )
    (index,) = _load_mat(source / INDEX_FILE, ("index",), whole=("index",))
    try:
        table = load_arrays(source / DISTANCE_FILE)["Pdist_matrix"]
        distances = np.asarray(table).reshape(-1)
        if distances.dtype.kind != "f":
            raise TypeError(f"distances of type {distances.dtype}")
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{source / DISTANCE_FILE}: wanted {{'Pdist_matrix': array}} ({error})"
        ) from error
    is_official = len(surface[0]) == len(index) and int(index.max()) == OFFICIAL_VERTICES
    write_template(
        target,
        u=surface[0],
        v=surface[1],
        part=surface[2],
        row=index - 1,  # MATLAB counts from 1
        geodesics=(distances[i : i + _WRITE_BLOCK] for i in range(0, len(distances), _WRITE_BLOCK)),
        num_distances=len(distances),
        dtype=distances.dtype,
        origin="DensePose evaluation files" if is_official else "files in the DensePose layout",
        is_official=is_official,
        source_sha256=hashes,
    )


def write_body_template(
    target: str | pathlib.Path, body: Template, origin: str, subdivided: bool = True
) -> None:
    """Makes the evaluation template of any body surface, with distances along its edges.

    Args:
        target: folder to write.
        body: the project's own body, or a user's body with the published charts.
        origin: which body, for reports. The result is always marked as not comparable with
            published numbers: those are measured with one table.
        subdivided: split every edge once, as the published evaluation does; for the project's body
            sixteen times the table (0.3 GB) and minutes.

    Raises:
        EvaluationError: the surface has parts that do not touch.
    """
    mesh = make_evaluation_mesh(body, subdivided)
    count = len(mesh.vertices)
    write_template(
        target,
        u=mesh.u,
        v=mesh.v,
        part=mesh.patch,
        row=mesh.chart_to_vertex,
        geodesics=condensed_geodesics(mesh.vertices, mesh.faces),
        num_distances=count * (count - 1) // 2,
        origin=origin,
        vertices=mesh.vertices[mesh.chart_to_vertex],
    )


def ensure_own_template(folder: str | pathlib.Path, subdivided: bool = False) -> None:
    """Makes the evaluation template of the project's procedural body unless it exists.

    Args:
        folder: to write it into.
        subdivided: see `write_body_template`.
    """
    if not (pathlib.Path(folder) / SURFACE_FILE).is_file():
        body = assembly.make_body().template
        write_body_template(folder, body, "the project's procedural body", subdivided)


def write_template(
    target: str | pathlib.Path,
    *,
    u: np.ndarray,
    v: np.ndarray,
    part: np.ndarray,
    row: np.ndarray,
    geodesics: Iterable[np.ndarray],
    num_distances: int,
    origin: str,
    dtype: np.dtype | type = np.float32,
    is_official: bool = False,
    vertices: np.ndarray | None = None,
    source_sha256: Mapping[str, str] | None = None,
) -> None:
    """Writes a template in our format.

    Args:
        target: folder to write.
        u: [N] first chart coordinate of every vertex, in [0, 1].
        v: [N] second chart coordinate.
        part: [N] patch 1..24.
        row: [N] row of the table for every vertex, from 0.
        geodesics: blocks of the condensed table in metres, in order: (1, 0), (2, 0), (2, 1), ...
            Only one block is in memory at a time.
        num_distances: length of the whole table.
        origin: where the template comes from, for reports.
        dtype: of the table on disk.
        is_official: whether scores can be compared with published ones.
        vertices: [N, 3] positions in metres, for the pictures of reports.
        source_sha256: hash of every source file, by name.

    Raises:
        EvaluationError: the arrays do not belong together, or the disk is full; nothing is left
            on it.
    """
    target = pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    num_bytes = num_distances * np.dtype(dtype).itemsize
    _check_space(target, num_bytes)
    arrays: dict[str, np.ndarray] = {
        "u": np.asarray(u, np.float64).reshape(-1),
        "v": np.asarray(v, np.float64).reshape(-1),
        "part": np.asarray(part, np.uint8).reshape(-1),
        "row": np.asarray(row, np.int64).reshape(-1),
    }
    if vertices is not None:
        arrays["vertices"] = np.asarray(vertices, np.float64)
    meta: dict[str, Any] = {
        "origin": origin,
        "is_official": is_official,
        "sha256": dict(source_sha256 or {}),
    }
    try:
        with replacing(target / GEODESICS_FILE) as path:
            blocks = _checked(geodesics, num_distances, target)
            npy_files.write_blocks(path, blocks, (num_distances,), dtype)
            table = np.load(path, mmap_mode="r", allow_pickle=False)
            _template(arrays, table, meta)  # checks that the arrays belong together
            del table
            meta[_CHECKSUM] = checksums.file_checksum(path)
        with replacing(target / SURFACE_FILE) as path:
            content: dict[str, Any] = {"meta": json.dumps(meta), **arrays}
            np.savez(path, **content)
    except OSError as error:
        raise EvaluationError(
            f"{target}: the template cannot be written ({error.strerror}); it takes "
            f"{_megabytes(num_bytes)} of disk: name another folder, or make room"
        ) from error


def _check_space(folder: pathlib.Path, num_bytes: int) -> None:
    """Raises EvaluationError where a table does not fit, before the hours of computing it."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise EvaluationError(
            f"{folder}: the template takes {_megabytes(num_bytes)} of disk, of which "
            f"{_megabytes(free)} are free: name another folder, or make room"
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _checked(
    blocks: Iterable[np.ndarray], count: int, target: pathlib.Path
) -> Iterator[np.ndarray]:
    """Yields the blocks; EvaluationError where they are not `count` distances."""
    done = 0
    for block in blocks:
        done += len(block)
        if done > count:
            raise EvaluationError(f"{target}: more than {count} distances came")
        if not (np.isfinite(block).all() and (block >= 0).all()):
            raise EvaluationError(f"{target}: a distance is negative or not finite")
        yield block
    if done != count:
        raise EvaluationError(f"{target}: {done} distances came, {count} wanted")


def _open_template(folder: pathlib.Path, verify: bool) -> EvaluationTemplate:
    try:
        with npz_files.NpzFile(folder / SURFACE_FILE) as stored:
            arrays = {name: stored[name] for name in stored if name != "meta"}
            meta = json.loads(str(stored["meta"]))
        # Templates of earlier versions have none.
        expected = meta.get(_CHECKSUM) if verify else None
        if expected is not None and checksums.file_checksum(folder / GEODESICS_FILE) != expected:
            raise ValueError(f"{GEODESICS_FILE} is not what was written: its checksum differs")
        geodesics = np.load(folder / GEODESICS_FILE, mmap_mode="r", allow_pickle=False)
        return _template(arrays, geodesics, meta)
    except EvaluationError:
        raise
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on damaged files
        raise EvaluationError(
            f"{folder}: {SURFACE_FILE} and {GEODESICS_FILE} cannot be read ({error!s:.500}); "
            "make the template again"
        ) from error


def _template(
    arrays: Mapping[str, np.ndarray], geodesics: np.ndarray, meta: Mapping[str, Any]
) -> EvaluationTemplate:
    return EvaluationTemplate(
        u=arrays["u"],
        v=arrays["v"],
        part=arrays["part"],
        row=arrays["row"],
        geodesics=geodesics,
        origin=meta["origin"],
        is_official=meta["is_official"],
        vertices=arrays.get("vertices"),
        source_sha256=meta["sha256"],
    )


def _load_mat(
    path: pathlib.Path, names: tuple[str, ...], whole: tuple[str, ...]
) -> list[np.ndarray]:
    try:
        content = mat_files.read_arrays(path, names)
        content |= {name: mat_files.whole_numbers(path, name, content[name]) for name in whole}
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    return [content[name].reshape(-1) for name in names]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
