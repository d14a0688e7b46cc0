"""Files of metrics, read back by others' readers."""

import json
import struct

import jax.numpy as jnp
import pytest

from ktn_jax.training import event_files, metrics
from ktn_jax.training.step import StepMetrics


def read_records(folder):
    """The records of the one event file in a folder, with their checksums checked."""
    (path,) = folder.iterdir()
    data, records = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == event_files.masked_crc32c(data[:8])
        record, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == event_files.masked_crc32c(record)
        records.append(record)
        data = data[4:]
    return records


def test_checksum_is_crc_32c():
    """0xE3069283 is the check value that definitions of CRC-32C give for these digits."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
    assert event_files.masked_crc32c(b"123456789") == masked


def test_tensorboard_reads_what_is_written(tmp_path):
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    file = event_files.EventFile(tmp_path, first_step=7)
    file.write(300, {"loss": 1.5, "loss/box": float("inf")})
    file.close()
    events = [event_pb2.Event.FromString(record) for record in read_records(tmp_path)]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (7, 1)
    assert events[2].step == 300 and events[2].wall_time > 1.6e9
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert values == {"loss": 1.5, "loss/box": float("inf")}


def test_lines_after_the_last_checkpoint_are_written_anew(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 10})
    writer.close()
    path = tmp_path / metrics.JSON_LINES
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle of a line
    writer = metrics.MetricsWriter(tmp_path, 20)
    writer.write(30, {"loss": float("nan")})
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 30, "loss": "nan"},
    ]


def test_averages_are_means_since_they_were_taken():
    def step(total, box):
        return StepMetrics(
            total=jnp.float32(total),
            losses={"box": jnp.float32(box)},
            gradient_norm=jnp.float32(2),
            learning_rate=jnp.float32(0.5),
            is_finite=jnp.bool_(True),
            image_id=jnp.zeros(2, jnp.int32),
            is_stop_requested=jnp.bool_(False),
        )

    averages = metrics.Averages()
    assert averages.take() == {}
    averages.add(step(1, 3))
    averages.add(step(2, 5))
    expected = {"loss": 1.5, "loss/box": 4.0, "gradient_norm": 2.0, "learning_rate": 0.5}
    assert averages.take() == expected
    averages.add(step(7, 7))
    assert averages.take()["loss"] == 7
