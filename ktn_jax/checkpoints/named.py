"""What users name: a released model, detectron2's yaml file or a configuration of ours."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ktn_jax.checkpoints import detectron2_yaml, zoo
from ktn_jax.runtime import configuration


def load_config(name: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Loads a configuration and checks it.

    Args:
        name: a released model (`ktn models` lists them), a yaml file of detectron2, or else what
            `runtime.configuration.load_config` takes: a configuration that comes with the package
            and a variant, `ktn:r50`, or a Python file, `own.py:VARIANT`, which is run.
        changes: `key=value` with a dotted key; the last value of a key wins. Keys in capitals are
            detectron2's, for its yaml files and models: `MODEL.ROI_HEADS.NMS_THRESH_TEST=0.4`.

    Returns:
        The configuration, its keys locked.

    Raises:
        ConfigurationError: no such configuration, a key that is unknown or missing, or a value of
            another type or out of its range. The message names the file.
        FileNotFoundError: there is no such yaml file.
        ValueError: detectron2's configuration asks for what we do not have; all of it is named.
    """
    theirs, ours = _split(changes)
    tree = _tree(name, theirs)
    if tree is not None:
        from ktn_jax.checkpoints import detectron2_config  # imports JAX

        try:
            config = detectron2_config.from_detectron2(tree)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        config.name = pathlib.PurePath(name).stem if detectron2_yaml.is_yaml(name) else name
        return configuration.change_config(config, ours)
    if theirs:
        raise configuration.ConfigurationError(
            f"{theirs[0]!r} is a setting of detectron2, and {name} is no model or yaml file of it"
        )
    try:
        return configuration.load_config(name, ours)
    except configuration.ConfigurationError as error:
        near = "" if ":" in name or os.path.exists(name) else zoo.suggest(name)
        if not near:
            raise
        raise configuration.ConfigurationError(f"{error}; {near}") from error


def training_notes(name: str, changes: Sequence[str] = ()) -> list[str]:
    """What a configuration of detectron2 says of training and `load_config` leaves out.

    Raises:
        ValueError: as `load_config`.
    """
    tree = _tree(name, _split(changes)[0])
    if tree is None:
        return []
    from ktn_jax.checkpoints import detectron2_config  # imports JAX

    return detectron2_config.training_notes(tree)


def find_weights(name: str) -> pathlib.Path:
    """Finds the weights of a released model, which are fetched the first time.

    Raises:
        ValueError: it is no released model.
        FileNotFoundError, DownloadError: see `zoo.Model.weights`.
    """
    if name not in zoo.models():
        raise ValueError(f"{name} has no weights of its own: name a file of weights")
    return zoo.find(name).weights()


def recognise_weights(path: str | os.PathLike[str]) -> str:
    """The released model whose parameters a file has.

    Raises:
        ValueError: there is none, or the file cannot be read.
        FileNotFoundError: there is no such file.
    """
    from ktn_jax.checkpoints import files, store_runs

    found = []
    local = store_runs.fetch_weights(os.fspath(path))
    if not local.is_dir():
        state = files.read_state_dict(local)
        found = zoo.recognise({name: array.shape for name, array in state.items()})
    if not found:
        raise ValueError(f"{path} has no parameters of a released model: name its --config")
    return found[0]


def _tree(name: str, changes: Sequence[str]) -> dict[str, Any] | None:
    """detectron2's settings of what is named; None for a configuration of ours."""
    if detectron2_yaml.is_yaml(name):
        return detectron2_yaml.read_tree(name, changes)
    if name in zoo.models():
        return zoo.find(name).tree(detectron2_yaml.read_changes(changes))
    return None


def _split(changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Changes of detectron2's settings, whose keys are in capitals, and of ours."""
    theirs = [change for change in changes if change[:1].isupper()]
    return theirs, [change for change in changes if not change[:1].isupper()]
