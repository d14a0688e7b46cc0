"""The detector in plain PyTorch, in detectron2's order of operations and that of KTN's fork of it.

Parameters are looked up by the names of the published checkpoints. Nothing is rewritten for speed:
norms stay apart from convolutions, the decoder runs on the whole map, four branches and all, and
the surface classifier is synthesised for every image.
"""

import numpy as np
import torch
import torch.nn.functional as F
import torch_ops
from ml_collections import ConfigDict

from ktn_jax.modeling.resnet import BLOCKS_OF_DEPTH
from ktn_jax.modeling.rpn import anchor_boxes

Tensor = torch.Tensor
STRIDES = (4, 8, 16, 32)
FROZEN_STAGES = ("stem", "res2")
BATCH_NORM_EPSILON = 1e-5


class Peer:
    """R50-FPN with the baseline's or KTN's decoder, head and predictor."""

    def __init__(self, config: ConfigDict, state: dict[str, np.ndarray], train: bool = False):
        """Takes a `model` configuration and the original's state dict, which it empties."""
        self.config = config
        self.is_ktn = config.predictor.name == "ktn"
        self.weights = {n: torch.from_numpy(np.array(state.pop(n))) for n in list(state)}
        self.trained = {}
        for name, value in self.weights.items() if train else ():
            is_fixed = not value.is_floating_point() or ".ScaleConv." in name
            is_fixed |= any(part in name for part in ("pixel_", "cell_anchors", "running_"))
            if name.startswith("backbone.bottom_up"):
                is_fixed |= ".norm." in name
                is_fixed |= name.split(".")[2] in FROZEN_STAGES
            if not is_fixed:
                self.trained[name] = value.requires_grad_()

    def conv(self, x: Tensor, name: str, **options: int) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if weight.shape[-1] == 3:
            options.setdefault("padding", options.get("dilation", 1))
        return F.conv2d(x, weight, bias, **options)

    def frozen_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            self.weights[f"{name}.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if x.requires_grad:  # detectron2 spares the gradient of the statistics
            scale = weight * (var + BATCH_NORM_EPSILON).rsqrt()
            shift = bias - mean * scale
            return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=BATCH_NORM_EPSILON)

    def conv_norm(self, x: Tensor, name: str, **options: int) -> Tensor:
        return self.frozen_norm(self.conv(x, name, **options), f"{name}.norm")

    def group_norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def normalise(self, image: np.ndarray, size_hw: tuple[int, int]) -> Tensor:
        """Turns an RGB image [H, W, 3] into network input [1, 3, *size_hw]."""
        x = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        mean, std = (
            torch.tensor(values).reshape(3, 1, 1)
            for values in (self.config.pixel_mean_bgr, self.config.pixel_std_bgr)
        )
        x = (x.float() - mean) / std
        return F.pad(x, (0, size_hw[1] - x.shape[2], 0, size_hw[0] - x.shape[1]))[None]

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> p2 .. p6."""
        body = "backbone.bottom_up"
        x = F.relu_(self.conv_norm(x, f"{body}.stem.conv1", stride=2, padding=3))
        x = F.max_pool2d(x, 3, 2, 1)
        stages = []
        backbone = self.config.backbone
        blocks_of_stages = tuple(backbone.num_blocks) or BLOCKS_OF_DEPTH[backbone.depth]
        for stage, blocks in enumerate(blocks_of_stages, start=2):
            for block in range(blocks):
                name = f"{body}.res{stage}.{block}"
                stride = 2 if stage > 2 and block == 0 else 1
                y = F.relu_(self.conv_norm(x, f"{name}.conv1", stride=stride))
                y = F.relu_(self.conv_norm(y, f"{name}.conv2"))
                y = self.conv_norm(y, f"{name}.conv3")
                if block == 0:
                    x = self.conv_norm(x, f"{name}.shortcut", stride=stride)
                y += x
                x = F.relu_(y)
            stages.append(x)
        top_down, levels = None, []
        for level in (5, 4, 3, 2):
            lateral = self.conv(stages[level - 2], f"backbone.fpn_lateral{level}")
            if top_down is not None:
                lateral = lateral + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
            top_down = lateral
            levels.insert(0, self.conv(lateral, f"backbone.fpn_output{level}"))
        return [*levels, F.max_pool2d(levels[-1], 1, 2, 0)]

    def rpn_heads(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness [B, H * W * A] and deltas [B, H * W * A, 4] of each level."""
        rpn, logits, deltas = "proposal_generator.rpn_head", [], []
        for x in levels:
            hidden = F.relu(self.conv(x, f"{rpn}.conv"))
            logits.append(self.conv(hidden, f"{rpn}.objectness_logits").permute(0, 2, 3, 1))
            deltas.append(self.conv(hidden, f"{rpn}.anchor_deltas").permute(0, 2, 3, 1))
        batch = levels[0].shape[0]
        return [x.flatten(1) for x in logits], [x.reshape(batch, -1, 4) for x in deltas]

    def propose(self, levels: list[Tensor], image_hw: tuple[int, int]) -> Tensor:
        """Proposals [R, 4] of one image, best first."""
        return self.select(levels, self.rpn_heads(levels), image_hw)

    @torch.no_grad()
    def select(
        self,
        levels: list[Tensor],
        outputs: tuple[list[Tensor], list[Tensor]],
        image_hw: tuple[int, int],
        image: int = 0,
        train: bool = False,
    ) -> Tensor:
        """Proposals [R, 4] of one image of a batch, best first, from `rpn_heads`."""
        rpn = self.config.rpn
        before = rpn.pre_nms_top_k_train if train else rpn.pre_nms_top_k_test
        after = rpn.post_nms_top_k_train if train else rpn.post_nms_top_k_test
        boxes, scores = [], []
        for logits, deltas, anchors in zip(*outputs, self.anchors(levels), strict=True):
            level_scores, top = logits[image].topk(min(before, logits.shape[1]))
            decoded = decode(deltas[image][top], anchors[top], rpn.delta_weights)
            decoded = clip(decoded, image_hw)
            is_left = (decoded[:, 2:] > decoded[:, :2]).all(1)
            decoded, level_scores = decoded[is_left], level_scores[is_left]
            kept = torch_ops.nms(decoded, level_scores, rpn.nms_threshold)
            boxes.append(decoded[kept])
            scores.append(level_scores[kept])
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        return boxes[scores.argsort(descending=True, stable=True)[:after]]

    def anchors(self, levels: list[Tensor]) -> list[Tensor]:
        """Anchors [H * W * A, 4] of each level."""
        rpn = self.config.rpn
        anchors = anchor_boxes(
            [x.shape[2:] for x in levels],
            [4 * 2**index for index in range(len(levels))],
            rpn.anchor_sizes,
            rpn.aspect_ratios,
            rpn.anchor_offset,
        )
        return [torch.from_numpy(np.float32(level)) for level in anchors]

    def classify(self, levels: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, 2] and deltas [R, 4] of boxes [R, 5] (image, xyxy)."""
        box = self.config.box_head
        x = torch_ops.multilevel_roi_align(
            levels[:4], STRIDES, boxes, box.pooled_size, box.sampling_ratio, box.aligned
        ).flatten(1)
        for index in range(box.num_layers):
            x = F.relu(self.linear(x, f"roi_heads.box_head.fc{index + 1}"))
        return (
            self.linear(x, "roi_heads.box_predictor.cls_score"),
            self.linear(x, "roi_heads.box_predictor.bbox_pred"),
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def detections(
        self, logits: Tensor, deltas: Tensor, boxes: Tensor, image_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """People [N, 4] and scores [N], best first."""
        box = self.config.box_head
        scores = logits.softmax(1)[:, 0]
        boxes = clip(decode(deltas, boxes, box.delta_weights), image_hw)
        rows = (scores > box.score_threshold).nonzero().squeeze(1)
        kept = rows[torch_ops.nms(boxes[rows], scores[rows], box.nms_threshold)]
        return boxes[kept[: box.max_detections]], scores[kept[: box.max_detections]]

    def decode_pyramid(self, levels: list[Tensor]) -> Tensor:
        """p2 .. p5 -> the map that people are pooled from."""
        if self.config.decoder.name == "multi_instance":
            return self._multi_instance(levels[:4])
        total = None
        for index, x in enumerate(levels[:4]):
            for step in range(max(index, 1)):
                x = F.relu_(self.conv(x, f"roi_heads.decoder.p{index + 2}.{2 * step}"))
                if index:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            total = x if total is None else total + x
        return self.conv(total, "roi_heads.decoder.predictor")

    def _multi_instance(self, levels: list[Tensor]) -> Tensor:
        decoder = "roi_heads.mid_decoder"
        total, finer = None, None
        for index, x in enumerate(levels):
            if finer is not None:
                cells = [finer[..., dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
                adapt = f"{decoder}.bottom_up_p{index + 1}.adt_conv"
                x = x + F.relu_(self.conv(torch.cat(cells, 1), adapt))
            finer = x
            for step in range(max(index, 1)):
                x = F.relu_(self.conv(x, f"{decoder}.p{index + 2}.{3 * step}"))
                if index:
                    x = F.relu_(self.conv(x, f"{decoder}.p{index + 2}.{3 * step + 1}"))
                    x = F.pixel_shuffle(x, 2)
            total = x if total is None else total + x
        branches = []
        for index in range(4):
            name = f"{decoder}.trident_convs.{index}"
            y = self.conv(total, f"{name}.0", **({"dilation": index} if index else {}))
            branches.append(F.relu_(self.group_norm(y, f"{name}.1")))
        return self.conv(torch.cat(branches, 1), f"{decoder}.predictor")

    def pool_and_head(self, decoded: Tensor, boxes: Tensor) -> Tensor:
        """Features [N, 512, P, P] of people [N, 5] (image, xyxy)."""
        return self.head(self.pool_people(decoded, boxes))

    def pool_people(self, decoded: Tensor, boxes: Tensor) -> Tensor:
        """Pools people [N, 5] (image, xyxy): [N, 256, P, P]."""
        head = self.config.densepose_head
        return torch_ops.multilevel_roi_align(
            [decoded], STRIDES[:1], boxes, head.pooled_size, head.sampling_ratio, head.aligned
        )

    def head(self, x: Tensor) -> Tensor:
        """Pooled maps [N, 256, P, P] -> features [N, 512, P, P]."""
        head = self.config.densepose_head
        name = "roi_heads.densepose_head"
        if self.is_ktn:
            shared = self.weights[f"{name}.ScaleConvs.weight"]
            branches = []
            for index, dilation in enumerate((1, 6, 12)):
                y = F.conv2d(x, shared, padding=dilation, dilation=dilation)
                branches.append(F.relu_(self.group_norm(y, f"{name}.ScaleConvs.norms.{index}")))
            y = self.conv(x, f"{name}.ScaleConvs.conv1.0")
            branches.append(F.relu_(self.group_norm(y, f"{name}.ScaleConvs.conv1.1")))
            x = F.relu_(self.conv(torch.cat(branches, 1), f"{name}.ScaleConvs.project.0"))
        for index in range(head.num_convs):
            layer = f"{name}.body_conv_fcn{index + 1}"
            x = self.conv(x, layer)
            x = F.relu_(self.group_norm(x, f"{layer}.norm") if self.is_ktn else x)
        return x

    def surface_weight(self) -> Tensor:
        """Synthesises the surface classifier, [C, 25, 4, 4]."""
        predictor, box = "roi_heads.densepose_predictor", "roi_heads.box_predictor"
        parts = []
        for source, layer in (("kpt", "k_lowres"), ("bbox", ""), ("part", "ann_index_lowres")):
            if layer:
                weight = self.weights[f"{predictor}.{layer}.weight"]
                rows = weight.permute(1, 0, 2, 3).flatten(1)
            else:
                names = ("cls_score", "bbox_pred")
                rows = torch.cat([self.weights[f"{box}.{n}.weight"] for n in names]).detach()
            parts.append(self.weights[f"{predictor}.{source}_crgk_matrix"] @ rows)
        hidden = self.linear(torch.cat(parts, 1), f"{predictor}.parameter_transformer.0")
        hidden = F.leaky_relu(hidden, 0.02)
        surface = self.linear(hidden, f"{predictor}.parameter_transformer.2")
        return surface.reshape(25, -1, 4, 4).permute(1, 0, 2, 3)

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        """Chart maps [N, channels, 4 P, 4 P] of features [N, 512, P, P]."""
        predictor = "roi_heads.densepose_predictor"
        layers = {"u": "u_lowres", "v": "v_lowres"}
        if self.is_ktn:
            layers |= {"coarse_segm": "m_lowres", "part_segm": "ann_index_lowres"}
            layers["keypoints"] = "k_lowres"
        else:
            layers |= {"coarse_segm": "ann_index_lowres", "fine_segm": "index_uv_lowres"}
        low = {
            ours: F.conv_transpose2d(
                features,
                self.weights[f"{predictor}.{theirs}.weight"],
                self.weights[f"{predictor}.{theirs}.bias"],
                stride=2,
                padding=1,
            )
            for ours, theirs in layers.items()
        }
        if self.is_ktn:
            surface = self.surface_weight()
            low["fine_segm"] = F.conv_transpose2d(features, surface, stride=2, padding=1)
        return {
            name: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            for name, x in low.items()
        }


def decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Moves boxes [N, 4] by deltas [N, 4]."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size
    scaled = deltas / deltas.new_tensor(weights)
    centre = scaled[:, :2] * size + centre
    size = scaled[:, 2:].clamp(max=float(np.log(1000 / 16))).exp() * size
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], 1)


def clip(boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Clips boxes [N, 4] to an image."""
    height, width = image_hw
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def with_image(boxes: Tensor, image: int = 0) -> Tensor:
    """Puts the index of the image in front of boxes [N, 4]."""
    return torch.cat([boxes.new_full((len(boxes), 1), image), boxes], 1)
