"""Processes that work for this one and end with it."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, reduction, synchronize
from typing import Any


def start_workers(
    count: int, initialise: Callable[..., None], arguments: tuple[Any, ...] = ()
) -> concurrent.futures.ProcessPoolExecutor:
    """Starts a pool of processes that end when this one does, however that ends.

    They are spawned, not forked: a fork copies the locks of threads, which JAX and TensorFlow have.
    Ctrl-C, which a terminal sends to all processes, is left to this one. Processes that fail to
    start, as of a script without `if __name__ == "__main__":`, break the pool.

    Args:
        count: of processes.
        initialise: called in each before any work; a function of a module.
        arguments: for `initialise`.

    Returns:
        The pool; the caller shuts it down.
    """
    context = multiprocessing.get_context("spawn")
    content = reduction.ForkingPickler.dumps((initialise, arguments))
    reader, writer = context.Pipe(duplex=False)

    def send() -> None:
        with contextlib.suppress(OSError):  # no worker is left
            for _ in range(count):
                writer.send_bytes(content)

    # Not with the start of the process, which waits for ever for one that died without reading it.
    threading.Thread(target=send, name="send to workers", daemon=True).start()
    inbox = (reader, context.Lock())
    return concurrent.futures.ProcessPoolExecutor(count, context, _start, inbox)


@contextlib.contextmanager
def explained(remedy: str) -> Iterator[None]:
    """Says why a pool broke that is used inside.

    Args:
        remedy: the setting that starts no processes, such as "data.loader=threads".

    Raises:
        ChildProcessError: a process of the pool ended by itself.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process ended by itself: it ran out of memory or was killed, or this was "
            f"called from a script without `if __name__ == '__main__':`. {remedy} starts none"
        ) from error


def _start(reader: connection.Connection, lock: synchronize.Lock) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    with lock:
        initialise, arguments = reader.recv()
    initialise(*arguments)


def _end_with_parent() -> None:
    """Ends this process once its parent has ended, even killed: then nobody stops the pool."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
