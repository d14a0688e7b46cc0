"""Pictures of people found: overlays of parts, masks, boxes, scores, keypoints and UV isolines.

NumPy in, uint8 RGB out. Colours of patches and people are those of `results.palette`.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from ktn_jax.body import parts
from ktn_jax.results.categories import CATEGORY_NAMES, PERSON_CATEGORY
from ktn_jax.results.maps import overlap, paste_iuv, person_numbers
from ktn_jax.results.palette import PATCH_COLOURS, mix_colour, mix_colours, person_colour
from ktn_jax.results.placed_masks import PlacedMask
from ktn_jax.results.records import PersonResult

_COLOUR_OF_SIDE = {"left": (60, 160, 255), "right": (255, 110, 40)}
_COLOUR_OF_MIDDLE = (250, 230, 80)
_U_LINE, _V_LINE = (255, 255, 255), (20, 20, 20)
_NUM_ISOLINES = 8
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LEGIBLE_FONT_SCALE = 0.4  # about 9 pixels high
_TITLE_FONT_SCALE = 0.6  # about 13 pixels high
_SHOWN_WIDTH = 1140  # pixels: of the reports' pages, which wider pictures are shrunk to
_MIN_KEYPOINT_SCORE = 0.05  # the reference's threshold for drawing


def draw_people(
    image: np.ndarray,
    people: Sequence[PersonResult],
    *,
    opacity: float = 0.6,
    show_parts: bool = True,
    show_masks: bool = True,
    show_boxes: bool = True,
    show_scores: bool = True,
    show_keypoints: bool = False,
    show_isolines: bool = False,
    min_keypoint_score: float = _MIN_KEYPOINT_SCORE,
) -> np.ndarray:
    """Draws people over their image. Nothing outside their boxes is changed.

    Args:
        image: [H, W, 3] uint8 RGB.
        people: In the image's pixels. The one with the higher score is in front.
        opacity: Of the part colours, 0 to 1; lines and text are opaque.
        show_parts: Colours every body pixel by `PATCH_COLOURS`; those of people with vertices in
            place of patches with half the opacity in the colour of the box.
        show_masks: Outlines the masks of people who have one, in the colour of the box, and fills
            them (with half the opacity) where no parts are drawn.
        show_boxes: Outlines the boxes, from inside.
        show_scores: Writes the score, after `track_id` and the name of anything but a person, into
            the corner of the box with the least of bodies, unless the box is too small for legible
            text.
        show_keypoints: Draws the skeleton of people who have keypoints.
        show_isolines: Draws lines of equal U (white) and equal V (black) on the parts.
        min_keypoint_score: Keypoints below are left out, with the bones that end there.

    Returns:
        [H, W, 3] uint8 RGB, a new array. Lines and text scale with the image.

    Raises:
        ValueError: not an image in memory, an opacity outside 0 to 1, or a mask of an image of
            another size.
    """
    _check_picture("image", image)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be 0 to 1, got {opacity}")
    canvas = image.copy()
    iuv, instances = paste_iuv(people, image.shape[:2])
    if show_parts:
        patches = np.ascontiguousarray(iuv[..., 0])
        mix_colours(canvas, patches > 0, patches, PATCH_COLOURS, opacity)
    stroke = _stroke(image.shape[:2])
    if show_isolines:
        _draw_isolines(canvas, iuv, instances, stroke)
    numbered = zip(people, person_numbers(people), strict=True)
    for person, number in sorted(numbered, key=lambda pair: -pair[0].score)[::-1]:
        (rows, columns), _ = overlap(person, iuv.shape[:2])
        window = canvas[rows, columns]  # a view: what is drawn on it cannot leave the box
        if not window.size:
            continue
        colour = person_colour(number)
        if show_parts and person.iuv is None and person.vertices is not None:
            is_own = instances[rows, columns] == number
            mix_colour(window, is_own, colour, opacity / 2)
        if show_masks and person.mask is not None:
            has_parts = show_parts and person.is_body is not None
            _draw_mask(canvas, person.mask, colour, stroke, 0 if has_parts else opacity / 2)
        if show_boxes:
            _draw_frame(window, colour, stroke)
        if show_keypoints and person.keypoints is not None:
            origin_xy = (columns.start, rows.start)
            _draw_skeleton(window, person.keypoints, origin_xy, stroke, min_keypoint_score)
        if show_scores:
            is_body = instances[rows, columns] > 0
            _draw_label(window, is_body, _label(person), colour, min(image.shape[:2]))
    return canvas


def _label(person: PersonResult) -> str:
    label = f"{person.score:.2f}"
    if person.category_id != PERSON_CATEGORY:
        label = f"{CATEGORY_NAMES.get(person.category_id, person.category_id)} {label}"
    return label if person.track_id is None else f"#{person.track_id} {label}"


def _draw_mask(
    canvas: np.ndarray,
    mask: PlacedMask,
    colour: tuple[int, int, int],
    stroke: int,
    opacity: float,
) -> None:
    mask.check_image_size(canvas.shape[:2])
    window, is_inside = canvas[mask.slices], mask.mask
    if not is_inside.any():
        return
    mix_colour(window, is_inside, colour, opacity)
    kernel = np.ones((3, 3), np.uint8)
    # Zeros around the window make its border an outline.
    padded = np.pad(is_inside, stroke).astype(np.uint8)
    inner = cv2.erode(padded, kernel, iterations=stroke)[stroke:-stroke, stroke:-stroke]
    window[is_inside & (inner == 0)] = colour


def draw_iuv(iuv: np.ndarray) -> np.ndarray:
    """Draws a map of patches, U and V by itself.

    Args:
        iuv: [H, W, 3] uint8 of I, 255 U, 255 V.

    Returns:
        [H, W, 3] uint8 RGB: the patch's colour, darker towards U = 0 and paler towards V = 1;
        black on background.

    Raises:
        ValueError: not such a map.
    """
    _check_picture("iuv", iuv)
    if iuv[..., 0].max(initial=0) > parts.NUM_PATCHES:
        raise ValueError(f"patch {iuv[..., 0].max()} in iuv, wanted 0..24: channels are I, U, V")
    u, v = (iuv[..., 1:].astype(np.float32) / 255).transpose(2, 0, 1)[..., None]
    shaded = PATCH_COLOURS[iuv[..., 0]] * (0.45 + 0.55 * u)
    shaded += 0.45 * v * (255 - shaded)
    shaded[iuv[..., 0] == 0] = 0
    return np.asarray(np.rint(shaded), np.uint8)


def side_by_side(images: Sequence[np.ndarray], titles: Sequence[str] | None = None) -> np.ndarray:
    """Puts pictures into a row on white, each under its title.

    Args:
        images: [H, W, 3] uint8 each. Smaller ones are enlarged to the tallest one's height.
        titles: One for each image, ASCII (the font has nothing else), or None for none.

    Returns:
        [h, w, 3] uint8 RGB.

    Raises:
        ValueError: no images, not images in memory, or another number of titles.
    """
    if not images:
        raise ValueError("side_by_side needs at least one image")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")
    for image in images:
        _check_picture("image", image)
    height = max(len(image) for image in images)
    gap = max(2, height // 60)
    widths = [max(round(image.shape[1] * height / len(image)), 1) for image in images]
    total_width = sum(widths) + gap * (len(images) - 1)
    columns: list[np.ndarray] = []
    for number, image in enumerate(images):
        if len(image) != height:
            image = cv2.resize(image, (widths[number], height), interpolation=cv2.INTER_LINEAR)
        if titles is not None:
            image = np.concatenate([_title_bar(titles[number], widths[number], total_width), image])
        if number:
            columns.append(np.full((len(image), gap, 3), 255, np.uint8))
        columns.append(image)
    return np.concatenate(columns, axis=1)


def _check_picture(name: str, picture: np.ndarray) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"{name} must be [H, W, 3] uint8, got {picture.shape} {picture.dtype}")


def _stroke(image_size_hw: tuple[int, int]) -> int:
    """Line width in pixels: 1 on thumbnails, 2 on web images, 12 on a camera's."""
    return max(1, round(min(image_size_hw) / 250))


def _draw_frame(window: np.ndarray, colour: tuple[int, int, int], stroke: int) -> None:
    stroke = max(1, min(stroke, min(window.shape[:2]) // 4))  # small boxes keep their content
    window[:stroke] = window[-stroke:] = colour
    window[:, :stroke] = window[:, -stroke:] = colour


def _draw_label(
    window: np.ndarray,
    is_body: np.ndarray,
    text: str,
    colour: tuple[int, int, int],
    image_side: int,
) -> None:
    """Writes into the corner with the fewest body pixels, if a third of the height is enough."""
    wanted = max(_LEGIBLE_FONT_SCALE, image_side / 900)
    for scale in (wanted, max(0.7 * wanted, _LEGIBLE_FONT_SCALE), _LEGIBLE_FONT_SCALE):
        thickness = max(1, round(1.6 * scale))
        (text_width, text_height), below = cv2.getTextSize(text, _FONT, scale, thickness)
        margin = max(2, text_height // 4)
        height, width = text_height + below // 2 + 2 * margin, text_width + 2 * margin
        if 3 * height <= window.shape[0] and width <= window.shape[1]:
            break
    else:
        return
    top, bottom, left, right = np.s_[:height], np.s_[-height:], np.s_[:width], np.s_[-width:]
    corners = ((top, left), (top, right), (bottom, left), (bottom, right))
    corner = min(corners, key=lambda corner: is_body[corner].sum())  # the first of equals
    label = window[corner]
    label[:] = colour
    at = (margin, text_height + margin)
    cv2.putText(label, text, at, _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)


def _draw_skeleton(
    window: np.ndarray,
    keypoints: np.ndarray,
    origin_xy: tuple[int, int],
    stroke: int,
    min_score: float,
) -> None:
    # A NaN anywhere compares False and leaves the keypoint out.
    is_seen = (keypoints[:, 2] >= min_score) & (np.abs(keypoints[:, :2]) < 1e6).all(axis=1)
    at = np.zeros((len(keypoints), 2), int)
    at[is_seen] = np.floor(keypoints[is_seen, :2]) - origin_xy
    for first, second in parts.KEYPOINT_SKELETON:
        if is_seen[first] and is_seen[second]:
            sides = {parts.KEYPOINT_NAMES[index].split("_")[0] for index in (first, second)}
            colour = _COLOUR_OF_SIDE.get(sides.pop()) if len(sides) == 1 else None
            ends = (at[first].tolist(), at[second].tolist())
            cv2.line(window, *ends, colour or _COLOUR_OF_MIDDLE, stroke, cv2.LINE_AA)
    for name, point, seen in zip(parts.KEYPOINT_NAMES, at, is_seen, strict=True):
        if seen:
            colour = _COLOUR_OF_SIDE.get(name.split("_")[0], _COLOUR_OF_MIDDLE)
            cv2.circle(window, point.tolist(), stroke + 1, colour, cv2.FILLED, cv2.LINE_AA)


def _draw_isolines(canvas: np.ndarray, iuv: np.ndarray, instances: np.ndarray, stroke: int) -> None:
    width = max(1, stroke // 2)
    is_body = instances > 0
    for channel, colour in ((1, _U_LINE), (2, _V_LINE)):
        level = iuv[..., channel].astype(np.int32) * _NUM_ISOLINES // 256
        is_line = np.zeros(instances.shape, bool)
        for here, there in (
            (np.s_[1:, :], np.s_[:-1, :]),
            (np.s_[:, 1:], np.s_[:, :-1]),
        ):
            # Between patches and people U and V jump: that is no line of equal U or V.
            is_same = (iuv[here][..., 0] == iuv[there][..., 0]) & (
                instances[here] == instances[there]
            )
            is_line[here] |= is_same & is_body[here] & (level[here] != level[there])
        if width > 1:
            thick = cv2.dilate(is_line.astype(np.uint8), np.ones((width, width), np.uint8))
            is_line = (thick > 0) & is_body
        canvas[is_line] = colour


def _title_bar(title: str, width: int, total_width: int) -> np.ndarray:
    scale = _TITLE_FONT_SCALE * max(1, total_width / _SHOWN_WIDTH)
    bar_height = round(44 * scale)
    thickness = max(1, round(1.6 * scale))
    text_width = cv2.getTextSize(title, _FONT, scale, thickness)[0][0]
    if text_width > 0.95 * width:
        scale *= 0.95 * width / text_width
        thickness = max(1, round(1.6 * scale))
    (text_width, text_height), _ = cv2.getTextSize(title, _FONT, scale, thickness)
    bar = np.full((bar_height, width, 3), 255, np.uint8)
    at = ((width - text_width) // 2, (bar_height + text_height) // 2)
    cv2.putText(bar, title, at, _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return bar
