"""Texture atlases: a picture with a square tile for each of the body's patches.

Six rows and four columns of tiles, patch 1 to 6 down the first column, 7 to 12 down the second and
so on, as the DensePose notebooks have it. In a tile U grows to the right and V upwards.
"""

import os

import numpy as np
from PIL import Image

from ktn_jax.body import parts
from ktn_jax.runtime.images import ImageError, explain_error, open_image

_ROWS, _COLUMNS = 6, 4


def atlas_size_hw(side: int) -> tuple[int, int]:
    """Height and width of an atlas whose tiles have sides of `side` pixels."""
    return _ROWS * side, _COLUMNS * side


def tile_corners(patches: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the tiles of patches begin in an atlas.

    Args:
        patches: Integer [...], 1..24; 0, background, gets the tile of patch 1.
        side: Pixels along a side of a tile.

    Returns:
        int [...] columns and [...] rows of the tiles' first pixels.
    """
    column, row = np.divmod(np.maximum(patches.astype(int) - 1, 0), _ROWS)
    return column * side, row * side


def tile_windows(side: int) -> list[tuple[slice, slice]]:
    """Rows and columns of each tile of an atlas, in the order of patches."""
    corners = tile_corners(np.arange(1, parts.NUM_PATCHES + 1), side)
    return [np.s_[y : y + side, x : x + side] for x, y in zip(*corners, strict=True)]


def read_atlas(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an atlas from an image file.

    Args:
        path: Of the image: 6 rows and 4 columns of square tiles of one size.

    Returns:
        uint8 [6 n, 4 n, 3] RGB, or [6 n, 4 n, 4] RGBA if the file has transparency.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: no image, or not of such a shape; the message names the file.
    """
    atlas = _read(path)
    try:
        check_atlas(atlas)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error
    return atlas


def read_texture(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a texture of any layout from an image file.

    Args:
        path: Of the image.

    Returns:
        uint8 [H, W, 4] RGBA. In a file without transparency, pixels that are wholly black have
        alpha 0.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: no image; the message names the file.
    """
    texture = _read(path)
    if texture.shape[-1] == 4:
        return texture
    alpha = np.where(texture.any(axis=-1, keepdims=True), 255, 0).astype(np.uint8)
    return np.concatenate([texture, alpha], axis=-1)


def _read(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        with open_image(path) as file:
            return np.asarray(file.convert("RGBA" if file.has_transparency_data else "RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: not an image: {explain_error(error)}") from error


def check_atlas(atlas: np.ndarray) -> int:
    """Checks the shape of an atlas, and returns the side of its tiles in pixels.

    Raises:
        ValueError: not uint8 [6 n, 4 n, 3 or 4].
    """
    side = len(atlas) // _ROWS
    shapes = [(*atlas_size_hw(side), channels) for channels in (3, 4)]
    if atlas.dtype != np.uint8 or not side or atlas.shape not in shapes:
        raise ValueError(
            f"an atlas has {_ROWS} rows and {_COLUMNS} columns of square tiles, such as "
            f"1200 x 800 pixels (height x width), RGB or RGBA, uint8; got {atlas.shape} "
            f"{atlas.dtype}"
        )
    return side


def sample_atlas(
    atlas: np.ndarray, patches: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the colours of points of the surface, from the texel that each lies in.

    As detectron2 does: U and V are clipped to 0..1 and stretched over the texels' first to last.

    Args:
        atlas: As `read_atlas` gives it.
        patches: Integer [...], 1..24; 0, background, is transparent.
        u: float [...].
        v: float [...].

    Returns:
        uint8 [..., 3] of colours, in the order of the atlas's channels, and float64 [...] of their
        opacity, 0 to 1. In an atlas without transparency, texels that are wholly black have none.

    Raises:
        ValueError: not an atlas.
    """
    side = check_atlas(atlas)
    left, top = tile_corners(np.minimum(patches, parts.NUM_PATCHES), side)
    across = (np.clip(u, 0, 1) * (side - 1)).astype(int)
    down = ((1 - np.clip(v, 0, 1)) * (side - 1)).astype(int)
    texels = atlas[top + down, left + across]
    if texels.shape[-1] == 4:
        opacity = texels[..., 3] / 255
    else:
        opacity = texels.any(axis=-1).astype(np.float64)
    return texels[..., :3], np.where(patches > 0, opacity, 0)
