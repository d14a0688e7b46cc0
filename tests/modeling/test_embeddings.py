"""Embedding models: confidence, embeddings of vertices, and configurations that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.configs import cse
from ktn_jax.modeling import person_branches
from ktn_jax.modeling.embedding_predictor import EmbeddingPredictor
from ktn_jax.modeling.vertex_embedders import VertexEmbedder


def test_the_confidence_multiplies_the_coarse_map():
    features = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    predictor = EmbeddingPredictor(4, channels=5, has_segm_confidence=True)
    params = jax.jit(predictor.init)(jax.random.key(1), features)
    plain = EmbeddingPredictor(4, channels=5)
    own = {k: v for k, v in params["params"].items() if not k.startswith("coarse_confidence")}
    maps = jax.jit(predictor.apply)(params, features)
    without = jax.jit(plain.apply)({"params": own}, features)
    assert maps.embedding.shape == (2, 12, 12, 5) and maps.coarse_segm.shape == (2, 12, 12, 2)
    assert without.coarse_segm_confidence is None
    assert float(maps.coarse_segm_confidence.min()) > 0.01
    np.testing.assert_allclose(maps.embedding, without.embedding, rtol=1e-6)
    np.testing.assert_allclose(
        maps.coarse_segm, without.coarse_segm * maps.coarse_segm_confidence, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "learning"),
    [
        ({}, {"embeddings"}),
        ({"num_features": 2}, {"embeddings", "features"}),
        ({"num_features": 2, "trains_features": False}, {"embeddings"}),
        ({"num_features": 2, "trains": False}, set()),
    ],
)
def test_only_what_trains_of_the_vertices_gets_a_gradient(options, learning):
    embedder = VertexEmbedder(num_vertices=4, channels=3, **options)
    variables = embedder.init(jax.random.key(0))
    weights = jnp.arange(12.0).reshape(4, 3)
    gradients = jax.grad(lambda v: (embedder.apply(v) * weights).sum())(variables)["params"]
    assert {name for name, g in gradients.items() if np.asarray(g).any()} == learning
    params = variables["params"]
    product = params["embeddings"]
    if "num_features" in options:
        product = np.asarray(params["features"]) @ product
    expected = product / np.linalg.norm(product, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.apply(variables), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("meshes.names", (), "needs different ones"),
        ("meshes.names", ("a", "a"), "needs different ones"),
        ("meshes.trains", (), r"meshes.trains \(\): one for each of \('body',\)"),
        ("meshes.of_classes", ("cat",), r"of_classes \('cat',\): one of \('body',\)"),
        ("box_head.num_classes", 2, "num_classes 2"),
        ("predictor.num_coarse_channels", 15, "num_coarse_channels 2"),
    ],
)
def test_meshes_that_are_not_described_in_full_are_refused(key, value, message):
    config = cse.get_config("tiny").model
    person_branches.check_tasks(config)
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        person_branches.check_tasks(config)
