"""Checkpoints of a training run: WORKDIR/checkpoints/STEP, each with its `state` and its `run`.

Checkpoints are written in the background under a temporary name and renamed when complete, so a
checkpoint is never half-written, however a run ends. Each holds the checksums of its files, which
are compared before anything is read from it.
"""

import dataclasses
import functools
import math
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ktn_jax.checkpoints import run_folders
from ktn_jax.checkpoints.run_folders import FOLDER, METRICS, RUN, STATE, CheckpointError
from ktn_jax.runtime import checksums

FORMAT = 1  # of the files; others are refused

LOSS = "loss"
_INSTEAD = "give {path} instead"
# orbax adds the time to it after the checksums are taken. It holds nothing that is restored.
_WRITTEN_LAST = ("_CHECKPOINT_METADATA",)

Tree = Any  # of arrays: a state of training


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A checkpoint's description of its run."""

    config: Mapping[str, Any]  # the whole configuration, as JSON holds it
    data_position: int  # batches drawn so far, and so the step of the next one
    # Of the steps that no line of metrics has yet, see `tracking.Averages`.
    unreported: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT


def rank(score: str, metrics: Mapping[str, float]) -> tuple[bool, float]:
    """Sort key of the metrics of checkpoints, the best last; `score` counts before the loss."""
    is_scored = score in metrics
    return is_scored, metrics[score] if is_scored else -metrics.get(LOSS, math.inf)


def ranked_metrics(metrics: Mapping[str, float], score: str) -> dict[str, float] | None:
    """The finite ones of a checkpoint's metrics; None if neither the loss nor the score is."""
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return known if LOSS in known or score in known else None


class Checkpoints:
    """Saves and restores the states of one run.

    The best checkpoint is that of the highest score, or, where no checkpoint that is left has a
    score, of the lowest loss.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        keep_last: int = 3,
        score: str = "GPSm",
        *,
        verify: bool = True,
        alone: bool = False,
    ):
        """Opens the checkpoints of a work folder; the first save removes incomplete ones.

        Args:
            workdir: the folder; made if it is not there.
            keep_last: how many to keep, newest first; the best one stays too.
            score: name of the metric that chooses the best, higher being better.
            verify: compare checksums before a checkpoint is read.
            alone: only the first of several processes saves, arrays on the host.

        Raises:
            ValueError: `keep_last` is below 1.
            CheckpointError: the metrics of a checkpoint are damaged: the best is not known.
        """
        if keep_last < 1:
            raise ValueError(f"training.keep_last must be at least 1, got {keep_last}")
        self._score = score
        self._is_checked = not verify
        self._saving = 0  # the step that is being saved, or was last
        self.directory = (pathlib.Path(workdir) / FOLDER).absolute()
        for step in run_folders.checkpoint_steps(self.directory):
            run_folders.check_metrics(self.directory / str(step))
        processes = ocp.options.MultiprocessingOptions()
        if alone:
            self.directory.mkdir(parents=True, exist_ok=True)
            processes = ocp.options.MultiprocessingOptions(
                active_processes={0}, barrier_sync_key_prefix="alone"
            )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=not alone,
                multiprocessing_options=processes,
                # Metrics are stored only where there is a best_fn; the policies do the choosing.
                best_fn=functools.partial(rank, score),
                best_mode="max",
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep_last),
                        policies.BestN(
                            get_metric_fn=functools.partial(rank, score),
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            self._manager.close()
        except Exception as close_error:  # orbax and TensorStore raise whatever the disk leads to
            if error is None:
                raise self._not_saved(close_error) from close_error

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        step: int | None = self._manager.latest_step()
        return step

    def best_step(self) -> int | None:
        """Step of the best checkpoint, None if none has a loss or a score."""
        step: int | None = self._manager.best_step()
        return step

    def save(self, state: Tree, step: int, run: RunRecord, metrics: Mapping[str, float]) -> None:
        """Copies a state to the host and writes it in the background.

        Waits for the previous save to end. A step that is saved already is not saved again.

        Args:
            state: on the devices, which may change it as soon as this returns.
            step: of the state.
            run: description of the run.
            metrics: "loss", and scores by name, where known. Values that are not finite are
                dropped; a checkpoint with neither the score nor a loss is never the best.

        Raises:
            CheckpointError: this save cannot begin, or the previous one failed: a full disk, say.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        ranked = ranked_metrics(metrics, self._score)
        args = {
            STATE: ocp.args.StandardSave(state),
            RUN: ocp.args.JsonSave(dataclasses.asdict(run)),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=ranked)
        except Exception as error:  # orbax and TensorStore raise whatever the disk leads to
            raise self._not_saved(error) from error

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: the save in the background failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # orbax and TensorStore raise whatever the disk leads to
            raise self._not_saved(error) from error

    def _seal(self) -> None:
        """Adds the checksums to a checkpoint: all its files are written, and it has no name yet.

        Called in the background, in the first process, when all have written their part.
        """
        for folder in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            checksums.write_checksums(folder, leave_out=_WRITTEN_LAST)

    def _not_saved(self, error: Exception) -> CheckpointError:
        steps = run_folders.checkpoint_steps(self.directory)
        last = max((step for step in steps if step != self._saving), default=None)
        rest = "there is none yet" if last is None else f"the last one is that of step {last}"
        return CheckpointError(
            f"{self.directory / str(self._saving)}: the checkpoint cannot be saved; {rest}. "
            f"{run_folders.first_lines(error)}"
        )

    def check(self, step: int) -> None:
        """Compares the files of a checkpoint with their checksums, unless told not to.

        Raises:
            CheckpointError: one is missing or damaged; the message names a checkpoint before that
                is whole.
        """
        if not self._is_checked:
            run_folders.check_checkpoint(self.directory / str(step), run_folders.RESUME)
            self._is_checked = True  # only one is read in a run

    def read_run(self, step: int) -> RunRecord:
        """Reads a checkpoint's description of its run.

        Raises:
            CheckpointError: it is damaged, or of another version of this software.
        """
        self.check(step)
        path = self.directory / str(step)
        try:
            args = ocp.args.Composite(**{RUN: ocp.args.JsonRestore()})
            run = RunRecord(**self._manager.restore(step, args=args)[RUN])
        except Exception as error:  # orbax raises a dozen kinds on damaged files
            raise CheckpointError(
                f"{path}: cannot be read: {run_folders.first_lines(error)}; "
                + run_folders.checkpoint_before(path, run_folders.RESUME)
            ) from error
        if run.format != FORMAT:
            raise CheckpointError(f"{path}: is of format {run.format}, this software's is {FORMAT}")
        return run

    def restore(self, step: int, abstract_state: Tree, shardings: Any) -> Tree:
        """Restores a state, on any number of devices.

        Args:
            step: of the checkpoint.
            abstract_state: shapes and types of the state.
            shardings: of the restored arrays.

        Returns:
            The state, bit for bit.

        Raises:
            CheckpointError: the checkpoint is damaged, or its state is of another shape.
        """
        self.check(step)
        path = self.directory / str(step)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            shardings,
        )
        try:
            args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)})
            return self._manager.restore(step, args=args)[STATE]
        except Exception as error:  # orbax and TensorStore raise a dozen kinds on damaged files
            raise CheckpointError(
                f"{path}: does not fit the configuration's model and optimizer, or is damaged; to "
                f"start a new run from its weights, give another --workdir and --weights {path}\n"
                f"{run_folders.first_lines(error)}"
            ) from error


def read_checkpoint(
    path: pathlib.Path, *, verify: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the model in a checkpoint to the host, on any number of devices.

    Args:
        path: from `find_checkpoint`.
        verify: first compare the files with their checksums.

    Returns:
        {"params", "batch_stats"} of NumPy arrays, params being the running average where one is
        kept, and the configuration of the run.

    Raises:
        CheckpointError: it is damaged; the message names a checkpoint before that is whole.
    """
    if verify:
        run_folders.check_checkpoint(path, _INSTEAD)
    wanted = ("params", "batch_stats", "ema_params")
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(STATE, ocp.args.PyTreeRestore, ocp.PyTreeCheckpointHandler())
    for name in (RUN, METRICS):
        handlers.add(name, ocp.args.JsonRestore, ocp.JsonCheckpointHandler())
    try:
        handler = ocp.CompositeCheckpointHandler(handler_registry=handlers)
        with ocp.Checkpointer(handler) as checkpointer:
            stored = checkpointer.metadata(path.absolute()).item_metadata[STATE]
            item = {name: stored[name] for name in wanted}
            to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            state = ocp.args.PyTreeRestore(item, restore_args=to_numpy, partial_restore=True)
            run = ocp.args.JsonRestore()
            restored = checkpointer.restore(
                path.absolute(), args=ocp.args.Composite(**{STATE: state, RUN: run})
            )
            arrays, record = restored[STATE], restored[RUN]
            config = dict(record["config"])
    except Exception as error:  # orbax and TensorStore raise a dozen kinds on damaged files
        raise CheckpointError(
            f"{path}: cannot be read: {run_folders.first_lines(error)}; "
            + run_folders.checkpoint_before(path, _INSTEAD)
        ) from error
    params = arrays["ema_params"] or arrays["params"]
    return {"params": params, "batch_stats": arrays["batch_stats"]}, config
