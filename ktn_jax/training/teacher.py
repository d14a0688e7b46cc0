"""The losses of the teacher: those of the charts, over crops with one person each."""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ktn_jax.losses.densepose import densepose_losses
from ktn_jax.losses.terms import values_of
from ktn_jax.modeling.teacher import Teacher, crop_boxes
from ktn_jax.training import targets
from ktn_jax.training.branch_losses import Terms, densepose_weights
from ktn_jax.training.distributed import Batch
from ktn_jax.training.forward import Losses, Variables
from ktn_jax.training.loss_numbers import Numbers, with_numbers
from ktn_jax.training.objective import of_part, over_devices
from ktn_jax.training.step import LossFn

Array = jax.Array


def make_loss_fn(model: Teacher, loss: ConfigDict, mesh: Mesh, training: ConfigDict) -> LossFn:
    """Makes the function that a training step differentiates.

    Args:
        model: the teacher.
        loss: the `loss` part of a configuration.
        mesh: the devices that share a batch.
        training: see `objective.make_loss_fn`.

    Returns:
        loss_fn(params, batch_stats, batch, key, numbers=None) -> (total, (losses by name, new
        batch_stats)), the losses of `densepose_losses`. `batch` has one person in a crop; nothing
        is drawn, so `key` is not read; `numbers` are those of `loss_numbers`, None for those of
        `loss`.
    """

    on_mesh = model.clone(compute=of_part(model.compute))

    def part_of_crops(
        params: Variables,
        batch_stats: Variables,
        numbers: Numbers | None,
        batch: Batch,
        key: Array,
    ) -> tuple[Terms, Variables]:
        del key
        weighted = with_numbers(loss, numbers)
        crops = batch["image"]
        # The crop is the ROI, and its first person the one that it was matched to.
        has_labels = targets.usable_people(batch)[:, :1] & batch["has_densepose"][:, :1]
        people = targets.People(
            boxes=crop_boxes(crops)[:, None],
            gt_index=jnp.zeros(has_labels.shape, jnp.int32),
            weight=has_labels.astype(jnp.float32),
        )
        taught = targets.densepose_targets(people, batch, dense_weight=weighted.dense_weight)
        outputs, updated = on_mesh.apply(
            {"params": params, "batch_stats": batch_stats},
            crops,
            taught.part_mask,
            taught.gt_boxes,
            train=True,
            method=Teacher.charts,
            mutable=["batch_stats"],
        )
        terms = densepose_losses(
            outputs, taught, densepose_weights(weighted), num_images=crops.shape[0]
        )
        return terms, updated.get("batch_stats", batch_stats)

    on_all_devices = over_devices(part_of_crops, mesh, training)

    def loss_fn(
        params: Variables,
        batch_stats: Variables,
        batch: Batch,
        key: Array,
        numbers: Numbers | None = None,
    ) -> tuple[Array, tuple[Losses, Variables]]:
        terms, stats = on_all_devices(params, batch_stats, numbers, batch, key)
        losses = values_of(terms)
        return functools.reduce(operator.add, losses.values()), (losses, stats)

    return loss_fn
