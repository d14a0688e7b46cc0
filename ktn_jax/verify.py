"""Compares every stage of a model with a dump of the PyTorch original.

A dump is an .npz file with the original's configuration (`config`), weights (`state/...`), inputs
and what each stage made of them. Each stage is fed the stored input of that stage, so an error
shows where it is made; then the whole model runs from the image on.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ktn_jax import torch_weights, weights
from ktn_jax.detectron2_config import from_detectron2
from ktn_jax.inference import Person, Predictor, to_result
from ktn_jax.modeling.detector import Detector, Features, build_model, size_multiple
from ktn_jax.structures import Detections, Proposals

Array = jax.Array

# Fractions of the largest reference value, a stage fed the stored input.
CONVOLUTION = 1e-4
GEOMETRY = 1e-5  # pooling, interpolation, box coding
# From the image on: fractions of the reference's standard deviation, pixels, probabilities.
END_TO_END = 1e-3
BOX_PIXELS = 1e-2
SCORE = 1e-4
LABEL_FRACTION = 2e-3  # an argmax may flip where two classes tie
UV_LEVELS = 1  # of 255: the reference truncates
NOISE_FACTOR = 10  # the reference's own noise, where it was recorded, times this is allowed


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: `error` must not exceed `limit`."""

    key: str
    shape: tuple[int, ...]
    error: float  # largest absolute difference, or a fraction of labels
    relative: float  # error over the standard deviation of the reference
    limit: float

    @property
    def is_ok(self) -> bool:
        """Whether the comparison passes; NaN does not."""
        return self.error <= self.limit


class Dump:
    """A dump, opened and checked."""

    def __init__(self, path: str | os.PathLike):
        """Opens the file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no dump, or asks for what this project does not have.
        """
        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist")
        try:
            self._file = np.load(self.path, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path} is no .npz file: {error}") from error
        self.keys = set(self._file.files)
        if "config" not in self.keys:
            raise ValueError(f"{self.path} has no 'config': it is no dump of a model")
        try:
            self.config: ConfigDict = from_detectron2(json.loads(str(self["config"])))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        state = {key[6:]: self[key] for key in self.keys if key.startswith("state/")}
        self.variables = weights.fit(self.config, torch_weights.to_flax(state), str(self.path))
        self.noise = self._read_noise()

    def __getitem__(self, key: str) -> np.ndarray:
        """Reads an array; a KeyError names what the file lacks."""
        if key not in self.keys:
            raise KeyError(f"{self.path} has no {key!r}")
        return self._file[key]

    def under(self, prefix: str) -> list[str]:
        """Names that follow `prefix` + "/", without what comes after the next slash, in order."""
        start = len(prefix) + 1
        names = [
            key[start:].split("/")[0] for key in self._file.files if key.startswith(prefix + "/")
        ]
        return list(dict.fromkeys(names))

    def _read_noise(self) -> Mapping[str, float]:
        """How far the original is from itself, if a noise.json beside the dump knows it."""
        path = self.path.parent / "noise.json"
        case = json.loads(str(self["meta_json"])).get("case") if "meta_json" in self.keys else None
        if case is None or not path.is_file():
            return {}
        return json.loads(path.read_text()).get(case, {}).get("max_abs", {})


def verify(path: str | os.PathLike) -> Iterator[Row]:
    """Compares our model with a dump, stage by stage and then end to end.

    Args:
        path: the dump; its configuration, widths and sizes are whatever it says.

    Yields:
        A row for every array compared.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no dump, or its weights do not fit its configuration.
        KeyError: it lacks an array.
    """
    dump = Dump(path)
    with jax.default_matmul_precision("highest"):
        yield from _stages(dump)
        yield from _end_to_end(dump)


def compare(
    dump: Dump, key: str, actual: Any, fraction: float = CONVOLUTION, *, limit: float | None = None
) -> Row:
    """Compares an array with the stored one of that key.

    Args:
        dump: where the reference is.
        key: its name.
        actual: ours, of the same shape.
        fraction: of the largest reference value, the error allowed.
        limit: the error allowed, instead.
    """
    expected, actual = np.asarray(dump[key], np.float64), np.asarray(actual, np.float64)
    if expected.shape != actual.shape:
        return Row(f"{key} (ours {actual.shape})", expected.shape, np.inf, np.inf, 0.0)
    scale = float(np.abs(expected).max(initial=0))
    limit = fraction * scale if limit is None else limit
    limit = max(limit, NOISE_FACTOR * dump.noise.get(key, 0.0))
    error = float(np.abs(expected - actual).max(initial=0))
    return Row(key, expected.shape, error, error / max(float(expected.std()), 1e-12), limit)


def _nhwc(array: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def _nchw(array: Array) -> np.ndarray:
    return np.asarray(array).transpose(0, 3, 1, 2)


class _Runner:
    """Runs methods of the detector on the dump's weights."""

    def __init__(self, dump: Dump):
        self.model = build_model(dump.config.model)
        self._variables = dump.variables

    def __call__(self, method: Callable, *args: Any) -> Any:
        run = jax.jit(lambda variables, *args: self.model.apply(variables, *args, method=method))
        return jax.device_get(run(self._variables, *args))


def _stages(dump: Dump) -> Iterator[Row]:
    run = _Runner(dump)
    yield _preprocessing(dump, run)
    yield from _backbone(dump, run)
    yield from _proposals(dump, run)
    yield from _boxes(dump, run)
    yield from _densepose(dump, run)
    yield from _results(dump)


def _preprocessing(dump: Dump, run: _Runner) -> Row:
    inputs = dump["input/normalised_padded"]
    image = dump["input/image_bgr_uint8"][..., ::-1]
    padded = np.zeros((1, *inputs.shape[2:], 3), np.uint8)
    padded[0, : image.shape[0], : image.shape[1]] = image
    normalised = run(Detector.normalise, padded, jnp.asarray([image.shape[:2]]))
    return compare(dump, "input/normalised_padded", _nchw(normalised), GEOMETRY)


def _image_size(dump: Dump) -> Array:
    return jnp.asarray(dump["input/image_size"])[None]


def _pyramid(dump: Dump) -> Features:
    levels = dump.under("infer/backbone")
    maps = {level: _nhwc(dump[f"infer/backbone/{level}"]) for level in levels}
    return Features(maps, dict.fromkeys(levels))


def _backbone(dump: Dump, run: _Runner) -> Iterator[Row]:
    inputs = _nhwc(dump["input/normalised_padded"])
    pyramid = run(Detector.extract, inputs)
    for level in dump.under("infer/backbone"):
        key = f"infer/backbone/{level}"
        yield compare(dump, key, _nchw(pyramid.maps[level]), limit=END_TO_END * dump[key].std())


def _proposals(dump: Dump, run: _Runner) -> Iterator[Row]:
    pyramid = _pyramid(dump)

    def heads(model: Detector, pyramid: Features) -> Any:
        return model.rpn_head(pyramid.maps, pyramid.sizes)

    logits, deltas = run(heads, pyramid)
    anchors = run.model.bind(dump.variables).anchors(logits)
    levels = dump.under("infer/rpn")
    for level, boxes in zip(levels, anchors, strict=True):
        yield compare(dump, f"infer/rpn/{level}/logits", _nchw(logits[level]))
        yield compare(dump, f"infer/rpn/{level}/deltas", _nchw(deltas[level]))
        yield compare(dump, f"infer/rpn/{level}/anchors", boxes, GEOMETRY)
    stored = [
        {level: _nhwc(dump[f"infer/rpn/{level}/{name}"]) for level in levels}
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


def _boxes(dump: Dump, run: _Runner) -> Iterator[Row]:
    proposals = _stored_proposals(dump)
    index = jnp.zeros(proposals.boxes.shape[1], jnp.int32)
    pooled = run(Detector.pool_boxes, _pyramid(dump), proposals.boxes[0], index)
    yield compare(dump, "infer/box/pooled", _nchw(pooled), GEOMETRY)
    hidden, logits, deltas = run(Detector.classify, _nhwc(dump["infer/box/pooled"]))
    yield compare(dump, "infer/box/head_out", hidden)
    yield compare(dump, "infer/box/cls_logits", logits)
    yield compare(dump, "infer/box/deltas", deltas)
    stored = [jnp.asarray(dump[f"infer/box/{name}"])[None] for name in ("cls_logits", "deltas")]

    def decode(model: Detector, deltas: Array, boxes: Array) -> Array:
        return model.decode_boxes(deltas, boxes)

    decoded = run(decode, stored[1][0], proposals.boxes[0])
    yield compare(dump, "infer/box/decoded_boxes", decoded, GEOMETRY)
    found = run(Detector.detections_from, *stored, proposals, _image_size(dump))
    yield from _compare_found(dump, "infer/det", found, {"scores": "scores"})


# The original's names of the predictor's outputs, in models with and without transfer.
_LOW_RESOLUTION = {
    "u_lowres": "u",
    "v_lowres": "v",
    "ann_index_lowres": "coarse",
    "m_lowres": "mask",
    "k_lowres": "keypoint",
    "index_uv_lowres": "fine",
    "index_uv_from_surface_weight": "fine",
    "i_lowres": "auxiliary",
}
_HIGH_RESOLUTION = {
    "coarse_segm": "coarse_segm",
    "fine_segm": "fine_segm",
    "m": "coarse_segm",
    "index_uv": "fine_segm",
    "u": "u",
    "v": "v",
    "ann_index": "part_segm",
    "k": "keypoints",
}


def _densepose(dump: Dump, run: _Runner) -> Iterator[Row]:
    prefix = "infer/densepose"
    decoded = _pyramid(dump)
    if f"{prefix}/decoder" in dump.keys:
        refined = run(Detector.decode, decoded)
        (level,) = refined.maps
        yield compare(dump, f"{prefix}/decoder", _nchw(refined.maps[level]))
        decoded = Features({level: _nhwc(dump[f"{prefix}/decoder"])}, {level: None})
    else:
        decoded = run(Detector.decode, decoded)
    boxes = jnp.asarray(dump["infer/det/boxes"])
    pooled = run(Detector.pool_people, decoded, boxes, jnp.zeros(len(boxes), jnp.int32))
    yield compare(dump, f"{prefix}/pooled", _nchw(pooled), GEOMETRY)
    features = run(Detector.run_head, _nhwc(dump[f"{prefix}/pooled"]))
    yield compare(dump, f"{prefix}/head", _nchw(features))
    yield from _predictor(dump, run)


def _predictor(dump: Dump, run: _Runner) -> Iterator[Row]:
    prefix = "infer/densepose"
    kernel = run(Detector.surface_kernel)
    if kernel is not None:
        box_weights = run(lambda model: model.box_head.class_and_delta_weights())
        yield compare(dump, f"{prefix}/bbox_params", box_weights, GEOMETRY)
        yield compare(dump, f"{prefix}/surface_weight", kernel.transpose(2, 3, 0, 1))
        kernel = jnp.asarray(dump[f"{prefix}/surface_weight"].transpose(2, 3, 0, 1))

    def low_resolution(model: Detector, features: Array) -> Mapping[str, Array]:
        return model.predictor.low_resolution(features, kernel)

    head = _nhwc(dump[f"{prefix}/head"])
    low = run(low_resolution, head)
    for theirs in dump.under(f"{prefix}/lowres"):
        key = f"{prefix}/lowres/{theirs}"
        yield compare(dump, key, _nchw(low[_LOW_RESOLUTION[theirs]]))
    outputs = run(Detector.predict_charts, head, kernel)
    count = int(dump[f"{prefix}/hr_count"])
    for theirs in dump.under(f"{prefix}/hr"):
        if theirs in _HIGH_RESOLUTION:
            ours = getattr(outputs, _HIGH_RESOLUTION[theirs])[:count]
            yield compare(dump, f"{prefix}/hr/{theirs}", _nchw(ours))


def _stored_people(dump: Dump) -> list[Person]:
    """People as the network found them, from stored detections and low-resolution maps."""
    run = _Runner(dump)
    prefix = "infer/densepose/lowres"
    low = {_LOW_RESOLUTION[name]: _nhwc(dump[f"{prefix}/{name}"]) for name in dump.under(prefix)}
    if "keypoint" not in low and "infer/densepose/hr/k" in dump.keys:
        kernel = jnp.asarray(dump["infer/densepose/surface_weight"].transpose(2, 3, 0, 1))
        head = _nhwc(dump["infer/densepose/head"])
        low["keypoint"] = run(
            lambda model, x: model.predictor.low_resolution(x, kernel)["keypoint"], head
        )
    outputs = run(lambda model, low: model.predictor.upsample(low), low)
    return [
        Person(box, float(score), jax.tree.map(lambda x, i=i: np.asarray(x[i]), outputs))
        for i, (box, score) in enumerate(
            zip(dump["infer/det/boxes"], dump["infer/det/scores"], strict=True)
        )
    ]


def _results(dump: Dump) -> Iterator[Row]:
    people = _stored_people(dump)
    yield from _compare_people(dump, people, "")


def _compare_people(dump: Dump, people: list[Person], note: str) -> Iterator[Row]:
    """Compares people brought to the requested size: boxes, scores, keypoints, charts."""
    from_hw = tuple(int(v) for v in dump["input/image_size"])
    to_hw = tuple(int(v) for v in dump["input/output_height_width"])
    threshold = dump.config.model.predictor.mask_threshold
    results = [to_result(person, from_hw, to_hw, threshold) for person in people]
    results = [result for result in results if result is not None]
    boxes = np.stack([r.box_xyxy for r in results]) if results else np.zeros((0, 4))
    rows = [
        compare(dump, "infer/final/boxes", boxes, limit=BOX_PIXELS),
        compare(dump, "infer/final/scores", [r.score for r in results], limit=SCORE),
    ]
    if "infer/final/keypoints" in dump.keys:
        rows += _compare_keypoints(dump, [r.keypoints for r in results])
    for index, result in enumerate(results):
        rows += _compare_chart(dump, f"infer/chart/{index}", result.iuv)
    yield from (dataclasses.replace(row, key=row.key + note) for row in rows)


def _compare_keypoints(dump: Dump, keypoints: list[np.ndarray]) -> list[Row]:
    key = "infer/final/keypoints"
    expected, actual = dump[key], np.stack(keypoints) if keypoints else np.zeros((0, 17, 3))
    if actual.shape != expected.shape:
        return [compare(dump, key, actual)]
    score = float(np.abs(actual[..., 2] - expected[..., 2]).max(initial=0))
    moved = np.abs(actual[..., :2] - expected[..., :2]).max(-1) > BOX_PIXELS
    # An argmax: a place may differ where two are within 1e-4 of the best, then the scores agree.
    ties = np.isclose(actual[..., 2], expected[..., 2], rtol=1e-4)
    return [
        Row(f"{key} score", expected.shape[:2], score, score / expected[..., 2].std(), SCORE),
        Row(f"{key} place", expected.shape[:2], float((moved & ~ties).mean()), 0.0, 0.0),
    ]


def _compare_chart(dump: Dump, prefix: str, iuv: np.ndarray) -> list[Row]:
    key = f"{prefix}/result_uint8"
    expected = dump[key].astype(int)
    if iuv.shape != expected.shape:
        return [compare(dump, key, iuv)]
    is_same = iuv[0] == expected[0]
    levels = np.abs(iuv[1:].astype(int) - expected[1:])[:, is_same].max(initial=0)
    return [
        Row(f"{key} I", expected.shape[1:], float((~is_same).mean()), 0.0, LABEL_FRACTION),
        Row(f"{key} UV", expected.shape[1:], float(levels), 0.0, UV_LEVELS),
    ]


def _end_to_end(dump: Dump) -> Iterator[Row]:
    """Runs the photo through the same code as `ktn predict`, in an input padded more than needed.

    The larger padding shows that padding changes nothing.
    """
    config = dump.config.copy_and_resolve_references()
    height, width = dump["input/normalised_padded"].shape[2:]
    multiple = max(size_multiple(config.model), 32)
    bucket = tuple(-(-side // multiple) * multiple + multiple for side in (height, width))
    config.test.size_buckets = (bucket,)
    predictor = Predictor(config, dump.variables)
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
    count = int(dump["infer/densepose/hr_count"])
    for theirs in dump.under("infer/densepose/hr"):
        if theirs in _HIGH_RESOLUTION and len(people) >= count:
            key = f"infer/densepose/hr/{theirs}"
            maps = [getattr(person.charts, _HIGH_RESOLUTION[theirs]) for person in people[:count]]
            limit = END_TO_END * dump[key].std()
            row = compare(dump, key, _nchw(np.stack(maps)), limit=limit)
            yield dataclasses.replace(row, key=row.key + note)
    yield from _compare_people(dump, people, note)


def format_rows(rows: list[Row]) -> str:
    """Lays rows out as a table, one line each, with a summary."""
    width = max((len(row.key) for row in rows), default=3)
    lines = [f"{'key':<{width}}  {'shape':<20} {'max error':>10} {'/ std':>10} {'limit':>10}  ok"]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        lines.append(
            f"{row.key:<{width}}  {shape:<20} {row.error:>10.2e} {row.relative:>10.2e} "
            f"{row.limit:>10.2e}  {'yes' if row.is_ok else 'NO'}"
        )
    failed = sum(not row.is_ok for row in rows)
    lines.append(f"{len(rows)} compared, {failed} out of tolerance")
    return "\n".join(lines)
