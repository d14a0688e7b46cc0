"""Threads that give way to the one that runs the network."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_NICENESS = 10
_TURN_S = 0.0005  # a tenth of Python's own


def give_way() -> None:
    """Lets other threads of the process run first from now on; for a pool's `initializer`.

    A network waits at the end of each of its operations for the slowest of its threads, so that a
    core which draws or encodes meanwhile holds up all others. Does nothing where threads have no
    priority of their own: anywhere but on Linux.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, max(own, _NICENESS))


class _Turns:
    """The interpreter's switch interval, shortened while any thread wants it so."""

    def __init__(self) -> None:
        self._lock, self._count, self._before = threading.Lock(), 0, 0.0

    @contextlib.contextmanager
    def shortened(self) -> Iterator[None]:
        with self._lock:
            if not self._count:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _TURN_S))
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    sys.setswitchinterval(self._before)


_TURNS = _Turns()


def short_turns() -> contextlib.AbstractContextManager[None]:
    """Lets a thread that waits for the interpreter have it soon, while a block runs.

    Between two calls a network is idle until its thread gets the interpreter from one that draws or
    encodes, which may keep it for the switch interval. The interval is the process's: blocks in
    several threads share it, and the last one that ends restores it.
    """
    return _TURNS.shortened()
