"""Solid textures and clothes: what colour a surface point has before light falls on it.

Colours are float32 RGB in [0, 1]. Textures are functions of the point on the undeformed surface, so
that they stick to a body however it is posed, and have no seams between patches.
"""

import colorsys
import dataclasses
import functools

import cv2
import numpy as np

from ktn_jax.body import parts

_TILE = 32  # side of a noise tile, texels

# From light to dark; people are drawn along the line through them and jittered.
_SKIN_TONES = np.array(
    [[0.94, 0.80, 0.72], [0.87, 0.68, 0.56], [0.76, 0.55, 0.42], [0.56, 0.38, 0.27]]
    + [[0.39, 0.25, 0.18], [0.24, 0.15, 0.11]]
)
HAIR_TONES = np.array(
    [[0.07, 0.06, 0.06], [0.20, 0.13, 0.08], [0.38, 0.24, 0.13], [0.65, 0.50, 0.28]]
    + [[0.52, 0.24, 0.12], [0.66, 0.65, 0.64]]
)
_PATTERNS = ("plain", "stripes", "checks", "dots", "plaid", "blotches", "gradient")
_CLOTH_ODDS = (0.36, 0.18, 0.1, 0.08, 0.1, 0.13, 0.05)


def sample_colour(rng: np.random.Generator) -> np.ndarray:
    """Draws a colour of cloth or paint: [3], often muted, sometimes loud, black or white too."""
    if rng.random() < 0.25:  # greys, blacks and whites are what most people wear
        grey: np.ndarray = rng.uniform(0.04, 0.95) + rng.normal(0, 0.015, 3).clip(-0.04, 0.04)
        return grey
    hue, saturation, value = rng.random(), rng.beta(1.5, 2.4), rng.uniform(0.15, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def sample_skin(rng: np.random.Generator) -> np.ndarray:
    """Draws a skin colour [3] between very light and very dark."""
    position = rng.uniform(0, len(_SKIN_TONES) - 1)
    low = min(int(position), len(_SKIN_TONES) - 2)
    tone = _SKIN_TONES[low] + (position - low) * (_SKIN_TONES[low + 1] - _SKIN_TONES[low])
    colour: np.ndarray = tone + rng.normal(0, 0.02, 3)
    return colour.clip(0.05, 1.0)


def noise_tile(rng: np.random.Generator, cells: int = 8, channels: int = 1) -> np.ndarray:
    """Draws smooth noise that repeats without a seam.

    Args:
        rng: Random generator.
        cells: Blobs along a side.
        channels: Independent channels.

    Returns:
        [32, 32, channels] float32 in [0, 1].
    """
    coarse = rng.random((cells, cells, channels), dtype=np.float32)
    around = np.arange(-1, cells + 1) % cells
    wrapped = coarse[around[:, None], around]
    scale = _TILE // cells
    smooth = cv2.resize(wrapped, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return smooth.reshape(*smooth.shape[:2], channels)[scale:-scale, scale:-scale]


@dataclasses.dataclass(frozen=True)
class Material:
    """A solid texture.

    Attributes:
        pattern: One of plain, stripes, checks, dots, plaid, blotches, gradient.
        colours: [3, 3] the ground, the pattern, and a third where the pattern needs it.
        axes: [2, 3] the directions along which the pattern repeats, in repeats per metre.
        phase: [2] repeats.
        duty: Share of the pattern's colour.
        tile_seed: Decides the noise of the cloth's unevenness and of blotches.
        unevenness: Strength of the noise.
        shininess: Strength of the highlight.
    """

    pattern: str
    colours: np.ndarray
    axes: np.ndarray
    phase: np.ndarray
    duty: float
    tile_seed: int
    unevenness: float = 0.08
    shininess: float = 0.0

    @functools.cached_property
    def _tile(self) -> np.ndarray:
        """[32, 32, 1] noise, drawn when first needed: many materials end up out of sight."""
        rng = np.random.default_rng(self.tile_seed)
        return noise_tile(rng, cells=int(rng.choice([4, 8, 16])))

    def colour(self, points: np.ndarray) -> np.ndarray:
        """Evaluates the texture at points [N, 3] in metres: [N, 3] RGB."""
        repeats = np.einsum("nd,kd->nk", points, self.axes) + self.phase
        ground, figure, third = self.colours.astype(np.float32)
        column, row = (repeats * 4).astype(np.int64).T % _TILE
        noise = self._tile[row, column]
        position = repeats - np.floor(repeats)
        if self.pattern == "plain":
            share = np.zeros((len(points), 1), bool)
        elif self.pattern == "stripes":
            share = position[:, :1] < self.duty
        elif self.pattern == "checks":
            share = (position[:, :1] < 0.5) ^ (position[:, 1:] < 0.5)
        elif self.pattern == "dots":
            share = ((position - 0.5) ** 2).sum(axis=1, keepdims=True) < self.duty * 0.2
        elif self.pattern == "plaid":
            share = (position < self.duty).sum(axis=1, keepdims=True) * 0.5
        elif self.pattern == "blotches":
            share = noise < self.duty
            ground = np.where(noise > 0.65, third, ground)
        else:
            share = np.abs(2 * ((repeats[:, :1] * 0.2) % 1) - 1)
        albedo: np.ndarray = ground + share.astype(np.float32) * (figure - ground)
        albedo = albedo * (1 + self.unevenness * (2 * noise - 1))
        return albedo


def sample_material(
    rng: np.random.Generator, colour: np.ndarray | None = None, pattern: str | None = None
) -> Material:
    """Draws a material.

    Args:
        rng: Random generator.
        colour: [3] its ground colour, drawn when None.
        pattern: The pattern, drawn when None.

    Returns:
        The material.
    """
    ground = sample_colour(rng) if colour is None else colour
    pattern = str(rng.choice(_PATTERNS, p=_CLOTH_ODDS)) if pattern is None else pattern
    frequency = np.exp(rng.uniform(np.log(4.0), np.log(28.0)))
    upright = rng.random() < 0.6  # cloth is mostly woven along and across the body
    tilt = 0.0 if upright else rng.uniform(-0.8, 0.8)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    if rng.random() < 0.5:
        turn = turn[::-1]
    depth = rng.uniform(-0.7, 0.7, 2)  # or a pattern would smear along the sides of the body
    axes = np.concatenate([turn, depth[:, None] * (0.2 if upright else 1.0)], axis=1) * frequency
    return Material(
        pattern=pattern,
        colours=np.stack([ground, sample_colour(rng), sample_colour(rng)]),
        axes=axes,
        phase=rng.uniform(0, 1, 2) + 64,  # keeps the repeats positive where bodies are
        duty=rng.uniform(0.25, 0.55),
        tile_seed=int(rng.integers(2**32)),
        unevenness=rng.uniform(0.02, 0.2),
        shininess=rng.uniform(0, 0.25) if rng.random() < 0.3 else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """Where clothes begin and end on the rest pose.

    Attributes:
        keypoints: [17, 3] of the rest pose, metres.
        head_low: [3] the lowest corner of the head's bounding box.
        head_high: [3] the highest.
    """

    keypoints: np.ndarray
    head_low: np.ndarray
    head_high: np.ndarray

    def named(self, name: str) -> np.ndarray:
        """Returns the keypoint [3] of the given COCO name."""
        point: np.ndarray = self.keypoints[parts.KEYPOINT_NAMES.index(name)]
        return point

    def limb_position(self, points: np.ndarray, joints: tuple[str, str, str]) -> np.ndarray:
        """Returns how far down a limb points [N, 3] are: 0, 1, 2 at its joints of the left side.

        Points of the right side are mirrored first.
        """
        mirrored = points * [1, 1, 1]
        start, middle, end = (self.named("left_" + joint) for joint in joints)
        mirrored[:, 0] = np.abs(points[:, 0]) * np.sign(start[0])
        upper, lower = middle - start, end - middle
        first = np.einsum("nd,d->n", mirrored - start, upper / (upper @ upper))
        second = np.einsum("nd,d->n", mirrored - middle, lower / (lower @ lower))
        far: np.ndarray = np.where(first < 1, np.minimum(first, 1), 1 + np.maximum(second, 0))
        return far


def find_landmarks(
    vertices: np.ndarray, faces: np.ndarray, face_patch: np.ndarray, keypoints: np.ndarray
) -> Landmarks:
    """Measures the rest pose.

    Args:
        vertices: [V, 3] metres, y up.
        faces: [F, 3].
        face_patch: [F] in 1..24.
        keypoints: [17, 3] of the same pose.

    Returns:
        The landmarks.
    """
    is_head = parts.FINE_TO_COARSE[face_patch] == parts.COARSE_NAMES.index("head")
    head = vertices[faces[is_head]].reshape(-1, 3)
    return Landmarks(keypoints, head.min(axis=0), head.max(axis=0))
