"""Compares people in the photo: from stored maps, and end to end from the photo."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.body import parts
from ktn_jax.inference import charts
from ktn_jax.inference.predictor import FoundPerson, Predictor, to_result
from ktn_jax.inference.stages import Stages
from ktn_jax.modeling.detector import size_multiple
from ktn_jax.modeling.person_branches import has_charts, has_embeddings
from ktn_jax.modeling.person_heads import upsample_scores
from ktn_jax.results.maps import paste_iuv
from ktn_jax.results.records import BACKGROUND, PersonResult
from ktn_jax.structures import DensePoseOutputs, EmbeddingOutputs, PersonMaps
from ktn_jax.verification.dump import (
    BOX_PIXELS,
    END_TO_END,
    LABEL_FRACTION,
    MASK_FRACTION,
    SCORE,
    UV_LEVELS,
    Dump,
    Row,
    compare,
    to_nchw,
    to_nhwc,
)
from ktn_jax.verification.intermediates import (
    HIGH_RESOLUTION,
    LOW_RESOLUTION,
    Runner,
    high_resolution,
)


def _stored_people(dump: Dump) -> list[FoundPerson]:
    """People as the network found them, from stored detections and low-resolution maps."""
    if not len(dump["infer/det/boxes"]):
        return []
    tasks = dump.config.model.tasks
    keypoints = mask = None
    if "keypoints" in tasks:
        keypoints = np.asarray(upsample_scores(to_nhwc(dump["infer/keypoint/lowres"])))
    if "masks" in tasks:
        mask = dump["infer/det/mask_probabilities"][:, 0]
    model = dump.config.model
    maps = PersonMaps(
        charts=_stored_charts(dump) if has_charts(model) else None,
        keypoints=keypoints,
        mask=mask,
        embeddings=_stored_embeddings(dump) if has_embeddings(model) else None,
    )
    stored = (dump[f"infer/det/{name}"] for name in ("boxes", "scores", "classes"))
    return [
        FoundPerson(
            box, float(score), jax.tree.map(lambda x, i=i: np.asarray(x[i]), maps), int(index)
        )
        for i, (box, score, index) in enumerate(zip(*stored, strict=True))
    ]


def _stored_low_resolution(dump: Dump) -> dict[str, jax.Array]:
    prefix = "infer/densepose/lowres"
    return {
        LOW_RESOLUTION[name]: to_nhwc(dump[f"{prefix}/{name}"])
        for name in dump.under(prefix)
        if name in LOW_RESOLUTION  # another was reported with its stage
    }


def _stored_embeddings(dump: Dump) -> EmbeddingOutputs[np.ndarray]:
    run, low = Runner(dump), _stored_low_resolution(dump)
    outputs: EmbeddingOutputs[np.ndarray] = run(
        lambda model, low: model.embedding_predictor.upsample(low), low
    )
    return outputs


def _stored_charts(dump: Dump) -> DensePoseOutputs[np.ndarray]:
    run, low = Runner(dump), _stored_low_resolution(dump)
    if "keypoint" not in low and "infer/densepose/hr/k" in dump.keys:
        kernel = jnp.asarray(dump["infer/densepose/surface_weight"].transpose(2, 3, 0, 1))
        head = to_nhwc(dump["infer/densepose/head"])
        low["keypoint"] = run(
            lambda model, x: model.predictor.low_resolution(x, kernel)["keypoint"], head
        )
    outputs: DensePoseOutputs[np.ndarray] = run(
        lambda model, low: model.predictor.upsample(low), low
    )
    return outputs


def results(dump: Dump) -> Iterator[Row]:
    """Compares people in the photo, made from stored detections and maps."""
    people = _stored_people(dump)
    yield from _compare_people(dump, people, "")


def _compare_people(dump: Dump, people: list[FoundPerson], note: str) -> Iterator[Row]:
    """Compares people brought to the requested size: boxes, scores, keypoints, charts."""
    from_hw = _size_hw(dump, "input/image_size")
    to_hw = _size_hw(dump, "input/output_height_width")
    sizes, model, surfaces = (from_hw, to_hw), dump.config.model, _vertex_embeddings(dump)
    shown = [  # without those of whom the photo shows nothing
        (person, result)
        for person in people
        if (result := to_result(person, *sizes, model, surfaces)) is not None
    ]
    results = [result for _, result in shown]
    boxes = np.stack([r.box_xyxy for r in results]) if results else np.zeros((0, 4))
    rows = [
        compare(dump, "infer/final/boxes", boxes, limit=BOX_PIXELS),
        compare(dump, "infer/final/scores", [r.score for r in results], limit=SCORE),
    ]
    if "infer/final/keypoints" in dump.keys:
        final = [r.keypoints for r in results if r.keypoints is not None]
        # A score is a softmax: it is off by up to its own size times twice what the map is off.
        noise = 2 * dump.noise.get("infer/keypoint/heatmaps", 0.0) if note else 0.0
        rows += _compare_keypoints(dump, "infer/final/keypoints", final, noise)
        network = [
            charts.decode_keypoints(p.maps.heatmaps[None], p.box_xyxy[None])[0]
            for p in people
            if p.maps.heatmaps is not None
        ]
        network = [keypoints[:, [0, 1, 3]] for keypoints in network]
        rows += _compare_keypoints(dump, "infer/det/keypoints", network, noise)
    for index, (person, result) in enumerate(shown):
        if f"infer/chart/{index}/result_uint8" in dump.keys:
            rows += _compare_chart(dump, f"infer/chart/{index}", person, result)
        elif result.iuv is not None:  # more people than the original found
            rows.append(Row(f"infer/chart/{index}", result.iuv.shape, np.inf, np.inf, 0.0))
        if result.vertices is not None:
            rows += _compare_vertices(dump, f"infer/cse/{index}", result.vertices)
    if "infer/final/masks" in dump.keys:
        bodies = [paste_iuv([result], to_hw)[0][..., 0] > 0 for result in results]
        rows.append(_compare_masks(dump, "infer/final/masks", bodies, LABEL_FRACTION))
    if "infer/final/instance_masks" in dump.keys:
        masks = [result.mask.whole() for result in results if result.mask is not None]
        key = "infer/final/instance_masks"
        rows.append(_compare_masks(dump, key, masks, MASK_FRACTION))
    yield from (dataclasses.replace(row, key=row.key + note) for row in rows)


def _vertex_embeddings(dump: Dump) -> dict[str, jax.Array]:
    """The stored embeddings of vertices, by mesh."""
    prefix = "infer/cse/vertex_embeddings"
    return {mesh: jnp.asarray(dump[f"{prefix}/{mesh}"]) for mesh in dump.under(prefix)}


def _compare_vertices(dump: Dump, prefix: str, vertices: np.ndarray) -> list[Row]:
    """Compares nearest vertices, 0 beside the person in the original, and the person's pixels."""
    keys = (f"{prefix}/closest_vertices", f"{prefix}/mask")
    if keys[0] not in dump.keys:  # more people than the original found
        return [Row(prefix, vertices.shape, np.inf, np.inf, 0.0)]
    is_person = vertices != BACKGROUND
    rows = []
    for key, ours, limit in zip(
        keys,
        (np.where(is_person, vertices, 0), is_person),
        (LABEL_FRACTION, MASK_FRACTION),
        strict=True,
    ):
        expected = dump[key]
        if ours.shape != expected.shape:
            rows.append(compare(dump, key, ours))
        else:
            rows.append(Row(key, ours.shape, float((ours != expected).mean()), 0.0, limit))
    return rows


def _size_hw(dump: Dump, key: str) -> tuple[int, int]:
    height, width = dump[key]
    return int(height), int(width)


def _compare_keypoints(
    dump: Dump, key: str, keypoints: list[np.ndarray], noise: float
) -> list[Row]:
    """Compares places and scores; `noise` is that of the scores, relative."""
    expected = dump[key]
    actual = np.reshape(keypoints, (-1, parts.NUM_KEYPOINTS, 3))
    if actual.shape != expected.shape:
        return [compare(dump, key, actual)]
    score = float(np.abs(actual[..., 2] - expected[..., 2]).max(initial=0))
    moved = np.abs(actual[..., :2] - expected[..., :2]).max(-1) > BOX_PIXELS
    # An argmax: a place may differ where two are within 1e-4 of the best, then the scores agree.
    ties = np.isclose(actual[..., 2], expected[..., 2], rtol=1e-4)
    limit = max(SCORE, noise * float(expected[..., 2].max(initial=0)))
    return [
        Row(f"{key} score", expected.shape[:2], score, score / expected[..., 2].std(), limit),
        Row(f"{key} place", expected.shape[:2], float((moved & ~ties).mean()), 0.0, 0.0),
    ]


def _compare_chart(dump: Dump, prefix: str, person: FoundPerson, result: PersonResult) -> list[Row]:
    """Compares what evaluation reads, the charts of the plain argmax and the confidences."""
    iuv, maps = result.iuv, person.maps.charts
    if iuv is None or maps is None:
        return [Row(f"{prefix} (missing)", (), np.inf, np.inf, 0.0)]
    rows = _compare_labels(
        dump, f"{prefix}/result_uint8", iuv[0], dump[f"{prefix}/result_uint8"][0]
    )
    rows += _compare_uv(dump, f"{prefix}/result_uint8", iuv, dump[f"{prefix}/result_uint8"])
    for suffix in ("", "_argmax"):
        if f"{prefix}/labels{suffix}" in dump.keys:
            expected = dump[f"{prefix}/labels{suffix}"]
            labels, uv = charts.chart_in_box(
                coarse=maps.coarse_segm,
                fine=maps.fine_segm,
                u=maps.u,
                v=maps.v,
                size_hw=expected.shape,
            )
            rows += _compare_labels(dump, f"{prefix}/labels{suffix}", labels, expected)
            is_same = labels == expected
            rows.append(_compare_float_map(dump, f"{prefix}/uv{suffix}", uv, is_same))
    for theirs in dump.under(f"{prefix}/confidence"):
        key = f"{prefix}/confidence/{theirs}"
        values = result.confidences.get(HIGH_RESOLUTION.get(theirs, theirs))
        expected = dump[f"{prefix}/labels"]
        if values is None or values.shape != expected.shape:
            rows.append(Row(f"{key} (missing)", dump[key].shape, np.inf, np.inf, 0.0))
        else:
            rows.append(_compare_float_map(dump, key, values, iuv[0] == expected))
    return rows


def _compare_labels(dump: Dump, key: str, labels: np.ndarray, expected: np.ndarray) -> list[Row]:
    if labels.shape != expected.shape:
        return [compare(dump, key, labels)]
    differing = float((labels != expected).mean())
    return [Row(f"{key} I", expected.shape, differing, 0.0, LABEL_FRACTION)]


def _compare_uv(dump: Dump, key: str, iuv: np.ndarray, expected: np.ndarray) -> list[Row]:
    if iuv.shape != expected.shape:
        return []
    is_same = iuv[0] == expected[0]
    levels = np.abs(iuv[1:].astype(int) - expected[1:].astype(int))[:, is_same].max(initial=0)
    return [Row(f"{key} UV", expected.shape[1:], float(levels), 0.0, UV_LEVELS)]


def _compare_float_map(dump: Dump, key: str, values: np.ndarray, is_same: np.ndarray) -> Row:
    """Compares [..., h, w] where the labels agree."""
    expected = dump[key]
    error = float(np.abs(values - expected)[..., is_same].max(initial=0))
    scale = float(expected.std())
    return Row(key, expected.shape, error, error / max(scale, 1e-12), END_TO_END * scale)


def _compare_masks(dump: Dump, key: str, masks: list[np.ndarray], limit: float) -> Row:
    """Compares masks [H, W] of the people, by the share of pixels that differ."""
    expected = dump[key].astype(bool)
    if len(masks) != len(expected):
        return compare(dump, key, np.asarray(masks))
    differing = float((np.asarray(masks) != expected).mean()) if masks else 0.0
    return Row(key, expected.shape, differing, 0.0, limit)


def end_to_end(dump: Dump) -> Iterator[Row]:
    """Runs the photo through the code of `ktn predict`, in an input padded more than needed.

    The larger padding shows that padding changes nothing.
    """
    config = dump.config.copy_and_resolve_references()
    height, width = dump["input/normalised_padded"].shape[2:]
    multiple = max(size_multiple(config.model), 32)
    bucket = tuple(-(-side // multiple) * multiple + multiple for side in (height, width))
    config.test.size_buckets = (bucket,)
    predictor = Predictor(Stages(config, dump.variables))
    image = np.ascontiguousarray(dump["input/image_bgr_uint8"][..., ::-1])
    (people,) = predictor.find([image])
    note = " end to end"
    for key, actual in (
        ("infer/det/boxes", [person.box_xyxy for person in people]),
        ("infer/det/scores", [person.score for person in people]),
    ):
        limit = BOX_PIXELS if key.endswith("boxes") else SCORE
        row = compare(dump, key, np.asarray(actual), limit=limit)
        yield dataclasses.replace(row, key=key + note)
    has_maps = "densepose" in config.model.tasks and len(dump["infer/det/boxes"])
    count = int(dump["infer/densepose/hr_count"]) if has_maps else 0
    compared: dict[str, list[Any]] = {
        "infer/keypoint/heatmaps": [person.maps.keypoints for person in people],
        "infer/det/mask_probabilities": [
            None if person.maps.mask is None else person.maps.mask[..., None] for person in people
        ],
    }
    for theirs, ours in high_resolution(dump).items():
        if theirs in HIGH_RESOLUTION and len(people) >= count > 0:
            compared[f"infer/densepose/hr/{theirs}"] = [
                getattr(person.maps.charts or person.maps.embeddings, ours)
                for person in people[:count]
            ]
    for key, maps in compared.items():
        if key in dump.keys and maps:
            limit = END_TO_END * dump[key].std()
            row = compare(dump, key, to_nchw(np.stack(maps)), limit=limit)
            yield dataclasses.replace(row, key=row.key + note)
    yield from _compare_people(dump, people, note)
