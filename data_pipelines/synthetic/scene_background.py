"""Backgrounds: gradients, noise and pattern, cluttered with shapes that are not people."""

import cv2
import numpy as np

from ktn_jax.data_pipelines.synthetic import textures


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (textures.sample_colour(rng) * 255).astype(int).tolist()
    return red, green, blue


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sums noise of several sizes: [height, width, 3] float32 of mean 0, about -1 to 1."""
    total = np.zeros((height, width, 3), np.float32)
    chroma = rng.beta(1.0, 2.5)
    for cells in (3, 8, 24, 64):
        coarse = rng.standard_normal((cells, cells, 3), dtype=np.float32)
        coarse = coarse[..., :1] + chroma * (coarse - coarse[..., :1])
        strength = rng.uniform(0.05, 0.5)
        total += strength * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return total


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blends colours from top to bottom and a little from left to right: [H, W, 3] in [0, 1]."""
    corners = np.stack([textures.sample_colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    corners[:, 1] = 0.7 * corners[:, 0] + 0.3 * corners[:, 1]
    return cv2.resize(corners.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def _draw_quad(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a patterned poster, wall or floor in perspective."""
    height, width = image.shape[:2]
    side = 64
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) / side
    material = textures.sample_material(rng)
    points = np.concatenate([grid * rng.uniform(0.3, 1.5), np.zeros((len(grid), 1))], axis=1)
    texture = (material.colour(points).clip(0, 1) * 255).astype(np.uint8).reshape(side, side, 3)
    centre = rng.uniform(0, 1, 2) * [width, height]
    extent = rng.uniform(0.1, 0.7, 2) * [width, height]
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    target = centre + square * extent + rng.normal(0, 0.06, (4, 2)) * [width, height]
    source = (square + 0.5) * side
    transform = cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))
    warped = cv2.warpPerspective(
        texture, transform, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, target.astype(np.int32), 255)
    cv2.copyTo(warped, mask, image)


def _draw_lines(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws parallel lines: fences, shelves, blinds, poles."""
    height, width = image.shape[:2]
    colour, count = _colour(rng), int(rng.integers(1, 9))
    start = rng.uniform(0, 1, 2) * [width, height]
    along = rng.normal(0, 1, 2)
    if rng.random() < 0.6:
        along[rng.integers(2)] *= 0.03
    along *= rng.uniform(0.1, 1.0) * width / max(np.linalg.norm(along), 1e-6)
    across = np.array([-along[1], along[0]]) / max(np.linalg.norm(along), 1e-6)
    thickness = max(1, round(rng.uniform(0.004, 0.03) * width))
    gap = rng.uniform(2, 6) * thickness
    for index in range(count):
        first = start + across * gap * index
        ends = np.stack([first, first + along]).astype(int).tolist()
        cv2.line(image, ends[0], ends[1], colour, thickness, cv2.LINE_AA)


def _draw_limb(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a thick bent line in colours of skin or cloth, lit from one side."""
    height, width = image.shape[:2]
    base = textures.sample_skin(rng) if rng.random() < 0.6 else textures.sample_colour(rng)
    joints = [rng.uniform(0, 1, 2) * [width, height]]
    length = rng.uniform(0.06, 0.22) * height
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(1, 4))):
        angle += rng.normal(0, 0.7)
        joints.append(joints[-1] + length * np.array([np.cos(angle), np.sin(angle)]))
    path = np.array(joints).astype(np.int32)[:, None]
    thickness = max(3, round(length * rng.uniform(0.2, 0.5)))
    for step, light in ((1.0, 0.65), (0.6, 0.9), (0.25, 1.1)):
        colour = (base * light * 255).clip(0, 255).astype(int).tolist()
        shift = round(thickness * (1 - step) * 0.3)
        cv2.polylines(image, [path - shift], False, colour, max(1, round(thickness * step)))


def _draw_shape(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a rectangle, an ellipse or a polygon, filled or in outline."""
    height, width = image.shape[:2]
    colour = _colour(rng)
    thickness = -1 if rng.random() < 0.75 else int(rng.integers(1, 4))
    centre = rng.uniform(0, 1, 2) * [width, height]
    extent = np.exp(rng.uniform(np.log(0.02), np.log(0.35), 2)) * [width, height]
    kind = rng.integers(3)
    if kind == 0:
        low, high = (centre - extent).astype(int).tolist(), (centre + extent).astype(int).tolist()
        cv2.rectangle(image, low, high, colour, thickness)
    elif kind == 1:
        axes, turn = extent.astype(int).tolist(), rng.uniform(0, 180)
        cv2.ellipse(
            image, centre.astype(int).tolist(), axes, turn, 0, 360, colour, thickness, cv2.LINE_AA
        )
    else:
        corners = (centre + rng.normal(0, 0.8, (int(rng.integers(3, 7)), 2)) * extent).astype(
            np.int32
        )
        if thickness < 0:
            cv2.fillPoly(image, [corners], colour, cv2.LINE_AA)
        else:
            cv2.polylines(image, [corners], True, colour, thickness, cv2.LINE_AA)


_DRAWERS = (_draw_shape, _draw_quad, _draw_lines, _draw_limb)
_DRAWER_ODDS = (0.45, 0.2, 0.15, 0.2)


def paint_background(
    image_size_hw: tuple[int, int], clutter_range: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Paints a background.

    Args:
        image_size_hw: Height and width in pixels.
        clutter_range: Fewest and most shapes.
        rng: Random generator.

    Returns:
        [H, W, 3] uint8 RGB.
    """
    height, width = image_size_hw
    base = _gradient(rng, height, width)
    if rng.random() < 0.5:  # a horizon, or where the wall meets the floor
        horizon = int(rng.uniform(0.3, 0.9) * height)
        base[horizon:] = _gradient(rng, height, width)[horizon:]
    base += rng.uniform(0.02, 0.35) * _noise(rng, height, width)
    image: np.ndarray = (base.clip(0, 1) * 255).astype(np.uint8)
    count = int(rng.integers(clutter_range[0], clutter_range[1] + 1))
    for drawer in rng.choice(len(_DRAWERS), size=count, p=_DRAWER_ODDS):
        _DRAWERS[drawer](image, rng)
    if rng.random() < 0.4:  # out of focus behind the people
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.5))
    return image
