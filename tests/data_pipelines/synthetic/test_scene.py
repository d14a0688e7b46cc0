"""Scenes: who stands where, what they wear, and what the image is made of."""

import dataclasses

import numpy as np
import pytest

from ktn_jax.body import parts
from ktn_jax.body.procedural import assembly, posing
from ktn_jax.data_pipelines.synthetic import (
    render_meshes,
    scene,
    scene_background,
    scene_clothes,
    scene_lighting,
    scene_objects,
    scene_picture,
    scene_poses,
    textures,
)
from ktn_jax.data_pipelines.synthetic.scene import Scene


@pytest.fixture(scope="module")
def body():
    return assembly.make_body()


@pytest.fixture(scope="module")
def landmarks(body):
    rest = body.pose(posing.Shape(), posing.rest_pose())
    template = body.template
    return textures.find_landmarks(
        template.vertices, template.faces, template.face_patch, rest.keypoints
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("people_range", (3, 1)),
        ("stature_range", (0.0, 1.0)),
        ("densepose_fraction", 1.5),
        ("occluder_probability", -0.1),
        ("image_size_hw", (8, 256)),
    ],
)
def test_scene_names_the_setting_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(Scene(), **{field: value})


def test_measure_stature_does_not_depend_on_the_pose(body):
    rest = body.pose(posing.Shape(), posing.rest_pose())
    height = np.ptp(rest.vertices[:, 1])
    assert scene_poses.measure_stature(rest.keypoints) == pytest.approx(height, rel=0.04)
    rng = np.random.default_rng(0)
    for _ in range(5):
        posed = body.pose(posing.Shape(), body.sample_pose(rng))
        assert scene_poses.measure_stature(posed.keypoints) == pytest.approx(height, rel=0.08)


def test_layout_keeps_people_apart_in_the_image_and_of_the_size_asked_for(body):
    settings = dataclasses.replace(
        Scene(), people_range=(3, 3), stature_range=(0.3, 0.5), truncation_probability=0.0,
        group_probability=0.0, crowd_probability=0.0,
    )  # fmt: skip
    total = 0
    for seed in range(8):
        layout = scene.sample_layout(body, settings, np.random.default_rng(seed))
        bounds = []
        for person in layout.people:
            total += 1
            xy = layout.camera.project(person.vertices)
            assert (xy > -12).all() and (xy < 256 + 12).all()
            depth = person.vertices[:, 2].mean()
            pixels = layout.camera.focal * person.stature / depth
            assert 0.25 * 256 < pixels < 0.58 * 256
            bounds.append((person.vertices.min(axis=0), person.vertices.max(axis=0)))
        for index, (low, high) in enumerate(bounds):
            for other_low, other_high in bounds[:index]:
                assert (np.maximum(low - other_high, other_low - high) >= -0.1201).any()
    assert total >= 20


def test_crowds_are_marked(body):
    settings = dataclasses.replace(Scene(), crowd_probability=1.0, people_range=(1, 1))
    layout = scene.sample_layout(body, settings, np.random.default_rng(1))
    assert not layout.is_crowd[0]
    assert layout.is_crowd[1:].sum() >= 3
    depths = [person.vertices[:, 2].mean() for person in layout.people]
    assert min(depths[1:]) > depths[0]


def test_occluders_stand_between_camera_and_person():
    rng = np.random.default_rng(0)
    low, high = np.array([-0.4, -0.9, 2.5]), np.array([0.3, 0.9, 3.1])
    hits = 0
    for _ in range(30):
        solid = scene_objects.sample_occluder(rng, low, high, nearest=0.3)
        if solid is None:
            continue
        hits += 1
        vertices = solid.mesh.vertices
        assert vertices[:, 2].min() >= 0.3 - 1e-9
        assert vertices[:, 2].max() <= 2.5
        # On the way to the person: the middle projects into the person's box.
        middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        at_person = middle[:2] / middle[2] * 2.5
        assert (at_person > low[:2] - 0.5).all() and (at_person < high[:2] + 0.5).all()
    assert hits > 15


def test_rotations_are_proper():
    rng = np.random.default_rng(0)
    for _ in range(5):
        rotation = scene_objects.sample_rotation(rng)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)


def test_picture_depends_on_its_seed_only(body, landmarks):
    def make(seed):
        return scene_picture.make_picture(
            body, landmarks, scene.HARD, np.random.SeedSequence([seed, 4])
        )

    first, again, other = make(1), make(1), make(2)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.truth.u, again.truth.u)
    assert np.abs(first.image.astype(int) - other.image).mean() > 10


def test_clutter_does_not_move_people(body, landmarks):
    plain = dataclasses.replace(scene.EASY, clutter_range=(0, 0), degradation=0.0)
    busy = dataclasses.replace(scene.EASY, clutter_range=(20, 20), degradation=1.0)
    pictures = [
        scene_picture.make_picture(body, landmarks, s, np.random.SeedSequence(3))
        for s in (plain, busy)
    ]
    np.testing.assert_array_equal(pictures[0].truth.instance, pictures[1].truth.instance)
    assert np.abs(pictures[0].image.astype(int) - pictures[1].image).mean() > 5


def test_every_picture_shows_somebody(body, landmarks):
    for index in range(6):
        picture = scene_picture.make_picture(
            body, landmarks, scene.HARD, np.random.SeedSequence([9, index])
        )
        assert picture.image.shape == (256, 256, 3) and picture.image.dtype == np.uint8
        assert (~picture.is_crowd).any()
        seen = np.bincount(picture.truth.instance.clip(0).ravel())[1:]
        assert len(seen) == len(picture.truth.people)
        assert seen.min() >= scene.HARD.min_visible_pixels
        assert picture.truth.visible_fraction.min() >= scene.HARD.min_visible_fraction


def test_image_sizes_that_are_not_square(body, landmarks):
    settings = dataclasses.replace(Scene(), image_size_hw=(120, 200))
    picture = scene_picture.make_picture(body, landmarks, settings, np.random.SeedSequence(0))
    assert picture.image.shape == (120, 200, 3)
    assert picture.truth.patch.shape == (120, 200)


def test_degrade_without_strength_only_softens():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 160
    result = scene_picture.degrade(image, 0.0, np.random.default_rng(0))
    flat = result[:, 40:].reshape(-1, 3)
    assert (flat == flat[0]).all()  # exposure may change, nothing else
    assert 0 < result[0, 31, 0] < result[0, 32, 0] < flat[0, 0]


def test_backgrounds_hold_what_is_asked_for():
    for seed in range(4):
        plain, again, busy = (
            scene_background.paint_background((96, 128), count, np.random.default_rng(seed))
            for count in ((0, 0), (0, 0), (25, 25))
        )
        assert plain.shape == busy.shape == (96, 128, 3)
        np.testing.assert_array_equal(plain, again)
        assert np.abs(plain.astype(int) - busy).mean() > 12


def test_stripes_follow_their_axis_and_share():
    material = dataclasses.replace(
        textures.sample_material(np.random.default_rng(0), pattern="stripes"),
        axes=np.array([[0.0, 10.0, 0.0], [1.0, 0.0, 0.0]]),
        phase=np.array([64.0, 64.0]),
        duty=0.3,
        unevenness=0.0,
    )
    height = np.linspace(0, 1, 1001)[:-1] + 0.0005
    points = np.stack([np.zeros_like(height), height, np.zeros_like(height)], axis=-1)
    colour = material.colour(points)
    is_figure = np.abs(colour - material.colours[1]).max(axis=1) < 1e-5
    assert is_figure.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(is_figure[:100], (height[:100] * 10) % 1 < 0.3)
    sideways = material.colour(points[:, [1, 0, 2]])
    assert np.ptp(sideways, axis=0).max() < 1e-5


@pytest.mark.parametrize(
    "pattern", ["plain", "stripes", "checks", "dots", "plaid", "blotches", "gradient"]
)
def test_materials_give_colours(pattern):
    rng = np.random.default_rng(3)
    material = textures.sample_material(rng, pattern=pattern)
    colour = material.colour(rng.uniform(-1, 2, (500, 3)))
    assert colour.shape == (500, 3)
    assert colour.min() >= -1e-6 and colour.max() < 1.3
    many = len(np.unique(np.round(colour / colour.max(), 1), axis=0))
    assert many >= (1 if pattern == "plain" else 2)


def test_noise_tile_repeats_without_a_seam():
    tile = textures.noise_tile(np.random.default_rng(0), cells=4, channels=2)
    assert tile.shape == (32, 32, 2)
    inside = np.abs(np.diff(tile, axis=0)).max()
    assert np.abs(tile[0] - tile[-1]).max() <= inside + 1e-6
    assert tile.std() > 0.1


def test_clothes_cover_what_they_should(body, landmarks):
    template = body.template
    points, patch = template.vertices[template.faces].mean(axis=1), template.face_patch
    outfit = scene_clothes.sample_outfit(np.random.default_rng(0))
    paint = [np.array([k % 2, k // 2 % 2, k // 4]) * 0.8 for k in range(8)]
    plain = textures.sample_material(np.random.default_rng(0), pattern="plain")
    outfit = dataclasses.replace(
        outfit,
        materials=tuple(
            dataclasses.replace(plain, colours=np.stack([c] * 3), unevenness=0.0) for c in paint
        ),
        sleeve=0.9, leg=1.95, sock=9.0, waist=0.2, hem=0.0, hairline=0.8, hat_brim=9.0,
    )  # fmt: skip
    albedo, _ = scene_clothes.paint_person(outfit, landmarks, patch, points)
    worn = np.array([np.abs(albedo - c).max(axis=1) < 1e-5 for c in paint])
    skin, top, bottom, shoes = worn[:4]
    coarse = np.array(parts.COARSE_NAMES)[parts.FINE_TO_COARSE[patch]]
    assert skin[np.char.endswith(coarse, "hand")].all()
    assert shoes[np.char.endswith(coarse, "foot")].all()
    assert bottom[np.char.endswith(coarse, "upper_leg")].mean() > 0.95
    assert top[np.char.endswith(coarse, "upper_arm")].mean() > 0.7
    assert skin[np.char.endswith(coarse, "lower_arm")].all()
    torso = coarse == "torso"
    assert (top | bottom | skin)[torso].all() and top[torso].mean() > 0.5
    hair = worn[5]
    crown = points[:, 1] > landmarks.head_low[1] + 0.95 * np.ptp(
        [landmarks.head_low[1], landmarks.head_high[1]]
    )
    assert hair[crown].all() and not hair[coarse != "head"].any()


def test_light_falls_on_the_side_of_the_sun():
    lighting = scene_lighting.Lighting(
        np.array([0.0, -1.0, 0.0]), np.full(3, 0.5), np.full(3, 0.4), np.full(3, 0.2)
    )
    normals = np.array([[0.0, -1, 0], [0, 1, 0], [1, 0, 0]])
    light = lighting.shade(np.ones((3, 3), np.float32), normals, np.zeros(3, np.float32))
    np.testing.assert_allclose(light[:, 0], [0.9, 0.2, 0.3], atol=1e-6)


def test_moved_meshes_keep_their_texture():
    box = render_meshes.box([0.2, 0.4, 0.6])
    moved = box.moved(np.diag([1.0, -1.0, -1.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(moved.texture_points, box.texture_points)
    np.testing.assert_allclose(moved.vertices.mean(axis=0), [1, 2, 3], atol=1e-12)
    np.testing.assert_allclose(moved.normals, box.normals * [1, -1, -1])
