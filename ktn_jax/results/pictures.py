"""Pictures of a photo's people by name, and the files that they are written to.

Names are `overlay` (our own drawing), the maps `iuv`, `instances` and `labels`, and the styles of
`styles.STYLES`, several of which can be joined in one picture: "contour+bbox".
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ktn_jax.results import drawing, maps
from ktn_jax.results.mesh_styles import mesh_of
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import (
    CHART_STYLES,
    STYLES,
    VERTEX_STYLES,
    StyleSettings,
    draw_styles,
)
from ktn_jax.runtime import atomic_files

OVERLAY = "overlay"
MAPS = ("iuv", "instances", "labels")
JPEG_QUALITY = 90
LONGEST_JPEG_SIDE = 65_500  # of the library that writes it

_JOINED_BY = "+"


def check_names(names: Sequence[str], settings: StyleSettings) -> tuple[str, ...]:
    """Checks names of pictures, and returns each once.

    Raises:
        ValueError: an unknown name, or a style without the picture that it needs.
    """
    for name in names:
        for style in [] if name in (OVERLAY, *MAPS) else name.split(_JOINED_BY):
            if style not in STYLES:
                raise ValueError(
                    f"unknown style {style!r}: wanted {', '.join((OVERLAY, *STYLES, *MAPS))}, or "
                    "several of detectron2's in one picture, such as contour+bbox"
                )
            settings.check_style(style)
    return tuple(dict.fromkeys(names))


def check_shown(
    names: Sequence[str], settings: StyleSettings, *, has_charts: bool, meshes: Sequence[str]
) -> None:
    """Checks that the people of a model have what styles show: others are drawn as if not there.

    Args:
        names: checked by `check_names`.
        settings: of detectron2's styles.
        has_charts: whether people get IUV pictures.
        meshes: names of those whose vertices the model finds; empty for other models.

    Raises:
        ValueError: a style of charts or of vertices that the model does not predict, or a texture
            for meshes of which none has texture coordinates.
    """
    shown = {style for name in names for style in name.split(_JOINED_BY)}
    for style in VERTEX_STYLES:
        if style in shown and not meshes:
            raise ValueError(f"the style {style} needs a model with vertices, cse/... (ktn models)")
    for style in CHART_STYLES:
        if style in shown and not has_charts:
            with_template = ": name its mesh's template with --template" if meshes else ""
            raise ValueError(
                f"the style {style} needs charts, which this model does not predict{with_template}"
            )
    if "mesh_texture" in shown:
        if all(mesh_of(mesh, settings.mesh_files).uv is None for mesh in meshes):
            raise ValueError(
                f"no texture fits {', '.join(meshes)}, without texture coordinates: name a mesh "
                "that has them with --mesh"
            )


def ending(name: str) -> str:
    """How the name of the file ends that a picture is written to."""
    return f"_{name}.jpg" if name == OVERLAY else f"_{name}.png"


def draw_pictures(
    names: Sequence[str],
    image: np.ndarray,
    people: Sequence[PersonResult],
    settings: StyleSettings,
) -> Iterator[tuple[str, np.ndarray]]:
    """Draws pictures of a photo, each when it is asked for.

    Args:
        names: checked by `check_names`.
        image: uint8 [H, W, 3] RGB.
        people: in its pixels, best first.
        settings: of detectron2's styles.

    Yields:
        Name and picture: uint8 [H, W, 3] RGB, of the maps as `maps.paste_iuv` gives them (`labels`
        is its I).

    Raises:
        ValueError: as the functions that draw.
    """
    pasted: tuple[np.ndarray, np.ndarray] | None = None
    for name in names:
        if name in MAPS:
            pasted = iuv, instances = pasted or maps.paste_iuv(people, image.shape[:2])
            yield name, {"iuv": iuv, "instances": instances, "labels": iuv[..., 0]}[name]
        elif name == OVERLAY:
            yield name, drawing.draw_people(image, people, show_keypoints=True)
        else:
            yield name, draw_styles(image, people, name.split(_JOINED_BY), settings)


def write_pictures(
    folder: pathlib.Path,
    output_name: str,
    names: Sequence[str],
    image: np.ndarray,
    people: Sequence[PersonResult],
    settings: StyleSettings,
) -> None:
    """Writes pictures of a photo, or none of them.

    Args:
        folder: that exists.
        output_name: the files' names begin with it.
        names: checked by `check_names`.
        image: uint8 [H, W, 3] RGB.
        people: in its pixels, best first.
        settings: of detectron2's styles.
    """
    paths = {name: folder / f"{output_name}{ending(name)}" for name in names}
    with remove_unless_done(tuple(paths.values())):
        for name, picture in draw_pictures(names, image, people, settings):
            write_picture(paths[name], name, picture)


def write_picture(path: pathlib.Path, name: str, picture: np.ndarray) -> None:
    """Writes a picture that `draw_pictures` drew, by its name as JPEG or PNG."""
    writers = {
        OVERLAY: write_jpeg,
        "iuv": maps.write_iuv_png,
        "instances": maps.write_instances_png,
        "labels": maps.write_labels_png,
    }
    writers.get(name, maps.write_rgb_png)(path, picture)


@contextlib.contextmanager
def remove_unless_done(paths: Sequence[pathlib.Path]) -> Iterator[None]:
    """Removes files if its block, which writes them, fails."""
    try:
        yield
    except (OSError, ValueError):
        for path in paths:
            with contextlib.suppress(OSError):  # of a name too long, which was not written either
                path.unlink(missing_ok=True)
        raise


def write_jpeg(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes uint8 RGB [H, W, 3] as a JPEG file."""
    with atomic_files.replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="jpeg", quality=JPEG_QUALITY)
