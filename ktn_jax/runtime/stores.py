"""Folders of object stores, such as gs://bucket/run and s3://bucket/run, through fsspec.

An object is written whole and appears whole, so nothing finds half of one; but objects cannot be
appended to or renamed, folders exist only as the beginnings of names, and a lock is an object like
another. So what we write is made in local folders (`mirrors`) and sent from there, and what we read
is fetched whole. Nothing here works on a path that is not an address.
"""

import atexit
import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import pathlib
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ktn_jax.runtime import addresses, atomic_files, caches, locks, progress

AT_ONCE = 16  # objects that are sent or fetched: each waits for the network
# Schemes whose libraries are extras of this package; those of others are named by fsspec.
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
_VERSION_FIELDS = ("generation", "etag", "ETag", "md5Hash", "LastModified", "mtime", "created")
_TIME_FIELDS = ("mtime", "LastModified", "updated", "last_modified", "created")


class StoreError(OSError):
    """A store does not do what is asked of it; the message names the object and the reason."""


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """An object.

    Attributes:
        size: bytes.
        version: differs where the content was written again.
        modified: seconds since 1970; 0 where the store does not tell.
    """

    size: int
    version: str
    modified: float


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a store's object or folder: SCHEME://...

    Raises:
        ValueError: it was one before pathlib took a slash away.
    """
    if not addresses.is_address(path):
        addresses.local_path(path)
    return addresses.is_store(path)


class Store:
    """A folder of a store.

    Attributes:
        address: without a slash at its end.
    """

    def __init__(self, address: str | os.PathLike[str]):
        """Opens it; it need not exist.

        Raises:
            ValueError: the scheme is not known, or its library is not installed.
        """
        self.address = os.fspath(address).rstrip("/")
        self._system, self._root = _open(self.address)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> "Store":
        return Store(f"{self.address}/{name}")

    def files(self) -> dict[str, StoredFile]:
        """All objects of the folder and its subfolders, by name relative to it, sorted.

        Raises:
            StoreError: it cannot be listed; one that is not there has no objects.
        """
        with self._naming():
            self._system.invalidate_cache()
            found: Mapping[str, Mapping[str, Any]] = self._system.find(self._root, detail=True)
        beginning = self._root.rstrip("/") + "/"
        return {
            name.removeprefix(beginning): _describe(info)
            for name, info in sorted(found.items())
            # Some consoles make folders visible by empty objects with a slash at their end.
            if name.startswith(beginning) and not name.endswith("/")
        }

    def is_file(self) -> bool:
        """Whether the address is that of an object.

        Raises:
            StoreError: the store cannot be asked.
        """
        with self._naming():
            self._system.invalidate_cache()
            return bool(self._system.isfile(self._root))

    def describe(self, name: str) -> StoredFile:
        """Size, version and time of an object.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        with self._naming(name):
            self._system.invalidate_cache()
            return _describe(self._system.info(self._at(name)))

    def read(self, name: str) -> bytes:
        """Reads an object.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        with self._naming(name):
            self._system.invalidate_cache()
            return bytes(self._system.cat_file(self._at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, in place of an older one.

        Raises:
            StoreError: it cannot be written.
        """
        with self._naming(name):
            self._make_folder(name)
            self._system.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object unless there is one: False if there is.

        Of two processes that do this at once only one succeeds, where the store can write on that
        condition, as GCS, S3 and Azure do.

        Raises:
            StoreError: it cannot be written, and there is none.
        """
        with self._naming(name):
            self._make_folder(name)
            try:
                self._system.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except Exception:  # s3fs knows how AWS refuses, and not how other servers of S3 do
                if self._system.exists(self._at(name)):
                    return False
                raise
        return True

    def fetch(self, name: str, target: pathlib.Path) -> None:
        """Copies an object to a local file.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it cannot be read.
        """
        with self._naming(name):
            self._system.get_file(self._at(name), os.fspath(target))

    def send(self, source: pathlib.Path, name: str) -> None:
        """Copies a local file to an object, in place of an older one.

        Raises:
            StoreError: it cannot be written.
        """
        with self._naming(name):
            self._make_folder(name)
            self._system.put_file(os.fspath(source), self._at(name))

    def copy(self, name: str, target: str) -> None:
        """Copies an object inside of the folder, in place of an older one.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it cannot be copied.
        """
        with self._naming(name):
            self._make_folder(target)
            self._system.cp_file(self._at(name), self._at(target))

    def remove(self, names: Collection[str]) -> None:
        """Removes objects, in this order; those that are not there are passed over.

        Raises:
            StoreError: one cannot be removed; those after it are left.
        """
        for name in names:
            with self._naming(name), contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _make_folder(self, name: str) -> None:
        """Makes the folder of an object where folders exist, which object stores do not have."""
        if self.address.partition("://")[0] in ("file", "local", "sftp", "hdfs", "smb"):
            self._system.makedirs(posixpath.dirname(self._at(name)), exist_ok=True)

    @contextlib.contextmanager
    def _naming(self, name: str = "") -> Iterator[None]:
        """Turns the errors of a store's library into OSErrors that name the object."""
        address = f"{self.address}/{name}" if name else self.address
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{address} is not there") from error
        except Exception as error:  # fsspec's libraries raise whatever their clients do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StoreError(f"{address}: {reason}") from error


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address and the path in it."""
    import fsspec  # commands that need no store start without it

    scheme = address.partition("://")[0].lower()
    if not is_address(address):
        raise ValueError(f"{address} is not the address of a store, such as gs://bucket/folder")
    try:
        # Listings that are kept would hide what other processes write.
        system, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        advice = f"pip install 'ktn_jax[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
        raise ValueError(f"{address}: {scheme}:// needs another package: {advice}") from error
    except ValueError as error:
        raise ValueError(
            f"{address}: {error}; give a local path, gs://, s3:// or another of fsspec's"
        ) from error
    return system, str(root)


def _describe(info: Mapping[str, Any]) -> StoredFile:
    version = [str(info[field]) for field in _VERSION_FIELDS if info.get(field)]
    times = [_seconds(info[field]) for field in _TIME_FIELDS if info.get(field)]
    size = int(info.get("size") or 0)
    return StoredFile(size, " ".join([str(size), *version]), max(times, default=0.0))


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else 0.0


def fetched(path: str | os.PathLike[str], *, keep: bool = True, only: str = "") -> pathlib.Path:
    """The local path of an input: what is on a store is fetched whole.

    Args:
        path: a local path, which is returned, or the address of an object or folder.
        keep: in our caches (`caches.folder`), where the next process finds it and fetches only what
            has changed. Else what is fetched is removed when this process ends.
        only: fetch of a folder what is in this subfolder.

    Returns:
        A path, whose last part is that of the address.

    Raises:
        FileNotFoundError: nothing is at the address.
        StoreError: it cannot be read.
    """
    if not is_address(path):
        return pathlib.Path(path)
    with _FETCHING:
        return _fetch(os.fspath(path).rstrip("/"), keep, only)


_FETCHING = threading.Lock()


@functools.cache  # once in a process: its parts agree on the content
def _fetch(address: str, keep: bool, only: str) -> pathlib.Path:
    folder = caches.folder("stores") if keep else _scratch()
    folder /= hashlib.sha256(address.encode()).hexdigest()[:12]
    target = folder / posixpath.basename(address)
    with locks.hold(folder, wait=True):  # another process may be fetching the same
        store = Store(f"{address}/{only}" if only else address)
        if store.is_file():
            parent, _, name = store.address.rpartition("/")
            store = Store(parent)
            _update(store, {name: store.describe(name)}, folder, address)
        else:
            files, copies = store.files(), target / only
            if not files:
                raise FileNotFoundError(f"{store} is not there")
            _update(store, files, copies, address)
            for path in copies.rglob("*"):  # of what is there no more
                if path.is_file() and path.relative_to(copies).as_posix() not in files:
                    path.unlink()
    return target


def _update(
    store: Store, files: Mapping[str, StoredFile], folder: pathlib.Path, address: str
) -> None:
    """Fetches those files of which a local folder has no copy, or an old one."""
    missing = {n: file for n, file in files.items() if not _is_copy(inside(folder, n), file)}
    if missing:
        size = sum(file.size for file in missing.values()) / 1e6
        progress.say(f"fetching {address}: {len(missing):,} files, {size:,.1f} MB")
    fetch_files(store, missing, folder)


def fetch_files(store: Store, files: Mapping[str, StoredFile], target: pathlib.Path) -> None:
    """Copies objects of a store into a local folder, with the times that they have there.

    Raises:
        FileNotFoundError: one was removed meanwhile.
        StoreError: one cannot be read, or its name leads out of the folder.
    """

    def fetch_one(name: str) -> None:
        path = inside(target, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.replacing(path) as temporary:
            store.fetch(name, temporary)
            seconds = files[name].modified
            if seconds:  # whether something is newer than something else is asked later
                os.utime(temporary, (seconds, seconds))

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(fetch_one, files))


def _is_copy(path: pathlib.Path, file: StoredFile) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    # File systems keep times to the microsecond at least.
    return status.st_size == file.size and abs(status.st_mtime - file.modified) < 1e-5


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of an object in a local folder.

    Raises:
        StoreError: its name leads out of the folder.
    """
    parts = pathlib.PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise StoreError(f"an object's name leads out of its folder: {name!r:.100}")
    return folder.joinpath(*parts)


@functools.cache
def _scratch() -> pathlib.Path:
    """A local folder of this process, removed when it ends."""
    folder = tempfile.mkdtemp(prefix="ktn-store-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


@contextlib.contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """The local path to write a file or folder to; what is for a store is sent after the block.

    Args:
        path: a local path, which is given back, or an address.

    Raises:
        StoreError: it cannot be written.
    """
    if not is_address(path):
        yield pathlib.Path(path)
        return
    folder, _, name = os.fspath(path).rstrip("/").rpartition("/")
    store = Store(folder)
    with tempfile.TemporaryDirectory(prefix="ktn-store-") as scratch:
        local = pathlib.Path(scratch)
        yield local / name
        for file in sorted(local.rglob("*")):
            if file.is_file():
                store.send(file, file.relative_to(local).as_posix())
