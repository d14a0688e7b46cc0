"""From embedding maps to the vertices that a person's pixels show."""

import functools

import cv2
import jax
import numpy as np

from ktn_jax.inference.charts import person_mask, resize_maps
from ktn_jax.inference.vertex_search import nearest_by_runs, neighbours_together
from ktn_jax.ops.embeddings import nearest_vertices
from ktn_jax.results.records import BACKGROUND
from ktn_jax.structures import EmbeddingOutputs

Array = jax.Array

_PIXELS = 8192  # that a call searches: people of any size then share one program
# Pixels in a block of it: what fits a CPU's caches, and what keeps other devices busy.
_BLOCKS = {"cpu": 64}
_LARGE_BLOCK = 1024


def vertices_in_box(
    maps: EmbeddingOutputs[np.ndarray],
    vertex_embeddings: Array,
    size_hw: tuple[int, int],
    mask_threshold: float = 0.5,
) -> np.ndarray:
    """Finds the vertex that each pixel of a person's box shows.

    As in detectron2, embeddings are interpolated first and then compared.

    Args:
        maps: of one person, without the leading axis.
        vertex_embeddings: [V, D] of the mesh, on the device.
        size_hw: of the box in pixels.
        mask_threshold: see `charts.person_mask`.

    Returns:
        int32 [h, w], -1 beside the person.
    """
    coarse = resize_maps(maps.coarse_segm, size_hw, cv2.INTER_LINEAR)
    is_person = person_mask(coarse, mask_threshold)
    pixels = resize_maps(maps.embedding, size_hw, cv2.INTER_LINEAR)[is_person]
    order = neighbours_together(is_person)
    nearest = np.empty(len(pixels), np.int32)
    nearest[order] = search(pixels[order], vertex_embeddings)
    found = np.full(size_hw, BACKGROUND, np.int32)
    found[is_person] = nearest
    return found


def search(pixels: np.ndarray, vertex_embeddings: Array) -> np.ndarray:
    """Finds the vertex whose embedding is nearest to each pixel's.

    All vertices are compared, or on a CPU, where pixels that follow each other are alike, those
    that can be nearest; either way the result is exact but for ties in rounding. A number of pixels
    that differs from call to call compiles nothing.

    Args:
        pixels: float32 [N, D], best with neighbours together.
        vertex_embeddings: [V, D], on the device.

    Returns:
        int32 [N], in [0, V). Of pixels that are not finite it is any.
    """
    if jax.default_backend() == "cpu":
        by_runs = nearest_by_runs(pixels, np.asarray(vertex_embeddings))
        if by_runs is not None:
            return by_runs
    found = [np.zeros(0, np.int32)]
    for start in range(0, len(pixels), _PIXELS):
        part = pixels[start : start + _PIXELS]
        padded = np.pad(part, ((0, _PIXELS - len(part)), (0, 0)))
        found.append(np.asarray(_search()(padded, vertex_embeddings))[: len(part)])
    return np.concatenate(found)


def block() -> int:
    """How many pixels `nearest_vertices` should search together on the default device."""
    return _BLOCKS.get(jax.default_backend(), _LARGE_BLOCK)


@functools.cache
def _search() -> jax.stages.Wrapped:
    return jax.jit(functools.partial(nearest_vertices, block=block()))
