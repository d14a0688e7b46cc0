"""Stopping a run before its end: on a signal, and in the same step in all processes."""

import collections
import os
import signal
import sys
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ktn_jax.training import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Records the first SIGTERM or SIGINT and reports it at once.

    A second signal has its default effect: Ctrl-C raises KeyboardInterrupt, SIGTERM ends the
    process. Only the main thread can set handlers; in other threads nothing is recorded.
    """

    def __init__(self) -> None:
        """Sets no handler until it is entered."""
        self.is_set = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
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
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        text = f"\n{name}: training stops after the current step and saves; again to abort\n"
        # Not through sys.stderr: the handler may have interrupted a write to it.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


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
