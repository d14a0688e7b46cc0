"""Where files are kept that can be fetched or made again."""

import os
import pathlib


def folder(name: str) -> pathlib.Path:
    """A folder for one kind of files, which may not exist yet.

    It is in the folder that the environment's `KTN_CACHE` names, else in `ktn_jax` under
    `XDG_CACHE_HOME`, else in `~/.cache/ktn_jax`. A relative `XDG_CACHE_HOME` does not count, as the
    XDG base directory specification asks.

    Args:
        name: of the kind, such as "models".
    """
    own = os.environ.get("KTN_CACHE")
    if own:
        return pathlib.Path(own).expanduser().absolute() / name
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):
        caches = os.path.expanduser("~/.cache")
    return pathlib.Path(caches) / "ktn_jax" / name
