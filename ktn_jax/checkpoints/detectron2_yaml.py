"""Reads detectron2's yaml files: a chain of `_BASE_` files, and changes, over its defaults."""

import ast
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ktn_jax.checkpoints import detectron2_tree
from ktn_jax.checkpoints.detectron2_tree import short

SUFFIXES = (".yaml", ".yml")

_BASE = "_BASE_"
_MAX_BASES = 20
_MAX_BYTES = 1 << 18  # the longest of detectron2 has some 10,000


def is_yaml(name: str) -> bool:
    """Whether a configuration is named that is a yaml file."""
    return name.lower().endswith(SUFFIXES)


def read_tree(path: str | os.PathLike[str], changes: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a configuration as detectron2 does: defaults, `_BASE_` files, the file, changes.

    yaml's tags are not read, so that a file cannot run code, and a file is refused that is larger
    than any configuration.

    Args:
        path: the file.
        changes: `KEY=VALUE` with detectron2's dotted keys, as in `MODEL.RPN.NMS_THRESH=0.6`.

    Returns:
        The whole tree, with the settings that are not known, which
        `detectron2_config.from_detectron2` refuses.

    Raises:
        FileNotFoundError: there is no such file, or no such `_BASE_` file.
        ValueError: a file that is not a configuration; the message names it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such configuration file")
    given = detectron2_tree.merge(_read_chain(path), read_changes(changes))
    return detectron2_tree.nest(detectron2_tree.merge(detectron2_tree.defaults(given), given))


def read_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key of `KEY=VALUE` texts; values as in yaml files.

    Raises:
        ValueError: a text without "=", or a value that is no yaml.
    """
    values = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise ValueError(f"{change!r} is no KEY=VALUE")
        values[key.strip()] = _parse(text, change)
    return values


def _read_chain(path: pathlib.Path) -> dict[str, Any]:
    """The settings of a file and of its `_BASE_` files, by dotted key."""
    files: list[dict[str, Any]] = []
    chain: list[pathlib.Path] = []
    current: pathlib.Path | None = path
    while current is not None:
        if len(chain) == _MAX_BASES or any(current.samefile(other) for other in chain):
            raise ValueError(f"{path}: its {_BASE} files name each other without end")
        chain.append(current)
        settings = _read_file(current)
        base = settings.pop(_BASE, None)
        files.append(settings)
        current = None if base is None else _base_path(chain[-1], base)
    merged: dict[str, Any] = {}
    for settings in reversed(files):
        merged = detectron2_tree.merge(merged, settings)
    return merged


def _base_path(path: pathlib.Path, base: Any) -> pathlib.Path:
    """The file that `_BASE_` of a file names."""
    if not isinstance(base, str) or "://" in base:
        raise ValueError(
            f"{path}: {_BASE} {short(base)} is not supported, only one file on this machine"
        )
    found = path.parent / os.path.expanduser(base)
    if not found.is_file():
        raise FileNotFoundError(
            f"{path}: its {_BASE} file {found} is not there; detectron2 has it beside the "
            "configuration"
        )
    return found


def _read_file(path: pathlib.Path) -> dict[str, Any]:
    """The settings of one file by dotted key."""
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path}: {size} bytes, more than any configuration: at most {_MAX_BYTES}")
    try:
        content = yaml.safe_load(path.read_bytes())
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            raise ValueError(f"a {type(content).__name__}, not settings by name")
        flat = detectron2_tree.flatten(content)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}: not a yaml file that can be read: {_first_lines(error)}"
        ) from error
    except (ValueError, RecursionError, UnicodeError) as error:
        raise ValueError(f"{path}: not a configuration of detectron2: {error}") from error
    return {key: _decode(value) for key, value in flat.items()}


def _parse(text: str, change: str) -> Any:
    try:
        return _decode(yaml.safe_load(text) if len(text) < _MAX_BYTES else text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{change[:200]!r}: {_first_lines(error)}") from error


def _decode(value: Any) -> Any:
    """Reads text as the Python literal that it is, as detectron2 does: `(1, 2)` and `1e-3`."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
