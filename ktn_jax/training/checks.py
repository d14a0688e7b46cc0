"""Checks of a configuration before anything is built from it: a slip costs seconds, not hours."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ktn_jax.runtime.configuration import ConfigurationError

_POSITIVE = (
    "total_steps",
    "batch_size",
    "checkpoint_every",
    "training.log_every",
    "training.keep_last",
    "optimizer.learning_rate",
)
_FRACTIONS = (
    "optimizer.momentum",
    "optimizer.second_momentum",
    "optimizer.ema_decay",
    "optimizer.decay_factor",
)
_NOT_NEGATIVE = (
    "optimizer.weight_decay",
    "optimizer.weight_decay_bias",
    "optimizer.weight_decay_norm",
    "optimizer.warmup_steps",
    "training.num_devices",
)


def check_config(config: ConfigDict, known: ConfigDict) -> None:
    """Checks the keys of a configuration, and the values that training reads.

    Args:
        config: a whole configuration.
        known: one that has every key there is, such as `configs.base.get_config()`.

    Raises:
        ConfigurationError: keys that nobody reads, or that are missing (all are listed), or values
            out of their range.
    """
    ours, theirs = dict(_leaves(config)), dict(_leaves(known))
    unknown, missing = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if unknown or missing:
        problems = [f"unknown key {key}" for key in unknown]
        problems += [f"missing key {key}" for key in missing]
        raise ConfigurationError(f"the configuration {config.name!r}: {', '.join(problems)}")
    for key in _POSITIVE:
        if not ours[key] > 0:
            raise ConfigurationError(f"{key} must be above 0, got {ours[key]}")
    for key in _FRACTIONS:
        if not 0 <= ours[key] < 1:
            raise ConfigurationError(f"{key} must be in [0, 1), got {ours[key]}")
    for key in _NOT_NEGATIVE:
        if ours[key] < 0:
            raise ConfigurationError(f"{key} must be 0 or more, got {ours[key]}")
    if config.model.dtype not in ("float32", "bfloat16"):
        raise ConfigurationError(
            f"model.dtype must be float32 or bfloat16, got {config.model.dtype!r}"
        )


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
