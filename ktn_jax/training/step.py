"""The compiled training step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ktn_jax.runtime import configuration, program_store
from ktn_jax.runtime.program_store import ProgramStore, StoredProgram
from ktn_jax.training.distributed import Batch, over_batch, replicated, state_shardings
from ktn_jax.training.optimizer import (
    TRAINED,
    Numbers,
    frozen_patterns,
    label_parameters,
    make_optimizer,
    make_schedule,
    optimizer_numbers,
)
from ktn_jax.training.state import TrainState, create_state

Array = jax.Array
Variables = Mapping[str, Any]
Jit = Callable[..., jax.stages.Wrapped | StoredProgram]
# loss_fn(params, batch_stats, batch, key, *tables) -> (total, (losses by name, new batch_stats))
LossFn = Callable[..., tuple[Array, tuple[Mapping[str, Array], Mapping[str, Any]]]]


@flax.struct.dataclass
class StepMetrics:
    """The metrics of a step: scalars, replicated."""

    total: Array
    losses: Mapping[str, Array]
    gradient_norm: Array  # of all parameters that train, before clipping
    learning_rate: Array
    is_finite: Array  # bool: loss, gradients and statistics; if not, nothing was changed


@dataclasses.dataclass(frozen=True)
class PreparedStep:
    """The step of a run, before anything is computed."""

    create: Callable[[Variables], TrainState]  # the state that variables begin with
    shapes: TrainState  # of a state
    shardings: TrainState  # of a state
    take: jax.stages.Wrapped | StoredProgram  # see `make_train_step`
    numbers: Numbers  # arguments of `take`
    trained_bytes: int  # of the parameters that train


def prepare_step(
    config: ConfigDict,
    loss_fn: LossFn,
    abstract: Variables,
    mesh: Mesh,
    programs: ProgramStore | None = None,
) -> PreparedStep:
    """Prepares the step of a configuration; nothing is compiled.

    Args:
        config: a whole configuration, of which `total_steps`, `batch_size`, `seed`, `optimizer` and
            `training` are read here.
        loss_fn: what is minimised, over the global batch.
        abstract: shapes of the {"params", "batch_stats"} that train.
        mesh: the devices.
        programs: where the traced step is kept for other processes. Then `loss_fn` depends on the
            configuration alone. The step of several devices is not kept.

    Raises:
        ValueError: a value of the configuration that does not fit.
    """
    params, batch_stats = (abstract.get(name, {}) for name in ("params", "batch_stats"))
    optimizer = make_optimizer(config, params, batch_stats)

    def create(variables: Variables) -> TrainState:
        return create_state(variables, optimizer, config.seed, bool(config.optimizer.ema_decay))

    shapes = jax.eval_shape(create, {"params": params, "batch_stats": batch_stats})
    shardings = state_shardings(shapes, mesh, config.training.shard)
    labels = label_parameters(params, batch_stats, frozen_patterns(config))

    def rule_of(numbers: Numbers, is_kept: Array) -> optax.GradientTransformation:
        return make_optimizer(config, params, batch_stats, numbers, is_kept)

    jit: Jit = jax.jit
    if programs is not None and mesh.size == 1:
        program_store.register(StepMetrics, *program_store.classes_in(shapes))
        settings = {"program": "step", "config": configuration.as_json(config)}
        jit = functools.partial(programs.jit, settings=settings)
    schedule_of = functools.partial(make_schedule, config)
    take = make_train_step(loss_fn, rule_of, schedule_of, labels, mesh, shardings, jit)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
    trained = [leaf.size * leaf.dtype.itemsize for leaf, label in pairs if label == TRAINED]
    return PreparedStep(create, shapes, shardings, take, optimizer_numbers(config), sum(trained))


def make_train_step(
    loss_fn: LossFn,
    rule_of: Callable[[Numbers, Array], optax.GradientTransformation],
    schedule_of: Callable[[Numbers], optax.Schedule],
    labels: Any,
    mesh: Mesh,
    shardings: Any,
    jit: Jit = jax.jit,
) -> jax.stages.Wrapped | StoredProgram:
    """Makes the jitted step of a run, compiled for each shape of batches.

    Args:
        loss_fn: what is minimised, over the global batch.
        rule_of: makes the optimizer of some numbers, see `make_optimizer`, whose state stays as it
            is where the second argument is False.
        schedule_of: makes its learning rate, to report it.
        labels: which parameters train; from `label_parameters`.
        mesh: the devices.
        shardings: of the state; from `state_shardings`.
        jit: `jax.jit`, or `ProgramStore.jit` of some settings.

    Returns:
        step(state, batch, tables, numbers): the next state and the metrics. The old state's memory
        is reused. `tables` is a tuple of what the loss reads beside the batch and no step changes,
        `numbers` those of `optimizer_numbers`: arguments, since gigabytes must not be constants of
        the program, and other numbers must not need another program.
    """

    def train_step(
        state: TrainState, batch: Batch, tables: tuple[Any, ...], numbers: Numbers
    ) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        (total, (losses, batch_stats)), gradients = differentiate(
            state.params, state.batch_stats, batch, key, *tables
        )
        # Where parameters are split, each device updates its own part.
        gradients = jax.lax.with_sharding_constraint(gradients, shardings.params)
        gradients = _only_trained(gradients, labels)
        is_finite = all_finite((total, losses, gradients, batch_stats))
        is_kept = is_finite & state.is_finite
        with jax.named_scope("optimizer"):
            rule = rule_of(numbers, is_kept)
            updates, opt_state = rule.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = _average(state.ema_params, params, state.step, numbers["ema_decay"])
        before = (state.step, state.params, state.batch_stats, state.ema_params)
        proposed = (state.step + 1, params, batch_stats, ema_params)
        step, params, batch_stats, ema_params = jax.tree.map(
            lambda new, old: jnp.where(is_kept, new, old.astype(new.dtype)), proposed, before
        )
        metrics = StepMetrics(
            total=total,
            losses=dict(losses),
            gradient_norm=optax.tree.norm(gradients),
            learning_rate=schedule_of(numbers)(state.step),
            is_finite=is_finite,
        )
        after = TrainState(
            step, params, batch_stats, opt_state, ema_params, rng=state.rng, is_finite=is_kept
        )
        return after, metrics

    return jit(
        train_step,
        in_shardings=(shardings, over_batch(mesh), replicated(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def all_finite(tree: Any) -> Array:
    """Whether every number of every array is finite, bool []."""
    # Zero times a number is not 0 where the number is not finite. XLA sums such products as they
    # are computed; whether each number is finite it would write down, then look at them all.
    sums = [
        jnp.sum(leaf * 0)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.isfinite(jnp.stack(sums)).all()


def _only_trained(gradients: Any, labels: Any) -> Any:
    """Zeroes the gradients of frozen parameters: neither clipping nor reports count them."""
    return jax.tree.map(
        lambda gradient, label: gradient if label == TRAINED else jnp.zeros_like(gradient),
        gradients,
        labels,
    )


def _average(average: Any, params: Any, step: Array, decay: Array | np.ndarray) -> Any:
    """Exponential moving average; early steps decay faster, so that the start is forgotten."""
    if not average:  # none is kept
        return average
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)
