"""People stand on one ground and their shadows fall where geometry says."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.body.procedural import assembly
from ktn_jax.data_pipelines.synthetic import scene, scene_ground
from ktn_jax.data_pipelines.synthetic.render import PosedPerson
from ktn_jax.data_pipelines.synthetic.render_raster import Camera
from ktn_jax.data_pipelines.synthetic.scene_ground import Ground
from ktn_jax.data_pipelines.synthetic.scene_lighting import Lighting

UP = np.array([0.0, -1.0, 0.0])  # y runs down in the camera frame
CAMERA = Camera(focal=200, centre_x=100, centre_y=100, width=200, height=200)


def test_everybody_stands_on_the_ground():
    settings = dataclasses.replace(scene.EVERYDAY, people_range=(3, 4), crowd_probability=1.0)
    people = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        layout = scene.sample_layout(assembly.make_body(), settings, rng)
        low, high = scene_ground.CAMERA_HEIGHTS
        assert low <= layout.ground.height <= high
        assert np.linalg.norm(layout.ground.up) == pytest.approx(1) and layout.ground.up[1] < -0.7
        for person in layout.people:
            lowest = (person.vertices @ layout.ground.up).min()
            np.testing.assert_allclose(lowest, -layout.ground.height, atol=1e-9)
            people += 1
    assert people > 15  # the ground leaves room for more than the first


def test_without_a_ground_people_are_where_they_were():
    body, free = assembly.make_body(), dataclasses.replace(scene.EVERYDAY, has_ground=False)
    layout = scene.sample_layout(body, free, np.random.default_rng(2))
    assert layout.ground is None
    lowest = [person.vertices[:, 1].max() for person in layout.people]
    assert np.ptp(lowest) > 0.05


def _pole(x=0.0, height=1.0):
    """A post 0.2 m thick, 4 metres away, on a ground 1 metre below the camera."""
    offsets, heights = np.linspace(-0.1, 0.1, 11), np.linspace(1.0, 1.0 - height, 101)
    grid = np.stack(np.meshgrid(x + offsets, heights, 4 + offsets, indexing="ij"), axis=-1)
    return PosedPerson(grid.reshape(-1, 3), np.zeros((17, 3)))


def _shadow(sun, direction, people=None):
    towards = np.array(direction) / np.linalg.norm(direction)
    lighting = Lighting(towards, np.full(3, float(sun)), np.ones(3), np.ones(3))
    return scene_ground.shadow_strengths(Ground(UP, 1.0), people or [_pole()], CAMERA, lighting)


def test_a_shadow_is_as_long_as_the_sun_is_low():
    # The sun is 45 degrees up in the right: the pole's shadow of 1 m runs 1 m to the left.
    # A metre of the ground at 4 m is 50 pixels, the post's foot is at row and column 150 and 100.
    shadow = _shadow(1, (1, -1, 0))
    np.testing.assert_allclose(shadow[150, 60:90], 0.5, atol=0.04)  # half of the light is the sun's
    assert shadow[150, 50 - 15] < 0.02
    assert shadow[150, 100 + 20] < 0.02  # on the side of the sun
    assert shadow[:140].max() < 0.02 and shadow[165:].max() < 0.02
    points = Ground(UP, 1.0).shadow_of(_pole().vertices, np.array([1.0, -1, 0]) / np.sqrt(2))
    np.testing.assert_allclose(points[:, 1], 1.0, atol=1e-12)
    np.testing.assert_allclose([points[:, 0].min(), points[:, 0].max()], [-1.1, 0.1], atol=1e-12)


def test_without_sun_only_feet_darken_the_ground():
    for shadow in (_shadow(0, (1, -1, 0)), _shadow(1, (1, -0.05, 0))):  # too low a sun casts none
        dark = np.argwhere(shadow > 0.02)
        assert len(dark) and np.abs(dark - [150, 100]).max() < 25
    assert (_shadow(1, (1, -1, 0)) <= 1).all() and (_shadow(0, (0, -1, 0)) >= 0).all()


def test_people_out_of_sight_cast_no_shadow_into_the_picture():
    assert _shadow(1, (0.1, -1, 0), [_pole(x=30.0)]).max() == 0
