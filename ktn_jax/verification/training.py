"""Compares a training step: losses, gradients and statistics, on the stored samples.

What the original drew at random (anchors, ROIs) is read from the dump; what follows from it, and
what precedes it, is computed from the stored images and annotations on.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.checkpoints import torch_names
from ktn_jax.losses.masks_keypoints import MaskTargets
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import build_model
from ktn_jax.training import forward, targets
from ktn_jax.training.targets import Samples
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
from ktn_jax.verification.samples import Batch, image_of, read_batch, read_samples

Gradients = Mapping[str, np.ndarray]  # names and layouts of the original

LOSS = 1e-4  # relative
GRADIENT = 1e-3  # of the L2 norm
GRADIENT_BATCH_NORM = 5e-3  # batch statistics amplify rounding
# Optimised programs fuse products with sums, each CPU in its own way. Norms over nearly constant
# regions amplify what that changes until gradients are out of tolerance; whether the definitions
# agree shows best where every operation is rounded on its own.
_PLAIN_ROUNDING = {"xla_backend_optimization_level": 0}
# Gradients whose norm is below this are zero but for rounding (a bias in front of a softmax or of a
# batch norm); they are compared absolutely.
ZERO_GRADIENT = 1e-5
ZERO_LIMIT = 1e-4
# Rounding can turn a ReLU on or off, which changes all gradients before it by more than the limits.
# Gradients out of tolerance are compared again with what our own change by, at most, when all
# weights are changed at random by this share: many times a rounding error, so that no factor is
# needed. What was out of tolerance in the dumps at hand was up to 0.4 times as far off.
_WEIGHT_NOISE = 2**-18
_NOISY_RUNS = 4
# More than this is not allowed for it: a gradient that is near zero can move by more than its norm.
OWN_NOISE_LIMIT = 0.1
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
    "loss_pix2shape": "pixel_cycle",
    "loss_shape2shape": "shape_cycle",
}
_MESH_LOSS = "loss_densepose_E"  # and the mesh's name


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of ours on the stored batch and samples."""

    total: float
    losses: Mapping[str, float]
    gradients: Gradients
    outputs: forward.TrainingOutputs
    batch_stats: Mapping[str, Any]
    noisy_gradients: Callable[[], list[Gradients]]  # of slightly changed weights


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
    """Compares a step of ours with the stored one.

    Args:
        dump: with a training step.
        batch: of `samples.read_batch`.
        step: of `run_step` on it.

    Yields:
        A row for everything that is compared.
    """
    yield from _matching(dump, batch, step)
    if "masks" in dump.config.model.tasks:
        yield from mask_targets.compare_targets(dump, batch, step.outputs.samples.people["masks"])
    if dump.config.loss.coarse_segm_from_masks:
        people = step.outputs.samples.people["densepose"]
        yield from mask_targets.compare_coarse_targets(dump, batch, people)
    yield from _intermediates(dump, step)
    yield from _losses(dump, step)
    yield from _statistics(dump, step)
    noise: Mapping[str, float] = {}
    rows = [*_gradients(dump, step, noise), *_gradient_norms(dump, step, noise)]
    if not all(row.is_ok for row in rows):
        noise = _own_noise(step)
        rows = [*_gradients(dump, step, noise), *_gradient_norms(dump, step, noise)]
    yield from rows


def _own_noise(step: Step) -> dict[str, float]:
    """How far each gradient moves with the noise of the weights, relative to its L2 norm."""
    first, *others = step.noisy_gradients()
    noise = {}
    for name, gradient in first.items():
        norm = float(np.linalg.norm(gradient))
        moved = [float(np.linalg.norm(other[name] - gradient)) for other in others]
        noise[name] = max(moved) / norm if norm > 0 else 0.0
    return noise


def run_step(dump: Dump, batch: Batch, samples: Samples, compute: Compute | None = None) -> Step:
    """Runs our forward and backward pass on the weights of a dump.

    Args:
        dump: with a training step.
        batch: of `samples.read_batch`.
        samples: of `samples.read_samples`.
        compute: as `build_model` takes it.
    """
    model = build_model(dump.config.model, compute=compute)
    loss = dump.config.loss.copy_and_resolve_references()
    # The original's sums over these images are not divided.
    loss.images_per_device = len(batch["image"])
    labels = mask_targets.exact_labels(dump) if "masks" in dump.config.model.tasks else None
    coarse = None
    if loss.coarse_segm_from_masks:
        coarse = jnp.asarray(mask_targets.exact_coarse_labels(dump, samples.people["densepose"]))

    geodesics = {
        mesh: jnp.asarray(dump[f"mesh/{mesh}/geodists"])
        for mesh in dump.under("mesh")
        if f"mesh/{mesh}/geodists" in dump.keys
    }

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
            losses = forward.compute_losses(
                model.config, loss, outputs, batch, exact, coarse, geodesics
            )
            return sum(losses.values()), (losses, stats, outputs)

        return jax.value_and_grad(total_loss, has_aux=True)(params)

    compiled = jax.jit(step, compiler_options=_PLAIN_ROUNDING)
    params, stats = dump.variables["params"], dump.variables.get("batch_stats", {})

    def run(params: Mapping[str, Any]) -> tuple[Any, Gradients]:
        values, gradients = jax.device_get(compiled(params, stats, batch, samples))
        return values, torch_names.to_torch({"params": gradients})

    @functools.cache
    def noisy_gradients() -> list[Gradients]:
        rng = np.random.default_rng(0)

        def change(weights: np.ndarray) -> np.ndarray:
            factors = 1 + _WEIGHT_NOISE * rng.standard_normal(np.shape(weights))
            return (weights * factors).astype(np.float32)

        return [run(jax.tree.map(change, params))[1] for _ in range(_NOISY_RUNS)]

    (total, (losses, new_stats, outputs)), gradients = run(params)
    return Step(
        total=float(total),
        losses={name: float(value) for name, value in losses.items()},
        gradients=gradients,
        outputs=outputs,
        batch_stats=new_stats,
        noisy_gradients=noisy_gradients,
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
    """Compares our choice of ROIs for the branches, from the stored ROIs, with theirs."""
    rois = jax.tree.map(jnp.asarray, step.outputs.samples.rois)
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    images = dump.under("train/roi")
    keys = jax.random.split(jax.random.key(0), len(images))  # not read: all ROIs fit
    for task, folder in (("densepose", "train/densepose"), ("keypoints", "train/keypoint")):
        if task not in dump.config.model.tasks:
            continue
        qualifies, _ = forward.training_rois(task, dump.config.loss, rois, arrays)
        number = rois.boxes.shape[1]
        people = targets.choose_people(keys, rois, qualifies, number)
        for stored in dump.under(folder):
            key = f"{folder}/{stored}/proposal_boxes"
            if key in dump.keys:
                image = images.index(image_of(dump, f"{folder}/{stored}", images))
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
    head_features = outputs.stages[0].features.get("densepose")
    if key in dump.keys and head_features is not None:
        weight = outputs.samples.people["densepose"].weight.reshape(-1)
        features = to_nchw(head_features[weight > 0])[: len(dump[key])]
        noise = NOISE_FACTOR * dump.noise.get("infer/densepose/head", 0.0)
        limit = max(END_TO_END * dump[key].std(), noise)
        yield compare(dump, key, features, limit=limit)
    key = "train/densepose/embedding"
    embeddings = outputs.stages[0].embeddings
    if key in dump.keys and embeddings is not None:
        weight = outputs.samples.people["densepose"].weight.reshape(-1)
        maps = to_nchw(embeddings.embedding[weight > 0])[: len(dump[key])]
        yield compare(dump, key, maps, limit=END_TO_END * dump[key].std())


def _branch_outputs(dump: Dump, step: Step) -> Iterator[Row]:
    """Compares the first rows that the mask and keypoint heads give in training."""
    for task, key, ours in (
        ("masks", "train/mask/logits", step.outputs.stages[0].mask_logits),
        ("keypoints", "train/keypoint/lowres", step.outputs.stages[0].keypoint_scores),
    ):
        if key in dump.keys and ours is not None:
            weight = step.outputs.samples.people[task].weight.reshape(-1)
            first = np.asarray(ours)[weight > 0][: len(dump[key])]
            first = first[:, None] if task == "masks" else to_nchw(first)
            yield compare(dump, key, first, limit=END_TO_END * dump[key].std())


def _losses(dump: Dump, step: Step) -> Iterator[Row]:
    names = dict(LOSSES)
    if "keypoints" in dump.config.model.tasks:  # and not of KTN's predictor
        names = LOSSES | {"loss_keypoint": "keypoint_head"}
    names |= {f"{_MESH_LOSS}{mesh}": f"embedding_{mesh}" for mesh in dump.config.model.meshes.names}
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


def _gradient_limit(dump: Dump, name: str, own_noise: Mapping[str, float]) -> float:
    model = dump.config.model
    limit = GRADIENT_BATCH_NORM if model.backbone.norm == "BN" else GRADIENT
    own = min(own_noise.get(name.partition("[:")[0], 0.0), OWN_NOISE_LIMIT)
    recorded = NOISE_FACTOR * dump.gradient_noise.get(name, 0.0)
    return max(limit, own, recorded)


def _gradients(dump: Dump, step: Step, noise: Mapping[str, float]) -> Iterator[Row]:
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
        yield _gradient_row(key, expected.shape, error, norm, _gradient_limit(dump, name, noise))


def _gradient_row(key: str, shape: tuple[int, ...], error: float, norm: float, limit: float) -> Row:
    """A row whose error is relative to the norm, or absolute for a gradient of zero."""
    if norm < ZERO_GRADIENT:
        return Row(f"{key} (zero)", shape, float(error), 0.0, ZERO_LIMIT)
    return Row(key, shape, float(error / norm), float(error / norm), limit)


def _gradient_norms(dump: Dump, step: Step, noise: Mapping[str, float]) -> Iterator[Row]:
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
        limit = _gradient_limit(dump, name, noise)
        yield _gradient_row(row_key, gradient.shape, error, expected[0], limit)
