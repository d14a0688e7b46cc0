"""The arrays that pass between the stages of the detector, with their shapes.

B images, R proposals or detections an image, N people in a flat batch, S side of a chart map.
Models of several classes find other things too, which are called people all the same.
Boxes are xyxy float32 in pixels of the padded network input. Rows beyond what was found are
padding: zero, and False in `is_valid`.
"""

from collections.abc import Mapping
from typing import Generic, TypeVar

import flax.struct
import jax
import numpy as np

Array = jax.Array
AnyArray = TypeVar("AnyArray", bound=jax.Array | np.ndarray)  # on the device, or on the host


@flax.struct.dataclass
class Features:
    """A pyramid: level -> map [B, H / stride, W / stride, C], and the valid sizes [B, 2]."""

    maps: Mapping[str, Array]
    sizes: Mapping[str, Array | None]


@flax.struct.dataclass
class RoiFeatures:
    """What the branches of the second stage pool people from; None for what no branch reads."""

    decoded: Features | None  # for DensePose: the decoder's one map, or the levels without decoder
    levels: Features | None  # for keypoints and masks


@flax.struct.dataclass
class Proposals:
    """Class-agnostic boxes from the region proposal network, best first."""

    boxes: Array  # [B, R, 4]
    logits: Array  # [B, R] objectness before the sigmoid
    is_valid: Array  # [B, R] bool


@flax.struct.dataclass
class Detections:
    """People found, best first."""

    boxes: Array  # [B, R, 4]
    scores: Array  # [B, R] probability of the class
    is_valid: Array  # [B, R] bool
    classes: Array  # int32 [B, R], 0 for "person" in a model of one class


@flax.struct.dataclass
class DensePoseOutputs(Generic[AnyArray]):
    """Chart maps of N people, logits where a class is chosen; None for outputs a model lacks.

    A map covers its box: cell (row, column) of S x S is at fraction ((column + .5) / S,
    (row + .5) / S) of it.
    """

    coarse_segm: AnyArray  # [N, S, S, 2 or 15]: what decides person against background
    fine_segm: AnyArray  # [N, S, S, 25]: background and 24 surface patches
    u: AnyArray  # [N, S, S, 25], the channel of the patch counts
    v: AnyArray  # [N, S, S, 25]
    part_segm: AnyArray | None = None  # [N, S, S, 15]: KTN's coarse parts, a training signal
    keypoints: AnyArray | None = None  # [N, S', S', 17] heatmaps
    sigma: AnyArray | None = None  # [N, S, S, 25]: U, V variance before the softplus
    kappa_u: AnyArray | None = None  # [N, S, S, 25]: anisotropy of the U, V residuals
    kappa_v: AnyArray | None = None  # [N, S, S, 25]
    fine_segm_confidence: AnyArray | None = None  # [N, S, S, 1]
    coarse_segm_confidence: AnyArray | None = None  # [N, S, S, 1]


@flax.struct.dataclass
class EmbeddingOutputs(Generic[AnyArray]):
    """Embedding maps of N people, which cover their boxes as chart maps do.

    A pixel shows the vertex whose embedding is nearest to the pixel's, of the mesh of its class.
    """

    coarse_segm: AnyArray  # [N, S, S, 2]: background and person, logits
    embedding: AnyArray  # [N, S, S, D], of any length
    coarse_segm_confidence: AnyArray | None = None  # [N, S, S, 1]


@flax.struct.dataclass
class BranchOutputs:
    """What the branches compute of N people in one stage; None for tasks that a model lacks.

    P is the side of the features that a branch pools.
    """

    features: Mapping[str, Array]  # by task: [N, P, P, C], what its predictor reads
    charts: DensePoseOutputs[Array] | None = None
    low_charts: Mapping[str, Array] | None = None  # [N, 2P, 2P, C] by name: not upsampled
    keypoint_scores: Array | None = None  # [N, 2P, 2P, 17], not upsampled
    mask_logits: Array | None = None  # [N, 2P, 2P] of the class of each
    embeddings: EmbeddingOutputs[Array] | None = None  # in place of charts


@flax.struct.dataclass
class PersonMaps(Generic[AnyArray]):
    """What the branches say of N people; None for tasks that a model does not have."""

    charts: DensePoseOutputs[AnyArray] | None
    keypoints: AnyArray | None = None  # [N, S', S', 17] heatmaps of the keypoint branch
    mask: AnyArray | None = None  # [N, M, M] probability that a cell of the box is the person's
    embeddings: EmbeddingOutputs[AnyArray] | None = None  # in place of charts

    @property
    def heatmaps(self) -> AnyArray | None:
        """Heatmaps of the keypoint branch, or those of a DensePose predictor that has them."""
        if self.keypoints is not None or self.charts is None:
            return self.keypoints
        return self.charts.keypoints
