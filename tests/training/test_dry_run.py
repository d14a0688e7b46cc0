"""What a dry run counts, against counts by hand and the compiler's."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax import cli
from ktn_jax.checkpoints import weights
from ktn_jax.commands import train
from ktn_jax.configs import ktn
from ktn_jax.modeling.detector import build_model
from ktn_jax.training import dry_run, profiling


def _scoped(name, function):
    with jax.named_scope(name):
        return function()


def test_products_and_convolutions_are_counted_by_part():
    """A convolution of the backbone, a product of the box head three times, a branch of the RPN."""

    def loss(kernel, matrix, image, rows):
        def convolved():
            return jax.lax.conv_general_dilated(
                image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        def turn(total, some):
            return total + _scoped("box_head", lambda: jnp.sum(some @ matrix)), None

        maps = _scoped("backbone", convolved)
        total, _ = jax.lax.scan(turn, maps.sum(), rows)
        branches = (lambda: jnp.sum(rows[0] @ rows[0].T), lambda: 0.0)
        return total + _scoped("rpn_head", lambda: jax.lax.cond(total > 0, *branches))

    shapes = ((3, 3, 5, 7), (6, 11), (2, 8, 8, 5), (3, 4, 6))
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    forward = dry_run.count_products(jax.jit(loss).trace(*arrays).jaxpr.jaxpr)
    convolution, product = 2 * (2 * 4 * 4 * 7) * (3 * 3 * 5), 2 * (4 * 11) * 6
    expected = {"backbone and FPN": convolution, "box head": 3 * product, "RPN": 2 * 4 * 4 * 6}
    assert dict(forward) == expected
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(*arrays)
    # The gradients of the kernel and of the matrix take as much again; rows get none.
    expected |= {"backbone and FPN": 2 * convolution, "box head": 2 * 3 * product}
    assert dict(dry_run.count_products(both.jaxpr.jaxpr)) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("['params']['predictor']['transfer']['fc1']['kernel']", "knowledge transfer"),
        ("['params']['decoder']['predictor']['kernel']", "decoder"),
        (".opt_state.trace['box_head']['fc1']['kernel']", "box head"),
        ("jit(train_step)/transpose(jvp())/Detector.extract/neck/output2", "backbone and FPN"),
        ("jit(train_step)/jvp()/Detector.run_stages/densepose_head/body_conv1", "heads of people"),
        ("jit(train_step)/optimizer/mul", "optimizer"),
        ("jit(train_step)/jvp()/reduce_sum", dry_run.OTHERS),
    ],
)
def test_parts_are_told_by_names(text, part):
    assert dry_run.part_of(text) == part


def test_the_memory_of_a_program_is_its_arguments_and_what_it_keeps():
    program = jax.jit(lambda x: (x @ x, x.sum())).lower(np.ones((64, 64), np.float32)).compile()
    memory = profiling.memory_of(program)
    assert memory.arguments == 64 * 64 * 4
    assert memory.peak >= 2 * 64 * 64 * 4 + 4
    nothing = types.SimpleNamespace(memory_analysis=lambda: None)
    assert profiling.memory_of(nothing).peak == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --workdir"),
        (["--workdir=w", "--size=64x64"], "--size is of --dry-run"),
        (["--dry-run", "--set=batch_size=3"], "cannot be split evenly"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config=ktn:tiny", *arguments]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "--config=ktn:tiny", "--dry-run", "--size=64"])
    assert "HEIGHTxWIDTH wanted" in capsys.readouterr().err


@pytest.mark.extended  # compiles a step
def test_a_dry_run_prints_what_a_step_takes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--config=ktn:tiny", "--dry-run", "--size=128x128"]
    assert cli.main([*arguments, "--set=training.num_devices=1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a step of 2 images of 128 x 128 on 1 x cpu")
    for name in ("backbone and FPN", "RPN", "box head", "decoder", "heads of people"):
        assert name in said
    variables = weights.abstract_variables(build_model(ktn.get_config("tiny").model))
    assert f"{weights.count_parameters(variables):,}" in said
    assert "s to compile" in said and list(tmp_path.iterdir()) == []
    assert train.EXAMPLES.count("--dry-run") == 1
