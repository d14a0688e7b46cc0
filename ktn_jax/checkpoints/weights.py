"""Weights in any format, fitted to a model: nothing is skipped, filled in or cut to size unseen.

Files hold the original's names (see `torch_weights`); a folder is an orbax checkpoint of our own.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.checkpoints import files, torch_names
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.ops import boxes as box_ops

Variables = dict[str, Any]

_COLLECTIONS = ("params", "batch_stats")
_KTN_DECODER_PREDICTORS = ("ktn", "ktn_keypoints", "ktn_auxiliary")


def read_variables(path: str | os.PathLike) -> Variables:
    """Reads Flax variables from a checkpoint file of the original's names or an orbax folder.

    Args:
        path: .pth, .pt, .pkl, .safetensors or .npz file, a folder that `write_variables` wrote, or
            the work folder of a training or one of its checkpoints; of several the newest.

    Returns:
        {"params": ..., "batch_stats": ..., "constants": ...} of NumPy arrays.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file cannot be read, or holds names that are not known; the message says
            which.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_training(path) or _read_orbax(path)
    state = files.read_state_dict(path)
    try:
        return torch_names.to_flax(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_variables(path: str | os.PathLike, variables: Mapping[str, Any]) -> None:
    """Writes Flax variables: a path with a suffix as a file of the original's names, else orbax.

    Raises:
        ValueError: an unknown suffix.
        FileExistsError: an orbax folder that is already there.
    """
    path = pathlib.Path(path)
    if path.suffix:
        files.write_state_dict(path, torch_names.to_torch(variables))
        return
    if path.exists():
        raise FileExistsError(f"{path} exists: give a new folder, or remove it first")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), jax.tree.map(np.asarray, dict(variables)))


def convert(source: str | os.PathLike, target: str | os.PathLike) -> int:
    """Converts weights between the formats of `read_variables` and `write_variables`.

    Args:
        source: a file or a folder.
        target: a file, by its suffix, or a new folder for orbax.

    Returns:
        The number of parameters written.

    Raises:
        FileNotFoundError: there is no such source.
        FileExistsError: the target is a folder that is already there.
        ValueError: the source cannot be read or holds names that are not known, or the target's
            suffix is not known.
    """
    variables = read_variables(source)
    write_variables(target, variables)
    return count_parameters(variables)


def _read_training(path: pathlib.Path) -> Variables | None:
    """Reads the newest checkpoint of a training; None for a folder of another kind."""
    from ktn_jax.checkpoints import runs  # which needs optax and more, and few callers do

    found = runs.find_checkpoint(path)
    if found is None:
        return None
    variables, config = runs.read_checkpoint(found)
    return variables | {"constants": constants(ConfigDict(config["model"]))}


def _read_orbax(path: pathlib.Path) -> Variables:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(path.absolute())
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no orbax checkpoint of a model: {error}") from error
    if not isinstance(restored, Mapping) or "params" not in restored:
        raise ValueError(f"{path} holds no params: is it a model's checkpoint?")
    return jax.tree.map(np.asarray, dict(restored))


def abstract_variables(model: Detector) -> Variables:
    """Shapes and types of a model's variables, without computing any."""

    def initialise(key: jax.Array) -> Variables:
        # Parameters do not depend on the size of the images.
        images = jnp.zeros((1, 128, 128, 3), jnp.uint8)
        return model.init(key, images, jnp.full((1, 2), 128))

    return jax.eval_shape(initialise, jax.random.key(0))


def load(config: ConfigDict, path: str | os.PathLike) -> Variables:
    """Reads the weights of a configuration's model.

    Args:
        config: a whole configuration.
        path: see `read_variables`.

    Returns:
        {"params": ..., "batch_stats": ...} of NumPy arrays that fit the model exactly.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: keys are missing, unexpected or mis-shaped (all are listed, in the original's
            names), or constants in the file contradict the configuration.
    """
    return fit(config, read_variables(path), str(path))


def fit(config: ConfigDict, variables: Mapping[str, Any], source: str) -> Variables:
    """Fits variables that came from `source` to a configuration's model, as `load` does."""
    abstract = abstract_variables(build_model(config.model))
    check_fit(abstract, variables, source)
    _check_constants(config.model, variables.get("constants", {}), source)
    flat = _flatten({name: variables.get(name, {}) for name in _COLLECTIONS})
    for key, wanted in _flatten(abstract).items():
        if key.endswith("/count"):
            flat.setdefault(key, np.zeros(wanted.shape, wanted.dtype))
    return traverse_util.unflatten_dict(flat, sep="/")


def check_fit(abstract: Variables, variables: Mapping[str, Any], source: str) -> None:
    """Checks that variables are those of `abstract_variables`, each present and in its shape.

    Raises:
        ValueError: lists every missing, unexpected and mis-shaped key.
    """
    wanted = _flatten(abstract)
    actual = _flatten({name: variables.get(name, {}) for name in _COLLECTIONS})
    # PyTorch before 0.4.1 counted no batches, and nothing needs the count.
    missing = {key for key in wanted.keys() - actual.keys() if not key.endswith("/count")}
    unexpected = actual.keys() - wanted.keys()
    problems = [f"missing: {_torch_name(key, wanted)}" for key in sorted(missing)]
    problems += [f"unexpected: {_torch_name(key, actual)}" for key in sorted(unexpected)]
    for key in sorted(wanted.keys() & actual.keys()):
        if wanted[key].shape != actual[key].shape:
            problems.append(
                f"mis-shaped: {_torch_name(key, wanted)}: the model's is {wanted[key].shape}, "
                f"the file's {actual[key].shape} (Flax layout)"
            )
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"{source} does not fit the model ({len(problems)} keys); is it of another "
            f"configuration?\n  {lines}"
        )


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def _torch_name(key: str, flat: Mapping[str, Any]) -> str:
    """The original's name of a Flax path, beside which others decide some of the names."""
    names = torch_names.torch_names(list(flat))
    return f"{names[key]} ({key})" if key in names else key


def constants(config: ConfigDict) -> Variables:
    """What the original's checkpoints hold beside parameters, from a `model` configuration."""
    values = {
        "pixel_mean": np.float32(config.pixel_mean_bgr).reshape(3, 1, 1),
        "pixel_std": np.float32(config.pixel_std_bgr).reshape(3, 1, 1),
    }
    if config.predictor.name in _KTN_DECODER_PREDICTORS:
        for level, sizes in enumerate(config.rpn.anchor_sizes):
            anchors = box_ops.cell_anchors(sizes, config.rpn.aspect_ratios)
            values[f"cell_anchors{level}"] = np.float32(anchors)
    return values


def _check_constants(config: ConfigDict, stored: Mapping[str, np.ndarray], source: str) -> None:
    ours = constants(config)
    for name, value in stored.items():
        if name in ours and not np.allclose(value, ours[name], rtol=1e-5, atol=1e-5):
            raise ValueError(
                f"{source}: {name} is {value.ravel().tolist()}, but the configuration says "
                f"{ours[name].ravel().tolist()}"
            )


def initialise(config: ConfigDict, seed: int) -> Variables:
    """Draws the initial weights of a configuration's model."""
    model = build_model(config.model)
    images = jnp.zeros((1, 128, 128, 3), jnp.uint8)
    return jax.jit(model.init)(jax.random.key(seed), images, jnp.full((1, 2), 128))


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Number of values in `params`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))
