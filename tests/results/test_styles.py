"""Styles against pictures that detectron2 drew, every pixel; and what surrounds them."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

from ktn_jax.results import atlas, iuv_pictures, styles
from ktn_jax.results.records import PersonResult
from ktn_jax.results.stroke_text import draw_number
from ktn_jax.results.styles import StyleSettings, draw_styles

PARULA = styles.colours_of("parula")
BGR = np.s_[..., ::-1]  # the golden pictures' order of channels


@pytest.fixture(scope="module")
def drawn(golden_dir):
    """Inputs and pictures of detectron2's visualisers, drawn with OpenCV 4.14."""
    with np.load(golden_dir / "ops_vis_cse.npz") as arrays:
        wanted = ("chart", "outputs", "colormap", "matrix", "texture", "image", "compress")
        return {name: arrays[name] for name in arrays if name.startswith(wanted)}


@pytest.fixture(scope="module")
def people(drawn):
    found = []
    for number, (x, y, width, height) in enumerate(drawn["chart/boxes_xywh"]):
        patches, uv = (drawn[f"chart/{number}/{name}"] for name in ("labels", "uv"))
        iuv = np.concatenate([patches[None], (255 * uv).astype(np.uint8)])
        score = float(drawn["chart/scores"][number])
        found.append(PersonResult([x, y, x + width, y + height], score, iuv))
    return found


@pytest.mark.parametrize(
    "key,style,settings",
    [
        ("fine_segmentation", "fine_segm", {}),
        ("fine_segmentation_alpha1", "fine_segm", {"opacity": 1.0}),
        ("u", "u", {}),
        ("v", "v", {}),
        ("contour_custom", "contour", {}),
        ("scored_boxes", "bbox", {}),
    ],
)
def test_styles_equal_detectron2s_in_every_pixel(drawn, people, key, style, settings):
    image = drawn["image_bgr"][BGR]
    before = image.copy()
    picture = draw_styles(image, people, [style], StyleSettings(**settings))
    np.testing.assert_array_equal(picture[BGR], drawn[f"chart_vis/{key}"])
    np.testing.assert_array_equal(image, before)


def test_boxes_without_scores_equal_detectron2s(drawn):
    canvas = drawn["image_bgr"][BGR].copy()
    for box_xywh in drawn["chart/boxes_xywh"]:
        styles.draw_scored_box(canvas, box_xywh)
    np.testing.assert_array_equal(canvas[BGR], drawn["chart_vis/boxes"])


@pytest.mark.parametrize("kind", ["rgb", "rgba"])
def test_textures_equal_detectron2s(drawn, kind):
    # The visualiser takes an atlas in its canvas's order of channels, and that is BGR.
    canvas = drawn["image_bgr"].copy()
    for number, box_xywh in enumerate(drawn["chart/boxes_xywh"]):
        patches, uv = (drawn[f"chart/{number}/{name}"] for name in ("labels", "uv"))
        styles.draw_texture(canvas, patches, uv, box_xywh, drawn[f"texture/atlas_{kind}"])
    np.testing.assert_array_equal(canvas, drawn[f"chart_vis/texture_{kind}"])


def test_maps_of_another_size_than_their_box_are_resized_as_detectron2_does(drawn, people):
    canvas = drawn["image_bgr"][BGR].copy()
    patches, u, _ = people[0].iuv
    (box_xywh,) = drawn["chart/fractional_box_xywh"]
    styles.draw_values(canvas, patches > 0, u, box_xywh, PARULA, 0.7)
    np.testing.assert_array_equal(canvas[BGR], drawn["chart_vis/u_fractional_box"])

    canvas = drawn["image_bgr"][BGR].copy()
    mask, values, box_xywh = (drawn[f"matrix/{name}"] for name in ("mask", "values", "box_xywh"))
    jet = styles.colours_of("jet")
    styles.draw_values(canvas, mask > 0, values, box_xywh, jet, opacity=0.6, scale=0.7)
    np.testing.assert_array_equal(canvas[BGR], drawn["matrix/result"])


@pytest.mark.parametrize("key", ["fine_segmentation", "u", "v"])
def test_maps_as_the_network_gives_them_are_drawn_as_detectron2_does(drawn, key):
    canvas = drawn["image_bgr"][BGR].copy()
    for number, box_xywh in enumerate(drawn["chart/boxes_xywh"]):
        is_person = drawn["outputs/coarse_segm"][number].argmax(0) > 0
        patches = (drawn["outputs/fine_segm"][number].argmax(0) * is_person).astype(np.uint8)
        values, scale = patches, 255 / 24
        if key != "fine_segmentation":
            maps = np.clip(drawn[f"outputs/{key}"][number], 0, 1)
            values = np.take_along_axis(maps, patches[None].astype(int), 0)[0] * 255
            scale = 1.0
        styles.draw_values(canvas, patches > 0, values, box_xywh, PARULA, 0.7, scale)
    np.testing.assert_array_equal(canvas[BGR], drawn[f"outputs_vis/{key}"])


def test_detectron2_out_of_place_leaves_the_picture_as_it_was(drawn):
    # Its visualiser draws on black and drops the picture; nothing here does that.
    np.testing.assert_array_equal(drawn["chart_vis/u_not_inplace"], drawn["image_bgr"])


@pytest.mark.parametrize("name", ["parula", "jet", "viridis"])
def test_colour_maps_are_detectron2s(drawn, name):
    np.testing.assert_array_equal(styles.colours_of(name)[BGR], drawn[f"colormap/{name}_bgr"])


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) > 4, reason="OpenCV 5 has another font")
@pytest.mark.parametrize("scale", [0.35, 0.9])
def test_numbers_are_opencvs(scale):
    ours, theirs = np.zeros((2, 40, 320, 3), np.uint8)
    draw_number(ours, "-0.123456789", (5, 30), scale, (10, 200, 255))
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(theirs, "-0.123456789", (5, 30), font, scale, (10, 200, 255), 1, cv2.LINE_AA)
    np.testing.assert_array_equal(ours, theirs)


def test_numbers_are_cut_off_at_the_borders():
    whole = np.zeros((60, 200, 3), np.uint8)
    draw_number(whole, "0.1234", (50, 30), 0.35, (255, 255, 255))
    assert whole.any()
    for top, left in ((25, 60), (40, 0), (0, 120), (29, 52)):
        part = np.zeros((60 - top, 200 - left, 3), np.uint8)
        draw_number(part, "0.1234", (50 - left, 30 - top), 0.35, (255, 255, 255))
        # OpenCV cuts lines before it smooths them: beside the border they differ.
        np.testing.assert_array_equal(part[2:, 2:], whole[top + 2 :, left + 2 :])


def _person(x0, y0, x1, y1, score=0.5):
    iuv = np.zeros((3, max(int(y1 - y0), 1), max(int(x1 - x0), 1)), np.uint8)
    iuv[0], iuv[1], iuv[2] = 24, np.linspace(0, 255, iuv.shape[2]), 255
    return PersonResult([x0, y0, x1, y1], score, iuv)


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_backgrounds():
    for style in ("fine_segm", "u", "contour"):
        for background in styles.BACKGROUNDS:
            settings = StyleSettings(background, colormap="viridis", opacity=1.0)
            picture = draw_styles(IMAGE, [_person(10, 10, 20, 30)], [style], settings)
            empty = draw_styles(IMAGE, [], [style], settings)
            outside = np.ones((40, 50), bool)
            outside[10:31, 10:21] = False
            np.testing.assert_array_equal(picture[outside], empty[outside])
            if style == "fine_segm":
                assert (picture[10:30, 10:20] == styles.colours_of("viridis")[255]).all()
            if background == "black":
                assert not empty.any()
            elif background == "lowest":
                assert (empty == [68, 1, 84]).all()  # viridis begins so
            elif background == "photo":
                np.testing.assert_array_equal(empty, IMAGE)
            else:
                luma = IMAGE @ np.array([0.299, 0.587, 0.114])
                assert np.abs(empty - luma[..., None]).max() <= 0.51


def test_the_last_person_and_the_last_style_are_on_top():
    first, last = _person(5, 5, 25, 25, 0.9), _person(15, 15, 35, 35, 0.2)
    last.iuv[0] = 1
    settings = StyleSettings(opacity=1.0)
    picture = draw_styles(IMAGE, [first, last], ["fine_segm", "bbox"], settings)
    assert (picture[18, 18] == PARULA[int(255 / 24)]).all()
    assert (picture[35, 15:36] == [15, 127, 18]).all()
    under = draw_styles(IMAGE, [first, last], ["bbox", "fine_segm"], settings)
    assert (under[18, 15] == PARULA[int(255 / 24)]).all()


def _with_vertices(person):
    vertices = person.iuv[0].astype(np.int32) - 1
    return dataclasses.replace(person, vertices=vertices, mesh="patches")


def test_people_beyond_the_borders_are_cut_off(tmp_path):
    everywhere = [(-5, -7, 12, 9), (45, 30, 70, 60), (60, 5, 80, 15), (-30, 0, -9, 9)]
    tiles = np.full((6, 4, 3), 200, np.uint8)
    mesh = tmp_path / "patches.npz"
    across = np.linspace(0, 1, 24)
    np.savez(
        mesh, vertices=np.outer(across, [1, 1, 1]), faces=[[0, 1, 2]], uv=across[:, None][:, [0, 0]]
    )
    texture = np.random.default_rng(0).integers(0, 256, (9, 9, 4), np.uint8)
    settings = StyleSettings(atlas=tiles, mesh_texture=texture, mesh_files=(str(mesh),))
    large = np.zeros((140, 150, 3), np.uint8)
    large[50:90, 50:100] = IMAGE
    for style in styles.STYLES:
        people = [_with_vertices(_person(*map(float, box))) for box in everywhere]
        moved = [_with_vertices(_person(*(float(s + 50) for s in box))) for box in everywhere]
        picture = draw_styles(IMAGE, people, [style], settings)
        expected = draw_styles(large, moved, [style], settings)[50:90, 50:100]
        if style not in ("contour", "bbox"):  # OpenCV cuts lines before it draws them
            np.testing.assert_array_equal(picture, expected)
        assert (picture != IMAGE).any()


def test_an_atlas_has_u_to_the_right_and_v_upwards(tmp_path):
    tiles = np.arange(24, dtype=np.uint8).reshape(4, 6).T + 1  # down the columns
    pixels = np.repeat(np.repeat(tiles, 5, 0), 5, 1)[..., None].repeat(3, 2) * 10
    pixels[2 * 5, 3 * 5 + 4] = 255  # of patch 21, U = 1 and V = 1
    Image.fromarray(pixels).save(tmp_path / "atlas.png")
    read = atlas.read_atlas(tmp_path / "atlas.png")
    colours, opacity = atlas.sample_atlas(
        read, np.array([21, 21, 21, 1, 0]), np.array([1, 0, 1, 2, 0.5]), np.array([1, 1, 0, -1, 0])
    )
    assert colours[:4, 0].tolist() == [255, 210, 210, 10] and opacity.tolist() == [1, 1, 1, 1, 0]
    Image.fromarray(np.dstack([pixels, pixels[..., 0] // 2])).save(tmp_path / "atlas.png")
    read = atlas.read_atlas(tmp_path / "atlas.png")
    _, opacity = atlas.sample_atlas(read, np.array([2]), np.zeros(1), np.zeros(1))
    assert opacity.tolist() == [10 / 255]


def test_mistakes_are_named(tmp_path):
    Image.new("RGB", (40, 61)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png: an atlas has 6 rows and 4 columns"):
        atlas.read_atlas(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: not an image"):
        atlas.read_atlas(tmp_path / "text.png")
    with pytest.raises(ValueError, match="unknown style 'dp_segm', wanted fine_segm, u, v"):
        draw_styles(IMAGE, [], ["dp_segm"])
    with pytest.raises(ValueError, match="texture needs an atlas"):
        draw_styles(IMAGE, [], ["texture"])
    for wrong, message in (
        ({"background": "white"}, "unknown background 'white', wanted photo, grey"),
        ({"colormap": "hot"}, "unknown colormap 'hot'"),
        ({"opacity": 1.5}, "opacity must be 0 to 1"),
        ({"atlas": IMAGE}, "an atlas has 6 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            StyleSettings(**wrong)


def test_u_beyond_one_overflows_as_detectron2s_does():
    person = _person(5.0, 5.0, 15.0, 15.0)
    uv = np.zeros((2, 10, 10), np.float32)
    uv[0, :, 0], uv[0, :, 1], uv[0, :, 2] = 0.5, 1.01, -0.02  # 127.5, 257.55, -5.1
    precise = PersonResult(person.box_xyxy, 0.5, iuv_pictures.quantise(person.iuv[0], uv), uv=uv)
    picture = draw_styles(IMAGE, [precise], ["u"], StyleSettings(opacity=1.0))
    np.testing.assert_array_equal(picture[10, 5:8], PARULA[[127, 1, 251]])
    assert precise.iuv[1, 0, :3].tolist() == [127, 255, 0]
