"""Exported programs: their manifest, their batches, and TensorFlow's form of them."""

import json

import jax
import numpy as np
import pytest
from jax import export

from ktn_jax.checkpoints import files
from ktn_jax.inference import exported_files, standalone
from ktn_jax.inference.stages import Stages
from ktn_jax.runtime.configuration import load_config
from ktn_jax.structures import DensePoseOutputs, Detections

CANVAS = (96, 128)


def _config(*changes):
    return load_config(
        "configs/ktn.py:tiny",
        [
            "test.short_side=96",
            "test.max_side=128",
            "test.size_buckets=((96, 128),)",
            "model.box_head.max_detections=3",
            *changes,
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"platforms": ["cpu", "gpu"]}, "platforms gpu: some of .*cuda"),
        ({"platforms": []}, "platforms missing"),
        ({"canvases": [(96, 128), (100, 128)]}, "canvas 100x128: sides are multiples of 32"),
        ({"max_people": 4}, "max_people 4: 1 to 3 .*max_detections"),
    ],
)
def test_what_cannot_be_exported_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        exported_files.make_settings(_config(), **arguments)


def test_settings_follow_the_configuration():
    settings = exported_files.make_settings(_config("test.size_buckets=((96, 96), (96, 128))"))
    assert settings.canvases == ((96, 96), (96, 128))
    assert settings.platforms == ("cpu", "cuda", "tpu") and settings.max_people == 3


def test_a_folder_of_the_user_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    settings = exported_files.make_settings(_config())

    class NoStages:
        surface_kernels, variables, vertex_embeddings = (), {"params": {}}, {}
        config = _config()

    for write in (exported_files.write_stablehlo, exported_files.write_saved_model):
        with pytest.raises(ValueError, match="is there already: give a new folder"):
            write(NoStages(), tmp_path, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_mask_threshold_of_many_channels_is_refused_as_in_prediction():
    maps = (np.zeros((1, 2, 2, channels), np.float32) for channels in (15, 25, 25, 25))
    with pytest.raises(ValueError, match="mask_threshold 0.3 needs a two-channel mask, got 15"):
        standalone._iuv(DensePoseOutputs(*maps), 0.3)


@pytest.fixture(scope="module")
def of_every_task(draw_variables):
    """The stages of a model with all branches and confidences."""
    config = _config(
        "model.tasks=('densepose','keypoints','masks')",
        "model.keypoint_head.channels=(16,)",
        "model.mask_head.channels=16",
        "model.mask_head.num_convs=1",
        "model.decoder.name=none",
        "model.densepose_head.name=conv_stack",
        "model.densepose_head.norm=",
        "model.predictor.name=chart",
        "model.predictor.uv_confidence=iid_iso",
        "model.predictor.has_segm_confidence=True",
        "model.predictor.mask_threshold=0.5",
    )
    return Stages(config, draw_variables(config))


def _photos():
    """Two images of different sizes in their canvas, and their sizes."""
    sizes = np.int32([[96, 110], [70, 128]])
    images = np.random.default_rng(0).integers(0, 256, (2, *CANVAS, 3), np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    return images, sizes


def _assert_same_people(stages, found, max_people):
    """Compares what a program found in `_photos` with the stages, image by image."""
    images, sizes = _photos()
    for row in range(len(images)):
        one = slice(row, row + 1)
        pyramid, expected = jax.device_get(stages.detect(images[one], sizes[one]))
        boxes = expected.boxes[0, :max_people]
        assert found["is_valid"][row].all()
        np.testing.assert_allclose(found["boxes"][row], boxes, atol=1e-3)
        np.testing.assert_allclose(found["scores"][row], expected.scores[0, :max_people], atol=1e-5)
        maps = stages.describe(pyramid, boxes, np.zeros(max_people, np.int32))
        of_charts = {name: getattr(maps.charts, name) for name in MAPS}
        for name, values in {**of_charts, "heatmaps": maps.keypoints, "mask": maps.mask}.items():
            np.testing.assert_allclose(
                found[name][row], values, atol=1e-3 * max(np.abs(values).max(), 1e-3), err_msg=name
            )
        labels = maps.charts.fine_segm.argmax(-1) * (maps.charts.coarse_segm.argmax(-1) > 0)
        is_same = found["iuv"][row, ..., 0] == labels
        assert is_same.mean() > 0.999 and labels.any()
        u = np.take_along_axis(maps.charts.u, labels[..., None], -1)[..., 0] * (labels > 0)
        error = found["iuv"][row, ..., 1].astype(float) - np.clip(u * 255, 0, 255)
        assert np.abs(error[is_same]).max() < 1.01  # truncated


MAPS = (
    *("coarse_segm", "fine_segm", "u", "v"),
    *("sigma", "fine_segm_confidence", "coarse_segm_confidence"),
)


@pytest.mark.extended
def test_programs_are_what_the_manifest_says(of_every_task, tmp_path):
    """The plain program too, of a symbolic batch, which is computed together."""
    stages = of_every_task
    settings = exported_files.make_settings(stages.config, max_people=2)
    names = exported_files.write_stablehlo(stages, tmp_path / "new", settings)
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    programs = [row["file"] for row in manifest["programs"]]
    assert names == sorted([*programs, "manifest.json", "weights.safetensors"])
    platforms = [row["platforms"] for row in manifest["programs"]]
    assert platforms[0] == ["cpu"] and sorted(sum(platforms, [])) == ["cpu", "cuda", "tpu"]
    weights = files.read_state_dict(tmp_path / "new" / manifest["weights"])
    images, sizes = _photos()
    for row in manifest["programs"]:
        assert row["file"] == f"96x128_{'_'.join(row['platforms'])}.jax_export"
        content = (tmp_path / "new" / row["file"]).read_bytes()
        program = export.deserialize(bytearray(content))
        assert list(program.platforms) == row["platforms"]
        assert row["canvas_hw"] == list(CANVAS)
        outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
        assert {
            name: (array["dtype"], array["shape"]) for name, array in manifest["outputs"].items()
        } == {name: (x.dtype.name, ["batch", *x.shape[1:]]) for name, x in outputs.items()}
        if program.platforms == ("cpu",):
            _assert_same_people(stages, jax.jit(program.call)(weights, images, sizes), 2)
    plain = jax.jit(standalone.make_program(stages.config, "cuda", 2))
    (batch,) = export.symbolic_shape("batch")
    specs = (
        jax.ShapeDtypeStruct((batch, *images.shape[1:]), np.uint8),
        jax.ShapeDtypeStruct((batch, 2), np.int32),
    )
    program = export.export(plain, platforms=["cpu"])(weights, *specs)
    _assert_same_people(stages, jax.jit(program.call)(weights, images, sizes), 2)


@pytest.mark.extended
def test_tensorflow_runs_a_saved_model(of_every_task, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    stages = of_every_task
    settings = exported_files.make_settings(stages.config, platforms=["cpu"], max_people=2)
    exported_files.write_saved_model(stages, tmp_path / "saved", settings)
    manifest = json.loads((tmp_path / "saved" / "manifest.json").read_text())
    model = tensorflow.saved_model.load(str(tmp_path / "saved"))
    find = model.signatures[manifest["programs"][0]["signature"]]
    images, sizes = (tensorflow.constant(array) for array in _photos())
    found = find(images=images, image_size_hw=sizes)
    assert set(found) == set(manifest["outputs"])
    _assert_same_people(stages, {name: value.numpy() for name, value in found.items()}, 2)


def test_people_who_do_not_fill_a_round_are_described_once():
    """The loop of the second stage, of boxes that say which they are."""

    def describe(boxes, own_image, classes):
        return {
            "told": boxes[:, 0] + 100.0 * own_image + 1000 * classes,
            "one": boxes[:, 1] * 0 + 1,
        }

    is_valid = np.array([[True, True, False], [False, False, False], [True, True, True]])
    boxes = np.zeros((3, 3, 4), np.float32)
    boxes[..., 0] = np.arange(9).reshape(3, 3)
    found = Detections(
        boxes=boxes,
        scores=np.zeros((3, 3)),
        is_valid=is_valid,
        classes=np.ones((3, 3), np.int32),
    )
    for at_once in (2, 8):  # with a round that is half full, and with more rows than there are
        run = jax.jit(lambda found, n=at_once: standalone.describe_people(describe, found, n))
        maps = run(found)
        expected = boxes[..., 0] + 100 * np.arange(3)[:, None] + 1000
        np.testing.assert_array_equal(maps["told"], np.where(is_valid, expected, 0))
        np.testing.assert_array_equal(maps["one"], is_valid)
