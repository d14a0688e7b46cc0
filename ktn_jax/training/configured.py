"""The training run that a configuration describes."""

import os
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ktn_jax.checkpoints import weights
from ktn_jax.modeling.networks import Network
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.modeling.teacher import Teacher
from ktn_jax.runtime import progress
from ktn_jax.runtime.program_store import ProgramStore
from ktn_jax.training import distributed, embeddings, initialisation, objective, teacher
from ktn_jax.training.loss_numbers import loss_numbers
from ktn_jax.training.step import LossFn
from ktn_jax.training.trainer import Trainer, Variables


def make_trainer(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    from_step: int | None = None,
    verify: bool = True,
) -> Trainer:
    """Makes the trainer of a configuration's detector or teacher.

    `training.weights` initialises it; see `Trainer` for the arguments.
    """
    mesh = distributed.make_mesh(config.training.num_devices)
    model = initialisation.build_trained_model(config, distributed.platform_of(mesh))

    def initialise() -> Variables:
        initial = initialisation.make_initial(config, config.training.weights, verify=verify)
        if jax.process_index() == 0:
            progress.say("\n".join(initial.report()))
        return initial.variables

    loss_fn = make_loss_fn(model, config, mesh)
    abstract = weights.abstract_variables(model)
    return Trainer(
        config,
        workdir,
        loss_fn,
        abstract,
        initialise,
        tables=load_tables(config),
        from_step=from_step,
        verify=verify,
        programs=ProgramStore(),
    )


def load_tables(config: ConfigDict) -> tuple[Any, ...]:
    """What the losses of a configuration read beside the batch, see `Trainer`.

    Raises:
        ValueError: an unknown mesh, one of another number of vertices, or a damaged file.
        ktn_jax.runtime.downloads.DownloadError: a released one could not be fetched.
    """
    numbers = loss_numbers(config.loss)
    return (
        (numbers, embeddings.load_geodesics(config)) if has_embeddings(config.model) else (numbers,)
    )


def make_loss_fn(model: Network, config: ConfigDict, mesh: Mesh) -> LossFn:
    """Makes what the training of a configuration's detector or teacher minimises.

    Args:
        model: from `initialisation.build_trained_model`.
        config: the whole configuration.
        mesh: the devices that share a batch.
    """
    if isinstance(model, Teacher):
        return teacher.make_loss_fn(model, config.loss, mesh, config.training)
    return objective.make_loss_fn(model, config.loss, mesh, config.training)
