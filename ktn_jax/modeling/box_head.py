"""Box head: pooled features -> two fully connected layers -> classes, and deltas."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.modeling.compute import PLAIN, Compute, dot_general
from ktn_jax.modeling.layers import parameter, xavier_init
from ktn_jax.ops import boxes as box_ops
from ktn_jax.ops.channels import per_channel
from ktn_jax.ops.nms import nms
from ktn_jax.structures import Detections, Proposals

Array = jax.Array

# Of several classes, the best candidates of an image go to NMS, so many a proposal: probabilities
# add up to 1, so few proposals pass the threshold with more classes.
_CANDIDATES_OF_PROPOSAL = 4


class BoxHead(nn.Module):
    """Two-layer perceptron, then the classifier and the box regressor.

    Knowledge transfer reads the last two kernels; `class_and_delta_weights` returns them.
    """

    in_features: int  # pooled side * side * C
    num_classes: int = 1  # C without the background, which comes last in the logits
    is_class_agnostic: bool = False  # one box for all classes, instead of one for each
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
        self.class_kernel = parameter(
            self, "class_kernel", nn.initializers.normal(0.01), (width, self.num_classes + 1)
        )
        self.class_bias = parameter(
            self, "class_bias", nn.initializers.zeros_init(), (self.num_classes + 1,)
        )
        num_deltas = 4 if self.is_class_agnostic else 4 * self.num_classes
        self.delta_kernel = parameter(
            self, "delta_kernel", nn.initializers.normal(0.001), (width, num_deltas)
        )
        self.delta_bias = parameter(self, "delta_bias", nn.initializers.zeros_init(), (num_deltas,))

    def __call__(self, pooled: Array) -> tuple[Array, Array, Array]:
        """Classifies pooled features.

        Args:
            pooled: [N, P, P, C].

        Returns:
            Hidden features [N, hidden_features], class logits [N, C + 1] (background last) and
            deltas [N, 4 * C] (or [N, 4]), the last two float32.
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
        logits: [B, R, C + 1].
        deltas: [B, R, 4 * C], or [B, R, 4] for boxes that all classes share.
        proposals: the boxes they refer to.
        image_size_hw: [B, 2], to which boxes are clipped.
        score_threshold: people must have a higher probability than this.
        nms_threshold: IoU above which the lower-scored of two boxes of a class is dropped.
        max_detections: rows of the result.
        delta_weights: of the box coding.

    Returns:
        Detections of max_detections rows.
    """
    scores = nn.softmax(logits)[..., :-1]
    batch, rows, num_classes = scores.shape
    boxes = box_ops.decode_deltas(deltas, proposals.boxes, delta_weights)
    is_finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(scores).all(-1)
    boxes = box_ops.clip_boxes(boxes.reshape(batch, -1, 4), image_size_hw)
    is_valid = (proposals.is_valid & is_finite)[..., None] & (scores > score_threshold)
    scores, is_valid = scores.reshape(batch, -1), is_valid.reshape(batch, -1)

    def suppress(boxes: Array, scores: Array, is_valid: Array) -> Detections:
        classes = None
        if num_classes > 1:
            number = min(_CANDIDATES_OF_PROPOSAL * rows, scores.shape[0])
            _, best = jax.lax.top_k(jnp.where(is_valid, scores, -1), number)
            classes = best % num_classes
            boxes = boxes[best if boxes.shape == (scores.shape[0], 4) else best // num_classes]
            scores, is_valid = scores[best], is_valid[best]
        index, is_kept = nms(boxes, scores, is_valid, nms_threshold, max_detections, groups=classes)
        classes = jnp.zeros_like(index) if classes is None else classes[index]
        return Detections(
            boxes=jnp.where(is_kept[:, None], boxes[index], 0),
            scores=jnp.where(is_kept, scores[index], 0),
            is_valid=is_kept,
            classes=jnp.where(is_kept, classes, 0),
        )

    return jax.vmap(suppress)(boxes, scores, is_valid)
