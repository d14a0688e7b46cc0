"""What the vertices of an embedding model start from: files, addresses, smooth functions."""

import pickle

import numpy as np
import pytest

from ktn_jax.body import evaluation_mesh, laplacian
from ktn_jax.configs import cse
from ktn_jax.runtime import downloads
from ktn_jax.training import embeddings
from ktn_jax.training.vertex_initialisation import initial_vertices

_FACES = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two meshes: a ball of 18 vertices with features, and one embedded directly."""
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]])
    edges, faces = evaluation_mesh.subdivide(np.array(_FACES), 6)
    vertices = np.concatenate([corners, corners[edges].mean(axis=1)])
    np.savez(tmp_path / "ball.npz", vertices=vertices, faces=faces)
    config = cse.get_config("tiny")
    cse.use_meshes(config, {"ball": 18, "cube": 8})
    config.model.meshes.update(
        {"num_features": (4, 0), "files": (str(tmp_path / "ball.npz"),)},
    )
    config.model.predictor.embedding_channels = 3
    return config


def test_each_mesh_starts_from_what_is_named(config, tmp_path, file_server, monkeypatch):
    rng = np.random.default_rng(0)
    features, mapping = rng.normal(size=(18, 4)), rng.normal(size=(4, 3))
    direct = rng.normal(size=(8, 3))
    np.savez(tmp_path / "cube.npz", embeddings=direct)
    config.training.vertex_init = ("laplacian", str(tmp_path / "cube.npz"))
    found = initial_vertices(config)
    assert set(found["ball"]) == {"features"}
    ball = embeddings.load_mesh(config.model.meshes, "ball")
    expected = laplacian.eigenfunctions(ball.vertices, ball.faces, 4)
    np.testing.assert_array_equal(found["ball"]["features"], expected)
    np.testing.assert_allclose(found["cube"]["embeddings"], direct, rtol=1e-6)
    # As detectron2's INIT_FILE, from the server, once.
    monkeypatch.setenv("KTN_MODELS_URL", file_server.url)
    file_server.files["/data/cse/lbo/phi.pkl"] = pickle.dumps(
        {"features": features, "embeddings": mapping}, 2
    )
    config.training.vertex_init = (f"{downloads.SERVER}/data/cse/lbo/phi.pkl", "")
    for _ in range(2):
        found = initial_vertices(config)
        np.testing.assert_allclose(found["ball"]["features"], features, rtol=1e-6)
        np.testing.assert_allclose(found["ball"]["embeddings"], mapping, rtol=1e-6)
    assert set(found) == {"ball"} and len(file_server.requests) == 1
    # What the weights have needs no file.
    known = {f"params/embedder/ball/{name}" for name in ("features", "embeddings")}
    config.training.vertex_init = ("nowhere.pkl", "")
    assert initial_vertices(config, known) == {}
    with pytest.raises(FileNotFoundError):
        initial_vertices(config)


def test_a_model_of_charts_has_no_vertices_to_start(config):
    config.training.vertex_init = ("laplacian", "nowhere.npz")
    config.model.predictor.name = "chart"
    assert initial_vertices(config) == {}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("laplacian",), r"vertex_init \('laplacian',\): one for each of \('ball', 'cube'\)"),
        (("", "laplacian"), "num_features of cube is 0"),
        (("cube.npz", ""), r"embeddings of ball from .* must be finite \(4, 3\), got \(8, 3\)"),
        (("none.npz", ""), "none.npz: wanted features or embeddings of the vertices of ball"),
    ],
)
def test_what_does_not_fit_is_named(config, tmp_path, monkeypatch, chosen, message):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "cube.npz", embeddings=np.zeros((8, 3)))
    np.savez(tmp_path / "none.npz", other=np.zeros(3))
    config.training.vertex_init = chosen
    with pytest.raises(ValueError, match=message):
        initial_vertices(config)


def test_distances_are_loaded_where_a_loss_needs_them(config):
    assert embeddings.load_geodesics(config) is None
    config.loss.embedding.has_soft_targets = True
    cse.use_meshes(config, {"ball": 18})
    (table,) = embeddings.load_geodesics(config).values()
    # A corner to the opposite one: four edges of half the side of the octahedron.
    np.testing.assert_allclose(table[0, 1], 2 * np.sqrt(2), rtol=1e-3)
    config.model.meshes.num_vertices = (17,)
    with pytest.raises(ValueError, match="num_vertices: ball has 18 vertices, not 17"):
        embeddings.load_geodesics(config)
