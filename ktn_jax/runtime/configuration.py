"""Finds and loads configurations: `FILE.py:VARIANT`, with values changed by `KEY=VALUE`."""

import ast
import importlib.util
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from ktn_jax import configs


class ConfigurationError(ValueError):
    """A configuration that does not exist, or a change that does not fit it."""


def load_config(name: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Loads a configuration.

    Args:
        name: a Python file with `get_config(variant)`, then optionally a colon and the variant:
            `configs/ktn.py:r50`. A file that is not there is looked for by its name among the
            configurations that come with the package.
        changes: `key=value` with a dotted key, such as `model.box_head.max_detections=20`. Values
            are Python literals, or else text.

    Returns:
        The configuration, its keys locked.

    Raises:
        ConfigurationError: no such file or variant, an unknown key, or a value of another type.
    """
    file_name, _, variant = name.partition(":")
    path = _find(file_name)
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigurationError(f"{path} has no get_config(): is it a configuration?")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    for change in changes:
        _apply(config, change)
    return config.lock()


def _find(file_name: str) -> pathlib.Path:
    path = pathlib.Path(file_name)
    shipped = pathlib.Path(configs.__file__).parent
    for candidate in (path, shipped / path.name):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.name for p in shipped.glob("*.py") if p.stem != "__init__"))
    raise ConfigurationError(f"no configuration {file_name!r}; the package has {known}")


def _apply(config: ConfigDict, change: str) -> None:
    key, separator, text = change.partition("=")
    if not separator:
        raise ConfigurationError(f"{change!r} is no key=value")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or last not in node:
        raise ConfigurationError(f"the configuration has no key {key!r}")
    try:
        setattr(node, last, value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{key}={text}: {error}") from error
