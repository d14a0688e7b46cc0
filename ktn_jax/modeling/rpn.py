"""Region proposal network (Ren et al., 2015): per-cell objectness and deltas, then proposals."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import Conv, valid_mask
from ktn_jax.ops import boxes as box_ops
from ktn_jax.ops.nms import nms
from ktn_jax.structures import Proposals

Array = jax.Array

_init = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """One 3x3 convolution, shared by the levels, then objectness and deltas of A anchors a cell."""

    num_anchors: int
    compute: Compute = PLAIN

    @nn.compact
    def __call__(
        self, pyramid: Mapping[str, Array], sizes: Mapping[str, Array | None]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Scores every anchor.

        Args:
            pyramid: levels [B, H, W, C].
            sizes: the valid part of each level, [B, 2] or None.

        Returns:
            Per level: logits [B, H, W, A] and deltas [B, H, W, A * 4], float32.
        """
        features = next(iter(pyramid.values())).shape[-1]
        conv = Conv(
            features, 3, kernel_init=_init, is_rectified=True, compute=self.compute, name="conv"
        )
        logits = Conv(self.num_anchors, kernel_init=_init, compute=self.compute, name="logits")
        deltas = Conv(4 * self.num_anchors, kernel_init=_init, compute=self.compute, name="deltas")
        all_logits, all_deltas = {}, {}
        for level, x in pyramid.items():
            hidden = conv(x, sizes[level])
            all_logits[level] = logits(hidden).astype(jnp.float32)
            all_deltas[level] = deltas(hidden).astype(jnp.float32)
        return all_logits, all_deltas


def anchor_boxes(
    level_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchor_sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    offset: float = 0.0,
) -> list[np.ndarray]:
    """Lays anchors over every level: a list of [H * W * A, 4] xyxy in pixels, order (y, x, a)."""
    return [
        box_ops.grid_anchors(size, stride, box_ops.cell_anchors(sides, aspect_ratios), offset)
        for size, stride, sides in zip(level_sizes, strides, anchor_sizes, strict=True)
    ]


def select_proposals(
    logits: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[np.ndarray],
    sizes: Sequence[Array | None],
    image_size_hw: Array,
    *,
    pre_nms_top_k: int,
    post_nms_top_k: int,
    nms_threshold: float,
    delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Proposals:
    """Turns the head's outputs into proposals: top k a level, decode, clip, NMS a level, top k.

    Args:
        logits: per level [B, H, W, A].
        deltas: per level [B, H, W, A * 4].
        anchors: per level [H * W * A, 4].
        sizes: per level [B, 2], the cells that count, or None for all; others give no proposal.
        image_size_hw: [B, 2], to which boxes are clipped; boxes that are then empty are dropped.
        pre_nms_top_k: kept of each level before NMS.
        post_nms_top_k: kept of all levels together after NMS.
        nms_threshold: IoU above which the lower-scored of two boxes of a level is dropped.
        delta_weights: of the box coding.

    Returns:
        Proposals of R = post_nms_top_k rows, best first.
    """
    kept_boxes, kept_logits = [], []
    for level_logits, level_deltas, level_anchors, valid_hw in zip(
        logits, deltas, anchors, sizes, strict=True
    ):
        batch, height, width, num_anchors = level_logits.shape
        if valid_hw is not None:
            mask = valid_mask(valid_hw, height, width)
            level_logits = jnp.where(mask, level_logits, -jnp.inf)
        scores = level_logits.reshape(batch, -1)
        top_scores, top = jax.lax.top_k(scores, min(pre_nms_top_k, scores.shape[1]))
        level_deltas = jnp.take_along_axis(
            level_deltas.reshape(batch, -1, 4), top[..., None], axis=1
        )
        boxes = box_ops.decode_deltas(level_deltas, jnp.asarray(level_anchors)[top], delta_weights)
        boxes = box_ops.clip_boxes(boxes, image_size_hw)
        is_valid = jnp.isfinite(top_scores) & jnp.isfinite(boxes).all(-1)
        is_valid &= (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        limit = min(post_nms_top_k, boxes.shape[1])

        def suppress(
            boxes: Array, scores: Array, is_valid: Array, limit: int = limit
        ) -> tuple[Array, Array]:
            index, is_kept = nms(
                boxes, scores, is_valid, iou_threshold=nms_threshold, max_outputs=limit
            )
            return boxes[index], jnp.where(is_kept, scores[index], -jnp.inf)

        boxes, scores = jax.vmap(suppress)(boxes, top_scores, is_valid)
        kept_boxes.append(boxes)
        kept_logits.append(scores)
    boxes = jnp.concatenate(kept_boxes, axis=1)
    scores = jnp.concatenate(kept_logits, axis=1)
    scores, index = jax.lax.top_k(scores, min(post_nms_top_k, scores.shape[1]))
    is_valid = jnp.isfinite(scores)
    boxes = jnp.take_along_axis(boxes, index[..., None], axis=1)
    return Proposals(
        boxes=jnp.where(is_valid[..., None], boxes, 0),
        logits=jnp.where(is_valid, scores, 0),
        is_valid=is_valid,
    )
