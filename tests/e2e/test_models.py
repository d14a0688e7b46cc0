"""From an empty cache to pictures: a released model by its name, served on this machine."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

import ktn_jax
from ktn_jax import cli
from ktn_jax.checkpoints import files, named, torch_names, weights, zoo
from ktn_jax.modeling.detector import build_model
from ktn_jax.runtime import downloads, jax_setup

# Of the released model, what takes long to compile is left out.
_SETTINGS = {
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_DENSEPOSE_HEAD.NAME": "DensePoseV1ConvXHead",
    "MODEL.ROI_DENSEPOSE_HEAD.DECODER_ON": False,
    "MODEL.ROI_DENSEPOSE_HEAD.NUM_STACKED_CONVS": 1,
    "MODEL.ROI_DENSEPOSE_HEAD.CONV_HEAD_DIM": 16,
    "MODEL.ROI_DENSEPOSE_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_DENSEPOSE_HEAD.HEATMAP_SIZE": 56,
}
_CHANGES = [
    "model.backbone.num_blocks=(1,1,1,1)",
    "test.short_side=64",
    "test.max_side=96",
    "test.size_buckets=((64,96),)",
    "TEST.DETECTIONS_PER_IMAGE=2",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0",
]


@pytest.fixture
def served(file_server, monkeypatch, tmp_path):
    """Serves small random weights in place of those of the default model."""
    released = zoo.find(zoo.DEFAULT)
    table, path = json.loads(zoo._TABLE.read_text()), tmp_path / "weights.pkl"
    row = {"name": zoo.DEFAULT, "family": "charts", "settings": {**released.settings, **_SETTINGS}}
    table["models"] = [row | {"url": released.url}]
    monkeypatch.setattr(zoo, "_TABLE", tmp_path / "zoo.json")
    monkeypatch.setenv("KTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KTN_MODELS_URL", file_server.url)
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)
    zoo._TABLE.write_text(json.dumps(table))
    zoo.models.cache_clear()
    model = named.load_config(zoo.DEFAULT, _CHANGES).model
    rng = np.random.default_rng(0)
    shapes = weights.flatten(weights.abstract_variables(build_model(model)))
    state = {
        name: rng.normal(0.0, 0.05, x.shape).astype(x.dtype) ** (2 if "var" in name else 1)
        for name, x in shapes.items()
    }
    constants = {f"constants/{k}": v for k, v in weights.constants(model).items()}
    nested = weights.traverse_util.unflatten_dict(state | constants, sep="/")
    files.write_state_dict(path, torch_names.to_torch(nested))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:6]
    table["models"][0]["url"] = released.url.replace(released.sha256_start, digest)
    zoo._TABLE.write_text(json.dumps(table))
    zoo.models.cache_clear()
    url = zoo.find(zoo.DEFAULT).url
    file_server.files[url.removeprefix(downloads.SERVER)] = path.read_bytes()
    file_server.break_after = [1000]
    yield file_server
    monkeypatch.undo()
    zoo.models.cache_clear()


def test_a_name_is_enough(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    changes = [f"--set={change}" for change in _CHANGES]
    assert cli.main(["models"]) == 0 and not (tmp_path / "cache").exists()
    assert cli.main(["predict", "photo.png", "--min-score=0", *changes]) == 0
    (folder,) = (tmp_path / "ktn_predict").glob(f"{zoo.DEFAULT}-*")
    names = {"photo_iuv.png", "photo_instances.png", "photo_overlay.jpg", "results.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert len(served.requests) == 2  # one broke off
    # The same from Python, and the weights as a file of one's own: nothing is fetched again.
    people = ktn_jax.load(zoo.DEFAULT, changes=_CHANGES)("photo.png")
    records = json.loads((folder / "results.json").read_text())
    assert [person.score for person in people] == pytest.approx([r["score"] for r in records])
    assert people.draw().shape == pixels.shape
    assert cli.main(["convert", "--model", zoo.DEFAULT, "own.safetensors"]) == 0
    # detectron2's own files.
    (tmp_path / "own.yaml").write_text(json.dumps(zoo.find(zoo.DEFAULT).tree()))
    own, released = (
        named.load_config("own.yaml", _CHANGES),
        named.load_config(zoo.DEFAULT, _CHANGES),
    )
    assert own.model == released.model
    assert weights.load(own, "own.safetensors").keys() == {"params", "batch_stats"}
    assert len(served.requests) == 2
    assert named.recognise_weights("own.safetensors") == zoo.DEFAULT
    capsys.readouterr()
    assert cli.main(["predict", "photo.png", "--output=none"]) == 1  # its other blocks
    assert "missing: backbone.bottom_up.res2.1.conv1.weight" in capsys.readouterr().err
