"""Predictors of the chart maps: KTN's first version against the original, and initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.checkpoints import torch_names
from ktn_jax.modeling.chart_predictor import TRANSFER_SOURCES, ChartPredictor
from ktn_jax.modeling.compute import Compute


def _predict(predictor, params, head, box_weights):
    def run(predictor, head):
        return predictor(head, predictor.surface_kernel(box_weights))

    return jax.jit(lambda head: predictor.apply({"params": params}, head, method=run))(head)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("case", "kind", "fields"),
    [
        ("ktnv1_r50_tiny", "ktn_first", {"ann_index": "coarse_segm"}),
        ("ktnv1_r50_kptktn_tiny", "ktn_keypoints", {"ann_index": "part_segm", "m": "coarse_segm"}),
    ],
)
def test_predictors_of_the_first_version_equal_the_original(golden_dir, case, kind, fields):
    prefix = "infer/densepose"
    with np.load(golden_dir / f"{case}.npz") as file:
        names = [name for name in file.files if name.startswith("state/roi_heads.densepose_pred")]
        state = {name[6:]: file[name] for name in names}
        head = file[f"{prefix}/head"].transpose(0, 2, 3, 1)
        box_weights = file[f"{prefix}/bbox_params"]
        names = [name for name in file.files if name.startswith(f"{prefix}/hr/")]
        expected = {name.rpartition("/")[2]: file[name].transpose(0, 2, 3, 1) for name in names}
    fields = {"index_uv": "fine_segm", "u": "u", "v": "v", "k": "keypoints"} | fields
    params = torch_names.to_flax(state)["params"]["predictor"]
    predictor = ChartPredictor(kind, in_features=head.shape[-1])
    outputs = _predict(predictor, params, head, box_weights)
    assert expected.keys() == fields.keys()
    for name, field in fields.items():
        actual = getattr(outputs, field)[: len(expected[name])]
        scale = float(np.abs(expected[name]).max())
        np.testing.assert_allclose(actual, expected[name], atol=1e-5 * scale, err_msg=name)
    assert (outputs.part_segm is None) == (kind == "ktn_first")
    # At the side of the head's maps times two: the first version does not upsample keypoints.
    side = 2 * head.shape[1] * (1 if kind == "ktn_first" else 2)
    assert outputs.keypoints.shape[1:3] == (side, side)


@pytest.mark.parametrize("kind", TRANSFER_SOURCES)
def test_maps_are_float32_whatever_the_model_computes_in(kind):
    """Losses sum over all cells, too many for bfloat16."""
    predictor = ChartPredictor(kind, in_features=8, compute=Compute("bfloat16"))

    def run(predictor, head):
        return predictor(head, predictor.surface_kernel(jnp.zeros((6, 8 * 4 * 4))))

    outputs, _ = jax.eval_shape(
        lambda head: predictor.init_with_output(jax.random.key(0), head, method=run),
        jax.ShapeDtypeStruct((2, 4, 4, 8), jnp.bfloat16),
    )
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    assert (outputs.keypoints is None) == (kind == "chart")


@pytest.mark.parametrize("kind", ["ktn", "ktn_first"])
def test_the_transfer_starts_as_the_originals(kind):
    predictor = ChartPredictor(kind, in_features=24)
    weights = jnp.zeros((6, 16))
    params = predictor.init(jax.random.key(0), weights, method="surface_kernel")["params"]
    inputs, outputs = {"ktn": 2 * 16 * 24 + 16, "ktn_first": 16 * 24}[kind], 16 * 24
    layer = jax.tree.map(np.asarray, params["transfer"]["fc1"])
    assert layer["kernel"].shape == (inputs, outputs)
    if kind == "ktn":  # Kaiming with fan-out
        assert layer["kernel"].std() == pytest.approx(np.sqrt(2 / outputs), rel=0.02)
        assert not layer["bias"].any()
        return
    bound = inputs**-0.5  # PyTorch's Linear: uniform
    for values in layer.values():
        assert 0.98 * bound < np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
