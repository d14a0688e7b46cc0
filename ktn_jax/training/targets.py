"""Training targets: anchors, proposals and people, labelled and sampled.

B images, G people an image (padded), A anchors, S sampled ROIs, K ROIs of a branch.
Boxes are xyxy float32 in pixels of the padded network input. Everything random takes a key for each
image, so that what an image is trained on does not depend on its neighbours.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from ktn_jax.losses.densepose import DensePoseTargets
from ktn_jax.losses.detection import AnchorTargets, RoiTargets
from ktn_jax.losses.embeddings import CycleSamples
from ktn_jax.losses.masks_keypoints import KeypointTargets, MaskTargets, mask_labels
from ktn_jax.ops import boxes as box_ops
from ktn_jax.ops.matching import match, sample_proposals, subsample
from ktn_jax.structures import Proposals
from ktn_jax.training.distributed import Batch
from ktn_jax.training.model_labels import are_ignored, label_weights, point_weights

Array = jax.Array


@flax.struct.dataclass
class People:
    """ROIs that train a branch, in the order of the sampled ROIs."""

    boxes: Array  # [B, K, 4]
    gt_index: Array  # int32 [B, K] the person each matched
    weight: Array  # [B, K] 0 for padding; above 1 for ROIs that represent others too


@flax.struct.dataclass
class Samples:
    """Everything that a training step draws at random; fixed samples repeat a step exactly."""

    anchors: AnchorTargets
    rois: RoiTargets
    people: Mapping[str, People]  # by task of the model
    cycles: CycleSamples | None = None  # of an embedding model with cycle losses


def usable_people(batch: Batch) -> Array:
    """Marks the people who can be trained on, bool [B, G]: not padding, and with a box."""
    return batch["is_valid"] & (box_ops.box_area(batch["boxes"]) > 0)


def label_anchors(
    keys: Array,
    anchors: Array,
    batch: Batch,
    *,
    iou_thresholds: Sequence[float],
    num_samples: int,
    positive_fraction: float,
    is_usable: Array | None = None,
) -> AnchorTargets:
    """Matches anchors with people and samples those that train.

    Args:
        keys: [B] PRNG keys.
        anchors: [A, 4] of all levels.
        batch: a training batch.
        iou_thresholds: background below the first, person from the second.
        num_samples: anchors per image.
        positive_fraction: the largest part of them that may be people.
        is_usable: bool [B, A], anchors that may train; None for all.

    Returns:
        Labels and matched boxes. Without people every label is background or -1. Background in
        `ignored_boxes` of the batch does not train.
    """

    def one_image(
        key: Array, boxes: Array, is_valid: Array, is_usable: Array | None, regions: Array | None
    ) -> AnchorTargets:
        matches, labels = match_anchors(anchors, boxes, is_valid, iou_thresholds)
        if is_usable is not None:
            labels = jnp.where(is_usable, labels, -1)
        if regions is not None:
            is_open = are_ignored(anchors, regions, iou_thresholds[0])
            labels = jnp.where((labels == 0) & is_open, -1, labels)
        labels = subsample(
            key, labels, num_samples=num_samples, positive_fraction=positive_fraction
        )
        return AnchorTargets(labels=labels, boxes=boxes[matches])

    regions = batch.get("ignored_boxes")
    return jax.vmap(one_image)(keys, batch["boxes"], usable_people(batch), is_usable, regions)


def match_anchors(
    anchors: Array, gt_boxes: Array, is_valid: Array, iou_thresholds: Sequence[float]
) -> tuple[Array, Array]:
    """Matches the anchors of one image with its people, see `matching.match`.

    Args:
        anchors: [A, 4].
        gt_boxes: [G, 4].
        is_valid: bool [G]; other people match nothing.
        iou_thresholds: background below the first, person from the second.

    Returns:
        The person int [A] that each anchor overlaps most, and labels [A]: 1 for a person, 0 for
        background, -1 for neither.
    """
    iou = box_ops.pairwise_iou(gt_boxes, anchors)
    return match(
        iou,
        is_valid,
        thresholds=iou_thresholds,
        labels=(0, -1, 1),
        allow_low_quality_matches=True,
    )


def sample_rois(
    keys: Array,
    proposals: Proposals,
    batch: Batch,
    *,
    iou_threshold: float,
    num_samples: int,
    positive_fraction: float,
) -> RoiTargets:
    """Samples proposals for the box head; the people themselves are proposals too.

    Args:
        keys: [B] PRNG keys.
        proposals: of the network in training.
        batch: a training batch.
        iou_threshold: IoU from which a proposal is foreground.
        num_samples: S.
        positive_fraction: the largest part of S that may be people.

    Returns:
        S ROIs an image, people first; where proposals are too few, the rest is padding. No
        background is in `ignored_boxes` of the batch.
    """

    def one_image(
        key: Array,
        boxes: Array,
        is_valid: Array,
        people: Array,
        is_person: Array,
        regions: Array | None,
    ) -> RoiTargets:
        boxes = jnp.concatenate([boxes, people])
        is_valid = jnp.concatenate([is_valid, is_person])
        iou = box_ops.pairwise_iou(people, boxes)
        matches, labels = match(
            iou,
            is_person,
            thresholds=(iou_threshold,),
            labels=(0, 1),
            allow_low_quality_matches=False,
        )
        if regions is not None:
            is_valid &= (labels == 1) | ~are_ignored(boxes, regions, iou_threshold)
        index, is_foreground, is_valid = sample_proposals(
            key,
            labels == 1,
            is_valid,
            num_samples=num_samples,
            positive_fraction=positive_fraction,
        )
        gt_index = jnp.where(is_foreground, matches[index], 0)
        return RoiTargets(
            boxes=jnp.where(is_valid[:, None], boxes[index], 0),
            is_valid=is_valid,
            is_foreground=is_foreground,
            gt_boxes=jnp.where(is_foreground[:, None], people[gt_index], 0),
            gt_index=gt_index,
        )

    rois: RoiTargets = jax.vmap(one_image)(
        keys,
        proposals.boxes,
        proposals.is_valid,
        batch["boxes"],
        usable_people(batch),
        batch.get("ignored_boxes"),
    )
    return dataclasses.replace(rois, classes=classes_of(rois.gt_index, batch))


def densepose_rois(rois: RoiTargets, has_annotation: Array, iou_threshold: float) -> Array:
    """Marks the ROIs that may train the DensePose branch.

    Args:
        rois: sampled for the box head.
        has_annotation: bool [B, G], people with annotations for the branch, see `teachers`.
        iou_threshold: an ROI qualifies if it overlaps its person more than this.

    Returns:
        bool [B, S].
    """
    iou = box_ops.pairwise_iou(rois.boxes[..., None, :], rois.gt_boxes[..., None, :])[..., 0, 0]
    return _foreground_of(rois, has_annotation) & (iou > iou_threshold)


def mask_rois(rois: RoiTargets, batch: Batch) -> Array:
    """Marks the ROIs that may train masks: all of the foreground whose people have one.

    Returns:
        bool [B, S].

    Raises:
        ValueError: the batch has no masks.
    """
    require_masks(batch, "masks in model.tasks")
    return _foreground_of(rois, batch["has_person_mask"])


def keypoint_rois(rois: RoiTargets, batch: Batch) -> Array:
    """Marks the ROIs that may train keypoints, bool [B, S]: foreground with a visible one inside.

    All borders of an ROI are inside it, as in detectron2.
    """
    keypoints = _of_people(batch["keypoints"], rois.gt_index)
    low, high = rois.boxes[..., None, :2], rois.boxes[..., None, 2:]
    is_inside = ((keypoints[..., :2] >= low) & (keypoints[..., :2] <= high)).all(-1)
    has_keypoint = (is_inside & (keypoints[..., 2] > 0)).any(-1)
    return rois.is_valid & rois.is_foreground & has_keypoint


def _foreground_of(rois: RoiTargets, has_annotation: Array) -> Array:
    return rois.is_valid & rois.is_foreground & _of_people(has_annotation, rois.gt_index)


def _of_people(values: Array, gt_index: Array) -> Array:
    """Gathers values [B, G, ...] of the people that gt_index [B, K] names: [B, K, ...]."""
    gathered: Array = jax.vmap(lambda rows, index: rows[index])(values, gt_index)
    return gathered


def classes_of(gt_index: Array, batch: Batch) -> Array:
    """The classes of the people that gt_index [B, K] names: the first, unless the batch tells."""
    if "classes" not in batch:
        return jnp.zeros_like(gt_index)
    return _of_people(batch["classes"], gt_index)


def choose_people(keys: Array, rois: RoiTargets, qualifies: Array, number: int) -> People:
    """Chooses the ROIs of a branch.

    Where more qualify than fit, a random subset represents all, with weights that keep the
    expectation of sums.

    Args:
        keys: [B] PRNG keys.
        rois: sampled for the box head.
        qualifies: bool [B, S], ROIs that may train the branch.
        number: K; cut to the number of ROIs.

    Returns:
        K ROIs an image, in the order of the sampled ones, padding last.
    """
    return choose_shared_people(keys, rois, {"": qualifies}, number)[""]


def choose_shared_people(
    keys: Array, rois: RoiTargets, qualifies: Mapping[str, Array], number: int
) -> dict[str, People]:
    """Chooses the ROIs that several branches share: those that any of them may train on.

    Args:
        keys: [B] PRNG keys.
        rois: sampled for the box head.
        qualifies: bool [B, S] by task, ROIs that may train its branch.
        number: K; cut to the number of ROIs.

    Returns:
        By task the same K ROIs an image, see `choose_people`; those that do not train the task have
        no weight in it.
    """
    number = min(number, rois.boxes.shape[1])

    def one_image(
        key: Array, rois: RoiTargets, qualifies: Mapping[str, Array]
    ) -> dict[str, People]:
        is_wanted = functools.reduce(jnp.logical_or, qualifies.values())
        labels = jnp.where(is_wanted, 1, -1)
        is_chosen = subsample(key, labels, number, positive_fraction=1.0) == 1
        index = jnp.argsort(~is_chosen, stable=True)[:number]
        is_chosen = is_chosen[index]
        weight = jnp.maximum(is_wanted.sum() / number, 1)
        boxes = jnp.where(is_chosen[:, None], rois.boxes[index], 0)
        gt_index = jnp.where(is_chosen, rois.gt_index[index], 0)
        return {
            task: People(boxes, gt_index, jnp.where(is_chosen & trains[index], weight, 0))
            for task, trains in qualifies.items()
        }

    return jax.vmap(one_image)(keys, rois, qualifies)


def teachers(batch: Batch, *, densepose_people_only: bool, from_masks: bool) -> Array:
    """Marks the people who train the DensePose branch, bool [B, G].

    Args:
        batch: a training batch.
        densepose_people_only: only those with DensePose; else everybody, for their keypoints.
        from_masks: those with a person mask too.

    Raises:
        ValueError: `from_masks` and the batch has no masks.
    """
    if not densepose_people_only:
        return usable_people(batch)
    has_annotation = batch["has_densepose"]
    if from_masks:
        require_masks(batch, "loss.coarse_segm_from_masks")
        has_annotation |= batch["has_person_mask"]
    return has_annotation & usable_people(batch)


def require_masks(batch: Batch, what: str) -> None:
    """Checks that a batch has masks, which `what` needs.

    Raises:
        ValueError: it has none.
    """
    missing = [name for name in ("person_mask", "has_person_mask") if name not in batch]
    if missing:
        raise ValueError(f"{what} needs {missing} in the batch: set data.with_person_masks=True")


def densepose_targets(
    people: People, batch: Batch, mask_size: int | None = None, dense_weight: float = 1.0
) -> DensePoseTargets:
    """Gathers the annotations of each ROI's person.

    Args:
        people: from `choose_people`.
        batch: a training batch.
        mask_size: side to which ROIs are cut out of person masks; None for no masks.
        dense_weight: `loss.dense_weight`.

    Returns:
        Targets of N = B * K ROIs, image by image. Padding has the annotations of an image's first
        person and weight 0.

    Raises:
        ValueError: masks are wanted and the batch has none.
    """

    def of_person(values: Array) -> Array:
        return _of_people(values, people.gt_index).reshape(-1, *values.shape[2:])

    names = ["point_is_valid", "point_x", "point_y", "point_i", "point_u", "point_v"]
    names += ["has_densepose", "part_mask", "keypoints"]
    masks: dict[str, Array] = {}
    if mask_size is not None:
        require_masks(batch, "loss.coarse_segm_from_masks")
        masks["mask_labels"] = mask_targets(people, batch, mask_size).labels
        masks["has_person_mask"] = of_person(batch["has_person_mask"])
    weights = {
        "point_weight": point_weights(batch, dense_weight),
        "label_weight": label_weights(batch, dense_weight),
    }
    vertices = [name for name in ("point_vertex", "mesh") if name in batch]
    return DensePoseTargets(
        boxes=people.boxes.reshape(-1, 4),
        weight=people.weight.reshape(-1),
        gt_boxes=of_person(batch["boxes"]),
        **{name: of_person(batch[name]) for name in [*names, *vertices]},
        **masks,
        **{name: of_person(values) for name, values in weights.items() if values is not None},
    )


def keypoint_targets(people: People, batch: Batch) -> KeypointTargets:
    """Gathers the keypoints of each ROI's person.

    Returns:
        Targets of N = B * K ROIs, image by image; padding has weight 0.
    """
    keypoints = _of_people(batch["keypoints"], people.gt_index)
    return KeypointTargets(
        boxes=people.boxes.reshape(-1, 4),
        weight=people.weight.reshape(-1),
        keypoints=keypoints.reshape(-1, *keypoints.shape[2:]),
    )


def mask_targets(people: People, batch: Batch, size: int, dense_weight: float = 1.0) -> MaskTargets:
    """Cuts each ROI out of its person's mask, see `mask_labels`.

    Args:
        people: from `choose_people`.
        batch: a training batch with masks.
        size: S, side of the targets.
        dense_weight: `loss.dense_weight`.

    Returns:
        Targets [N, S, S] of N = B * K ROIs, image by image; padding has weight 0 and no person.
    """

    def of_person(name: str) -> Array:
        values = _of_people(batch[name], people.gt_index)
        return values.reshape(-1, *values.shape[2:])

    rois = people.boxes.reshape(-1, 4)
    labels = mask_labels(of_person("person_mask"), of_person("boxes"), rois, size)
    weight = people.weight
    own_weights = label_weights(batch, dense_weight)
    if own_weights is not None:
        weight = weight * _of_people(own_weights, people.gt_index)
    return MaskTargets(labels=labels, weight=weight.reshape(-1))
