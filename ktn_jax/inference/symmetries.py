"""What mirrors the surfaces of a model: tables of its charts, or of its meshes."""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.modeling.person_branches import has_charts, has_embeddings

# Of the charts, or by mesh the vertex [V] that takes each one's place in a mirror.
Symmetry = UVSymmetry | Mapping[str, np.ndarray]


def load_symmetry(config: ConfigDict) -> Symmetry | None:
    """Loads the tables that mirror the charts or the meshes that a model was trained on.

    Args:
        config: its whole configuration.

    Returns:
        The tables of the project's own body for synthetic people, else of the file
        `data.symmetry`; of an embedding model those of its meshes; None where no view is mirrored,
        and for a model without either.

    Raises:
        ValueError: the file is not named, not there, or cannot be used; or a mesh is not symmetric.
        ktn_jax.runtime.downloads.DownloadError: a mesh could not be fetched.
    """
    if not needs_symmetry(config):
        return None
    if has_embeddings(config.model):
        return _mesh_mirrors(config.model.meshes)
    # Photos without mirrored views need none of these, which take tenths of a second to import.
    from ktn_jax.body import symmetry
    from ktn_jax.body.loading import load_uv_symmetry

    data = config.data
    if data.source == "synthetic":
        from ktn_jax.body.procedural import assembly

        return symmetry.uv_symmetry_tables(assembly.make_body().template.mirror_iuv)
    advice = (
        "mirrored views need it: name UV_symmetry_transforms.mat with --set data.symmetry=FILE, "
        "or leave them out with --set test.augmentation.flip=False"
    )
    if not data.symmetry:
        raise ValueError(f"data.symmetry is not set; {advice}")
    try:
        return load_uv_symmetry(data.symmetry)
    except FileNotFoundError as error:
        raise ValueError(f"{data.symmetry}: no such file; {advice}") from error


def needs_symmetry(config: ConfigDict) -> bool:
    """Whether averaging over the views of a configuration needs a symmetry."""
    has_surface = has_charts(config.model) or has_embeddings(config.model)
    return bool(config.test.augmentation.flip and has_surface)


def _mesh_mirrors(section: ConfigDict) -> dict[str, np.ndarray]:
    """The mirror tables [V] of the meshes that a model finds."""
    from ktn_jax.body.meshes import load_mesh

    advice = "leave mirrored views out with --set test.augmentation.flip=False"
    mirrors = {}
    sizes = dict(zip(section.names, section.num_vertices, strict=True))
    for name in dict.fromkeys(section.of_classes):
        mirror, number = load_mesh(name, section.files).mirror, sizes[name]
        if mirror is None:
            raise ValueError(f"mesh {name} has no mirror table, as it is not symmetric: {advice}")
        if len(mirror) != number:
            raise ValueError(
                f"mesh {name} has {len(mirror)} vertices and the model {number}: name the mesh "
                f"that it was trained on in model.meshes.files, or {advice}"
            )
        mirrors[name] = mirror
    return mirrors
