"""Compares inference stage by stage: each reads the stored input of that stage."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.modeling.person_heads import masks_of_classes, upsample_scores
from ktn_jax.ops import interpolate
from ktn_jax.structures import Detections, Features, Proposals
from ktn_jax.verification.dump import (
    BOX_PIXELS,
    END_TO_END,
    GEOMETRY,
    SCORE,
    Dump,
    Row,
    compare,
    to_nchw,
    to_nhwc,
)

Array = jax.Array


class Runner:
    """Runs methods of the detector, or functions of it and arrays, on the dump's weights."""

    def __init__(self, dump: Dump, compute: Compute | None = None):
        """Builds the model, `compute` as `build_model` takes it."""
        self.model = build_model(dump.config.model, compute=compute)
        self._variables = dump.variables

    def __call__(self, method: Callable[..., Any], *args: Any) -> Any:
        """Compiles method(detector, *args) and returns its result in NumPy arrays."""
        run = jax.jit(lambda variables, *args: self.model.apply(variables, *args, method=method))
        return jax.device_get(run(self._variables, *args))


def compare_stages(dump: Dump, compute: Compute | None = None) -> Iterator[Row]:
    """Compares every stage of inference up to the chart maps.

    Args:
        dump: of one of the originals.
        compute: as `build_model` takes it.

    Yields:
        A row for everything that is compared.
    """
    run = Runner(dump, compute)
    yield _preprocessing(dump, run)
    yield from _backbone(dump, run)
    yield from _proposals(dump, run)
    yield from _boxes(dump, run)
    if len(dump["infer/det/boxes"]):
        tasks = dump.config.model.tasks
        if "masks" in tasks:
            yield from compare_masks(dump, run)
        if "keypoints" in tasks:
            yield from compare_keypoints(dump, run)
        if "densepose" in tasks:
            yield from _densepose(dump, run)


def _preprocessing(dump: Dump, run: Runner) -> Row:
    inputs = dump["input/normalised_padded"]
    image = dump["input/image_bgr_uint8"][..., ::-1]
    padded = np.zeros((1, *inputs.shape[2:], 3), np.uint8)
    padded[0, : image.shape[0], : image.shape[1]] = image
    normalised = run(Detector.normalise, padded, jnp.asarray([image.shape[:2]]))
    return compare(dump, "input/normalised_padded", to_nchw(normalised), GEOMETRY)


def _image_size(dump: Dump) -> Array:
    return jnp.asarray(dump["input/image_size"])[None]


def _pyramid(dump: Dump) -> Features:
    levels = dump.under("infer/backbone")
    maps = {level: to_nhwc(dump[f"infer/backbone/{level}"]) for level in levels}
    return Features(maps, dict.fromkeys(levels))


def _backbone(dump: Dump, run: Runner) -> Iterator[Row]:
    inputs = to_nhwc(dump["input/normalised_padded"])
    pyramid = run(Detector.extract, inputs)
    for level in dump.under("infer/backbone"):
        key = f"infer/backbone/{level}"
        yield compare(dump, key, to_nchw(pyramid.maps[level]), limit=END_TO_END * dump[key].std())


def _proposals(dump: Dump, run: Runner) -> Iterator[Row]:
    pyramid = _pyramid(dump)

    def heads(model: Detector, pyramid: Features) -> Any:
        return model.rpn_head(pyramid.maps, pyramid.sizes)

    logits, deltas = run(heads, pyramid)
    anchors = run.model.bind(dump.variables).anchors(logits)
    levels = dump.under("infer/rpn")
    for level, boxes in zip(levels, anchors, strict=True):
        yield compare(dump, f"infer/rpn/{level}/logits", to_nchw(logits[level]))
        yield compare(dump, f"infer/rpn/{level}/deltas", to_nchw(deltas[level]))
        yield compare(dump, f"infer/rpn/{level}/anchors", boxes, GEOMETRY)
    stored = [
        {level: to_nhwc(dump[f"infer/rpn/{level}/{name}"]) for level in levels}
        for name in ("logits", "deltas")
    ]
    sizes = dict.fromkeys(levels)
    proposals = run(Detector.proposals_from, *stored, sizes, _image_size(dump))
    yield from _compare_found(dump, "infer/proposals", proposals, {"objectness_logits": "logits"})


def _compare_found(
    dump: Dump, prefix: str, found: Proposals | Detections, scores: Mapping[str, str]
) -> Iterator[Row]:
    """Compares the valid rows of what was selected; the order must agree too."""
    is_valid = np.asarray(found.is_valid[0])
    yield compare(dump, f"{prefix}/boxes", found.boxes[0][is_valid], limit=BOX_PIXELS)
    for theirs, ours in scores.items():
        actual = getattr(found, ours)[0][is_valid]
        yield compare(dump, f"{prefix}/{theirs}", actual, limit=SCORE)


def _stored_proposals(dump: Dump) -> Proposals:
    boxes = jnp.asarray(dump["infer/proposals/boxes"])[None]
    logits = jnp.asarray(dump["infer/proposals/objectness_logits"])[None]
    return Proposals(boxes, logits, jnp.ones(logits.shape, bool))


def _boxes(dump: Dump, run: Runner) -> Iterator[Row]:
    proposals = _stored_proposals(dump)
    index = jnp.zeros(proposals.boxes.shape[1], jnp.int32)
    pooled = run(Detector.pool_boxes, _pyramid(dump), proposals.boxes[0], index)
    yield compare(dump, "infer/box/pooled", to_nchw(pooled), GEOMETRY)
    hidden, logits, deltas = run(Detector.classify, to_nhwc(dump["infer/box/pooled"]))
    yield compare(dump, "infer/box/head_out", hidden)
    yield compare(dump, "infer/box/cls_logits", logits)
    yield compare(dump, "infer/box/deltas", deltas)
    stored = [jnp.asarray(dump[f"infer/box/{name}"])[None] for name in ("cls_logits", "deltas")]

    def decode(model: Detector, deltas: Array, boxes: Array) -> Array:
        return model.decode_boxes(deltas, boxes)

    decoded = run(decode, stored[1][0], proposals.boxes[0])
    yield compare(dump, "infer/box/decoded_boxes", decoded, GEOMETRY)
    found = run(Detector.detections_from, *stored, proposals, _image_size(dump))
    yield from _compare_found(dump, "infer/det", found, {"scores": "scores", "classes": "classes"})


def _pooled(dump: Dump, run: Runner, key: str, pool: Callable[..., Array]) -> tuple[Row, Array]:
    """Compares what a branch pools from the stored pyramid; returns the row and the stored maps."""
    boxes = jnp.asarray(dump["infer/det/boxes"])

    def pool_stored(model: Detector, pyramid: Features) -> Array:
        index = jnp.zeros(len(boxes), jnp.int32)
        return pool(model, model.roi_levels(pyramid), boxes, index)

    pooled = run(pool_stored, _pyramid(dump))
    return compare(dump, key, to_nchw(pooled), GEOMETRY), to_nhwc(dump[key])


def compare_masks(dump: Dump, run: Runner) -> Iterator[Row]:
    """Compares the mask head, stage by stage, on the detections of a dump with masks."""
    prefix, classes = "infer/mask", jnp.asarray(dump["infer/det/classes"], jnp.int32)
    row, pooled = _pooled(dump, run, f"{prefix}/pooled", Detector.pool_for_masks)
    yield row

    def upsampled(model: Detector, pooled: Array) -> Array:
        return model.mask_head.upsampled(model.mask_head.convolved(pooled))

    yield compare(dump, f"{prefix}/deconv", to_nchw(run(upsampled, pooled)))
    stored = to_nhwc(dump[f"{prefix}/deconv"])
    logits = run(lambda model, x: model.mask_head.classify(x), stored)
    yield compare(dump, f"{prefix}/logits", to_nchw(logits))
    own = masks_of_classes(to_nhwc(dump[f"{prefix}/logits"]), classes)
    yield compare(dump, "infer/det/mask_probabilities", jax.nn.sigmoid(own)[:, None], SCORE)


def compare_keypoints(dump: Dump, run: Runner) -> Iterator[Row]:
    """Compares the keypoint head, stage by stage, on the detections of a dump with keypoints."""
    prefix = "infer/keypoint"
    row, pooled = _pooled(dump, run, f"{prefix}/pooled", Detector.pool_for_keypoints)
    yield row
    convolved = run(lambda model, x: model.keypoint_head.convolved(x), pooled)
    yield compare(dump, f"{prefix}/last_conv", to_nchw(convolved))
    stored = to_nhwc(dump[f"{prefix}/last_conv"])
    scores = run(lambda model, x: model.keypoint_head.low_resolution(x), stored)
    yield compare(dump, f"{prefix}/lowres", to_nchw(scores))
    heatmaps = upsample_scores(to_nhwc(dump[f"{prefix}/lowres"]))
    yield compare(dump, f"{prefix}/heatmaps", to_nchw(heatmaps), GEOMETRY)


# The original's names of the predictor's outputs, in models with and without transfer.
LOW_RESOLUTION = {
    "u_lowres": "u",
    "v_lowres": "v",
    "ann_index_lowres": "coarse",
    "m_lowres": "mask",
    "k_lowres": "keypoint",
    "k_from_body_kpt": "keypoint",
    "index_uv_lowres": "fine",
    "index_uv_from_surface_weight": "fine",
    "i_lowres": "auxiliary",
    "sigma_2_lowres": "sigma",
    "kappa_u_lowres": "kappa_u",
    "kappa_v_lowres": "kappa_v",
    "fine_segm_confidence_lowres": "fine_confidence",
    "coarse_segm_confidence_lowres": "coarse_confidence",
    # Of embedding models:
    "coarse_segm_lowres": "coarse",
    "embed_lowres": "embedding",
}
HIGH_RESOLUTION = {
    "coarse_segm": "coarse_segm",
    "fine_segm": "fine_segm",
    "m": "coarse_segm",
    "index_uv": "fine_segm",
    "u": "u",
    "v": "v",
    "ann_index": "part_segm",
    "k": "keypoints",
    "sigma_2": "sigma",
    "kappa_u": "kappa_u",
    "kappa_v": "kappa_v",
    "fine_segm_confidence": "fine_segm_confidence",
    "coarse_segm_confidence": "coarse_segm_confidence",
    "embedding": "embedding",
}


def high_resolution(dump: Dump) -> dict[str, str]:
    """The fields of the predictor's maps that are stored upsampled, by the original's names."""
    names = [name for name in dump.under("infer/densepose/hr") if name != "aux_index_uv"]
    fields = {name: HIGH_RESOLUTION.get(name, name) for name in names}
    if "ann_index" in fields and "m" not in fields:  # KTN's first version has no other mask
        fields["ann_index"] = "coarse_segm"
    return fields


def _densepose(dump: Dump, run: Runner) -> Iterator[Row]:
    prefix = "infer/densepose"
    decoded = _pyramid(dump)
    if f"{prefix}/decoder" in dump.keys:
        refined = run(Detector.decode, decoded)
        (level,) = refined.maps
        yield compare(dump, f"{prefix}/decoder", to_nchw(refined.maps[level]))
        decoded = Features({level: to_nhwc(dump[f"{prefix}/decoder"])}, {level: None})
    else:
        decoded = run(Detector.decode, decoded)
    boxes = jnp.asarray(dump["infer/det/boxes"])
    pooled = run(Detector.pool_people, decoded, boxes, jnp.zeros(len(boxes), jnp.int32))
    yield compare(dump, f"{prefix}/pooled", to_nchw(pooled), GEOMETRY)
    features = run(Detector.run_head, to_nhwc(dump[f"{prefix}/pooled"]))
    yield compare(dump, f"{prefix}/head", to_nchw(features))
    if has_embeddings(dump.config.model):
        yield from _embedding_predictor(dump, run)
    else:
        yield from _predictor(dump, run)


def _predictor(dump: Dump, run: Runner) -> Iterator[Row]:
    prefix = "infer/densepose"
    kernel = run(Detector.surface_kernels)[0]
    if kernel is not None:
        box_weights = run(lambda model: model.box_head.class_and_delta_weights())
        yield compare(dump, f"{prefix}/bbox_params", box_weights, GEOMETRY)
        yield compare(dump, f"{prefix}/surface_weight", kernel.transpose(2, 3, 0, 1))
        kernel = jnp.asarray(dump[f"{prefix}/surface_weight"].transpose(2, 3, 0, 1))

    def low_resolution(model: Detector, features: Array) -> Mapping[str, Array]:
        return model.predictor.low_resolution(features, kernel)

    head = to_nhwc(dump[f"{prefix}/head"])
    low = run(low_resolution, head)
    outputs = run(Detector.predict_charts, head, kernel)
    yield from _compare_outputs(dump, low, outputs)
    if f"{prefix}/hr/aux_index_uv" in dump.keys:
        yield _auxiliary(dump, run, low["auxiliary"])


def _embedding_predictor(dump: Dump, run: Runner) -> Iterator[Row]:
    head = to_nhwc(dump["infer/densepose/head"])
    low = run(lambda model, x: model.embedding_predictor.low_resolution(x), head)
    outputs = run(lambda model, x: model.embedding_predictor(x), head)
    yield from _compare_outputs(dump, low, outputs)
    for mesh, embeddings in run(Detector.vertex_embeddings).items():
        key = f"infer/cse/vertex_embeddings/{mesh}"
        if key in dump.keys:
            yield compare(dump, key, embeddings, GEOMETRY)


def _compare_outputs(dump: Dump, low: Mapping[str, np.ndarray], outputs: Any) -> Iterator[Row]:
    """Compares a predictor's outputs, before and after upsampling."""
    prefix = "infer/densepose"
    for theirs in dump.under(f"{prefix}/lowres"):
        key = f"{prefix}/lowres/{theirs}"
        yield _compare_output(dump, key, low.get(LOW_RESOLUTION.get(theirs, theirs)))
    count = int(dump[f"{prefix}/hr_count"])
    for theirs, name in high_resolution(dump).items():
        ours = getattr(outputs, name, None)
        ours = None if ours is None else ours[:count]
        yield _compare_output(dump, f"{prefix}/hr/{theirs}", ours)


def _compare_output(dump: Dump, key: str, ours: np.ndarray | None) -> Row:
    if ours is None:
        return Row(f"{key} (not ours)", dump[key].shape, np.inf, np.inf, 0.0)
    return compare(dump, key, to_nchw(ours))


def _auxiliary(dump: Dump, run: Runner, low: np.ndarray) -> Row:
    """The auxiliary classifier's map, which nothing else reads, upsampled as the others are."""
    key = "infer/densepose/hr/aux_index_uv"
    expected = dump[key]
    size = expected.shape[2:]
    up = run(lambda model, x: interpolate.resize_bilinear(x, size), low[: len(expected)])
    return compare(dump, key, to_nchw(up))
