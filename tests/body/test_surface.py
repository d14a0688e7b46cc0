"""Chart coordinates to the surface and back, on our body and on the published charts."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.body import parts, surface


@pytest.fixture(scope="module", params=["body", "real"])
def template(request):
    """Both sources of templates; the real one skips where its files are absent."""
    if request.param == "body":
        return request.getfixturevalue("body").template
    return request.getfixturevalue("real_template")


def random_surface_points(template, count, seed=0):
    rng = np.random.default_rng(seed)
    face = rng.integers(0, len(template.chart_faces), count)
    return face, rng.dirichlet([1, 1, 1], count)


def test_iuv_to_surface_and_back_is_the_identity_inside_faces(template):
    face, barycentric = random_surface_points(template, 20_000)
    iuv = template.surface_to_iuv(face, barycentric)
    found = template.iuv_to_surface(*iuv)
    point = template.surface_to_point(face, barycentric)
    again = template.surface_to_point(found.face, found.barycentric)
    np.testing.assert_allclose(again, point, atol=1e-4)  # metres
    back = template.surface_to_iuv(found.face, found.barycentric)
    np.testing.assert_array_equal(back.patch, iuv.patch)
    np.testing.assert_allclose(back.u, iuv.u, atol=1e-9)
    np.testing.assert_allclose(back.v, iuv.v, atol=1e-9)
    assert (found.uv_distance == 0).all()


def test_point_location_agrees_with_a_search_over_every_face(template):
    rng = np.random.default_rng(1)
    patch, uv = rng.integers(1, 25, 300), rng.uniform(-0.2, 1.2, (300, 2))
    found = template.iuv_to_surface(patch, uv[:, 0], uv[:, 1])
    reached = template.surface_to_iuv(found.face, found.barycentric)
    np.testing.assert_array_equal(reached.patch, patch)
    expected = [
        _distance_to_triangles(point, template.chart_uv[template.chart_faces[at]])
        for point, at in zip(uv, (template.face_patch == p for p in patch), strict=True)
    ]
    distance = np.hypot(reached.u - uv[:, 0], reached.v - uv[:, 1])
    np.testing.assert_allclose(distance, expected, atol=1e-9)
    np.testing.assert_allclose(found.uv_distance, expected, atol=1e-9)
    assert (np.array(expected) > 0.01).sum() > 50  # both kinds of points were asked
    assert (np.array(expected) == 0).sum() > 50


def _distance_to_triangles(point, corners):
    """Least distance of a 2-D point to triangles [T, 3, 2]; 0 inside one."""
    offset = point - corners
    along = np.roll(corners, -1, axis=1) - corners
    turn = along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]
    if ((turn >= 0).all(axis=1) | (turn <= 0).all(axis=1)).any():
        return 0.0
    step = (offset * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-30)
    return np.linalg.norm(offset - np.clip(step, 0, 1)[..., None] * along, axis=-1).min()


def test_barycentric_weights_are_weights(template):
    rng = np.random.default_rng(2)
    found = template.iuv_to_surface(rng.integers(1, 25, 2000), rng.random(2000), rng.random(2000))
    assert (found.barycentric >= 0).all()
    np.testing.assert_allclose(found.barycentric.sum(axis=1), 1)


def test_chart_vertices_lie_on_their_vertices(template):
    points = template.iuv_to_surface(template.chart_patch, *template.chart_uv.T)
    reached = template.surface_to_point(points.face, points.barycentric)
    np.testing.assert_allclose(reached, template.vertices[template.chart_to_vertex], atol=1e-6)


def test_surface_to_point_follows_a_posed_body(body):
    template = body.template
    face, barycentric = random_surface_points(template, 100)
    moved = template.surface_to_point(face, barycentric, template.vertices + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        moved, template.surface_to_point(face, barycentric) + [1.0, 2.0, 3.0]
    )


def test_annotated_points_lie_on_the_published_charts(real_template, real_dir):
    with np.load(real_dir / "points" / "single_person_annotation.npz") as stored:
        patch, u, v = (stored[name].ravel() for name in "IUV")
    assert len(patch) == 125
    np.testing.assert_array_equal(real_template.iuv_to_surface(patch, u, v).uv_distance, 0)


def test_published_charts_have_the_published_counts(real_template):
    assert real_template.vertices.shape == (6890, 3)
    assert real_template.chart_uv.shape == (7829, 2)
    assert real_template.faces.shape == (13774, 3)
    assert 1.6 < np.ptp(real_template.vertices[:, 1]) < 1.8  # metres


@pytest.mark.parametrize(
    ("patch", "u", "v", "message"),
    [
        ([0], [0.5], [0.5], "patch must be in 1..24"),
        ([25], [0.5], [0.5], "patch must be in 1..24"),
        ([1], [np.nan], [0.5], "finite"),
        ([1], [0.5], [np.inf], "finite"),
    ],
)
def test_bad_chart_coordinates_are_refused(body, patch, u, v, message):
    with pytest.raises(ValueError, match=message):
        body.template.iuv_to_surface(patch, u, v)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("face_patch", lambda a: np.where(a == 3, 25, a), "face_patch must be in 1..24"),
        ("face_patch", lambda a: np.where(a == 3, 4, a), "every patch"),
        ("chart_faces", lambda a: a + 10_000, "chart_faces"),
        ("chart_to_vertex", lambda a: a[:-1], "chart_to_vertex"),
        ("chart_uv", lambda a: a + 0.5, "chart_uv must be in 0..1"),
        ("chart_uv", lambda a: np.full_like(a, np.nan), "chart_uv"),
    ],
)
def test_inconsistent_templates_are_refused(body, field, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(body.template, **{field: change(getattr(body.template, field))})


def test_nothing_in_nothing_out(body):
    none = np.zeros(0)
    assert body.template.iuv_to_surface(none.astype(int), none, none).face.shape == (0,)
    assert isinstance(body.template.mirror_iuv(none.astype(int), none, none), surface.IUV)
    assert parts.NUM_PATCHES == 24


def test_patches_of_a_picture_are_located_as_any_integers(template):
    # uint8, as in IUV pictures, would wrap around in the arithmetic of grid cells.
    patch = np.arange(1, parts.NUM_PATCHES + 1)
    u, v = np.full((2, parts.NUM_PATCHES), 0.4)
    expected = template.iuv_to_surface(patch, u, v)
    actual = template.iuv_to_surface(patch.astype(np.uint8), u, v)
    np.testing.assert_array_equal(actual.face, expected.face)
