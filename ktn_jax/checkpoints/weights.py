"""Weights in any format, fitted to a model: nothing is skipped, filled in or resized unnoticed.

Files hold the original's names (see `torch_names`); a folder is an orbax checkpoint of our own.
`load` reads weights that fit a model exactly. `load_partly` reads weights to start training from:
any part of a model, or an ImageNet backbone; it reports what it found.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.checkpoints import files, imagenet, run_folders, torch_names
from ktn_jax.checkpoints.run_folders import CheckpointError
from ktn_jax.modeling.networks import Network, build_network
from ktn_jax.modeling.person_branches import transfer_sources
from ktn_jax.ops import boxes as box_ops
from ktn_jax.runtime import checksums, configuration, stores
from ktn_jax.runtime.program_store import ProgramStore

Variables = dict[str, Any]

_COLLECTIONS = ("params", "batch_stats")
# Tolerance of constants in a file: above rounding, far below the differences of conventions.
_CONSTANTS_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class PartialFit:
    """The weights that a source has for a model.

    Paths are of Flax variables, such as `params/box_head/fc1/kernel`.
    """

    arrays: dict[str, np.ndarray]  # by path, in the model's shapes and types
    missing: tuple[str, ...]  # paths of the model that the source does not have
    dropped: tuple[str, ...]  # names in the source that the model has no place for

    def fill_in(self, variables: Mapping[str, Any]) -> Variables:
        """Replaces arrays of `variables`, all of the model's, by those of the source."""
        merged = {path: self.arrays.get(path, x) for path, x in flatten(variables).items()}
        nested = traverse_util.unflatten_dict(merged, sep="/")
        return {name: nested.get(name, {}) for name in _COLLECTIONS}


def read_variables(path: str | os.PathLike[str], *, verify: bool = True) -> Variables:
    """Reads Flax variables from a checkpoint file of the original's names or an orbax folder.

    Args:
        path: .pth, .pt, .pkl, .safetensors or .npz file, a folder that `write_variables` wrote, or
            the work folder of a training or one of its checkpoints; of several the newest. Or the
            address of one in a store, gs://bucket/run.
        verify: compare the files of a folder with their checksums first.

    Returns:
        {"params": ..., "batch_stats": ..., "constants": ...} of NumPy arrays.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: the files of a folder are damaged.
        ValueError: the file cannot be read, or holds names that are not known; the message says
            which.
    """
    path = _existing(path)
    if path.is_dir():
        return _read_training(path, verify) or _read_orbax(path, verify)
    state = files.read_state_dict(path)
    try:
        return torch_names.to_flax(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_variables(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Writes Flax variables: a path with a suffix as a file of the original's names, else orbax.

    The path may be an address of a store, where what has the same name is written over.

    Raises:
        ValueError: an unknown suffix.
        FileExistsError: an orbax folder that is already there.
    """
    if stores.is_address(path):
        with stores.written(path) as local:
            write_variables(local, variables)
        return
    path = pathlib.Path(path)
    if path.suffix:
        files.write_state_dict(path, torch_names.to_torch(variables))
        return
    if path.exists():
        raise FileExistsError(f"{path} exists: give a new folder, or remove it first")
    from orbax.checkpoint import StandardCheckpointer

    with StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), jax.tree.map(np.asarray, dict(variables)))
    checksums.write_checksums(path)


def convert(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, verify: bool = True
) -> int:
    """Converts weights between the formats of `read_variables` and `write_variables`.

    Args:
        source: a file or a folder.
        target: a file, by its suffix, or a new folder for orbax.
        verify: compare the files of a folder with their checksums first.

    Returns:
        The number of parameters written.

    Raises:
        FileNotFoundError: there is no such source.
        FileExistsError: the target is a folder that is already there.
        ValueError: the source cannot be read or holds names that are not known, or the target's
            suffix is not known.
    """
    variables = read_variables(source, verify=verify)
    write_variables(target, variables)
    return count_parameters(variables)


def _existing(path: str | os.PathLike[str]) -> pathlib.Path:
    if stores.is_address(path):
        # Here and below: orbax takes a third of a second to import, and files do not need it.
        from ktn_jax.checkpoints.store_runs import fetch_weights

        path = fetch_weights(os.fspath(path))
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}")
    return path


def _read_training(path: pathlib.Path, verify: bool) -> Variables | None:
    """Reads the newest checkpoint of a training; None for a folder of another kind."""
    found = run_folders.find_checkpoint(path)
    if found is None:
        return None
    from ktn_jax.checkpoints.runs import read_checkpoint

    variables, config = read_checkpoint(found, verify=verify)
    try:
        return variables | {"constants": constants(ConfigDict(config["model"]))}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{found}: the configuration in it is damaged: {error}") from error


def _read_orbax(path: pathlib.Path, verify: bool) -> Variables:
    if verify:
        run_folders.check_checkpoint(path, "")
    from orbax.checkpoint import StandardCheckpointer

    try:
        with StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(path.absolute())
    except Exception as error:  # orbax and TensorStore raise a dozen kinds on damaged files
        reason = run_folders.first_lines(error)
        raise CheckpointError(f"{path} is no orbax checkpoint of a model: {reason}") from error
    if not isinstance(restored, Mapping) or "params" not in restored:
        raise CheckpointError(f"{path} holds no params: is it a model's checkpoint?")
    variables: Variables = jax.tree.map(np.asarray, dict(restored))
    return variables


def abstract_variables(model: Network) -> Variables:
    """Shapes and types of a model's variables, without computing any."""
    shapes: Variables = jax.eval_shape(
        lambda key: model.init(key, *_any_images()), jax.random.key(0)
    )
    return shapes


def _abstract_parameters(config: ConfigDict, programs: ProgramStore | None) -> Variables:
    """Shapes and types of what checkpoints have of a `model` configuration."""

    def trace() -> bytes:
        flat = flatten(abstract_variables(build_network(config)))
        shapes = {path: [leaf.shape, leaf.dtype.name] for path, leaf in flat.items()}
        return json.dumps(shapes).encode()

    settings = {"shapes of": configuration.as_json(config)}
    text = programs.read_or_make(settings, trace) if programs else trace()
    flat = {
        path: jax.ShapeDtypeStruct(shape, dtype)
        for path, (shape, dtype) in json.loads(text).items()
    }
    abstract: Variables = traverse_util.unflatten_dict(flat, sep="/")
    return abstract


def draw_variables(model: Network, seed: int) -> Variables:
    """Draws the initial variables of a model, its body graph included."""
    # This program runs once: on a CPU, optimising it takes longer than running it.
    on_cpu = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    draw = jax.jit(model.init, compiler_options=on_cpu)
    variables: Variables = draw(jax.random.key(seed), *_any_images())
    return variables


def _any_images() -> tuple[jax.Array, jax.Array]:
    """Arguments of a model: parameters do not depend on the size of the images."""
    return jnp.zeros((1, 128, 128, 3), jnp.uint8), jnp.full((1, 2), 128)


def initialise(config: ConfigDict, seed: int) -> Variables:
    """Draws the initial weights of a configuration's model, the body graph being noise."""
    return draw_variables(build_network(config.model), seed)


def count_parameters(variables: Mapping[str, Any]) -> int:
    """Number of values in `params`."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def load(
    config: ConfigDict,
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    programs: ProgramStore | None = None,
) -> Variables:
    """Reads the weights of a configuration's model.

    Args:
        config: a whole configuration.
        path: see `read_variables`.
        verify: see `read_variables`.
        programs: where the names and shapes of the model's parameters are kept for other processes.

    Returns:
        {"params": ..., "batch_stats": ...} of NumPy arrays that fit the model exactly.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: keys are missing, unexpected or mis-shaped (all are listed, in the original's
            names), or constants in the file contradict the configuration.
    """
    return fit(config, read_variables(path, verify=verify), str(path), programs)


def fit(
    config: ConfigDict,
    variables: Mapping[str, Any],
    source: str,
    programs: ProgramStore | None = None,
) -> Variables:
    """Fits variables that came from `source` to a configuration's model, as `load` does."""
    abstract = _abstract_parameters(config.model, programs)
    check_fit(abstract, variables, source)
    _check_constants(config.model, variables.get("constants", {}), source)
    flat = flatten(variables)
    for path, wanted in flatten(abstract).items():
        if _is_count(path):
            flat.setdefault(path, np.zeros(wanted.shape, wanted.dtype))
    fitted: Variables = traverse_util.unflatten_dict(flat, sep="/")
    return fitted


def check_fit(abstract: Variables, variables: Mapping[str, Any], source: str) -> None:
    """Checks that variables are those of `abstract_variables`, each present and in its shape.

    Raises:
        ValueError: lists every missing, unexpected and mis-shaped key.
    """
    wanted, actual = flatten(abstract), flatten(variables)
    missing = {path for path in wanted.keys() - actual.keys() if not _is_count(path)}
    unexpected = actual.keys() - wanted.keys()
    problems = [f"missing: {name}" for name in _torch_names(missing, wanted)]
    problems += [f"unexpected: {name}" for name in _torch_names(unexpected, actual)]
    problems += _mis_shaped(wanted, actual)
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"{source} does not fit the model ({len(problems)} keys); is it of another "
            f"configuration?\n  {lines}"
        )


def load_partly(
    config: ConfigDict, path: str | os.PathLike[str], *, verify: bool = True
) -> PartialFit:
    """Reads what a source has for a configuration's model.

    Args:
        config: a whole configuration.
        path: see `read_variables`; also an ImageNet ResNet (Caffe2's MSRA names, or torchvision's).
        verify: see `read_variables`.

    Returns:
        The arrays that fit, and the names of those that do not.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: nothing in it fits the model, arrays have other shapes (all are listed), or
            constants in the file or the needs of an ImageNet backbone contradict the configuration.
    """
    path = _existing(path)
    if path.is_dir():
        variables, unknown = read_variables(path, verify=verify), list[str]()
    else:
        variables, unknown = _read_known(config, path)
    _check_constants(config.model, variables.get("constants", {}), str(path))
    wanted = flatten(abstract_variables(build_network(config.model)))
    actual = flatten(variables)
    if not wanted.keys() & actual.keys():
        some = sorted(actual)[:3] or ["nothing that is known"]
        raise ValueError(f"{path} has no weights of this model; it holds {', '.join(some)}, ...")
    problems = _mis_shaped(wanted, actual)
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"{path} does not fit the model: {len(problems)} arrays are of another shape\n  {lines}"
        )
    return PartialFit(
        {name: np.asarray(actual[name], wanted[name].dtype) for name in wanted if name in actual},
        tuple(name for name in wanted if name not in actual and not _is_count(name)),
        (*unknown, *(name for name in actual if name not in wanted and not _is_count(name))),
    )


def _read_known(config: ConfigDict, path: pathlib.Path) -> tuple[Variables, list[str]]:
    """Reads a file as variables, and the names in it that no model has."""
    state = files.read_state_dict(path)
    unknown: list[str] = []
    kind = imagenet.find_kind(state)
    if kind is not None:
        imagenet.check_backbone(config.model, kind, str(path))
        state, unknown = imagenet.rename(state, kind)
    others = dict.fromkeys(torch_names.unknown_names(state))
    known = {name: array for name, array in state.items() if name not in others}
    try:
        return torch_names.to_flax(known), [*unknown, *others]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of `params` and `batch_stats` by path, such as `params/box_head/fc1/kernel`."""
    trees = {name: dict(variables[name]) for name in _COLLECTIONS if name in variables}
    flat: dict[str, Any] = traverse_util.flatten_dict(trees, sep="/")
    return flat


def _is_count(path: str) -> bool:
    """Whether a name is that of a batch norm's number of batches.

    PyTorch before 0.4.1 counted none, and nothing needs the number: it may be missing.
    """
    return path.endswith("/count")


def _mis_shaped(wanted: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    paths = sorted(
        path
        for path in wanted.keys() & actual.keys()
        if tuple(np.shape(actual[path])) != wanted[path].shape
    )
    return [
        f"mis-shaped: {name}: the model's is {wanted[path].shape}, the file's "
        f"{tuple(np.shape(actual[path]))} (Flax layout)"
        for path, name in zip(paths, _torch_names(paths, wanted), strict=True)
    ]


def _torch_names(paths: Collection[str], flat: Mapping[str, Any]) -> list[str]:
    """The original's names of some Flax paths, sorted; some names depend on all of `flat`."""
    names = torch_names.torch_names(list(flat)) if paths else {}
    return [f"{names[path]} ({path})" if path in names else path for path in sorted(paths)]


def constants(config: ConfigDict) -> Variables:
    """The constants in the original's checkpoints, from a `model` configuration."""
    values: Variables = {
        "pixel_mean": np.array(config.pixel_mean_bgr, np.float32).reshape(3, 1, 1),
        "pixel_std": np.array(config.pixel_std_bgr, np.float32).reshape(3, 1, 1),
    }
    if transfer_sources(config):
        # Those of KTN's code hold anchors too.
        for level, sizes in enumerate(config.rpn.anchor_sizes):
            anchors = box_ops.cell_anchors(sizes, config.rpn.aspect_ratios)
            values[f"cell_anchors{level}"] = anchors.astype(np.float32)
    return values


def _check_constants(config: ConfigDict, stored: Mapping[str, np.ndarray], source: str) -> None:
    ours = constants(config)
    tolerance = _CONSTANTS_TOLERANCE
    for name, value in stored.items():
        if name in ours and not np.allclose(value, ours[name], rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"{source}: {name} is {np.ravel(value).tolist()}, but the configuration says "
                f"{ours[name].ravel().tolist()}"
            )
