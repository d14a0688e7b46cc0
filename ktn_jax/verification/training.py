"""Compares a training step: losses, gradients and statistics, on the stored samples.

What the original drew at random (anchors, ROIs) is read from the dump; what follows from it, and
what precedes it, is computed from the stored images and annotations on.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.body import parts
from ktn_jax.checkpoints import torch_names
from ktn_jax.evaluation.masks import part_labels
from ktn_jax.losses.detection import AnchorTargets, RoiTargets
from ktn_jax.losses.masks_keypoints import MaskTargets
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import build_model, size_multiple
from ktn_jax.training import forward, targets
from ktn_jax.training.targets import People, Samples
from ktn_jax.verification import mask_targets
from ktn_jax.verification.dump import (
    BOX_PIXELS,
    END_TO_END,
    NOISE_FACTOR,
    Dump,
    Row,
    compare,
    to_nchw,
)
from ktn_jax.verification.mask_targets import people_of_image

Batch = dict[str, np.ndarray]

LOSS = 1e-4  # relative
GRADIENT = 1e-3  # of the L2 norm
# Optimised programs fuse products with sums, each CPU in its own way. Norms over nearly constant
# regions amplify what that changes until gradients are out of tolerance; whether the definitions
# agree shows best where every operation is rounded on its own.
_PLAIN_ROUNDING = {"xla_backend_optimization_level": 0}
GRADIENT_BATCH_NORM = 5e-3  # batch statistics amplify rounding
# Where rounding moves an activation across a ReLU's zero, the gradients behind it jump. In another
# run it is another activation: what that did to one parameter in the original's two runs, it may
# do to any other in ours.
WORST_NOISE_FACTOR = 2
# Gradients whose norm is below this are zero but for rounding (a bias in front of a softmax or of a
# batch norm); they are compared absolutely.
ZERO_GRADIENT = 1e-5
ZERO_LIMIT = 1e-4
PROPOSAL_FRACTION = 0.05  # of the proposals may differ where an overlap is on the threshold

# The original's names of the losses.
LOSSES = {
    "loss_rpn_cls": "rpn_objectness",
    "loss_rpn_loc": "rpn_deltas",
    "loss_cls": "box_class",
    "loss_box_reg": "box_deltas",
    "loss_densepose_U": "u",
    "loss_densepose_V": "v",
    "loss_densepose_UV": "uv",
    "loss_densepose_I": "fine_segm",
    "loss_densepose_S": "coarse_segm",
    "loss_densepose_M": "body_mask",
    "loss_keypoint": "keypoints",
    "loss_mask": "mask_head",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of ours on the stored batch and samples."""

    total: float
    losses: Mapping[str, float]
    gradients: Mapping[str, np.ndarray]  # names and layouts of the original
    outputs: forward.TrainingOutputs
    batch_stats: Mapping[str, Any]


def training(dump: Dump, compute: Compute | None = None) -> Iterator[Row]:
    """Compares one training step; a dump without one gives no rows.

    Args:
        dump: of one of the originals.
        compute: as `build_model` takes it.

    Yields:
        A row for everything that is compared.
    """
    if not dump.under("train"):
        return
    batch, samples = read_batch(dump), read_samples(dump)
    yield from compare_step(dump, batch, run_step(dump, batch, samples, compute))


def compare_step(dump: Dump, batch: Batch, step: Step) -> Iterator[Row]:
    """Compares a step of ours on `batch` with the stored one."""
    yield from _matching(dump, batch, step)
    if "masks" in dump.config.model.tasks:
        yield from mask_targets.compare_targets(dump, batch, step.outputs.samples.people["masks"])
    if dump.config.loss.coarse_segm_from_masks:
        people = step.outputs.samples.people["densepose"]
        yield from mask_targets.compare_coarse_targets(dump, batch, people)
    yield from _intermediates(dump, step)
    yield from _losses(dump, step)
    yield from _statistics(dump, step)
    yield from _gradients(dump, step)
    yield from _gradient_norms(dump, step)


def read_batch(dump: Dump) -> Batch:
    """Builds the training batch of a dump: its images, padded to one size, and their people."""
    images = [
        dump[f"train/input/{i}/image_bgr_uint8"][..., ::-1] for i in dump.under("train/input")
    ]
    multiple = size_multiple(dump.config.model)
    sizes = np.asarray([image.shape[:2] for image in images])
    canvas = -(-sizes.max(0) // multiple) * multiple
    annotations = json.loads(str(dump["train/annotations_json"]))
    people = [
        _read_people(dump, index, image["id"], annotations)
        for index, image in enumerate(annotations["images"])
    ]
    max_people = max(len(rows) for rows in people)
    max_points = max((len(row["point_x"]) for rows in people for row in rows), default=0)
    batch = {
        "image": np.zeros((len(images), *canvas, 3), np.uint8),
        "image_size_hw": sizes.astype(np.int32),
        **_empty_people((len(images), max(max_people, 1)), max(max_points, 1)),
    }
    if _has_masks(dump):
        batch |= _empty_masks((len(images), max(max_people, 1)))
    for index, (image, rows) in enumerate(zip(images, people, strict=True)):
        batch["image"][index, : image.shape[0], : image.shape[1]] = image
        for slot, row in enumerate(rows):
            for name, value in row.items():
                if name.startswith("point_"):
                    batch[name][index, slot, : len(value)] = value
                else:
                    batch[name][index, slot] = value
    return batch


def _empty_people(shape: tuple[int, int], max_points: int) -> Batch:
    points = (*shape, max_points)
    return {
        "is_valid": np.zeros(shape, bool),
        "boxes": np.zeros((*shape, 4), np.float32),
        "keypoints": np.zeros((*shape, parts.NUM_KEYPOINTS, 3), np.float32),
        "has_densepose": np.zeros(shape, bool),
        "part_mask": np.zeros((*shape, parts.PART_GRID, parts.PART_GRID), np.uint8),
        "point_is_valid": np.zeros(points, bool),
        "point_i": np.zeros(points, np.int32),
        **{f"point_{name}": np.zeros(points, np.float32) for name in "xyuv"},
    }


def _has_masks(dump: Dump) -> bool:
    return "masks" in dump.config.model.tasks or dump.config.loss.coarse_segm_from_masks


def _empty_masks(shape: tuple[int, int]) -> Batch:
    grid = (*shape, parts.PART_GRID, parts.PART_GRID)
    return {"person_mask": np.zeros(grid, np.uint8), "has_person_mask": np.zeros(shape, bool)}


def _read_people(
    dump: Dump, index: int, image_id: int, annotations: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Reads the people of one image, crowds left out, with the stored boxes and keypoints."""
    records = people_of_image(annotations, image_id)
    boxes = dump[f"train/gt/{index}/boxes"]
    if len(boxes) != len(records):
        raise ValueError(
            f"{dump.path}: image {index} has {len(boxes)} boxes in train/gt and {len(records)} "
            "people in train/annotations_json"
        )
    key = f"train/gt/{index}/keypoints"
    keypoints = dump[key] if key in dump.keys else np.zeros((len(boxes), parts.NUM_KEYPOINTS, 3))
    people = []
    for record, box, points in zip(records, boxes, keypoints, strict=True):
        person = {"is_valid": True, "boxes": box, "keypoints": points}
        has_densepose = "dp_x" in record
        person["has_densepose"] = has_densepose
        for name in ("x", "y", "I", "U", "V"):
            person[f"point_{name.lower()}"] = np.asarray(record.get(f"dp_{name}", ()))
        person["point_is_valid"] = np.ones(len(person["point_x"]), bool)
        if has_densepose:
            person["part_mask"] = part_labels(record["dp_masks"])
        people.append(person)
    if _has_masks(dump):
        grids = mask_targets.on_grids(dump, index, records, boxes)
        for person, grid in zip(people, grids, strict=True):
            person |= {"person_mask": grid, "has_person_mask": True}
    return people


def read_samples(dump: Dump) -> Samples:
    """Reads what the original trained on: anchors, ROIs and the ROIs of the DensePose branch."""
    images = dump.under("train/roi")

    def stack(pattern: str) -> list[np.ndarray]:
        return [dump[pattern.format(index)] for index in images]

    stored = stack("train/roi/{}/gt_classes")
    num_classes = dump.config.model.box_head.num_classes
    classes = _pad(stored, fill=num_classes)
    rois = RoiTargets(
        boxes=jnp.asarray(_pad(stack("train/roi/{}/proposal_boxes"))),
        is_valid=jnp.asarray(_pad([np.ones(len(x), bool) for x in stored])),
        is_foreground=jnp.asarray(classes < num_classes),
        gt_boxes=jnp.asarray(_pad(stack("train/roi/{}/gt_boxes"))),
        gt_index=jnp.asarray(_pad(stack("train/roi/{}/gt_index")), jnp.int32),
        classes=jnp.asarray(classes, jnp.int32),
    )
    anchors = AnchorTargets(
        labels=jnp.asarray(np.stack(stack("train/rpn/{}/gt_labels")), jnp.int32),
        boxes=jnp.asarray(np.stack(stack("train/rpn/{}/matched_gt_boxes"))),
    )
    readers = {
        "densepose": _read_with_densepose,
        "keypoints": _read_with_keypoints,
        "masks": _read_foreground,
    }
    people = {task: readers[task](dump, images) for task in dump.config.model.tasks}
    return Samples(anchors, rois, people)


def _read_with_densepose(dump: Dump, images: Sequence[str]) -> People:
    empty = np.zeros((0, 4), np.float32)
    boxes, gt_boxes = dict.fromkeys(images, empty), dict.fromkeys(images, empty)
    for stored in dump.under("train/densepose"):
        prefix = f"train/densepose/{stored}"
        if f"{prefix}/proposal_boxes" in dump.keys:
            image = _image_of(dump, prefix, images)
            boxes[image] = dump[f"{prefix}/proposal_boxes"]
            gt_boxes[image] = dump[f"{prefix}/gt_boxes"]
    index = []
    for image in images:
        # Dumps hold the matched person's box and not its index.
        people = dump[f"train/gt/{image}/boxes"]
        distance = np.abs(gt_boxes[image][:, None] - people[None]).max(-1)
        index.append(distance.argmin(-1) if len(people) else np.zeros(0, int))
    return _as_people(list(boxes.values()), index)


def _read_with_keypoints(dump: Dump, images: Sequence[str]) -> People:
    boxes = dict.fromkeys(images, np.zeros((0, 4), np.float32))
    index = dict.fromkeys(images, np.zeros(0, int))
    for stored in dump.under("train/keypoint"):
        prefix = f"train/keypoint/{stored}"
        if f"{prefix}/proposal_boxes" in dump.keys:
            image = _image_of(dump, prefix, images)
            boxes[image] = dump[f"{prefix}/proposal_boxes"]
            rois = dump[f"train/roi/{image}/proposal_boxes"]
            row = (boxes[image][:, None] == rois[None]).all(-1).argmax(-1)
            index[image] = dump[f"train/roi/{image}/gt_index"][row]
    return _as_people(list(boxes.values()), list(index.values()))


def _read_foreground(dump: Dump, images: Sequence[str]) -> People:
    num_classes = dump.config.model.box_head.num_classes
    boxes, index = [], []
    for image in images:
        is_foreground = dump[f"train/roi/{image}/gt_classes"] < num_classes
        boxes.append(dump[f"train/roi/{image}/proposal_boxes"][is_foreground])
        index.append(dump[f"train/roi/{image}/gt_index"][is_foreground])
    return _as_people(boxes, index)


def _as_people(boxes: Sequence[np.ndarray], index: Sequence[np.ndarray]) -> People:
    return People(
        boxes=jnp.asarray(_pad(boxes)),
        gt_index=jnp.asarray(_pad(index), jnp.int32),
        weight=jnp.asarray(_pad([np.ones(len(rows), np.float32) for rows in boxes])),
    )


def _image_of(dump: Dump, prefix: str, images: Sequence[str]) -> str:
    """Finds the image of the ROIs under `prefix`: the original counts those with ROIs only."""
    boxes = dump[f"{prefix}/proposal_boxes"]
    for image in images:
        rois = dump[f"train/roi/{image}/proposal_boxes"]
        if (boxes[:, None] == rois[None]).all(-1).any(-1).all():
            return image
    raise ValueError(f"{dump.path}: {prefix} holds boxes that no train/roi has")


def _pad(rows: Sequence[np.ndarray], fill: float = 0) -> np.ndarray:
    """Stacks arrays of different lengths."""
    length = max(max(len(row) for row in rows), 1)
    padded = np.full((len(rows), length, *rows[0].shape[1:]), fill, rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def run_step(dump: Dump, batch: Batch, samples: Samples, compute: Compute | None = None) -> Step:
    """Runs our forward and backward pass on the weights of a dump."""
    model = build_model(dump.config.model, compute=compute)
    loss = dump.config.loss.copy_and_resolve_references()
    # The original's sums over these images are not divided.
    loss.images_per_device = len(batch["image"])
    labels = mask_targets.exact_labels(dump) if "masks" in dump.config.model.tasks else None
    coarse = None
    if loss.coarse_segm_from_masks:
        coarse = jnp.asarray(mask_targets.exact_coarse_labels(dump, samples.people["densepose"]))

    def step(
        params: Mapping[str, Any],
        batch_stats: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        samples: Samples,
    ) -> Any:
        def total_loss(params: Mapping[str, Any]) -> tuple[Any, Any]:
            outputs, stats = forward.apply(
                model,
                loss,
                params=params,
                batch_stats=batch_stats,
                batch=batch,
                key=jax.random.key(0),
                samples=samples,
            )
            # A batch has masks on grids; the original's targets come from finer shapes.
            exact = None
            if labels is not None:
                exact = MaskTargets(jnp.asarray(labels), samples.people["masks"].weight.reshape(-1))
            losses = forward.compute_losses(model.config, loss, outputs, batch, exact, coarse)
            return sum(losses.values()), (losses, stats, outputs)

        return jax.value_and_grad(total_loss, has_aux=True)(params)

    params, stats = dump.variables["params"], dump.variables.get("batch_stats", {})
    (total, (losses, stats, outputs)), gradients = jax.device_get(
        jax.jit(step, compiler_options=_PLAIN_ROUNDING)(params, stats, batch, samples)
    )
    return Step(
        total=float(total),
        losses={name: float(value) for name, value in losses.items()},
        gradients=torch_names.to_torch({"params": gradients}),
        outputs=outputs,
        batch_stats=stats,
    )


def _matching(dump: Dump, batch: Batch, step: Step) -> Iterator[Row]:
    """Compares what precedes the sampling: labels of the anchors, and which ROIs are foreground."""
    thresholds = dump.config.model.rpn.iou_thresholds
    match = jax.jit(targets.match_anchors, static_argnums=3)
    for image in range(len(batch["image"])):
        key = f"train/rpn/{image}"
        matches, labels = match(
            step.outputs.anchors, batch["boxes"][image], batch["is_valid"][image], thresholds
        )
        stored = dump[f"{key}/gt_labels"]
        is_sampled = stored >= 0
        differ = (np.asarray(labels) != stored)[is_sampled].sum()
        yield Row(f"{key}/gt_labels", stored.shape, float(differ), 0.0, 0.0)
        boxes = batch["boxes"][image][np.asarray(matches)]
        error = np.abs(boxes - dump[f"{key}/matched_gt_boxes"])[stored == 1].max(initial=0)
        yield Row(f"{key}/matched_gt_boxes", boxes.shape, float(error), 0.0, BOX_PIXELS)
        yield _proposals(dump, image, step)
    yield from _chosen(dump, batch, step)


def _proposals(dump: Dump, image: int, step: Step) -> Row:
    """Counts the stored proposals that ours do not contain."""
    key = f"train/rpn/{image}/proposal_boxes"
    stored, ours = dump[key], step.outputs.proposals
    boxes = ours.boxes[image][ours.is_valid[image]]
    nearest = np.abs(stored[:, None] - boxes[None]).max(-1).min(-1, initial=np.inf)
    lost = float((nearest > BOX_PIXELS).mean()) if len(stored) else 0.0
    return Row(key, stored.shape, lost, 0.0, PROPOSAL_FRACTION)


def _chosen(dump: Dump, batch: Batch, step: Step) -> Iterator[Row]:
    """Compares our choice of ROIs for the DensePose branch, from the stored ROIs, with theirs."""
    rois, loss = jax.tree.map(jnp.asarray, step.outputs.samples.rois), dump.config.loss
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    images = dump.under("train/roi")
    for task, folder in (("densepose", "train/densepose"), ("keypoints", "train/keypoint")):
        if task not in dump.config.model.tasks:
            continue
        if task == "densepose":
            teachers = targets.teachers(
                arrays, densepose_people_only=True, from_masks=loss.coarse_segm_from_masks
            )
            threshold = loss.densepose_iou_threshold
            qualifies = targets.densepose_rois(rois, teachers, threshold)
        else:
            qualifies = targets.keypoint_rois(rois, arrays)
        number = rois.boxes.shape[1]
        people = targets.choose_people(jax.random.key(0), rois, qualifies, number)
        for stored in dump.under(folder):
            key = f"{folder}/{stored}/proposal_boxes"
            if key in dump.keys:
                image = images.index(_image_of(dump, f"{folder}/{stored}", images))
                chosen = np.asarray(people.boxes[image])[np.asarray(people.weight[image]) > 0]
                yield compare(dump, key, chosen, limit=BOX_PIXELS)


def _intermediates(dump: Dump, step: Step) -> Iterator[Row]:
    outputs = step.outputs
    for level in dump.under("train/backbone_mean_std"):
        key = f"train/backbone_mean_std/{level}"
        maps = np.asarray(outputs.pyramid.maps[level], np.float64)
        limit = END_TO_END * dump[key][1]
        yield compare(dump, key, [maps.mean(), maps.std(ddof=1)], limit=limit)
    is_valid = np.asarray(outputs.samples.rois.is_valid)
    for name, ours in (("cls_logits", outputs.class_logits), ("deltas", outputs.deltas)):
        key = f"train/box/{name}"
        if key in dump.keys:
            yield compare(dump, key, ours[is_valid], limit=END_TO_END * dump[key].std())
    yield from _branch_outputs(dump, step)
    key = "train/densepose/head"
    if key in dump.keys and outputs.head_features is not None:
        weight = outputs.samples.people["densepose"].weight.reshape(-1)
        features = to_nchw(outputs.head_features[weight > 0])[: len(dump[key])]
        noise = NOISE_FACTOR * dump.noise.get("infer/densepose/head", 0.0)
        limit = max(END_TO_END * dump[key].std(), noise)
        yield compare(dump, key, features, limit=limit)


def _branch_outputs(dump: Dump, step: Step) -> Iterator[Row]:
    """Compares the first rows that the mask and keypoint heads give in training."""
    for task, key, ours in (
        ("masks", "train/mask/logits", step.outputs.masks),
        ("keypoints", "train/keypoint/lowres", step.outputs.keypoint_scores),
    ):
        if key in dump.keys and ours is not None:
            weight = step.outputs.samples.people[task].weight.reshape(-1)
            first = np.asarray(ours)[weight > 0][: len(dump[key])]
            first = first[:, None] if task == "masks" else to_nchw(first)
            yield compare(dump, key, first, limit=END_TO_END * dump[key].std())


def _losses(dump: Dump, step: Step) -> Iterator[Row]:
    names = LOSSES
    if "keypoints" in dump.config.model.tasks:  # and not of KTN's predictor
        names = LOSSES | {"loss_keypoint": "keypoint_head"}
    for theirs in dump.under("train/losses"):
        key = f"train/losses/{theirs}"
        ours = step.total if theirs == "total" else step.losses.get(names.get(theirs, theirs))
        expected = float(dump[key])
        error = np.inf if ours is None else abs(ours - expected)
        limit = max(LOSS * abs(expected), NOISE_FACTOR * dump.noise.get(key, 0.0))
        yield Row(key, (), error, error / max(abs(expected), 1e-12), limit)


def _statistics(dump: Dump, step: Step) -> Iterator[Row]:
    """Running statistics of batch norms after the step."""
    names = dump.under("train/after_step")
    if not names:
        return
    state = torch_names.to_torch(
        {"params": dump.variables["params"], "batch_stats": step.batch_stats}
    )
    for name in names:
        yield compare(dump, f"train/after_step/{name}", state[name], END_TO_END)


def _gradient_limit(dump: Dump, name: str) -> float:
    model = dump.config.model
    limit = GRADIENT_BATCH_NORM if model.backbone.norm == "BN" else GRADIENT
    noise = NOISE_FACTOR * _gradient_noise(dump, name)
    return max(limit, noise, WORST_NOISE_FACTOR * dump.worst_gradient_noise)


def _gradient_noise(dump: Dump, name: str) -> float:
    """The noise of a gradient; of one that was not recorded, the largest of its module.

    Where rounding turns a single ReLU on or off, it changes all gradients of a head.
    """
    if name in dump.gradient_noise:
        return dump.gradient_noise[name]
    parts = name.split(".")
    module = ".".join(parts[:1] if parts[0] == "backbone" else parts[:2]) + "."
    recorded = (noise for key, noise in dump.gradient_noise.items() if key.startswith(module))
    return max(recorded, default=0.0)


def _gradients(dump: Dump, step: Step) -> Iterator[Row]:
    for name in dump.under("grad"):
        key = f"grad/{name}"
        expected = np.asarray(dump[key], np.float64)
        base, _, rows = name.partition("[:")
        ours = np.asarray(step.gradients[base], np.float64)
        ours = ours[: int(rows.rstrip("]"))] if rows else ours
        if ours.shape != expected.shape:
            yield Row(f"{key} (ours {ours.shape})", expected.shape, np.inf, np.inf, 0.0)
            continue
        error, norm = float(np.linalg.norm(ours - expected)), float(np.linalg.norm(expected))
        yield _gradient_row(key, expected.shape, error, norm, _gradient_limit(dump, name))


def _gradient_row(key: str, shape: tuple[int, ...], error: float, norm: float, limit: float) -> Row:
    """A row whose error is relative to the norm, or absolute for a gradient of zero."""
    if norm < ZERO_GRADIENT:
        return Row(f"{key} (zero)", shape, float(error), 0.0, ZERO_LIMIT)
    return Row(key, shape, float(error / norm), float(error / norm), limit)


def _gradient_norms(dump: Dump, step: Step) -> Iterator[Row]:
    """L2 norm and sum of the gradient of every parameter; null is exactly zero."""
    key = "train/grad_norms_json"
    if key not in dump.keys:
        return
    for name, expected in json.loads(str(dump[key])).items():
        gradient = step.gradients.get(name)
        row_key = f"{key}/{name}"
        if gradient is None:
            yield Row(f"{row_key} (not ours)", (), np.inf, np.inf, 0.0)
            continue
        gradient = np.asarray(gradient, np.float64)
        norm = float(np.linalg.norm(gradient))
        if expected is None:
            yield Row(f"{row_key} (null)", gradient.shape, norm, 0.0, 0.0)
            continue
        # A difference d of two gradients changes the sum by at most |d| sqrt(size).
        of_sum = abs(gradient.sum() - expected[1]) / np.sqrt(gradient.size)
        error = max(abs(norm - expected[0]), of_sum)
        limit = _gradient_limit(dump, name)
        yield _gradient_row(row_key, gradient.shape, error, expected[0], limit)
