"""How well textures and vertices come back from rendered people, whose truth is exact.

    python experiments/textures.py [--people 12] [--pictures FOLDER]

A known atlas is drawn on people by their exact U and V; `results.textures` gets it back from the
8-bit IUV pictures that a perfect network would write. `body.vertices` finds the body's vertices in
the same pictures, and the renderer says which were seen, and where.
"""

import argparse
import dataclasses
import pathlib

import cv2
import numpy as np
from PIL import Image

from ktn_jax.body.procedural import assembly
from ktn_jax.body.vertices import see_vertices
from ktn_jax.data_pipelines.synthetic import render, scene, source
from ktn_jax.data_pipelines.synthetic.render import DenseTruth
from ktn_jax.results import atlas, textures

_FINER = 4  # cells per pixel, along each axis, of the grid that decides whether a vertex is seen
_SLACK = 0.003  # metres by which a vertex may lie behind the surface seen there


def make_atlas(cells: int, seed: int = 0) -> np.ndarray:
    """[1200, 800, 3] smooth colours, `cells` blobs along a tile."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 256, (6 * cells, 4 * cells, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (800, 1200), interpolation=cv2.INTER_CUBIC))


def render_people(count: int, size: int, seed: int) -> list[DenseTruth]:
    """Renders pictures of one whole person each, in any pose and from any side."""
    settings = dataclasses.replace(
        scene.EASY, image_size_hw=(size, size), people_range=(1, 1), stature_range=(0.8, 0.95)
    )
    people = source.SyntheticSource(count, seed, settings)
    return [people.picture(index).truth for index in range(count)]


def perfect_iuv(truth: DenseTruth) -> np.ndarray:
    """[H, W, 3] the IUV picture of the first person, truncated as predictors do."""
    levels = [truth.patch, 255 * truth.u, 255 * truth.v]
    iuv = np.stack(levels, axis=-1).astype(np.uint8)
    iuv[truth.instance != 1] = 0
    return iuv


def dress(truth: DenseTruth, drawn: np.ndarray) -> np.ndarray:
    """[H, W, 3] the atlas on the people, by exact coordinates, on grey; a pixel's own light."""
    colours, opacity = atlas.sample_atlas(drawn, truth.patch, truth.u, truth.v)
    image = np.where(opacity[..., None] > 0, colours, 128).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.45))  # no camera shows staircases


def texture_errors(truths: list[DenseTruth], drawn: np.ndarray, blend: str) -> tuple[float, ...]:
    """Texels seen as a share of all, and mean and 95th percentile of their error in levels."""
    builder = textures.AtlasBuilder(blend)
    for truth in truths:
        builder.add(textures.view_texture(dress(truth, drawn), perfect_iuv(truth)))
    found = builder.atlas()
    seen = found[..., 3] > 0
    error = np.abs(found[seen, :3].astype(float) - drawn[seen]).mean(axis=-1)
    return seen.mean(), error.mean(), np.quantile(error, 0.95)


def seen_truth(truth: DenseTruth) -> tuple[np.ndarray, np.ndarray]:
    """Which vertices of the first person are seen [V], and where all are in the picture [V, 2]."""
    camera, vertices = truth.camera, truth.people[0].vertices
    finer = dataclasses.replace(
        camera,
        focal=camera.focal * _FINER,
        centre_x=camera.centre_x * _FINER,
        centre_y=camera.centre_y * _FINER,
        width=camera.width * _FINER,
        height=camera.height * _FINER,
    )
    template = assembly.make_body().template
    fine, _, _ = render.render(template, truth.people, [], finer)
    xy = finer.project(vertices)
    is_inside = ((xy >= 0) & (xy < [finer.width, finer.height])).all(axis=1)
    column, row = np.where(is_inside[:, None], xy, 0).astype(int).T
    depth = np.where(np.isfinite(fine.depth), fine.depth, 0).astype(np.float32)
    farthest = cv2.dilate(depth, np.ones((3, 3), np.uint8))  # a steep surface must not hide itself
    is_seen = is_inside & (vertices[:, 2] <= farthest[row, column] + _SLACK)
    xy /= _FINER
    column, row = np.where(is_inside[:, None], xy, 0).astype(int).T
    return is_seen & (truth.instance[row, column] >= 0), xy


def vertex_figures(truths: list[DenseTruth]) -> dict[str, float]:
    """Pools the vertices and pixels of all pictures."""
    template = assembly.make_body().template
    pools: dict[str, list[np.ndarray]] = {name: [] for name in ("seen", "found", "off", "point")}
    for truth in truths:
        view = see_vertices(template, perfect_iuv(truth).transpose(2, 0, 1))
        is_seen, xy = seen_truth(truth)
        both = is_seen & view.is_visible
        pools["seen"].append(is_seen)
        pools["found"].append(view.is_visible)
        pools["off"].append(np.abs(view.pixel_xy[both] + 0.5 - xy[both]).max(axis=1))
        own = truth.instance == 1
        exact = template.surface_to_point(truth.face[own], truth.barycentric[own])
        pools["point"].append(np.linalg.norm(view.points[own] - exact, axis=1) * 1000)
    joined = {name: np.concatenate(values) for name, values in pools.items()}
    both = joined["seen"] & joined["found"]
    return {
        "seen vertices that are found": both.sum() / joined["seen"].sum(),
        "found vertices that are seen": both.sum() / joined["found"].sum(),
        "pixels off, median": np.median(joined["off"]),
        "pixels off, 95 %": np.quantile(joined["off"], 0.95),
        "point, mm, median": np.median(joined["point"]),
        "point, mm, 95 %": np.quantile(joined["point"], 0.95),
    }


def main() -> None:
    """Prints the figures, and writes pictures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=12, help="pictures to render")
    parser.add_argument("--pictures", type=pathlib.Path, help="folder to write pictures into")
    arguments = parser.parse_args()
    several = arguments.people
    for size in (256, 512):
        truths = render_people(several, size, seed=5)
        for cells in (8, 20):
            drawn = make_atlas(cells)
            for count, blend in ((1, "best"), (several, "best"), (several, "median")):
                share, mean, high = texture_errors(truths[:count], drawn, blend)
                setting = f"{size} px, {200 // cells} texels a blob, {count} views, {blend}"
                print(f"{setting}: seen {share:.3f}, error {mean:.2f}, 95 % {high:.2f}")  # noqa: T201
        for name, value in vertex_figures(truths).items():
            print(f"{size} px, {name}: {value:.3f}")  # noqa: T201
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        drawn = make_atlas(8)
        dressed = dress(truths[0], drawn)
        view = textures.view_texture(dressed, perfect_iuv(truths[0]))
        Image.fromarray(dressed).save(arguments.pictures / "dressed.png")
        Image.fromarray(np.hstack([drawn, view.colours])).save(arguments.pictures / "atlases.png")


if __name__ == "__main__":
    main()
