"""Writes scalars in TensorBoard's event files, without TensorFlow or PyTorch.

An event file is a list of records [length, checksum of the length, data, checksum of the data]; the
data are protocol buffers (tensorflow/core/util/event.proto). Only the few fields that a scalar
needs are written here.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

_CASTAGNOLI = 0x82F63B78  # the polynomial of CRC-32C, bits reversed


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """Checksum of a record's parts: CRC-32C, rotated and shifted as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def encode_scalars(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """Encodes an `Event` with a `Summary` of scalars.

    Args:
        wall_time: seconds since 1970.
        step: of the run, not negative.
        values: by tag.

    Returns:
        The protocol buffer.
    """
    summary = b""
    for tag, value in values.items():
        # Summary.Value: tag = 1, simple_value = 2 (float).
        entry = _bytes_field(1, tag.encode()) + struct.pack("<Bf", 2 << 3 | 5, value)
        summary += _bytes_field(1, entry)
    # Event: wall_time = 1 (double), step = 2, summary = 5.
    head = struct.pack("<Bd", 1 << 3 | 1, wall_time) + _varint(2 << 3) + _varint(step)
    return head + _bytes_field(5, summary)


class EventFile:
    """An event file in a folder, named as TensorBoard looks for it."""

    def __init__(self, folder: str | os.PathLike, first_step: int = 0):
        """Opens a new file.

        Args:
            folder: made if it is not there.
            first_step: of this file. TensorBoard drops what older files say from this step on: the
                run that wrote them was killed, and went on from its last checkpoint.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / f"{name}.{time.monotonic_ns()}", "ab")  # noqa: SIM115
        wall_time = struct.pack("<Bd", 1 << 3 | 1, now)
        self._write(wall_time + _bytes_field(3, b"brain.Event:2"))  # file_version = 3
        if first_step:
            # session_log = 7: status = 1, START = 1
            session = _bytes_field(7, bytes([1 << 3, 1]))
            self._write(wall_time + _varint(2 << 3) + _varint(first_step) + session)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends scalars by tag, and hands them to the system at once."""
        self._write(encode_scalars(time.time(), step, values))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        record = length + struct.pack("<I", masked_crc32c(length))
        self._file.write(record + data + struct.pack("<I", masked_crc32c(data)))
        self._file.flush()
