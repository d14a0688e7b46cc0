"""Folds norms with fixed statistics into the convolutions before them, for inference only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.modeling.layers import FrozenBatchNorm

Variables = dict[str, Any]

_FOLDED = ("FrozenBN", "BN")


def without_norms(config: ConfigDict) -> ConfigDict:
    """Makes the `model` configuration of a model after `fold_norms`.

    Returns:
        The configuration without norms in the backbone; unchanged if they are not folded.
    """
    if config.backbone.norm not in _FOLDED:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.backbone.norm = ""
    return config


def fold_norms(config: ConfigDict, variables: Mapping[str, Any]) -> Variables:
    """Folds the backbone's batch norms into its convolutions.

    A norm with fixed statistics scales and shifts channels, and so can the convolution before it:
    its kernel takes the scale, and it gets the shift as its bias. The result is the same up to
    rounding, with one pass less over every map of the backbone.

    Args:
        config: a `model` configuration.
        variables: its variables, arrays of any kind.

    Returns:
        The variables of `without_norms(config)`. Those of a backbone with other norms stay.
    """
    if config.backbone.norm not in _FOLDED:
        return dict(variables)
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    folded = dict(flat)
    for path in flat:
        if not path.startswith("params/backbone/") or not path.endswith("/norm/scale"):
            continue
        layer = path.removeprefix("params/").removesuffix("/norm/scale")
        norm = {
            name: np.asarray(folded.pop(f"{collection}/{layer}/norm/{name}"), np.float64)
            for collection, names in (("params", "scale bias"), ("batch_stats", "mean var"))
            for name in names.split()
        }
        folded.pop(f"batch_stats/{layer}/norm/count", None)
        scale = norm["scale"] / np.sqrt(norm["var"] + FrozenBatchNorm.epsilon)
        kernel = np.asarray(flat[f"params/{layer}/conv/kernel"])
        folded[f"params/{layer}/conv/kernel"] = (kernel * scale).astype(kernel.dtype)
        bias = norm["bias"] - norm["mean"] * scale
        folded[f"params/{layer}/conv/bias"] = bias.astype(kernel.dtype)
    nested: Variables = traverse_util.unflatten_dict(folded, sep="/")
    return nested
