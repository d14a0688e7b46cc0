"""The step of a configuration for devices that need not be there: nothing has values."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A jitted step and what it takes."""

    take: Any  # the jitted step
    arguments: tuple[Any, ...]  # shapes and placements of a state, a batch and tables
    trained_bytes: int  # of the parameters that train


def abstract_step(config: Any, mesh: Any, size_hw: tuple[int, int]) -> AbstractStep:
    """Prepares the step that `ktn train` takes.

    Args:
        config: a whole configuration; `training.num_devices` is not read.
        mesh: the devices, present or not.
        size_hw: of the images.

    Returns:
        The step: `take.lower(*arguments).compile()` compiles it.
    """
    import jax

    from ktn_jax.checkpoints import weights
    from ktn_jax.data_pipelines.loading.configured import training_batch_spec
    from ktn_jax.training import configured, distributed, initialisation, optimizer, step

    model = initialisation.build_trained_model(config, distributed.platform_of(mesh))
    abstract = weights.abstract_variables(model)
    loss_fn = configured.make_loss_fn(model, config, mesh)
    prepared = step.prepare_step(config, loss_fn, abstract, mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        prepared.shapes,
        prepared.shardings,
    )
    over = distributed.over_batch(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=over)
        for name, rows in training_batch_spec(config, size_hw).items()
    }
    params, batch_stats = abstract["params"], abstract.get("batch_stats", {})
    labels = optimizer.label_parameters(params, batch_stats, optimizer.frozen_patterns(config))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
    trained = [
        leaf.size * leaf.dtype.itemsize for leaf, label in pairs if label == optimizer.TRAINED
    ]
    return AbstractStep(prepared.take, (state, batch, _tables(config, mesh)), sum(trained))


def _tables(config: Any, mesh: Any) -> tuple[Any, ...]:
    """Shapes of the distances along the meshes of an embedding model whose losses read them."""
    import jax
    import jax.numpy as jnp

    from ktn_jax.training import distributed, embeddings

    meshes = config.model.meshes
    if not embeddings.needs_geodesics(config.loss):
        return ()
    same = distributed.replicated(mesh)
    sizes = zip(meshes.names, meshes.num_vertices, strict=True)
    return (
        {
            name: jax.ShapeDtypeStruct((number, number), jnp.float16, sharding=same)
            for name, number in sizes
        },
    )
