"""Addresses of streams and of object stores, which are no local paths."""

import os
import pathlib
import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
# Streams and web pages.
_NO_STORES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "tcp", "udp")
# What pathlib makes of one. Schemes have two letters at least: C:/ is a drive.
_LOST_SLASH = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")


def is_address(source: str | os.PathLike[str]) -> bool:
    """Whether a source is an address, and not a path."""
    return _SCHEME.match(os.fspath(source)) is not None


def is_store(source: str | os.PathLike[str]) -> bool:
    """Whether a source is an address, and one where objects can be listed, unlike a stream's."""
    return is_address(source) and os.fspath(source).partition("://")[0].lower() not in _NO_STORES


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """A local path.

    Raises:
        ValueError: it is an address, or was one before pathlib took a slash away, and would become
            a local folder of a strange name.
    """
    text = os.fspath(path)
    if _SCHEME.match(text) or _LOST_SLASH.match(text):
        raise ValueError(
            f"{text} is an address, and a local path is wanted here: copy it, or mount the bucket"
        )
    return pathlib.Path(path)


def without_secrets(address: str) -> str:
    """An address without user name, password and query, for messages and files."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
