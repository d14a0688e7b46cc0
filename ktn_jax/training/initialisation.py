"""What training starts from: nothing, an ImageNet backbone, another model's weights, or our own."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.body.graph import body_graph
from ktn_jax.checkpoints import files, imagenet, runs, torch_names, weights
from ktn_jax.modeling.chart_predictor import TRANSFER_SOURCES
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import Detector, build_model

Variables = dict[str, Any]

_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class Initial:
    """Variables to start from, and where each came from."""

    variables: Variables  # {"params", "batch_stats"}
    source: str  # empty for none
    loaded: tuple[str, ...] = ()  # paths that the source gave
    new: tuple[str, ...] = ()  # paths that keep their initial value
    unused: tuple[str, ...] = ()  # names in the source that the model has no place for

    def report(self) -> list[str]:
        """Says in lines what was loaded, what is new and what was left; no name is left out."""
        if not self.source:
            return ["all weights are new: training from scratch"]
        lines = [f"{self.source}: {len(self.loaded)} arrays loaded"]
        for text, names in (
            ("keep their initial values", self.new),
            ("in the file have no place in the model", self.unused),
        ):
            if names:
                lines += [f"{len(names)} arrays {text}:", *(f"  {name}" for name in names)]
        return lines


def load_graph(config: ConfigDict) -> dict[str, np.ndarray] | None:
    """Reads the initial body graph that `training.graph` names.

    Returns:
        As `build_model` takes it; None for noise and for models without knowledge transfer.

    Raises:
        ValueError: the file is no body graph.
    """
    name = config.training.graph
    if name == "noise" or not TRANSFER_SOURCES.get(config.model.predictor.name):
        return None
    graph = body_graph.build_graph() if name == "default" else body_graph.load_graph(name)
    return graph.initial_edges()


def build_trained_model(config: ConfigDict) -> Detector:
    """Builds the model that a whole configuration trains here, its body graph included."""
    compute = Compute.choose(
        config.model.dtype, platform=jax.default_backend(), winograd=config.training.winograd
    )
    return build_model(config.model, compute=compute, graph=load_graph(config))


def make_initial(config: ConfigDict, source: str | os.PathLike = "") -> Initial:
    """Makes the variables that training starts from.

    Args:
        config: a whole configuration.
        source: weights of any kind that the project reads, an ImageNet ResNet (Caffe2's MSRA names,
            or torchvision's), a work folder or a checkpoint of our own; empty to start from
            scratch.

    Returns:
        The variables: what the source has in the model's shape, and drawn values for the rest.

    Raises:
        FileNotFoundError: nothing is at `source`.
        ValueError: from scratch with norms that do not train; a source that contradicts the
            configuration, has arrays of other shapes, or none that the model has.
    """
    source = str(source)
    if not source:
        _check_from_scratch(config.model)
    stored, unused = _read(config, source) if source else ({}, [])
    model = build_model(config.model, graph=load_graph(config))
    wanted = _flatten(weights.abstract_variables(model))
    if source:
        _check(stored, wanted, source)
    drawn = _flatten(draw_variables(model, config.seed))
    merged = {
        path: np.asarray(stored[path], value.dtype) if path in stored else value
        for path, value in drawn.items()
    }
    # How many batches a running statistic has seen is no weight.
    loaded = [path for path in drawn if path in stored]
    new = [path for path in drawn if path not in stored and not path.endswith("/count")]
    unused += [path for path in stored if path not in drawn and not path.endswith("/count")]
    variables = {name: {} for name in _COLLECTIONS}
    variables |= traverse_util.unflatten_dict(merged, sep="/")
    return Initial(
        variables=variables,
        source=source,
        loaded=tuple(loaded),
        new=tuple(new),
        unused=tuple(unused),
    )


def _check_from_scratch(config: ConfigDict) -> None:
    backbone = config.backbone
    wanted = []
    if backbone.norm == "FrozenBN":
        wanted.append("--set model.backbone.norm=BN (or GN)")
    if backbone.name == "resnet" and backbone.freeze_at:
        wanted.append("--set model.backbone.freeze_at=0")
    if wanted:
        raise ValueError(
            "without --weights the backbone starts from random values, and parts of it would not "
            f"train: give --weights (an ImageNet ResNet, say), or {' and '.join(wanted)}"
        )


def draw_variables(model: Detector, seed: int) -> Variables:
    """Draws the initial variables of a model, its body graph included."""
    images = jnp.zeros((1, 128, 128, 3), jnp.uint8)
    # A program that runs once, with a generator for every array: on a CPU, making it fast takes
    # longer than all that it does.
    on_cpu = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    draw = jax.jit(model.init, compiler_options=on_cpu)
    return draw(jax.random.key(seed), images, jnp.full((1, 2), 128))


def _read(config: ConfigDict, source: str) -> tuple[dict[str, Any], list[str]]:
    """Reads a source as flat variables, and the names in it that no model has."""
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"--weights: nothing is at {source}")
    if path.is_dir():
        found = runs.find_checkpoint(path)
        variables = runs.read_checkpoint(found)[0] if found else weights.read_variables(path)
        return _flatten(variables), []
    state = files.read_state_dict(path)
    kind = imagenet.find_kind(state)
    unknown = []
    if kind is not None:
        imagenet.check_fit(config.model, kind, source)
        state, unknown = imagenet.rename(state, kind)
    unknown += _unknown_names(state)
    try:
        variables = torch_names.to_flax({k: v for k, v in state.items() if k not in unknown})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    _check_constants(config, variables.pop("constants", {}), source)
    return _flatten(variables), unknown


def _unknown_names(state: Mapping[str, np.ndarray]) -> list[str]:
    """Names of no model: heads that this project does not have, counters of an optimizer."""
    table = {
        rule
        for is_auxiliary in (False, True)
        for is_multi_instance in (False, True)
        for rule in torch_names.rules(is_auxiliary, is_multi_instance)
    }
    alias = "roi_heads.densepose_head.ScaleConv."

    def is_known(name: str) -> bool:
        return name.startswith(alias) or any(rule.torch_regex.fullmatch(name) for rule in table)

    return [name for name in state if not is_known(name)]


def _check_constants(config: ConfigDict, stored: Mapping[str, np.ndarray], source: str) -> None:
    for name, ours in weights.constants(config.model).items():
        if name in stored and not np.allclose(stored[name], ours, rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"{source} was trained with {name} {np.ravel(stored[name]).tolist()}, the "
                f"configuration has {np.ravel(ours).tolist()}"
            )


def _check(stored: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    if not stored.keys() & wanted.keys():
        some: Sequence[str] = sorted(stored)[:3] or ["nothing that is known"]
        raise ValueError(f"{source} has no weights of this model; it holds {', '.join(some)}, ...")
    wrong = [
        f"{path}: {tuple(np.shape(stored[path]))}, the model's is {wanted[path].shape}"
        for path in sorted(stored.keys() & wanted.keys())
        if tuple(np.shape(stored[path])) != wanted[path].shape
    ]
    if wrong:
        lines = "\n  ".join(wrong)
        raise ValueError(
            f"{source} does not fit the model: {len(wrong)} arrays are of another shape\n  {lines}"
        )


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(
        {name: dict(tree[name]) for name in _COLLECTIONS if name in tree}, sep="/"
    )
    return flat
