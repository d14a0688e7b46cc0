"""Exported predictors, loaded where this package is not, find the people that `Predictor` finds."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.checkpoints import weights
from ktn_jax.inference.predictor import Predictor
from ktn_jax.inference.stages import Stages
from ktn_jax.runtime import jax_setup
from ktn_jax.runtime.configuration import load_config

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "export.md"
# The parts that compile soonest, with knowledge transfer. All rows hold somebody, as boxes of an
# untrained model score about a half.
CONFIG = "configs/ktn.py:tiny"
CHANGES = [
    "test.short_side=96",
    "test.max_side=128",
    "test.size_buckets=((96, 128), (128, 96))",
    "model.box_head.max_detections=3",
    "model.decoder.name=none",
    "model.densepose_head.name=conv_stack",
    "model.densepose_head.norm=",
    "model.densepose_head.num_convs=1",
]
# Runs the code of the document as if this package were not installed.
READER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ktn_jax", "flax", "configs", "data_pipelines"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import ktn_jax
except ModuleNotFoundError:
    pass
else:
    sys.exit("ktn_jax was imported")
"""


@pytest.fixture(scope="module")
def config():
    return load_config(CONFIG, CHANGES)


@pytest.fixture(scope="module")
def variables(config, draw_variables):
    return draw_variables(config)


@pytest.fixture(scope="module")
def weights_file(config, variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    constants = weights.constants(config.model)
    weights.write_variables(path, {**variables, "constants": constants})
    return path


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch):
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)


def export(weights_file, output, *options):
    changes = [f"--set={change}" for change in CHANGES]
    arguments = ["export", "--config", CONFIG, *changes, "--weights", str(weights_file)]
    return cli.main([*arguments, "--output", str(output), *options])


def code_of_document():
    """The reader of the document, up to its loop over a photo."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return code.partition("for box, score, iuv in find_people")[0]


def found_without_the_package(folder, photo):
    """(box, score, IUV) of each person whom the code of the document finds in a photo.

    Args:
        folder: has `exported`.
        photo: its path.
    """
    save = f"""
found = list(find_people({str(photo)!r}))
np.savez("found.npz", *(part for person in found for part in person))
"""
    done = subprocess.run(
        [sys.executable, "-c", READER + code_of_document() + save],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "found.npz") as arrays:
        parts = [arrays[name] for name in arrays.files]
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def assert_same(found, people):
    """As docs/export.md says."""
    for (box, score, iuv), person in zip(found, people, strict=True):
        np.testing.assert_allclose(box, person.box_xyxy, atol=1e-3)  # pixels
        np.testing.assert_allclose(score, person.score, atol=1e-5)
        is_same = iuv[0] == person.iuv[0]
        assert is_same.mean() > 0.999 and iuv[0].any()
        np.testing.assert_allclose(iuv[1:][:, is_same], person.uv[:, is_same], atol=1e-4)


@pytest.mark.extended
def test_a_process_without_the_package_finds_the_same_people(
    config, variables, weights_file, tmp_path, capsys
):
    photo = tmp_path / "photo.png"
    # Sides that are resized, and a canvas that they do not fill.
    pixels = np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    options = ("--canvas", "96x128", "--platform", "cpu")
    assert export(weights_file, tmp_path / "exported", *options) == 0
    assert f"3 files written to {tmp_path / 'exported'}" in capsys.readouterr().out
    found = found_without_the_package(tmp_path, photo)
    assert_same(found, Predictor(Stages(config, variables))(photo))
    assert len(found) == 3


@pytest.mark.extended
@pytest.mark.skipif(
    "KTN_DEMO" not in os.environ,
    reason="KTN_DEMO is not set: the folder of a `ktn demo`, whose trained weights are exported",
)
def test_a_trained_model_finds_the_same_people_on_real_photos(real_dir, tmp_path):
    trained = str(pathlib.Path(os.environ["KTN_DEMO"]) / "weights.safetensors")
    model = ["--config", "ktn:demo", "--weights", trained]
    exported = ["--output", str(tmp_path / "exported"), "--platform", "cpu"]
    assert cli.main(["export", *model, *exported]) == 0
    config = load_config("ktn:demo", [])
    predictor = Predictor(Stages(config, weights.load(config, trained)))
    photos = sorted((real_dir / "coco_keypoints").glob("*.jpg"))
    numbers = []
    for photo in photos:
        found = found_without_the_package(tmp_path, photo)
        assert_same(found, predictor(photo))
        numbers.append(len(found))
    assert len(photos) == 4 and min(numbers) > 0, numbers
