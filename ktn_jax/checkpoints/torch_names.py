"""PyTorch state dicts <-> Flax variables: one table, `checkpoints.torch_rules`, run both ways.

Names the table does not know are errors, in either direction, so no parameter is dropped or left at
its initial value unnoticed.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ktn_jax.checkpoints.torch_rules import PREDICTORS, Rule, rules

Variables = dict[str, Any]
State = dict[str, np.ndarray]

# Checkpoints hold these parameters twice, as the same module under two names.
_ALIAS = ("roi_heads.densepose_head.ScaleConvs.", "roi_heads.densepose_head.ScaleConv.")


def _torch_table(names: list[str]) -> tuple[Rule, ...]:
    def has(prefix: str) -> bool:
        return any(name.startswith(f"roi_heads.{prefix}") for name in names)

    predictor = "auxiliary" if has("densepose_predictor.body_kpt") else ""
    if has("densepose_predictor.kpt_surface_transformer"):
        predictor = "first"
    if has("densepose_predictor.embed_lowres.") or has("embedder."):
        predictor = "embedding"
    return rules(predictor, has("mid_decoder."))


def _translate(
    names: list[str], table: tuple[Rule, ...], is_to_flax: bool
) -> tuple[dict[str, tuple[str, Rule]], list[str]]:
    """Finds the counterpart and the rule of every name, and the names without any."""
    found, unknown = {}, []
    for name in names:
        for rule in table:
            regex = rule.torch_regex if is_to_flax else rule.flax_regex
            match = regex.fullmatch(name)
            if match:
                target = (rule.flax if is_to_flax else rule.torch).format(**match.groupdict())
                found[name] = (target, rule)
                break
        else:
            unknown.append(name)
    return found, unknown


def to_flax(state: Mapping[str, np.ndarray]) -> Variables:
    """Converts a state dict of the original to Flax variables.

    Args:
        state: torch names to arrays in torch's layouts.

    Returns:
        {"params": ..., "batch_stats": ..., "constants": ...}, nested.

    Raises:
        ValueError: names that the table does not know (all are listed), or two names of one shared
            parameter that differ.
    """
    state = _without_aliases(state)
    names = list(state)
    found, unknown = _translate(names, _torch_table(names), is_to_flax=True)
    if unknown:
        raise ValueError(
            f"{len(unknown)} unexpected keys in the state dict: {', '.join(sorted(unknown))}"
        )
    channels = _neck_channels(state)
    flat = {}
    for name, (path, rule) in found.items():
        flat[path] = _layout_to_flax(rule.layout, np.asarray(state[name]), channels, name)
    variables: Variables = traverse_util.unflatten_dict(flat, sep="/")
    return variables


def unknown_names(names: Iterable[str]) -> list[str]:
    """Lists names that no model here has: other heads, counters of an optimizer."""
    table = {
        rule
        for predictor in PREDICTORS
        for is_multi_instance in (False, True)
        for rule in rules(predictor, is_multi_instance)
    }

    def is_known(name: str) -> bool:
        return name.startswith(_ALIAS[1]) or any(rule.torch_regex.fullmatch(name) for rule in table)

    return [name for name in names if not is_known(name)]


def torch_names(paths: list[str]) -> dict[str, str]:
    """Finds the original's names of Flax paths; paths without one are left out."""
    found, _ = _translate(paths, _flax_table(paths), is_to_flax=False)
    return {path: name for path, (name, _) in found.items()}


def _flax_table(paths: list[str]) -> tuple[Rule, ...]:
    def has(prefix: str) -> bool:
        return any(path.startswith(f"params/{prefix}") for path in paths)

    predictor = "auxiliary" if has("predictor/auxiliary") else ""
    if has("predictor/fine") and has("predictor/transfer/"):
        predictor = "first"
    if has("embedding_predictor/") or has("embedder/"):
        predictor = "embedding"
    return rules(predictor, has("decoder/adapt_"))


def to_torch(variables: Mapping[str, Any]) -> State:
    """Converts Flax variables to a state dict of the original: the inverse of `to_flax`.

    Raises:
        ValueError: paths that the table does not know; all are listed.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    found, unknown = _translate(list(flat), _flax_table(list(flat)), is_to_flax=False)
    if unknown:
        raise ValueError(f"{len(unknown)} unexpected parameters: {', '.join(sorted(unknown))}")
    channels = None
    for path in ("params/neck/output2/conv/kernel", "params/neck/fpn0_conv/kernel"):
        channels = flat[path].shape[-1] if path in flat else channels
    state = {}
    for path, (name, rule) in found.items():
        array = _layout_to_torch(rule.layout, np.asarray(flat[path]), channels, path)
        state[name] = array.astype(np.int64) if rule.torch.endswith("tracked") else array
        if name.startswith(_ALIAS[0]):
            state[_ALIAS[1] + name.removeprefix(_ALIAS[0])] = state[name]
    return state


def _without_aliases(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keeps one of the two names of each shared parameter."""
    kept = {}
    for name, array in state.items():
        if name.startswith(_ALIAS[1]):
            primary = _ALIAS[0] + name.removeprefix(_ALIAS[1])
            if primary in state and not np.array_equal(state[primary], array):
                raise ValueError(f"{primary} and {name} are one parameter, but their values differ")
            name = primary
        kept[name] = array
    return kept


def _neck_channels(state: Mapping[str, np.ndarray]) -> int | None:
    """Width of the pyramid, which tells how pooled features were flattened."""
    for name in ("backbone.fpn_output2.weight", "backbone.fpn_conv.0.weight"):
        if name in state:
            return int(state[name].shape[0])
    return None


def _pooled_shape(size: int, channels: int | None, name: str) -> tuple[int, int]:
    """Channels and side of the pooled regions that `size` features were flattened from."""
    side = math.isqrt(size // channels) if channels else 0
    if not channels or side * side * channels != size:
        raise ValueError(
            f"{name} reads {size} features, which are no square of cells of the pyramid's "
            f"{channels} channels"
        )
    return channels, side


def _layout_to_flax(layout: str, array: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    if layout == "same":
        return array.astype(np.int32) if name.endswith("tracked") else array
    if layout == "flatten":  # torch flattens C, H, W; Flax H, W, C
        depth, side = _pooled_shape(array.shape[1], channels, name)
        array = array.reshape(-1, depth, side, side).transpose(2, 3, 1, 0)
        return array.reshape(-1, array.shape[-1])
    return array.transpose(_TO_FLAX[layout])


def _layout_to_torch(layout: str, array: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    if layout == "same":
        return array
    if layout == "flatten":
        depth, side = _pooled_shape(array.shape[0], channels, name)
        array = array.reshape(side, side, depth, -1).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(array.reshape(array.shape[0], -1))
    return np.ascontiguousarray(array.transpose(np.argsort(_TO_FLAX[layout])))


_TO_FLAX = {
    "conv": (2, 3, 1, 0),  # O I H W -> H W I O
    "deconv": (2, 3, 0, 1),  # I O H W -> H W I O
    "dense": (1, 0),  # O I -> I O
}
