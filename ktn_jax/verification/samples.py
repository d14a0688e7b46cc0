"""The training batch of a dump, and what the original drew at random to train on."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ktn_jax.body import parts
from ktn_jax.evaluation.masks import part_labels
from ktn_jax.losses.detection import AnchorTargets, RoiTargets
from ktn_jax.losses.embeddings import CycleSamples, mesh_pairs
from ktn_jax.modeling.detector import size_multiple
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.training.targets import People, Samples
from ktn_jax.verification import mask_targets
from ktn_jax.verification.dump import Dump
from ktn_jax.verification.mask_targets import people_of_image

Batch = dict[str, np.ndarray]


def read_batch(dump: Dump) -> Batch:
    """Builds the training batch of a dump: its images, padded to one size, and their people.

    Raises:
        ValueError: the people of an image are not as many as its boxes.
    """
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
    shape = (len(images), max(max_people, 1))
    batch = {
        "image": np.zeros((len(images), *canvas, 3), np.uint8),
        "image_size_hw": sizes.astype(np.int32),
        **_empty_people(shape, max(max_points, 1)),
    }
    if _has_masks(dump):
        batch |= _empty_masks(shape)
    if has_embeddings(dump.config.model):
        batch["point_vertex"] = np.zeros((*shape, max(max_points, 1)), np.int32)
        batch["mesh"] = np.zeros(shape, np.int32)
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
    loss = dump.config.loss
    is_needed = loss.coarse_segm_from_masks or loss.pixel_cycle.weight > 0
    return "masks" in dump.config.model.tasks or is_needed


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
        if has_embeddings(dump.config.model) and "dp_vertex" in record:
            person["point_vertex"] = np.asarray(record["dp_vertex"])
            person["mesh"] = tuple(dump.config.model.meshes.names).index(record["ref_model"])
        if has_densepose:
            person["part_mask"] = part_labels(record["dp_masks"])
        people.append(person)
    if _has_masks(dump):
        grids = mask_targets.on_grids(dump, index, records, boxes)
        for person, grid in zip(people, grids, strict=True):
            person |= {"person_mask": grid, "has_person_mask": True}
    return people


def read_samples(dump: Dump) -> Samples:
    """Reads what the original trained on: anchors, ROIs and the ROIs of each branch.

    Raises:
        ValueError: ROIs of a branch that are none of the sampled ones.
    """
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
    return Samples(anchors, rois, people, _read_cycles(dump, people))


def _read_cycles(dump: Dump, people: Mapping[str, People]) -> CycleSamples | None:
    """Reads what the cycle losses of an embedding model compared."""
    loss, meshes = dump.config.loss, dump.config.model.meshes
    if loss.pixel_cycle.weight == 0 and loss.shape_cycle.weight == 0:
        return None
    names = tuple(meshes.names)
    is_used = np.asarray(people["densepose"].weight).reshape(-1) > 0
    most = max(loss.pixel_cycle.num_pixels, 1)
    pixels = np.zeros((len(is_used), len(names), most), np.int32)
    is_pixel = np.zeros(pixels.shape, bool)
    # The original counts meshes of the batch by its own numbers, or all in the configuration's
    # order.
    order = list(range(len(names)))
    if not loss.pixel_cycle.has_all_meshes:
        numbers = json.loads(str(dump["mesh/ids_json"]))
        annotations = json.loads(str(dump["train/annotations_json"]))["annotations"]
        in_batch = {record["ref_model"] for record in annotations if "ref_model" in record}
        order = [names.index(name) for name in sorted(in_batch, key=numbers.__getitem__)]
    stored = len(dump.under("train/cycle/pixel_indices"))
    cells = [(roi, mesh) for roi in np.flatnonzero(is_used) for mesh in order]
    if loss.pixel_cycle.weight > 0 and stored != len(cells):
        raise ValueError(
            f"{dump.path}: train/cycle/pixel_indices has {stored} entries, wanted {len(cells)}"
        )
    for number, (roi, mesh) in enumerate(cells[:stored]):
        drawn = dump[f"train/cycle/pixel_indices/{number}"]
        pixels[roi, mesh, : len(drawn)], is_pixel[roi, mesh, : len(drawn)] = drawn, True
    pair, vertices = 0, [np.arange(number) for number in meshes.num_vertices]
    if loss.shape_cycle.weight > 0:
        first_and_second = [
            names.index(name) for name in json.loads(str(dump["train/cycle/shape_pair_json"]))
        ]
        pair = mesh_pairs(len(names)).index((min(first_and_second), max(first_and_second)))
        for place, mesh in enumerate(first_and_second):
            key = f"train/cycle/vertex_indices/{place}"
            vertices[mesh] = dump[key] if key in dump.keys else vertices[mesh]
    return CycleSamples(
        pixels=jnp.asarray(pixels),
        is_pixel=jnp.asarray(is_pixel),
        pair=jnp.asarray(pair),
        vertices=tuple(jnp.asarray(drawn) for drawn in vertices),
    )


def _read_with_densepose(dump: Dump, images: Sequence[str]) -> People:
    empty = np.zeros((0, 4), np.float32)
    boxes, gt_boxes = dict.fromkeys(images, empty), dict.fromkeys(images, empty)
    for stored in dump.under("train/densepose"):
        prefix = f"train/densepose/{stored}"
        if f"{prefix}/proposal_boxes" in dump.keys:
            image = image_of(dump, prefix, images)
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
            image = image_of(dump, prefix, images)
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


def image_of(dump: Dump, prefix: str, images: Sequence[str]) -> str:
    """Finds the image of the ROIs under `prefix`: the original counts those with ROIs only.

    Args:
        dump: of one of the originals.
        prefix: such as "train/densepose/0".
        images: numbers of the images, as the dump writes them.

    Raises:
        ValueError: no image has all of these ROIs.
    """
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
