"""Joint limits, rotations, the posture sampler."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ktn_jax.body import parts
from ktn_jax.body.procedural import posing, sampling, skeleton


@pytest.mark.parametrize("seed", range(4))
def test_sampled_poses_are_within_limits_and_do_not_collide(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        pose = sampling.sample_pose(rng)
        assert posing.within_limits(pose)
        assert not sampling.limbs_collide(pose)
        assert posing.within_limits(pose.mirrored())


def test_a_quarter_turn_about_y_faces_left(body):
    pose = dataclasses.replace(posing.rest_pose(), orientation=np.array([0, np.pi / 2, 0]))
    nose, pelvis = keypoint(body, pose, "nose"), pose.translation
    assert nose[0] - pelvis[0] > 0.05 and abs(nose[2] - pelvis[2]) < 1e-9


def test_limits_are_those_of_both_sides():
    flipped = posing.LIMITS[skeleton.JOINT_FLIP]
    np.testing.assert_array_equal(flipped, posing.LIMITS)
    # A middle joint leans and turns as far to either side.
    middle = skeleton.JOINT_FLIP == np.arange(len(skeleton.JOINT_NAMES))
    np.testing.assert_allclose(posing.LIMITS[middle, 1:, 0], -posing.LIMITS[middle, 1:, 1])


def with_angles(**degrees):
    angles = np.zeros((posing.NUM_JOINTS, 3))
    for joint, values in degrees.items():
        angles[skeleton.JOINT[joint], : len(values)] = np.radians(values)
    return dataclasses.replace(posing.rest_pose(), angles=angles)


def keypoint(body, pose, name):
    return body.pose(posing.Shape(), pose).keypoints[parts.KEYPOINT_NAMES.index(name)]


@pytest.mark.parametrize(
    ("moved", "joint", "degrees", "axis", "sign"),
    [
        ("left_wrist", "left_shoulder", (0, -40), 1, -1),  # lower the arm
        ("left_wrist", "left_shoulder", (0, 90), 1, +1),  # raise it
        ("left_wrist", "left_shoulder", (80, -40), 2, +1),  # reach forward
        ("right_wrist", "right_shoulder", (80, -40), 2, +1),
        ("left_wrist", "left_elbow", (90,), 2, +1),
        ("left_knee", "left_hip", (90,), 2, +1),  # lift the thigh
        ("right_knee", "right_hip", (0, 40), 0, -1),  # step out to the right
        ("left_ankle", "left_knee", (90,), 2, -1),  # heel to the back
        ("nose", "spine", (40,), 2, +1),  # bend forward
        ("nose", "head", (0, 0, 35), 0, +1),  # look to the left
        ("nose", "spine", (0, 20), 0, +1),  # lean to the left
    ],
)
def test_joints_move_the_way_they_are_described(body, moved, joint, degrees, axis, sign):
    rest = keypoint(body, posing.rest_pose(), moved)
    pose = with_angles(**{joint: degrees})
    change = keypoint(body, pose, moved) - rest
    assert sign * change[axis] > 0.02


def test_impossible_poses_are_told(body):
    assert posing.within_limits(posing.rest_pose())
    assert not posing.within_limits(with_angles(left_knee=(-30,)))
    assert not posing.within_limits(with_angles(right_elbow=(160,)))
    assert not sampling.limbs_collide(posing.rest_pose())
    # A forearm turned into the belly, and shins through each other.
    assert sampling.limbs_collide(with_angles(left_shoulder=(10, -46, 60), left_elbow=(60,)))
    assert sampling.limbs_collide(with_angles(left_hip=(0, -15), right_hip=(0, -15)))


def test_sampling_is_a_function_of_the_generator():
    first, second = (np.random.default_rng(7) for _ in range(2))
    for _ in range(5):
        assert sampling.sample_shape(first) == sampling.sample_shape(second)
        pose, again = sampling.sample_pose(first), sampling.sample_pose(second)
        np.testing.assert_array_equal(pose.angles, again.angles)
        np.testing.assert_array_equal(pose.orientation, again.orientation)


def test_samples_are_varied(body):
    rng = np.random.default_rng(0)
    poses = [sampling.sample_pose(rng) for _ in range(400)]
    angles = np.stack([pose.angles for pose in poses])

    def share(condition):
        return condition.mean()

    knees = np.degrees(angles[:, skeleton.JOINT["left_knee"], 0])
    raised = np.degrees(angles[:, skeleton.JOINT["left_shoulder"], 1])
    assert 0.1 < share(knees > 50) < 0.5
    assert 0.05 < share(raised > 40) < 0.5
    turns = Rotation.from_rotvec([pose.orientation for pose in poses]).as_matrix()
    forward, upright = turns[:, :, 2], turns[:, 1, 1]
    assert 0.01 < share(upright < 0.5) < 0.1  # lying
    assert 0.5 < share(forward[:, 2] > 0) < 0.95  # more faces than backs
    heights = [sampling.sample_shape(rng).height for _ in range(400)]
    assert 0.05 < share(np.array(heights) < 0.85) < 0.25 and np.std(heights) > 0.05
