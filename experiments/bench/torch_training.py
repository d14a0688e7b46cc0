"""A training step of the PyTorch side: losses, gradients and SGD, in detectron2's order.

The samples to train on are given (`Sampled`), so that both sides can be compared; proposals are
still made and matched, as in every step of detectron2.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch_peer import Peer

Tensor = torch.Tensor


@dataclasses.dataclass
class Sampled:
    """What a step trains on. B images, A anchors, R and N ROIs of all, P points a person.

    Its maker leaves padding out.
    """

    anchor_labels: Tensor  # int64 [B, A]: 1, 0, -1
    anchor_boxes: Tensor  # [B, A, 4]
    anchors: Tensor  # [A, 4]
    gt_boxes: Tensor  # [B, G, 4]
    rois: Tensor  # [R, 5] image, xyxy; of the box head
    roi_is_person: Tensor  # bool [R]
    roi_gt_boxes: Tensor  # [R, 4]
    people: Tensor  # [N, 5]; of the DensePose branch
    weight: Tensor  # [N]
    people_gt_boxes: Tensor  # [N, 4]
    point_is_valid: Tensor  # bool [N, P]
    point_x: Tensor  # [N, P]
    point_y: Tensor
    point_u: Tensor
    point_v: Tensor
    point_i: Tensor  # int64 [N, P]
    parts: Tensor  # int64 [N, S, S] coarse parts over the cells of the maps
    keypoint_cells: Tensor  # int64 [N, 17]
    keypoint_is_valid: Tensor  # bool [N, 17]


class Trainer:
    """The peer and its optimizer."""

    def __init__(self, config: ConfigDict, state: dict[str, np.ndarray], images: np.ndarray):
        """Takes a whole configuration, the original's state dict and images [B, H, W, 3]."""
        self.model, self.loss = config.model, config.loss
        self.peer = Peer(config.model, state, train=True)
        self.images, self.size_hw = images, images.shape[1:3]
        self.optimizer = torch.optim.SGD(
            list(self.peer.trained.values()),
            lr=config.optimizer.learning_rate,
            momentum=config.optimizer.momentum,
            weight_decay=config.optimizer.weight_decay,
        )

    def step(self, sampled: Sampled) -> dict[str, Tensor]:
        """Takes a step; returns the losses by name, weighted."""
        losses = self.losses(sampled)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def losses(self, sampled: Sampled) -> dict[str, Tensor]:
        """Runs the model on the images."""
        peer = self.peer
        x = torch.cat([peer.normalise(image, self.size_hw) for image in self.images])
        levels = peer.pyramid(x)
        outputs = peer.rpn_heads(levels)
        with torch.no_grad():
            for image, gt_boxes in enumerate(sampled.gt_boxes):
                proposals = peer.select(levels, outputs, self.size_hw, image, train=True)
                label_anchors(sampled.anchors, gt_boxes, self.model.rpn.iou_thresholds)
                pairwise_iou(gt_boxes, torch.cat([proposals, gt_boxes])).max(0)
        losses = self._rpn_losses(*outputs, sampled)
        losses |= self._box_losses(*peer.classify(levels, sampled.rois), sampled)
        features = peer.pool_and_head(peer.decode_pyramid(levels), sampled.people)
        maps = peer.predict(features)
        return losses | self._point_losses(maps, sampled) | self._area_losses(maps, sampled)

    def _rpn_losses(self, logits, deltas, sampled: Sampled) -> dict[str, Tensor]:
        logits, deltas = torch.cat(logits, 1), torch.cat(deltas, 1)
        is_used, is_person = sampled.anchor_labels >= 0, sampled.anchor_labels == 1
        entropy = F.binary_cross_entropy_with_logits(
            logits[is_used], sampled.anchor_labels[is_used].float(), reduction="sum"
        )
        anchors = sampled.anchors.expand_as(sampled.anchor_boxes)[is_person]
        wanted = encode(anchors, sampled.anchor_boxes[is_person], self.model.rpn.delta_weights)
        scale = self.loss.rpn_weight / (self.model.rpn.batch_size_per_image * len(logits))
        distance = (deltas[is_person] - wanted).abs().sum()
        return {
            "rpn_objectness": scale * entropy,
            "rpn_deltas": scale * self.loss.rpn_delta_weight * distance,
        }

    def _box_losses(self, logits, deltas, sampled: Sampled) -> dict[str, Tensor]:
        is_person = sampled.roi_is_person
        boxes, gt_boxes = sampled.rois[is_person, 1:], sampled.roi_gt_boxes[is_person]
        wanted = encode(boxes, gt_boxes, self.model.box_head.delta_weights)
        distance = (deltas[is_person] - wanted).abs().sum() / len(logits)
        return {
            "box_class": F.cross_entropy(logits, (~is_person).long()),
            "box_deltas": self.loss.box_delta_weight * distance,
        }

    def _point_losses(self, maps: dict[str, Tensor], sampled: Sampled) -> dict[str, Tensor]:
        weights = sampled.weight[:, None]
        size = maps["u"].shape[-1]
        cells, shares, is_inside = place_points(sampled, size)
        row, point = (sampled.point_is_valid & is_inside).nonzero(as_tuple=True)
        patch, weight = sampled.point_i[row, point], weights.expand_as(is_inside)[row, point]
        cells, shares = cells[:, row, point], shares[:, row, point]
        logits = maps["fine_segm"].flatten(2).permute(0, 2, 1)[row, cells]  # [4, points, C]
        entropy = F.cross_entropy((shares[..., None] * logits).sum(0), patch, reduction="none")
        scale = self.loss.point_weight * self.loss.images_per_device / len(self.images)
        on_body = weight * (patch > 0)
        losses = {"fine_segm": self.loss.fine_segm_weight * mean(entropy, weight)}
        for name, wanted in (("u", sampled.point_u), ("v", sampled.point_v)):
            values = (shares * maps[name].flatten(2)[row, patch, cells]).sum(0)
            distance = F.smooth_l1_loss(values, wanted[row, point], reduction="none")
            losses[name] = scale * (on_body * distance).sum()
        return losses

    def _area_losses(self, maps: dict[str, Tensor], sampled: Sampled) -> dict[str, Tensor]:
        def over_cells(logits: Tensor, labels: Tensor) -> Tensor:
            entropy = F.cross_entropy(logits, labels, reduction="none").mean((1, 2))
            return mean(entropy, sampled.weight)

        body = over_cells(maps["coarse_segm"], sampled.parts.clamp(max=1))
        if "part_segm" not in maps:
            return {"coarse_segm": self.loss.coarse_segm_weight * body}
        logits = maps["keypoints"].flatten(2).flatten(0, 1)
        entropy = F.cross_entropy(logits, sampled.keypoint_cells.flatten(), reduction="none")
        weight = sampled.keypoint_is_valid * sampled.weight[:, None]
        return {
            "coarse_segm": self.loss.coarse_segm_weight
            * over_cells(maps["part_segm"], sampled.parts),
            "body_mask": self.loss.body_mask_weight * body,
            "keypoints": self.loss.keypoint_weight * mean(entropy, weight.flatten()),
        }


def sampled_from(arrays: dict[str, np.ndarray]) -> Sampled:
    """Makes tensors of arrays by the names of `Sampled`."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    for name, value in tensors.items():
        tensors[name] = value.long() if value.dtype in (torch.int32, torch.uint8) else value
    return Sampled(**tensors)


def mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean, 0 without weight."""
    return (values * weight).sum() / weight.sum().clamp(min=1e-12)


def encode(boxes: Tensor, targets: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Deltas [N, 4] that move boxes [N, 4] to targets [N, 4]."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    offset = targets[:, :2] + 0.5 * target_size - boxes[:, :2] - 0.5 * size
    return torch.cat([offset / size, (target_size / size).log()], 1) * boxes.new_tensor(weights)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N, M] of boxes [N, 4] and [M, 4]."""
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    low, high = torch.max(a[:, None, :2], b[:, :2]), torch.min(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    return torch.where(shared > 0, shared / (area_a[:, None] + area_b - shared), 0)


def label_anchors(anchors: Tensor, gt_boxes: Tensor, thresholds: tuple[float, float]) -> Tensor:
    """Labels anchors [A, 4] as person, background or neither, and draws those that train."""
    iou = pairwise_iou(gt_boxes, anchors)
    best, _ = iou.max(0)
    labels = torch.full_like(best, -1, dtype=torch.int8)
    labels[best < thresholds[0]] = 0
    labels[best >= thresholds[1]] = 1
    labels[(iou == iou.max(1, keepdim=True).values).any(0)] = 1
    for label in (0, 1):
        rows = (labels == label).nonzero().squeeze(1)
        labels[rows[torch.randperm(len(rows))[256:]]] = -1
    return labels


def place_points(sampled: Sampled, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where annotated points fall on maps of `size` cells a side.

    Returns:
        The four cells around each point, int64 [4, N, P], their shares [4, N, P], and whether the
        point is in its ROI, [N, P].
    """
    axes = []
    for axis, point in ((1, sampled.point_y), (0, sampled.point_x)):
        low, high = sampled.people[:, 1 + axis], sampled.people[:, 3 + axis]
        start, stop = sampled.people_gt_boxes[:, axis], sampled.people_gt_boxes[:, 2 + axis]
        offset = start[:, None] + point * (stop - start)[:, None] / 256 - low[:, None]
        extent = (high - low)[:, None]
        is_inside = (offset >= 0) & (offset < extent)
        position = torch.where(is_inside, offset, 0) * size / extent
        before = position.floor().clamp(max=size - 1)
        after = (before + 1).clamp(max=size - 1)
        share = torch.minimum(position, after) - before
        axes.append(((before.long(), 1 - share), (after.long(), share), is_inside))
    rows, columns = axes
    pairs = [(row, column) for row in rows[:2] for column in columns[:2]]
    cells = torch.stack([row[0] * size + column[0] for row, column in pairs])
    shares = torch.stack([row[1] * column[1] for row, column in pairs])
    return cells, shares, rows[2] & columns[2]
