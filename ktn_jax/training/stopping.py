"""Stopping a run before its end: on a signal, and in the same step in all processes."""

import collections
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ktn_jax.training import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GRACE_SECONDS = 3  # for the main thread to notice the second signal


class StopSignal:
    """Records the first SIGTERM or SIGINT and reports it at once; the second aborts.

    Aborting is a signal's default effect: Ctrl-C raises KeyboardInterrupt, SIGTERM ends the
    process. Only the main thread can set handlers; in other threads nothing is recorded.

    Python runs handlers between two instructions of the main thread, so not before XLA has compiled
    a program, which can take minutes. A second thread therefore learns of signals too, through a
    pipe: it reports the first, and ends the process where the second is not noticed.
    """

    def __init__(self) -> None:
        """Sets no handler until it is entered."""
        self.is_set = False
        self._is_over = False  # the second signal was noticed, or there is nothing to abort
        self._is_told = threading.Lock()  # taken by whoever reports the first signal
        self._handled = 0  # signals that the main thread has noticed; two can become one
        self._arrived = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._read_end, self._write_end = os.pipe()
            os.set_blocking(self._write_end, False)
            self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        self._is_over = True  # else the thread would end the process

    def _restore(self) -> None:
        """Restores the handlers and ends the thread, once."""
        if not self._before:
            return
        while self._before:
            signal.signal(*self._before.popitem())
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write_end)  # the thread reads the end of the pipe

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        """The handler, in the main thread."""
        self.is_set = True
        self._handled += 1
        self._tell(number)
        if max(self._handled, self._arrived) > 1:
            self._is_over = True
            self._restore()
            signal.raise_signal(number)

    def _tell(self, number: int) -> None:
        if self._is_told.acquire(blocking=False):
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            _say(f"{name}: training stops after the current step and saves; again to abort")

    def _watch(self) -> None:
        """Reads the numbers of signals from the pipe, in a thread of its own."""
        while numbers := os.read(self._read_end, 1):
            if numbers[0] in _SIGNALS:
                self.is_set = True
                self._arrived += 1
                self._tell(numbers[0])
                if self._arrived > 1:
                    self._end_unless_noticed(numbers[0])
        os.close(self._read_end)

    def _end_unless_noticed(self, number: int) -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        while not self._is_over:
            if time.monotonic() > deadline:
                _say("aborted")
                for child in multiprocessing.active_children():
                    child.terminate()
                os._exit(128 + number)
            time.sleep(0.05)


def _say(text: str) -> None:
    # Not through sys.stderr: the handler may have interrupted a write to it.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())


class StopVote:
    """Makes all processes of a run stop after the same step; otherwise some would wait forever.

    With one process, `is_agreed` is true as soon as the signal arrives: the step under way is the
    last. With several, each process votes after it has begun a step, in a small program that the
    devices run after the step's, and the host reads the result together with the metrics of that
    step. So nothing waits, and all stop `behind` steps after the one that was begun when the first
    of them was signalled.
    """

    def __init__(self, stop_signal: StopSignal, mesh: Mesh):
        """Prepares the vote of all processes of `mesh`."""
        self._signal = stop_signal
        self._is_alone = jax.process_count() == 1
        self._sharding = distributed.over_batch(mesh)
        self._any = jax.jit(jnp.any, out_shardings=distributed.replicated(mesh))
        self._votes: collections.deque[jax.Array] = collections.deque()
        self._is_agreed = False

    @property
    def is_agreed(self) -> bool:
        """Whether all processes stop now."""
        return self._signal.is_set if self._is_alone else self._is_agreed

    def vote(self) -> None:
        """Votes whether this process was asked to stop. Every process calls it in every step."""
        if not self._is_alone:
            own = np.full(jax.local_device_count(), self._signal.is_set)
            flags = distributed.to_devices({"stop": own}, self._sharding)["stop"]
            self._votes.append(self._any(flags))

    def read(self, behind: int) -> None:
        """Reads all votes but the last `behind` ones, and waits for them."""
        while len(self._votes) > behind:
            self._is_agreed |= bool(jax.device_get(self._votes.popleft()))
