"""The step of a configuration for devices that need not be there: nothing has values."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ktn_jax.checkpoints import weights
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.training import configured, distributed, embeddings, initialisation
from ktn_jax.training.loss_numbers import loss_numbers
from ktn_jax.training.state import TrainState
from ktn_jax.training.step import prepare_step


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A jitted step and what it takes."""

    take: jax.stages.Wrapped  # see `step.make_train_step`
    state: TrainState  # of shapes and placements
    batch: dict[str, jax.ShapeDtypeStruct]
    constants: tuple[Any, ...]  # of the same: tables and numbers
    trained_bytes: int  # of the parameters that train

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of `take`: `take.lower(*arguments).compile()` compiles the step."""
        return (self.state, self.batch, *self.constants)


def abstract_step(config: ConfigDict, mesh: Mesh, batch_spec: Mapping[str, Any]) -> AbstractStep:
    """Prepares the step that a training takes.

    Args:
        config: a whole configuration; `training.num_devices` is not read.
        mesh: the devices, present or not.
        batch_spec: shapes and types of the global batch, see `examples.batch_spec` of the data
            pipeline.

    Raises:
        ValueError: a value of the configuration that does not fit.
    """
    model = initialisation.build_trained_model(config, distributed.platform_of(mesh))
    loss_fn = configured.make_loss_fn(model, config, mesh)
    prepared = prepare_step(config, loss_fn, weights.abstract_variables(model), mesh)
    over, same = distributed.over_batch(mesh), distributed.replicated(mesh)

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    constants = (_abstract_tables(config), prepared.numbers)
    return AbstractStep(
        cast(jax.stages.Wrapped, prepared.take),  # nothing stores its text
        jax.tree.map(placed, prepared.shapes, prepared.shardings),
        {name: placed(rows, over) for name, rows in batch_spec.items()},
        jax.tree.map(lambda leaf: placed(leaf, same), constants),
        prepared.trained_bytes,
    )


def _abstract_tables(config: ConfigDict) -> tuple[Any, ...]:
    """Shapes of `configured.load_tables`, without reading distances along meshes."""
    numbers = loss_numbers(config.loss)
    if not has_embeddings(config.model):
        return (numbers,)
    if not embeddings.needs_geodesics(config.loss):
        return numbers, None
    meshes = config.model.meshes
    sizes = zip(meshes.names, meshes.num_vertices, strict=True)
    return numbers, {
        name: jax.ShapeDtypeStruct((number, number), jnp.float16) for name, number in sizes
    }
