"""The branches of the second stage, as a configuration describes them, and what they pool from.

`model.tasks` names the branches: DensePose charts or embeddings, keypoints and masks of the people
found. The DensePose branch pools from the decoder's map, the others from the pyramid.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ktn_jax.modeling import decoder as decoders
from ktn_jax.modeling import densepose_head as heads
from ktn_jax.modeling.chart_predictor import TRANSFER_SOURCES, ChartPredictor
from ktn_jax.modeling.compute import Compute, remember
from ktn_jax.modeling.embedding_predictor import EmbeddingPredictor
from ktn_jax.modeling.knowledge_transfer import Graph
from ktn_jax.modeling.person_heads import KeypointHead, MaskHead, masks_of_classes
from ktn_jax.modeling.vertex_embedders import VertexEmbedders
from ktn_jax.ops.roi_align import cache_sized_chunk, multilevel_roi_align
from ktn_jax.ops.roi_products import multilevel_roi_align_by_products
from ktn_jax.structures import BranchOutputs, Features

Array = jax.Array

TASKS = ("densepose", "keypoints", "masks")
CASCADE_INPUTS = ("probabilities", "logits")
FIRST_STRIDE = 4  # of the finest pyramid level
EMBEDDING = "embedding"  # the name of the predictor of embeddings in place of charts


def has_charts(config: ConfigDict) -> bool:
    """Whether the model of a `model` configuration predicts charts."""
    return "densepose" in config.tasks and config.predictor.name != EMBEDDING


def has_embeddings(config: ConfigDict) -> bool:
    """Whether the model of a `model` configuration predicts embeddings in place of charts."""
    return "densepose" in config.tasks and config.predictor.name == EMBEDDING


def transfer_sources(config: ConfigDict) -> tuple[str, ...]:
    """Sources of the knowledge transfer of a `model` configuration; empty without transfer."""
    return TRANSFER_SOURCES.get(config.predictor.name, ()) if has_charts(config) else ()


class Branches(Protocol):
    """A stage: the heads of the tasks that a model has."""

    @property
    def config(self) -> ConfigDict:
        """The `model` part of a configuration."""

    @property
    def densepose_head(self) -> nn.Module:
        """Of pooled people."""

    @property
    def predictor(self) -> ChartPredictor:
        """Of charts, from what the DensePose head makes."""

    @property
    def embedding_predictor(self) -> EmbeddingPredictor:
        """Of embeddings in their place."""

    @property
    def keypoint_head(self) -> KeypointHead:
        """Of keypoints."""

    @property
    def mask_head(self) -> MaskHead:
        """Of masks."""


def run_branches(
    stage: Branches, inputs: Mapping[str, Array], classes: Array, surface_kernel: Array | None
) -> BranchOutputs:
    """Runs the heads of a stage.

    Args:
        stage: whose heads run.
        inputs: [N, P, P, C] by task of the model, what the task's head reads.
        classes: int [N] the class of each ROI of the masks.
        surface_kernel: of the stage's predictor; None if it learns its own.

    Returns:
        The outputs of the stage.
    """
    features: dict[str, Array] = {}
    outputs: dict[str, Any] = {}
    if "densepose" in inputs:
        features["densepose"] = stage.densepose_head(inputs["densepose"])
        if has_embeddings(stage.config):
            outputs["embeddings"] = stage.embedding_predictor(features["densepose"])
        else:
            low = stage.predictor.low_resolution(features["densepose"], surface_kernel)
            outputs |= {"low_charts": low, "charts": stage.predictor.upsample(low)}
    if "keypoints" in inputs:
        features["keypoints"] = stage.keypoint_head.convolved(inputs["keypoints"])
        outputs["keypoint_scores"] = stage.keypoint_head.low_resolution(features["keypoints"])
    if "masks" in inputs:
        head = stage.mask_head
        features["masks"] = head.convolved(inputs["masks"])
        logits = head.classify(head.upsampled(features["masks"]))
        outputs["mask_logits"] = masks_of_classes(logits, classes)
    return BranchOutputs(features=features, **outputs)


def check_tasks(config: ConfigDict) -> None:
    """Checks `model.tasks` and `model.cascade`, and `model.meshes` of an embedding model.

    Raises:
        ValueError: an unknown task or one named twice, knowledge transfer with several classes,
            meshes that are not described in full, or a cascade that cannot be.
    """
    tasks = tuple(config.tasks)
    if len(set(tasks)) != len(tasks) or not set(tasks) <= set(TASKS):
        raise ValueError(f"model.tasks {tasks}: different ones of {TASKS}")
    num_classes = config.box_head.num_classes
    if transfer_sources(config) and num_classes != 1:
        raise ValueError(
            f"predictor.name {config.predictor.name!r} transfers from the classifier of one class; "
            f"box_head.num_classes is {num_classes}"
        )
    if has_embeddings(config):
        _check_meshes(config)
    cascade = config.cascade
    if cascade.num_stages < 1 or (cascade.num_stages > 1 and not tasks):
        raise ValueError(
            f"model.cascade.num_stages {cascade.num_stages} of model.tasks {tasks}: at least 1, "
            "and 1 without tasks"
        )
    if cascade.num_convs < 1 or cascade.inputs not in CASCADE_INPUTS:
        raise ValueError(
            f"model.cascade.num_convs {cascade.num_convs}, inputs {cascade.inputs!r}: at least 1, "
            f"and one of {CASCADE_INPUTS}"
        )


def _check_meshes(config: ConfigDict) -> None:
    meshes, classes = config.meshes, config.box_head.num_classes
    names = tuple(meshes.names)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"model.meshes.names {names}: an embedding model needs different ones")
    for key in ("num_vertices", "num_features", "trains_features", "trains"):
        if len(meshes[key]) != len(names):
            raise ValueError(f"model.meshes.{key} {meshes[key]}: one for each of {names}")
    of_classes = tuple(meshes.of_classes)
    if len(of_classes) != classes or not set(of_classes) <= set(names):
        raise ValueError(
            f"model.meshes.of_classes {of_classes}: one of {names} for each of "
            f"box_head.num_classes {classes}"
        )
    if config.predictor.num_coarse_channels != 2:
        raise ValueError("an embedding model has predictor.num_coarse_channels 2")
    if config.cascade.num_stages > 1:
        raise ValueError(
            f"model.cascade.num_stages {config.cascade.num_stages}: an embedding model has 1"
        )


def build_decoder(config: ConfigDict, compute: Compute) -> nn.Module | None:
    """Builds the decoder of a `model` configuration; None for a model without one.

    Raises:
        ValueError: an unknown name.
    """
    decoder = config.decoder
    if "densepose" not in config.tasks or decoder.name == "none":
        return None
    if decoder.name == "panoptic":
        return decoders.PanopticDecoder(
            features=decoder.channels,
            out_features=decoder.out_channels,
            norm=decoder.norm,
            compute=compute,
        )
    if decoder.name == "multi_instance":
        return decoders.MultiInstanceDecoder(
            features=decoder.channels,
            out_features=decoder.out_channels,
            is_multi_scale=decoder.is_multi_scale,
            compute=compute,
        )
    raise ValueError(f"unknown decoder.name {decoder.name!r}: none, panoptic or multi_instance")


def build_densepose_head(config: ConfigDict, compute: Compute) -> nn.Module:
    """Builds the DensePose head of a `model` configuration.

    Raises:
        ValueError: an unknown name.
    """
    head = config.densepose_head
    shared: dict[str, Any] = {
        "features": head.channels,
        "num_convs": head.num_convs,
        "kernel_size": head.kernel_size,
        "norm": head.norm,
        "compute": compute,
    }
    if head.name == "conv_stack":
        return heads.ConvStackHead(**shared)
    if head.name == "deeplab":
        return heads.DeepLabHead(**shared, use_non_local=head.use_non_local)
    if head.name == "ktn":
        return heads.KTNHead(**shared)
    raise ValueError(f"unknown densepose_head.name {head.name!r}: conv_stack, deeplab or ktn")


def build_predictor(
    config: ConfigDict, compute: Compute, graph: Graph | None, in_features: int | None = None
) -> ChartPredictor:
    """Builds the chart predictor of a `model` configuration.

    Args:
        config: the `model` part of a configuration.
        compute: how the model computes.
        graph: initial body graph of the transfer, see `build_model`; None for small noise.
        in_features: channels that it reads; None for those of the DensePose head.

    Returns:
        The module; an unknown predictor.name is a ValueError when it is bound.
    """
    predictor = config.predictor
    settings = _of_any_predictor(config, compute)
    if in_features is not None:
        settings["in_features"] = in_features
    return ChartPredictor(
        kind=predictor.name,
        num_patches=predictor.num_patches,
        uv_confidence=predictor.uv_confidence,
        graph=graph,
        **settings,
    )


def build_embedding_predictor(config: ConfigDict, compute: Compute) -> EmbeddingPredictor:
    """Builds the embedding predictor of a `model` configuration."""
    channels = config.predictor.embedding_channels
    return EmbeddingPredictor(channels=channels, **_of_any_predictor(config, compute))


def _of_any_predictor(config: ConfigDict, compute: Compute) -> dict[str, Any]:
    predictor, head = config.predictor, config.densepose_head
    return {
        # Without convolutions the head passes on what it pools.
        "in_features": head.channels if head.num_convs else config.neck.channels,
        "num_coarse_channels": predictor.num_coarse_channels,
        "kernel_size": predictor.kernel_size,
        "up_scale": predictor.up_scale,
        "has_segm_confidence": predictor.has_segm_confidence,
        "segm_confidence_epsilon": predictor.segm_confidence_epsilon,
        "compute": compute,
    }


def build_embedder(config: ConfigDict) -> VertexEmbedders:
    """Builds the embeddings of the meshes of a `model` configuration."""
    meshes = config.meshes
    return VertexEmbedders(
        meshes=tuple(meshes.names),
        num_vertices=tuple(meshes.num_vertices),
        num_features=tuple(meshes.num_features),
        trains_features=tuple(meshes.trains_features),
        trains=tuple(meshes.trains),
        channels=config.predictor.embedding_channels,
    )


def num_mask_classes(config: ConfigDict) -> int:
    """Masks that the mask head of a `model` configuration predicts of each ROI."""
    return 1 if config.mask_head.is_class_agnostic else int(config.box_head.num_classes)


def build_mask_head(config: ConfigDict, compute: Compute) -> MaskHead:
    """Builds the mask head of a `model` configuration."""
    head = config.mask_head
    return MaskHead(
        num_classes=num_mask_classes(config),
        in_features=config.neck.channels,
        features=head.channels,
        num_convs=head.num_convs,
        norm=head.norm,
        compute=compute,
    )


def build_keypoint_head(config: ConfigDict, compute: Compute) -> KeypointHead:
    """Builds the keypoint head of a `model` configuration."""
    return KeypointHead(
        in_features=config.neck.channels,
        features=tuple(config.keypoint_head.channels),
        compute=compute,
    )


def pool_rois(
    levels: Features,
    boxes: Array,
    batch_index: Array | None,
    pooler: ConfigDict,
    compute: Compute,
) -> Array:
    """Pools boxes with ROIAlign.

    Args:
        levels: one map, or a pyramid from stride 4 on.
        boxes: [N, 4] of images `batch_index`; or without it [B, R, 4], R of every image, so that
            devices that share a batch need not exchange maps.
        batch_index: int [N].
        pooler: configuration with pooled_size P, sampling_ratio, aligned and canonical_box_size.
        compute: whether to pool in chunks, or by products where each image has its own boxes.

    Returns:
        [N, P, P, C], with N = B * R without `batch_index`. What padding (zero boxes) pools means
        nothing.
    """
    strides = [FIRST_STRIDE * 2**index for index in range(len(levels.maps))]
    maps = list(levels.maps.values())
    sizes = [size for size in levels.sizes.values() if size is not None] or None
    if compute.products and batch_index is None:
        pooled = multilevel_roi_align_by_products(
            maps,
            strides,
            boxes,
            output_size=pooler.pooled_size,
            sampling_ratio=pooler.sampling_ratio,
            aligned=pooler.aligned,
            valid_hw=sizes,
            canonical_size=pooler.canonical_box_size,
        )
        return remember(pooled.reshape(-1, *pooled.shape[2:]))
    chunk_size = None
    if compute.chunks:
        chunk_size = cache_sized_chunk(pooler.pooled_size, pooler.sampling_ratio, maps[0].shape[-1])

    def pool(
        maps: list[Array], sizes: list[Array] | None, boxes: Array, batch_index: Array
    ) -> Array:
        return multilevel_roi_align(
            maps,
            strides,
            boxes,
            batch_index,
            output_size=pooler.pooled_size,
            sampling_ratio=pooler.sampling_ratio,
            aligned=pooler.aligned,
            valid_hw=sizes,
            chunk_size=chunk_size,
            canonical_size=pooler.canonical_box_size,
        )

    if batch_index is not None:
        return remember(pool(maps, sizes, boxes, batch_index))

    def pool_image(maps: list[Array], sizes: list[Array] | None, boxes: Array) -> Array:
        maps, sizes = jax.tree.map(lambda x: x[None], (maps, sizes))
        return pool(maps, sizes, boxes, jnp.zeros(boxes.shape[0], jnp.int32))

    pooled = jax.vmap(pool_image)(maps, sizes, boxes)
    return remember(pooled.reshape(-1, *pooled.shape[2:]))
