"""The processes of a run that share a file system or a store."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

from ktn_jax.runtime import locks, store_locks
from ktn_jax.runtime.stores import Store


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run that share a file system or a store.

    Attributes:
        index: of this one, from 0.
        count: how many there are.
        wait: called with a name, returns when all processes have called it with that name.
        share: called with a text by all processes, returns the first one's.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None
    share: Callable[[str], str] = lambda text: text

    @property
    def is_first(self) -> bool:
        """Whether this process does the work that is done only once."""
        return self.index == 0

    @contextlib.contextmanager
    def hold(self, folder: str | os.PathLike[str] | Store) -> Iterator[Callable[[], None]]:
        """Holds a folder's lock while the block runs; each process calls this.

        The first process has the lock. Where that is refused no process goes on: the others would
        wait for the first one until they are killed.

        Args:
            folder: a local one, or one of a store.

        Yields:
            Checks that the lock is still held, see `StoreLock.check`: that of a store can be lost.

        Raises:
            FolderInUseError: in all processes, if another run holds the lock.
            OSError: in all processes, if the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            refusal, check = None, _nothing
            if self.is_first:
                try:
                    if isinstance(folder, Store):
                        check = held.enter_context(store_locks.hold(folder)).check
                    else:
                        held.enter_context(locks.hold(folder))
                except OSError as error:
                    refusal = error
            reason = self.share(str(refusal or ""))
            if refusal is not None:
                raise refusal
            if reason and not self.is_first:
                raise locks.FolderInUseError(f"the run's first process was refused: {reason}")
            yield check


def _nothing() -> None:
    pass
