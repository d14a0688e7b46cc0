"""Keeps what is written from replacing what is there."""

import os
import pathlib
from collections.abc import Sequence

_SHOWN = 3  # files named in a message


def check_targets(
    folder: pathlib.Path,
    targets: Sequence[pathlib.Path],
    inputs: Sequence[pathlib.Path],
    may_replace: bool,
) -> None:
    """Checks that files can be written.

    Args:
        folder: that they are written into, for the message.
        targets: the files.
        inputs: what they are made from, which is never replaced.
        may_replace: whether other files may be.

    Raises:
        ValueError: a target is there already, or is one of the inputs.
    """
    resolved = {path.resolve() for path in inputs}
    clashes = [str(path) for path in targets if path.resolve() in resolved]
    if clashes:
        raise ValueError(
            f"{_some(clashes)} would be written over, and is read: write to another folder"
        )
    if may_replace:
        return
    # Names too long to exist are reported with their photo.
    existing = [str(path) for path in targets if os.path.lexists(path)]
    if existing:
        raise ValueError(
            f"{folder} holds files that this would replace: {_some(existing)}; write to another "
            "folder, or replace them with overwrite (--overwrite)"
        )


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
