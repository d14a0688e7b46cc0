"""What a step costs: operations of programs, and the share of a known device's peak."""

import json

import jax
import jax.numpy as jnp
import pytest

from ktn_jax.training import profiling
from ktn_jax.training.run_log import RunLog
from ktn_jax.training.step import StepMetrics


def test_operations_are_counted_before_and_after_compiling():
    a, b = jnp.ones((8, 16)), jnp.ones((16, 32))
    lowered = jax.jit(jnp.dot).lower(a, b)
    assert profiling.count_flops(lowered) == 2 * 8 * 16 * 32
    assert profiling.count_flops(lowered.compile()) == pytest.approx(2 * 8 * 16 * 32, rel=0.01)


@pytest.mark.parametrize(("kind", "peak"), [("TPU v5 lite", 197e12), ("cpu", None)])
def test_the_share_of_peak_is_reported_of_known_devices(tmp_path, kind, peak):
    metrics = StepMetrics(
        total=1.0, losses={}, gradient_norm=1.0, learning_rate=0.1, is_finite=True
    )
    with RunLog(
        tmp_path,
        first_step=0,
        unreported={},
        total_steps=3,
        batch_size=8,
        log_every=3,
        is_first_process=True,
        device_kind=kind,
    ) as log:
        for _ in range(3):
            log.end_step(metrics, flops=2e9)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    # As many operations as images, whatever the clock says.
    assert line["flops_per_second"] == pytest.approx(line["images_per_second"] / 8 * 2e9)
    if peak is None:
        assert "share_of_peak" not in line
    else:
        assert line["share_of_peak"] == pytest.approx(line["flops_per_second"] / peak)
