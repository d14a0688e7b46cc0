"""The teacher that fills in what was not annotated: every pixel of a person's crop to the surface.

Gueler et al., "DensePose: Dense Human Pose Estimation In The Wild" (CVPR 2018), section 3.2: a
fully convolutional network learns from the sparse points of annotated people and then labels all of
their pixels. Here it is the dense path of the detector, with nothing pooled in between: backbone,
pyramid, decoder, head and predictor, over the crop of one person. So the parameters have the
detector's names, and a detector's weights can start it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ktn_jax.body.parts import NUM_COARSE_CHANNELS, PART_GRID
from ktn_jax.modeling import person_branches
from ktn_jax.modeling.backbone import build_backbone, normalise
from ktn_jax.modeling.chart_predictor import TRANSFER_SOURCES
from ktn_jax.modeling.compute import Compute
from ktn_jax.ops.chart_reads import resample_chart_nearest
from ktn_jax.structures import DensePoseOutputs

Array = jax.Array

CROP_MULTIPLE = 32  # of the sides of a crop: the coarsest stride of the pyramid


class Teacher(nn.Module):
    """Chart maps of crops with one person each, two cells for four pixels of the crop."""

    config: ConfigDict  # the `model` part, frozen
    compute: Compute

    def setup(self) -> None:
        config, compute = self.config, self.compute
        decoder = person_branches.build_decoder(config, compute)
        if TRANSFER_SOURCES.get(config.predictor.name) != () or decoder is None:
            raise ValueError(
                "a teacher needs predictor.name 'chart' and a decoder, got "
                f"{config.predictor.name!r} and decoder.name {config.decoder.name!r}"
            )
        self.backbone, self.neck = build_backbone(config, compute)
        self.decoder = decoder
        self.densepose_head = person_branches.build_densepose_head(config, compute)
        self.predictor = person_branches.build_predictor(config, compute, None)

    def __call__(self, images: Array, image_size_hw: Array) -> DensePoseOutputs[Array]:
        """Runs everything that has parameters once, for `init`, on crops without a person."""
        batch = images.shape[0]
        part_mask = jnp.zeros((batch, PART_GRID, PART_GRID), jnp.uint8)
        return self.charts(images, part_mask, crop_boxes(images))

    def charts(
        self, crops: Array, part_mask: Array, boxes: Array, train: bool = False
    ) -> DensePoseOutputs[Array]:
        """Predicts the charts of every crop's person.

        Args:
            crops: uint8 [B, H, W, 3] RGB; H and W are multiples of `CROP_MULTIPLE`.
            part_mask: uint8 [B, 256, 256] coarse part 0..14 over the person's box, 15 where it is
                not known; read where `model.sees_parts`, which shows unknown ones as no part.
            boxes: [B, 4] the person's box, xyxy in pixels of the crop.
            train: normalise by the batch where the norm is batch norm.

        Returns:
            Maps [B, H', W', C] over the whole crop. Cell (i, j) is at (j W / W', i H / H'), where
            `losses.densepose` reads them: without half a cell.

        Raises:
            ValueError: sides that are no multiple.
        """
        height, width = crops.shape[1:3]
        if height % CROP_MULTIPLE or width % CROP_MULTIPLE:
            raise ValueError(
                f"crops of {height} x {width}: sides must be multiples of {CROP_MULTIPLE}"
            )
        inputs = normalise(crops, self.config)
        if self.config.sees_parts:
            labels = resample_chart_nearest(part_mask, boxes, crop_boxes(crops), (height, width))
            is_part = nn.one_hot(labels, NUM_COARSE_CHANNELS, dtype=inputs.dtype)
            inputs = jnp.concatenate([inputs, is_part], axis=-1)
        maps, sizes = self.neck(*self.backbone(inputs, None, train), train)
        levels = {name: level for name, level in maps.items() if name != "p6"}
        decoded = self.decoder(levels, sizes)
        outputs: DensePoseOutputs[Array] = self.predictor(self.densepose_head(decoded), None)
        return outputs


def crop_boxes(crops: Array) -> Array:
    """The box that is the whole crop, [B, 4], of crops [B, H, W, ...]."""
    whole = jnp.asarray([0, 0, crops.shape[2], crops.shape[1]], jnp.float32)
    return jnp.broadcast_to(whole, (crops.shape[0], 4))


def build_teacher(config: ConfigDict, *, compute: Compute | None = None) -> Teacher:
    """Builds the teacher of a `model` configuration; see `detector.build_model`."""
    return Teacher(
        config=config.copy_and_resolve_references(),
        compute=Compute(dtype=config.dtype) if compute is None else compute,
    )
