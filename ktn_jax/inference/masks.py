"""Masks of boxes, brought to the pixels of the photo. NumPy, on the host."""

import numpy as np

from ktn_jax.results.placed_masks import PlacedMask

_THRESHOLD = 0.5


def paste_mask(
    probabilities: np.ndarray, box_xyxy: np.ndarray, image_size_hw: tuple[int, int]
) -> PlacedMask:
    """Pastes a mask into an image, as detectron2 does.

    A pixel belongs to the person where the mask, read bilinearly at the middle of the pixel and 0
    beyond its own cells, is at least one half.

    Args:
        probabilities: [M, M] of the cells of the box.
        box_xyxy: [4] in pixels of the image, not rounded.
        image_size_hw: of the image.

    Returns:
        The mask within the box.
    """
    x0, y0, x1, y1 = (np.float32(value) for value in box_xyxy)
    top, rows = _reads(y0, y1, probabilities.shape[0], image_size_hw[0])
    left, columns = _reads(x0, x1, probabilities.shape[1], image_size_hw[1])
    values = rows @ probabilities.astype(np.float32) @ columns.T
    return PlacedMask(top, left, values >= _THRESHOLD, image_size_hw)


def _reads(start: np.float32, end: np.float32, cells: int, limit: int) -> tuple[int, np.ndarray]:
    """The first pixel of an image's side that a box meets, and weights [pixels, cells] of reads."""
    first = max(int(np.floor(start)), 0)
    last = max(min(int(np.ceil(end)), limit), first)
    middles = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    # In detectron2's order of operations, from pixels to -1..1 and on to cells.
    length = max(end - start, np.finfo(np.float32).tiny)
    place = (middles - start) / length * np.float32(2) - np.float32(1)
    place = ((place + np.float32(1)) * np.float32(cells) - np.float32(1)) / np.float32(2)
    distance = np.abs(place[:, None] - np.arange(cells, dtype=np.float32)[None])
    return first, np.maximum(np.float32(1) - distance, np.float32(0))
