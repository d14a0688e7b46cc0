"""Reads the parameters of TorchScript archives; neither their code nor PyTorch is run.

An archive is a zip file: `data.pkl` is a pickle of the module and of those inside it, `data/N` are
the bytes of its tensors, and `code/` is a program, which is left alone.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ktn_jax.checkpoints import torch_tensors
from ktn_jax.runtime import pickles

_MAX_MEMBERS = 50_000  # modules and tensors, each counted wherever it is a member
_MAX_DEPTH = 50  # of modules within each other
_MAX_NAME = 1000  # characters
_MAX_PICKLE_BYTES = 1 << 26  # of a model of this kind it has some 100,000


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the parameters and buffers of a scripted or traced module.

    Args:
        path: the archive.

    Returns:
        {name: read-only array}, names such as those of the module's state dict. A detectron2 model
        that was exported inside of another module loses the name of the latter.

    Raises:
        UnsafePickleError: the pickle asks for something other than modules and tensors.
        ValueError: a damaged file, no TorchScript, or a module without parameters, as frozen ones
            are. The message names the file.
        OSError: the file cannot be opened.
    """
    with pickles.named_errors(os.fspath(path), "a TorchScript archive"):
        with torch_tensors.opened(path) as archive:
            module = archive.unpickled(_NAMES, _find_type, _MAX_PICKLE_BYTES).content
        if not isinstance(module, _Module):
            raise ValueError(f"it holds a {type(module).__name__}, no module")
        tensors = _arrays(module)
    if not tensors:
        raise ValueError(
            f"{path}: this module has no parameters. A frozen one (torch.jit.freeze) keeps them "
            "without their names: get the file from before"
        )
    return _without_wrapper(tensors)


def _arrays(module: "_Module") -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for count, (name, member) in enumerate(_members(module, "", ())):
        # Modules count too: of those that share theirs, a few make any number of paths.
        if count >= _MAX_MEMBERS:
            raise ValueError(f"more than {_MAX_MEMBERS} modules and tensors")
        if isinstance(member, _Module):
            continue
        array = member.array()
        if array.nbytes > member.storage.num_bytes:  # parameters do not repeat their elements
            raise ValueError(f"{name[:100]}: a tensor that is larger than its bytes")
        arrays[name] = array
    return arrays


def _members(
    module: "_Module", prefix: str, outer: tuple[int, ...]
) -> Iterator[tuple[str, "torch_tensors.Tensor | _Module"]]:
    """The tensors and modules of a module and of those inside it, by their names."""
    if id(module) in outer or len(outer) > _MAX_DEPTH:
        raise ValueError("modules within each other without end")
    for name, value in module.attributes.items():
        if not isinstance(value, torch_tensors.Tensor | _Module):
            continue
        if len(prefix) + len(name) > _MAX_NAME:
            raise ValueError(f"{prefix[:100]}: a name of more than {_MAX_NAME} characters")
        yield f"{prefix}{name}", value
        if isinstance(value, _Module):
            yield from _members(value, f"{prefix}{name}.", (*outer, id(module)))


def _without_wrapper(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the name of the outer module off where the detector is one module of several."""
    prefixes = {
        name[: match.start()] for name in tensors if (match := re.search(r"backbone\.", name))
    }
    if len(prefixes) != 1:
        return tensors
    (prefix,) = prefixes
    return {name.removeprefix(prefix): array for name, array in tensors.items()}


class _Module:
    """A module of the archive: its attributes, whatever its class."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __new__(cls, *arguments: Any) -> "_Module":
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ValueError("the state of a module is not a dict of attributes")
        self.attributes = state


def _find_type(module: str, name: str) -> type | None:
    return _Module if module == "__torch__" or module.startswith("__torch__.") else None


def _contents(value: Any = None, *_: Any) -> Any:
    """What lists and dicts go through that have types of their own in TorchScript."""
    if not isinstance(value, list | dict):  # tuples could become keys that take endless to hash
        raise ValueError(f"a {type(value).__name__} where TorchScript has a list or a dict")
    return value


_NAMES = {
    ("torch.jit._pickle", name): _contents
    for name in (
        "build_boollist",
        "build_doublelist",
        "build_intlist",
        "build_tensorlist",
        "restore_type_tag",
    )
}
