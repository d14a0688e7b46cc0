"""Box head: pooled features -> two fully connected layers -> person or not, and deltas."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.modeling.compute import PLAIN, Compute, dot_general
from ktn_jax.modeling.layers import per_channel, xavier_init
from ktn_jax.ops import boxes as box_ops
from ktn_jax.ops.nms import nms
from ktn_jax.structures import Detections, Proposals

Array = jax.Array

NUM_CLASSES = 1  # person; background comes last in the logits
NUM_CLASS_AND_DELTA_ROWS = (NUM_CLASSES + 1) + 4 * NUM_CLASSES


class BoxHead(nn.Module):
    """Two-layer perceptron, then the classifier and the class-specific box regressor.

    Knowledge transfer reads the last two kernels; `class_and_delta_weights` returns them.
    """

    in_features: int  # pooled side * side * C
    hidden_features: int = 1024
    num_layers: int = 2
    compute: Compute = PLAIN

    def setup(self) -> None:
        self.hidden = [
            nn.Dense(
                self.hidden_features,
                kernel_init=xavier_init,
                dtype=self.compute.dtype,
                dot_general=functools.partial(dot_general, compute=self.compute),
                name=f"fc{index + 1}",
            )
            for index in range(self.num_layers)
        ]
        width = self.hidden_features if self.num_layers else self.in_features
        self.class_kernel = self.param(
            "class_kernel", nn.initializers.normal(0.01), (width, NUM_CLASSES + 1)
        )
        self.class_bias = self.param("class_bias", nn.initializers.zeros_init(), (NUM_CLASSES + 1,))
        self.delta_kernel = self.param(
            "delta_kernel", nn.initializers.normal(0.001), (width, 4 * NUM_CLASSES)
        )
        self.delta_bias = self.param("delta_bias", nn.initializers.zeros_init(), (4 * NUM_CLASSES,))

    def __call__(self, pooled: Array) -> tuple[Array, Array, Array]:
        """Classifies pooled features.

        Args:
            pooled: [N, P, P, C].

        Returns:
            Hidden features [N, hidden_features], class logits [N, 2] (person, background) and
            deltas [N, 4], the last two float32.
        """
        x = pooled.reshape(pooled.shape[0], -1)
        for layer in self.hidden:
            x = nn.relu(layer(x))
        logits = x @ self.class_kernel.astype(x.dtype) + per_channel(self.class_bias, x)
        deltas = x @ self.delta_kernel.astype(x.dtype) + per_channel(self.delta_bias, x)
        return x, logits.astype(jnp.float32), deltas.astype(jnp.float32)

    def class_and_delta_weights(self) -> Array:
        """Returns the classifier and regressor rows stacked, [6, hidden_features]."""
        return jnp.concatenate([self.class_kernel, self.delta_kernel], axis=1).T


def select_detections(
    logits: Array,
    deltas: Array,
    proposals: Proposals,
    image_size_hw: Array,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    delta_weights: Sequence[float],
) -> Detections:
    """Turns the head's outputs into people: decode, clip, threshold, NMS, best first.

    Args:
        logits: [B, R, 2].
        deltas: [B, R, 4].
        proposals: the boxes they refer to.
        image_size_hw: [B, 2], to which boxes are clipped.
        score_threshold: people must have a higher probability than this.
        nms_threshold: IoU above which the lower-scored of two boxes is dropped.
        max_detections: rows of the result.
        delta_weights: of the box coding.

    Returns:
        Detections of max_detections rows.
    """
    scores = nn.softmax(logits)[..., 0]
    boxes = box_ops.decode_deltas(deltas, proposals.boxes, delta_weights)
    is_finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores)
    boxes = box_ops.clip_boxes(boxes, image_size_hw)
    is_valid = proposals.is_valid & is_finite & (scores > score_threshold)

    def suppress(boxes: Array, scores: Array, is_valid: Array) -> Detections:
        index, is_kept = nms(
            boxes, scores, is_valid, iou_threshold=nms_threshold, max_outputs=max_detections
        )
        return Detections(
            boxes=jnp.where(is_kept[:, None], boxes[index], 0),
            scores=jnp.where(is_kept, scores[index], 0),
            is_valid=is_kept,
        )

    return jax.vmap(suppress)(boxes, scores, is_valid)
