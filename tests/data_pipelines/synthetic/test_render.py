"""Rendered truth: people, things before them, keypoints, and the mirror."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.body import parts
from ktn_jax.body.procedural import assembly, posing
from ktn_jax.data_pipelines.synthetic import render, render_meshes
from ktn_jax.data_pipelines.synthetic.render import PosedPerson
from ktn_jax.data_pipelines.synthetic.render_raster import Camera

CAMERA = Camera(focal=200.0, centre_x=80.0, centre_y=96.0, width=160, height=192)
UPRIGHT = np.diag([1.0, -1.0, -1.0])  # from y up, facing +z to the camera's frame
NAMES = parts.KEYPOINT_NAMES


@pytest.fixture(scope="module")
def body():
    return assembly.make_body()


def stand(body, position, seed=None, turn=0.0) -> PosedPerson:
    if seed is None:
        pose = dataclasses.replace(posing.rest_pose(), orientation=np.array([0.0, turn, 0.0]))
        posed = body.pose(posing.Shape(), pose)
    else:
        rng = np.random.default_rng(seed)
        posed = body.pose(body.sample_shape(rng), body.sample_pose(rng))
    middle = posed.vertices.mean(axis=0)
    return PosedPerson(
        (posed.vertices - middle) @ UPRIGHT + position,
        (posed.keypoints - middle) @ UPRIGHT + position,
    )


def render_people(body, people, objects=(), **limits):
    return render.render(body.template, people, objects, CAMERA, **limits)


def mirrored(body, person: PosedPerson) -> PosedPerson:
    return PosedPerson(
        person.vertices[body.template.vertex_mirror] * [-1, 1, 1],
        person.keypoints[parts.KEYPOINT_FLIP] * [-1, 1, 1],
    )


def test_truth_is_of_the_person_who_is_nearer(body):
    near, far = stand(body, [0, 0, 2.6]), stand(body, [0.25, 0, 3.6])
    truth, _, is_kept = render_people(body, [far, near])
    assert is_kept.all()
    assert set(np.unique(truth.instance)) == {0, 1, 2}
    alone, _, _ = render_people(body, [near])
    covered = alone.instance == 1
    assert (truth.instance[covered] == 2).all()
    for name in ("patch", "u", "v", "depth", "face"):
        np.testing.assert_array_equal(getattr(truth, name)[covered], getattr(alone, name)[covered])
    assert truth.visible_fraction[1] == 1
    assert 0.2 < truth.visible_fraction[0] < 0.9
    assert truth.depth[truth.instance == 1].min() > 3.2
    assert np.isinf(truth.depth[truth.instance == 0]).all()


def test_rest_pose_shows_its_patches_where_they_belong(body):
    for turn, torso in ((0.0, "torso_front"), (np.pi, "torso_back")):
        person = stand(body, [0, 0, 3.0], turn=turn)
        truth, _, _ = render_people(body, [person])
        xy = CAMERA.project(person.keypoints)
        assert (truth.keypoints[0, :, 2] > 0).all()
        np.testing.assert_allclose(truth.keypoints[0, :, :2], xy, atol=1e-3)
        chest = xy[[5, 6, 11, 12]].mean(axis=0).astype(int)
        assert parts.PATCH_NAMES[truth.patch[chest[1], chest[0]]] == torso
        shin = xy[[13, 15]].mean(axis=0).astype(int)
        assert parts.PATCH_NAMES[truth.patch[shin[1], shin[0]]].startswith("left_lower_leg")


def test_dense_truth_leads_back_to_its_pixel(body):
    people = [
        stand(body, [x, 0.1, z], seed) for seed, (x, z) in enumerate([(-0.5, 2.8), (0.6, 3.3)])
    ]
    truth, _, _ = render_people(body, people)
    offsets = []
    for index, person in enumerate(truth.people):
        rows, columns = np.nonzero(truth.instance == index + 1)
        patch = truth.patch[rows, columns].astype(int)
        u, v = truth.u[rows, columns], truth.v[rows, columns]
        points = body.template.iuv_to_surface(patch, u, v)
        xy = CAMERA.project(
            body.template.surface_to_point(points.face, points.barycentric, person.vertices)
        )
        offsets.append(np.linalg.norm(xy - np.stack([columns, rows], -1) - 0.5, axis=1))
    offsets = np.concatenate(offsets)
    assert len(offsets) > 3000
    assert (offsets < 1).mean() >= 0.99
    assert np.median(offsets) < 1e-3


def test_face_and_barycentric_give_chart_and_depth(body):
    person = stand(body, [0.1, 0, 3.0], seed=7)
    truth, _, _ = render_people(body, [person])
    shown = truth.instance == 1
    face, weights = truth.face[shown], truth.barycentric[shown]
    iuv = body.template.surface_to_iuv(face, weights)
    np.testing.assert_array_equal(iuv.patch, truth.patch[shown])
    # Weights are kept as float32.
    np.testing.assert_allclose(iuv.u, truth.u[shown], atol=1e-5)
    np.testing.assert_allclose(iuv.v, truth.v[shown], atol=1e-5)
    points = body.template.surface_to_point(face, weights, person.vertices)
    np.testing.assert_allclose(points[:, 2], truth.depth[shown], atol=1e-5)


def test_flipped_truth_is_the_truth_of_the_mirrored_scene(body):
    people = [stand(body, [-0.4, 0.1, 2.9], 3), stand(body, [0.5, 0, 3.4], 4)]
    block = render_meshes.box([0.3, 0.3, 0.3]).moved(np.eye(3), np.array([0.3, 0.2, 2.0]))
    truth, _, _ = render_people(body, people, [block])
    opposite = block.moved(np.eye(3), np.array([-0.6, 0, 0]))
    expected, _, _ = render_people(body, [mirrored(body, person) for person in people], [opposite])

    np.testing.assert_array_equal(truth.instance[:, ::-1], expected.instance)
    patch, u, v = (getattr(truth, name)[:, ::-1] for name in ("patch", "u", "v"))
    np.testing.assert_array_equal(parts.PATCH_FLIP[patch], expected.patch)
    shown = patch > 0
    patch, u, v = patch[shown].astype(int), u[shown], v[shown]
    exact = body.template.mirror_iuv(patch, u, v)
    error = np.maximum(np.abs(exact.u - expected.u[shown]), np.abs(exact.v - expected.v[shown]))
    assert np.quantile(error, 0.99) < 1e-4
    # The tables of 256 x 256 are what training flips annotations with.
    tables = body.template.uv_symmetry_tables
    row, column = (255 * v).astype(int), (255 * u).astype(int)
    flipped_u, flipped_v = tables.u[patch - 1, row, column], tables.v[patch - 1, row, column]
    error = np.maximum(np.abs(flipped_u - expected.u[shown]), np.abs(flipped_v - expected.v[shown]))
    assert np.median(error) < 0.01

    keypoints = truth.keypoints[:, parts.KEYPOINT_FLIP].copy()
    inside = keypoints[..., 2] > 0
    keypoints[..., 0] = np.where(inside, CAMERA.width - keypoints[..., 0], 0)
    np.testing.assert_allclose(keypoints, expected.keypoints, atol=1e-3)


def test_keypoints_behind_a_thing_are_occluded(body):
    person = stand(body, [0, 0, 3.0])
    knee = person.keypoints[NAMES.index("left_knee")]
    block = render_meshes.box([0.25, 0.25, 0.1]).moved(np.eye(3), knee * 0.7)
    truth, _, _ = render_people(body, [person], [block])
    visibility = dict(zip(NAMES, truth.keypoints[0, :, 2], strict=True))
    assert visibility["left_knee"] == render.VISIBILITY_OCCLUDED
    assert visibility["right_ankle"] == render.VISIBILITY_VISIBLE
    assert visibility["nose"] == render.VISIBILITY_VISIBLE
    column, row = CAMERA.project(knee).astype(int)
    assert truth.instance[row, column] == -1
    assert truth.patch[row, column] == 0


def test_face_is_hidden_from_behind_but_shoulders_and_hips_are_not(body):
    for turn, faces_camera in ((0.0, True), (np.pi, False)):
        truth, _, _ = render_people(body, [stand(body, [0, 0, 3.0], turn=turn)])
        visibility = dict(zip(NAMES, truth.keypoints[0, :, 2], strict=True))
        for name in ("nose", "left_eye", "right_eye"):
            assert (visibility[name] == render.VISIBILITY_VISIBLE) == faces_camera, name
        for name in ("left_shoulder", "right_hip", "left_knee", "right_ankle", "left_elbow"):
            assert visibility[name] == render.VISIBILITY_VISIBLE, name


def test_keypoints_out_of_the_image_are_zero(body):
    truth, _, _ = render_people(body, [stand(body, [0, 1.0, 2.5])])
    outside = truth.keypoints[0, :, 2] == render.VISIBILITY_OUTSIDE
    assert outside[NAMES.index("left_ankle")] and not outside[NAMES.index("nose")]
    assert (truth.keypoints[0, outside] == 0).all()


def test_people_who_are_hidden_leave_the_scene(body):
    front, hidden = stand(body, [0, 0, 2.5]), stand(body, [0, 0, 4.5])
    beside = stand(body, [0.9, 0, 3.5])
    truth, surfaces, is_kept = render_people(
        body, [front, hidden, beside], min_visible_fraction=0.3
    )
    np.testing.assert_array_equal(is_kept, [True, False, True])
    assert truth.people == (front, beside)
    without, _, _ = render_people(body, [front, beside])
    for name in ("instance", "patch", "u", "v", "depth"):
        np.testing.assert_array_equal(getattr(truth, name), getattr(without, name))
    assert set(np.unique(surfaces.instance)) == {1, 2}


def test_scene_without_people(body):
    truth, surfaces, is_kept = render_people(body, [])
    assert truth.keypoints.shape == (0, 17, 3) and is_kept.shape == (0,)
    assert len(surfaces.pixel) == 0 and (truth.instance == 0).all()


@pytest.mark.parametrize(
    "mesh",
    [
        render_meshes.box([0.3, 0.5, 0.7]),
        render_meshes.ellipsoid([0.3, 0.5, 0.2]),
        render_meshes.capsule(0.1, 0.5, 0.7),
        render_meshes.revolve(np.array([[0.2, -0.3], [0.05, 0.0], [0.3, 0.4]])),
    ],
    ids=["box", "ellipsoid", "capsule", "vase"],
)
def test_solids_are_closed_and_face_outwards(mesh):
    merged = np.unique(np.round(mesh.vertices, 9), axis=0, return_inverse=True)[1].reshape(-1)
    corners = merged[mesh.faces]
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    forward = {tuple(edge) for edge in edges.tolist()}
    assert len(forward) == len(edges)
    assert all((b, a) in forward for a, b in forward)
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    volume = np.einsum("nd,nd->n", a, np.cross(b, c)).sum() / 6
    assert volume > 0.001
    outward = np.einsum("nd,nd->n", np.cross(b - a, c - a), mesh.normals[mesh.faces].mean(axis=1))
    assert (outward > 0).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-9)


def test_vertex_normals_of_a_ball_point_from_its_centre():
    ball = render_meshes.ellipsoid([0.5] * 3, num_segments=40)
    normals = render_meshes.vertex_normals(ball.vertices, ball.faces)
    towards = ball.vertices / np.linalg.norm(ball.vertices, axis=1, keepdims=True)
    # The poles are cut off flat, which tilts the normals of the rings next to them.
    assert np.quantile(np.einsum("nd,nd->n", normals, towards), 0.1) > 0.99
