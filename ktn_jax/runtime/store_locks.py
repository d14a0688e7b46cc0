"""Locks of folders of object stores, for which no system keeps a lock.

The lock is an object that is made only where there is none. Whoever holds it writes it again every
few seconds, and who finds one that stays the same for a minute takes it over: its owner was killed
or has lost the network. An owner that comes back sees so at its next sign of life, and saves
nothing any more. Not guaranteed: of two processes that take the same dead lock over within a second
both may believe to hold it until their next sign of life; and where a store cannot write on the
condition that there is no object (see `Store.create`), the same goes for any two that start at
once.
"""

import contextlib
import json
import pathlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

from ktn_jax.runtime import locks, progress
from ktn_jax.runtime.stores import Store, StoreError

_BEAT_SECONDS = 15  # between two signs of life
_EXPIRY_SECONDS = 60  # without one, until a lock is taken over
_POLL_SECONDS = 5


class StoreLock:
    """The lock of a folder of a store; `hold` makes it."""

    def __init__(self, store: Store):
        """Describes this process."""
        self._store = store
        self._owner = locks.Owner.this_process()
        self._boot = f"{self._owner.host} {_boot_id()}"  # hosts of two networks may share a name
        self._token = secrets.token_hex(8)
        self._beats = 0
        self._is_lost = False
        self._ended = threading.Event()

    def check(self) -> None:
        """Checks that the lock is still this process's; called before something is written.

        Raises:
            FolderInUseError: another process has taken it over.
        """
        if self._is_lost:
            raise locks.FolderInUseError(
                f"{self._store}: another process has taken the folder over, as this one gave no "
                f"sign of life for {_EXPIRY_SECONDS} s"
            )

    def acquire(self) -> None:
        """Takes the lock; waits up to a minute to see whether the owner of an older one lives.

        Raises:
            FolderInUseError: it does.
        """
        seen, since = None, 0.0
        while not self._is_taken():
            content = self._content()
            if content is None:
                continue  # removed meanwhile
            owner = _owner_in(content)
            if owner is not None and _field(content, "boot") == self._boot:  # a process here
                if owner.may_be_alive():
                    raise locks.FolderInUseError(locks.in_use(self._store, owner))
            elif content != seen:
                if seen is not None:
                    raise locks.FolderInUseError(locks.in_use(self._store, owner))
                seen, since = content, time.monotonic()
                progress.say(
                    f"{self._store} was left locked by {owner.host if owner else 'a process'}: "
                    f"waiting up to {_EXPIRY_SECONDS} s for a sign of life"
                )
                continue
            elif time.monotonic() - since < _EXPIRY_SECONDS:
                time.sleep(_POLL_SECONDS)
                continue
            if self._content() == content:
                self._store.remove([locks.LOCK_FILE])
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Removes the lock, if it is still this process's."""
        self._ended.set()
        content = self._content()
        if content is not None and _field(content, "token") == self._token:
            self._store.remove([locks.LOCK_FILE])

    def _is_taken(self) -> bool:
        """Makes the lock where there is none."""
        self._store.create(locks.LOCK_FILE, self._text())
        # Its answer is no proof: a store that knows no condition may have let two write, and a
        # request that the network made the library repeat was refused for its own first try.
        content = self._content()
        return content is not None and _field(content, "token") == self._token

    def _content(self) -> bytes | None:
        try:
            return self._store.read(locks.LOCK_FILE)
        except FileNotFoundError:
            return None

    def _text(self) -> bytes:
        description: dict[str, Any] = {"token": self._token, "beats": self._beats}
        description["boot"] = self._boot
        description["owner"] = json.loads(self._owner.to_json())
        return json.dumps(description).encode()

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            try:
                content = self._content()
                if content is None or _field(content, "token") != self._token:
                    self._is_lost = True
                    progress.warn(f"{self._store}: another process has taken the folder over")
                    return
                self._beats += 1
                self._store.write(locks.LOCK_FILE, self._text())
            except StoreError as error:  # the network may come back
                progress.warn(f"the lock cannot be renewed: {error}")


@contextlib.contextmanager
def hold(store: Store) -> Iterator[StoreLock]:
    """Keeps other processes from writing into a folder of a store while the block runs.

    Raises:
        FolderInUseError: another process holds it.
        StoreError: the store cannot be written.
    """
    lock = StoreLock(store)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def _boot_id() -> str:
    """Of the system that runs here; empty where it does not tell."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _field(content: bytes, name: str) -> str | None:
    try:
        return str(json.loads(content)[name])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _owner_in(content: bytes) -> locks.Owner | None:
    try:
        return locks.Owner.from_json(json.dumps(json.loads(content)["owner"]).encode())
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
