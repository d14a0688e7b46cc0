"""The losses of the teacher: those of the charts, over crops with one person each."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ktn_jax.losses.densepose import densepose_losses
from ktn_jax.modeling.teacher import Teacher, crop_boxes
from ktn_jax.training import targets
from ktn_jax.training.branch_losses import Losses, densepose_weights
from ktn_jax.training.distributed import Batch
from ktn_jax.training.step import LossFn

Array = jax.Array


def make_loss_fn(model: Teacher, loss: ConfigDict) -> LossFn:
    """Makes the function that a training step differentiates.

    Args:
        model: the teacher.
        loss: the `loss` part of a configuration.

    Returns:
        loss_fn(params, batch_stats, batch, key) -> (total, (losses by name, new batch_stats)), the
        losses of `densepose_losses`. `batch` has one person in a crop; nothing is drawn, so `key`
        is not read.
    """

    def loss_fn(
        params: Mapping[str, Any], batch_stats: Mapping[str, Any], batch: Batch, key: Array
    ) -> tuple[Array, tuple[Losses, Mapping[str, Any]]]:
        del key
        crops = batch["image"]
        # The crop is the ROI, and its first person the one that it was matched to.
        has_labels = targets.usable_people(batch)[:, :1] & batch["has_densepose"][:, :1]
        people = targets.People(
            boxes=crop_boxes(crops)[:, None],
            gt_index=jnp.zeros(has_labels.shape, jnp.int32),
            weight=has_labels.astype(jnp.float32),
        )
        taught = targets.densepose_targets(people, batch, dense_weight=loss.dense_weight)
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            crops,
            taught.part_mask,
            taught.gt_boxes,
            train=True,
            method=Teacher.charts,
            mutable=["batch_stats"],
        )
        losses = densepose_losses(
            outputs, taught, densepose_weights(loss), num_images=crops.shape[0]
        )
        total = functools.reduce(operator.add, losses.values())
        return total, (losses, updated.get("batch_stats", batch_stats))

    return loss_fn
