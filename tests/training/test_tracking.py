"""Files of metrics, read back by TensorBoard."""

import errno
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing import event_accumulator

from ktn_jax.training import tracking
from ktn_jax.training.step import StepMetrics


def read_scalars(folder):
    """What TensorBoard shows of a folder: pairs of step and value by tag."""
    accumulator = event_accumulator.EventAccumulator(str(folder)).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tensorboard_shows_a_value_while_the_file_is_open(tmp_path):
    writer = tracking.MetricsWriter(tmp_path, 0)
    writer.write(300, {"loss": 1.5, "loss/box": float("inf")})
    expected = {"loss": [(300, 1.5)], "loss/box": [(300, float("inf"))]}
    assert read_scalars(tmp_path / tracking.EVENTS) == expected
    writer.close()


def test_tensorboard_drops_what_a_killed_run_wrote_after_its_last_checkpoint(tmp_path):
    for first_step in (0, 20):  # the first run is killed: its file is never closed
        writer = tracking.MetricsWriter(tmp_path, first_step)
        for step in range(first_step + 10, first_step + 31, 10):
            writer.write(step, {"loss": first_step + step / 10})
    assert len(list((tmp_path / tracking.EVENTS).iterdir())) == 2
    expected = [(10, 1), (20, 2), (30, 23), (40, 24), (50, 25)]
    assert read_scalars(tmp_path / tracking.EVENTS) == {"loss": expected}
    writer.close()


def test_writing_for_tensorboard_loads_neither_pytorch_nor_tensorflow(tmp_path):
    code = """
import sys
from ktn_jax.training import tracking
before = set(sys.modules)
tracking.MetricsWriter(sys.argv[1], 0).write(1, {"loss": 1.0})
assert "torch" not in before and "tensorboardX" in sys.modules
assert not {"torch", "tensorflow", "tensorboard"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_lines_after_the_last_checkpoint_are_written_again(tmp_path):
    writer = tracking.MetricsWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 10})
    writer.close()
    path = tmp_path / tracking.JSON_LINES
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle of a line
    writer = tracking.MetricsWriter(tmp_path, 20)
    writer.write(30, {"loss": float("nan")})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": "nan"},
    ]


@pytest.mark.parametrize("name", ["_lines", "_events._file"])
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, name):
    writer = tracking.MetricsWriter(tmp_path, 0)
    *parts, last = name.split(".")
    owner = getattr(writer, parts[0]) if parts else writer
    with open("/dev/full", "ab" if parts else "a") as full:
        setattr(owner, last, full)
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/") as caught:
            writer.write(1, {"loss": 1.0})
        assert caught.value.errno == errno.ENOSPC
        writer.close()


def test_averages_are_means_since_they_were_taken():
    def step(total, box):
        return StepMetrics(
            total=jnp.float32(total),
            losses={"box": jnp.float32(box)},
            gradient_norm=jnp.float32(2),
            learning_rate=jnp.float32(0.5),
            is_finite=jnp.bool_(True),
        )

    averages = tracking.Averages()
    assert averages.take() == {}
    averages.add(step(1, 3))
    averages.add(step(2, 5))
    expected = {"loss": 1.5, "loss/box": 4.0, "gradient_norm": 2.0, "learning_rate": 0.5}
    assert averages.take() == expected
    averages.add(step(7, 7))
    assert averages.take()["loss"] == 7
