"""Finds, runs and checks configurations: `ktn:r50`, or a Python file `own.py:VARIANT`.

A configuration is a Python file with `get_config(variant)`, and loading one runs it. Every
configuration has the keys of `configs/base.py`, no more and no fewer, with values of their types.
"""

import ast
import difflib
import inspect
import math
import os
import pathlib
import re
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ktn_jax import configs
from ktn_jax.configs import base

_NO_CONFIGURATIONS = {"__init__", "base_model"}  # of the package's files of configurations
_POSITIVE = (
    "total_steps",
    "batch_size",
    "checkpoint_every",
    "training.log_every",
    "training.keep_last",
    "training.accumulate",
    "optimizer.learning_rate",
    "test.batch_size",
    "test.short_side",
    "test.max_side",
)
_FRACTIONS = (
    "optimizer.momentum",
    "optimizer.second_momentum",
    "optimizer.ema_decay",
    "optimizer.decay_factor",
)
_NOT_NEGATIVE = (
    "optimizer.weight_decay",
    "optimizer.weight_decay_norm",
    "optimizer.warmup_steps",
    "training.evaluate_every",
    "data.evaluation.num_images",
    "training.num_devices",
    "test.num_devices",
    "optimizer.reference_batch",
)
# Files and folders, in which a `~` at the start is the home folder.
_PATHS = (
    "model.meshes.files",
    "training.weights",
    "training.graph",
    "training.vertex_init",
    "data.annotations",
    "data.images",
    "data.symmetry",
    "data.tfds.dir",
    "data.evaluation.annotations",
    "data.evaluation.images",
    "data.evaluation.template",
)


class ConfigurationError(ValueError):
    """A configuration that does not exist, does not run or holds wrong values."""


def load_config(name: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Loads a configuration, which runs its file, and checks it.

    Args:
        name: a configuration that comes with the package and a variant, `ktn:r50`, or a Python
            file, `own.py:VARIANT`; the variant may be left out. A file is taken as written;
            `configs/ktn.py` means the package's file where there is no such file.
        changes: `key=value` with a dotted key, such as `model.box_head.max_detections=20`; the last
            value of a key wins. Values are Python literals, or else text. A tuple may be given as
            one value or as several separated by commas. A `~` at the start of a file's name is the
            home folder, in the file too.

    Returns:
        The configuration, its keys locked.

    Raises:
        ConfigurationError: no such file or variant, a file that does not run, a key that is
            unknown or missing, or a value of another type or out of its range. The message names
            the file.
    """
    path, variant = _find(name)
    config = _run(path, variant)
    try:
        return change_config(config, changes)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (configuration {path})") from error


def change_config(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """Changes a copy of a whole configuration, and checks it, as `load_config` does.

    Raises:
        ConfigurationError: a key that is unknown or missing, or a value of another type or out of
            its range.
    """
    config = ConfigDict(config).copy_and_resolve_references()
    _check_keys(config)
    for change in changes:
        _apply(config, change)
    check_config(config)
    values = dict(leaves(config))
    for key in _PATHS:
        _set(config, key, _expand_home(values[key]))
    return config.lock()


def _expand_home(names: Any) -> Any:
    """File names, one or several, whose `~` is the home folder."""
    return os.path.expanduser(names) if isinstance(names, str) else tuple(map(_expand_home, names))


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Sets the value of a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def check_config(config: ConfigDict) -> None:
    """Checks the keys of a whole configuration and the types and ranges of its values.

    Args:
        config: made by any means; `load_config` checks what it loads.

    Raises:
        ConfigurationError: keys that are unknown or missing (all are listed), or a
            value of another type than in `configs/base.py` or out of its range.
    """
    _check_keys(config)
    values, wanted = dict(leaves(config)), dict(leaves(base.get_config()))
    for key, value in values.items():
        try:
            _fit(value, wanted[key])
        except TypeError as error:
            raise ConfigurationError(f"{key} must be of type {error}, got {value!r}") from error
    for key in _POSITIVE:
        if not values[key] > 0:
            raise ConfigurationError(f"{key} must be above 0, got {values[key]}")
    for key in _FRACTIONS:
        if not 0 <= values[key] < 1:
            raise ConfigurationError(f"{key} must be in [0, 1), got {values[key]}")
    for key in _NOT_NEGATIVE:
        if values[key] < 0:
            raise ConfigurationError(f"{key} must be 0 or more, got {values[key]}")
    if config.model.dtype not in ("float32", "bfloat16"):
        raise ConfigurationError(
            f"model.dtype must be float32 or bfloat16, got {config.model.dtype!r}"
        )


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and the value of everything that is no section, sorted."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def as_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration with JSON's types: dicts for sections, lists for tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    values: dict[str, Any] = plain(config.to_dict())
    return values


def write_config(config: ConfigDict, *, only_changes: bool = False) -> str:
    """Writes a configuration as a Python file that `load_config` reads back to the same values.

    Args:
        config: a whole configuration.
        only_changes: leave out values that are those of `configs/base.py`.

    Returns:
        The text of the file. A value that differs from that of `configs/base.py` has the latter in
        a comment.
    """
    standard = dict(leaves(base.get_config()))
    lines = []
    for key, value in leaves(config):
        if value != standard[key]:
            lines.append(f"    config.{key} = {value!r}  # base: {standard[key]!r}")
        elif not only_changes:
            lines.append(f"    config.{key} = {value!r}")
    head = ("from ktn_jax.configs import base", "", "", "def get_config():")
    body = ("    config = base.get_config()", *lines, "    return config")
    return "\n".join((*head, *body)) + "\n"


def _find(name: str) -> tuple[pathlib.Path, str]:
    """Splits a name into the file that it means and the variant, "" for none."""
    # A path may hold colons of its own: what follows `.py:` is the variant.
    match = re.fullmatch(r"(.+?\.py)(?::(.*))?", name)
    file_name, variant = match.groups("") if match else name.partition(":")[::2]
    path = pathlib.Path(file_name)
    shipped = pathlib.Path(configs.__file__).parent
    known = sorted({path.stem for path in shipped.glob("*.py")} - _NO_CONFIGURATIONS)
    if path.suffix == ".py" and path.is_file():
        return path, variant
    if os.fspath(path.parent) in (".", "configs") and path.stem in known:
        if path.suffix == ".py" or file_name == path.stem:
            return shipped / f"{path.stem}.py", variant
    if path.is_file():
        raise ConfigurationError(
            f"{file_name} is no Python file: a configuration is one, with a function get_config(); "
            "`ktn config --config ktn:r50 > own.py` writes one to start from"
        )
    raise ConfigurationError(
        f"no configuration {file_name!r}: there is no such file, and the package has "
        f"{', '.join(known)}"
    )


def _run(path: pathlib.Path, variant: str) -> ConfigDict:
    """Runs a file and calls its get_config()."""
    module = types.ModuleType(f"_config_{path.stem}")
    module.__file__ = os.fspath(path)
    try:
        # Compiled here: an import would leave __pycache__ beside the user's file, and take it for
        # current where the file changed within the same second.
        exec(compile(path.read_bytes(), module.__file__, "exec"), module.__dict__)
    except SyntaxError as error:
        file, line = error.filename or path, error.lineno
        raise ConfigurationError(f"{file}:{line}: syntax error: {error.msg}") from error
    except Exception as error:
        raise ConfigurationError(_describe(error, path)) from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigurationError(f"{path} has no get_config(): is it a configuration?")
    arguments = (variant,) if variant else ()
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        given = f"has no variants, got {variant!r}" if variant else "needs a variant, FILE.py:NAME"
        raise ConfigurationError(f"{path}: get_config() {given}") from error
    try:
        config = get_config(*arguments)
    except Exception as error:
        raise ConfigurationError(_describe(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise ConfigurationError(
            f"{path}: get_config() must return a ConfigDict, got {type(config).__name__}"
        )
    return ConfigDict(config)


def _describe(error: Exception, path: pathlib.Path) -> str:
    """What went wrong in a configuration's file, and in which of its lines."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == os.fspath(path)
    ]
    place = f"{path}:{lines[-1]}" if lines else f"{path}"
    # The message of a ValueError is meant for users; other errors need their name to make sense.
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        hint = "; the package's configurations are in ktn_jax.configs"
    return f"{place}: {kind}{error}{hint}"


def _check_keys(config: ConfigDict) -> None:
    ours, theirs = dict(leaves(config)), dict(leaves(base.get_config()))
    unknown, missing = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if unknown or missing:
        problems = [f"unknown key {key}{_suggest(key, theirs)}" for key in unknown]
        problems += [f"missing key {key}" for key in missing]
        raise ConfigurationError(f"the configuration {config.get('name')!r}: {', '.join(problems)}")


def _suggest(key: str, known: Iterable[str]) -> str:
    """A question that names the known key that was probably meant, or nothing."""
    last = key.rpartition(".")[2]
    known = list(known)
    near = [other for other in known if other.rpartition(".")[2] == last]
    near = near or [other for other in known if key.startswith(f"{other}_")]
    near = near or difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _apply(config: ConfigDict, change: str) -> None:
    key, separator, text = change.partition("=")
    if not separator:
        raise ConfigurationError(f"{change!r} is no key=value")
    known = dict(leaves(config))
    if key not in known:
        inside = [other for other in known if other.startswith(f"{key}.")]
        hint = f", only a section: give a key, such as {inside[0]}" if inside else ""
        raise ConfigurationError(
            f"the configuration has no key {key!r}{hint or _suggest(key, known)}"
        )
    wanted = dict(leaves(base.get_config()))[key]
    try:
        value = _fit(_parse(text, wanted), wanted)
    except TypeError as error:
        raise ConfigurationError(f"{key}={text}: the value must be of type {error}") from error
    _set(config, key, value)


def _parse(text: str, like: Any) -> Any:
    """Reads what was written for a value like another: a Python literal, or else text."""
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        literal = text
    if isinstance(like, str):
        return literal if isinstance(literal, str) else text
    if isinstance(like, bool) and text in ("true", "false"):
        return text == "true"
    if not isinstance(like, tuple) or isinstance(literal, tuple | list):
        return literal
    holds_text = bool(like) and isinstance(like[0], str)
    if literal is text or (holds_text and not isinstance(literal, str)):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return (literal,)


def _fit(value: Any, like: Any) -> Any:
    """Returns the value as the type of another.

    Raises:
        TypeError: it is of another type; the message is the name of the one wanted.
    """
    if isinstance(like, tuple) and isinstance(value, tuple | list):
        # Nothing says what an empty tuple holds; elements are of one type everywhere.
        try:
            return tuple(_fit(element, like[0]) if like else element for element in value)
        except TypeError as error:
            raise TypeError(_type_name(like)) from error
    is_bool = isinstance(value, bool)
    if isinstance(like, float) and isinstance(value, int | float) and not is_bool:
        if math.isfinite(value):
            return float(value)
    elif type(value) is type(like):
        return value
    raise TypeError(_type_name(like))


def _type_name(value: Any) -> str:
    if isinstance(value, tuple):
        return f"tuple of {_type_name(value[0])}" if value else "tuple"
    return "finite float" if isinstance(value, float) else type(value).__name__
