"""Local folders that are kept as folders of a store: what is written there is sent to the store.

Code that writes files, appends to them and renames them works in a local folder. What has changed
is sent now and then, and when the processes of a run wait for each other: between two such points
no process needs to see what another one writes.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator

from ktn_jax.runtime import locks, progress, stores
from ktn_jax.runtime.processes import Processes
from ktn_jax.runtime.stores import Store, StoredFile, StoreError

_SECONDS = 60  # between two times that changes are sent
# Files that are being written, see `atomic_files`.
_UNFINISHED = re.compile(r"\..{0,32}\.[0-9a-f]{12}(\..*)?", re.DOTALL)


class Mirror:
    """A local folder that is kept as a folder of a store.

    Attributes:
        folder: the local folder, removed when this is closed.
        processes: those that share the folder of the store. Each has a mirror of its own; when they
            wait for each other with these, each sees what the others have written.
    """

    def __init__(
        self, store: Store, processes: Processes | None = None, leave_out: Collection[str] = ()
    ):
        """Fetches what is there.

        Args:
            store: the folder.
            processes: those that share it.
            leave_out: names of subfolders that are neither fetched nor sent.

        Raises:
            StoreError: it cannot be read.
        """
        processes = processes or Processes()
        self._store, self._leave_out, self._wait = store, tuple(leave_out), processes.wait
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ktn-mirror-"))
        self.processes = dataclasses.replace(processes, wait=self._meet)
        # What the store and the local folder had when they were last the same.
        self._known: dict[str, tuple[StoredFile | None, tuple[int, int]]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        try:
            self.pull()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        self._sender = threading.Thread(target=self._send_now_and_then, daemon=True)
        self._sender.start()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Sends what has changed and removes the local folder.

        Raises:
            StoreError: it cannot be sent, or copied for that as the disk is full; the local folder
                is kept, and the message names it.
        """
        self._ended.set()
        self._sender.join()  # else it could take what is removed here for removed by its owner
        try:
            self.push()
        except OSError as error:
            raise StoreError(f"{error}; what was written is in {self.folder}") from error
        shutil.rmtree(self.folder)

    def pull(self) -> None:
        """Fetches what others have written since the last time, and removes what they removed.

        Raises:
            StoreError: it cannot be read.
        """
        with self._lock:
            theirs = {
                name: file for name, file in self._store.files().items() if self._is_kept(name)
            }
            news = {name: file for name, file in theirs.items() if self._is_news(name, file)}
            stores.fetch_files(self._store, news, self.folder)
            for name, file in news.items():
                self._known[name] = file, _state(stores.inside(self.folder, name))
            for name in self._known.keys() - theirs.keys():
                stores.inside(self.folder, name).unlink(missing_ok=True)
                del self._known[name]

    def push(self) -> None:
        """Sends what has changed here since the last time, and removes what was removed.

        Raises:
            StoreError: it cannot be sent; the next time it is tried again.
        """
        with self._lock:
            ours = self._local_files()
            changed = [n for n, state in ours.items() if self._known.get(n, (0, None))[1] != state]
            with concurrent.futures.ThreadPoolExecutor(stores.AT_ONCE) as pool:
                list(pool.map(self._send, changed))
            if changed:  # the versions that the store has given them
                theirs = self._store.files()
                self._known |= {n: (theirs.get(n), ours[n]) for n in changed}
            gone = sorted(self._known.keys() - ours.keys())
            self._store.remove(gone)
            for name in gone:
                del self._known[name]

    def _is_news(self, name: str, file: StoredFile) -> bool:
        """Whether another process wrote an object, and this one did not change it meanwhile."""
        before, state = self._known.get(name, (None, None))
        path = stores.inside(self.folder, name)
        return file != before and not (path.is_file() and _state(path) != state)

    def _send(self, name: str) -> None:
        with tempfile.TemporaryDirectory(prefix="ktn-send-") as folder:
            copy = pathlib.Path(folder) / "copy"  # as the file may grow meanwhile
            try:
                shutil.copyfile(self.folder / name, copy)
            except FileNotFoundError:  # removed meanwhile
                return
            self._store.send(copy, name)

    def _meet(self, name: str) -> None:
        """`Processes.wait`, after which each process sees what the others have written."""
        self.push()
        self._wait(name)
        self.pull()

    def _send_now_and_then(self) -> None:
        while not self._ended.wait(_SECONDS):
            try:
                self.push()
            except OSError as error:  # it may get better, and closing tries again
                progress.warn(str(error))

    def _local_files(self) -> dict[str, tuple[int, int]]:
        states = {}
        for root, _, names in os.walk(self.folder):
            for path in (pathlib.Path(root, name) for name in names):
                name = path.relative_to(self.folder).as_posix()
                if self._is_kept(name) and not _UNFINISHED.fullmatch(path.name):
                    try:
                        states[name] = _state(path)
                    except FileNotFoundError:  # removed meanwhile
                        continue
        return dict(sorted(states.items()))

    def _is_kept(self, name: str) -> bool:
        first, _, rest = name.partition("/")
        is_lock = name.rpartition("/")[2] == locks.LOCK_FILE
        return not is_lock and not (rest and first in self._leave_out)


def _state(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def output_folder(
    path: str | os.PathLike[str], processes: Processes | None = None
) -> Iterator[tuple[pathlib.Path, Processes]]:
    """The local folder to write an output into, wherever it is to be.

    Args:
        path: a local folder, which is given back, or the address of one of a store: what is there
            is fetched, and what the block writes is sent, also if it is stopped by an error.
        processes: those that write it; each calls this.

    Yields:
        The folder, and the processes to wait with.

    Raises:
        FolderInUseError: another run writes into the folder of the store.
        StoreError: the store cannot be read or written.
    """
    processes = processes or Processes()
    if not stores.is_address(path):
        yield pathlib.Path(path), processes
        return
    store = Store(path)
    with processes.hold(store), Mirror(store, processes) as mirror:
        yield mirror.folder, mirror.processes
        mirror.processes.wait("sent")  # to JAX a process that exits early is a failure
