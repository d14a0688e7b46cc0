"""The training forward pass: from images to the terms of their losses.

    normalise ─ pyramid ─ proposals ─ sampled ROIs ─ box head
                   ├──── ROIs with keypoints, ROIs with masks ─ heads
                   └──── decoder ─ ROIs with DensePose ─ head ─ predictor (with the transfer)

In a cascade the branches share their ROIs, and the outputs of all go into the next stage of each.
Crowds are not in a batch and padding is masked, so every image keeps its row, whether or not its
people have annotations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from ml_collections import ConfigDict

from ktn_jax.body.parts import NUM_KEYPOINTS
from ktn_jax.losses.detection import RoiTargets, box_losses, rpn_losses
from ktn_jax.losses.masks_keypoints import MaskTargets
from ktn_jax.losses.terms import values_of
from ktn_jax.modeling.detector import Detector
from ktn_jax.modeling.layers import valid_mask
from ktn_jax.modeling.person_branches import TASKS, has_embeddings
from ktn_jax.structures import BranchOutputs, Features, Proposals
from ktn_jax.training import targets
from ktn_jax.training.branch_losses import Terms, branch_losses
from ktn_jax.training.distributed import Batch
from ktn_jax.training.embeddings import draw_cycles, embedding_losses
from ktn_jax.training.targets import People, Samples

Array = jax.Array
Losses = dict[str, Array]
Variables = Mapping[str, Any]
SurfaceKernels = Sequence[Array | None]  # of each stage

DRAWN = "drawn"  # the name of samples, for what computes the forward pass again


@flax.struct.dataclass
class TrainingOutputs:
    """What the forward pass computes. B images, A anchors, S ROIs, N people."""

    rpn_logits: Array  # [B, A]
    rpn_deltas: Array  # [B, A, 4]
    anchors: Array  # [A, 4]
    class_logits: Array  # [B, S, classes + 1]
    deltas: Array  # [B, S, 4 * classes]
    samples: Samples
    pyramid: Features
    proposals: Proposals
    stages: tuple[BranchOutputs, ...]  # of N = B * K ROIs, each task of one stage of its own ROIs
    vertex_embeddings: Mapping[str, Array]  # [V, D] by mesh


def apply(
    model: Detector,
    loss: ConfigDict,
    *,
    params: Variables,
    batch_stats: Variables,
    batch: Batch,
    key: Array,
    samples: Samples | None = None,
    surface_kernels: SurfaceKernels | None = None,
) -> tuple[TrainingOutputs, Variables]:
    """Runs the model on a batch.

    Args:
        model: from `build_model`.
        loss: the `loss` part of a configuration.
        params: of the model.
        batch_stats: of the model; empty where no norm has any.
        batch: a training batch.
        key: PRNG key of the sampling.
        samples: given samples to train on; None draws them, and else `key` is not read.
        surface_kernels: of `Detector.surface_kernels`, which must then be of these `params`; None
            computes them.

    Returns:
        Everything computed, and the statistics after the batch.
    """

    def run(detector: Detector) -> TrainingOutputs:
        return _forward(detector, loss, batch, key, samples, surface_kernels)

    variables = {"params": params, "batch_stats": batch_stats}
    outputs, updated = model.apply(variables, method=run, mutable=["batch_stats"])
    return outputs, updated.get("batch_stats", batch_stats)


def _forward(
    detector: Detector,
    loss: ConfigDict,
    batch: Batch,
    key: Array,
    samples: Samples | None,
    surface_kernels: SurfaceKernels | None,
) -> TrainingOutputs:
    image_size_hw = batch["image_size_hw"]
    inputs = detector.normalise(batch["image"], image_size_hw)
    pyramid = detector.extract(inputs, image_size_hw if loss.ignore_padding else None, train=True)
    logits, deltas = detector.rpn_head(pyramid.maps, pyramid.sizes)
    anchors = jnp.concatenate([jnp.asarray(level) for level in detector.anchors(logits)])
    # No gradient flows through the positions of proposals.
    proposals = detector.proposals_from(
        *lax.stop_gradient((logits, deltas)), pyramid.sizes, image_size_hw, train=True
    )
    if samples is None:
        is_usable = _usable_anchors(logits, pyramid) if loss.ignore_padding else None
        samples = draw_samples(
            key,
            config=detector.config,
            loss=loss,
            anchors=anchors,
            proposals=proposals,
            batch=batch,
            is_usable=is_usable,
        )
        samples = jax.tree.map(lambda x: checkpoint_name(x, DRAWN), samples)
    batch_size = image_size_hw.shape[0]
    pooled = detector.pool_boxes(pyramid, samples.rois.boxes)
    _, class_logits, box_deltas = detector.classify(pooled)
    return TrainingOutputs(
        rpn_logits=_flatten_levels(logits, 1)[..., 0],
        rpn_deltas=_flatten_levels(deltas, 4),
        anchors=anchors,
        class_logits=class_logits.reshape(batch_size, -1, class_logits.shape[-1]),
        deltas=box_deltas.reshape(batch_size, -1, box_deltas.shape[-1]),
        samples=samples,
        pyramid=pyramid,
        proposals=proposals,
        stages=_run_branches(detector, pyramid, samples.people, batch, surface_kernels),
        vertex_embeddings=detector.vertex_embeddings(),
    )


def _run_branches(
    detector: Detector,
    pyramid: Features,
    people: Mapping[str, People],
    batch: Batch,
    surface_kernels: SurfaceKernels | None,
) -> tuple[BranchOutputs, ...]:
    """Runs the branches on the ROIs that train them."""
    boxes = {task: chosen.boxes for task, chosen in people.items()}
    pooled = detector.pool(detector.roi_features(pyramid), boxes)
    classes = jnp.zeros(0, jnp.int32)  # only masks read them
    if "masks" in people:
        classes = targets.classes_of(people["masks"].gt_index, batch).reshape(-1)
    return detector.run_stages(pooled, classes, surface_kernels)


def _flatten_levels(maps: Mapping[str, Array], channels: int) -> Array:
    """Joins maps [B, H, W, anchors * channels] of all levels as [B, A, channels]."""
    flat = [level.reshape(level.shape[0], -1, channels) for level in maps.values()]
    return jnp.concatenate(flat, axis=1)


def _usable_anchors(logits: Mapping[str, Array], pyramid: Features) -> Array:
    """Marks anchors centred on the valid part of their level, bool [B, A]."""
    masks = {}
    for level, x in logits.items():
        valid_hw = pyramid.sizes[level]
        mask = True if valid_hw is None else valid_mask(valid_hw, x.shape[1], x.shape[2])
        masks[level] = jnp.broadcast_to(mask, x.shape)
    return _flatten_levels(masks, 1)[..., 0]


def draw_samples(
    key: Array,
    *,
    config: ConfigDict,
    loss: ConfigDict,
    anchors: Array,
    proposals: Proposals,
    batch: Batch,
    is_usable: Array | None = None,
) -> Samples:
    """Draws what a batch is trained on.

    Args:
        key: PRNG key; each image's own follows from it and from the image's id, so that samples do
            not depend on the image's place in the batch.
        config: the `model` part of a configuration.
        loss: its `loss` part.
        anchors: [A, 4].
        proposals: of the network in training.
        batch: a training batch.
        is_usable: bool [B, A], anchors that may train; None for all.

    Returns:
        Samples.
    """
    keys = jax.vmap(lambda image_id: jax.random.fold_in(key, image_id))(batch["image_id"])
    anchor_keys, roi_keys, people_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    rpn, box = config.rpn, config.box_head
    labelled = targets.label_anchors(
        anchor_keys,
        anchors,
        batch,
        iou_thresholds=rpn.iou_thresholds,
        num_samples=rpn.batch_size_per_image,
        positive_fraction=rpn.positive_fraction,
        is_usable=is_usable,
    )
    rois = targets.sample_rois(
        roi_keys,
        proposals,
        batch,
        iou_threshold=box.iou_threshold,
        num_samples=box.batch_size_per_image,
        positive_fraction=box.positive_fraction,
    )
    choices = {
        task: training_rois(task, loss, rois, batch) for task in TASKS if task in config.tasks
    }
    if config.cascade.num_stages > 1:
        qualifies = {task: marks for task, (marks, _) in choices.items()}
        most = max(number for _, number in choices.values())
        people = targets.choose_shared_people(people_keys, rois, qualifies, most)
    else:
        people = {
            task: targets.choose_people(_of_each(people_keys, TASKS.index(task)), rois, *choice)
            for task, choice in choices.items()
        }
    cycles = None
    if has_embeddings(config):
        pixel_keys = _of_each(people_keys, len(TASKS))
        cycles = draw_cycles(key, pixel_keys, people["densepose"], batch, config, loss)
    return Samples(anchors=labelled, rois=rois, people=people, cycles=cycles)


def _of_each(keys: Array, number: int) -> Array:
    """Makes another key [B] of each."""
    own: Array = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    return own


def training_rois(task: str, loss: ConfigDict, rois: RoiTargets, batch: Batch) -> tuple[Array, int]:
    """Marks the ROIs that may train a task.

    Args:
        task: one of `TASKS`.
        loss: the `loss` part of a configuration.
        rois: sampled for the box head.
        batch: a training batch.

    Returns:
        bool [B, S], and how many ROIs of an image train the task at most.

    Raises:
        ValueError: the task needs person masks and the batch has none.
    """
    if task == "masks":
        return targets.mask_rois(rois, batch), loss.mask_rois_per_image
    if task == "keypoints":
        return targets.keypoint_rois(rois, batch), loss.keypoint_rois_per_image
    teachers = targets.teachers(
        batch,
        densepose_people_only=loss.densepose_people_only,
        from_masks=loss.coarse_segm_from_masks,
    )
    qualifies = targets.densepose_rois(rois, teachers, loss.densepose_iou_threshold)
    return qualifies, loss.densepose_rois_per_image


def compute_losses(
    config: ConfigDict,
    loss: ConfigDict,
    outputs: TrainingOutputs,
    batch: Batch,
    mask_targets: MaskTargets | None = None,
    coarse_labels: Array | None = None,
    geodesics: Mapping[str, Array] | None = None,
) -> Losses:
    """The values of `loss_terms`, of a batch that is whole; their sum is what is minimised."""
    return values_of(
        loss_terms(config, loss, outputs, batch, mask_targets, coarse_labels, geodesics)
    )


def loss_terms(
    config: ConfigDict,
    loss: ConfigDict,
    outputs: TrainingOutputs,
    batch: Batch,
    mask_targets: MaskTargets | None = None,
    coarse_labels: Array | None = None,
    geodesics: Mapping[str, Array] | None = None,
    batch_axis: str = "",
) -> Terms:
    """Computes the terms of the weighted losses of a forward pass.

    Args:
        config: the `model` part of a configuration.
        loss: its `loss` part.
        outputs: of `apply`.
        batch: the batch it ran on.
        mask_targets: of the ROIs that train masks; None cuts them out of the batch's masks.
        coarse_labels: bool [N, S, S] of the ROIs that train charts, where person masks train them;
            None for the same.
        geodesics: distances [V, V] along each mesh by its name; of embedding models with losses
            that need them.
        batch_axis: see `Compute`; the axis of which the batch is a part.

    Returns:
        Terms by name: those of `rpn_losses` and `box_losses`, and of the tasks of the model those
        of `densepose_losses` or `embedding_losses`, "keypoint_head" and "mask_head"; of later
        stages "stage2/u" and so on. Of parts of a batch they add up.

    Raises:
        ValueError: `loss.stage_weights` are not one for each stage.
    """
    samples, num_images = outputs.samples, batch["image"].shape[0]
    losses = rpn_losses(
        outputs.rpn_logits,
        outputs.rpn_deltas,
        outputs.anchors,
        samples.anchors,
        batch_size_per_image=config.rpn.batch_size_per_image,
        delta_weights=config.rpn.delta_weights,
        smooth_l1_beta=loss.rpn_smooth_l1_beta,
    )
    losses |= box_losses(
        outputs.class_logits,
        outputs.deltas,
        samples.rois,
        delta_weights=config.box_head.delta_weights,
        smooth_l1_beta=loss.box_smooth_l1_beta,
    )
    factors = {
        "rpn_objectness": loss.rpn_weight,
        "rpn_deltas": loss.rpn_weight * loss.rpn_delta_weight,
        "box_class": 1.0,
        "box_deltas": loss.box_delta_weight,
    }
    losses = {name: term.scaled(factors[name]) for name, term in losses.items()}
    box = config.box_head
    most_keypoints = int(box.batch_size_per_image * box.positive_fraction) * NUM_KEYPOINTS
    by_visible = loss.normalise_keypoints_by_visible
    keypoint_normaliser = None if by_visible else float(num_images * most_keypoints)
    if outputs.stages[0].embeddings is not None:
        losses |= embedding_losses(
            config,
            loss,
            outputs.stages[0].embeddings,
            outputs.vertex_embeddings,
            samples,
            batch,
            coarse_labels=coarse_labels,
            geodesics=geodesics,
            batch_axis=batch_axis,
        )
    return losses | branch_losses(
        outputs.stages,
        stage_weights(config, loss),
        samples.people,
        batch,
        loss,
        keypoint_normaliser=keypoint_normaliser,
        mask_targets=mask_targets,
        coarse_labels=coarse_labels,
    )


def stage_weights(config: ConfigDict, loss: ConfigDict) -> tuple[float, ...]:
    """The weight of the losses of each stage.

    Args:
        config: the `model` part of a configuration.
        loss: its `loss` part.

    Raises:
        ValueError: `loss.stage_weights` are not one for each stage.
    """
    number = config.cascade.num_stages
    weights = tuple(loss.stage_weights) or (1.0,) * number
    if len(weights) != number:
        raise ValueError(
            f"loss.stage_weights {weights}: one for each of model.cascade.num_stages {number}, or "
            "() for 1 each"
        )
    return weights
