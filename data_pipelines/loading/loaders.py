"""Turns planned batches into arrays: in threads, in processes, or through tf.data.

All call `ExampleMaker` for every row, so the batches are the same bit for bit. Decoding and
resizing release Python's lock, so threads and tf.data use all cores. Processes serve sources that
render or decode in Python.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from ktn_jax.data_pipelines.loading.examples import Batch, ExampleMaker, Task, tasks_of
from ktn_jax.data_pipelines.loading.plan import PlannedBatch
from ktn_jax.data_pipelines.loading.unreadable import UnreadableImages
from ktn_jax.runtime.worker_pool import explained, start_workers

_Unreadable: TypeAlias = "concurrent.futures.Future[dict[int, str]]"
_Made: TypeAlias = "concurrent.futures.Future[tuple[Batch, dict[int, str]]]"


@dataclasses.dataclass(frozen=True)
class Request:
    """Which batches to make, in order."""

    plan: Callable[[int], PlannedBatch]  # global batch of a step
    rows: slice  # of every global batch: those of this process
    start: int  # first step; there is no last one
    maker: ExampleMaker
    unreadable: UnreadableImages  # takes those that the maker could not read

    def tasks(self, step: int) -> list[Task]:
        """The rows to make at a step."""
        return tasks_of(self.plan(step), self.rows)

    def steps(self) -> Iterator[int]:
        """The steps in order."""
        return itertools.count(self.start)


def load_in_threads(request: Request, workers: int, ahead: int = 2) -> Iterator[Batch]:
    """Makes batches in threads, which write straight into the batch.

    Args:
        request: which batches.
        workers: threads; 0 does the work in the caller's.
        ahead: batches that are being made before they are asked for.

    Yields:
        Batches in the order of the steps, whatever the order in which threads finish.
    """
    if workers == 0:
        for step in request.steps():
            tasks = request.tasks(step)
            batch = request.maker.allocate(len(tasks), tasks[0].canvas_hw)
            for index, task in enumerate(tasks):
                request.unreadable.add(request.maker.write(task, _row(batch, index)))
            yield batch
        return
    with concurrent.futures.ThreadPoolExecutor(workers, "loader") as pool:

        def begin(step: int) -> tuple[Batch, list[_Unreadable]]:
            tasks = request.tasks(step)
            batch = request.maker.allocate(len(tasks), tasks[0].canvas_hw)
            writes = [
                pool.submit(request.maker.write, task, _row(batch, index))
                for index, task in enumerate(tasks)
            ]
            return batch, writes

        def finish(begun: tuple[Batch, list[_Unreadable]]) -> Batch:
            for write in begun[1]:
                request.unreadable.add(write.result())
            return begun[0]

        yield from _keep_ahead(request, begin, finish, pool, ahead)


def load_in_processes(request: Request, workers: int, ahead: int = 2) -> Iterator[Batch]:
    """Makes batches in processes; rows travel back through pipes.

    Args:
        request: which batches. The source must pickle; each process gets its own copy.
        workers: processes, at least 1.
        ahead: batches that are being made before they are asked for.

    Yields:
        Batches in the order of the steps.
    """
    with (
        explained("data.loader=threads"),
        start_workers(workers, _remember_maker, (request.maker,)) as pool,
    ):

        def begin(step: int) -> list[_Made]:
            return [pool.submit(_make_remembered, task) for task in request.tasks(step)]

        def finish(begun: list[_Made]) -> Batch:
            made = [future.result() for future in begun]
            for _, unreadable in made:
                request.unreadable.add(unreadable)
            rows = [row for row, _ in made]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

        yield from _keep_ahead(request, begin, finish, pool, ahead)


def load_with_tf_data(request: Request, workers: int, ahead: int = 2) -> Iterator[Batch]:
    """Makes batches in a tf.data pipeline: range, parallel map in order, batch, prefetch.

    Args:
        request: which batches.
        workers: parallel calls; 0 makes one row at a time.
        ahead: batches that are being made before they are asked for.

    Yields:
        Batches in the order of the steps.
    """
    errors: list[Exception] = []
    for batch in make_tf_dataset(request, workers, ahead, errors).as_numpy_iterator():
        if errors:
            raise errors[0]
        yield batch


def make_tf_dataset(
    request: Request, workers: int, ahead: int = 2, errors: list[Exception] | None = None
) -> Any:
    """The pipeline of `load_with_tf_data` as a tf.data.Dataset of dicts of tensors.

    Args:
        request: which batches.
        workers: parallel calls; 0 makes one row at a time.
        ahead: batches that are being made before they are asked for.
        errors: takes what is raised while rows are made, which are then zeros; None lets TensorFlow
            make an error of its own of it, with every traceback as its text.

    Returns:
        The dataset.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed; the message says how to.
    """
    try:
        import tensorflow as tf  # heavy, and only this loader needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data.loader=tf_data needs TensorFlow ({error}): `pip install 'ktn_jax[tfds]'`, or "
            "take data.loader=threads, which makes the same batches",
            name=error.name,
        ) from error

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would reserve the memory JAX needs
    spec = request.maker.spec(1, (1, 1))
    names = list(spec)
    count = len(request.tasks(request.start))
    last_tasks = functools.lru_cache(maxsize=ahead + 2)(request.tasks)

    def make_row(number: np.ndarray) -> list[np.ndarray]:
        step, index = divmod(int(number), count)
        task = last_tasks(step)[index]
        try:
            row, unreadable = request.maker.make(task)
            request.unreadable.add(unreadable)
        except Exception as error:
            if errors is None:
                raise
            errors.append(error)
            row = _row(request.maker.allocate(1, task.canvas_hw), 0)
        return [row[name] for name in names]

    def make_tensors(number: Any) -> dict[str, Any]:
        tensors = tf.numpy_function(make_row, [number], [spec[name].dtype for name in names])
        for name, tensor in zip(names, tensors, strict=True):
            shape = (None, None, 3) if name == "image" else spec[name].shape[1:]
            tensor.set_shape(shape)
        return dict(zip(names, tensors, strict=True))

    # A range needs an end, counted in int64: this one is beyond any run's.
    dataset = tf.data.Dataset.range(request.start * count, 2**62 // count * count)
    parallel = {"num_parallel_calls": workers, "deterministic": True} if workers else {}
    dataset = dataset.map(make_tensors, **parallel)
    dataset = dataset.batch(count, drop_remainder=True).prefetch(ahead)
    options = tf.data.Options()
    # TensorFlow's default pool has a thread per core, which would cap the workers unasked.
    options.threading.private_threadpool_size = max(workers, 1)
    options.autotune.enabled = False
    return dataset.with_options(options)


def _keep_ahead(
    request: Request,
    begin: Callable[[int], Any],
    finish: Callable[[Any], Batch],
    pool: concurrent.futures.Executor,
    ahead: int,
) -> Iterator[Batch]:
    """Starts batches up to `ahead` steps early; cancels those that are unfinished when closed."""
    begun: collections.deque[Any] = collections.deque()
    try:
        for step in request.steps():
            begun.append(begin(step))
            if len(begun) > ahead:
                yield finish(begun.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _row(batch: Batch, index: int) -> Batch:
    """Views on one row; slicing before indexing keeps scalars views too."""
    return {
        name: array[index : index + 1].reshape(array.shape[1:]) for name, array in batch.items()
    }


# Of a worker process: set once when it starts, so that the source does not travel with every task.
_remembered: list[ExampleMaker] = []


def _remember_maker(maker: ExampleMaker) -> None:
    _remembered[:] = [maker]


def _make_remembered(task: Task) -> tuple[Batch, dict[int, str]]:
    return _remembered[0].make(task)
