"""Heads beside the DensePose one: masks and keypoints from pooled ROI features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.body.parts import NUM_KEYPOINTS
from ktn_jax.modeling.compute import PLAIN, Compute
from ktn_jax.modeling.layers import Conv, ConvNorm, msra_init, parameter
from ktn_jax.modeling.upsampling import upsample_bilinearly, upsample_twice

Array = jax.Array

_SCORE_KERNEL = 4  # of the keypoint head's deconvolution
_KEYPOINT_UP_SCALE = 2  # bilinear, after the deconvolution
_logits_init = nn.initializers.normal(0.001)


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution to twice the side, one 1x1 (He et al., ICCV 2017)."""

    num_classes: int = 1  # masks of each ROI; 1 for a mask that all classes share
    in_features: int = 256
    features: int = 256
    num_convs: int = 4
    norm: str = ""  # of the 3x3 convolutions
    compute: Compute = PLAIN

    def setup(self) -> None:
        self.convs = [
            ConvNorm(
                self.features,
                3,
                norm=self.norm,
                is_rectified=True,
                compute=self.compute,
                name=f"conv{index + 1}",
            )
            for index in range(self.num_convs)
        ]
        inputs = self.features if self.num_convs else self.in_features
        self.deconv_kernel = parameter(
            self, "deconv_kernel", msra_init, (2, 2, inputs, self.features)
        )
        self.deconv_bias = parameter(
            self, "deconv_bias", nn.initializers.zeros_init(), (self.features,)
        )
        self.logits = Conv(
            self.num_classes, kernel_init=_logits_init, compute=self.compute, name="logits"
        )

    def convolved(self, x: Array) -> Array:
        """Runs the convolutions: [N, P, P, in_features] to [N, P, P, features]."""
        for conv in self.convs:
            x = conv(x)
        return x

    def upsampled(self, convolved: Array) -> Array:
        """Deconvolves `convolved`: [N, P, P, features] to [N, 2P, 2P, features]."""
        x = upsample_twice(convolved, self.deconv_kernel, self.deconv_bias, self.compute)
        return nn.relu(x)

    def classify(self, upsampled: Array) -> Array:
        """Maps `upsampled` to mask logits [N, 2P, 2P, num_classes], float32."""
        logits: Array = self.logits(upsampled)
        return logits.astype(jnp.float32)

    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, in_features] to mask logits [N, 2P, 2P, num_classes], float32."""
        return self.classify(self.upsampled(self.convolved(x)))


class KeypointHead(nn.Module):
    """3x3 convolutions, a deconvolution to twice the side, bilinear upsampling by 2.

    A heatmap for each of COCO's 17 keypoints (He et al., ICCV 2017, section 5).
    """

    in_features: int = 256
    features: tuple[int, ...] = (512,) * 8  # of each convolution
    compute: Compute = PLAIN

    def setup(self) -> None:
        self.convs = [
            Conv(width, 3, is_rectified=True, compute=self.compute, name=f"conv{index + 1}")
            for index, width in enumerate(self.features)
        ]
        inputs = self.features[-1] if self.features else self.in_features
        shape = (_SCORE_KERNEL, _SCORE_KERNEL, inputs, NUM_KEYPOINTS)
        self.scores_kernel = parameter(self, "scores_kernel", msra_init, shape)
        self.scores_bias = parameter(
            self, "scores_bias", nn.initializers.zeros_init(), (NUM_KEYPOINTS,)
        )

    def convolved(self, x: Array) -> Array:
        """Runs the convolutions: [N, P, P, in_features] to [N, P, P, features[-1]]."""
        for conv in self.convs:
            x = conv(x)
        return x

    def low_resolution(self, convolved: Array) -> Array:
        """Maps `convolved` to scores [N, 2P, 2P, 17]."""
        return upsample_twice(convolved, self.scores_kernel, self.scores_bias, self.compute)

    def __call__(self, x: Array) -> Array:
        """Maps x [N, P, P, in_features] to heatmaps [N, 4P, 4P, 17], float32 logits."""
        return upsample_scores(self.low_resolution(self.convolved(x)))


def upsample_scores(scores: Array) -> Array:
    """Upsamples scores [N, S, S, 17] of the keypoint head to heatmaps [N, 2S, 2S, 17], float32."""
    return upsample_bilinearly(scores, _KEYPOINT_UP_SCALE)


def masks_of_classes(logits: Array, classes: Array) -> Array:
    """Picks the mask of each ROI's class.

    Args:
        logits: [N, S, S, K]; of K = 1 the mask is shared by all classes.
        classes: int [N], in [0, K).

    Returns:
        [N, S, S].
    """
    if logits.shape[-1] == 1:
        return logits[..., 0]
    index = classes.astype(jnp.int32)[:, None, None, None]
    return jnp.take_along_axis(logits, index, axis=-1)[..., 0]
