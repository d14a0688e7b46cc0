"""Checkpoints of a training run in a folder of a store: STORE/checkpoints/STEP, as `runs` has them.

A checkpoint is written into a local folder, which takes its checksums, and sent from there, the
checksums last: one without them is not complete, whatever ended its process. So no store needs to
rename anything, and the files are those of a local work folder. With several processes the first
one gathers the state and sends it; to resume, each fetches the whole.
"""

import concurrent.futures
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ktn_jax.checkpoints import run_folders, runs
from ktn_jax.checkpoints.run_folders import FOLDER, METRICS, SET_ASIDE, CheckpointError
from ktn_jax.checkpoints.runs import RunRecord, Tree
from ktn_jax.runtime import checksums, stores
from ktn_jax.runtime.stores import Store, StoreError

_Result = TypeVar("_Result")


class StoreCheckpoints:
    """Saves and restores the states of one run, as `runs.Checkpoints` does in a local folder.

    Attributes:
        directory: the address of the checkpoints.
    """

    def __init__(
        self,
        store: Store,
        keep_last: int = 3,
        score: str = "GPSm",
        *,
        verify: bool = True,
        check_lock: Callable[[], None] = lambda: None,
        send_before: Callable[[], None] = lambda: None,
    ):
        """Lists the checkpoints of a work folder; the first save removes incomplete ones.

        Args:
            store: the work folder.
            keep_last: see `runs.Checkpoints`.
            score: see `runs.Checkpoints`.
            verify: see `runs.Checkpoints`.
            check_lock: called before something is written; raises where the folder is not this
                run's any more.
            send_before: sends what belongs to the steps before a checkpoint; called in the
                background before the checkpoint is complete.

        Raises:
            ValueError: `keep_last` is below 1.
            CheckpointError: the metrics of a checkpoint are damaged.
            StoreError: the store cannot be read.
        """
        if keep_last < 1:
            raise ValueError(f"training.keep_last must be at least 1, got {keep_last}")
        self._store, self._keep_last, self._score = store / FOLDER, keep_last, score
        self._verify, self._check_lock, self._send_before = verify, check_lock, send_before
        self._is_first = jax.process_index() == 0
        self.directory = self._store.address
        # Of the complete ones; None without a loss and a score.
        self._metrics = {step: self._read_metrics(step) for step in checkpoint_steps(self._store)}
        self._scratch = pathlib.Path(tempfile.mkdtemp(prefix="ktn-checkpoints-"))
        self._fetched: int | None = None
        self._local: runs.Checkpoints | None = None
        self._sender = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._sending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "StoreCheckpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
            else:  # the other processes may never come here
                self._finish()
            if self._local is not None:
                self._local.__exit__(kind, error, trace)
        except CheckpointError:
            if error is None:
                raise
        finally:
            self._sender.shutdown()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._metrics)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        return max(self._metrics, default=None)

    def best_step(self) -> int | None:
        """Step of the best checkpoint, None if none has a loss or a score."""
        ranked = {step: metrics for step, metrics in self._metrics.items() if metrics is not None}
        return max(ranked, key=lambda step: runs.rank(self._score, ranked[step]), default=None)

    def save(self, state: Tree, step: int, run: RunRecord, metrics: Mapping[str, float]) -> None:
        """Copies a state to the host, and writes and sends it in the background.

        Every process calls it. See `runs.Checkpoints.save`.

        Raises:
            CheckpointError: this save cannot begin, or the previous one failed.
            FolderInUseError: another run has taken the folder over.
        """
        self.wait()
        if step in self._metrics:
            return
        self._check_lock()
        is_alone = jax.process_count() > 1
        if is_alone:
            state = jax.tree.map(_gather, state)
        # The same in all processes, which so agree on the steps that there are.
        self._metrics[step] = runs.ranked_metrics(metrics, self._score)
        kept = {self.best_step(), *self.steps()[-self._keep_last :]}
        for other in self.steps():
            if other not in kept:
                del self._metrics[other]
        if not self._is_first:
            return
        if self._local is None:
            folder = self._scratch / "sent"
            self._local = runs.Checkpoints(folder, 1, self._score, alone=is_alone)
        self._local.save(state, step, run, metrics)
        self._sending = self._sender.submit(self._send, self._local, step)

    def wait(self) -> None:
        """Waits until everything is in the store; every process calls it.

        Raises:
            CheckpointError: the save in the background failed.
        """
        self._finish()
        if jax.process_count() > 1:  # those that send nothing must not end before the first one
            multihost_utils.sync_global_devices("checkpoints sent")

    def _finish(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            sending.result()

    def _send(self, local: runs.Checkpoints, step: int) -> None:
        """Sends a checkpoint when it is complete, and then removes those that are not kept."""
        local.wait()
        folder = local.directory / str(step)
        names = [
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ]

        def send(name: str) -> None:
            self._store.send(folder / name, f"{step}/{name}")

        names.remove(checksums.CHECKSUM_FILE)
        try:
            self._check_lock()
            self._send_before()
            with concurrent.futures.ThreadPoolExecutor(stores.AT_ONCE) as pool:
                list(pool.map(send, names))
            send(checksums.CHECKSUM_FILE)
            self._remove_others()
        except StoreError as error:
            raise CheckpointError(f"the checkpoint of step {step} cannot be saved: {error}") from (
                error
            )

    def _remove_others(self) -> None:
        kept = {str(step) for step in self._metrics}
        gone = [n for n in self._store.files() if n.partition("/")[0] not in kept]
        # Without its checksums none of them counts as a checkpoint any more.
        self._store.remove(sorted(gone, key=lambda name: not _is_last(name)))

    def _read_metrics(self, step: int) -> dict[str, float] | None:
        name = f"{step}/{METRICS}/{METRICS}"
        try:
            return run_folders.parse_metrics(self._store.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointError(
                f"{self._store}/{name}: damaged: {error}; move the checkpoint away"
            ) from error

    def read_run(self, step: int) -> RunRecord:
        """Reads a checkpoint's description of its run, see `runs.Checkpoints.read_run`."""
        return self._reading(step, lambda local: local.read_run(step))

    def restore(self, step: int, abstract_state: Tree, shardings: Any) -> Tree:
        """Restores a state, on any number of devices, see `runs.Checkpoints.restore`."""
        state = self._reading(step, lambda local: local.restore(step, abstract_state, shardings))
        shutil.rmtree(self._scratch / "fetched")
        self._fetched = None
        return state

    def _reading(self, step: int, read: Callable[[runs.Checkpoints], _Result]) -> _Result:
        folder = self._scratch / "fetched"
        if self._fetched != step:
            fetch(self._store, step, folder / FOLDER)
        verify, self._fetched = self._verify and self._fetched != step, step
        try:
            with runs.Checkpoints(folder, verify=verify) as local:
                return read(local)
        except CheckpointError as error:
            message = _of_store(error, folder / FOLDER, self._store, step, self.steps())
            raise CheckpointError(message) from error


def _of_store(
    error: CheckpointError, copies: pathlib.Path, store: Store, step: int, steps: Sequence[int]
) -> str:
    """What is wrong with a checkpoint of a step, found in a local copy of one alone."""
    message = str(error).replace(str(copies), store.address)
    earlier = [other for other in steps if other < step]
    if not earlier:
        return message
    advice = f"--from-step {earlier[-1]} resumes from the one before"
    return message.replace(run_folders.NONE_BEFORE, advice)


def _gather(leaf: Any) -> np.ndarray:
    """An array of all processes in the memory of each."""
    if leaf.is_fully_replicated:
        return np.array(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _is_last(name: str) -> bool:
    return name.rpartition("/")[2] == checksums.CHECKSUM_FILE


def checkpoint_steps(store: Store) -> list[int]:
    """Steps of the complete checkpoints in a folder of a store, ascending.

    Raises:
        StoreError: it cannot be listed.
    """
    found = []
    for name in store.files():
        step, _, rest = name.partition("/")
        if rest == checksums.CHECKSUM_FILE and run_folders.is_step(step):
            found.append(int(step))
    return sorted(found)


def fetch(store: Store, step: int, target: pathlib.Path) -> pathlib.Path:
    """Copies a checkpoint of a folder of a store into a local folder.

    Returns:
        Its local folder.

    Raises:
        StoreError: it cannot be read.
    """
    stores.fetch_files(store / str(step), (store / str(step)).files(), target / str(step))
    return target / str(step)


def fetch_weights(path: str) -> pathlib.Path:
    """The local path of weights: of a work folder in a store only a checkpoint is fetched.

    Args:
        path: a local path, which is returned; or the address of a file or a folder of weights, of a
            checkpoint, or of a work folder, of which the newest complete checkpoint is taken.

    Raises:
        FileNotFoundError: nothing is at the address.
        StoreError: it cannot be read.
    """
    if not stores.is_address(path):
        return pathlib.Path(path)
    store = Store(path)
    for folder in (store / FOLDER, store):
        steps = checkpoint_steps(folder)
        if steps:
            return stores.fetched(f"{folder}/{steps[-1]}", keep=False)
    return stores.fetched(path, keep=False)


def return_to(store: Store, step: int, *, verify: bool = True) -> list[int]:
    """Moves the checkpoints after a step to STORE/set_aside, see `run_folders.return_to`.

    To compare the files of the step's checkpoint, it is fetched.

    Raises:
        CheckpointError: there is no checkpoint of that step, or it is damaged; nothing is moved.
        StoreError: the store cannot be read or written.
    """
    directory = store / FOLDER
    steps = checkpoint_steps(directory)
    later = run_folders.steps_after(steps, step, directory)
    if verify:
        with tempfile.TemporaryDirectory(prefix="ktn-checkpoints-") as folder:
            copies = pathlib.Path(folder)
            try:
                run_folders.check_checkpoint(fetch(directory, step, copies), run_folders.RESUME)
            except CheckpointError as error:
                message = _of_store(error, copies, directory, step, steps)
                raise CheckpointError(message) from error
    files = store.files()
    for number in later:
        target, copy = f"{SET_ASIDE}/{number}", 1
        while any(name.startswith(f"{target}/") for name in files):
            copy += 1
            target = f"{SET_ASIDE}/{number}-{copy}"
        source = f"{FOLDER}/{number}/"
        names = sorted((n for n in files if n.startswith(source)), key=_is_last)
        for name in names:
            store.copy(name, f"{target}/{name.removeprefix(source)}")
        store.remove(sorted(names, key=lambda name: not _is_last(name)))
    return later
