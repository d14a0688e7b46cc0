"""What a training exports is the original's state dict."""

import json

import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import files, runs, weights
from ktn_jax.checkpoints.detectron2_config import from_detectron2
from ktn_jax.modeling.detector import build_model
from ktn_jax.runtime import configuration
from ktn_jax.training.optimizer import make_optimizer
from ktn_jax.training.state import create_state


def save_run(config, workdir):
    """A checkpoint as a run of this configuration leaves it, with every value different."""
    shapes = weights.abstract_variables(build_model(config.model))
    rng = np.random.default_rng(0)

    def draw(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return np.full(leaf.shape, 7, leaf.dtype)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    optimizer = make_optimizer(config, variables["params"], variables.get("batch_stats", {}))
    state = create_state(variables, optimizer, seed=0, has_ema=False)
    with runs.Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, 3, runs.RunRecord(configuration.as_json(config), 3), {"loss": 1.0})


@pytest.mark.parity
@pytest.mark.parametrize(
    "case",
    [
        "ktnv2_r50_tiny",
        pytest.param("ktnv2_hrnet_v3_tiny", marks=pytest.mark.extended),
        pytest.param("densepose_r50_dl_tiny", marks=pytest.mark.extended),
    ],
)
def test_an_export_has_every_name_and_shape_of_the_originals(golden_dir, tmp_path, case):
    with np.load(golden_dir / f"{case}.npz") as dump:
        config = from_detectron2(json.loads(str(dump["config"])))
        wanted = {
            name.removeprefix("state/"): (dump[name].shape, dump[name].dtype)
            for name in dump.files
            if name.startswith("state/")
        }
        anchors = [name for name in wanted if "cell_anchors" in name]
        expected = {name: dump[f"state/{name}"] for name in ("pixel_mean", "pixel_std", *anchors)}
    save_run(config, tmp_path / "run")
    paths = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for path in paths:
        weights.write_variables(path, weights.read_variables(tmp_path / "run"))
    state = files.read_state_dict(paths[0])
    assert {name: (array.shape, array.dtype) for name, array in state.items()} == wanted
    for name, value in expected.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-6, err_msg=name)
    assert paths[0].read_bytes() == paths[1].read_bytes()
