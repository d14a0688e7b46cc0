"""Backbones, pyramids and decoders compute the same, however much an image is padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.runtime.configuration import load_config

SMALL = [
    "model.neck.channels=32",
    "model.decoder.channels=32",
    "model.decoder.out_channels=32",
]
HRNET = [
    "model.backbone.name='hrnet'",
    "model.backbone.hrnet_channels=((8, 16), (8, 16, 24), (8, 16, 24, 32))",
    "model.backbone.hrnet_num_blocks=((1, 1), (1, 1, 1), (1, 1, 1, 1))",
    "model.backbone.hrnet_num_modules=(1, 1, 1)",
]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            ["model.decoder.name='panoptic'", "model.decoder.norm='GN'", "model.neck.norm='GN'"],
            marks=pytest.mark.extended,
        ),
        ["model.decoder.name='none'", "model.backbone.norm='BN'"],
        pytest.param(HRNET, marks=pytest.mark.extended),
    ],
    ids=["panoptic", "no_decoder", "hrnet"],
)
def test_features_are_blind_to_padding(changes):
    config = load_config("configs/ktn.py:tiny", [*SMALL, *changes])
    model = build_model(config.model)
    rng = np.random.default_rng(0)
    size = np.array([[90, 70]])  # no multiple of anything
    image = rng.normal(size=(1, 90, 70, 3)).astype(np.float32)

    def features(model: Detector, inputs: jax.Array):
        pyramid = model.extract(inputs, jnp.asarray(size))
        return pyramid, model.decode(pyramid)

    outputs = {}
    for height, width in ((96, 96), (160, 128)):
        inputs = np.zeros((1, height, width, 3), np.float32)
        inputs[:, :90, :70] = image
        if not outputs:
            variables = jax.jit(lambda x: model.init(jax.random.key(0), x, method=features))(inputs)
        run = jax.jit(lambda values, x: model.apply(values, x, method=features))
        outputs[height] = run(variables, inputs)
    for tight, wide in zip(outputs[96], outputs[160], strict=True):
        assert tight.maps.keys() == wide.maps.keys()
        for level, expected in tight.maps.items():
            rows, columns = np.asarray(tight.sizes[level])[0]
            np.testing.assert_array_equal(tight.sizes[level], wide.sizes[level])
            assert expected[:, :rows, :columns].std() > 0
            np.testing.assert_allclose(
                wide.maps[level][:, :rows, :columns],
                expected[:, :rows, :columns],
                atol=1e-3 * expected.std(),
            )
