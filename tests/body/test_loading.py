"""User files: what is read, and that what is wrong with them is said with file and field."""

import numpy as np
import pytest
import scipy.io

from ktn_jax.body import loading


def chart_fields(template):
    return {
        "All_Faces": template.chart_faces + 1,
        "All_FaceIndices": template.face_patch[:, None],
        "All_vertices": template.chart_to_vertex[None] + 1,
        "All_U_norm": template.chart_uv[:, :1],
        "All_V_norm": template.chart_uv[:, 1:],
    }


@pytest.fixture
def charts_mat(body, tmp_path):
    """Writes our body's charts in the published file's layout, with fields changed or left out."""

    def write(**changes):
        fields = chart_fields(body.template) | changes
        path = tmp_path / "UV_Processed.mat"
        scipy.io.savemat(path, {name: value for name, value in fields.items() if value is not None})
        return path

    return write


def test_reading_back_gives_the_same_template(body, charts_mat, tmp_path):
    np.save(tmp_path / "body.npy", 100 * body.template.vertices)
    loaded = loading.load_template(charts_mat(), tmp_path / "body.npy", metres_per_unit=0.01)
    for field in ("chart_uv", "chart_to_vertex", "chart_faces", "face_patch", "vertex_mirror"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(body.template, field))
    np.testing.assert_allclose(loaded.vertices, body.template.vertices, atol=1e-12)


def test_given_tables_take_the_place_of_the_meshs(body, charts_mat, golden_dir):
    tables = golden_dir / "uv_symmetry_synthetic.mat"
    loaded = loading.load_template(charts_mat(), body.template.vertices, tables)
    content = scipy.io.loadmat(tables)
    for patch in (1, 7, 24):
        np.testing.assert_array_equal(
            loaded.uv_symmetry_tables.u[patch - 1], content["U_transforms"][0, patch - 1]
        )
    mirrored = loaded.mirror_iuv(np.array([7]), np.array([0.5]), np.array([0.25]))
    assert mirrored.patch[0] == 8
    assert mirrored.v[0] == content["V_transforms"][0, 6][63, 127]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"All_U_norm": None}, "no field All_U_norm"),
        ({"All_Faces": np.ones((4, 4), int)}, "All_Faces must be"),
        ({"All_Faces": np.full((6240, 3), 9999)}, "All_Faces must be in 1"),
        ({"All_FaceIndices": np.full((6240, 1), 30)}, "face_patch must be in 1..24"),
        ({"All_U_norm": np.full((3684, 1), 1.5)}, "chart_uv must be in 0..1"),
        ({"All_U_norm": np.full((3684, 1), np.nan)}, "chart_uv must be in 0..1"),
    ],
)
def test_bad_chart_files_are_named(body, charts_mat, changes, message):
    path = charts_mat(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        loading.load_template(path, body.template.vertices, symmetry_tolerance=None)
    assert str(path) in str(caught.value)


def test_bad_bodies_are_named(body, charts_mat, tmp_path):
    path = charts_mat()
    with pytest.raises(ValueError, match="asks for 3122 body vertices, body_vertices has 100"):
        loading.load_template(path, body.template.vertices[:100])
    with pytest.raises(ValueError, match=r"wanted finite vertices \[V, 3\]"):
        loading.load_template(path, np.zeros((4, 2)))
    with pytest.raises(FileNotFoundError, match="none.npy"):
        loading.load_template(path, tmp_path / "none.npy")
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="save the"):
        loading.load_template(path, tmp_path / "several.npz")
    np.save(tmp_path / "words.npy", np.full((4, 3), "x"))
    with pytest.raises(ValueError, match=r"words\.npy: wanted vertices as numbers, got <U1"):
        loading.load_template(path, tmp_path / "words.npy")
    for damaged in (b"", b"PK\x03\x04" + bytes(30)):
        (tmp_path / "damaged.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.npy: not a NumPy array file"):
            loading.load_template(path, tmp_path / "damaged.npy")
    (tmp_path / "text.npy").write_text("not an array")
    with pytest.raises(ValueError, match=r"text\.npy: not a NumPy array file"):
        loading.load_template(path, tmp_path / "text.npy")


def test_a_template_without_any_symmetry_says_so(body, charts_mat):
    loaded = loading.load_template(charts_mat(), body.template.vertices, symmetry_tolerance=None)
    with pytest.raises(ValueError, match="UV_symmetry_transforms.mat"):
        loaded.mirror_iuv(np.array([7]), np.array([0.5]), np.array([0.25]))
    with pytest.raises(ValueError, match="no vertex_mirror"):
        _ = loaded.chart_mirror


def test_missing_and_damaged_mat_files_are_named(body, tmp_path):
    with pytest.raises(FileNotFoundError, match="UV_Processed.mat: no such file"):
        loading.load_template(tmp_path / "UV_Processed.mat", body.template.vertices)
    (tmp_path / "cut.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(ValueError, match=r"cut\.mat: not a readable MATLAB"):
        loading.load_template(tmp_path / "cut.mat", body.template.vertices)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([np.zeros((256, 256))] * 23, "24 tables"),
        ([np.zeros((255, 256))] * 24, "24 tables"),
        ([np.full((256, 256), 2.0)] * 24, r"in \[0, 1\]"),
        ([np.full((256, 256), np.nan)] * 24, r"in \[0, 1\]"),
    ],
)
def test_bad_symmetry_tables_are_named(tmp_path, tables, message):
    cells = np.empty((1, len(tables)), object)
    cells[0, :] = [*tables]
    good = np.empty((1, 24), object)
    good[0, :] = [np.zeros((256, 256))] * 24
    path = tmp_path / "UV_symmetry_transforms.mat"
    scipy.io.savemat(path, {"U_transforms": good, "V_transforms": cells})
    with pytest.raises(ValueError, match=f"{path.name}: V_transforms.*{message}"):
        loading.load_uv_symmetry(path)
