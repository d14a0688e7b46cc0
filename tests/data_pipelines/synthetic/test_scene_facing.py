"""Who may be in a picture: turned and leaning trunks, measured by hand and in what is drawn."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.body import parts
from ktn_jax.body.procedural import assembly, posing
from ktn_jax.data_pipelines.synthetic import scene, scene_poses
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource


def _trunk(left_shoulder, right_shoulder):
    keypoints = np.zeros((17, 3))
    named = dict(zip(parts.KEYPOINT_NAMES, keypoints, strict=True))  # rows are views
    named["left_shoulder"][:], named["right_shoulder"][:] = left_shoulder, right_shoulder
    named["left_hip"][:], named["right_hip"][:] = (0.1, 0, 0), (-0.1, 0, 0)
    return keypoints


@pytest.mark.parametrize(
    ("left", "right", "turned", "leaning"),
    [
        ((0.2, 0.5, 0), (-0.2, 0.5, 0), 0, 0),  # the left hand is on the viewer's right
        ((-0.2, 0.5, 0), (0.2, 0.5, 0), 180, 0),
        ((0, 0.5, -0.2), (0, 0.5, 0.2), 90, 0),
        ((0.2, 0.5, 0.5), (-0.2, 0.5, 0.5), 0, 45),
        ((0.2, 0.5, -0.2), (-0.2, 0.5, 0.2), 45, 0),
    ],
)
def test_trunks_by_hand(left, right, turned, leaning):
    np.testing.assert_allclose(
        scene_poses.measure_trunk(_trunk(left, right)), (turned, leaning), atol=1e-6
    )


def test_the_body_at_rest_stands_and_faces_the_camera():
    body = assembly.make_body()
    rest = body.pose(posing.Shape(), posing.rest_pose())
    turned, leaning = scene_poses.measure_trunk(rest.keypoints)
    assert turned < 5 and leaning < 10


def _people(settings):
    rng = np.random.default_rng(0)
    body = assembly.make_body()
    settings = dataclasses.replace(settings, people_range=(1, 1), tilt_degrees=0.0)
    layouts = [scene.sample_layout(body, settings, rng) for _ in range(40)]
    return [person for layout in layouts for person in layout.people]


def _most_turned(settings):
    back = np.diag([1.0, -1.0, -1.0])  # from the camera's frame to the body's
    trunks = [scene_poses.measure_trunk(person.keypoints @ back) for person in _people(settings)]
    return np.array(trunks).max(0)


def test_frontal_people_face_the_camera_and_easy_ones_need_not():
    turned, leaning = _most_turned(scene.FRONTAL)
    assert turned <= 40 + 1e-6 and leaning <= 20 + 1e-6
    turned, leaning = _most_turned(scene.EASY)
    assert turned > 120 and leaning > 60


def _least_upright(settings):
    people = _people(settings)
    heights = [np.ptp(person.vertices[:, 1]) for person in people]
    statures = [scene_poses.measure_stature(person.keypoints) for person in people]
    return (np.array(heights) / statures).min()


def test_nobody_sits_where_people_must_be_upright():
    anybody = dataclasses.replace(scene.FRONTAL, min_upright=0.0)
    assert _least_upright(scene.FRONTAL) >= 0.9 - 1e-6
    assert _least_upright(anybody) < 0.8  # seated and bent people


def test_without_limits_nothing_is_drawn_twice():
    free = dataclasses.replace(
        scene.EASY, facing_degrees=180.0, leaning_degrees=180.0, min_upright=0.0
    )
    first, second = SyntheticSource(1, 3, scene.EASY)[0], SyntheticSource(1, 3, free)[0]
    np.testing.assert_array_equal(first.image, second.image)
