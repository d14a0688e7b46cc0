"""Meshes by name: fetched, converted, read from files, and what is computed from them."""

import pickle

import numpy as np
import pytest

from ktn_jax.body import evaluation_mesh, geodesics, laplacian, mesh_names, mesh_tables, meshes
from ktn_jax.body.procedural import assembly
from ktn_jax.runtime import downloads


def _sphere(times=2):
    """A sphere of radius 1: an octahedron, subdivided."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]])
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    faces = np.array(faces)
    for _ in range(times):
        edges, faces = evaluation_mesh.subdivide(faces, len(vertices))
        vertices = np.concatenate([vertices, vertices[edges].mean(axis=1)])
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    return vertices, faces


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "meshes"


@pytest.fixture
def released(file_server, monkeypatch):
    """A mesh of 66 vertices on a server, as detectron2's are; its files by their paths."""
    vertices, faces = _sphere()
    reflected = vertices * [-1, 1, 1]
    mirror = np.linalg.norm(vertices[:, None] - reflected[None], axis=-1).argmin(axis=0)
    rows = np.concatenate(list(geodesics.geodesic_rows(vertices, faces)))
    contents = {
        "cat_66.pkl": {"vertices": vertices.astype(np.float32), "faces": faces.astype(np.int64)},
        "geodists/geodists_cat_66.pkl": rows.astype(np.float32),
        "symmetry/symmetry_cat_66.pkl": {"vertex_transforms": mirror.astype(np.int64)},
        "texcoords/texcoords_cat_66.pkl": (vertices[:, :2] / 2 + 0.5).astype(np.float32),
    }
    file_server.files = {f"/meshes/{name}": pickle.dumps(x, 2) for name, x in contents.items()}
    monkeypatch.setattr(meshes, "RELEASED", {"cat_66": 66})
    monkeypatch.setenv("KTN_MODELS_URL", file_server.url)
    monkeypatch.setattr(downloads, "_PAUSE", 0.001)
    return contents


def test_a_released_mesh_is_fetched_and_converted_once(released, file_server, cache):
    assert meshes.num_vertices("cat_66") == 66 and not file_server.requests
    mesh = meshes.load_mesh("cat_66")
    np.testing.assert_array_equal(mesh.vertices, released["cat_66.pkl"]["vertices"])
    np.testing.assert_array_equal(mesh.faces, released["cat_66.pkl"]["faces"])
    np.testing.assert_array_equal(mesh.uv, released["texcoords/texcoords_cat_66.pkl"])
    symmetry = released["symmetry/symmetry_cat_66.pkl"]["vertex_transforms"]
    np.testing.assert_array_equal(mesh.mirror, symmetry)
    assert len(file_server.requests) == 3  # the distances are large: only when they are asked for
    table = mesh_tables.load_geodesics(mesh)
    assert isinstance(table, np.memmap) and table.dtype == np.float16
    np.testing.assert_allclose(table, released["geodists/geodists_cat_66.pkl"], rtol=5e-4)
    asked = len(file_server.requests)
    again = meshes.load_mesh("cat_66")
    np.testing.assert_array_equal(mesh_tables.load_geodesics(again), table)
    assert len(file_server.requests) == asked and again.fingerprint == mesh.fingerprint
    assert not (cache / "cat_66" / "geodists_cat_66.pkl").exists()  # twice as large


class _Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cat_66.pkl", {"vertices": np.zeros((5, 3)), "faces": np.zeros((1, 3))}, "5 vertices"),
        ("cat_66.pkl", {"points": 1}, "cat_66.pkl: wanted a dictionary with 'vertices'"),
        ("cat_66.pkl", _Evil(), "refused the pickle's request"),
        (
            "symmetry/symmetry_cat_66.pkl",
            {"vertex_transforms": np.full(66, 66)},
            "mirror must be vertices, 0..65",
        ),
        ("texcoords/texcoords_cat_66.pkl", np.zeros((65, 2)), r"uv must be numbers \(66, 2\)"),
    ],
)
def test_a_bad_file_is_named(released, file_server, file, content, message):
    file_server.files[f"/meshes/{file}"] = pickle.dumps(content, 2)
    with pytest.raises(ValueError, match=message):
        meshes.load_mesh("cat_66")


def test_bad_distances_are_refused(released, file_server):
    table = released["geodists/geodists_cat_66.pkl"].copy()
    table[3, 5] = np.nan
    file_server.files["/meshes/geodists/geodists_cat_66.pkl"] = pickle.dumps(table)
    mesh = meshes.load_mesh("cat_66")
    for _ in range(2):  # nothing half done is left that would be taken for the table
        with pytest.raises(ValueError, match=r"geodists_cat_66.pkl: a distance is negative or NaN"):
            mesh_tables.load_geodesics(mesh)


def test_own_meshes_are_files(tmp_path):
    vertices, faces = _sphere(1)
    path = tmp_path / "ball.npz"
    np.savez(path, vertices=vertices, faces=faces)
    mesh = meshes.load_mesh("ball", [path])
    assert mesh.mirror is None and mesh.uv is None and meshes.num_vertices("ball", [path]) == 18
    table = mesh_tables.load_geodesics(mesh)
    rows = np.concatenate(list(geodesics.geodesic_rows(mesh.vertices, mesh.faces)))
    np.testing.assert_allclose(table, rows, rtol=5e-4)
    # Another mesh of that name has other tables.
    np.savez(path, vertices=2 * vertices, faces=faces)
    twice = mesh_tables.load_geodesics(meshes.load_mesh("ball", [path]))
    np.testing.assert_allclose(twice, 2 * rows, rtol=5e-4)
    np.savez(path, vertices=vertices, faces=faces + 1)
    with pytest.raises(ValueError, match=r"ball.npz: mesh ball: faces must be vertices, 0..17"):
        meshes.load_mesh("ball", [path])
    for field in ("vertices", "faces"):
        np.savez(path, **{"vertices": vertices, "faces": faces, field: 7})
        with pytest.raises(ValueError, match=rf"ball.npz: mesh ball: {field} must be numbers"):
            meshes.load_mesh("ball", [path])
    np.savez(path, vertices=vertices)
    with pytest.raises(ValueError, match=r"ball.npz: lacks \['faces'\]"):
        meshes.load_mesh("ball", [path])
    with pytest.raises(ValueError, match=r"no mesh is called 'cube': body, smpl_27554"):
        meshes.load_mesh("cube", [path])


def test_the_body_is_a_mesh():
    mesh = meshes.load_mesh(mesh_names.BODY)
    template = assembly.make_body().template
    np.testing.assert_array_equal(mesh.faces, template.faces)
    np.testing.assert_allclose(mesh.vertices[mesh.mirror], mesh.vertices * [-1, 1, 1], atol=1e-6)
    assert meshes.num_vertices(mesh_names.BODY) == len(template.vertices)


def test_features_of_a_sphere_are_its_coordinates():
    vertices, faces = _sphere(3)
    _, area = laplacian.cotangent_laplacian(vertices, faces)
    np.testing.assert_allclose(area.sum(), 4 * np.pi, rtol=0.02)
    found = laplacian.eigenfunctions(vertices, faces, 8)
    weights = area / area.sum()
    np.testing.assert_allclose(found.T @ (found * weights[:, None]), np.eye(8), atol=1e-4)
    # The three smoothest span x, y, z; of mean square 1/3 each.
    inside = found[:, :3] @ (found[:, :3].T @ (weights[:, None] * vertices))
    np.testing.assert_allclose(inside, vertices, atol=0.01)
    with pytest.raises(ValueError, match="258 vertices has no 300"):
        laplacian.eigenfunctions(vertices, faces, 300)


def test_features_are_computed_once(tmp_path, monkeypatch):
    vertices, faces = _sphere(1)
    np.savez(tmp_path / "ball.npz", vertices=vertices, faces=faces)
    mesh = meshes.load_mesh("ball", [tmp_path / "ball.npz"])
    first = mesh_tables.load_features(mesh, 4)
    monkeypatch.setattr(laplacian, "eigenfunctions", None)
    np.testing.assert_array_equal(mesh_tables.load_features(mesh, 4), first)
