"""The colours of patches and people, the same in every picture.

Left and right are the person's own: warm colours are the right side, cool ones the left, violet the
torso (grey is not seen on white clothes or black ones); of a limb's two patches the darker is the
back or the inside. To eyes that do not tell red from green, the right side is yellow and the left
side and the torso are blue.
"""

import colorsys

import cv2
import numpy as np

from ktn_jax.body import parts

_COLOUR_OF_PATCH = {
    "background": (0, 0, 0),
    "torso_back": (95, 55, 135),
    "torso_front": (160, 110, 205),
    "right_hand": (255, 240, 60),
    "left_hand": (120, 250, 120),
    "left_foot": (140, 150, 255),
    "right_foot": (250, 120, 210),
    "right_upper_leg_back": (150, 10, 30),
    "left_upper_leg_back": (20, 30, 150),
    "right_upper_leg_front": (215, 35, 50),
    "left_upper_leg_front": (50, 70, 225),
    "right_lower_leg_back": (165, 20, 105),
    "left_lower_leg_back": (20, 95, 50),
    "right_lower_leg_front": (225, 60, 160),
    "left_lower_leg_front": (55, 165, 75),
    "left_upper_arm_inside": (0, 95, 140),
    "right_upper_arm_inside": (215, 85, 20),
    "left_upper_arm_outside": (0, 155, 205),
    "right_upper_arm_outside": (255, 135, 65),
    "left_lower_arm_inside": (0, 140, 115),
    "right_lower_arm_inside": (225, 160, 0),
    "left_lower_arm_outside": (40, 205, 165),
    "right_lower_arm_outside": (255, 200, 90),
    "right_head": (255, 165, 175),
    "left_head": (150, 225, 255),
}
PATCH_COLOURS = np.array([_COLOUR_OF_PATCH[name] for name in parts.PATCH_NAMES], np.uint8)
"""[25, 3] RGB of each patch, black for the background."""

# The first differ most: neighbours in score must, not those of a whole crowd.
_FIRST_PEOPLE = (
    (255, 60, 60),
    (60, 220, 90),
    (80, 140, 255),
    (255, 200, 40),
    (220, 90, 255),
    (50, 225, 225),
)
_GOLDEN_RATIO = (5**0.5 - 1) / 2  # steps of it around the circle of hues never meet


def _person_colours() -> np.ndarray:
    colours = [(0, 0, 0), *_FIRST_PEOPLE]
    for number in range(len(colours), 256):
        hue, value = number * _GOLDEN_RATIO % 1, (1.0, 0.8, 0.6)[number % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.array(colours, np.uint8)


PERSON_COLOURS = _person_colours()
"""[256, 3] RGB of people by their number from 1, black for the background."""


def person_colour(number: int) -> tuple[int, int, int]:
    """The RGB colour of a person by number, from 1; after 255 they begin again."""
    red, green, blue = PERSON_COLOURS[(number - 1) % 255 + 1].tolist()
    return red, green, blue


def mix_colours(
    canvas: np.ndarray,
    is_drawn: np.ndarray,
    numbers: np.ndarray,
    colours: np.ndarray,
    opacity: float,
) -> None:
    """Mixes colours into pixels of a canvas, in place, rounded (halves to either side).

    Args:
        canvas: uint8 [H, W, 3] RGB.
        is_drawn: bool [H, W].
        numbers: uint8 [H, W], the row of `colours` of every pixel.
        colours: uint8 [K, 3] RGB, K up to 256.
        opacity: Of the colours, 0 to 1.
    """
    if not canvas.size:  # OpenCV takes no empty pictures
        return
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(colours), 0] = colours
    drawn = cv2.applyColorMap(numbers, table)
    mixed = cv2.addWeighted(canvas, 1 - opacity, drawn, opacity, 0)
    cv2.copyTo(mixed, is_drawn.view(np.uint8), canvas)


def mix_colour(
    canvas: np.ndarray, is_drawn: np.ndarray, colour: tuple[int, int, int], opacity: float
) -> None:
    """Mixes one RGB colour into pixels of a canvas, see `mix_colours`."""
    numbers = np.zeros(is_drawn.shape, np.uint8)
    mix_colours(canvas, is_drawn, numbers, np.array([colour], np.uint8), opacity)
