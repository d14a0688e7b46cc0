"""Vertices in IUV pictures against the renderer's truth, and on the original system's output."""

import cv2
import numpy as np
import pytest

from ktn_jax.body.procedural import posing
from ktn_jax.body.vertices import see_vertices
from ktn_jax.data_pipelines.synthetic import render
from ktn_jax.data_pipelines.synthetic.render import PosedPerson
from ktn_jax.data_pipelines.synthetic.render_raster import Camera
from ktn_jax.results.records import PersonResult

FINER = 4
CAMERA = Camera(focal=360.0, centre_x=150.0, centre_y=150.0, width=300, height=300)
TURNED = np.array([[0.8, 0, -0.6], [0, -1, 0], [-0.6, 0, -0.8]])  # y down, seen from the side


@pytest.fixture(scope="module")
def person(body):
    posed = body.pose(posing.Shape(), posing.rest_pose())
    vertices = (posed.vertices - posed.vertices.mean(axis=0)) @ TURNED.T + [0, 0, 2.4]
    return PosedPerson(vertices, posed.keypoints)


@pytest.fixture(scope="module")
def truth(body, person):
    return render.render(body.template, [person], [], CAMERA)[0]


def iuv_of(truth):
    return np.stack([truth.patch, 255 * truth.u, 255 * truth.v]).astype(np.uint8)


def seen_by_the_renderer(body, person):
    """Which vertices no surface hides, on a finer grid; and where they are in the picture."""
    names = ("focal", "centre_x", "centre_y", "width", "height")
    finer = Camera(**{name: FINER * getattr(CAMERA, name) for name in names})
    depth = render.render(body.template, [person], [], finer)[0].depth
    farthest = cv2.dilate(np.where(np.isfinite(depth), depth, 0), np.ones((3, 3), np.uint8))
    column, row = finer.project(person.vertices).astype(int).T
    return person.vertices[:, 2] <= farthest[row, column] + 0.003, CAMERA.project(person.vertices)


def test_vertices_are_where_the_renderer_put_them(body, person, truth):
    view = see_vertices(body.template, iuv_of(truth))
    is_seen, xy = seen_by_the_renderer(body, person)
    both = is_seen & view.is_visible
    # What is wrong lies along the outline, where a pixel shows more of the surface than is seen.
    assert 0.3 < is_seen.mean() < 0.7
    assert both.sum() > 0.9 * is_seen.sum()
    assert both.sum() > 0.95 * view.is_visible.sum()
    off = np.abs(view.pixel_xy + 0.5 - xy)[both].max(axis=1)
    assert np.median(off) < 0.5 and np.quantile(off, 0.95) < 1.3
    assert (view.pixel_xy[~view.is_visible] == -1).all()
    assert np.isinf(view.distance[~view.is_visible]).all()
    # The pixels' points are on the surface that their patch, U and V name.
    column, row = view.pixel_xy[view.is_visible].T
    assert (truth.patch[row, column] > 0).all()
    to_pixel = view.points[row, column] - body.template.vertices[view.is_visible]
    distance = np.linalg.norm(to_pixel, axis=1)
    np.testing.assert_allclose(view.distance[view.is_visible], distance, atol=1e-6)
    assert distance.max() < 0.02  # a pixel is 7 mm wide, more where it is seen at a slant


def test_points_of_pixels_are_those_that_were_rendered(body, truth):
    view = see_vertices(body.template, iuv_of(truth))
    own = truth.patch > 0
    exact = body.template.surface_to_point(truth.face[own], truth.barycentric[own])
    error = np.linalg.norm(view.points[own] - exact, axis=1)
    # U and V are rounded to 255 levels of charts up to 0.6 m long.
    assert np.median(error) < 0.0007 and np.quantile(error, 0.999) < 0.006
    sharper = see_vertices(body.template, iuv_of(truth), np.stack([truth.u, truth.v]))
    np.testing.assert_allclose(sharper.points[own], exact, atol=1e-5)
    assert np.isnan(view.points[~own]).all() and (view.face[~own] == -1).all()
    on_face = body.template.surface_to_point(view.face[own], view.barycentric[own])
    np.testing.assert_allclose(on_face, view.points[own], atol=1e-6)


def test_a_person_counts_pixels_from_the_images_corner(body, truth):
    rows, columns = np.nonzero(truth.patch)
    window = np.s_[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    iuv = iuv_of(truth)[window]
    corner = np.array([columns.min(), rows.min()])
    person = PersonResult([*(corner + 0.7), *(corner + 0.7 + iuv.shape[:0:-1])], 0.9, iuv)
    whole, cut = see_vertices(body.template, iuv_of(truth)), person.to_vertices(body.template)
    for field in ("is_visible", "pixel_xy", "distance"):
        np.testing.assert_array_equal(getattr(cut, field), getattr(whole, field))
    np.testing.assert_array_equal(cut.points, whole.points[window[1:]])


def test_without_body_nothing_is_seen(body, truth):
    view = see_vertices(body.template, np.zeros((3, 4, 5), np.uint8))
    assert not view.is_visible.any() and (view.pixel_xy == -1).all()
    for line in (iuv_of(truth)[:, 150:151], iuv_of(truth)[:, :, 150:151]):
        assert see_vertices(body.template, line).is_visible.any()
    with pytest.raises(ValueError, match="uint8"):
        see_vertices(body.template, iuv_of(truth).astype(int))
    with pytest.raises(ValueError, match="uv"):
        see_vertices(body.template, iuv_of(truth), np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="patch"):
        see_vertices(body.template, np.full((3, 4, 5), 25, np.uint8))


def test_real_people_show_vertices_of_smpl(real_dir, real_template):
    folder = real_dir / "pairs"
    iuv = cv2.imread(str(folder / "demo_im_IUV.png"))
    number = cv2.imread(str(folder / "demo_im_INDS.png"), cv2.IMREAD_GRAYSCALE)
    walker = np.where((number == 19)[..., None], iuv, 0)  # towards the camera, whole
    view = see_vertices(real_template, walker.transpose(2, 0, 1))
    assert view.is_visible.shape == (6890,)
    assert 0.25 < view.is_visible.mean() < 0.6
    # He stands: what is higher on the body is higher in the picture, and left is on the right.
    seen = view.is_visible
    for axis, sign in ((1, -1), (0, 1)):
        place = real_template.vertices[seen, axis]
        pixel = view.pixel_xy[seen, axis]
        assert sign * np.corrcoef(place, pixel)[0, 1] > (0.95 if axis == 1 else 0.8)
