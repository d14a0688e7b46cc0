"""Initial weights of training: random, an ImageNet backbone, or those of another model."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ktn_jax.body.graph import body_graph
from ktn_jax.checkpoints import weights
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.networks import Network, build_network
from ktn_jax.modeling.person_branches import transfer_sources
from ktn_jax.training.vertex_initialisation import initial_vertices

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Initial:
    """Variables to start from, and where they came from."""

    variables: Variables  # {"params", "batch_stats"}
    source: str = ""  # empty: all are random
    fit: weights.PartialFit | None = None  # of the source

    def report(self) -> list[str]:
        """Lines that name every array that was loaded, is new, or has no place in the model."""
        if self.fit is None:
            return ["all weights are new: training from scratch"]
        lines = [f"{self.source}: {len(self.fit.arrays)} arrays loaded"]
        for text, names in (
            ("keep their initial values", self.fit.missing),
            ("in the file have no place in the model", self.fit.dropped),
        ):
            if names:
                lines += [f"{len(names)} arrays {text}:", *(f"  {name}" for name in names)]
        return lines


def initial_edges(config: ConfigDict) -> dict[str, np.ndarray] | None:
    """Reads the initial body graph that `training.graph` names.

    Returns:
        As `build_network` takes it; None for noise and for models without knowledge transfer.

    Raises:
        ValueError: the file is no body graph.
    """
    name = config.training.graph
    if name == "noise" or not transfer_sources(config.model):
        return None
    is_own = name in ("default", "centred")
    graph = body_graph.build_graph() if is_own else body_graph.load_graph(name)
    edges = graph.initial_edges()
    return _centred(edges) if name == "centred" else edges


def _centred(edges: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the mean over the body's patches out of edges [25, K]; background keeps its row.

    All of the default graph's edges are positive, so that nine tenths of every surface classifier
    that is made by it are common to all patches.
    """
    found = {}
    for source, matrix in edges.items():
        found[source] = matrix.copy()
        found[source][1:] -= matrix[1:].mean(axis=0)
    return found


def build_trained_model(config: ConfigDict, platform: str) -> Network:
    """Builds the model of a whole configuration for training, its body graph included.

    Args:
        config: a whole configuration.
        platform: what the model is compiled for: "cpu", "gpu" or "tpu".
    """
    compute = Compute.choose(
        config.model.dtype, platform=platform, winograd=config.training.winograd
    )
    return build_network(config.model, compute=compute, graph=initial_edges(config))


def make_initial(
    config: ConfigDict, source: str | os.PathLike[str] = "", *, verify: bool = True
) -> Initial:
    """Makes the variables that training starts from.

    Args:
        config: a whole configuration.
        source: weights of any kind that the project reads, an ImageNet ResNet (Caffe2's MSRA names,
            or torchvision's), a work folder or a checkpoint of our own; empty to start from
            scratch.
        verify: compare the files of a folder with their checksums first.

    Returns:
        The variables: those that the source has, and random values, or what
        `training.vertex_init` names, for the rest, with that which `training.redraw` names.

    Raises:
        FileNotFoundError: nothing is at `source`.
        ValueError: from scratch with norms that do not train; a source that contradicts the
            configuration, has arrays of other shapes, or none that the model has; a pattern of
            `training.redraw` that fits none of them. See also `initial_vertices`.
    """
    source = str(source)
    if not source:
        _check_from_scratch(config.model)
        return Initial(variables=_draw(config, ()))
    fit = _without(weights.load_partly(config, source, verify=verify), config.training.redraw)
    return Initial(variables=fit.fill_in(_draw(config, fit.arrays)), source=source, fit=fit)


def _without(fit: weights.PartialFit, patterns: Sequence[str]) -> weights.PartialFit:
    """The same without the parameters whose paths start with one of the regular expressions."""
    compiled = [re.compile(f"params/(?:{pattern})") for pattern in patterns]
    unused = [
        pattern
        for pattern, expression in zip(patterns, compiled, strict=True)
        if not any(map(expression.match, fit.arrays))
    ]
    if unused:
        raise ValueError(f"training.redraw: {unused} match no parameter of the weights")
    redrawn = [name for name in fit.arrays if any(p.match(name) for p in compiled)]
    kept = {name: array for name, array in fit.arrays.items() if name not in set(redrawn)}
    return dataclasses.replace(fit, arrays=kept, missing=(*fit.missing, *redrawn))


def _draw(config: ConfigDict, known: Collection[str]) -> Variables:
    """Random variables, and of vertices that are not known what `training.vertex_init` names."""
    # The plain model, not the one that trains: it has the same initial values and compiles faster.
    model = build_network(config.model, graph=initial_edges(config))
    variables = weights.draw_variables(model, config.seed)
    variables = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    for mesh, arrays in initial_vertices(config, known).items():
        variables["params"]["embedder"][mesh].update(arrays)
    return variables


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
