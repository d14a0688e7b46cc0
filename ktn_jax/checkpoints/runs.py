"""Checkpoints of a training run: WORKDIR/checkpoints/STEP, each with its `state` and its `run`.

Checkpoints are written in the background under a temporary name and renamed when complete, so a
checkpoint is never half-written, however a run ends.
"""

import dataclasses
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

FOLDER = "checkpoints"
STATE, RUN = "state", "run"
FORMAT = 1  # of the files; others are refused

LOSS = "loss"

Tree = Any  # of arrays: a state of training


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A checkpoint's description of its run."""

    config: Mapping[str, Any]  # the whole configuration, as JSON holds it
    data_position: int  # batches drawn so far, and so the step of the next one
    format: int = FORMAT


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


class Checkpoints:
    """Saves and restores the states of one run.

    The best checkpoint is that of the highest score, or, where no checkpoint that is left has a
    score, of the lowest loss.
    """

    def __init__(self, workdir: str | os.PathLike[str], keep_last: int = 3, score: str = "GPSm"):
        """Opens the checkpoints of a work folder; the first save removes incomplete ones.

        Args:
            workdir: the folder; made if it is not there.
            keep_last: how many to keep, newest first; the best one stays too.
            score: name of the metric that chooses the best, higher being better.

        Raises:
            ValueError: `keep_last` is below 1.
        """
        if keep_last < 1:
            raise ValueError(f"training.keep_last must be at least 1, got {keep_last}")
        self._score = score
        self.directory = (pathlib.Path(workdir) / FOLDER).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                # Metrics are stored only where there is a best_fn; the policies do the choosing.
                best_fn=self._rank,
                best_mode="max",
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep_last),
                        policies.BestN(
                            get_metric_fn=self._rank,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
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
        self._manager.close()

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

    def _rank(self, metrics: Mapping[str, float]) -> tuple[bool, float]:
        """Sort key of the metrics of checkpoints, the best last."""
        is_scored = self._score in metrics
        return is_scored, metrics[self._score] if is_scored else -metrics[LOSS]

    def save(self, state: Tree, step: int, run: RunRecord, metrics: Mapping[str, float]) -> None:
        """Copies a state to the host and writes it in the background.

        Waits for the previous save to end, and raises its errors. A step that is saved already is
        not saved again.

        Args:
            state: on the devices, which may change it as soon as this returns.
            step: of the state.
            run: description of the run.
            metrics: "loss", and scores by name, where known. Values that are not finite are
                dropped; a checkpoint with neither the score nor a loss is never the best.
        """
        if step in self._manager.all_steps():
            return
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        is_ranked = LOSS in known or self._score in known
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave(state),
                    RUN: ocp.args.JsonSave(dataclasses.asdict(run)),
                }
            ),
            metrics=known if is_ranked else None,
        )

    def wait(self) -> None:
        """Waits until everything is on disk; raises errors of the background save."""
        self._manager.wait_until_finished()

    def read_run(self, step: int) -> RunRecord:
        """Reads a checkpoint's description of its run.

        Raises:
            CheckpointError: it is damaged, or of another version of this software.
        """
        path = self.directory / str(step)
        try:
            args = ocp.args.Composite(**{RUN: ocp.args.JsonRestore()})
            record = self._manager.restore(step, args=args)[RUN]
            run = RunRecord(**record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
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
        path = self.directory / str(step)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            shardings,
        )
        try:
            args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)})
            return self._manager.restore(step, args=args)[STATE]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path}: does not fit the configuration's model and optimizer, or is damaged; to "
                f"start a new run from its weights, give another --workdir and --weights "
                f"{path}\n{error}"
            ) from error


def find_checkpoint(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Finds the checkpoint that a path refers to.

    Args:
        path: a work folder, its folder of checkpoints, or one checkpoint.

    Returns:
        The checkpoint, the newest of several; None if the path holds none.
    """
    path = pathlib.Path(path)
    if (path / STATE).is_dir() and (path / RUN).is_dir():
        return path
    for folder in (path / FOLDER, path):
        if folder.is_dir():
            steps = [int(child.name) for child in folder.iterdir() if child.name.isdigit()]
            complete = [step for step in steps if (folder / str(step) / STATE).is_dir()]
            if complete:
                return folder / str(max(complete))
    return None


def read_checkpoint(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the model in a checkpoint to the host, on any number of devices.

    Args:
        path: from `find_checkpoint`.

    Returns:
        {"params", "batch_stats"} of NumPy arrays, params being the running average where one is
        kept, and the configuration of the run.

    Raises:
        CheckpointError: it is damaged.
    """
    wanted = ("params", "batch_stats", "ema_params")
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(STATE, ocp.args.PyTreeRestore, ocp.PyTreeCheckpointHandler())
    for name in (RUN, "metrics"):
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
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    params = arrays["ema_params"] or arrays["params"]
    return {"params": params, "batch_stats": arrays["batch_stats"]}, dict(record["config"])
