"""Vertices of a person's pixels against the original, and search of any number of pixels."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.configs import cse
from ktn_jax.inference import surfaces
from ktn_jax.inference.augmentation import AugmentedPredictor
from ktn_jax.inference.stages import Stages
from ktn_jax.structures import EmbeddingOutputs


@pytest.mark.parity
def test_vertices_in_a_box_are_those_of_the_original(golden_dir):
    with np.load(golden_dir / "ops_vis_cse.npz") as file:
        arrays = {key[4:]: file[key] for key in file.files if key.startswith("cse/")}
    embeddings = jnp.asarray(arrays["vertex_embeddings"])
    count = 0
    while f"{count}/mask" in arrays:
        maps = EmbeddingOutputs(
            coarse_segm=np.ascontiguousarray(arrays["S"][count].transpose(1, 2, 0)),
            embedding=np.ascontiguousarray(arrays["E"][count].transpose(1, 2, 0)),
        )
        mask = arrays[f"{count}/mask"].astype(bool)
        found = surfaces.vertices_in_box(maps, embeddings, mask.shape)
        assert (found.shape, found.dtype) == (mask.shape, np.int32)
        assert ((found >= 0) != mask).mean() <= 5e-4 and 0 < mask.mean() < 1
        vertices = np.where(found >= 0, found, 0)
        assert (vertices != arrays[f"{count}/closest_vertices"]).mean() <= 2e-3
        count += 1
    assert count > 1


def test_any_number_of_pixels_is_searched():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(70, 3)).astype(np.float32)
    own = rng.integers(0, 70, surfaces._PIXELS + 5)
    np.testing.assert_array_equal(surfaces.search(table[own], jnp.asarray(table)), own)
    assert surfaces.search(np.zeros((0, 3), np.float32), jnp.asarray(table)).shape == (0,)


def test_embeddings_of_vertices_are_constants_of_the_weights(draw_variables):
    config = cse.get_config("tiny")
    stages = Stages(config, draw_variables(config))
    table = np.asarray(stages.vertex_embeddings["body"])
    assert table.shape == (config.model.meshes.num_vertices[0], 16)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    # What they were computed from is not kept on the device.
    assert "embedder" not in stages.variables["params"]
    other = draw_variables(config, seed=1)
    stages.replace_variables(other)
    drawn = np.asarray(other["params"]["embedder"]["body"]["embeddings"])
    expected = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(stages.vertex_embeddings["body"], expected, rtol=1e-5)
    again = copy.deepcopy(stages)  # as pickling does
    np.testing.assert_array_equal(again.vertex_embeddings["body"], stages.vertex_embeddings["body"])
    with pytest.raises(
        ValueError, match="need the body's UV symmetry tables, or those of the mesh"
    ):
        AugmentedPredictor(stages, None)
