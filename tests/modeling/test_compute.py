"""How a model computes is part of what its programs are looked up by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.modeling import layers
from ktn_jax.modeling.compute import PLAIN, Compute, dot_general
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.ops import winograd
from ktn_jax.runtime.configuration import load_config


def test_one_jitted_function_is_compiled_for_every_compute(monkeypatch):
    monkeypatch.setattr(winograd, "is_worth_while", lambda *_: True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 9, 11, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
    run = jax.jit(layers.convolve, static_argnames="compute")
    computes = [PLAIN, Compute(winograd=True), Compute(dtype="bfloat16"), Compute()]
    results = [run(x, kernel, compute=compute) for compute in computes]
    assert run._cache_size() == 3  # the last equals the first
    assert [result.dtype.name for result in results] == [
        "float32",
        "float32",
        "bfloat16",
        "float32",
    ]
    plain, fast = (run.lower(x, kernel, compute=compute).as_text() for compute in computes[:2])
    assert "stablehlo.convolution" in plain and "stablehlo.convolution" not in fast
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-4)


def _program(model, abstract):
    """The text of the pyramid's and the pooling's program."""

    def run(detector, images, boxes):
        pyramid = detector.extract(images)
        return detector.decode(pyramid), detector.pool_boxes(pyramid, boxes)

    @jax.jit
    def call(variables, images, boxes):
        return model.apply(variables, images, boxes, method=run)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 64, 64, 3), (1, 300, 4))]
    return call.lower(abstract, *shapes).as_text()


def test_every_part_of_the_detector_gets_its_compute(monkeypatch):
    monkeypatch.setattr(winograd, "is_worth_while", lambda *_: True)
    config = load_config("configs/ktn.py:tiny").model
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    plain = build_model(config)
    abstract = jax.eval_shape(plain.init, jax.random.key(0), images, jnp.full((1, 2), 64))
    texts = {
        compute: _program(build_model(config, compute=compute), abstract)
        for compute in (
            PLAIN,
            Compute(winograd=True),
            Compute(chunks=True),
            Compute(products=True),
            Compute(dtype="bfloat16"),
            Compute(matmul_dtype="bfloat16"),
        )
    }
    assert len(set(texts.values())) == len(texts)
    convolutions = texts[PLAIN].count("stablehlo.convolution")
    assert texts[Compute(winograd=True)].count("stablehlo.convolution") < convolutions
    assert "stablehlo.while" in texts[Compute(chunks=True)]
    assert "stablehlo.while" not in texts[PLAIN]
    # Every convolution, none forgotten on the way down; parameters stay float32.
    in_bfloat16 = [
        line.rpartition("->")[2]
        for line in texts[Compute(dtype="bfloat16")].splitlines()
        if "stablehlo.convolution" in line
    ]
    assert in_bfloat16 and all("xbf16>" in line for line in in_bfloat16)
    assert build_model(config).compute == PLAIN
    config.dtype = "bfloat16"
    assert build_model(config).compute == Compute(dtype="bfloat16")


def test_heads_compute_in_the_models_dtype():
    config = load_config("configs/ktn.py:tiny").model
    model = build_model(config, compute=Compute(dtype="bfloat16"))
    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    made = jax.eval_shape(model.init, jax.random.key(0), images, jnp.full((1, 2), 64))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made["params"])} == {"float32"}
    side = config.densepose_head.pooled_size
    pooled = jax.ShapeDtypeStruct((2, side, side, config.decoder.out_channels), jnp.float32)
    head = jax.eval_shape(
        lambda variables, x: model.apply(variables, x, method=Detector.run_head), made, pooled
    )
    assert head.dtype == jnp.bfloat16


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_small_pieces_are_for_cpus_and_products_for_tpus(platform):
    chosen = Compute.choose(
        "bfloat16", platform=platform, winograd=True, bands=True, matmul_dtype="bfloat16"
    )
    is_cpu = platform == "cpu"
    assert chosen == Compute(
        "bfloat16",
        winograd=is_cpu,
        bands=is_cpu,
        chunks=is_cpu,
        products=platform == "tpu",
        split_groups=is_cpu,
        stem_blocks=is_cpu,
        matmul_dtype="bfloat16",
    )
    assert not Compute.choose("float32", platform=platform).winograd


def test_only_float32_factors_are_rounded():
    a = jnp.float32([[1 + 2**-12]])
    numbers = (((1,), (0,)), ((), ()))
    rounded = dot_general(a, a, numbers, Compute(matmul_dtype="bfloat16"))
    assert rounded == 1 and rounded.dtype == jnp.float32
    assert dot_general(a, a, numbers, PLAIN) > 1
    half = a.astype(jnp.float16)
    assert dot_general(half, half, numbers, Compute(matmul_dtype="bfloat16")).dtype == jnp.float16
