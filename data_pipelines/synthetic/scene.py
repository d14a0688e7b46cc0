"""Random scenes for synthetic pictures: people, things, light and camera."""

import dataclasses
from typing import Any

import numpy as np

from ktn_jax.body.procedural.assembly import Body
from ktn_jax.data_pipelines.synthetic import scene_clothes, scene_lighting, scene_objects
from ktn_jax.data_pipelines.synthetic.render import PosedPerson
from ktn_jax.data_pipelines.synthetic.render_raster import Camera
from ktn_jax.data_pipelines.synthetic.scene_ground import CAMERA_HEIGHTS, Ground
from ktn_jax.data_pipelines.synthetic.scene_poses import measure_stature, measure_trunk

_NEAREST = 0.35  # metres; nothing comes nearer to the camera
_PLACEMENT_TRIALS = 8
_POSE_TRIALS = 30  # for one that the scene allows


@dataclasses.dataclass(frozen=True)
class Scene:
    """Settings of synthetic pictures. Every range is (lowest, highest), both possible.

    Attributes:
        image_size_hw: Height and width in pixels.
        people_range: People who are placed; those who are too hidden are removed again.
        stature_range: Height of a standing person over the height of the image, drawn on a
            logarithmic scale.
        field_of_view_range: Vertical, degrees.
        tilt_degrees: Standard deviation of the camera's pitch; its roll has a half of it.
        truncation_probability: That a person may reach out of the image.
        group_probability: That a person after the first stands close to another one in the image.
        occluder_probability: That a thing stands in front of a person.
        distractor_range: Things that are placed anywhere.
        clutter_range: Shapes painted on the background.
        crowd_probability: That a far crowd is in the picture, annotated as one region.
        crowd_size_range: People in a crowd.
        densepose_fraction: Of the people who are large enough, how many carry surface points.
        points_per_part: Most surface points on one coarse part.
        min_visible_pixels: People with fewer visible pixels are left out.
        min_visible_fraction: So are people of whom a smaller fraction is visible.
        min_densepose_pixels: People with fewer visible pixels carry no surface points.
        facing_degrees: How far a trunk may be turned from the camera; 180 for anybody.
        leaning_degrees: How far it may lean from the vertical; 180 for lying people too.
        min_upright: Least height of a posed body over its stature: 0 for anybody, 0.9 for people
            who stand or walk.
        degradation: Strength of blur, noise and compression of the image: 0 none, 1 a poor camera.
        has_ground: Whether people stand on one ground and cast shadows on it.
    """

    image_size_hw: tuple[int, int] = (256, 256)
    people_range: tuple[int, int] = (1, 4)
    stature_range: tuple[float, float] = (0.35, 1.3)
    field_of_view_range: tuple[float, float] = (28.0, 60.0)
    tilt_degrees: float = 8.0
    truncation_probability: float = 0.2
    group_probability: float = 0.35
    occluder_probability: float = 0.25
    distractor_range: tuple[int, int] = (0, 3)
    clutter_range: tuple[int, int] = (3, 18)
    crowd_probability: float = 0.04
    crowd_size_range: tuple[int, int] = (4, 7)
    densepose_fraction: float = 0.7
    points_per_part: int = 14
    min_visible_pixels: int = 100
    min_visible_fraction: float = 0.2
    min_densepose_pixels: int = 400
    facing_degrees: float = 180.0
    leaning_degrees: float = 180.0
    min_upright: float = 0.0
    degradation: float = 0.7
    has_ground: bool = False

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: a range runs downwards or a probability is outside [0, 1].
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_range") and (value[0] > value[1] or value[0] < 0):
                raise ValueError(f"{field.name} must be (lowest, highest) from 0 on, got {value}")
            if field.name.endswith(("_probability", "_fraction")) and not 0 <= value <= 1:
                raise ValueError(f"{field.name} must be in [0, 1], got {value}")
        if min(self.image_size_hw) < 16:
            raise ValueError(f"image_size_hw must be at least 16 x 16, got {self.image_size_hw}")
        if self.stature_range[0] <= 0:
            raise ValueError(f"stature_range must be positive, got {self.stature_range}")


EASY = Scene(
    people_range=(1, 2),
    stature_range=(0.55, 1.0),
    tilt_degrees=4.0,
    truncation_probability=0.05,
    group_probability=0.1,
    occluder_probability=0.08,
    distractor_range=(0, 2),
    clutter_range=(2, 10),
    crowd_probability=0.0,
    densepose_fraction=1.0,
    degradation=0.4,
)
"""One or two whole people, well seen, all with surface points: what a small model learns from."""

FRONTAL = dataclasses.replace(
    EASY,
    stature_range=(0.75, 0.95),
    truncation_probability=0.0,
    group_probability=0.0,
    occluder_probability=0.05,
    distractor_range=(0, 1),
    clutter_range=(0, 5),
    facing_degrees=40.0,
    leaning_degrees=20.0,
    min_upright=0.9,
    degradation=0.2,
)
"""EASY with large people who stand or walk towards the camera: for minutes of training."""

BUSY = dataclasses.replace(
    FRONTAL,
    people_range=(1, 3),
    stature_range=(0.4, 0.95),
    truncation_probability=0.15,
    group_probability=0.35,
    occluder_probability=0.3,
    distractor_range=(0, 2),
    densepose_fraction=0.6,
)
"""FRONTAL with smaller people too, behind things and each other, some without surface points."""

LARGE = dataclasses.replace(
    BUSY, people_range=(1, 2), stature_range=(0.45, 1.15), densepose_fraction=1.0
)
"""BUSY with one or two larger people, some taller than the picture, all with surface points."""

EVERYDAY = dataclasses.replace(
    Scene(), tilt_degrees=5.0, min_upright=0.3, densepose_fraction=0.8, has_ground=True
)
"""People of any size and pose who stand, sit and crouch on one ground, with shadows."""

HARD = Scene(
    people_range=(2, 6),
    stature_range=(0.18, 1.3),
    tilt_degrees=12.0,
    truncation_probability=0.35,
    group_probability=0.5,
    occluder_probability=0.4,
    distractor_range=(1, 5),
    clutter_range=(8, 30),
    crowd_probability=0.08,
    densepose_fraction=0.4,
    min_visible_pixels=60,
    min_visible_fraction=0.15,
    min_densepose_pixels=250,
    degradation=1.0,
)
"""Small people in groups behind things, few with surface points: closer to DensePose-COCO."""

PRESETS = {
    "default": Scene(),
    "frontal": FRONTAL,
    "busy": BUSY,
    "large": LARGE,
    "everyday": EVERYDAY,
    "easy": EASY,
    "hard": HARD,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One scene, ready to render.

    Attributes:
        camera: The camera.
        people: [P] bodies in the camera frame.
        is_crowd: [P] bool, members of the far crowd.
        outfits: [P] what they wear.
        objects: Things that may hide people.
        lighting: The light.
        ground: What people stand on, if they do.
    """

    camera: Camera
    people: tuple[PosedPerson, ...]
    is_crowd: np.ndarray
    outfits: tuple[scene_clothes.Outfit, ...]
    objects: tuple[scene_objects.SolidObject, ...]
    lighting: scene_lighting.Lighting
    ground: Ground | None = None


def _camera_rotation(pitch: float, roll: float) -> np.ndarray:
    """Rotation from the body's frame (y up, facing +z) to the camera's (y down, +z ahead)."""
    cos, sin = np.cos(pitch), np.sin(pitch)
    nod = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    cos, sin = np.cos(roll), np.sin(roll)
    lean = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    rotation: np.ndarray = lean @ nod @ np.diag([1.0, -1.0, -1.0])
    return rotation


class _Placer:
    """Places people one after the other, none inside another."""

    def __init__(self, body: Body, scene: Scene, rng: np.random.Generator):
        self._body, self._scene, self._rng = body, scene, rng
        height, width = scene.image_size_hw
        view = np.radians(rng.uniform(*scene.field_of_view_range))
        focal = height / (2 * np.tan(view / 2))
        self.camera = Camera(focal, width / 2, height / 2, width, height)
        tilt = np.radians(scene.tilt_degrees) * rng.normal(0, [1, 0.5])
        self._rotation = _camera_rotation(*tilt)
        self.ground: Ground | None = None  # that of the first person who is placed
        self.people: list[PosedPerson] = []
        self.bounds: list[np.ndarray] = []  # [2, 3] lowest and highest corner of each

    def _posed(self) -> tuple[PosedPerson, np.ndarray]:
        """Draws a person around the origin, and the half size [3] of the bounding box, metres."""
        rng = self._rng
        shape = self._body.sample_shape(rng)
        for _ in range(_POSE_TRIALS):
            posed = self._body.pose(shape, self._body.sample_pose(rng))
            if self._is_allowed(posed):
                break
        rotation = self._rotation
        vertices, keypoints = posed.vertices @ rotation.T, posed.keypoints @ rotation.T
        columns = np.ascontiguousarray(vertices.T)  # reducing rows is several times faster
        low, high = columns.min(axis=1), columns.max(axis=1)
        centre = (low + high) / 2
        person = PosedPerson(vertices - centre, keypoints - centre, measure_stature(keypoints))
        return person, (high - low) / 2

    def _is_allowed(self, posed: Any) -> bool:
        scene = self._scene
        turned, leaning = measure_trunk(posed.keypoints)
        height = np.ptp(posed.vertices[:, 1])
        return (
            turned <= scene.facing_degrees
            and leaning <= scene.leaning_degrees
            and height >= scene.min_upright * measure_stature(posed.keypoints)
        )

    def _centre(self, half: np.ndarray) -> np.ndarray:
        """Draws where in the image the middle of a person of this half size [2] comes."""
        rng, size = self._rng, np.array([self.camera.width, self.camera.height])
        if rng.random() < self._scene.truncation_probability:
            low, high = -0.5 * half, size + 0.5 * half
            low, high = np.maximum(low, 0), np.minimum(high, size)
        else:
            low, high = np.minimum(half, size / 2), np.maximum(size - half, size / 2)
        centre = rng.uniform(low, high)
        if 2 * half[1] > size[1] and rng.random() < 0.75:
            # Of a person who does not fit, photographers keep the head.
            centre[1] = half[1] + rng.uniform(0.01, 0.2) * size[1]
        return centre

    def _is_free(self, bounds: np.ndarray) -> bool:
        low, high = bounds
        if low[2] < _NEAREST:
            return False
        for other_low, other_high in self.bounds:
            gap = np.maximum(low - other_high, other_low - high)
            # Bounding boxes are wider than bodies, so they may overlap a little.
            if (gap < -0.12).all():
                return False
        return True

    def _propose(self, stature: float, half_size: np.ndarray) -> np.ndarray:
        """Draws where [3] in the camera frame a person of this stature and half size [3] stands."""
        rng, scene, camera = self._rng, self._scene, self.camera
        size = np.array([camera.width, camera.height])
        low, high = np.log(scene.stature_range)
        pixels = camera.height * np.exp(rng.uniform(low, high))
        if self.people and rng.random() < scene.group_probability:
            index = rng.integers(len(self.people))
            neighbour, place = self.people[index], self.bounds[index].mean(axis=0)
            pixels = camera.focal * neighbour.stature / place[2] * np.exp(rng.normal(0, 0.25))
            pixels = np.clip(pixels, *(np.exp([low, high]) * camera.height))
            depth = camera.focal * stature / pixels
            side = rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 1.8)
            shift = half_size[:2] * camera.focal / depth * [side, rng.normal(0, 0.1)]
            return self.back_project(np.clip(camera.project(place) + shift, 0, size), depth)
        depth = camera.focal * stature / pixels
        return self.back_project(self._centre(half_size[:2] * camera.focal / depth), depth)

    def back_project(self, xy: np.ndarray, depth: float) -> np.ndarray:
        """Returns the point [3] of the camera frame at a position [2] in pixels and a depth."""
        centre = [self.camera.centre_x, self.camera.centre_y]
        return np.append((xy - centre) * depth / self.camera.focal, depth)

    def add(self, crowd_pixels: float = 0.0, crowd_centre: np.ndarray | None = None) -> None:
        """Adds a person, if there is room.

        Args:
            crowd_pixels: Height standing of a member of a crowd.
            crowd_centre: [2] where in the image the crowd is; None for a person of their own.
        """
        person, half_size = self._posed()
        for _ in range(_PLACEMENT_TRIALS):
            if crowd_centre is None:
                place = self._propose(person.stature, half_size)
            else:
                depth = self.camera.focal * person.stature / crowd_pixels
                spread = half_size[:2] * self.camera.focal / depth * [3, 0.4]
                place = self.back_project(crowd_centre + self._rng.normal(0, spread), depth)
            if self._scene.has_ground:
                found = self._on_ground(person, place)
                if found is None:
                    continue
                place, ground = found
            bounds = place + np.stack([-half_size, half_size])
            if self._is_free(bounds):
                self.ground = ground if self._scene.has_ground else None
                self.bounds.append(bounds)
                vertices, keypoints = person.vertices + place, person.keypoints + place
                self.people.append(PosedPerson(vertices, keypoints, person.stature))
                return

    def _on_ground(
        self, person: PosedPerson, place: np.ndarray
    ) -> tuple[np.ndarray, Ground] | None:
        """Where a person stands on the ground, which is below the first; None if out of sight."""
        ground = self.ground
        if ground is None:
            ground = Ground.below(self._rotation[:, 1], person.vertices + place)
            low, high = CAMERA_HEIGHTS
            return (place, ground) if low <= ground.height <= high else None
        place = ground.drop(place, person.vertices)
        row = self.camera.project(place)[1]
        return (place, ground) if 0 <= row < self.camera.height else None


def _sample_objects(
    scene: Scene, placer: _Placer, num_people: int, rng: np.random.Generator
) -> list[scene_objects.SolidObject]:
    objects, camera = [], placer.camera
    for low, high in placer.bounds[:num_people]:
        if rng.random() < scene.occluder_probability:
            occluder = scene_objects.sample_occluder(rng, low, high, _NEAREST)
            objects += [] if occluder is None else [occluder]
    count = int(rng.integers(scene.distractor_range[0], scene.distractor_range[1] + 1))
    for _ in range(count):
        size = camera.height * np.exp(rng.uniform(np.log(0.12), np.log(0.5)))
        depth = rng.uniform(2.0, 12.0)
        centre = rng.uniform(0, 1, 2) * [camera.width, camera.height]
        position = placer.back_project(centre, depth)
        objects += scene_objects.sample_distractor(rng, position, size * depth / camera.focal)
    return objects


def sample_layout(body: Body, scene: Scene, rng: np.random.Generator) -> Layout:
    """Draws a scene.

    Args:
        body: Whom to pose.
        scene: The settings.
        rng: Random generator.

    Returns:
        The scene. It has fewer people than drawn where there is no room for all.
    """
    placer = _Placer(body, scene, rng)
    for _ in range(int(rng.integers(scene.people_range[0], scene.people_range[1] + 1))):
        placer.add()
    num_singles = len(placer.people)
    if rng.random() < scene.crowd_probability:
        height, width = scene.image_size_hw
        pixels = height * rng.uniform(0.12, 0.22)
        centre = rng.uniform([0.15, 0.25], [0.85, 0.75]) * [width, height]
        for _ in range(int(rng.integers(scene.crowd_size_range[0], scene.crowd_size_range[1] + 1))):
            placer.add(pixels * np.exp(rng.normal(0, 0.1)), centre)
    people = placer.people
    return Layout(
        camera=placer.camera,
        people=tuple(people),
        is_crowd=np.arange(len(people)) >= num_singles,
        outfits=tuple(scene_clothes.sample_outfit(rng) for _ in people),
        objects=tuple(_sample_objects(scene, placer, num_singles, rng)),
        lighting=scene_lighting.sample_lighting(rng),
        ground=placer.ground,
    )
