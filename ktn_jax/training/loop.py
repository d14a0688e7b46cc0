"""The order of things in a run: restore or begin, step, report, save, stop.

The host runs a few steps ahead of the devices and never waits for a step to end: it reads what a
step says only when later ones are under way.
"""

import collections
import dataclasses
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ktn_jax.checkpoints import weights
from ktn_jax.checkpoints.runs import Checkpoints, RunRecord
from ktn_jax.training import distributed, initialisation
from ktn_jax.training.distributed import Batch
from ktn_jax.training.forward import make_loss_fn
from ktn_jax.training.optimizer import (
    frozen_patterns,
    label_parameters,
    make_optimizer,
    make_schedule,
)
from ktn_jax.training.state import TrainState, create_state
from ktn_jax.training.step import LossFn, StepMetrics, make_train_step
from ktn_jax.training.tracking import Averages, MetricsWriter, Progress, Speed

Variables = Mapping[str, Any]

_STEPS_BEHIND = 2  # how far the host's reading lags behind what it has begun


class NonFiniteError(ArithmeticError):
    """A loss or a gradient was NaN or infinite; nothing of that step is in the weights."""

    def __init__(self, step: int, metrics: StepMetrics, checkpoint: int | None):
        """Words the message.

        Args:
            step: the number of steps taken before.
            metrics: of the step, on the host.
            checkpoint: step of the last one, None without any.
        """
        self.step = step
        self.losses = {name: float(value) for name, value in sorted(metrics.losses.items())}
        self.image_ids = [int(image_id) for image_id in np.ravel(metrics.image_id)]
        terms = ", ".join(f"{name} {value:.6g}" for name, value in self.losses.items())
        last = "there is no checkpoint yet" if checkpoint is None else f"at step {checkpoint}"
        super().__init__(
            f"step {step + 1}: a loss or a gradient is not finite, and the weights were kept as "
            f"they were. Losses: {terms}; gradient norm {float(metrics.gradient_norm):.6g}. Image "
            f"ids: {self.image_ids}. Last good checkpoint: {last}"
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int  # steps taken, and saved
    is_complete: bool  # False: it was asked to stop, and the same command goes on from here
    state: TrainState


class StopRequest:
    """Notes SIGTERM and SIGINT for the loop to see; a second one acts as ever."""

    def __init__(self) -> None:
        """Notes nothing until it is entered."""
        self.is_set = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set handlers; elsewhere whoever runs the loop stops it.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.is_set = True
        self._restore()


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    loss_fn: LossFn,
    abstract: Variables,
    initialise: Callable[[], Variables],
    batches_from: Callable[[int], Iterator[Batch]],
) -> Outcome:
    """Trains until `config.total_steps`, from the last checkpoint in `workdir` if there is one.

    Args:
        config: a whole configuration, of which `total_steps`, `batch_size`, `checkpoint_every`,
            `seed`, `optimizer` and `training` are read here.
        workdir: for checkpoints and metrics; shared by all processes.
        loss_fn: loss_fn(params, batch_stats, batch, key) -> (total, (losses by name, new
            batch_stats)) over the global batch.
        abstract: shapes of the {"params", "batch_stats"} that train.
        initialise: makes them to begin with, of NumPy or JAX; not called to go on from a
            checkpoint.
        batches_from: makes this process's rows of every batch from a step on, without end.

    Returns:
        How it ended. The state is saved.

    Raises:
        NonFiniteError: the losses left the finite numbers.
        CheckpointError: a checkpoint is damaged or of another model.
        ValueError: a value of the configuration that does not fit.
    """
    mesh = distributed.make_mesh(config.training.num_devices)
    distributed.check_batch_size(config.batch_size, mesh)
    with Checkpoints(workdir, config.training.keep_last) as checkpoints, StopRequest() as stop:
        run = _Run(config, mesh, checkpoints, stop)
        run.prepare(loss_fn, abstract, initialise)
        return run.go(workdir, batches_from)


def train_detector(
    config: ConfigDict,
    workdir: str | os.PathLike,
    batches_from: Callable[[int], Iterator[Batch]],
) -> Outcome:
    """Trains the detector of a configuration; see `train`."""
    model = initialisation.build_trained_model(config)

    def initialise() -> Variables:
        initial = initialisation.make_initial(config, config.training.weights)
        if jax.process_index() == 0:
            tqdm.write("\n".join(initial.report()), file=sys.stderr)
        return initial.variables

    return train(
        config,
        workdir,
        make_loss_fn(model, config.loss),
        weights.abstract_variables(model),
        initialise,
        batches_from,
    )


class _Run:
    """What a run holds between its steps."""

    def __init__(
        self,
        config: ConfigDict,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        stop: StopRequest,
    ):
        self.config, self.mesh = config, mesh
        self.checkpoints, self.stop = checkpoints, stop
        self.is_first = jax.process_index() == 0
        self.since_log, self.since_save = Averages(), Averages()
        self.speed = Speed()
        self.pending: collections.deque[StepMetrics] = collections.deque()
        self.is_stopping = False
        self.seen_shapes: set[tuple[int, ...]] = set()
        self.started: float | None = time.perf_counter()  # None once a step has ended

    def prepare(
        self, loss_fn: LossFn, abstract: Variables, initialise: Callable[[], Variables]
    ) -> None:
        """Restores or makes the state, and the step that fits it."""
        config = self.config
        names = ("params", "batch_stats")
        abstract = {name: abstract.get(name, {}) for name in names}
        optimizer = make_optimizer(config, *abstract.values())
        ema_decay = config.optimizer.ema_decay

        def create(variables: Variables) -> TrainState:
            return create_state(variables, optimizer, config.seed, bool(ema_decay))

        shapes = jax.eval_shape(create, abstract)
        shardings = distributed.state_shardings(shapes, self.mesh, config.training.shard_transfer)
        latest = self.checkpoints.latest_step()
        if latest is None:
            lies = {name: getattr(shardings, name) for name in names}
            variables = initialise()
            variables = {name: variables.get(name, {}) for name in names}
            placed = distributed.to_mesh(variables, lies)
            self.state = jax.jit(create, out_shardings=shardings)(placed)
        else:
            self.state = self.checkpoints.restore(latest, shapes, shardings)
        self.train_step = make_train_step(
            loss_fn,
            optimizer,
            make_schedule(config.optimizer, config.total_steps),
            label_parameters(*abstract.values(), frozen_patterns(config)),
            self.mesh,
            shardings,
            ema_decay,
        )
        self.step = int(self.state.step)  # steps begun
        self.settled = self.step  # steps whose metrics were read

    def go(
        self, workdir: str | os.PathLike, batches_from: Callable[[int], Iterator[Batch]]
    ) -> Outcome:
        """Steps until the end, or until somebody asks to stop."""
        first = self.step
        total = self.config.total_steps
        self.writer = MetricsWriter(workdir, first) if self.is_first else None
        self.progress = Progress(first, total, is_shown=self.is_first)
        self._say_where_it_begins()
        if first >= total:
            batches = iter(())
        else:
            sharding = distributed.over_batch(self.mesh)
            batches = distributed.prefetch(batches_from(first), sharding)
        try:
            while self.step < total and not self.is_stopping:
                self._take_step(batches)
            self._settle(behind=0)
            self._report()
            self._save()
            self.checkpoints.wait()
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()  # ends the threads and processes that make batches
            self.progress.close()
            if self.writer is not None:
                self.writer.close()
        return Outcome(self.step, self.step >= total, self.state)

    def _take_step(self, batches: Iterator[Mapping[str, jax.Array]]) -> None:
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the training batches ended at step {self.step}: they must not")
        self._say_if_compiling(batch)
        flags = self._stop_flags()
        # Nothing may travel unasked: it would wait for the devices.
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.train_step(self.state, batch, flags)
        self.pending.append(metrics)
        self.step += 1
        self._settle(_STEPS_BEHIND)
        if jax.process_count() == 1 and self.stop.is_set:
            self.is_stopping = True
        if self.step % self.config.checkpoint_every == 0 and self.step < self.config.total_steps:
            self._settle(behind=0)
            self._save()

    def _stop_flags(self) -> jax.Array:
        """Tells all processes of a wish to stop: in the same step, or they would wait forever."""
        flags = np.full(jax.local_device_count(), self.stop.is_set)
        if jax.process_count() == 1:
            flags = flags[:1].repeat(self.mesh.size)
        return distributed.to_devices({"stop": flags}, distributed.over_batch(self.mesh))["stop"]

    def _settle(self, behind: int) -> None:
        """Reads the metrics of the steps begun, except the last `behind` ones.

        Raises:
            NonFiniteError: one of them is not finite.
        """
        while len(self.pending) > behind:
            metrics = jax.device_get(self.pending.popleft())
            if not metrics.is_finite:
                raise NonFiniteError(self.settled, metrics, self.checkpoints.latest_step())
            self.settled += 1
            self._say_if_started()
            self.is_stopping |= bool(metrics.is_stop_requested)
            self.since_log.add(metrics)
            self.since_save.add(metrics)
            self.speed.add(self.config.batch_size)
            self.progress.advance()
            if self.settled % self.config.training.log_every == 0:
                self._report()

    def _report(self) -> None:
        """Shows and writes the means since the last time, if there are any."""
        values = self.since_log.take()
        if not values:
            return
        values["images_per_second"] = self.speed.take()
        self.progress.show(values)
        if self.writer is not None:
            self.writer.write(self.settled, values)

    def _save(self) -> None:
        loss = self.since_save.take().get("loss")
        record = RunRecord(config=_as_json(self.config), data_position=self.step)
        self.checkpoints.save(self.state, self.step, record, loss)

    def _say_where_it_begins(self) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        self._say(
            f"{parameters:,} parameters on {self.mesh.size} devices of {jax.process_count()} "
            f"processes ({jax.devices()[0].platform})"
        )
        if not self.step:
            return
        self._say(f"going on after step {self.step} from {self.checkpoints.directory}")
        stored = _flatten(self.checkpoints.read_run(self.step).config)
        current = _flatten(_as_json(self.config))
        for name in sorted(stored.keys() | current.keys()):
            before, now = stored.get(name), current.get(name)
            if before != now:
                self._say(f"changed since: {name}: {before} -> {now}")

    def _say_if_compiling(self, batch: Mapping[str, jax.Array]) -> None:
        shape = batch["image"].shape if "image" in batch else ()
        if len(shape) == 4 and shape not in self.seen_shapes:
            self._say(f"compiling the step for images of {shape[1]} x {shape[2]}")
        self.seen_shapes.add(shape)

    def _say_if_started(self) -> None:
        if self.started is not None:
            self._say(f"the first step ended after {time.perf_counter() - self.started:.1f} s")
            self.started = None

    def _say(self, text: str) -> None:
        if self.is_first:
            self.progress.say(text)


def _as_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as JSON would give it back: lists for tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    return plain(config.to_dict())


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
