"""Textures in the layout of a UV map: there and back, and damaged maps."""

import numpy as np
import pytest

from ktn_jax.body.procedural import assembly
from ktn_jax.results import texture_layouts
from ktn_jax.results.texture_layouts import LayoutError

SIDE = 32


@pytest.fixture(scope="module")
def template():
    return assembly.make_body().template


def write_obj(path, template, seed=0):
    """Writes the template with each patch in a cell of 5 x 5, corners and faces in any order."""
    rng = np.random.default_rng(seed)
    cell = np.stack(np.divmod(template.chart_patch - 1, 5), axis=-1)
    uv = (cell + 0.05 + 0.9 * template.chart_uv) / 5
    lines = [f"v {x} {y} {z}" for x, y, z in template.vertices]
    lines += [f"vt {u} {v}" for u, v in uv] + ["# a comment", "s off"]
    for face in rng.permutation(len(template.faces)):
        turn = np.roll(np.arange(3), rng.integers(3))
        corners = zip(template.faces[face][turn], template.chart_faces[face][turn], strict=True)
        lines.append("f " + " ".join(f"{v + 1}/{t + 1}" for v, t in corners))
    path.write_text("\n".join(lines) + "\n")
    return uv


def ramp(layout):
    """Colours that say where in the layout's tiles a pixel is."""
    height, width = layout.size_hw
    row, column = np.mgrid[:height, :width]
    texture = np.full((height, width, 4), 255, np.uint8)
    texture[..., 0] = 50 + 200 * (column % SIDE) / SIDE
    texture[..., 1] = 50 + 200 * (row % SIDE) / SIDE
    texture[..., 2] = 10 * (column // SIDE * 6 + row // SIDE + 1)
    return texture


def test_a_texture_comes_back_from_another_layout(tmp_path, template):
    write_obj(tmp_path / "body.obj", template)
    uv_map = texture_layouts.read_uv_map(tmp_path / "body.obj")
    np.testing.assert_allclose(uv_map.vertices, template.vertices)
    mapped = texture_layouts.map_layout(uv_map, (400, 400))
    tiles = texture_layouts.atlas_layout(template, SIDE)
    original = ramp(tiles)
    there = texture_layouts.convert_texture(original, tiles, mapped)
    # Each face's own colours: patch p is in the cell of its row and column, V upwards.
    patch = 8
    column, row = divmod(patch - 1, 5)
    cell = there[400 - 80 * (row + 1) : 400 - 80 * row, 80 * column : 80 * (column + 1)]
    assert (cell[cell[..., 3] > 0][:, 2] == 10 * patch).all() and (cell[..., 3] > 0).mean() > 0.4
    back = texture_layouts.convert_texture(there, mapped, tiles)
    known = back[..., 3] > 0
    direct = texture_layouts.convert_texture(original, tiles, tiles)
    assert known.sum() > 0.97 * (direct[..., 3] > 0).sum()
    error = np.abs(back[known].astype(int) - original[known])
    assert error.max() <= 14 and error.mean() < 1  # 6 levels a texel


def test_the_same_layout_changes_nothing(template):
    tiles = texture_layouts.atlas_layout(template, SIDE)
    original = ramp(tiles)
    original[40:50] = 0  # unknown stays unknown
    same = texture_layouts.convert_texture(original, tiles, tiles)
    known = same[..., 3] > 0
    np.testing.assert_array_equal(same[known], original[known])
    assert not known[41:49].any()


@pytest.mark.parametrize(
    "content,message",
    [
        ("", "no line"),
        ("v 0 0 0\nvt 0 0\nf 1 1 1\n", "line 3"),
        ("v 0 0 0\nvt 0 0\nf 1/1 1/1 1/1 1/1\n", "line 3: wanted a triangle"),
        ("v 0 0 x\n", "line 1"),
        ("v 0 0\n", "line 1: numbers are missing"),
        ("v 0 0 0\nvt 0 0\nf 1/1 1/1 1/2\n", "not in the file"),
        ("v 0 0 0\nvt 0 2\nf 1/1 1/1 1/1\n", "0..1"),
    ],
)
def test_damaged_maps_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "map.obj"
    path.write_text(content)
    with pytest.raises(LayoutError, match=message) as error:
        texture_layouts.read_uv_map(path)
    assert str(path) in str(error.value)


def test_a_map_of_another_body_is_refused(template):
    tiles = texture_layouts.atlas_layout(template, SIDE)
    other = texture_layouts.Layout(
        tiles.size_hw, tiles.faces[::-1] + 7, tiles.corners_xy, tiles.low_xy, tiles.high_xy
    )
    with pytest.raises(ValueError, match="different bodies"):
        texture_layouts.convert_texture(ramp(tiles), tiles, other)
    with pytest.raises(ValueError, match="uint8"):
        texture_layouts.convert_texture(ramp(tiles)[:-1], tiles, tiles)
