"""The detector: image -> people -> the surface point of each of their pixels.

Only this module, `backbone`, `person_branches`, `cascade` and `teacher` read a configuration. The
model runs in two stages, so that the costly second one runs on the people found and not on every
row of a padded list:

1. `detect`: backbone, pyramid, proposals and boxes;
2. `roi_features` and `describe`: the decoder's map, people pooled from it and from the pyramid, and
   the branches of `model.tasks`: DensePose charts or embeddings, keypoints, masks. With
   `model.cascade`, these run in several stages of their own.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.modeling import person_branches
from ktn_jax.modeling.backbone import build_backbone, normalise
from ktn_jax.modeling.box_head import BoxHead, select_detections
from ktn_jax.modeling.cascade import CascadeStage
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.knowledge_transfer import Graph
from ktn_jax.modeling.layers import zero_invalid
from ktn_jax.modeling.person_branches import FIRST_STRIDE, pool_rois
from ktn_jax.modeling.person_heads import upsample_scores
from ktn_jax.modeling.rpn import RPNHead, anchor_boxes, select_proposals
from ktn_jax.ops import boxes as box_ops
from ktn_jax.structures import (
    BranchOutputs,
    DensePoseOutputs,
    Detections,
    Features,
    PersonMaps,
    Proposals,
    RoiFeatures,
)

Array = jax.Array


class Detector(nn.Module):
    """DensePose R-CNN, KTN, or an R-CNN with any of the branches, as the configuration says."""

    config: ConfigDict  # the `model` part, frozen
    compute: Compute
    graph: Graph | None = None  # initial body graph of the transfer

    def setup(self) -> None:
        config, compute = self.config, self.compute
        self.backbone, self.neck = build_backbone(config, compute)
        num_anchors = len(config.rpn.anchor_sizes[0]) * len(config.rpn.aspect_ratios)
        self.rpn_head = RPNHead(num_anchors, compute=compute)
        box = config.box_head
        self.box_head = BoxHead(
            in_features=box.pooled_size**2 * config.neck.channels,
            num_classes=box.num_classes,
            is_class_agnostic=box.is_class_agnostic,
            hidden_features=box.hidden_features,
            num_layers=box.num_layers,
            compute=compute,
        )
        person_branches.check_tasks(config)
        if "densepose" in config.tasks:
            self.decoder = person_branches.build_decoder(config, compute)
            self.densepose_head = person_branches.build_densepose_head(config, compute)
        if person_branches.has_charts(config):
            self.predictor = person_branches.build_predictor(config, compute, self.graph)
        if person_branches.has_embeddings(config):
            self.embedding_predictor = person_branches.build_embedding_predictor(config, compute)
            self.embedder = person_branches.build_embedder(config)
        if "masks" in config.tasks:
            self.mask_head = person_branches.build_mask_head(config, compute)
        if "keypoints" in config.tasks:
            self.keypoint_head = person_branches.build_keypoint_head(config, compute)
        self.later_stages = [
            CascadeStage(config, compute, self.graph, name=f"cascade_stage{number}")
            for number in range(2, config.cascade.num_stages + 1)
        ]

    def __call__(self, images: Array, image_size_hw: Array) -> PersonMaps[Array]:
        """Runs every submodule that has parameters once, for `init`.

        Zeros replace the selected boxes and pooled features: selecting and pooling have no
        parameters and take long to trace.
        """
        config, channels = self.config, self.config.neck.channels
        pyramid = self.extract(self.normalise(images, image_size_hw), image_size_hw)
        self.rpn_head(pyramid.maps, pyramid.sizes)
        self.classify(_zeros(config.box_head, channels))
        pooled = {}
        if "densepose" in config.tasks:
            decoded = next(iter(self.decode(pyramid).maps.values()))
            pooled["densepose"] = _zeros(config.densepose_head, decoded.shape[-1])
        if "keypoints" in config.tasks:
            pooled["keypoints"] = _zeros(config.keypoint_head, channels)
        if "masks" in config.tasks:
            pooled["masks"] = _zeros(config.mask_head, channels)
        self.vertex_embeddings()
        return to_person_maps(self.run_stages(pooled, jnp.zeros(1, jnp.int32))[-1])

    def normalise(self, images: Array, image_size_hw: Array) -> Array:
        """Turns RGB uint8 images [B, H, W, 3] into network input, zero beyond `image_size_hw`."""
        return zero_invalid(normalise(images, self.config), image_size_hw)

    def extract(
        self, inputs: Array, image_size_hw: Array | None = None, train: bool = False
    ) -> Features:
        """Computes the pyramid of normalised inputs [B, H, W, 3].

        With `image_size_hw` [B, 2] an image's features do not depend on how far the batch pads it;
        without it, padding counts as image.
        """
        valid_hw = image_size_hw
        if valid_hw is not None:
            multiple = size_multiple(self.config)
            valid_hw = (valid_hw + multiple - 1) // multiple * multiple
        maps, sizes = self.backbone(inputs, valid_hw, train)
        return Features(*self.neck(maps, sizes, train))

    def propose(self, pyramid: Features, image_size_hw: Array, train: bool = False) -> Proposals:
        """Finds regions that may hold a person; boxes are clipped to `image_size_hw` [B, 2]."""
        logits, deltas = self.rpn_head(pyramid.maps, pyramid.sizes)
        return self.proposals_from(logits, deltas, pyramid.sizes, image_size_hw, train=train)

    def proposals_from(
        self,
        logits: Mapping[str, Array],
        deltas: Mapping[str, Array],
        sizes: Mapping[str, Array | None],
        image_size_hw: Array,
        train: bool = False,
    ) -> Proposals:
        """Selects proposals, see `select_proposals`.

        Args:
            logits: [B, H, W, A] by level, of the RPN head.
            deltas: [B, H, W, 4 * A] likewise.
            sizes: [B, 2] by level, the cells that count; None for all.
            image_size_hw: [B, 2], to which boxes are clipped.
            train: how many are kept is another number in training.
        """
        rpn = self.config.rpn
        return select_proposals(
            list(logits.values()),
            list(deltas.values()),
            self.anchors(logits),
            [sizes[level] for level in logits],
            image_size_hw,
            pre_nms_top_k=rpn.pre_nms_top_k_train if train else rpn.pre_nms_top_k_test,
            post_nms_top_k=rpn.post_nms_top_k_train if train else rpn.post_nms_top_k_test,
            nms_threshold=rpn.nms_threshold,
            delta_weights=rpn.delta_weights,
        )

    def anchors(self, maps: Mapping[str, Array]) -> list[np.ndarray]:
        """Anchors of every level of `maps` ([B, H, W, ...] by level), [H * W * A, 4] each."""
        rpn = self.config.rpn
        return anchor_boxes(
            level_sizes=[(x.shape[1], x.shape[2]) for x in maps.values()],
            strides=[FIRST_STRIDE * 2**index for index in range(len(maps))],
            anchor_sizes=rpn.anchor_sizes,
            aspect_ratios=rpn.aspect_ratios,
            offset=rpn.anchor_offset,
        )

    def pool_boxes(
        self, pyramid: Features, boxes: Array, batch_index: Array | None = None
    ) -> Array:
        """Pools boxes for the box head: [N, 7, 7, C].

        Args:
            pyramid: from `extract`.
            boxes: [N, 4] of images `batch_index`; or without it [B, R, 4], R of every image, so
                that devices that share a batch need not exchange maps.
            batch_index: int [N].
        """
        box = self.config.box_head
        return pool_rois(self.roi_levels(pyramid), boxes, batch_index, box, self.compute)

    def classify(self, pooled: Array) -> tuple[Array, Array, Array]:
        """Runs the box head on pooled features [N, P, P, C]; results as of `BoxHead`."""
        return self.box_head(pooled)

    def detect(
        self, images: Array, image_size_hw: Array, is_full: bool = False
    ) -> tuple[Features, Detections]:
        """First stage.

        Args:
            images: [B, H, W, 3] RGB uint8, padded at the right and bottom.
            image_size_hw: int [B, 2] sizes without padding.
            is_full: promises that H and W are what the reference would pad every image to, so
                that no map needs masking.

        Returns:
            The pyramid for `roi_features`, and the people found, best first, clipped to their
            images.
        """
        inputs = self.normalise(images, image_size_hw)
        pyramid = self.extract(inputs, None if is_full else image_size_hw)
        proposals = self.propose(pyramid, image_size_hw)
        batch, rows = proposals.logits.shape
        if self.compute.products:
            pooled = self.pool_boxes(pyramid, proposals.boxes)
        else:  # all images at once: chunks are as large as caches allow
            batch_index = jnp.repeat(jnp.arange(batch), rows)
            pooled = self.pool_boxes(pyramid, proposals.boxes.reshape(-1, 4), batch_index)
        _, logits, deltas = self.classify(pooled)
        detections = self.detections_from(
            logits.reshape(batch, rows, -1),
            deltas.reshape(batch, rows, -1),
            proposals,
            image_size_hw,
        )
        return pyramid, detections

    def decode_boxes(self, deltas: Array, boxes: Array) -> Array:
        """Moves boxes [..., R, 4] by the box head's deltas; the result is not clipped."""
        return box_ops.decode_deltas(deltas, boxes, self.config.box_head.delta_weights)

    def detections_from(
        self, logits: Array, deltas: Array, proposals: Proposals, image_size_hw: Array
    ) -> Detections:
        """Selects people, see `select_detections`; deltas may be shared by all classes."""
        box = self.config.box_head
        return select_detections(
            logits,
            deltas,
            proposals,
            image_size_hw,
            score_threshold=box.score_threshold,
            nms_threshold=box.nms_threshold,
            max_detections=box.max_detections,
            delta_weights=box.delta_weights,
        )

    def decode(self, pyramid: Features) -> Features:
        """Refines the pyramid into the decoder's one map, or keeps the levels without a decoder."""
        levels = self.roi_levels(pyramid)
        if self.decoder is None:
            return levels
        first = next(iter(levels.maps))
        refined = self.decoder(levels.maps, levels.sizes)
        return Features({first: refined}, {first: levels.sizes[first]})

    def roi_features(self, pyramid: Features) -> RoiFeatures:
        """Makes what the branches of the second stage pool people from."""
        tasks = self.config.tasks
        return RoiFeatures(
            decoded=self.decode(pyramid) if "densepose" in tasks else None,
            levels=self.roi_levels(pyramid) if {"keypoints", "masks"} & set(tasks) else None,
        )

    def pool_people(
        self, decoded: Features, boxes: Array, batch_index: Array | None = None
    ) -> Array:
        """Pools people from `decode`'s map, [N, P, P, C]; `boxes` as in `pool_boxes`."""
        return pool_rois(decoded, boxes, batch_index, self.config.densepose_head, self.compute)

    def pool_for_masks(
        self, levels: Features, boxes: Array, batch_index: Array | None = None
    ) -> Array:
        """Pools from `roi_levels` for the mask head, [N, P, P, C]; `boxes` as in `pool_boxes`."""
        return pool_rois(levels, boxes, batch_index, self.config.mask_head, self.compute)

    def pool_for_keypoints(
        self, levels: Features, boxes: Array, batch_index: Array | None = None
    ) -> Array:
        """Pools from `roi_levels` for the keypoint head; otherwise as `pool_for_masks`."""
        return pool_rois(levels, boxes, batch_index, self.config.keypoint_head, self.compute)

    def pool(
        self, features: RoiFeatures, boxes: Mapping[str, Array], batch_index: Array | None = None
    ) -> dict[str, Array]:
        """Pools for every task of the model from its boxes, by task; see `pool_boxes`."""
        pooled = {}
        if features.decoded is not None:
            pooled["densepose"] = self.pool_people(
                features.decoded, boxes["densepose"], batch_index
            )
        for task, pool in (
            ("keypoints", self.pool_for_keypoints),
            ("masks", self.pool_for_masks),
        ):
            if features.levels is not None and task in self.config.tasks:
                pooled[task] = pool(features.levels, boxes[task], batch_index)
        return pooled

    def run_stages(
        self,
        pooled: Mapping[str, Array],
        classes: Array,
        surface_kernels: Sequence[Array | None] | None = None,
    ) -> tuple[BranchOutputs, ...]:
        """Runs the branches, in as many stages as `cascade.num_stages`.

        Args:
            pooled: [N, P, P, C] by task. With several stages the rows of all tasks are those of the
                same people.
            classes: int [N] the class of each ROI of the masks.
            surface_kernels: from `surface_kernels`; None to synthesise them here.

        Returns:
            The outputs of every stage.
        """
        if surface_kernels is None:
            surface_kernels = self.surface_kernels()
        stages = [person_branches.run_branches(self, pooled, classes, surface_kernels[0])]
        for stage, kernel in zip(self.later_stages, surface_kernels[1:], strict=True):
            stages.append(stage(pooled, stages[-1], classes, kernel))
        return tuple(stages)

    def run_head(self, pooled: Array) -> Array:
        """Runs the DensePose head on pooled people [N, P, P, C]: [N, P, P, channels]."""
        features: Array = self.densepose_head(pooled)
        return features

    def surface_kernels(self) -> tuple[Array | None, ...]:
        """The synthesised surface classifier [k, k, C, 25] of every stage.

        None for a stage without charts or one that learns its own.
        """
        if not person_branches.has_charts(self.config):
            return (None,) * int(self.config.cascade.num_stages)
        weights = self.box_head.class_and_delta_weights()
        later = [stage.surface_kernel(weights) for stage in self.later_stages]
        return (self.predictor.surface_kernel(weights), *later)

    def predict_charts(
        self, head_features: Array, surface_kernel: Array | None = None
    ) -> DensePoseOutputs[Array]:
        """Runs the first stage's predictor; the kernel is synthesised unless it is given."""
        if surface_kernel is None:
            surface_kernel = self.surface_kernels()[0]
        return self.predictor(head_features, surface_kernel)

    def vertex_embeddings(self) -> dict[str, Array]:
        """Embeddings [V, D] of the vertices of each mesh by its name; empty for other models.

        They are constants for given weights.
        """
        if not person_branches.has_embeddings(self.config):
            return {}
        return self.embedder()

    def describe(
        self,
        features: RoiFeatures,
        boxes: Array,
        batch_index: Array,
        classes: Array,
        surface_kernels: Sequence[Array | None] | None = None,
    ) -> PersonMaps[Array]:
        """Second stage.

        Args:
            features: from `roi_features`.
            boxes: [N, 4] people, xyxy in pixels of the network input.
            batch_index: int [N] the image of each.
            classes: int [N] the class of each.
            surface_kernels: from `surface_kernels`, computed once for given weights; None to
                synthesise them here.

        Returns:
            The maps of the N people, of every task of the model, by the last stage.
        """
        pooled = self.pool(features, dict.fromkeys(self.config.tasks, boxes), batch_index)
        return to_person_maps(self.run_stages(pooled, classes, surface_kernels)[-1])

    def roi_levels(self, pyramid: Features) -> Features:
        """The levels that people are pooled from: FPN's p6 only serves proposals."""
        names = [name for name in pyramid.maps if name != "p6"]
        return Features(
            {name: pyramid.maps[name] for name in names},
            {name: pyramid.sizes[name] for name in names},
        )


def to_person_maps(outputs: BranchOutputs) -> PersonMaps[Array]:
    """What a stage says of people: charts or embeddings, heatmaps, masks as probabilities."""
    scores, logits = outputs.keypoint_scores, outputs.mask_logits
    return PersonMaps(
        charts=outputs.charts,
        keypoints=None if scores is None else upsample_scores(scores),
        mask=None if logits is None else nn.sigmoid(logits),
        embeddings=outputs.embeddings,
    )


def _zeros(pooler: ConfigDict, channels: int) -> Array:
    """Pooled features of one person, [1, P, P, channels]."""
    return jnp.zeros((1, pooler.pooled_size, pooler.pooled_size, channels))


def size_multiple(config: ConfigDict) -> int:
    """What the reference pads image sides to a multiple of, for a `model` configuration."""
    return 1 if config.backbone.name == "hrnet" else 32


def build_model(
    config: ConfigDict,
    *,
    compute: Compute | None = None,
    graph: Graph | None = None,
) -> Detector:
    """Builds the detector of a `model` configuration.

    Args:
        config: the `model` part of a configuration.
        compute: how the model computes; None for the plain definition in the configuration's type.
        graph: initial body graph, {"keypoint": [25, 17], "box": [25, 6], "part": [25, 15]}.

    Returns:
        The module; `init` it, or give its methods converted weights.
    """
    return Detector(
        config=config.copy_and_resolve_references(),
        compute=Compute(dtype=config.dtype) if compute is None else compute,
        graph=graph,
    )
