"""Cross-cascade: later stages of the branches, which see what all branches predicted before.

Gueler, Neverova and Kokkinos, "DensePose: Dense Human Pose Estimation In The Wild" (CVPR 2018),
section 4.3: the predictions of all tasks of a stage are combined and go, with the pooled features,
into a refinement unit of each branch. The paper leaves the units open; here a unit embeds the
predictions of each branch with a convolution, joins them with the branch's pooled features and with
what its last predictor read, and has convolutions and a predictor of the branch's kind.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.densepose_head import ConvStackHead
from ktn_jax.modeling.knowledge_transfer import Graph
from ktn_jax.modeling.layers import Conv
from ktn_jax.modeling.person_branches import build_predictor, num_mask_classes, run_branches
from ktn_jax.modeling.person_heads import KeypointHead, MaskHead
from ktn_jax.structures import BranchOutputs

Array = jax.Array

# Outputs of the chart predictor that later stages read, those that it has, in this order.
_CHART_INPUTS = ("coarse", "mask", "fine", "u", "v", "keypoint")


class CascadeStage(nn.Module):
    """One stage after the first of all branches."""

    config: ConfigDict  # the `model` part, frozen
    compute: Compute
    graph: Graph | None = None  # initial body graph of the transfer

    def setup(self) -> None:
        config, compute, cascade = self.config, self.compute, self.config.cascade
        self.embeddings = {
            task: {
                source: Conv(
                    cascade.embedded_channels, 3, compute=compute, name=f"{task}_reads_{source}"
                )
                for source in config.tasks
            }
            for task in config.tasks
        }
        if "densepose" in config.tasks:
            self.densepose_head = ConvStackHead(
                features=cascade.channels,
                num_convs=cascade.num_convs,
                compute=compute,
            )
            self.predictor = build_predictor(config, compute, self.graph, cascade.channels)
        if "keypoints" in config.tasks:
            widths = (cascade.channels,) * cascade.num_convs
            self.keypoint_head = KeypointHead(features=widths, compute=compute)
        if "masks" in config.tasks:
            self.mask_head = MaskHead(
                num_classes=num_mask_classes(config),
                features=cascade.channels,
                num_convs=cascade.num_convs,
                compute=compute,
            )

    def surface_kernel(self, box_weights: Array) -> Array | None:
        """The surface classifier of this stage; see `ChartPredictor.surface_kernel`."""
        has_charts = "densepose" in self.config.tasks
        return self.predictor.surface_kernel(box_weights) if has_charts else None

    def __call__(
        self,
        pooled: Mapping[str, Array],
        previous: BranchOutputs,
        classes: Array,
        surface_kernel: Array | None,
    ) -> BranchOutputs:
        """Refines the predictions of N people.

        Args:
            pooled: [N, P, P, C] of each task, as the first stage reads them; P is the task's.
            previous: what the stage before made of them.
            classes: int [N] the class of each.
            surface_kernel: from `surface_kernel`.

        Returns:
            The outputs of this stage, of the sides of the first.
        """
        as_probabilities = self.config.cascade.inputs == "probabilities"
        predictions = _join_predictions(previous, as_probabilities)
        if self.config.cascade.stop_gradient:
            predictions = lax.stop_gradient(predictions)
        inputs = {
            task: self._join(task, x, previous.features[task], predictions)
            for task, x in pooled.items()
        }
        outputs = run_branches(self, inputs, classes, surface_kernel)
        if not self.config.cascade.adds_to_previous:
            return outputs
        # Upsampling is linear: maps may be added before it and after it.
        added: BranchOutputs = jax.tree.map(
            jnp.add,
            dataclasses.replace(outputs, features={}),
            dataclasses.replace(previous, features={}),
        )
        return dataclasses.replace(added, features=outputs.features)

    def _join(
        self, task: str, pooled: Array, features: Array, predictions: Mapping[str, Array]
    ) -> Array:
        """Joins what a branch reads along the channels, all of the side of `pooled`."""
        embedded = [
            nn.relu(self.embeddings[task][source](_resample(maps, pooled.shape[1])))
            for source, maps in predictions.items()
        ]
        return jnp.concatenate([pooled, features, *embedded], axis=-1)


def _join_predictions(outputs: BranchOutputs, as_probabilities: bool) -> dict[str, Array]:
    """The predictions of a stage by task, [N, 2P, 2P, C] float32; see `cascade.inputs`.

    Probabilities have one scale from the first step on, while logits grow in training, and U and V
    of patches that a pixel is not on say nothing. Of keypoints, whose softmax is over the cells of
    a map, they are those relative to the map's largest.
    """
    predictions: dict[str, Array] = {}
    if outputs.low_charts is not None:
        low = {name: maps.astype(jnp.float32) for name, maps in outputs.low_charts.items()}
        if as_probabilities:
            for name in ("fine", "coarse", "mask"):
                if name in low:
                    low[name] = nn.softmax(low[name])
            low |= {name: low[name] * low["fine"] for name in ("u", "v")}
            if "keypoint" in low:
                low["keypoint"] = _relative_to_peak(low["keypoint"])
        maps = [low[name] for name in _CHART_INPUTS if name in low]
        predictions["densepose"] = jnp.concatenate(maps, axis=-1)
    if outputs.keypoint_scores is not None:
        scores = outputs.keypoint_scores.astype(jnp.float32)
        predictions["keypoints"] = _relative_to_peak(scores) if as_probabilities else scores
    if outputs.mask_logits is not None:
        logits = outputs.mask_logits[..., None]
        predictions["masks"] = nn.sigmoid(logits) if as_probabilities else logits
    return predictions


def _relative_to_peak(scores: Array) -> Array:
    """Maps logits [N, S, S, K] over the cells to probabilities relative to each map's largest."""
    return jnp.exp(scores - scores.max((1, 2), keepdims=True))


def _resample(maps: Array, size: int) -> Array:
    """Resamples maps [N, S, S, C] of ROIs linearly to [N, size, size, C], without aliasing."""
    if maps.shape[1] == size:
        return maps
    shape = (maps.shape[0], size, size, maps.shape[3])
    resampled: Array = jax.image.resize(maps, shape, "linear", antialias=True)
    return resampled
