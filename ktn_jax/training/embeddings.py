"""Training of embedding models: what their losses draw, and the losses of a batch.

B images, K ROIs of an image, N = B * K. Meshes are those of `model.meshes.names`, in that order.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.body import mesh_tables
from ktn_jax.body import meshes as body_meshes
from ktn_jax.body.meshes import SurfaceMesh
from ktn_jax.losses import embeddings as losses
from ktn_jax.losses.densepose import coarse_segm_loss, people_with_points
from ktn_jax.losses.embeddings import CycleSamples, PixelCycle
from ktn_jax.losses.terms import LossTerm, is_on
from ktn_jax.structures import EmbeddingOutputs
from ktn_jax.training import targets
from ktn_jax.training.distributed import Batch
from ktn_jax.training.targets import People, Samples

Array = jax.Array


def draw_cycles(
    key: Array,
    image_keys: Array,
    people: People,
    batch: Batch,
    config: ConfigDict,
    loss: ConfigDict,
) -> CycleSamples | None:
    """Draws the pixels, the pair of meshes and the vertices that the cycle losses compare.

    detectron2 goes through all pairs of meshes before it shuffles them again; here every step draws
    its pair by itself.

    Args:
        key: PRNG key of the pair and the vertices, which all images of a step share.
        image_keys: [B] PRNG keys of the images' pixels.
        people: ROIs that train the DensePose branch.
        batch: a training batch.
        config: the `model` part of a configuration.
        loss: its `loss` part.

    Returns:
        Samples; None if both losses are off.

    Raises:
        ValueError: a shape cycle with a single mesh, or a pixel cycle and no masks in the batch.
    """
    has_pixels, has_shapes = is_on(loss.pixel_cycle.weight), is_on(loss.shape_cycle.weight)
    if not has_pixels and not has_shapes:
        return None
    meshes = config.meshes
    pair_key, vertex_key = jax.random.split(key)
    rois = people.weight.size
    pixels = jnp.zeros((rois, len(meshes.names), 1), jnp.int32)
    is_pixel = jnp.zeros(pixels.shape, bool)
    if has_pixels:
        targets.require_masks(batch, "loss.pixel_cycle")
        size = 2 * config.densepose_head.pooled_size * config.predictor.up_scale
        on_person = targets.mask_targets(people, batch, size).labels.reshape(rois, -1)
        pixels, is_pixel = _draw_pixels(
            image_keys, on_person, people, len(meshes.names), loss.pixel_cycle.num_pixels
        )
    pairs = losses.mesh_pairs(len(meshes.names))
    if has_shapes and not pairs:
        raise ValueError("loss.shape_cycle compares two meshes: model.meshes.names has one")
    pair = jax.random.randint(pair_key, (), 0, max(len(pairs), 1))
    keys = jax.random.split(vertex_key, len(meshes.names))
    most = loss.shape_cycle.max_vertices
    vertices = tuple(
        jnp.arange(number) if number <= most else jax.random.permutation(key, number)[:most]
        for key, number in zip(keys, meshes.num_vertices, strict=True)
    )
    return CycleSamples(pixels, is_pixel, pair, vertices if has_shapes else ())


def _draw_pixels(
    keys: Array, on_person: Array, people: People, num_meshes: int, number: int
) -> tuple[Array, Array]:
    """Draws `number` cells of each ROI [N, cells] for each mesh, or all where there are fewer."""
    shape = (people.weight.shape[1], num_meshes, on_person.shape[-1])
    scores = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
    scores = jnp.where(on_person[:, None], scores.reshape(-1, *shape[1:]), -1)
    best, pixels = jax.lax.top_k(scores, min(number, shape[-1]))
    return pixels.astype(jnp.int32), best >= 0


def embedding_losses(
    config: ConfigDict,
    loss: ConfigDict,
    outputs: EmbeddingOutputs[Array],
    vertex_embeddings: Mapping[str, Array],
    samples: Samples,
    batch: Batch,
    *,
    coarse_labels: Array | None = None,
    geodesics: Mapping[str, Array] | None = None,
    batch_axis: str = "",
) -> dict[str, LossTerm]:
    """Computes the weighted losses of an embedding model.

    Args:
        config: the `model` part of a configuration.
        loss: its `loss` part.
        outputs: maps of the N ROIs.
        vertex_embeddings: [V, D] of each mesh.
        samples: those ROIs, and what the cycles compare.
        batch: the batch that they are of.
        coarse_labels: see `forward.loss_terms`.
        geodesics: distances [V, V] along each mesh, where a loss needs them.
        batch_axis: see `Compute`.

    Returns:
        "coarse_segm", "embedding_MESH" of every mesh, and of cycle losses that are on
        "shape_cycle" and "pixel_cycle". As in detectron2 all are 0 where no ROI of the batch has an
        annotated point.

    Raises:
        ValueError: geodesic distances are needed and not given, or the batch has no vertices, or no
            masks for losses that need them.
    """
    names, cycles = tuple(config.meshes.names), samples.cycles
    mask_size = outputs.coarse_segm.shape[1] if loss.coarse_segm_from_masks else None
    people = samples.people["densepose"]
    taught = targets.densepose_targets(people, batch, mask_size, loss.dense_weight)
    if coarse_labels is not None:
        taught = dataclasses.replace(taught, mask_labels=coarse_labels)
    tables = [vertex_embeddings[name] for name in names]
    options = loss.embedding
    lengths = _lengths(names, geodesics) if needs_geodesics(loss) else None
    of_meshes = losses.vertex_losses(
        outputs.embedding,
        taught,
        tables,
        sigma=options.sigma,
        geodesics=lengths if options.has_soft_targets else None,
        geodesic_sigma=options.geodesic_sigma,
        dtype=options.matmul_dtype,
    )
    coarse = coarse_segm_loss(outputs.coarse_segm, taught, loss.coarse_segm_from_masks)
    weighted = {"coarse_segm": coarse.scaled(loss.coarse_segm_weight)}
    for name, term in zip(names, of_meshes, strict=True):
        weighted[f"embedding_{name}"] = term.scaled(options.weight)
    if is_on(loss.shape_cycle.weight) and cycles is not None and lengths is not None:
        cycle = loss.shape_cycle
        term = losses.shape_cycle_loss(
            tables, lengths, cycles, temperature=cycle.temperature, norm=cycle.norm
        )
        weighted["shape_cycle"] = term.scaled(cycle.weight)
    if is_on(loss.pixel_cycle.weight) and cycles is not None:
        cycle = loss.pixel_cycle
        is_in_batch = losses.has_meshes(taught, len(names))
        if batch_axis:
            is_in_batch = jax.lax.psum(is_in_batch.astype(jnp.float32), batch_axis) > 0
        term = losses.pixel_cycle_loss(
            outputs.embedding,
            taught.weight,
            jnp.ones_like(is_in_batch) if cycle.has_all_meshes else is_in_batch,
            tables,
            cycles,
            PixelCycle(cycle.norm, cycle.vertex_temperature, cycle.pixel_temperature),
            dtype=options.matmul_dtype,
        )
        weighted["pixel_cycle"] = term.scaled(cycle.weight)
    points = people_with_points(taught).sum()
    return {name: term.learnt_from(points) for name, term in weighted.items()}


def needs_geodesics(loss: ConfigDict) -> bool:
    """Whether the `loss` part of a configuration compares distances along meshes."""
    return bool(loss.embedding.has_soft_targets) or is_on(loss.shape_cycle.weight)


def load_geodesics(config: ConfigDict) -> dict[str, np.ndarray] | None:
    """Opens the distances along the meshes of an embedding model.

    Args:
        config: a whole configuration.

    Returns:
        [V, V] float16 by mesh, mapped into memory; None where no loss needs them.

    Raises:
        ValueError: an unknown mesh, one of another number of vertices, or a damaged file.
        ktn_jax.runtime.downloads.DownloadError: a released one could not be fetched.
    """
    if not needs_geodesics(config.loss):
        return None
    return {
        name: mesh_tables.load_geodesics(load_mesh(config.model.meshes, name))
        for name in config.model.meshes.names
    }


def load_mesh(meshes: ConfigDict, name: str) -> SurfaceMesh:
    """Loads a mesh of a model.

    Args:
        meshes: the `model.meshes` part of a configuration.
        name: one of its names.

    Raises:
        ValueError: an unknown mesh, one of another number of vertices, or a damaged file.
        ktn_jax.runtime.downloads.DownloadError: a released one could not be fetched.
    """
    mesh = body_meshes.load_mesh(name, tuple(meshes.files))
    wanted = meshes.num_vertices[tuple(meshes.names).index(name)]
    if len(mesh.vertices) != wanted:
        raise ValueError(
            f"model.meshes.num_vertices: {name} has {len(mesh.vertices)} vertices, not {wanted}"
        )
    return mesh


def _lengths(names: tuple[str, ...], geodesics: Mapping[str, Array] | None) -> list[Array]:
    missing = [name for name in names if name not in (geodesics or {})]
    if geodesics is None or missing:
        raise ValueError(
            "loss.embedding.has_soft_targets and loss.shape_cycle need the geodesic distances of "
            f"the meshes {missing}"
        )
    return [jnp.asarray(geodesics[name]) for name in names]
