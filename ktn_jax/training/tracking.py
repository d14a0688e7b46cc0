"""Metrics of a training run: means of losses, speed, and files."""

import collections
import contextlib
import json
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ktn_jax.runtime import atomic_files
from ktn_jax.training.step import StepMetrics

JSON_LINES = "metrics.jsonl"
EVENTS = "tensorboard"


class MetricsWriter:
    """Writes scalars to WORKDIR/metrics.jsonl and WORKDIR/tensorboard/."""

    def __init__(self, workdir: str | os.PathLike[str], first_step: int):
        """Opens both.

        Args:
            workdir: the folder; made if it is not there.
            first_step: the run starts after this many steps. Lines of later steps, of a run that
                was killed, are removed: these steps are repeated.
        """
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / JSON_LINES
        _drop_later_lines(self._path, first_step)
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        # Values are written under the number of steps taken: those of this run come after.
        purge_step = first_step + 1 if first_step else None
        self._events = _EventFile(workdir / EVENTS, purge_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name, as those of a step.

        Raises:
            OSError: they cannot be written; it names the file.
        """
        line = json.dumps({"step": step} | {name: _plain(values[name]) for name in values})
        with _naming(self._path):
            self._lines.write(line + "\n")
            self._lines.flush()
        self._events.write(step, values)

    def close(self) -> None:
        """Closes the files; whatever could be written is written."""
        with contextlib.suppress(OSError):
            self._lines.close()
        self._events.close()


class _EventFile:
    """A file of scalars for TensorBoard, which shows them as soon as they are written.

    Of tensorboardX only messages and checksums are used: its writer works in a thread, where a full
    disk ends in tracebacks, one more of them when Python exits.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int | None):
        """Opens a new file.

        Args:
            folder: made if it is not there.
            purge_step: TensorBoard drops values of older files from this step on.
        """
        # tensorboardX imports PyTorch where it finds it, to annotate a type: seconds, hundreds of
        # MiB, and its CUDA libraries beside JAX's.
        with _hidden("torch"):
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
            from tensorboardX.record_writer import masked_crc32c
        self._make_event, self._make_summary, self._checksum = Event, Summary, masked_crc32c
        folder.mkdir(parents=True, exist_ok=True)
        # The last number tells a run from one that was killed and restarted within the second.
        self._path = folder / (
            f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}."
            f"{time.monotonic_ns()}"
        )
        self._file = open(self._path, "xb")  # noqa: SIM115
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name, as those of a step."""
        summary = self._make_summary(
            value=[
                self._make_summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
            ]
        )
        self._add(self._make_event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Any) -> None:
        """Writes a record of the TFRecord format: length and content, each with a checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        with _naming(self._path):
            for part in (length, content):
                self._file.write(part + struct.pack("<I", self._checksum(part)))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self._file.close()


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Adds the name of a file to errors in writing it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Makes a module seem not installed, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # so import says that there is none
    try:
        yield
    finally:
        del sys.modules[module]


def _plain(value: float) -> float | str:
    """JSON has no NaN and no infinity: they become words."""
    return float(value) if np.isfinite(value) else str(value)


def _drop_later_lines(path: pathlib.Path, last_step: int) -> None:
    if not path.exists():
        return
    kept, is_changed = [], False
    content = path.read_text(encoding="utf-8", errors="replace")
    for line in content.splitlines(keepends=True):
        try:
            is_kept = line.endswith("\n") and json.loads(line)["step"] <= last_step
        except (ValueError, KeyError, TypeError):
            is_kept = False  # a killed run's last line may be cut short
        kept += [line] if is_kept else []
        is_changed |= not is_kept
    if is_changed:
        with atomic_files.replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


class Averages:
    """Means over the steps since they were last taken, as numbers on the host."""

    def __init__(self) -> None:
        """Starts with no step."""
        self._sums: dict[str, float] = collections.defaultdict(float)
        self._count = 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Averages":
        """Resumes from what `to_json` gave; from no step if it is empty."""
        averages = cls()
        averages._sums.update(content.get("sums", {}))
        averages._count = content.get("steps", 0)
        return averages

    def to_json(self) -> dict[str, Any]:
        """The sums and the number of steps, as JSON values."""
        return {"steps": self._count, "sums": dict(self._sums)}

    def add(self, metrics: StepMetrics) -> None:
        """Adds a step, whose arrays are on the host."""
        self._count += 1
        for name, value in scalars(metrics).items():
            self._sums[name] += value

    def take(self) -> dict[str, float]:
        """Returns the means by name and resets them; empty without a step."""
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums.clear()
        self._count = 0
        return means


def scalars(metrics: StepMetrics) -> dict[str, float]:
    """Names the numbers of a step: `loss` is the total, `loss/NAME` its terms."""
    named = {"loss": float(metrics.total)}
    named |= {f"loss/{name}": float(value) for name, value in sorted(metrics.losses.items())}
    named["gradient_norm"] = float(metrics.gradient_norm)
    named["learning_rate"] = float(metrics.learning_rate)
    return named


class Speed:
    """Images, and operations of a device, per second since the last call."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()
        self._images, self._flops = 0, 0.0

    def add(self, images: int, flops: float = 0.0) -> None:
        """Counts images and operations whose step has ended."""
        self._images += images
        self._flops += flops

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock while the block runs."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def take(self) -> tuple[float, float]:
        """Returns images and operations per second and restarts the clock."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        rates = self._images / seconds, self._flops / seconds
        self._start, self._images, self._flops = now, 0, 0.0
        return rates
