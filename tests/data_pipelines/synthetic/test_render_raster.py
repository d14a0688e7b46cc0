"""The rasteriser against closed forms: coverage, perspective, depth, visibility."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.data_pipelines.synthetic import render_meshes, render_raster
from ktn_jax.data_pipelines.synthetic.render_raster import Camera

CAMERA = Camera(focal=60.0, centre_x=31.0, centre_y=17.5, width=64, height=40)
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def unproject(camera: Camera, xy: np.ndarray, depth: np.ndarray) -> np.ndarray:
    centre = np.array([camera.centre_x, camera.centre_y])
    return np.concatenate([(xy - centre) * depth[:, None] / camera.focal, depth[:, None]], axis=1)


def pixel_centres(camera: Camera) -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5


def front_facing(xy: np.ndarray) -> np.ndarray:
    """Orders corners [3, 2] so that the triangle looks at the camera (y runs down)."""
    first, second = xy[1] - xy[0], xy[2] - xy[0]
    return xy if first[0] * second[1] - first[1] * second[0] < 0 else xy[::-1]


def sees(vertices: np.ndarray, faces: np.ndarray, camera: Camera):
    fragments = render_raster.rasterise(vertices, faces, camera)
    return render_raster.resolve_visibility(fragments, camera)


coordinate = st.floats(-30, 90, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(coordinate, min_size=6, max_size=6))
def test_rasterise_covers_exactly_the_pixels_whose_centre_is_inside(numbers):
    xy = front_facing(np.array(numbers).reshape(3, 2))
    face, _ = sees(unproject(CAMERA, xy, np.array([2.0, 3.0, 5.0])), QUAD_FACES[:1], CAMERA)
    points = pixel_centres(CAMERA)
    sides = []
    for corner in range(3):
        start, end = xy[corner], xy[(corner + 1) % 3]
        edge = end - start
        sides.append(edge[0] * (points[:, 1] - start[1]) - edge[1] * (points[:, 0] - start[0]))
    sides = np.stack(sides)
    undecided = (np.abs(sides) < 1e-6).any(axis=0)
    expected = (sides < 0).all(axis=0)
    np.testing.assert_array_equal((face >= 0)[~undecided], expected[~undecided])


def test_rasterise_covers_the_area_of_a_triangle():
    camera = Camera(focal=500.0, centre_x=250.0, centre_y=250.0, width=500, height=500)
    xy = front_facing(np.array([[20.3, 30.1], [470.8, 90.4], [210.2, 480.9]]))
    fragments = render_raster.rasterise(
        unproject(camera, xy, np.full(3, 2.0)), QUAD_FACES[:1], camera
    )
    first, second = xy[1] - xy[0], xy[2] - xy[0]
    area = abs(first[0] * second[1] - first[1] * second[0]) / 2
    # Counting centres errs by about the square root of the perimeter, here 40 of 93,000.
    assert abs(len(fragments.pixel) - area) < 120


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rasterise_leaves_no_cracks_between_triangles(seed):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.linspace(-2, 66, 9), np.linspace(-2, 42, 7)), axis=-1)
    inner = grid[1:-1, 1:-1]
    inner += rng.uniform(-3.3, 3.3, inner.shape)
    # Half of the corners on pixel centres, where rounding decides.
    snapped = rng.random(inner.shape[:2]) < 0.5
    inner[snapped] = np.round(inner[snapped]) + 0.5
    index = np.arange(63).reshape(7, 9)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.stack([np.stack([a, d, c], -1), np.stack([a, c, b], -1)]).reshape(-1, 3)
    depth = rng.uniform(1, 9, 63)
    face, inverse_depth = sees(unproject(CAMERA, grid.reshape(-1, 2), depth), faces, CAMERA)
    assert (face >= 0).all()
    assert inverse_depth.min() >= 1 / 9 - 1e-12
    assert inverse_depth.max() <= 1 + 1e-12


def test_interpolation_on_a_slanted_quad_is_perspective_correct():
    origin, along, across = (
        np.array([-0.7, 0.5, 1.1]),
        np.array([1.9, 0.1, 2.2]),
        np.array([0.2, -1.0, 0.6]),
    )
    vertices = np.stack([origin, origin + along, origin + along + across, origin + across])
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    face, inverse_depth = sees(vertices, QUAD_FACES, CAMERA)
    pixel = np.flatnonzero(face >= 0)
    assert len(pixel) > 400
    corners = QUAD_FACES[face[pixel]]
    weights = render_raster.barycentric_at_pixels(vertices, corners, pixel, CAMERA)
    actual = np.einsum("nc,ncd->nd", weights, uv[corners])
    # The ray t * direction meets origin + u * along + v * across: three linear equations.
    direction = unproject(CAMERA, pixel_centres(CAMERA)[pixel], np.ones(len(pixel)))
    expected = [
        np.linalg.solve(np.stack([along, across, -ray], axis=1), -origin) for ray in direction
    ]
    # float64 throughout; interpolating without the depths is off by 0.2 here.
    np.testing.assert_allclose(actual, np.array(expected)[:, :2], atol=1e-9)
    np.testing.assert_allclose(1 / inverse_depth[pixel], np.array(expected)[:, 2], rtol=1e-9)


def test_depth_of_a_sphere():
    radius, centre = 0.8, np.array([0.3, -0.2, 3.0])
    ball = render_meshes.ellipsoid([radius] * 3, num_segments=96).moved(np.eye(3), centre)
    face, inverse_depth = sees(ball.vertices, ball.faces, CAMERA)
    direction = unproject(CAMERA, pixel_centres(CAMERA), np.ones(len(face)))
    squared, half = (direction**2).sum(axis=1), direction @ centre
    discriminant = half**2 - squared * (centre @ centre - radius**2)
    # Facets of 96 to the circle lie up to 0.0005 m inside the ball: stay off the rim, where a ray
    # that grazes the ball turns that into any distance.
    clear = discriminant > 0.2
    assert clear.sum() > 400
    expected = (half - np.sqrt(np.maximum(discriminant, 0))) / squared
    np.testing.assert_allclose(1 / inverse_depth[clear], expected[clear], atol=0.003)
    assert (face[discriminant < -0.05] == -1).all()


def test_nearest_surface_wins_whatever_the_order():
    square = np.array([[4.0, 4], [4, 30], [50, 30], [50, 4]])
    near = unproject(CAMERA, square, np.full(4, 1.5))
    far = unproject(CAMERA, square + 6, np.full(4, 4.0))
    for vertices, near_faces in (
        (np.concatenate([near, far]), (0, 1)),
        (np.concatenate([far, near]), (2, 3)),
    ):
        faces = np.concatenate([QUAD_FACES, QUAD_FACES + 4])
        face, inverse_depth = sees(vertices, faces, CAMERA)
        face = face.reshape(CAMERA.height, CAMERA.width)
        assert np.isin(face[4:30, 4:50], near_faces).all()
        assert (~np.isin(face[31:36, 11:55], near_faces) & (face[31:36, 11:55] >= 0)).all()
        np.testing.assert_allclose(1 / inverse_depth.reshape(face.shape)[4:30, 4:50], 1.5)


def test_back_faces_and_faces_across_the_near_plane_are_not_drawn():
    square = np.array([[4.0, 4], [4, 30], [50, 30], [50, 4]])
    vertices = unproject(CAMERA, square, np.full(4, 2.0))
    assert (sees(vertices, QUAD_FACES, CAMERA)[0] >= 0).any()
    assert (sees(vertices, QUAD_FACES[:, ::-1], CAMERA)[0] == -1).all()
    vertices[0, 2] = 0.0
    with np.errstate(all="raise"):
        face, _ = sees(vertices, QUAD_FACES, CAMERA)
    assert (face == -1).all()


def test_rasterise_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\[V, 3\]"):
        render_raster.rasterise(np.zeros((4, 2)), QUAD_FACES, CAMERA)


def test_nothing_to_draw_leaves_the_background():
    face, inverse_depth = sees(np.zeros((0, 3)), np.zeros((0, 3), int), CAMERA)
    assert face.shape == (64 * 40,) and (face == -1).all() and (inverse_depth == 0).all()
