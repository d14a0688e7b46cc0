"""SGD as detectron2 runs it, or Adam: schedule, clipping, decay by kind of parameter, frozen parts.

Kinds follow from the tree: a module with a `scale` is a norm, and a norm whose statistics have no
`count` of batches is frozen.

A compiled step takes rates, decays and so on as arguments (`optimizer_numbers`), so that changing
one compiles nothing. What decides which operations there are stays in the program: names, whether
there is Nesterov's momentum, an average or a decay at all, which kinds of parameters share a decay,
the number of decay steps, `second_momentum`, `full_rate_inputs`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from ktn_jax.modeling.person_branches import has_embeddings

Array = jax.Array
Tree = Mapping[str, Any]
Numbers = Mapping[str, Array | np.ndarray]  # see `optimizer_numbers`

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("multi_step", "cosine")
CLIPS = ("none", "value", "norm", "global_norm")

TRAINED, FROZEN = "trained", "frozen"

_NUMBERS = (  # of `optimizer`, arguments as they are
    "clip_value",
    "decay_factor",
    "ema_decay",
    "momentum",
    "warmup_factor",
    "weight_decay",
    "weight_decay_bias",
    "weight_decay_norm",
)


def learning_rate(config: ConfigDict) -> float:
    """The highest learning rate of a whole configuration, before any schedule.

    With `optimizer.reference_batch` it grows in proportion to the batch (Goyal et al., 2017): an
    epoch of fewer, larger steps then moves the weights about as far.
    """
    settings = config.optimizer
    factor = config.batch_size / settings.reference_batch if settings.reference_batch else 1
    return float(settings.learning_rate * factor)


def optimizer_numbers(config: ConfigDict) -> dict[str, np.ndarray]:
    """The numbers of an optimizer and its schedule that are arguments of a step.

    Args:
        config: a whole configuration.

    Returns:
        Arrays by name, all [] but "decay_steps" and "rate_factors": keys of `optimizer`, of which
        "learning_rate" is that of `learning_rate`, and "total_steps".
    """
    settings = config.optimizer
    steps = {
        "total_steps": max(config.total_steps, 1),
        "warmup_steps": min(settings.warmup_steps, config.total_steps),
        "decay_steps": tuple(settings.decay_steps),
    }
    rates = {
        "learning_rate": learning_rate(config),
        "rate_factors": tuple(float(factor) for _, factor in settings.rate_factors),
    }
    rates |= {name: settings[name] for name in _NUMBERS}
    return {name: np.asarray(value, np.int32) for name, value in steps.items()} | {
        name: np.asarray(value, np.float32) for name, value in rates.items()
    }


def make_schedule(config: ConfigDict, numbers: Numbers | None = None) -> optax.Schedule:
    """Makes the learning rate of each step: a linear warm-up, then steps down or a cosine.

    The warm-up is detectron2's: a ramp from `warmup_factor` of the schedule's first value to the
    schedule's value at the end of the warm-up, which is lower than the first under a cosine or
    beyond a decay step. A warm-up that is longer than the training is cut to it.

    Args:
        config: a whole configuration; the cosine reaches 0 at its `total_steps`.
        numbers: of `optimizer_numbers`, traced ones too; None for those of the configuration.

    Returns:
        A function of the step, counted from 0.

    Raises:
        ValueError: an unknown schedule, or decay steps out of order.
    """
    settings = config.optimizer
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule {settings.schedule!r}: one of {list(SCHEDULES)}")
    boundaries = tuple(settings.decay_steps)
    if list(boundaries) != sorted(set(boundaries)) or any(step < 0 for step in boundaries):
        raise ValueError(f"optimizer.decay_steps must ascend, got {boundaries}")

    values = optimizer_numbers(config) if numbers is None else numbers

    def decay(step: Array) -> Array:
        if settings.schedule == "cosine":
            total_steps = jnp.asarray(values["total_steps"])
            return 0.5 * (1 + jnp.cos(jnp.pi * (jnp.minimum(step, total_steps) / total_steps)))
        is_over = step >= jnp.asarray(values["decay_steps"])
        return jnp.prod(jnp.where(is_over, values["decay_factor"], 1))

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step)
        warmup_steps = jnp.asarray(values["warmup_steps"])
        start = jnp.asarray(values["warmup_factor"]) * decay(jnp.zeros_like(step))
        end = decay(warmup_steps)
        ramp = start + (end - start) * (step / jnp.maximum(warmup_steps, 1))
        rate = jnp.where(step < warmup_steps, ramp, decay(step))
        return jnp.asarray(values["learning_rate"]) * rate

    return schedule


def frozen_patterns(config: ConfigDict) -> tuple[str, ...]:
    """Lists the patterns of parameter paths that a configuration keeps from training.

    Args:
        config: a whole configuration.

    Returns:
        Regular expressions that match from the start of a path: `optimizer.frozen`, the stages of a
        ResNet below `model.backbone.freeze_at`, and embeddings of vertices that do not train.
    """
    patterns = list(config.optimizer.frozen)
    backbone = config.model.backbone
    if backbone.name == "resnet" and backbone.freeze_at >= 1:
        patterns.append("backbone/stem_")
        patterns += [f"backbone/res{stage}_" for stage in range(2, backbone.freeze_at + 1)]
    if has_embeddings(config.model):
        patterns += _frozen_embeddings(config.model.meshes)
    return tuple(patterns)


def _frozen_embeddings(meshes: ConfigDict) -> list[str]:
    rows = zip(
        meshes.names, meshes.num_features, meshes.trains_features, meshes.trains, strict=True
    )
    patterns = []
    for name, num_features, trains_features, trains in rows:
        if not trains:
            patterns.append(f"embedder/{re.escape(name)}/")
        elif num_features and not trains_features:
            patterns.append(f"embedder/{re.escape(name)}/features")
    return patterns


def label_parameters(params: Tree, batch_stats: Tree, patterns: Sequence[str]) -> Tree:
    """Labels each parameter as trained or frozen.

    Args:
        params: of a model, or their shapes.
        batch_stats: of the same model.
        patterns: see `frozen_patterns`.

    Returns:
        A tree like `params` of TRAINED and FROZEN.

    Raises:
        ValueError: a pattern that matches no parameter, or no parameter left to train.
    """
    flat, stats = _flatten(params), _flatten(batch_stats)
    compiled = _compile(patterns, flat, "optimizer.frozen")

    def is_frozen(path: str) -> bool:
        module = path.rpartition("/")[0]
        has_fixed_statistics = f"{module}/mean" in stats and f"{module}/count" not in stats
        return has_fixed_statistics or any(pattern.match(path) for pattern in compiled)

    labels = {path: FROZEN if is_frozen(path) else TRAINED for path in flat}
    if FROZEN in labels.values() and TRAINED not in labels.values():
        raise ValueError(f"optimizer.frozen {list(patterns)} leaves nothing to train")
    nested: Tree = traverse_util.unflatten_dict(labels, sep="/")
    return nested


def _compile(patterns: Sequence[str], paths: Collection[str], key: str) -> list[re.Pattern[str]]:
    """Compiles expressions of `key`, each of which must match the start of a path."""
    compiled = [re.compile(pattern) for pattern in patterns]
    unused = [p.pattern for p in compiled if not any(p.match(path) for path in paths)]
    if unused:
        raise ValueError(f"{key}: {unused} match no parameter; paths look like {min(paths)!r}")
    return compiled


def decay_keys(params: Tree, config: ConfigDict) -> Tree:
    """Chooses the weight decay of each parameter, by its key of `optimizer`.

    Args:
        params: of a model, or their shapes.
        config: the `optimizer` part of a configuration.

    Returns:
        A tree like `params` of keys: `weight_decay_norm` for scale and bias of norms, and
        `weight_decay` for the rest. A `weight_decay_bias` that is not negative is that of all
        biases, those of norms too, as in today's detectron2; the KTN code spared norms.
    """
    flat = _flatten(params)

    def key(path: str) -> str:
        module, _, name = path.rpartition("/")
        # Some modules hold several layers and prefix the names: `delta_bias`.
        is_bias = name == "bias" or name.endswith("_bias")
        if is_bias and config.weight_decay_bias >= 0:
            return "weight_decay_bias"
        return "weight_decay_norm" if f"{module}/scale" in flat else "weight_decay"

    keys: Tree = traverse_util.unflatten_dict({path: key(path) for path in flat}, sep="/")
    return keys


def make_optimizer(
    config: ConfigDict,
    params: Tree,
    batch_stats: Tree,
    numbers: Numbers | None = None,
    is_kept: Array | None = None,
) -> optax.GradientTransformation:
    """Makes the optimizer of a configuration.

    The order is the reference's: clip the gradient, add the decay, accumulate the momentum, then
    scale by the learning rate of the step, so that a change of the rate acts at once.

    Args:
        config: a whole configuration.
        params: of the model, or their shapes.
        batch_stats: of the model.
        numbers: of `optimizer_numbers`, traced ones too; None for those of the configuration.
        is_kept: bool []: where False, an update leaves the state as it was. None for always True.

    Returns:
        A transformation that gives frozen parameters neither an update nor a state. What its state
        is made of depends on the configuration alone.

    Raises:
        ValueError: a value that is not known; the message names the field.
    """
    settings = config.optimizer
    if settings.name not in OPTIMIZERS:
        raise ValueError(f"optimizer.name {settings.name!r}: one of {list(OPTIMIZERS)}")
    values = optimizer_numbers(config) if numbers is None else numbers
    decay = _decay(settings, values, params)
    if settings.name == "adam":
        # Decoupled: as a part of the gradient, the adaptive moments would cancel the decay
        # (Loshchilov and Hutter, 2019).
        # Of float32 arguments 1 - 0.999 is off by 5e-5: the second one stays in the program.
        momenta = {"b1": values["momentum"], "b2": settings.second_momentum}
        rule = [
            _keep(optax.scale_by_adam(**momenta, nesterov=settings.nesterov), is_kept),
            _slow_wide_kernels(settings.full_rate_inputs),
            decay,
        ]
    else:
        rule = [decay, _momentum(values["momentum"], settings.nesterov, is_kept)]
    steps = [
        _clipping(settings, values["clip_value"]),
        *rule,
        _rate_factors(settings, values["rate_factors"], params),
        _keep(optax.scale_by_learning_rate(make_schedule(config, values)), is_kept),
    ]
    labels = label_parameters(params, batch_stats, frozen_patterns(config))
    return optax.partition({TRAINED: optax.chain(*steps), FROZEN: optax.set_to_zero()}, labels)


def _momentum(
    decay: Array | np.ndarray, nesterov: bool, is_kept: Array | None
) -> optax.GradientTransformation:
    """`optax.trace`, whose state stays as it is where `is_kept` is False."""
    rule = optax.trace(decay)
    if is_kept is None:
        return optax.trace(decay, nesterov=nesterov)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # In a loop of one turn or none, which replaces the old momentum before anything reads the
        # new one. XLA would compute it in two places, where it is stored and where parameters
        # change by it, each of which replaces what the other reads: it would copy all of both.
        def turn(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            return jnp.zeros_like(is_kept), rule.update(updates, carry[1], params)[1]

        _, state = jax.lax.while_loop(lambda carry: carry[0], turn, (is_kept, state))
        if nesterov:
            return jax.tree.map(lambda x, m: x + decay * m, updates, state.trace), state
        return state.trace, state

    return optax.GradientTransformation(rule.init, update)


def _keep(
    rule: optax.GradientTransformation, is_kept: Array | None
) -> optax.GradientTransformation:
    """The same rule, whose state stays as it is where `is_kept` is False."""
    if is_kept is None:
        return rule

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, new = rule.update(updates, state, params)
        return updates, jax.tree.map(lambda x, old: jnp.where(is_kept, x, old), new, state)

    return optax.GradientTransformation(rule.init, update)


def _rate_factors(
    config: ConfigDict, factors: Array | np.ndarray, params: Tree
) -> optax.GradientTransformation:
    """Scales the updates of the parameters that `optimizer.rate_factors` names."""
    if not config.rate_factors:
        return optax.identity()
    patterns = [pattern for pattern, _ in config.rate_factors]
    compiled = _compile(patterns, _flatten(params), "optimizer.rate_factors")

    def scaled(path: Any, update: Array) -> Array:
        name = "/".join(entry.key for entry in path)
        matching = (number for number, pattern in enumerate(compiled) if pattern.match(name))
        number = next(matching, None)
        return update if number is None else factors[number] * update

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def _slow_wide_kernels(full_rate_inputs: int) -> optax.GradientTransformation:
    """Scales down the updates of wide kernels, so that no unit's output changes too much in a step.

    Adam moves every weight by about the learning rate, so a unit's output changes in proportion to
    its number of inputs: a rate that suits a convolution is too high for a dense layer with
    thousands of inputs (Yang et al., 2021).
    """
    if not full_rate_inputs:
        return optax.identity()

    def slow(update: Array) -> Array:
        inputs = update.size // update.shape[-1] if update.ndim > 1 else 1
        return update * min(1.0, full_rate_inputs / inputs)

    return optax.stateless(lambda updates, params: jax.tree.map(slow, updates))


def _clipping(config: ConfigDict, limit: Array | np.ndarray) -> optax.GradientTransformation:
    if config.clip not in CLIPS:
        raise ValueError(f"optimizer.clip {config.clip!r}: one of {list(CLIPS)}")
    if config.clip == "none":
        return optax.identity()
    if config.clip_value <= 0:
        raise ValueError(f"optimizer.clip_value must be above 0, got {config.clip_value}")
    if config.clip == "global_norm":
        return optax.clip_by_global_norm(limit)
    if config.clip == "value":
        return optax.clip(limit)

    def clip(gradient: Array) -> Array:
        # detectron2's "norm" is that of each parameter by itself, with torch's epsilon; optax's
        # clip_by_block_rms bounds the mean of squares instead of their sum.
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * jnp.minimum(limit / (norm + 1e-6), 1)

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def _decay(config: ConfigDict, values: Numbers, params: Tree) -> optax.GradientTransformation:
    """Adds the decays; those of 0 are left out, and equal ones are one, as in the state."""
    keys = decay_keys(params, config)
    key_of = {float(config[key]): key for key in jax.tree.leaves(keys)}
    steps = []
    for value in sorted({*key_of} - {0.0}):
        mask = jax.tree.map(lambda key, value=value: float(config[key]) == value, keys)
        steps.append(_decay_where(values[key_of[value]], mask))
    return optax.chain(*steps) if steps else optax.identity()


def _decay_where(value: Array | np.ndarray, mask: Tree) -> optax.GradientTransformation:
    wanted = _flatten(mask)

    def only(params: Any) -> Any:
        # The updates lack the frozen parameters: look paths up instead of zipping trees.
        return jax.tree_util.tree_map_with_path(
            lambda path, _: wanted["/".join(entry.key for entry in path)], params
        )

    return optax.add_decayed_weights(value, only)


def _flatten(tree: Tree) -> dict[str, Any]:
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    return flat
