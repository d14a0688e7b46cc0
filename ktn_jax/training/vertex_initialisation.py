"""What the embeddings of a mesh's vertices start from: a file, or smooth functions on the mesh."""

import pathlib
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ktn_jax.body import mesh_tables
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.runtime import caches, downloads, npz_files, pickles
from ktn_jax.training.embeddings import load_mesh

LAPLACIAN = "laplacian"
_ARRAYS = ("features", "embeddings")


def initial_vertices(
    config: ConfigDict, known: Collection[str] = ()
) -> dict[str, dict[str, np.ndarray]]:
    """Makes what `training.vertex_init` asks for.

    Args:
        config: a whole configuration.
        known: paths of parameters that the weights have, such as "params/embedder/body/features";
            nothing is made for those.

    Returns:
        Parameters of the embedders, [V, num_features] or [num_features or V, channels], by mesh and
        name; random ones are not in it. Nothing for a model of charts, which has no embedders.

    Raises:
        ValueError: not one for each mesh, features for a mesh without any, or a file that is
            damaged or has arrays of other shapes. The message names the mesh and the file.
        FileNotFoundError: a file is not there.
        ktn_jax.runtime.downloads.DownloadError: one could not be fetched.
    """
    meshes, chosen = config.model.meshes, tuple(config.training.vertex_init)
    if not chosen or not has_embeddings(config.model):
        return {}
    names = tuple(meshes.names)
    if len(chosen) != len(names):
        raise ValueError(f"training.vertex_init {chosen}: one for each of {names}, or ()")
    found: dict[str, dict[str, np.ndarray]] = {}
    for index, (name, source) in enumerate(zip(names, chosen, strict=True)):
        shapes = _shapes(config, index)
        missing = [key for key in shapes if f"params/embedder/{name}/{key}" not in known]
        if not source or not missing:
            continue
        arrays = _laplacian(meshes, name) if source == LAPLACIAN else _read(name, source)
        found[name] = {}
        for key in missing:
            if key in arrays:
                array = np.asarray(arrays[key], np.float32)
                if array.shape != shapes[key] or not np.isfinite(array).all():
                    raise ValueError(
                        f"training.vertex_init: {key} of {name} from {source} must be finite "
                        f"{shapes[key]}, got {array.shape}"
                    )
                found[name][key] = array
    return found


def _shapes(config: ConfigDict, index: int) -> dict[str, tuple[int, int]]:
    """The shapes of the parameters of one mesh's embedder."""
    meshes, channels = config.model.meshes, config.model.predictor.embedding_channels
    vertices, features = meshes.num_vertices[index], meshes.num_features[index]
    if not features:
        return {"embeddings": (vertices, channels)}
    return {"features": (vertices, features), "embeddings": (features, channels)}


def _laplacian(meshes: ConfigDict, name: str) -> dict[str, np.ndarray]:
    number = meshes.num_features[tuple(meshes.names).index(name)]
    if not number:
        raise ValueError(
            f"training.vertex_init: {LAPLACIAN!r} makes features, and model.meshes.num_features of "
            f"{name} is 0"
        )
    return {"features": mesh_tables.load_features(load_mesh(meshes, name), number)}


def _read(name: str, source: str) -> dict[str, Any]:
    """Reads the arrays of a file or address."""
    path = pathlib.Path(source)
    if "://" in source:
        file = urllib.parse.urlsplit(source).path.rpartition("/")[2]
        target = caches.folder("meshes") / name / file
        path = downloads.fetch(downloads.mirrored(source), target)
    if path.suffix == ".npz":
        with npz_files.NpzFile(path) as stored:
            arrays = {key: stored[key] for key in _ARRAYS if key in stored}
    else:
        content = pickles.load_arrays(path)
        is_table = isinstance(content, Mapping)
        arrays = {key: content[key] for key in _ARRAYS if key in content} if is_table else {}
    if not arrays:
        raise ValueError(f"{path}: wanted {' or '.join(_ARRAYS)} of the vertices of {name}")
    return arrays
