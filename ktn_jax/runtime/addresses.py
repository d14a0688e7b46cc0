"""Addresses of streams."""

import os
import re
from urllib.parse import urlsplit

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_address(source: str | os.PathLike[str]) -> bool:
    """Whether a source is the address of a stream, and not a path."""
    return _SCHEME.match(os.fspath(source)) is not None


def without_secrets(address: str) -> str:
    """An address without user name, password and query, for messages and files."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
