"""Fetches files over HTTPS: resumed after a break, checked, and whole or not there at all."""

import contextlib
import hashlib
import ipaddress
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from ktn_jax.runtime import progress

_TIMEOUTS = (15.0, 60.0)  # seconds to connect, and between two pieces
_ATTEMPTS = 4  # in a row that bring nothing
_PAUSE = 0.5  # seconds before the second attempt; twice as long before each later one
_STALLED = 180.0  # seconds that another process may bring nothing
_PIECE = 1 << 20  # bytes


# DensePose's server, and the environment's name for a mirror of it, or for http on this machine.
SERVER, MIRROR_VARIABLE = "https://dl.fbaipublicfiles.com/densepose", "KTN_MODELS_URL"


class DownloadError(OSError):
    """A file that could not be fetched; the message says what to do by hand."""


class _Broken(Exception):
    """An attempt that failed in a way that the next one may not."""


def mirrored(url: str) -> str:
    """The address of a file of DensePose's server on the mirror that `KTN_MODELS_URL` names.

    Addresses of other servers, and all where there is no mirror, stay as they are.
    """
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror or not url.startswith(SERVER):
        return url
    return mirror.rstrip("/") + url.removeprefix(SERVER)


def fetch(url: str, target: pathlib.Path, sha256_start: str = "") -> pathlib.Path:
    """Fetches a file unless it is there.

    An unfinished file is kept beside `target` as NAME.part and resumed by the next call. Of several
    processes that ask for a file one fetches it, and the others wait for it. Proxies are taken from
    the environment (`HTTPS_PROXY`, `NO_PROXY`).

    Args:
        url: https, or http on this machine.
        target: where to put the file; its folder is made.
        sha256_start: first hexadecimal digits of the file's SHA-256; "" checks none.

    Returns:
        `target`.

    Raises:
        DownloadError: an address that is not allowed, no network, no such file on the server, or a
            file of another SHA-256. The message says what to fetch and where to put it.
    """
    if target.is_file():
        return target
    _check_address(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with _only_one(target, part):
            if not target.is_file():  # another process may have fetched it meanwhile
                _fetch_part(url, part, sha256_start)
                os.replace(part, target)
    except DownloadError as error:
        digits = f"; its SHA-256 starts with {sha256_start}" if sha256_start else ""
        raise DownloadError(
            f"{url} could not be fetched: {error}. The same command resumes; or get the file in "
            f"another way{digits}, and put it at {target}"
        ) from error
    return target


def _check_address(url: str) -> None:
    """Refuses what is not encrypted, except on this machine.

    Raises:
        DownloadError: another address.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname and _is_this_machine(parts.hostname):
        return
    raise DownloadError(f"{url}: only https addresses are fetched")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _only_one(target: pathlib.Path, part: pathlib.Path) -> Iterator[None]:
    """Waits for other processes that fetch the same file.

    Raises:
        DownloadError: another one has brought nothing for some minutes.
    """
    import filelock

    lock = filelock.FileLock(target.with_name(f"{target.name}.lock"))
    size, since = -1, time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except filelock.Timeout:
            now = part.stat().st_size if part.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > _STALLED:
                raise DownloadError(
                    f"another process fetches it and has brought nothing for {_STALLED:.0f} s"
                ) from None
    try:
        yield
    finally:
        lock.release()


def _fetch_part(url: str, part: pathlib.Path, sha256_start: str) -> None:
    """Fetches what is missing of `part`, several times if need be, and checks it."""
    is_resumed = part.exists()
    _complete(url, part)
    if _sha256(part).startswith(sha256_start):
        return
    part.unlink()
    if is_resumed:  # perhaps it began as another file
        _complete(url, part)
        if _sha256(part).startswith(sha256_start):
            return
        part.unlink()
    raise DownloadError(f"what came is not that file: its SHA-256 does not start {sha256_start}")


def _complete(url: str, part: pathlib.Path) -> None:
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with open(part, "ab") as file:
                _append(url, file)
                file.flush()
                os.fsync(file.fileno())
            return
        except _Broken as error:
            after = part.stat().st_size
            failures = 1 if after > before else failures + 1
            if failures == _ATTEMPTS:
                raise DownloadError(str(error)) from error
            time.sleep(_PAUSE * 2 ** (failures - 1))


def _append(url: str, file: Any) -> None:
    """One attempt to fetch what is missing behind the end of a file.

    Raises:
        _Broken: the connection could not be made or broke off.
        DownloadError: the server refuses.
    """
    import requests
    import urllib3

    start = file.tell()
    headers = {"Accept-Encoding": "identity"}  # sizes are those of the file
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with (
            requests.Session() as session,
            session.get(url, headers=headers, stream=True, timeout=_TIMEOUTS) as response,
        ):
            for answer in (*response.history, response):
                _check_address(answer.url)  # a server may send us elsewhere
            if response.status_code == 416 and start:  # nothing is there behind the end
                total = _total(response.headers.get("Content-Range", ""))
                if total != start:
                    file.truncate(0)
                    raise _Broken("the server's file is shorter than what was fetched before")
                return
            if response.status_code >= 400:
                problem = f"the server answers {response.status_code} {response.reason}"
                raise _Broken(problem) if response.status_code >= 500 else DownloadError(problem)
            _write(response, file, start)
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Broken(f"no connection, or it broke off ({_reason(error)})") from error


def _write(response: Any, file: Any, start: int) -> None:
    """Appends the body of a response to a file."""
    content_range = response.headers.get("Content-Range", "")
    if response.status_code != 206 or not content_range.startswith(f"bytes {start}-"):
        file.seek(0)  # the whole file comes: this server does not resume
        file.truncate()
        start = 0
        if response.status_code == 206:
            raise _Broken("the server sent another part of the file than was asked for")
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else _total(content_range)
    name = urllib.parse.urlsplit(response.url).path.rpartition("/")[2]
    with progress.Progress(f"fetch {name}", progress.BYTES, total, done=start) as shown:
        # Not iter_content: of a connection that breaks off it loses the last piece.
        while piece := response.raw.read1(_PIECE):
            file.write(piece)
            shown.advance(len(piece))
    if total is not None and file.tell() != total:
        raise _Broken(f"{file.tell()} of {total} bytes came")


def _total(content_range: str) -> int | None:
    """The size of the whole file in a Content-Range such as `bytes 5-9/10` or `bytes */10`."""
    match = re.fullmatch(r"bytes .*/(\d+)", content_range)
    return int(match[1]) if match else None


def _reason(error: BaseException) -> str:
    """The innermost cause: what is around it repeats the address."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}"[:300]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
