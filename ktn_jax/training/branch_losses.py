"""The losses of the branches of the people found, in every stage."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from ktn_jax.losses.densepose import DensePoseTargets, DensePoseWeights, densepose_losses
from ktn_jax.losses.masks_keypoints import (
    KeypointTargets,
    MaskTargets,
    keypoint_loss,
    mask_loss,
)
from ktn_jax.losses.terms import LossTerm
from ktn_jax.modeling.person_heads import upsample_scores
from ktn_jax.structures import BranchOutputs
from ktn_jax.training import targets
from ktn_jax.training.distributed import Batch
from ktn_jax.training.targets import People

Array = jax.Array
Terms = dict[str, LossTerm]


def branch_losses(
    stages: Sequence[BranchOutputs],
    weights: Sequence[float],
    people: Mapping[str, People],
    batch: Batch,
    loss: ConfigDict,
    *,
    keypoint_normaliser: float | None = None,
    mask_targets: MaskTargets | None = None,
    coarse_labels: Array | None = None,
) -> Terms:
    """Computes the weighted losses of all stages; every stage has the same targets.

    Args:
        stages: outputs of N = B * K ROIs, each task of its own ROIs or all of the same.
        weights: of each stage.
        people: those ROIs, by task.
        batch: the batch that they are of.
        loss: the `loss` part of a configuration.
        keypoint_normaliser: see `keypoint_loss`.
        mask_targets: see `forward.loss_terms`.
        coarse_labels: see `forward.loss_terms`.

    Returns:
        Terms by name: those of `densepose_losses`, "keypoint_head" and "mask_head" of the first
        stage, and "stage2/u" and so on of later ones.

    Raises:
        ValueError: the batch lacks masks that a loss needs.
    """
    first = stages[0]
    taught: DensePoseTargets | None = None
    shown: KeypointTargets | None = None
    if first.charts is not None:
        mask_size = first.charts.coarse_segm.shape[1] if loss.coarse_segm_from_masks else None
        taught = targets.densepose_targets(people["densepose"], batch, mask_size, loss.dense_weight)
        if coarse_labels is not None:
            taught = dataclasses.replace(taught, mask_labels=coarse_labels)
    if first.keypoint_scores is not None:
        shown = targets.keypoint_targets(people["keypoints"], batch)
    if first.mask_logits is not None and mask_targets is None:
        size = first.mask_logits.shape[1]
        mask_targets = targets.mask_targets(people["masks"], batch, size, loss.dense_weight)
    losses: Terms = {}
    for number, (stage, weight) in enumerate(zip(stages, weights, strict=True), start=1):
        found: Terms = {}
        if stage.charts is not None and taught is not None:
            found |= densepose_losses(
                stage.charts,
                taught,
                densepose_weights(loss),
                num_images=batch["image"].shape[0],
                keypoint_normaliser=keypoint_normaliser,
            )
        if stage.keypoint_scores is not None and shown is not None:
            heatmaps = upsample_scores(stage.keypoint_scores)
            term = keypoint_loss(heatmaps, shown, keypoint_normaliser)
            found["keypoint_head"] = term.scaled(loss.keypoint_head_weight)
        if stage.mask_logits is not None and mask_targets is not None:
            term = mask_loss(stage.mask_logits, mask_targets)
            found["mask_head"] = term.scaled(loss.mask_weight)
        prefix = "" if number == 1 else f"stage{number}/"
        losses |= {prefix + name: term.scaled(weight) for name, term in found.items()}
    return losses


def densepose_weights(loss: ConfigDict) -> DensePoseWeights:
    """The weights of the DensePose losses in the `loss` part of a configuration."""
    return DensePoseWeights(
        point=loss.point_weight,
        point_beta=loss.point_smooth_l1_beta,
        fine_segm=loss.fine_segm_weight,
        coarse_segm=loss.coarse_segm_weight,
        body_mask=loss.body_mask_weight,
        keypoint=loss.keypoint_weight,
        images_per_device=loss.images_per_device,
        min_variance=loss.min_uv_variance,
        coarse_segm_from_masks=loss.coarse_segm_from_masks,
    )
