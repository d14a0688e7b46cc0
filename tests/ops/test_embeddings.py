"""Lengths of embeddings, and the nearest vertex against brute force and the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.ops import embeddings


@pytest.mark.parametrize(("pixels", "vertices"), [(1, 1), (70, 63), (64, 129)])
def test_the_nearest_vertex_is_that_of_brute_force(pixels, vertices):
    rng = np.random.default_rng(pixels)
    x, v = (rng.normal(size=(n, 5)).astype(np.float32) for n in (pixels, vertices))
    v *= rng.uniform(0.2, 3, (vertices, 1)).astype(np.float32)  # lengths count
    expected = np.square(x[:, None].astype(float) - v[None].astype(float)).sum(-1).argmin(1)
    found = embeddings.nearest_vertices(jnp.asarray(x), jnp.asarray(v), block=32)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


def test_of_equal_vertices_the_first_is_found():
    v = jnp.asarray(np.eye(3, dtype=np.float32)[[2, 0, 1, 0, 2]])
    found = embeddings.nearest_vertices(jnp.eye(3), v)
    np.testing.assert_array_equal(found, [1, 2, 0])


def test_the_search_of_the_largest_mesh_needs_little_memory():
    """All distances of 8,192 pixels would take 900 MB."""
    shapes = (jax.ShapeDtypeStruct((n, 16), jnp.float32) for n in (8192, 27554))
    compiled = jax.jit(embeddings.nearest_vertices).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 30e6


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(5, 2\)"):
        embeddings.nearest_vertices(jnp.zeros((3, 4)), jnp.zeros((5, 2)))
    with pytest.raises(ValueError, match="no vertices"):
        embeddings.nearest_vertices(jnp.zeros((3, 4)), jnp.zeros((0, 4)))


@pytest.mark.parity
def test_lengths_are_those_of_the_original(golden_dir):
    with np.load(golden_dir / "ops_vis_cse.npz") as file:
        x, expected = file["cse/unnormalised"], file["cse/normalised"]
        a, b = file["cse/pts1"], file["cse/pts2"]
        distances = file["cse/squared_distances"]
    np.testing.assert_allclose(embeddings.normalise(jnp.asarray(x)), expected, rtol=1e-6)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None]
    products = embeddings.products(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(squares - 2 * products, distances, rtol=1e-5, atol=1e-5)


def test_embeddings_without_direction_stay_zero_and_differentiable():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(embeddings.normalise(x), [[0, 0], [0.6, 0.8]], rtol=1e-6)
    gradient = jax.grad(lambda x: embeddings.normalise(x).sum())(x)
    assert np.isfinite(gradient).all()
    # Below 1e-6 they are divided by a constant.
    np.testing.assert_allclose(gradient[0], 1e6, rtol=1e-5)


def test_rounded_factors_are_near():
    a, b = (jax.random.normal(jax.random.key(n), (4, 16)) for n in (0, 1))
    exact, rounded = embeddings.products(a, b), embeddings.products(a, b, "bfloat16")
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1
