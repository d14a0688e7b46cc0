"""Targets of masks as the original makes them, from the polygons or bitmasks of a dump.

detectron2 has two kinds: polygons, drawn anew at the size of the target, and bitmasks
of the image's resolution, cut out by ROIAlign. Training here has masks on a grid over the person's
box, of which the targets are cut (`losses.masks_keypoints.mask_labels`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.body.parts import PART_GRID
from ktn_jax.evaluation.masks import decode
from ktn_jax.ops.roi_align import multilevel_roi_align
from ktn_jax.training import targets
from ktn_jax.training.targets import People
from ktn_jax.verification.dump import Dump, Row

_MIN_SIDE = 0.1  # pixels; detectron2 scales polygons by the target's size over at least this
# Of cells that our targets, from a grid, may have otherwise: the original's own two kinds differ in
# 0.6 % of them.
GRID_FRACTION = 0.02


def people_of_image(annotations: Mapping[str, Any], image_id: int) -> list[Mapping[str, Any]]:
    """The annotations of an image that are no crowds."""
    return [
        record
        for record in annotations["annotations"]
        if record["image_id"] == image_id and not record.get("iscrowd", 0)
    ]


def on_grids(
    dump: Dump, image: int, records: Sequence[Mapping[str, Any]], boxes: np.ndarray
) -> list[np.ndarray]:
    """Makes the masks of an image's people as a batch has them.

    Args:
        dump: with polygons in the records, or bitmasks of its own.
        image: number of the image.
        records: annotations of its G people.
        boxes: [G, 4] xyxy in pixels of the network input.

    Returns:
        uint8 [256, 256], 0 or 1, over the box of each.
    """
    key = f"train/gt/{image}/masks"
    if key not in dump.keys:
        return [
            _draw(record["segmentation"], box, PART_GRID)
            for record, box in zip(records, boxes, strict=True)
        ]
    return grids_of_bitmasks(dump[key], boxes)


def grids_of_bitmasks(masks: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """Reads masks uint8 [G, H, W] at the middles of cells of grids over boxes [G, 4].

    Returns:
        uint8 [256, 256] for each person. Cells outside the image read its border.
    """
    grids = []
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        middles = (np.arange(PART_GRID) + 0.5) / PART_GRID
        columns = np.clip((x0 + middles * (x1 - x0)).astype(int), 0, mask.shape[1] - 1)
        rows = np.clip((y0 + middles * (y1 - y0)).astype(int), 0, mask.shape[0] - 1)
        grids.append(mask[np.ix_(rows, columns)].astype(np.uint8))
    return grids


def _draw(polygons: Sequence[Sequence[float]], box: np.ndarray, size: int) -> np.ndarray:
    """Draws polygons within a box [4], uint8 [size, size], as detectron2 does."""
    scale = size / np.maximum(box[2:] - box[:2], _MIN_SIDE)
    rings = [
        ((np.reshape(np.asarray(ring, np.float64), (-1, 2)) - box[:2]) * scale).ravel().tolist()
        for ring in polygons
    ]
    drawn = coco_mask.merge(coco_mask.frPyObjects(rings, size, size))
    return decode([drawn])[..., 0]


def exact_labels(dump: Dump) -> np.ndarray:
    """The original's targets of all foreground ROIs, padded as the samples are: bool [N, S, S]."""
    kinds = _of_kinds(dump)
    own = kinds["bitmask"] if _has_bitmasks(dump) else kinds["polygon"]
    longest = max(max(len(labels) for labels in own), 1)
    padded = [np.pad(x, ((0, longest - len(x)), (0, 0), (0, 0))) for x in own]
    return np.concatenate(padded).astype(bool)


def exact_coarse_labels(dump: Dump, people: People) -> np.ndarray:
    """The original's targets of person against background where masks train it: bool [N, S, S].

    Args:
        dump: of a model with charts.
        people: ROIs that train them.

    Returns:
        Of N = B * K ROIs, those of padding included, image by image; S is the side of the charts.
    """
    model = dump.config.model
    size = 2 * model.densepose_head.pooled_size * model.predictor.up_scale
    annotations = json.loads(str(dump["train/annotations_json"]))
    labels = []
    for image, entry in enumerate(annotations["images"]):
        records = people_of_image(annotations, entry["id"])
        masks = _bitmasks(dump, image, [record.get("segmentation") for record in records])
        index, rois = np.asarray(people.gt_index[image]), np.asarray(people.boxes[image])
        labels.append(cut_bitmasks(masks, index, rois, size))
    return np.concatenate(labels)


def cut_bitmasks(masks: np.ndarray, index: np.ndarray, rois: np.ndarray, size: int) -> np.ndarray:
    """Cuts ROIs out of masks of the image's resolution, as detectron2 does.

    Args:
        masks: uint8 [G, H, W] of an image's people.
        index: int [R], the person of each ROI.
        rois: [R, 4] in the image.
        size: S.

    Returns:
        bool [R, S, S].
    """
    maps = jnp.asarray(masks, jnp.float32)[..., None]
    batch_index = jnp.asarray(index, jnp.int32)
    cut = multilevel_roi_align([maps], [1], jnp.asarray(rois), batch_index, size, 0, True)
    return np.asarray(cut[..., 0] >= 0.5)


def _has_bitmasks(dump: Dump) -> bool:
    return any(f"train/gt/{image}/masks" in dump.keys for image in dump.under("train/gt"))


def _of_kinds(dump: Dump) -> dict[str, list[np.ndarray]]:
    """Targets [R, S, S] of the foreground of each image, of the kinds that the dump allows."""
    annotations = json.loads(str(dump["train/annotations_json"]))
    size = dump["train/mask/targets"].shape[-1]
    num_classes = dump.config.model.box_head.num_classes
    kinds: dict[str, list[np.ndarray]] = {}
    for image, entry in enumerate(annotations["images"]):
        prefix = f"train/roi/{image}"
        is_foreground = dump[f"{prefix}/gt_classes"] < num_classes
        rois = dump[f"{prefix}/proposal_boxes"][is_foreground]
        index = dump[f"{prefix}/gt_index"][is_foreground]
        shapes = [
            record.get("segmentation") for record in people_of_image(annotations, entry["id"])
        ]
        if all(isinstance(shape, list) for shape in shapes):
            drawn = [_draw(shapes[i], roi, size) for i, roi in zip(index, rois, strict=True)]
            kinds.setdefault("polygon", []).append(np.reshape(drawn, (-1, size, size)))
        cut = cut_bitmasks(_bitmasks(dump, image, shapes), index, rois, size)
        kinds.setdefault("bitmask", []).append(cut)
    return kinds


def _bitmasks(dump: Dump, image: int, shapes: Sequence[Any]) -> np.ndarray:
    """Masks [G, H, W] of an image's people: stored ones, or polygons that are drawn."""
    key = f"train/gt/{image}/masks"
    if key in dump.keys:
        return dump[key]
    height, width = dump[f"train/input/{image}/image_bgr_uint8"].shape[:2]
    drawn = [
        decode([coco_mask.merge(coco_mask.frPyObjects(list(shape), height, width))])[..., 0]
        for shape in shapes
    ]
    return np.stack(drawn)


def compare_targets(dump: Dump, batch: Mapping[str, Any], people: People) -> Iterator[Row]:
    """Compares targets of either kind with the stored ones, and ours from the batch's grids.

    Args:
        dump: with masks.
        batch: of `samples.read_batch`.
        people: ROIs that train masks.

    Yields:
        Rows whose error is the share of cells that differ.
    """
    kinds = _of_kinds(dump)
    for kind, own in kinds.items():
        key = f"train/mask/targets_{kind}"
        if key in dump.keys:
            yield _share(dump, key, np.concatenate(own), 0.0)
    own = kinds["bitmask"] if _has_bitmasks(dump) else kinds["polygon"]
    yield _share(dump, "train/mask/targets", np.concatenate(own), 0.0)
    size = dump["train/mask/targets"].shape[-1]
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    cut = jax.jit(targets.mask_targets, static_argnums=2)(people, arrays, size)
    labels = np.asarray(cut.labels)[np.asarray(cut.weight) > 0]
    yield _share(dump, "train/mask/targets", labels, GRID_FRACTION, " from grids")


def compare_coarse_targets(dump: Dump, batch: Mapping[str, Any], people: People) -> Iterator[Row]:
    """Compares the targets of charts whose person against background is trained by masks.

    Args:
        dump: with DensePose and masks.
        batch: of `samples.read_batch`.
        people: ROIs that train charts.

    Yields:
        Rows as of `compare_targets`: the exact targets if the dump has them, and those from grids.
    """
    key = "train/densepose/mask_targets"
    exact, is_used = exact_coarse_labels(dump, people), np.asarray(people.weight).reshape(-1) > 0
    if key in dump.keys:
        yield _share(dump, key, exact[is_used], 0.0)
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    cut = jax.jit(targets.mask_targets, static_argnums=2)(people, arrays, exact.shape[1])
    differing = float((np.asarray(cut.labels) != exact)[is_used].mean()) if is_used.any() else 0.0
    yield Row(f"{key} from grids", exact.shape, differing, 0.0, GRID_FRACTION)


def _share(dump: Dump, key: str, labels: np.ndarray, limit: float, note: str = "") -> Row:
    expected = dump[key].astype(bool)
    if labels.shape != expected.shape:
        return Row(f"{key}{note} (ours {labels.shape})", expected.shape, np.inf, np.inf, 0.0)
    return Row(f"{key}{note}", expected.shape, float((labels != expected).mean()), 0.0, limit)
