"""Trees of detectron2's settings: its defaults, and a reader that notes all that it cannot read."""

import difflib
import functools
import json
import pathlib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

_DEFAULTS = pathlib.Path(__file__).with_name("detectron2_defaults.json")
_MAX_SETTINGS = 20_000  # a whole tree has some 300; aliases of a yaml file can repeat without end
_MAX_DEPTH = 20
_MAX_KEY = 1000  # characters; the longest has some 60
_MAX_UNKNOWN = 100  # that are listed: finding the nearest name takes milliseconds each
# Sections whose keys are names that users choose.
_OPEN_SECTIONS = (
    "DATASETS.CATEGORY_MAPS.",
    "DATASETS.WHITELISTED_CATEGORIES.",
    "DATASETS.CLASS_TO_MESH_NAME_MAPPING.",
    "MODEL.ROI_DENSEPOSE_HEAD.CSE.EMBEDDERS.",
)

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80

short = _REPR.repr  # a value as text, of some length at most


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the settings of nested mappings by dotted key, such as `MODEL.RPN.NMS_THRESH`.

    Raises:
        ValueError: no mapping, too many settings, sections too deep, or a key that is not text or
            too long.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"wanted sections and settings by name, got {short(tree)}")
    flat: dict[str, Any] = {}
    for key, value in _leaves(tree, "", 0):
        flat[key] = value
        if len(flat) > _MAX_SETTINGS:
            raise ValueError(f"more than {_MAX_SETTINGS} settings")
    return flat


def _leaves(tree: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"sections within each other more than {_MAX_DEPTH} deep")
    for name, value in tree.items():
        if isinstance(name, int):  # the classes of DATASETS.CLASS_TO_MESH_NAME_MAPPING
            name = str(name)
        if not isinstance(name, str):
            raise ValueError(f"{prefix}{short(name)}: a key must be text")
        if len(prefix) + len(name) > _MAX_KEY:
            raise ValueError(f"{prefix}{short(name)}: a key of more than {_MAX_KEY} characters")
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Makes nested mappings of settings by dotted key: the inverse of `flatten`.

    Of a value and a section of one name the later stays.
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            inner = node.get(section)
            # An empty section is a value of the caller's, and left as it is.
            node[section] = inner if isinstance(inner, dict) and inner else {}
            node = node[section]
        node[name] = value
    return tree


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Puts settings over others, all by dotted key.

    A section in place of a value, or the reverse, leaves nothing of what it replaces.
    """
    sections = {section for key in upper for section in _sections(key)}
    kept = {
        key: value
        for key, value in lower.items()
        if key not in sections and upper.keys().isdisjoint(_sections(key))
    }
    return {**kept, **upper}


def _sections(key: str) -> list[str]:
    """The sections that a setting is in: `A` and `A.B` of `A.B.C`."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@functools.cache
def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    tables = json.loads(_DEFAULTS.read_text())
    return tables["detectron2"], tables["ktn"]


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings that a file does not give, by dotted key.

    detectron2's, DensePose's, HRNet's, and KTN's where one of KTN's own settings is given: its code
    is a fork of an older DensePose, which chooses the predictor by another key.

    Args:
        given: the settings of the file, by dotted key.
    """
    common, ktn = _tables()
    if not ktn.keys() & given.keys():
        return dict(common)
    newer = ("PREDICTOR_NAME", "LOSS_NAME", "CSE.")
    prefixes = tuple(f"MODEL.ROI_DENSEPOSE_HEAD.{name}" for name in newer)
    return {key: v for key, v in common.items() if not key.startswith(prefixes)} | ktn


class Tree:
    """Settings, read key by key. Problems are noted, so that users learn of all of them at once.

    A setting that is missing or of another type is noted, and its default takes its place.

    Attributes:
        problems: one line for each setting that is missing, wrong or not supported.
    """

    def __init__(self, tree: Mapping[str, Any]):
        """Takes nested mappings with the names of detectron2's yaml files, defaults filled in.

        Raises:
            ValueError: it is no such tree.
        """
        self._settings = flatten(tree)
        common, ktn = _tables()
        self._known = common | ktn
        self._read: set[str] = set()
        self.problems: list[str] = []

    def get(self, key: str) -> Any:
        """The value of a setting, lists as tuples."""
        if key not in self._settings:
            self.problems.append(f"the detectron2 configuration has no {key}")
            return _as_tuple(self._known.get(key))
        return self.find(key, None)

    def find(self, key: str, default: Any) -> Any:
        """The value of a setting that may be missing, lists as tuples."""
        self._read.add(key)
        if key not in self._settings:
            return default
        value = self._settings[key]
        if key in self._known and not _is_like(value, self._known[key]):
            like = self._known[key]
            self.problems.append(
                f"{key} {short(value)} is of another type than wanted, such as {like!r}"
            )
            value = like
        return _as_tuple(value)

    def get_like(self, key: str, like: Any) -> Any:
        """The value of a setting of an open section, of the type of `like`."""
        value = self.get(key)
        if key in self._settings and not _is_like(value, like):
            self.problems.append(
                f"{key} {short(value)} is of another type than wanted, such as {like!r}"
            )
            return like
        return like if key not in self._settings else value

    def names_under(self, section: str) -> list[str]:
        """The names in a section, in the order of the settings."""
        start = f"{section}."
        names = (key[len(start) :] for key in self._settings if key.startswith(start))
        return list(dict.fromkeys(name.partition(".")[0] for name in names))

    def has(self, key: str) -> bool:
        """Whether a setting is there."""
        return key in self._settings

    def choose(self, key: str, choices: Mapping[Any, Any]) -> Any:
        """Ours for the value of a setting, by `choices`."""
        value = self.get(key)
        try:
            return choices[value]
        except (KeyError, TypeError):  # TypeError: a list of lists
            self.problems.append(f"{key} {short(value)} is not supported: one of {list(choices)}")
            return next(iter(choices.values()))

    def require(self, **wanted: Any) -> None:
        """Notes values other than those `wanted` (dots of the keys written as "__")."""
        for name, value in wanted.items():
            key = name.replace("__", ".")
            actual = self.get(key)
            if actual != value:
                self.problems.append(f"{key} {short(actual)} is not supported, only {value!r}")

    def unknown(self) -> list[str]:
        """Settings that detectron2, DensePose and KTN do not have, one line each for the first."""
        unknown = [
            key
            for key in self._settings
            if key not in self._known and not key.startswith(_OPEN_SECTIONS)
        ]
        lines = []
        for key in unknown[:_MAX_UNKNOWN]:
            near = difflib.get_close_matches(key, self._known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            lines.append(f"unknown setting {key[:200]}{hint}")
        if len(unknown) > _MAX_UNKNOWN:
            lines.append(f"{len(unknown) - _MAX_UNKNOWN} more unknown settings")
        return lines

    def unread(self) -> dict[str, Any]:
        """Known settings that nobody asked for and that are not as detectron2 has them."""
        return {
            key: value
            for key, value in self._settings.items()
            if key in self._known
            and key not in self._read
            and _as_tuple(value) != _as_tuple(self._known[key])
        }


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(x) for x in value) if isinstance(value, list | tuple) else value


def _is_like(value: Any, like: Any) -> bool:
    """Whether a value has the type of another: lists and tuples are one, as in detectron2."""
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(like, bool)
    if isinstance(like, float) or like is None:
        return isinstance(value, int | float) or value is like
    if isinstance(like, list | tuple):
        if not isinstance(value, list | tuple):
            return False
        numbers = isinstance(like[0], int | float) if like else False
        example = 0.0 if numbers and not isinstance(like[0], bool) else like[0] if like else None
        return example is None or all(_is_like(element, example) for element in value)
    return isinstance(value, type(like))
