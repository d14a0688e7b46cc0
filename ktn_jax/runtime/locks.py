"""Locks of folders: two runs that write into one would destroy each other's files.

The system's lock (flock) on a file in the folder ends with the process that holds it, however that
ends. What the file says serves for messages, and decides by itself where the file system has no
such locks. On network file systems the lock also keeps other machines out, unless they are mounted
with local locks only.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
from collections.abc import Iterator

from ktn_jax.runtime import addresses

LOCK_FILE = ".ktn.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_SHOWN = 120  # characters of a command


class FolderInUseError(OSError):
    """Another process writes into a folder; the message names it."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock, as its file says it."""

    host: str
    process: int
    started: str  # of the process, on the clock of its host; empty where that is not known
    since: str  # date and time
    command: str

    @classmethod
    def this_process(cls) -> "Owner":
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), now, command)

    @classmethod
    def from_json(cls, content: bytes) -> "Owner | None":
        """Reads the content of a lock; None while it is being written, or damaged."""
        try:
            owner = cls(**json.loads(content))
            fields = dataclasses.fields(cls)
            is_owner = all(type(getattr(owner, field.name)) is field.type for field in fields)
        except (ValueError, TypeError, RecursionError):
            return None
        return owner if is_owner else None

    def to_json(self) -> bytes:
        """The content of a lock, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self)).encode()

    def may_be_alive(self) -> bool:
        """Whether the process runs, or nobody can tell because it is on another host."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except (OverflowError, PermissionError):  # of another user
            pass
        return _start_of(self.process) == self.started


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from writing into a folder while the block runs.

    Args:
        folder: made if it does not exist.
        wait: wait for a process that holds it, and do not raise.

    Raises:
        FolderInUseError: another process holds it, or another part of this one.
        ValueError: the folder is an address of a store.
        OSError: the folder cannot be written.
    """
    folder = addresses.local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    descriptor = _open_locked(path, wait)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, Owner.this_process().to_json(), 0)
        yield
    finally:
        # While it is locked: who has opened it meanwhile sees that it is not there any more.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_empty(folder: pathlib.Path) -> bool:
    """Whether a folder has nothing in it but its lock."""
    return all(entry.name == LOCK_FILE for entry in folder.iterdir())


def _open_locked(path: pathlib.Path, wait: bool) -> int:
    """Opens and locks a lock file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            owner = Owner.from_json(os.pread(descriptor, 1 << 16, 0))
            if error.errno in _NO_LOCKS and not (owner and owner.may_be_alive()):
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
                raise
            advice = f"; if it has ended, remove {path}" if error.errno in _NO_LOCKS else ""
            raise FolderInUseError(in_use(path.parent, owner) + advice) from error
        os.close(descriptor)  # of a file that its owner has removed


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def in_use(folder: object, owner: Owner | None) -> str:
    """Says that a folder is in use, and by whom if that is known."""
    if owner is None:
        return f"{folder} is in use by another process: give another folder, or wait for it"
    return (
        f"{folder} is in use by process {owner.process} on {owner.host} since {owner.since} "
        f"({owner.command[:_SHOWN]}): wait until it has ended, or give another folder"
    )


def _start_of(process: int) -> str:
    """When a process started, in ticks since its host did; empty where the system does not tell."""
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return status.rpartition(")")[2].split()[19]  # the name, in brackets, may hold anything
