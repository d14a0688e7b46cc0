"""Losses of the chart maps: U, V, surface patches, coarse parts, body mask and keypoints.

N ROIs in a flat batch, P annotated points a person. Boxes are xyxy in pixels of the padded network
input.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from ktn_jax.body.parts import UNKNOWN_PART
from ktn_jax.losses.elementwise import (
    anisotropic_gaussian_nll,
    isotropic_gaussian_nll,
    smooth_l1,
    softmax_cross_entropy,
    weighted_sum,
)
from ktn_jax.losses.masks_keypoints import KeypointTargets, keypoint_loss
from ktn_jax.losses.terms import LossTerm, quotient, weighted_mean
from ktn_jax.ops.chart_reads import are_points_inside, read_points, resample_chart_nearest
from ktn_jax.structures import DensePoseOutputs

Array = jax.Array


@flax.struct.dataclass
class DensePoseTargets:
    """Training targets of the chart maps of N ROIs, each with the person that it was matched to.

    `weight` is 0 for padding, 1 for an ROI, and more than 1 for an ROI that also represents others
    for which the N rows had no space.
    """

    boxes: Array  # [N, 4] the ROIs, which the maps cover
    weight: Array  # [N]
    gt_boxes: Array  # [N, 4] the person's box, which the annotations cover
    has_densepose: Array  # bool [N]; where False, only keypoints and person masks train
    point_is_valid: Array  # bool [N, P]
    point_x: Array  # [N, P] in [0, 256), in 1/256 of the person's box
    point_y: Array  # [N, P]
    point_i: Array  # int32 [N, P] patch 0..24
    point_u: Array  # [N, P] in [0, 1]
    point_v: Array  # [N, P]
    part_mask: Array  # uint8 [N, 256, 256] coarse part 0..14 over the person's box, 15 unknown
    keypoints: Array  # [N, 17, 3] x, y in pixels, visibility
    mask_labels: Array | None = None  # bool [N, S, S]: cells of the ROI that are the person's
    has_person_mask: Array | None = None  # bool [N]
    # Of people whom a model labelled, fully or partly; None where annotators set everything.
    point_weight: Array | None = None  # [N, P] of a point, 1 for the annotator's
    label_weight: Array | None = None  # [N] of the person's parts and mask
    # Of embedding models:
    point_vertex: Array | None = None  # int32 [N, P] of the person's mesh
    mesh: Array | None = None  # int32 [N] number of the person's mesh


@dataclasses.dataclass(frozen=True)
class DensePoseWeights:
    """Weights of the losses, and options that change their definition.

    U and V are summed over points, so their scale grows with the images in the sum. The weight was
    tuned on 4 images a device; the sum is scaled by images_per_device / (images in the batch) and
    so is the same on any number of devices.
    """

    point: float = 0.01  # U, V
    fine_segm: float = 1.0  # I
    coarse_segm: float = 5.0  # S
    body_mask: float = 5.0  # M
    keypoint: float = 0.1
    images_per_device: float = 4.0
    point_beta: float = 1.0  # of the smooth L1 of U and V, which are within [0, 1]
    min_variance: float = 0.01  # of the confidence models
    coarse_segm_from_masks: bool = False


def densepose_losses(
    outputs: DensePoseOutputs[Array],
    targets: DensePoseTargets,
    weights: DensePoseWeights,
    *,
    num_images: int,
    keypoint_normaliser: float | None = None,
) -> dict[str, LossTerm]:
    """Computes the weighted losses of everything that a model predicts.

    Args:
        outputs: maps of the N ROIs.
        targets: their targets.
        weights: weights and options.
        num_images: that the ROIs are of.
        keypoint_normaliser: see `keypoint_loss`.

    Returns:
        {"u", "v"} or, with a confidence model, {"uv"}; "fine_segm"; "coarse_segm";
        "body_mask" for a model with a mask beside the coarse parts; "keypoints" for one that
        predicts them. All are 0, with zero gradients, where there is nothing to learn from. All but
        the keypoints are 0 where no point of the batch, on all devices together, is on the body and
        in its ROI, as in detectron2 (which looks at the batch of each device); the KTN code lets
        the others train on people whose points are all background.
    """
    uv_factor = weights.point * weights.images_per_device
    factors = {
        **dict.fromkeys(("u", "v", "uv"), uv_factor),
        "fine_segm": weights.fine_segm,
        "coarse_segm": weights.coarse_segm,
        "body_mask": weights.body_mask,
    }
    losses = point_losses(outputs, targets, num_images, weights.point_beta, weights.min_variance)
    losses |= area_losses(outputs, targets, weights.coarse_segm_from_masks)
    surface = jnp.where(targets.point_i > 0, point_weights(targets), 0).sum()
    weighted = {
        name: loss.scaled(factors[name]).learnt_from(surface) for name, loss in losses.items()
    }
    if outputs.keypoints is not None:
        shown = KeypointTargets(targets.boxes, targets.weight, targets.keypoints)
        keypoints = keypoint_loss(outputs.keypoints, shown, keypoint_normaliser)
        weighted["keypoints"] = keypoints.scaled(weights.keypoint)
    return weighted


def point_weights(targets: DensePoseTargets) -> Array:
    """Weights [N, P] of the points inside their ROIs."""
    is_inside = are_points_inside(targets.point_x, targets.point_y, targets.gt_boxes, targets.boxes)
    has_points = targets.has_densepose[:, None] & targets.point_is_valid & is_inside
    weight = jnp.where(has_points, targets.weight[:, None], 0)
    return weight if targets.point_weight is None else weight * targets.point_weight


def people_with_points(targets: DensePoseTargets) -> Array:
    """Weights [N] of the ROIs whose people have points, for their parts; 0 of the others."""
    has_points = targets.has_densepose & targets.point_is_valid.any(-1)
    return jnp.where(has_points, _label_weights(targets), 0)


def _label_weights(targets: DensePoseTargets) -> Array:
    """Weights [N] of the ROIs for parts and masks."""
    weight = targets.weight
    return weight if targets.label_weight is None else weight * targets.label_weight


def point_losses(
    outputs: DensePoseOutputs[Array],
    targets: DensePoseTargets,
    num_images: int,
    beta: float = 1.0,
    min_variance: float = 0.01,
) -> dict[str, LossTerm]:
    """Computes the losses at the points: U, V and the surface patch.

    A point counts where it falls in the ROI, with w, the weight of the ROI times its own. U and V
    are read from the map of the true patch and count on the body only; the surface classifier also
    learns from background points.

    Args:
        outputs: maps of the N ROIs.
        targets: their targets.
        num_images: that the ROIs are of.
        beta: of the smooth L1.
        min_variance: of the confidence models.

    Returns:
        {"u", "v"}: smooth L1 summed over the points of an image, sum(w * loss), mean over images;
        or {"uv"}: the same of the negative log-likelihood for a model that predicts its confidence;
        "fine_segm": mean cross-entropy, sum(w * loss) / sum(w).
    """
    place = (targets.point_x, targets.point_y, targets.gt_boxes, targets.boxes)
    weight = point_weights(targets)
    on_body = jnp.where(targets.point_i > 0, weight, 0)
    logits, _ = read_points(outputs.fine_segm, *place)
    entropy = softmax_cross_entropy(logits, targets.point_i)

    def read(maps: Array) -> Array:
        return read_points(maps, *place, channel=targets.point_i)[0]

    u, v = read(outputs.u), read(outputs.v)
    losses = {"fine_segm": weighted_mean(entropy, weight)}
    if outputs.sigma is None:
        for name, value, true in (("u", u, targets.point_u), ("v", v, targets.point_v)):
            distance = weighted_sum(smooth_l1(value, true, beta), on_body)
            losses[name] = quotient(distance, num_images)
        return losses
    residual = (u - targets.point_u, v - targets.point_v, read(outputs.sigma))
    if outputs.kappa_u is None or outputs.kappa_v is None:
        likelihood = isotropic_gaussian_nll(*residual, min_variance)
    else:
        kappas = (read(outputs.kappa_u), read(outputs.kappa_v))
        likelihood = anisotropic_gaussian_nll(*residual, *kappas, min_variance)
    losses["uv"] = quotient(weighted_sum(likelihood, on_body), num_images)
    return losses


def area_losses(
    outputs: DensePoseOutputs[Array], targets: DensePoseTargets, from_masks: bool = False
) -> dict[str, LossTerm]:
    """Computes the segmentation losses: mean cross-entropies over the cells of the maps.

    Only people with points teach their parts, as in the originals. An ROI has its weight times that
    of its person's labels, in sum and divisor.

    Args:
        outputs: maps of the N ROIs.
        targets: their targets.
        from_masks: train person against background with person masks, which more people have,
            instead of the DensePose parts, as detectron2's COARSE_SEGM_TRAINED_BY_MASKS.

    Returns:
        {"coarse_segm"} of a model with one coarse map of 2 or 15 channels; {"coarse_segm",
        "body_mask"} of one with 15 coarse parts and a mask of its own.

    Raises:
        ValueError: `from_masks` without masks in the targets, or for a map of 15 parts.
    """
    coarse = coarse_segm_loss(outputs.coarse_segm, targets, from_masks)
    if outputs.part_segm is None:
        return {"coarse_segm": coarse}
    return {"coarse_segm": coarse_segm_loss(outputs.part_segm, targets), "body_mask": coarse}


def coarse_segm_loss(
    logits: Array, targets: DensePoseTargets, from_masks: bool = False
) -> LossTerm:
    """Computes the mean cross-entropy of person against background, or of parts.

    Of cells that are on the person and on nobody knows which part, the probabilities of all parts
    are added up before the logarithm.

    Args:
        logits: [N, H, W, 2 or 15].
        targets: their targets.
        from_masks: see `area_losses`.

    Raises:
        ValueError: as `area_losses`.
    """
    is_binary = logits.shape[-1] == 2
    if from_masks:
        if targets.mask_labels is None or targets.has_person_mask is None or not is_binary:
            raise ValueError(
                "coarse_segm_from_masks needs person_mask and has_person_mask in the batch, and a "
                f"model with 2 coarse channels; it has {logits.shape[-1]}"
            )
        labels = targets.mask_labels.astype(jnp.int32)
        weight = jnp.where(targets.has_person_mask, _label_weights(targets), 0)
        return _mean_over_cells(softmax_cross_entropy(logits, labels), weight)
    size_hw = (logits.shape[1], logits.shape[2])
    parts = resample_chart_nearest(targets.part_mask, targets.gt_boxes, targets.boxes, size_hw)
    weight = people_with_points(targets)
    if is_binary:
        return _mean_over_cells(softmax_cross_entropy(logits, jnp.minimum(parts, 1)), weight)
    on_any_part = logsumexp(logits, axis=-1) - logsumexp(logits[..., 1:], axis=-1)
    of_part = softmax_cross_entropy(logits, parts)
    return _mean_over_cells(jnp.where(parts == UNKNOWN_PART, on_any_part, of_part), weight)


def _mean_over_cells(values: Array, weight: Array) -> LossTerm:
    """Mean of values [N, H, W] under ROI weights [N]."""
    return weighted_mean(values.mean((1, 2)), weight)
