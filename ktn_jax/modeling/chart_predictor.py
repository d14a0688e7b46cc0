"""From head features to the chart maps, by deconvolution and bilinear upsampling."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.body import parts
from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.knowledge_transfer import Graph, KnowledgeTransfer
from ktn_jax.modeling.layers import msra_init, parameter
from ktn_jax.modeling.upsampling import upsample_bilinearly, upsample_twice_each
from ktn_jax.structures import DensePoseOutputs

Array = jax.Array

# Sources of knowledge, by the kind of predictor that a config names. "chart", which learns its own
# surface classifier, has none.
TRANSFER_SOURCES = {
    "chart": (),
    "ktn": ("keypoint", "box", "part"),
    "ktn_keypoints": ("keypoint",),
    "ktn_auxiliary": ("keypoint", "box", "part"),
    "ktn_first": ("keypoint",),
}
# Those that leave keypoint maps at the low resolution.
LOW_RESOLUTION_KEYPOINTS = ("ktn_auxiliary", "ktn_first")


class ChartPredictor(nn.Module):
    """Chart maps of pooled people; with knowledge transfer, the surface kernel is synthesised.

    kind "chart" is detectron2's predictor, "ktn" KTNv2's, "ktn_keypoints" takes knowledge from
    keypoints only. "ktn_auxiliary" (of the original's HRNet and ResNeXt configurations) also learns
    a plain surface classifier that nothing reads, and leaves keypoint maps at the low resolution.
    So does "ktn_first", KTN's first version, which has no mask beside the coarse map, and which
    takes knowledge from keypoints only.
    """

    kind: str
    in_features: int
    num_coarse_channels: int = 2
    num_patches: int = parts.NUM_PATCHES
    kernel_size: int = 4
    up_scale: int = 2
    uv_confidence: str = ""  # "", "iid_iso" or "indep_aniso"
    has_segm_confidence: bool = False
    segm_confidence_epsilon: float = 0.01
    graph: Graph | None = None
    compute: Compute = PLAIN

    def setup(self) -> None:
        if self.kind not in TRANSFER_SOURCES:
            raise ValueError(f"unknown predictor {self.kind!r}: one of {list(TRANSFER_SOURCES)}")
        self.kernels = {
            name: parameter(self, f"{name}_kernel", msra_init, self._kernel_shape(channels))
            for name, channels in self._outputs().items()
        }
        self.biases = {
            name: parameter(self, f"{name}_bias", nn.initializers.zeros_init(), (channels,))
            for name, channels in self._outputs().items()
        }
        if self.sources:
            self.transfer = KnowledgeTransfer(
                out_features=self.in_features * self.kernel_size**2,
                sources=self.sources,
                has_torch_init=self.kind == "ktn_first",
                graph=self.graph,
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of the knowledge transfer; empty for a predictor without transfer."""
        return TRANSFER_SOURCES[self.kind]

    def _kernel_shape(self, channels: int) -> tuple[int, int, int, int]:
        return (self.kernel_size, self.kernel_size, self.in_features, channels)

    def _outputs(self) -> dict[str, int]:
        """Channels of each learnt deconvolution."""
        patches = self.num_patches + 1
        outputs = {"u": patches, "v": patches}
        if self.kind == "ktn_first":
            # The learnt surface classifier is in checkpoints; the synthesised one is used.
            outputs |= {
                "coarse": self.num_coarse_channels,
                "fine": patches,
                "keypoint": parts.NUM_KEYPOINTS,
            }
        elif self.sources:
            outputs |= {
                "mask": 2,
                "coarse": parts.NUM_COARSE_CHANNELS,
                "keypoint": parts.NUM_KEYPOINTS,
            }
        else:
            outputs |= {"coarse": self.num_coarse_channels, "fine": patches}
        if self.kind == "ktn_auxiliary":
            outputs["auxiliary"] = patches
        if self.uv_confidence:
            outputs["sigma"] = patches
        if self.uv_confidence == "indep_aniso":
            outputs |= {"kappa_u": patches, "kappa_v": patches}
        if self.has_segm_confidence:
            outputs |= {"fine_confidence": 1, "coarse_confidence": 1}
        return outputs

    def surface_kernel(self, box_weights: Array) -> Array | None:
        """Synthesises the kernel of the surface classifier, a constant for given weights.

        Args:
            box_weights: [6, D] rows of the box classifier and regressor; they get no gradient.

        Returns:
            [kernel, kernel, in_features, 25], or None for a predictor that learns its own.
        """
        if not self.sources:
            return None

        def rows(name: str) -> Array:
            """A kernel [k, k, C, K] as [K, C * k * k], the reference's order."""
            kernel = self.kernels[name].transpose(3, 2, 0, 1)
            return kernel.reshape(kernel.shape[0], -1)

        classifiers = {
            "keypoint": rows("keypoint"),
            "box": jax.lax.stop_gradient(box_weights),
            "part": rows("coarse"),
        }
        kernel = self.transfer({source: classifiers[source] for source in self.sources})
        size = self.kernel_size
        kernel = kernel.reshape(parts.NUM_PATCH_CHANNELS, self.in_features, size, size)
        return kernel.transpose(2, 3, 1, 0)

    def low_resolution(self, features: Array, surface_kernel: Array | None) -> dict[str, Array]:
        """Deconvolves features [N, P, P, C] to every output, [N, 2P, 2P, channels] by name."""
        kernels, biases = dict(self.kernels), dict(self.biases)
        if surface_kernel is not None:
            kernels["fine"] = surface_kernel
            biases["fine"] = jnp.zeros((surface_kernel.shape[-1],))
        return upsample_twice_each(features, kernels, biases, self.compute)

    def __call__(self, features: Array, surface_kernel: Array | None) -> DensePoseOutputs[Array]:
        """Predicts chart maps.

        Args:
            features: [N, P, P, in_features].
            surface_kernel: from `surface_kernel`, or None for a predictor that learns its own.

        Returns:
            Maps of side S = 2 * P * up_scale, float32; keypoint maps of side 2 * P where the kind
            leaves them at the low resolution.
        """
        return self.upsample(self.low_resolution(features, surface_kernel))

    def upsample(self, low: Mapping[str, Array]) -> DensePoseOutputs[Array]:
        """Upsamples `low_resolution` outputs to the side of the chart maps; see `__call__`."""

        def up(name: str) -> Array:
            return upsample_bilinearly(low[name], self.up_scale)

        def up_if_there(name: str) -> Array | None:
            return up(name) if name in low else None

        coarse, fine = up("mask" if "mask" in low else "coarse"), up("fine")
        confidences: dict[str, Array] = {}
        if self.has_segm_confidence:
            for name in ("fine", "coarse"):
                logits = up(f"{name}_confidence")
                confidences[name] = nn.softplus(logits) + self.segm_confidence_epsilon
            fine, coarse = fine * confidences["fine"], coarse * confidences["coarse"]
        if self.kind in LOW_RESOLUTION_KEYPOINTS:
            keypoints: Array | None = low["keypoint"].astype(jnp.float32)
        else:
            keypoints = up_if_there("keypoint")
        return DensePoseOutputs(
            coarse_segm=coarse,
            fine_segm=fine,
            u=up("u"),
            v=up("v"),
            part_segm=up("coarse") if "mask" in low else None,
            keypoints=keypoints,
            sigma=up_if_there("sigma"),
            kappa_u=up_if_there("kappa_u"),
            kappa_v=up_if_there("kappa_v"),
            fine_segm_confidence=confidences.get("fine"),
            coarse_segm_confidence=confidences.get("coarse"),
        )
