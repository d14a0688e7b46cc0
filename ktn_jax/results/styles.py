"""Pictures as detectron2's visualisers draw them, equal in every pixel.

detectron2's `apply_net show` calls them dp_segm, dp_u, dp_v, dp_contour, bbox and dp_iuv_texture;
of people with vertices dp_vertex and dp_cse_texture, see `mesh_styles`.
People are drawn one over the other in the order in which they are given, best first as detectors
give them; that is, unlike in our own pictures, the person with the lowest score is in front.
NumPy in, uint8 RGB out.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ktn_jax.body import parts
from ktn_jax.results.atlas import check_atlas, sample_atlas
from ktn_jax.results.contours import draw_contours
from ktn_jax.results.maps import overlap_at
from ktn_jax.results.mesh_styles import draw_mesh_texture, mesh_of, values_of_pixels
from ktn_jax.results.records import PersonResult
from ktn_jax.results.stroke_text import draw_number

STYLES = ("fine_segm", "u", "v", "contour", "bbox", "texture", "vertex", "mesh_texture")
"""Names of the styles."""
VERTEX_STYLES = ("vertex", "mesh_texture")
CHART_STYLES = ("fine_segm", "u", "v", "contour", "texture")

BACKGROUNDS = ("photo", "grey", "black", "lowest")
"""What people are drawn on: the photo; the grey photo, as `apply_net show` does; black; or the
colour of the lowest value, as the makers of DensePose videos do."""

COLORMAPS = {
    "parula": cv2.COLORMAP_PARULA,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "jet": cv2.COLORMAP_JET,
    "turbo": cv2.COLORMAP_TURBO,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
    "cividis": cv2.COLORMAP_CIVIDIS,
}
"""OpenCV's colour maps by name; detectron2 draws with parula, and vertices with jet."""

_OWN_COLORMAPS = {"vertex": "jet"}

_LARGEST_LEVEL = 255
_SCALE_OF_PATCHES = 255 / parts.NUM_PATCHES
_BOX_COLOUR = (15, 127, 18)
_SCORE_COLOUR = (218, 227, 218)
_SCORE_SCALE = 0.35


@dataclasses.dataclass(frozen=True)
class StyleSettings:
    """How styles are drawn. The defaults are those of detectron2's visualisers.

    Attributes:
        background: of `BACKGROUNDS`.
        colormap: of `COLORMAPS`; None for that of detectron2.
        opacity: of the colours of fine_segm, u, v and vertex, 0 to 1.
        atlas: of the style texture, as `atlas.read_atlas` gives it.
        mesh_texture: of the style mesh_texture, as `atlas.read_texture` gives it.
        mesh_files: files of meshes for vertex and mesh_texture, see `meshes.load_mesh`; others are
            loaded by their names, and fetched the first time.

    Raises:
        ValueError: an unknown name, an opacity outside 0 to 1, or no atlas or texture.
    """

    background: str = "photo"
    colormap: str | None = None
    opacity: float = 0.7
    atlas: np.ndarray | None = None
    mesh_texture: np.ndarray | None = None
    mesh_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.background not in BACKGROUNDS:
            raise ValueError(
                f"unknown background {self.background!r}, wanted {', '.join(BACKGROUNDS)}"
            )
        if self.colormap is not None and self.colormap not in COLORMAPS:
            raise ValueError(f"unknown colormap {self.colormap!r}, wanted {', '.join(COLORMAPS)}")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity must be 0 to 1, got {self.opacity}")
        if self.atlas is not None:
            check_atlas(self.atlas)
        texture = self.mesh_texture
        if texture is not None and (texture.ndim != 3 or texture.shape[2] != 4):
            raise ValueError(f"mesh_texture must be [H, W, 4] RGBA, got {texture.shape}")

    def check_style(self, style: str) -> None:
        """Raises ValueError for an unknown style, or one that needs a picture that is missing."""
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}, wanted {', '.join(STYLES)}")
        if style == "texture" and self.atlas is None:
            raise ValueError("the style texture needs an atlas (--atlas FILE)")
        if style == "mesh_texture" and self.mesh_texture is None:
            raise ValueError("the style mesh_texture needs a texture (--mesh-texture FILE)")

    def facts(self) -> list[Any]:
        """JSON values that differ where pictures would.

        Raises:
            OSError: a file of a mesh cannot be read.
        """
        given = [
            None if picture is None else _digest(picture.tobytes())
            for picture in (self.atlas, self.mesh_texture)
        ]
        files = [pathlib.Path(file) for file in self.mesh_files]
        meshes = [[file.stem, _digest(file.read_bytes())] for file in files]
        return [self.background, self.colormap, self.opacity, *given, meshes]

    def colours(self, style: str) -> np.ndarray:
        """The RGB colours of a style's values, uint8 [256, 3]."""
        return colours_of(self.colormap or _OWN_COLORMAPS.get(style, "parula"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def colours_of(colormap: str) -> np.ndarray:
    """The RGB colours of a colour map, uint8 [256, 3]."""
    levels = np.arange(_LARGEST_LEVEL + 1, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(levels, COLORMAPS[colormap])[:, 0, ::-1])


def draw_styles(
    image: np.ndarray,
    people: Sequence[PersonResult],
    styles: Sequence[str],
    settings: StyleSettings | None = None,
) -> np.ndarray:
    """Draws people in one style, or in several over one another.

    Args:
        image: uint8 [H, W, 3] RGB.
        people: In the image's pixels, in the order in which they are drawn. Styles leave out those
            who lack what they show: an IUV picture, or vertices.
        styles: Names of `STYLES`, the first one undermost.
        settings: None for detectron2's.

    Returns:
        uint8 [H, W, 3] RGB, a new array.

    Raises:
        ValueError: an unknown style, a style without the picture that it needs, or people whose
            vertices are not those of the mesh.
        ktn_jax.runtime.downloads.DownloadError: a mesh could not be fetched.
    """
    settings = settings or StyleSettings()
    for style in styles:
        settings.check_style(style)
    canvas = _background(image, settings.background, settings.colours(styles[0] if styles else ""))
    for style in styles:
        colours = settings.colours(style)
        for person in people:
            _draw_person(canvas, person, style, settings, colours)
    return canvas


def _background(image: np.ndarray, background: str, colours: np.ndarray) -> np.ndarray:
    if background == "photo":
        return image.copy()
    if background == "grey":
        return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    canvas = np.zeros_like(image)
    if background == "lowest":
        canvas[:] = colours[0]
    return canvas


def _draw_person(
    canvas: np.ndarray,
    person: PersonResult,
    style: str,
    settings: StyleSettings,
    colours: np.ndarray,
) -> None:
    corner = person.box_xyxy[:2]
    box_xywh = np.concatenate([corner, person.box_xyxy[2:] - corner])
    if style == "bbox":
        draw_scored_box(canvas, box_xywh, person.score)
        return
    if style in VERTEX_STYLES:
        if person.vertices is not None:
            mesh = mesh_of(person.mesh, settings.mesh_files)
            if style == "mesh_texture" and settings.mesh_texture is not None:
                draw_mesh_texture(canvas, person, mesh, settings.mesh_texture)
            elif person.is_body is not None:
                values = values_of_pixels(person, mesh)
                draw_values(canvas, person.is_body, values, box_xywh, colours, settings.opacity)
        return
    if person.iuv is None:
        return
    patches, uv = person.iuv[0], person.iuv[1:]
    if person.uv is not None:  # as detectron2 converts them: beyond 0 and 1, 256 levels further on
        uv = (person.uv * _LARGEST_LEVEL).astype(np.int64).astype(np.uint8)
    if style == "contour":
        draw_contours(canvas, patches, uv, box_xywh, colours)
    elif style == "texture" and settings.atlas is not None:
        points = person.iuv[1:] / np.float32(_LARGEST_LEVEL) if person.uv is None else person.uv
        draw_texture(canvas, patches, points, box_xywh, settings.atlas)
    else:
        scale = _SCALE_OF_PATCHES if style == "fine_segm" else 1.0
        values = {"fine_segm": patches, "u": uv[0], "v": uv[1]}[style]
        draw_values(canvas, patches > 0, values, box_xywh, colours, settings.opacity, scale)


def draw_values(
    canvas: np.ndarray,
    is_drawn: np.ndarray,
    values: np.ndarray,
    box_xywh: np.ndarray,
    colours: np.ndarray,
    opacity: float,
    scale: float = 1.0,
) -> None:
    """Mixes the colours of values into a box, in place.

    Args:
        canvas: uint8 [H, W, 3].
        is_drawn: bool [h, w], over the box.
        values: [h, w], over the box. Both are resized bilinearly if they are not int(w), int(h) of
            the box in size; a pixel is drawn if half of it is.
        box_xywh: In pixels, truncated. A box without pixels draws nothing; what lies outside the
            canvas is cut off.
        colours: uint8 [256, 3].
        opacity: 0 to 1. Mixed values are truncated, also where nothing is drawn, so that some
            opacities darken the box by a level.
        scale: Values times this, clipped to 0..255 and truncated, name the colour.
    """
    x, y, width, height = (int(value) for value in box_xywh)
    if width <= 0 or height <= 0:
        return
    is_drawn = is_drawn.astype(np.uint8)
    if values.shape != (height, width):
        is_drawn, values = (
            cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
            for pixels in (is_drawn, values)
        )
    levels = np.clip(values.astype(np.float32) * np.float32(scale), 0, _LARGEST_LEVEL)
    place, own = overlap_at((x, y), (height, width), canvas.shape)
    window = canvas[place]
    drawn = np.where(is_drawn[own][..., None] > 0, colours[levels.astype(np.uint8)[own]], window)
    window[:] = window * (1 - opacity) + drawn * opacity


def draw_texture(
    canvas: np.ndarray,
    patches: np.ndarray,
    uv: np.ndarray,
    box_xywh: np.ndarray,
    atlas: np.ndarray,
) -> None:
    """Dresses a person in the colours of an atlas, in place.

    Args:
        canvas: uint8 [H, W, 3].
        patches: uint8 [h, w] over the pixels of the box, 0 for background.
        uv: float [2, h, w].
        box_xywh: In pixels; its corner, truncated, is the first pixel.
        atlas: uint8 [6 n, 4 n, 3 or 4], see `atlas`; the canvas's order of channels.

    Raises:
        ValueError: not an atlas.
    """
    corner = (int(box_xywh[0]), int(box_xywh[1]))
    texels, opacity = sample_atlas(atlas, patches, *uv)
    place, own = overlap_at(corner, patches.shape, canvas.shape)
    window, opacity = canvas[place], opacity[own][..., None]
    window[:] = texels[own] * opacity + window * (1 - opacity)


def draw_scored_box(canvas: np.ndarray, box_xywh: np.ndarray, score: float | None = None) -> None:
    """Draws a box and, above its corner, its score with four digits, in place.

    Args:
        canvas: uint8 [H, W, 3] RGB.
        box_xywh: float32 [4] in pixels.
        score: None for the box alone.
    """
    x, y, width, height = box_xywh
    corners = (int(x), int(y)), (int(x + width), int(y + height))
    cv2.rectangle(canvas, *corners, _BOX_COLOUR, 1)
    if score is not None:
        draw_number(canvas, f"{score:6.4f}", corners[0], _SCORE_SCALE, _SCORE_COLOUR)
