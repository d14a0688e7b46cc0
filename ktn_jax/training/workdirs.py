"""The work folder of a run: its lock, its checkpoints, and where its other files are written."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from ktn_jax.checkpoints import run_folders, store_runs
from ktn_jax.checkpoints.runs import Checkpoints
from ktn_jax.checkpoints.store_runs import StoreCheckpoints
from ktn_jax.runtime import stores
from ktn_jax.runtime.mirrors import Mirror
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.stores import Store

EVALUATION = "evaluation"  # folder of the last scores
PROFILE = "profile"  # folder of traces


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An open work folder.

    Attributes:
        name: what it was named by.
        folder: a local folder for metrics and traces: the work folder, or a mirror of it.
        checkpoints: of the run.
        set_aside: steps of the checkpoints that were set aside, in the first process.
    """

    name: str
    folder: pathlib.Path
    checkpoints: Checkpoints | StoreCheckpoints
    set_aside: list[int]


@contextlib.contextmanager
def open_workdir(
    workdir: str | os.PathLike[str],
    training: ConfigDict,
    processes: Processes,
    *,
    from_step: int | None,
    verify: bool,
) -> Iterator[Workdir]:
    """Locks a work folder and opens it; every process of the run calls this.

    Args:
        workdir: a folder that all processes see, or an address of a store.
        training: `keep_last` and `best_metric` are read.
        processes: those of the run.
        from_step: set the checkpoints after this one aside.
        verify: compare a checkpoint's files with their checksums before they are read.

    Raises:
        CheckpointError: a checkpoint is damaged or not there.
        FolderInUseError: another run has the folder.
        StoreError: the store cannot be read or written.
    """
    store = Store(workdir) if stores.is_address(workdir) else None
    with contextlib.ExitStack() as opened:
        check_lock = opened.enter_context(processes.hold(workdir if store is None else store))
        set_aside: list[int] = []
        if from_step is not None:
            if processes.is_first:
                set_aside = (
                    run_folders.return_to(workdir, from_step, verify=verify)
                    if store is None
                    else store_runs.return_to(store, from_step, verify=verify)
                )
            processes.wait("checkpoints set aside")
        keep_last, score = training.keep_last, training.best_metric
        checkpoints: Checkpoints | StoreCheckpoints
        if store is None:
            folder = pathlib.Path(workdir)
            # In a local folder `return_to` has compared them.
            is_checked = not verify or from_step is not None
            checkpoints = Checkpoints(workdir, keep_last, score, verify=not is_checked)
        else:
            own = (run_folders.FOLDER, run_folders.SET_ASIDE, EVALUATION)
            mirror = opened.enter_context(Mirror(store, leave_out=own))
            folder = mirror.folder
            checkpoints = StoreCheckpoints(
                store,
                keep_last,
                score,
                verify=verify,
                check_lock=check_lock,
                send_before=mirror.push,  # lines of metrics that no run writes again
            )
        opened.enter_context(checkpoints)
        yield Workdir(os.fspath(workdir), folder, checkpoints, set_aside)


def evaluation_folder(
    workdir: str | os.PathLike[str], processes: Processes, opened: contextlib.ExitStack
) -> tuple[pathlib.Path, Processes]:
    """The local folder for evaluations during a run, and the processes that share it.

    Args:
        workdir: of the run, see `open_workdir`.
        processes: those of the run.
        opened: where the mirror of a store's folder is closed.
    """
    if not stores.is_address(workdir):
        return pathlib.Path(workdir) / EVALUATION, processes
    mirror = opened.enter_context(Mirror(Store(workdir) / EVALUATION, processes))
    return mirror.folder, mirror.processes
