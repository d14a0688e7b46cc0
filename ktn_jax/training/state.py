"""Everything that a training step changes, which is what checkpoints hold."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Tree = Mapping[str, Any]


@flax.struct.dataclass
class TrainState:
    """State between two steps.

    The random numbers of a step and its batch follow from `rng` and `step`, so a run can be resumed
    from a state alone.
    """

    step: Array  # int32 [], steps taken, and the position in the data
    params: Tree
    batch_stats: Tree
    opt_state: Any
    ema_params: Tree  # running average of params; {} where none is kept
    rng: Array  # uint32 [2], key data; constant
    # False once a loss or a gradient was not finite: from then on the rest never changes.
    is_finite: Array  # bool []


def create_state(
    variables: Tree, optimizer: optax.GradientTransformation, seed: int, has_ema: bool
) -> TrainState:
    """Makes the state before the first step.

    Args:
        variables: {"params", "batch_stats"} of the model.
        optimizer: from `make_optimizer`.
        seed: of the sampling of anchors and proposals.
        has_ema: whether an average of the parameters is kept.

    Returns:
        The state. Under `jax.eval_shape`, its shapes.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        # A copy: the step donates the memory of both.
        ema_params=jax.tree.map(jnp.copy, params) if has_ema else {},
        rng=jax.random.key_data(jax.random.key(seed)),
        is_finite=jnp.ones((), jnp.bool_),
    )
