"""A training run: restore or begin, step, report, evaluate, save, stop.

The host runs a few steps ahead of the devices and never waits for a step to end: it reads the
metrics of a step only when later steps are under way.
"""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, TypeGuard

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.checkpoints import run_folders
from ktn_jax.checkpoints.runs import RunRecord
from ktn_jax.runtime import configuration, host_memory
from ktn_jax.runtime.program_store import ProgramStore
from ktn_jax.training import distributed, profiling, workdirs
from ktn_jax.training.distributed import Batch, HostBatch
from ktn_jax.training.run_log import RunLog
from ktn_jax.training.state import TrainState
from ktn_jax.training.step import LossFn, StepMetrics, prepare_step
from ktn_jax.training.stopping import StopSignal, StopVote

Variables = Mapping[str, Any]
# Maps variables on one device of this process to scores by name. Every process calls it after the
# same step, with the same values, and must get the same scores.
Evaluate = Callable[[Variables], Mapping[str, float]]

_STEPS_BEHIND = 2  # steps that are begun before the metrics of one are read
_COLLECTIONS = ("params", "batch_stats")


class NonFiniteError(ArithmeticError):
    """A loss or a gradient was NaN or infinite; nothing of that step is in the weights."""

    def __init__(
        self, step: int, metrics: StepMetrics, image_ids: np.ndarray, checkpoint: int | None
    ):
        """Makes the message.

        Args:
            step: the number of steps taken before.
            metrics: of the step, on the host.
            image_ids: int [B] of the whole batch.
            checkpoint: step of the last checkpoint, None without any.
        """
        self.step = step
        self.losses = {name: float(value) for name, value in sorted(metrics.losses.items())}
        self.image_ids = [int(image_id) for image_id in image_ids]
        terms = ", ".join(f"{name} {value:.6g}" for name, value in self.losses.items())
        last = "there is no checkpoint yet" if checkpoint is None else f"at step {checkpoint}"
        super().__init__(
            f"step {step + 1}: a loss or a gradient is not finite, and the weights were kept as "
            f"they were. Losses: {terms}; gradient norm {float(metrics.gradient_norm):.6g}. Image "
            f"ids: {self.image_ids}. Last good checkpoint: {last}"
        )


@dataclasses.dataclass(frozen=True)
class TrainingEnd:
    """How a run ended."""

    step: int  # steps taken, and saved
    is_complete: bool  # False: it was asked to stop, and the same command resumes from here
    state: TrainState


@dataclasses.dataclass(frozen=True)
class _BegunStep:
    """A step whose metrics are not read yet."""

    metrics: StepMetrics
    image_id: jax.Array  # [B], each on its image's device
    flops: float  # on one device


class Trainer:
    """A training run: its state, its compiled step and its checkpoints.

        with Trainer(config, workdir, loss_fn, abstract, initialise) as trainer:
            trainer.fit(batches_from)  # or trainer.step(batch), trainer.save()

    Attributes:
        config: the whole configuration.
        mesh: the devices.
        checkpoints: of the work folder.
        state: after the last step begun; the next step reuses its memory.
        train_step: the jitted step, (state, batch on the mesh, tables, numbers) -> (state,
            metrics); `compiled` has its programs.
        steps_taken: steps begun, those of earlier runs in the work folder included.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike[str],
        loss_fn: LossFn,
        abstract: Variables,
        initialise: Callable[[], Variables],
        *,
        tables: tuple[Any, ...] = (),
        from_step: int | None = None,
        verify: bool = True,
        programs: ProgramStore | None = None,
    ):
        """Restores the last checkpoint in `workdir`, or makes the first state.

        Args:
            config: a whole configuration, of which `total_steps`, `batch_size`, `checkpoint_every`,
                `seed`, `optimizer` and `training` are read here.
            workdir: for checkpoints and metrics: a folder that all processes see, or an address of
                a store, such as gs://bucket/run.
            loss_fn: loss_fn(params, batch_stats, batch, key, *tables) -> (total, (losses by name,
                new batch_stats)) over the global batch.
            abstract: shapes of the {"params", "batch_stats"} that train.
            initialise: makes the initial values, NumPy or JAX arrays; not called when a checkpoint
                is resumed from.
            tables: trees of arrays that the loss reads beside the batch, the same in every step;
                each device gets them once.
            from_step: resume from the checkpoint of this step; those after it are moved to
                WORKDIR/set_aside.
            verify: compare the checkpoint's files with their checksums before they are read.
            programs: see `prepare_step`.

        Raises:
            CheckpointError: the checkpoint is damaged, of another model or not there.
            FolderInUseError: another process trains in the folder.
            ValueError: a value of the configuration that does not fit.
        """
        self.config = config
        self._profiled = profiling.parse_steps(config.training.profile_steps)
        self.mesh = distributed.make_mesh(config.training.num_devices)
        accumulate = config.training.accumulate
        distributed.check_batch_size(config.batch_size, self.mesh, accumulate)
        prepared = prepare_step(config, loss_fn, abstract, self.mesh, programs)
        shardings = prepared.shardings
        self._replicate = jax.jit(
            lambda tree: tree, out_shardings=distributed.replicated(self.mesh)
        )
        with contextlib.ExitStack() as opened:
            self._workdir = opened.enter_context(
                workdirs.open_workdir(
                    workdir,
                    config.training,
                    distributed.this_process(),
                    from_step=from_step,
                    verify=verify,
                )
            )
            self.checkpoints = self._workdir.checkpoints
            self._resumed: RunRecord | None = None
            latest = self.checkpoints.latest_step()
            if latest is None:
                placements = {name: getattr(shardings, name) for name in _COLLECTIONS}
                variables = initialise()
                variables = {name: variables.get(name, {}) for name in _COLLECTIONS}
                placed = distributed.to_mesh(variables, placements)
                self.state = jax.jit(prepared.create, out_shardings=shardings)(placed)
            else:
                self._resumed = self.checkpoints.read_run(latest)
                self.state = self.checkpoints.restore(latest, prepared.shapes, shardings)
            self.steps_taken = int(self.state.step)
            self.train_step = prepared.take
            # Beside state and batch; the same in every step.
            constants = (tables, prepared.numbers)
            same = jax.tree.map(lambda _: distributed.replicated(self.mesh), constants)
            self._constants = distributed.to_mesh(constants, same)
            self._programs: dict[Any, profiling.Program] = {}
            self._opened = opened.pop_all()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being saved, closes the checkpoints and gives the folder back."""
        self._opened.close()

    def step(self, batch: HostBatch | Batch) -> StepMetrics:
        """Begins a step, and does not wait for it to end.

        Args:
            batch: this process's rows, of NumPy, or the global batch on the mesh.

        Returns:
            The metrics, on the devices. If `is_finite` is False, this and later steps do not change
            the state.
        """
        if not _is_on_devices(batch):
            batch = distributed.to_devices(batch, distributed.over_batch(self.mesh))
        program = self.compiled(batch).take
        metrics: StepMetrics
        # No implicit transfers: they would wait for the devices.
        with jax.transfer_guard("disallow"):
            self.state, metrics = program(self.state, batch, *self._constants)
        self.steps_taken += 1
        return metrics

    def compiled(self, batch: Batch) -> profiling.Program:
        """The program of a step for a batch of some shapes, compiled when it is first asked for."""
        shapes = tuple(sorted((name, rows.shape, rows.dtype.name) for name, rows in batch.items()))
        if shapes not in self._programs:
            lowered = self.train_step.lower(self.state, batch, *self._constants)
            take = lowered.compile()
            # What the compiler had, a gigabyte for a large model, would stay beside the maps.
            host_memory.return_freed()
            # Of compiled CUDA programs XLA counts nothing.
            flops = profiling.count_flops(take) or profiling.count_flops(lowered)
            self._programs[shapes] = profiling.Program(take, flops)
        return self._programs[shapes]

    def save(self, metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state in the background, unless that of this step is saved already.

        Args:
            metrics: to choose the best checkpoint by, see `Checkpoints`.
        """
        self._save(metrics or {}, unreported={})

    def _save(self, metrics: Mapping[str, float], unreported: Mapping[str, Any]) -> None:
        record = RunRecord(configuration.as_json(self.config), self.steps_taken, unreported)
        self.checkpoints.save(self.state, self.steps_taken, record, metrics)

    def variables(self) -> Variables:
        """The weights to evaluate or export, on one device of this process.

        Returns:
            {"params", "batch_stats"}, params being the running average where one is kept. They may
            share the state's memory: the next step makes them invalid.
        """
        params = self.state.ema_params or self.state.params
        whole = self._replicate({"params": params, "batch_stats": self.state.batch_stats})
        own: Variables = jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
        return own

    def fit(
        self,
        batches_from: Callable[[int], Iterator[HostBatch]],
        evaluate: Evaluate | None = None,
    ) -> TrainingEnd:
        """Trains until `config.total_steps`, or until a signal asks all processes to stop.

        SIGTERM and Ctrl-C save and return after the step under way, or with several processes a few
        steps later (see `StopVote`); an evaluation under way ends first. The second signal aborts.

        Args:
            batches_from: makes this process's rows of every batch from a step on, without end.
            evaluate: scores the model every `training.evaluate_every` steps and after the last;
                the state is then saved with its scores. None, or 0 steps, for never.

        Returns:
            How it ended. The state is saved.

        Raises:
            NonFiniteError: a loss or a gradient is not finite.
            ValueError: the batches ended, or the scores lack `training.best_metric`.
        """
        config, total = self.config, self.config.total_steps
        evaluate_every = config.training.evaluate_every if evaluate is not None else 0
        pending: collections.deque[_BegunStep] = collections.deque()
        with contextlib.ExitStack() as stack:
            stop = StopVote(stack.enter_context(StopSignal()), self.mesh)
            log = stack.enter_context(self._open_log())
            self._say_where_it_begins(log)
            batches = stack.enter_context(contextlib.closing(self._batches(batches_from)))
            folder = self._workdir.folder / workdirs.PROFILE
            profile = profiling.StepProfile(self._profiled, folder)
            stack.enter_context(contextlib.closing(profile))
            while self.steps_taken < total and not stop.is_agreed:
                batch = next(batches, None)
                if batch is None:
                    raise ValueError(
                        f"the training batches ended at step {self.steps_taken}: they must not"
                    )
                log.begin_step(batch["image"].shape if "image" in batch else ())
                profile.before(self.steps_taken)
                metrics = self.step(batch)
                profile.after(self.steps_taken - 1, metrics)
                flops = self.compiled(batch).flops
                pending.append(_BegunStep(metrics, batch["image_id"], flops))
                stop.vote()
                is_last = self.steps_taken == total
                is_scored = _is_due(self.steps_taken, evaluate_every, is_last)
                is_saved = is_scored or _is_due(self.steps_taken, config.checkpoint_every)
                self._settle(log, pending, behind=0 if is_saved else _STEPS_BEHIND)
                stop.read(behind=_STEPS_BEHIND)
                if is_saved:
                    scores = self._evaluate(evaluate, log) if evaluate and is_scored else {}
                    self._save(log.take_loss() | scores, log.unreported())
            self._settle(log, pending, behind=0)
            log.report()
            self.save(log.take_loss())
            self.checkpoints.wait()
            log.say(f"the best checkpoint is that of step {self.checkpoints.best_step()}")
        return TrainingEnd(self.steps_taken, self.steps_taken >= total, self.state)

    def _open_log(self) -> RunLog:
        run = self._resumed
        return RunLog(
            self._workdir.folder,
            first_step=self.steps_taken,
            unreported=run.unreported if run and run.data_position == self.steps_taken else {},
            total_steps=self.config.total_steps,
            batch_size=self.config.batch_size,
            log_every=self.config.training.log_every,
            is_first_process=jax.process_index() == 0,
            device_kind=self.mesh.devices.flat[0].device_kind,
        )

    def _batches(
        self, batches_from: Callable[[int], Iterator[HostBatch]]
    ) -> Generator[Batch, None, None]:
        """Batches on the devices, a few ahead; closing the iterator also closes the loader's."""
        if self.steps_taken < self.config.total_steps:
            sharding = distributed.over_batch(self.mesh)
            yield from distributed.prefetch(batches_from(self.steps_taken), sharding)

    def _settle(self, log: RunLog, pending: collections.deque[_BegunStep], *, behind: int) -> None:
        """Reads the metrics of the steps begun, except the last `behind` ones.

        Raises:
            NonFiniteError: one of them is not finite.
        """
        while len(pending) > behind:
            begun = pending.popleft()
            metrics = jax.device_get(begun.metrics)
            if not metrics.is_finite:
                # Every process reads the same and comes here, so that they can exchange the ids.
                image_ids = np.asarray(self._replicate(begun.image_id))
                last = self.checkpoints.latest_step()
                raise NonFiniteError(log.steps, metrics, image_ids, last)
            log.end_step(metrics, begun.flops)

    def _evaluate(self, evaluate: Evaluate, log: RunLog) -> dict[str, float]:
        best_metric = self.config.training.best_metric
        with log.evaluation() as scores:
            scores |= {name: float(value) for name, value in evaluate(self.variables()).items()}
        if best_metric not in scores:
            raise ValueError(
                f"training.best_metric {best_metric!r} is none of the scores: {', '.join(scores)}"
            )
        return scores

    def _say_where_it_begins(self, log: RunLog) -> None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        devices = _counted(self.mesh.size, "device", "devices")
        processes = _counted(jax.process_count(), "process", "processes")
        platform = distributed.platform_of(self.mesh)
        log.say(f"{parameters:,} parameters on {devices} of {processes} ({platform})")
        statistics = traverse_util.flatten_dict(dict(self.state.batch_stats))
        if any(path[-1] == "count" for path in statistics):  # frozen norms do not count batches
            images = self.config.batch_size // self.config.training.accumulate
            log.say(f"batch norms in training average over {images} images, those of all devices")
        if self._workdir.set_aside:
            moved = ", ".join(map(str, self._workdir.set_aside))
            folder = f"{self._workdir.name}/{run_folders.SET_ASIDE}"
            log.say(f"the checkpoints of later steps ({moved}) were moved to {folder}")
        if self._resumed is None:
            return
        log.say(f"resuming after step {self.steps_taken} from {self.checkpoints.directory}")
        stored, current = (
            traverse_util.flatten_dict(dict(config), sep=".")
            for config in (self._resumed.config, configuration.as_json(self.config))
        )
        for name in sorted(stored.keys() | current.keys()):
            before, now = stored.get(name), current.get(name)
            if before != now:
                log.say(f"changed since: {name}: {before} -> {now}")


def _counted(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _is_on_devices(batch: HostBatch | Batch) -> TypeGuard[Batch]:
    return all(isinstance(rows, jax.Array) for rows in batch.values())


def _is_due(step: int, every: int, is_last: bool = False) -> bool:
    return bool(every) and (is_last or step % every == 0)
