"""Texture atlases from photos: where each texel of the body is seen, and the best of many views.

A texel is (patch, column, row) of an atlas, see `results.atlas`: `atlas.sample_atlas` reads the
texel int(U (side - 1)), int((1 - V) (side - 1)) of a patch's tile, and a pixel shows that texel.
"""

import dataclasses

import cv2
import numpy as np

from ktn_jax.body import triangles
from ktn_jax.results.atlas import atlas_size_hw, tile_corners, tile_windows

TILE_SIDE = 200
"""Pixels along a side of a tile, in the DensePose notebooks."""

BLENDS = {"median": 15, "best": 1}
"""Views of a texel that are kept for each way of blending."""

_LEVELS = 255
# Neighbouring pixels further apart than this share of a tile are on two folds of the surface.
_LONGEST_STEP = 0.12
_DENSITY_WINDOW = 25  # texels: more than lie between pixels of a person worth keeping
# A view that shows a texel this much smaller than the best one is left out of the median.
_LEAST_DENSITY = 0.25
_LARGEST_RIM = 6  # texels
# Below the least density: the rim that another view shows well is taken from there.
_DENSITY_OF_RIM = 0.2


@dataclasses.dataclass(frozen=True)
class View:
    """What one picture shows of a person's texture.

    Attributes:
        colours: [6 n, 4 n, 3] uint8, 0 where nothing is seen.
        density: [6 n, 4 n] float32 pixels a texel around each texel: large where a person is near
            and looks at the camera. 0 where nothing is seen.
    """

    colours: np.ndarray
    density: np.ndarray


def view_texture(image: np.ndarray, iuv: np.ndarray, side: int = TILE_SIDE, trim: int = 1) -> View:
    """Carries the pixels of a person over to an atlas.

    A texel that pixels show takes their mean; one between three neighbouring pixels, the
    interpolation of their colours; one around them, within the size of a pixel, the colour of the
    nearest. Without that rim the seams between patches would stay open.

    Args:
        image: [H, W, 3] uint8.
        iuv: [H, W, 3] uint8 of I, 255 U, 255 V of one person; 0 elsewhere.
        side: Pixels along a side of a tile.
        trim: Pixels to leave out along the person's outline, whose colour is mixed with that of
            the background.

    Returns:
        The view.

    Raises:
        ValueError: pictures of different sizes, a side below 2 or a negative trim.
    """
    if image.shape != iuv.shape or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image and iuv must be [H, W, 3] alike: {image.shape}, {iuv.shape}")
    if side < 2 or trim < 0:
        raise ValueError(f"side must be 2 or more and trim 0 or more, got {side} and {trim}")
    patch = np.where(_eroded(iuv[..., 0] > 0, trim), iuv[..., 0], 0)
    x, y = _texel_positions(iuv, patch, side)
    size_hw = atlas_size_hw(side)
    seen = patch > 0
    texel = y[seen].astype(int) * size_hw[1] + x[seen].astype(int)
    count = np.bincount(texel, minlength=size_hw[0] * size_hw[1])
    colours = _interpolated(image, patch, x, y, side)
    is_hit = count > 0
    for channel in range(3):
        total = np.bincount(texel, image[..., channel][seen], minlength=len(count))
        colours.reshape(-1, 3)[is_hit, channel] = total[is_hit] / count[is_hit]
    is_seen = np.isfinite(colours[..., 0])
    density = np.maximum(_smoothed(count.reshape(size_hw), side), np.float32(1e-6))
    rounded = np.rint(np.where(is_seen[..., None], colours, 0)).astype(np.uint8)
    return _with_rim(rounded, np.where(is_seen, density, np.float32(0)), side)


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask without the pixels along its outline; the image's edge is no outline."""
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.asarray(cv2.erode(mask.astype(np.uint8), kernel, borderValue=1), bool)


def _texel_positions(
    iuv: np.ndarray, patch: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] x and y of each pixel in the atlas; cell (row, column) is the texel of that index."""
    left, top = tile_corners(patch, side)
    x = left + iuv[..., 1] * ((side - 1) / _LEVELS)
    y = top + (_LEVELS - iuv[..., 2].astype(int)) * ((side - 1) / _LEVELS)
    return x, y


def _interpolated(
    image: np.ndarray, patch: np.ndarray, x: np.ndarray, y: np.ndarray, side: int
) -> np.ndarray:
    """[6 n, 4 n, 3] float64 colours between neighbouring pixels; NaN where there are none."""
    colours = np.full((*atlas_size_hw(side), 3), np.nan)
    position = np.stack([x, y], axis=-1).reshape(-1, 2)
    label, flat = patch.reshape(-1), image.reshape(-1, 3)
    index = np.arange(patch.size).reshape(patch.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    for corners in ((a, b, c), (b, d, c), (a, b, d), (a, d, c)):
        # Of a square's two ways to be cut, the second fills what one missing corner leaves open.
        pixels = np.stack([corner.reshape(-1) for corner in corners], axis=-1)
        labels = label[pixels]
        pixels = pixels[(labels[:, :1] == labels).all(axis=1) & (labels[:, 0] > 0)]
        steps = np.abs(position[pixels] - position[np.roll(pixels, 1, axis=1)])
        pixels = pixels[steps.max(axis=(1, 2)) <= _LONGEST_STEP * side]
        covered = triangles.cover(position[pixels], colours.shape[:2])
        known = flat[pixels[covered.triangle]]
        colours[covered.row, covered.column] = np.einsum("nk,nkc->nc", covered.barycentric, known)
    return colours


def _smoothed(count: np.ndarray, side: int) -> np.ndarray:
    """[6 n, 4 n] float32 mean of the count around each texel, within its tile."""
    smooth = np.empty(count.shape, np.float32)
    size = (_DENSITY_WINDOW, _DENSITY_WINDOW)
    for tile in tile_windows(side):
        own = count[tile].astype(np.float32)
        smooth[tile] = cv2.blur(own, size, borderType=cv2.BORDER_CONSTANT)
    return smooth


def _with_rim(colours: np.ndarray, density: np.ndarray, side: int) -> View:
    """Fills the texels around those that are seen, as far as a pixel reaches."""
    for tile in tile_windows(side):
        own_colours, own_density = colours[tile], density[tile]  # views
        is_seen = own_density > 0
        if not is_seen.any():
            continue
        distance, label = cv2.distanceTransformWithLabels(
            np.asarray(~is_seen, np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        place = np.zeros(label.max() + 1, int)
        place[label[is_seen]] = np.flatnonzero(is_seen)  # a seen texel's label is its own
        nearest = place[label]
        near_density = own_density.reshape(-1)[nearest]
        pixel = np.minimum(1 / np.sqrt(np.maximum(near_density, 1e-6)), _LARGEST_RIM)
        rim = ~is_seen & (distance <= pixel)
        own_colours[rim] = own_colours.reshape(-1, 3)[nearest[rim]]
        own_density[rim] = near_density[rim] * _DENSITY_OF_RIM
    return View(colours, density)


class AtlasBuilder:
    """Blends any number of views of one person into an atlas, in bounded memory.

    Of each texel the views with the largest density are kept, `BLENDS[blend]` of them.
    """

    def __init__(self, blend: str = "median", side: int = TILE_SIDE):
        """Starts an atlas that shows nothing.

        Args:
            blend: "best", the view with the largest density; or "median", of each colour, over the
                best 15 views, without those of less than a quarter of the best one's density.
            side: Pixels along a side of a tile, as of the views.

        Raises:
            ValueError: another blend.
        """
        if blend not in BLENDS:
            raise ValueError(f"blend must be one of {', '.join(BLENDS)}, got {blend!r}")
        self.num_views = 0
        size_hw = atlas_size_hw(side)
        self._limit = BLENDS[blend]
        self._colours = np.zeros((0, *size_hw, 3), np.uint8)
        self._density = np.zeros((0, *size_hw), np.float32)

    def add(self, view: View) -> None:
        """Adds a view of the atlas's size."""
        self.num_views += 1
        if len(self._density) < self._limit:
            self._colours = np.concatenate([self._colours, view.colours[None]])
            self._density = np.concatenate([self._density, view.density[None]])
            return
        weakest = self._density.argmin(axis=0)
        row, column = np.nonzero(view.density > self._density.min(axis=0))
        slot = weakest[row, column]
        self._colours[slot, row, column] = view.colours[row, column]
        self._density[slot, row, column] = view.density[row, column]

    def atlas(self) -> np.ndarray:
        """The atlas so far: [6 n, 4 n, 4] uint8, alpha 255 where the texel was seen and else 0."""
        atlas = np.zeros((*self._density.shape[1:], 4), np.uint8)
        if not self.num_views:
            return atlas
        best = self._density.max(axis=0)
        row, column = np.nonzero(best)
        order = np.argsort(-self._density[:, row, column], axis=0, kind="stable")
        density = np.take_along_axis(self._density[:, row, column], order, axis=0)
        colours = np.take_along_axis(self._colours[:, row, column], order[..., None], axis=0)
        used = (density >= _LEAST_DENSITY * best[row, column]).sum(axis=0)
        for number in np.unique(used):
            chosen = used == number
            middle = np.median(colours[:number, chosen], axis=0)
            atlas[row[chosen], column[chosen], :3] = np.rint(middle)
        atlas[row, column, 3] = 255
        return atlas
