"""Atlases from photos: exact where pixels are, oriented as the published ones, blended."""

import cv2
import numpy as np
import pytest

from ktn_jax.body import loading
from ktn_jax.body.procedural import assembly, posing
from ktn_jax.data_pipelines.synthetic import render
from ktn_jax.data_pipelines.synthetic.render_raster import Camera
from ktn_jax.results import atlas
from ktn_jax.results.texture_layouts import atlas_layout, convert_texture
from ktn_jax.results.textures import AtlasBuilder, View, view_texture

CAMERA = Camera(focal=500.0, centre_x=200.0, centre_y=200.0, width=400, height=400)
FACING = np.diag([1.0, -1.0, -1.0])  # from y up, z forward to the camera's frame


@pytest.fixture(scope="module")
def truths():
    """A person from the front, from the back and from a side."""
    body = assembly.make_body()
    posed = body.pose(posing.Shape(), posing.rest_pose())
    middle = posed.vertices - posed.vertices.mean(axis=0)
    views = []
    for turn in (0, np.pi, np.pi / 2):
        cos, sin = np.cos(turn), np.sin(turn)
        rotation = FACING @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        person = render.PosedPerson(middle @ rotation.T + [0, 0, 2.4], posed.keypoints)
        views.append(render.render(body.template, [person], [], CAMERA)[0])
    return views


def iuv_of(truth):
    return np.stack([truth.patch, 255 * truth.u, 255 * truth.v], axis=-1).astype(np.uint8)


def smooth_atlas(cells=8):
    coarse = np.random.default_rng(0).integers(20, 236, (6 * cells, 4 * cells, 3), np.uint8)
    return cv2.resize(coarse, (800, 1200), interpolation=cv2.INTER_LINEAR)


def test_a_dressed_person_gives_back_the_texels_they_show(truths):
    iuv = iuv_of(truths[0])
    # One colour of the noise for each texel: any other place would show.
    noise = np.random.default_rng(1).integers(1, 256, (1200, 800, 3), np.uint8)
    colours, opacity = atlas.sample_atlas(
        noise, iuv[..., 0], *(iuv[..., 1:] / 255).transpose(2, 0, 1)
    )
    view = view_texture(np.where(opacity[..., None] > 0, colours, 0).astype(np.uint8), iuv, trim=0)
    shown = np.zeros((1200, 800), bool)
    tile = iuv[..., 0][opacity > 0].astype(int) - 1
    column = (iuv[..., 1][opacity > 0] / 255 * 199).astype(int)
    row = ((1 - iuv[..., 2][opacity > 0] / 255) * 199).astype(int)
    shown[tile % 6 * 200 + row, tile // 6 * 200 + column] = True
    np.testing.assert_array_equal(view.colours[shown], noise[shown])
    assert (view.density[shown] > 0).all()
    assert (view.colours[view.density == 0] == 0).all()
    # Between the pixels the atlas is filled, at most to where the person is.
    assert shown.sum() < (view.density > 0).sum() < 0.5 * view.density.size


def test_rendered_people_give_back_a_texture(truths):
    drawn = smooth_atlas()
    builders = {"best": AtlasBuilder("best"), "median": AtlasBuilder()}
    shares = []
    for truth in truths:
        colours, _ = atlas.sample_atlas(drawn, truth.patch, truth.u, truth.v)
        image = np.where(truth.patch[..., None] > 0, colours, 128).astype(np.uint8)
        view = view_texture(cv2.GaussianBlur(image, (0, 0), 0.45), iuv_of(truth))
        for builder in builders.values():
            builder.add(view)
        found = builders["best"].atlas()
        shares.append((found[..., 3] > 0).mean())
    assert shares[0] < shares[1] < shares[2] and shares[2] > 0.5
    for builder in builders.values():
        found = builder.atlas()
        seen = found[..., 3] > 0
        error = np.abs(found[seen, :3].astype(int) - drawn[seen]).mean(axis=-1)
        # Colours change by 3 levels a texel, and U and V are known to a texel.
        assert error.mean() < 4 and np.quantile(error, 0.95) < 12, error.mean()


def test_best_and_median_of_views():
    def view(colour, density):
        pixels = np.zeros((12, 8), np.float32)
        pixels[:6] = density
        return View(np.full((12, 8, 3), colour, np.uint8) * (pixels[..., None] > 0), pixels)

    best, median = AtlasBuilder("best", side=2), AtlasBuilder(side=2)
    assert not median.atlas().any()
    for colour, density in ((10, 1.0), (50, 2.0), (40, 1.5), (250, 0.1)):
        best.add(view(colour, density))
        median.add(view(colour, density))
    np.testing.assert_array_equal(best.atlas()[0, 0], [50, 50, 50, 255])
    np.testing.assert_array_equal(median.atlas()[0, 0], [40, 40, 40, 255])  # 250 is too far away
    assert not best.atlas()[6:].any() and not median.atlas()[6:].any()
    for _ in range(20):  # more than are kept: the best 15 stay
        median.add(view(90, 3.0))
    np.testing.assert_array_equal(median.atlas()[0, 0], [90, 90, 90, 255])
    assert median.num_views == 24
    with pytest.raises(ValueError, match="mean"):
        AtlasBuilder("mean")


@pytest.fixture(scope="module")
def real_template(real_dir):
    bodies = np.load(real_dir / "geometry" / "bodies_smpl_topology.npz")
    return loading.load_template(
        real_dir / "geometry" / "UV_Processed.mat", bodies["rest_cm"], metres_per_unit=0.01
    )


def turns(tiles):
    """Tiles [6, n, 4, n] as they are, with V downwards, U to the left, both; U and V swapped."""
    flips = (tiles[:, ::-1], tiles[..., ::-1], tiles[:, ::-1, :, ::-1])
    return (tiles, *flips, tiles.transpose(0, 3, 2, 1))


def overlap(first, second):
    return (first & second).sum() / (first | second).sum()


def test_published_atlases_have_u_to_the_right_and_v_upwards(real_dir, real_template):
    layout = atlas_layout(real_template, 200)
    white = np.full((1200, 800, 4), 255, np.uint8)
    charts = convert_texture(white, layout, layout)[..., 3] > 0
    for name in ("texture_atlas_200.png", "texture_from_SURREAL.png"):
        shown = atlas.read_texture(real_dir / "atlas" / name)[..., 3] > 0
        # One of them is a drawing of the triangles in black lines.
        shown = cv2.morphologyEx(shown.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3))) > 0
        tiles, flat = (x.reshape(6, 200, 4, 200) for x in (shown, charts))
        share, *others = (overlap(tiles, turned) for turned in turns(flat))
        assert share > 0.94 and max(others) < 0.85


def test_real_people_fill_the_charts_of_the_published_atlas(real_dir):
    image = cv2.imread(str(real_dir / "pairs" / "demo_im.jpg"))
    iuv = cv2.imread(str(real_dir / "pairs" / "demo_im_IUV.png"))
    charts = atlas.read_texture(real_dir / "atlas" / "texture_atlas_200.png")[..., 3]
    charts = cv2.morphologyEx(charts, cv2.MORPH_CLOSE, np.ones((3, 3))) > 0
    seen = view_texture(image, iuv).density > 0
    assert seen.mean() > 0.3
    tiles = charts.reshape(6, 200, 4, 200)
    share, *others = (turned.reshape(charts.shape)[seen].mean() for turned in turns(tiles))
    assert share > 0.975 and max(others) < 0.96


def test_pictures_of_two_sizes_are_refused():
    picture = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="alike"):
        view_texture(picture, picture[:3])
    with pytest.raises(ValueError, match="side"):
        view_texture(picture, picture, side=1)
    assert not view_texture(picture, picture).density.any()
