"""A predictor as one function of arrays: both stages, from padded images to people and their maps.

This is what `exported_files` writes. Shapes in brackets: B images padded to one size, M people of
an image, S side of a chart map. The host code of `predictor` stops at the number of people between
the stages; here the second stage is a loop, which runs as often as the people found need.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax
from ml_collections import ConfigDict

from ktn_jax.inference.charts import check_mask_threshold
from ktn_jax.inference.folding import without_norms
from ktn_jax.inference.stages import Stages, choose_compute
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.results.detection_checks import CONFIDENCES
from ktn_jax.structures import DensePoseOutputs, Detections, PersonMaps

Array = jax.Array
Weights = Mapping[str, Any]
Outputs = dict[str, Array]
Program = Callable[[Weights, Array, Array], Outputs]

_KERNELS = "surface_kernels"
_CHARTS = ("coarse_segm", "fine_segm", "u", "v", *CONFIDENCES)
_EMBEDDINGS = ("coarse_segm", "embedding", "coarse_segm_confidence")
# Rows of the second stage that are computed at once: few, where somebody waits for those that
# nobody fills, and more where launching work costs more than doing it.
_PEOPLE_AT_ONCE = {"cpu": 2}
_MANY_PEOPLE_AT_ONCE = 8
_NOBODY = np.iinfo(np.int32).max  # beyond every row: read as the last one, written nowhere


@dataclasses.dataclass(frozen=True)
class _Plan:
    model: Detector
    mask_threshold: float
    max_people: int
    people_at_once: int


def weights_of(stages: Stages) -> dict[str, np.ndarray]:
    """The weights of a program by name, such as "params/box_head/fc1/kernel".

    Norms are folded, and what knowledge transfer synthesises stands for its parameters, as in
    `Stages`.
    """
    kernels = {str(i): kernel for i, kernel in enumerate(stages.surface_kernels)}
    trees = {**stages.variables, _KERNELS: {k: v for k, v in kernels.items() if v is not None}}
    flat = traverse_util.flatten_dict(trees, sep="/")
    return {name: np.asarray(value) for name, value in sorted(flat.items())}


def make_program(
    config: ConfigDict, platform: str, max_people: int, one_by_one: bool = False
) -> Program:
    """Makes the function of a configuration's predictor.

    Args:
        config: a whole configuration.
        platform: what the program is compiled for, as `jax.export` names it: cpu, cuda or tpu.
        max_people: M, of whom the maps are computed: the best of an image.
        one_by_one: take the images of a batch one after the other, on other platforms than CPUs
            too.

    Returns:
        A function of weights (from `weights_of`), images uint8 [B, H, W, 3] RGB, zero beyond each
        image, and int32 [B, 2] height and width of each. B may be symbolic. It returns arrays by
        name, zero in rows without a person:

        - boxes [B, M, 4], scores [B, M], classes int32 [B, M], is_valid bool [B, M], best first;
        - the maps of the tasks of the model: those of `structures.DensePoseOutputs` or
          `EmbeddingOutputs` by their names, heatmaps, mask, each [B, M, S, S, C] or [B, M, S, S];
        - iuv uint8 [B, M, S, S, 3] of charts: I, 255 U, 255 V at the cells of the maps.
    """
    plan = _Plan(
        model=build_model(without_norms(config.model), compute=choose_compute(config, platform)),
        mask_threshold=float(config.model.predictor.mask_threshold),
        max_people=max_people,
        people_at_once=_PEOPLE_AT_ONCE.get(platform, _MANY_PEOPLE_AT_ONCE),
    )

    def run_together(weights: Weights, images: Array, image_size_hw: Array) -> Outputs:
        return _find_people(plan, weights, images, image_size_hw)

    def run_one_by_one(weights: Weights, images: Array, image_size_hw: Array) -> Outputs:
        def find(image_and_size: tuple[Array, Array]) -> Outputs:
            image, size_hw = image_and_size
            found = run_together(weights, image[None], size_hw[None])
            return {name: rows[0] for name, rows in found.items()}

        found: Outputs = lax.map(find, (images, image_size_hw))
        return found

    # The faster forms of CPUs are chosen by static shapes, and their caches hold one image at best.
    return run_one_by_one if one_by_one or platform == "cpu" else run_together


def _find_people(plan: _Plan, weights: Weights, images: Array, image_size_hw: Array) -> Outputs:
    variables = traverse_util.unflatten_dict(dict(weights), sep="/")
    kernels = variables.pop(_KERNELS, {})
    stages = range(int(plan.model.config.cascade.num_stages))
    surface_kernels = tuple(kernels.get(str(stage)) for stage in stages)

    def apply(method: Callable[..., Any], *arguments: Any) -> Any:
        return plan.model.apply(variables, *arguments, method=method)

    pyramid, found = apply(Detector.detect, images, image_size_hw)
    found = jax.tree.map(lambda rows: rows[:, : plan.max_people], found)
    outputs = {
        "boxes": found.boxes,
        "scores": found.scores,
        "classes": found.classes,
        "is_valid": found.is_valid,
    }
    if plan.model.config.tasks:
        features = apply(Detector.roi_features, pyramid)

        def describe(boxes: Array, own_image: Array, classes: Array) -> Outputs:
            people = (features, boxes, own_image, classes, surface_kernels)
            return _named(apply(Detector.describe, *people), plan.mask_threshold)

        outputs |= describe_people(describe, found, plan.people_at_once)
    return outputs


def describe_people(
    describe: Callable[[Array, Array, Array], Outputs], found: Detections, at_once: int
) -> Outputs:
    """Runs the second stage for everybody who was found, a few at a time.

    Args:
        describe: makes maps of boxes, the image of each and the class of each.
        found: R people of each image.
        at_once: how many boxes `describe` takes.

    Returns:
        Its maps, [B, R, ...] each, zero for rows of nobody.
    """
    batch, rows = found.is_valid.shape
    is_valid = found.is_valid.reshape(-1)
    count = is_valid.sum()
    boxes, classes = found.boxes.reshape(-1, 4), found.classes.reshape(-1)
    own_image = jnp.repeat(jnp.arange(batch), rows)
    # The rows of people come first; those of nobody fill the last round.
    order = jnp.argsort(~is_valid, stable=True).astype(jnp.int32)
    order = jnp.concatenate([order, jnp.full(at_once, _NOBODY)])

    def rows_of(turn: Array | int) -> Array:
        start = jnp.asarray(turn * at_once, jnp.int32)
        wanted = lax.dynamic_slice_in_dim(order, start, at_once)
        return jnp.where(start + jnp.arange(at_once) < count, wanted, _NOBODY)

    def describe_rows(rows: Array) -> Outputs:
        return describe(*(x.at[rows].get(mode="clip") for x in (boxes, own_image, classes)))

    def add(turn: Array, total: Outputs) -> Outputs:
        rows = rows_of(turn)
        return {
            name: total[name].at[rows].set(values, mode="drop")
            for name, values in describe_rows(rows).items()
        }

    shapes = jax.eval_shape(lambda: describe_rows(rows_of(0)))
    total = {
        name: jnp.zeros((boxes.shape[0], *leaf.shape[1:]), leaf.dtype)
        for name, leaf in shapes.items()
    }
    total = lax.fori_loop(0, (count + at_once - 1) // at_once, add, total)
    return {name: x.reshape(batch, rows, *x.shape[1:]) for name, x in total.items()}


def _named(maps: PersonMaps[Array], mask_threshold: float) -> Outputs:
    """The maps that a model has, by name."""
    named: dict[str, Array | None] = {"heatmaps": maps.heatmaps, "mask": maps.mask}
    if maps.charts is not None:
        named |= {name: getattr(maps.charts, name) for name in _CHARTS}
        named["iuv"] = _iuv(maps.charts, mask_threshold)
    if maps.embeddings is not None:
        named |= {name: getattr(maps.embeddings, name) for name in _EMBEDDINGS}
    return {name: values for name, values in named.items() if values is not None}


def _iuv(charts: DensePoseOutputs[Array], mask_threshold: float) -> Array:
    """I, 255 U, 255 V at the cells of chart maps, as `charts.chart_in_box` makes them of pixels.

    Raises:
        ValueError: see `charts.check_mask_threshold`.
    """
    coarse = charts.coarse_segm
    check_mask_threshold(mask_threshold, coarse.shape[-1])
    is_person = coarse.argmax(-1) > 0
    if mask_threshold != 0.5:
        is_person = jax.nn.sigmoid(coarse[..., 1] - coarse[..., 0]) > mask_threshold
    labels = jnp.where(is_person, charts.fine_segm.argmax(-1), 0)
    levels = [
        jnp.clip(jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0] * 255, 0, 255)
        for x in (charts.u, charts.v)
    ]
    levels = [jnp.where(labels > 0, level, 0) for level in levels]
    return jnp.stack([labels, *levels], axis=-1).astype(jnp.uint8)
