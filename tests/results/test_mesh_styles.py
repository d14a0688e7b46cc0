"""Pictures of vertices against those that detectron2 drew, every pixel; and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from ktn_jax.inference.photo_products import Products
from ktn_jax.inference.video_options import VideoOptions
from ktn_jax.results import drawing, maps, mesh_styles, pictures
from ktn_jax.results.people import People
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import StyleSettings, draw_styles

BGR = np.s_[..., ::-1]  # the golden pictures' order of channels


@pytest.fixture(scope="module")
def golden(golden_dir):
    with np.load(golden_dir / "ops_vis_cse.npz") as arrays:
        wanted = ("chart/", "cse", "mesh/", "texture/mesh", "image_bgr")
        return {name: arrays[name] for name in arrays if name.startswith(wanted)}


@pytest.fixture(scope="module")
def settings(golden, tmp_path_factory):
    file = tmp_path_factory.mktemp("mesh") / "small.npz"
    fields = {"vertices": "vertices", "faces": "faces", "mirror": "symmetry", "uv": "texcoords"}
    np.savez(file, **{ours: golden[f"mesh/{theirs}"] for ours, theirs in fields.items()})
    texture = golden["texture/mesh_texture_rgb"]
    opaque = 255 * texture.any(axis=-1, keepdims=True).astype(np.uint8)
    # The visualiser takes a texture in its canvas's order of channels, and that is BGR.
    texture = np.concatenate([texture[BGR], opaque], axis=-1)
    return StyleSettings(mesh_texture=texture, mesh_files=(str(file),))


@pytest.fixture(scope="module")
def people(golden):
    found = []
    for number, (x, y, width, height) in enumerate(golden["chart/boxes_xywh"]):
        is_person = golden[f"cse/{number}/mask"] > 0
        vertices = np.where(is_person, golden[f"cse/{number}/closest_vertices"], -1)
        box = [x, y, x + width, y + height]
        found.append(PersonResult(box, 0.9, vertices=vertices.astype(np.int32), mesh="small"))
    return found


@pytest.mark.parity
def test_pictures_equal_detectron2s_in_every_pixel(golden, people, settings):
    image = golden["image_bgr"][BGR]
    for style, key in (("vertex", "vertex"), ("mesh_texture", "texture")):
        picture = draw_styles(image, people, [style], settings)
        np.testing.assert_array_equal(picture[BGR], golden[f"cse_vis/{key}"])
    mesh = mesh_styles.mesh_of("small", settings.mesh_files)
    np.testing.assert_allclose(
        mesh_styles.vertex_values(mesh), golden["cse/vertex_values"], atol=1e-6
    )
    # Beyond the image's edge; the first style's lowest colour is the background.
    moved = [PersonResult(p.box_xyxy - 30, 0.9, vertices=p.vertices, mesh="small") for p in people]
    settings = StyleSettings(
        "lowest", mesh_texture=settings.mesh_texture, mesh_files=settings.mesh_files
    )
    picture = draw_styles(image, moved, ["vertex", "mesh_texture"], settings)
    np.testing.assert_array_equal(picture[-1, -1], [0, 0, 128])


def test_people_with_vertices_are_among_the_instances_and_masks(people):
    first, second = people
    image = np.full((121, 98, 3), 100, np.uint8)
    iuv, instances = maps.paste_iuv(people, image.shape[:2])
    assert not iuv.any() and set(np.unique(instances)) == {0, 1, 2}
    x, y = second.box_xyxy[:2].astype(int)
    masks = People(people, image).masks
    np.testing.assert_array_equal(masks[1, y : y + 81, x : x + 44], second.vertices >= 0)
    np.testing.assert_array_equal(masks[0] | masks[1], instances > 0)
    drawn = drawing.draw_people(image, people, show_boxes=False, show_scores=False)
    np.testing.assert_array_equal((drawn != 100).any(axis=-1), instances > 0)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 3


def test_what_cannot_be_drawn_is_refused(people, settings, tmp_path):
    image = np.zeros((121, 98, 3), np.uint8)
    with pytest.raises(ValueError, match="mesh_texture needs a texture"):
        draw_styles(image, people, ["mesh_texture"])
    with pytest.raises(ValueError, match=r"mesh_texture must be \[H, W, 4\] RGBA"):
        StyleSettings(mesh_texture=image)
    with pytest.raises(ValueError, match="no mesh is called 'small'"):
        draw_styles(image, people, ["vertex"])
    tiny = tmp_path / "small.npz"
    np.savez(tiny, vertices=np.eye(3), faces=[[0, 1, 2]])
    texture = settings.mesh_texture
    wrong = StyleSettings(mesh_texture=texture, mesh_files=(str(tiny),))
    with pytest.raises(ValueError, match="of mesh small, which has 3: is it another mesh"):
        draw_styles(image, people, ["vertex"], wrong)
    with pytest.raises(ValueError, match="small has no texture coordinates"):
        draw_styles(image, people, ["mesh_texture"], wrong)
    charts = PersonResult([0, 0, 2, 2], 0.5, np.zeros((3, 2, 2), np.uint8))
    np.testing.assert_array_equal(draw_styles(image, [charts], ["vertex"]), image)


def test_styles_that_a_model_cannot_show_are_refused(settings, tmp_path):
    files = []
    for name, fields in (("bare", {}), ("clad", {"uv": np.zeros((3, 2))})):
        files.append(str(tmp_path / f"{name}.npz"))
        np.savez(files[-1], vertices=np.eye(3), faces=[[0, 1, 2]], **fields)
    dressed = StyleSettings(mesh_texture=settings.mesh_texture, mesh_files=tuple(files))

    def check(*names, has_charts=False, meshes=()):
        pictures.check_shown(names, dressed, has_charts=has_charts, meshes=meshes)

    check("overlay", "iuv", "bbox")
    check("fine_segm", "contour+bbox", "texture", has_charts=True)
    check("vertex", meshes=("bare",))
    check("bbox+mesh_texture", "u", has_charts=True, meshes=("bare", "clad"))
    for names, meshes, message in (
        (["bbox+vertex"], (), "vertex needs a model with vertices"),
        (["contour+bbox"], (), "contour needs charts, which this model does not predict$"),
        (["u"], ("bare",), "u needs charts, .*: name its mesh's template with --template"),
        (["mesh_texture"], ("bare",), "no texture fits bare, .*with --mesh"),
    ):
        with pytest.raises(ValueError, match=message):
            check(*names, meshes=meshes)


def test_facts_differ_where_pictures_would(tmp_path):
    mesh = tmp_path / "own.npz"
    mesh.write_bytes(b"one")
    texture = np.zeros((2, 2, 4), np.uint8)
    settings = StyleSettings(mesh_texture=texture, mesh_files=(str(mesh),))
    facts = [json.dumps(settings.facts())]
    for changes in (
        {"background": "grey"},
        {"colormap": "jet"},
        {"opacity": 0.5},
        {"atlas": np.zeros((6, 4, 3), np.uint8)},
        {"mesh_texture": texture + 1},
        {"mesh_files": ()},
    ):
        facts.append(json.dumps(dataclasses.replace(settings, **changes).facts()))
    mesh.write_bytes(b"two")
    facts.append(json.dumps(settings.facts()))
    assert len(set(facts)) == len(facts) == 8
    # The runs that they describe are of photos and of videos.
    json.dumps([Products(settings=settings).options(), VideoOptions(settings=settings).facts()])
    mesh.unlink()
    with pytest.raises(FileNotFoundError, match="own.npz"):
        settings.facts()
