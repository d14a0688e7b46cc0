"""Turns a scene into a picture with its truth: renders, paints, lights and then degrades."""

import dataclasses

import cv2
import numpy as np

from ktn_jax.body.procedural.assembly import Body
from ktn_jax.data_pipelines.synthetic import (
    render,
    scene_background,
    scene_clothes,
    scene_ground,
    textures,
)
from ktn_jax.data_pipelines.synthetic.render import DenseTruth, Surfaces
from ktn_jax.data_pipelines.synthetic.scene import Layout, Scene, sample_layout

_LAYOUT_TRIALS = 6  # for a picture that shows somebody


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture and what it shows.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        truth: What every pixel shows; exact, whatever was done to the image.
        is_crowd: [N] bool, which people of the truth belong to the far crowd.
    """

    image: np.ndarray
    truth: DenseTruth
    is_crowd: np.ndarray


def _paint_surfaces(
    surfaces: Surfaces,
    outfits: list[scene_clothes.Outfit],
    layout: Layout,
    landmarks: textures.Landmarks,
) -> np.ndarray:
    """Colours and lights the seen surfaces: [S, 3] float32 RGB."""
    albedo = np.empty((len(surfaces.pixel), 3), np.float32)
    shininess = np.zeros(len(surfaces.pixel), np.float32)
    for index, outfit in enumerate(outfits):
        chosen = np.flatnonzero(surfaces.instance == index + 1)
        albedo[chosen], shininess[chosen] = scene_clothes.paint_person(
            outfit, landmarks, surfaces.patch[chosen], surfaces.texture_points[chosen]
        )
    for index, solid in enumerate(layout.objects):
        chosen = np.flatnonzero(surfaces.instance == -1 - index)
        albedo[chosen] = solid.material.colour(surfaces.texture_points[chosen])
        shininess[chosen] = solid.material.shininess
    return layout.lighting.shade(albedo, surfaces.normals, shininess)


def degrade(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Makes a clean picture look like a snapshot. Nothing moves, so the truth stays true.

    Args:
        image: [H, W, 3] uint8 RGB.
        strength: 0 returns the image with only its edges softened, 1 is a poor camera.
        rng: Random generator.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    # One sample a pixel leaves staircases that no camera shows.
    blur = 0.45 + strength * (rng.random() ** 3) * 0.9
    image = cv2.GaussianBlur(image, (0, 0), blur)
    if rng.random() < 0.08 * strength:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
    # A camera's automatic exposure goes most of the way to a medium grey.
    exposure = (rng.uniform(85, 140) / max(image.mean(), 8.0)) ** (0.3 + 0.3 * strength)
    balance = strength * rng.normal(0, 0.1, 3) * [1, 0.5, 1]
    gain = exposure * np.exp(balance + strength * rng.normal(0, 0.1))
    contrast = np.exp(strength * rng.normal(0, 0.12))
    levels = (np.arange(256)[:, None] * gain - 127) * contrast + 127 + strength * rng.normal(0, 8)
    result: np.ndarray = cv2.LUT(image, levels[None].astype(np.float32))
    if strength > 0:
        height, width = image.shape[:2]
        # Shifted copies of one draw: noise of three channels for the price of little more than one.
        noise = rng.standard_normal((height + 4, width + 4), dtype=np.float32)
        noise *= np.float32(strength * rng.uniform(0.5, 7))
        for channel, shift in enumerate((0, 2, 4)):
            result[..., channel] += noise[shift : shift + height, 4 - shift : 4 - shift + width]
    image = np.clip(result, 0, 255, out=result).astype(np.uint8)
    if rng.random() < 0.5 * strength:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 95))]
        decoded = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        image = np.asarray(decoded)
    return image


def make_picture(
    body: Body,
    landmarks: textures.Landmarks,
    scene: Scene,
    seed: np.random.SeedSequence,
) -> Picture:
    """Draws, renders and paints one picture.

    Args:
        body: The body that all people share.
        landmarks: Of the body's rest pose.
        scene: The settings.
        seed: Decides everything. Give a new one for each call: spawning changes its state.

    Returns:
        The picture. It shows at least one person, but for scenes that ask for none.
    """
    # A stream for each purpose: more clutter must not move the people of a seed.
    layout_rng, background_rng, degrade_rng = (np.random.default_rng(s) for s in seed.spawn(3))
    for _ in range(_LAYOUT_TRIALS):
        layout = sample_layout(body, scene, layout_rng)
        truth, surfaces, is_kept = render.render(
            body.template,
            layout.people,
            [solid.mesh for solid in layout.objects],
            layout.camera,
            scene.min_visible_pixels,
            scene.min_visible_fraction,
        )
        if (is_kept & ~layout.is_crowd).any() or scene.people_range[0] == 0:
            break
    outfits = [outfit for outfit, keep in zip(layout.outfits, is_kept, strict=True) if keep]
    image = scene_background.paint_background(
        scene.image_size_hw, scene.clutter_range, background_rng
    )
    if layout.ground is not None:
        shadow = scene_ground.shadow_strengths(
            layout.ground, truth.people, layout.camera, layout.lighting
        )
        image = (image * (1 - shadow[..., None])).astype(np.uint8)
    colour = _paint_surfaces(surfaces, outfits, layout, landmarks)
    image.reshape(-1, 3)[surfaces.pixel] = (colour * 255).clip(0, 255).astype(np.uint8)
    image = degrade(image, scene.degradation, degrade_rng)
    return Picture(image, truth, layout.is_crowd[is_kept])
