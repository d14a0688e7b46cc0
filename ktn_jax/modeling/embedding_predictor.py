"""From head features to embedding maps: continuous surface embeddings.

Neverova et al., "Continuous Surface Embeddings", NeurIPS 2020: every pixel of a person gets a
vector, and so does every vertex of a mesh (`modeling.vertex_embedders`). A pixel shows the vertex
whose vector is nearest.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax

from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import msra_init, parameter
from ktn_jax.modeling.upsampling import upsample_bilinearly, upsample_twice_each
from ktn_jax.structures import EmbeddingOutputs

Array = jax.Array


class EmbeddingPredictor(nn.Module):
    """Embeddings and the coarse map of pooled people, by deconvolution and bilinear upsampling."""

    in_features: int
    channels: int = 16  # of an embedding
    num_coarse_channels: int = 2
    kernel_size: int = 4
    up_scale: int = 2
    has_segm_confidence: bool = False
    segm_confidence_epsilon: float = 0.01
    compute: Compute = PLAIN

    def setup(self) -> None:
        outputs = {"coarse": self.num_coarse_channels, "embedding": self.channels}
        if self.has_segm_confidence:
            outputs["coarse_confidence"] = 1
        size = (self.kernel_size, self.kernel_size, self.in_features)
        self.kernels = {
            name: parameter(self, f"{name}_kernel", msra_init, (*size, channels))
            for name, channels in outputs.items()
        }
        self.biases = {
            name: parameter(self, f"{name}_bias", nn.initializers.zeros_init(), (channels,))
            for name, channels in outputs.items()
        }

    def low_resolution(self, features: Array) -> dict[str, Array]:
        """Deconvolves features [N, P, P, C] to every output, [N, 2P, 2P, channels] by name."""
        return upsample_twice_each(features, self.kernels, self.biases, self.compute)

    def __call__(self, features: Array) -> EmbeddingOutputs[Array]:
        """Predicts the maps.

        Args:
            features: [N, P, P, in_features].

        Returns:
            Maps of side S = 2 * P * up_scale, float32. With a confidence, the coarse map is already
            multiplied by it, as in detectron2.
        """
        return self.upsample(self.low_resolution(features))

    def upsample(self, low: Mapping[str, Array]) -> EmbeddingOutputs[Array]:
        """Upsamples `low_resolution` outputs to the side of the maps."""
        maps = {name: upsample_bilinearly(x, self.up_scale) for name, x in low.items()}
        confidence = None
        if self.has_segm_confidence:
            confidence = nn.softplus(maps["coarse_confidence"]) + self.segm_confidence_epsilon
            maps["coarse"] = maps["coarse"] * confidence
        return EmbeddingOutputs(
            coarse_segm=maps["coarse"],
            embedding=maps["embedding"],
            coarse_segm_confidence=confidence,
        )
