"""Losses of embeddings: the vertex at annotated points, and cycles from pixels or meshes and back.

Neverova et al., "Continuous Surface Embeddings", NeurIPS 2020, sections 3 and 4, as detectron2
computes them. N ROIs in a flat batch, P annotated points a person, V vertices of a mesh. Products
of points or pixels with vertices are computed in chunks, and once more for the gradient: 27,554
vertices and the points of a whole batch would fill gigabytes.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from ktn_jax.losses.densepose import DensePoseTargets, people_with_points, point_weights
from ktn_jax.losses.elementwise import softmax_cross_entropy
from ktn_jax.losses.terms import LossTerm, quotient, weighted_mean
from ktn_jax.ops.chart_reads import read_points
from ktn_jax.ops.embeddings import normalise, products

Array = jax.Array

_NO_VERTICES = "an embedding model trains on vertices: the batch has no point_vertex and mesh"
_POINTS = 256  # in a chunk: 28 MB of logits for the largest mesh


@flax.struct.dataclass
class CycleSamples:
    """What the cycle losses draw at random. K meshes, M pixels."""

    pixels: Array  # int32 [N, K, M] cells of the ROI's flattened map, on the person
    is_pixel: Array  # bool [N, K, M] False for padding
    pair: Array  # int32 []: which of the pairs of meshes, (0, 1), (0, 2), ..., (1, 2), ...
    vertices: tuple[Array, ...]  # int32 [min(V, most)] of each mesh


@dataclasses.dataclass(frozen=True)
class PixelCycle:
    """Options of `pixel_cycle_loss`."""

    norm: int = 2
    vertex_temperature: float = 0.05
    pixel_temperature: float = 0.05


def vertex_losses(
    embedding: Array,
    targets: DensePoseTargets,
    vertex_embeddings: Sequence[Array],
    *,
    sigma: float,
    geodesics: Sequence[Array] | None = None,
    geodesic_sigma: float = 0.01,
    dtype: str = "float32",
) -> list[LossTerm]:
    """Computes the cross-entropy of the vertices at annotated points, of each mesh.

    Args:
        embedding: [N, S, S, D] maps of the ROIs.
        targets: their targets, with vertices and meshes.
        vertex_embeddings: [V, D] of each mesh, of length 1.
        sigma: logits are the negative squared distances over this.
        geodesics: [V, V] of each mesh for soft targets, of any floating type: the softmax of the
            negative distances from the annotated vertex over `geodesic_sigma`. None for the
            annotated vertex alone.
        geodesic_sigma: of the soft targets.
        dtype: see `ops.embeddings.products`.

    Returns:
        Means over the points of each mesh that are in their ROIs; 0 of a mesh without points.

    Raises:
        ValueError: the targets have no vertices.
    """
    if targets.point_vertex is None or targets.mesh is None:
        raise ValueError(_NO_VERTICES)
    place = (targets.point_x, targets.point_y, targets.gt_boxes, targets.boxes)
    values, _ = read_points(embedding, *place)
    points = normalise(values).reshape(-1, values.shape[-1])
    weight = point_weights(targets)
    vertices = targets.point_vertex.reshape(-1)
    losses = []
    for number, table in enumerate(vertex_embeddings):
        own = jnp.where(targets.mesh[:, None] == number, weight, 0).reshape(-1)
        entropy = vertex_cross_entropy(
            points,
            vertices,
            own > 0,
            table,
            sigma=sigma,
            geodesics=None if geodesics is None else geodesics[number],
            geodesic_sigma=geodesic_sigma,
            dtype=dtype,
        )
        losses.append(weighted_mean(entropy, own))
    return losses


def vertex_cross_entropy(
    points: Array,
    vertices: Array,
    is_used: Array,
    table: Array,
    *,
    sigma: float,
    geodesics: Array | None = None,
    geodesic_sigma: float = 0.01,
    dtype: str = "float32",
    chunk: int = _POINTS,
) -> Array:
    """Computes the cross-entropy of each point's vertex among all of a mesh.

    Points that are used are computed a chunk at a time, in the forward pass and again in the
    backward pass. Chunks without such points cost nothing.

    Args:
        points: [J, D] embeddings.
        vertices: int [J], each point's vertex; of points that are not used any number.
        is_used: bool [J].
        table: [V, D] embeddings of the vertices.
        sigma: see `vertex_losses`; so are the others.
        geodesics: [V, V] or None.
        geodesic_sigma: of the soft targets.
        dtype: of the factors of products.
        chunk: points that are computed together.

    Returns:
        [J], 0 where not used.
    """
    count = points.shape[0]
    order = jnp.argsort(~is_used, stable=True)  # those in use fill few chunks
    chunks = -(-count // chunk)
    rows = (points, jnp.clip(vertices, 0, table.shape[0] - 1).astype(jnp.int32), is_used)

    def cut(x: Array) -> Array:
        padding = [(0, chunks * chunk - count), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x[order], padding).reshape(chunks, chunk, *x.shape[1:])

    def entropy(points: Array, vertices: Array) -> Array:
        # Without the points' own squares, which are the same in all logits.
        squares = jnp.sum(jnp.square(table), axis=1)
        logits = (2 * products(points, table, dtype) - squares[None]) / sigma
        if geodesics is None:
            return softmax_cross_entropy(logits, vertices)
        nearness = -geodesics[vertices].astype(jnp.float32) / geodesic_sigma
        wanted = jax.nn.softmax(nearness, axis=1)
        return -jnp.sum(wanted * jax.nn.log_softmax(logits, axis=1), axis=1)

    # Around the condition and not in it: what a branch keeps is kept for every chunk, tables too.
    @jax.checkpoint
    def one_chunk(rows: tuple[Array, Array, Array]) -> Array:
        points, vertices, is_used = rows
        values: Array = lax.cond(
            is_used.any(),
            lambda: entropy(points, vertices),
            lambda: jnp.zeros(chunk),
        )
        return jnp.where(is_used, values, 0)

    values = lax.map(one_chunk, jax.tree.map(cut, rows)).reshape(-1)[:count]
    return jnp.zeros(count).at[order].set(values, unique_indices=True)


def pixel_cycle_loss(
    embedding: Array,
    weight: Array,
    has_mesh: Array,
    vertex_embeddings: Sequence[Array],
    samples: CycleSamples,
    options: PixelCycle,
    dtype: str = "float32",
) -> LossTerm:
    """Computes how far pixels get on the way to the vertices of a mesh and back.

    Of M pixels of a person, each goes to vertices with the softmax of its similarities, and each
    vertex back to pixels. The loss is the norm of the probabilities of returning elsewhere times
    the squared distance there, in cells of the map.

    Args:
        embedding: [N, S, S, D] maps of the ROIs.
        weight: [N] of the ROIs.
        has_mesh: bool [K]: meshes that count; every ROI is compared with all of them.
        vertex_embeddings: [V, D] of each of the K meshes, of length 1.
        samples: the pixels of each ROI for each mesh.
        options: of the loss.
        dtype: see `ops.embeddings.products`.

    Returns:
        The mean over ROIs and meshes; 0 without any.
    """
    size = embedding.shape[1]
    flat = embedding.reshape(embedding.shape[0], size * size, -1)

    def one_roi(embedding: Array, pixels: Array, is_pixel: Array, table: Array) -> Array:
        places = jnp.stack([pixels // size, pixels % size], axis=-1).astype(jnp.float32)
        distance = jnp.sum(jnp.square(places[:, None] - places[None]), axis=-1)
        similar = products(normalise(embedding[pixels]), table, dtype)
        to_vertex = jax.nn.softmax(similar / options.vertex_temperature, axis=1)
        to_pixel = jax.nn.softmax(
            jnp.where(is_pixel[:, None], similar / options.pixel_temperature, -jnp.inf), axis=0
        )
        back = products(to_vertex, to_pixel, dtype)
        back = jnp.where(is_pixel[:, None] & is_pixel[None], back, 0)
        return _norm(distance * back, options.norm)

    losses = []
    for number, table in enumerate(vertex_embeddings):
        pixels, is_pixel = samples.pixels[:, number], samples.is_pixel[:, number]
        # Without pixels the softmax has nothing to choose from: such an ROI's loss is 0.
        is_used = has_mesh[number] & (weight > 0) & is_pixel.any(1)

        @jax.checkpoint
        def of_roi(row: tuple[Array, Array, Array, Array], table: Array = table) -> Array:
            embedding, pixels, is_pixel, is_used = row
            loss: Array = lax.cond(
                is_used,
                lambda: one_roi(embedding, pixels, is_pixel, table),
                lambda: jnp.zeros(()),
            )
            return loss

        losses.append(lax.map(of_roi, (flat, pixels, is_pixel, is_used)))
    weights = weight[:, None] * has_mesh[None].astype(weight.dtype)
    return weighted_mean(jnp.stack(losses, axis=1), weights)


def mesh_pairs(number: int) -> list[tuple[int, int]]:
    """Pairs of different ones of `number` meshes, in the order of `CycleSamples.pair`."""
    return [(a, b) for a in range(number) for b in range(a + 1, number)]


def shape_cycle_loss(
    vertex_embeddings: Sequence[Array],
    geodesics: Sequence[Array],
    samples: CycleSamples,
    *,
    temperature: float,
    norm: int = 2,
) -> LossTerm:
    """Computes how far vertices get on the way to the vertices of another mesh and back.

    Args:
        vertex_embeddings: [V, D] of each mesh, of length 1.
        geodesics: [V, V] of each mesh.
        samples: a pair of meshes, and vertices of each; their number bounds the memory.
        temperature: of the softmax of similarities.
        norm: of the probabilities times the geodesic distances, a sum of powers.

    Returns:
        The sum of the norms of both meshes' cycles; parts of a batch have the same.
    """

    def of_pair(a: int, b: int) -> Array:
        (first, first_lengths), (second, second_lengths) = (
            _sampled(vertex_embeddings[i], geodesics[i], samples.vertices[i]) for i in (a, b)
        )
        logits = products(first, second) / temperature
        there, back = jax.nn.softmax(logits, axis=1), jax.nn.softmax(logits.T, axis=1)
        cycles = (products(there, back.T), products(back, there.T))
        return _norm(first_lengths * cycles[0], norm) + _norm(second_lengths * cycles[1], norm)

    branches = [
        jax.checkpoint(lambda a=a, b=b: of_pair(a, b))
        for a, b in mesh_pairs(len(vertex_embeddings))
    ]
    return quotient(lax.switch(samples.pair, branches), 1)


def _sampled(embeddings: Array, geodesics: Array, vertices: Array) -> tuple[Array, Array]:
    lengths = geodesics[vertices[:, None], vertices[None]]
    return embeddings[vertices], lengths.astype(jnp.float32)


def _norm(matrix: Array, power: int) -> Array:
    """The p-norm of all elements of a matrix that are not negative; its gradient at 0 is 0."""
    total = jnp.sum(matrix**power)
    return jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / power), 0)


def has_meshes(targets: DensePoseTargets, number: int) -> Array:
    """Marks those of `number` meshes that ROIs with annotated points have, bool [number].

    Raises:
        ValueError: the targets have no meshes.
    """
    if targets.mesh is None:
        raise ValueError(_NO_VERTICES)
    has_points = people_with_points(targets) > 0
    return jnp.any(
        has_points[:, None] & (targets.mesh[:, None] == jnp.arange(number)[None]), axis=0
    )
