"""Reports of a training run: lines above its progress bar, and files of metrics."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ktn_jax.runtime import progress
from ktn_jax.training.profiling import PEAK_FLOPS
from ktn_jax.training.step import StepMetrics
from ktn_jax.training.tracking import Averages, MetricsWriter, Speed

_EVALUATION_PREFIX = "eval/"


class RunLog:
    """Reports the steps of a run; in all processes but the first it only counts."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        first_step: int,
        unreported: Mapping[str, Any],
        total_steps: int,
        batch_size: int,
        log_every: int,
        is_first_process: bool,
        device_kind: str = "",
    ):
        """Opens the files and starts the clock.

        Args:
            workdir: for the files of metrics.
            first_step: steps that were taken before.
            unreported: what `unreported` gave after them.
            total_steps: of the whole run.
            batch_size: images of a step.
            log_every: steps between two reports.
            is_first_process: the only one that writes and shows anything.
            device_kind: JAX's name of the devices, whose peak is looked up.
        """
        self.steps = first_step  # whose metrics were added
        self._batch_size, self._log_every = batch_size, log_every
        self._since_report, self._since_save = Averages.from_json(unreported), Averages()
        self._is_shown = is_first_process
        self._writer = MetricsWriter(workdir, first_step) if is_first_process else None
        self._progress = progress.Progress(
            "train", "steps", total_steps, done=first_step, is_shown=is_first_process
        )
        self._speed = Speed()
        self._peak_flops = PEAK_FLOPS.get(device_kind)
        self._seen_shapes: set[tuple[int, ...]] = set()
        self._started = time.perf_counter()
        self._has_started = False

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        if self._writer is not None:
            self._writer.close()

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self._is_shown:
            progress.say(text)

    def begin_step(self, image_shape: tuple[int, ...]) -> None:
        """Reports that the step is compiled, where images [B, H, W, 3] have a new size."""
        if len(image_shape) == 4 and image_shape not in self._seen_shapes:
            self.say(f"compiling the step for images of {image_shape[1]} x {image_shape[2]}")
        self._seen_shapes.add(image_shape)

    def end_step(self, metrics: StepMetrics, flops: float = 0.0) -> None:
        """Counts a step that has ended; reports if it is time.

        Args:
            metrics: on the host.
            flops: operations of the step on one device; 0 where they are not known.
        """
        self.steps += 1
        if not self._has_started:
            self.say(f"the first step ended after {time.perf_counter() - self._started:.1f} s")
            self._has_started = True
        self._since_report.add(metrics)
        self._since_save.add(metrics)
        self._speed.add(self._batch_size, flops)
        self._progress.advance()
        if self.steps % self._log_every == 0:
            self.report()

    def report(self) -> None:
        """Shows and writes the means since the last report, if there are any."""
        values = self._since_report.take()
        if not values:
            return
        values["images_per_second"], flops = self._speed.take()
        if flops:
            values["flops_per_second"] = flops  # of a device
            if self._peak_flops:
                values["share_of_peak"] = flops / self._peak_flops
        self._progress.show(
            {
                name.removeprefix("loss/"): f"{value:.3g}"
                for name, value in values.items()
                if name.startswith("loss") or name == "images_per_second"
            }
        )
        self._write(values)

    def unreported(self) -> dict[str, Any]:
        """The steps since the last report, as JSON values, for a run that resumes from here."""
        return self._since_report.to_json()

    def take_loss(self) -> dict[str, float]:
        """The mean `loss` since the last call, for a checkpoint; empty without a step."""
        means = self._since_save.take()
        return {"loss": means["loss"]} if means else {}

    @contextmanager
    def evaluation(self) -> Iterator[dict[str, float]]:
        """Reports the scores that its block fills in; the block's time is not training time."""
        scores: dict[str, float] = {}
        start = time.perf_counter()
        with self._speed.paused():
            yield scores
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self.say(f"step {self.steps}: {shown} ({time.perf_counter() - start:.1f} s)")
        self._write({f"{_EVALUATION_PREFIX}{name}": value for name, value in scores.items()})

    def _write(self, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(self.steps, values)
