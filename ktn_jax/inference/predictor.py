"""Photos in, people out: the jitted stages of the detector and what the host does around them.

Nothing here depends on how many photos or people there are: photos are padded to a few sizes and
people to a few counts, so a folder of photos compiles a few programs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.inference import charts
from ktn_jax.inference.folding import fold_norms
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import Detector, Features, build_model, size_multiple
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import host_memory, images
from ktn_jax.structures import DensePoseOutputs, Detections

Array = jax.Array

# The second stage runs on as many rows as there are people, rounded up to one of these; more
# people than the last take several calls.
PEOPLE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 100)
_NEW_BUCKET_MULTIPLE = 64  # images larger than every bucket are padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class Person:
    """One detection as the network sees it, before it is brought to the size of the photo.

    Attributes:
        box_xyxy: float32 [4] in pixels of the resized image.
        score: probability of "person".
        charts: maps of the box, float32 NumPy arrays without the leading axis.
    """

    box_xyxy: np.ndarray
    score: float
    charts: DensePoseOutputs


class Predictor:
    """A detector with its weights, ready to be called with photos.

    The kernel that knowledge transfer synthesises is a constant of the weights: it is computed
    here, once, and the transfer's parameters are let go.
    """

    def __init__(self, config: ConfigDict, variables: Mapping[str, Any]):
        """Takes a whole configuration and the variables of its model (see `weights`)."""
        self.config = config
        variables = {
            name: variables[name] for name in ("params", "batch_stats") if name in variables
        }
        self._surface_kernel = _surface_kernel(config.model, variables)
        model_config, variables = fold_norms(config.model, _without_transfer(variables))
        test = config.test
        compute = Compute.choose(
            model_config.dtype,
            platform=jax.default_backend(),
            winograd=test.winograd,
            bands=True,
            matmul_dtype=test.matmul_dtype,
        )
        self.model = build_model(model_config, compute=compute)
        # On the device once: arrays of the host would travel with every call.
        self.variables = jax.tree.map(_to_device, variables)
        del variables
        host_memory.return_freed()
        self._run_detect = jax.jit(self._detect_stage, static_argnums=3)
        self._run_decode = jax.jit(self._decode_stage)
        self._dense = jax.jit(self._dense_stage)

    def __call__(self, photos: Sequence[np.ndarray]) -> list[list[PersonResult]]:
        """Finds the people of each photo.

        Args:
            photos: RGB uint8 [H, W, 3], of any sizes.

        Returns:
            For each photo its people, best first, in its own pixels.
        """
        test = self.config.test
        resized = [
            images.resize_short_side(photo, test.short_side, test.max_side) for photo in photos
        ]
        found = self.find(resized)
        results = []
        for people, small, photo in zip(found, resized, photos, strict=True):
            threshold = self.config.model.predictor.mask_threshold
            brought = [to_result(p, small.shape[:2], photo.shape[:2], threshold) for p in people]
            results.append([result for result in brought if result is not None])
        return results

    def find(self, resized: Sequence[np.ndarray]) -> list[list[Person]]:
        """Runs the network on images [H, W, 3] of the size that it shall see, in batches."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(resized):
            bucket = choose_bucket(image.shape[:2], self.config.test.size_buckets)
            groups.setdefault(bucket, []).append(index)
        found: list[list[Person]] = [[] for _ in resized]
        batch_size = self.config.test.batch_size
        for bucket, members in groups.items():
            for start in range(0, len(members), batch_size):
                chunk = members[start : start + batch_size]
                people = self._find_in_batch([resized[i] for i in chunk], bucket, batch_size)
                for index, persons in zip(chunk, people, strict=True):
                    found[index] = persons
        return found

    def _find_in_batch(
        self, batch: Sequence[np.ndarray], bucket: tuple[int, int], batch_size: int
    ) -> list[list[Person]]:
        inputs = np.zeros((batch_size, *bucket, 3), np.uint8)
        sizes = np.full((batch_size, 2), bucket, np.int32)  # of the rows that hold no image
        for row, image in enumerate(batch):
            inputs[row, : image.shape[0], : image.shape[1]] = image
            sizes[row] = image.shape[:2]
        pyramid, detections = self._detect(self.variables, inputs, sizes)
        detections = jax.device_get(detections)
        rows, columns = np.nonzero(detections.is_valid[: len(batch)])
        boxes = detections.boxes[rows, columns]
        outputs = self._charts(pyramid, boxes, rows.astype(np.int32))
        people: list[list[Person]] = [[] for _ in batch]
        for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
            maps = jax.tree.map(lambda x, i=index: x[i], outputs)
            score = float(detections.scores[row, column])
            people[row].append(Person(boxes[index], score, maps))
        return people

    def _detect(
        self, variables: Mapping[str, Any], inputs: np.ndarray, image_size_hw: np.ndarray
    ) -> tuple["_LazilyDecoded", Detections]:
        """Runs the first stage on a batch; the decoder waits until somebody is found."""
        multiple = size_multiple(self.model.config)
        padded = -(-image_size_hw // multiple) * multiple
        is_full = bool((padded == inputs.shape[1:3]).all())
        pyramid, found = self._run_detect(variables, inputs, image_size_hw, is_full)
        return _LazilyDecoded(pyramid, lambda maps: self._run_decode(variables, maps)), found

    def _charts(
        self, decoded: "_LazilyDecoded", boxes: np.ndarray, batch_index: np.ndarray
    ) -> DensePoseOutputs | None:
        """Runs the second stage on people [N, 4] of images `batch_index` [N]; None without any."""
        parts = []
        for start in range(0, len(boxes), PEOPLE_BUCKETS[-1]):
            part = boxes[start : start + PEOPLE_BUCKETS[-1]]
            padding = min(size for size in PEOPLE_BUCKETS if size >= len(part)) - len(part)
            outputs = self._dense(
                self.variables,
                self._surface_kernel,
                decoded.features(),
                np.pad(part, ((0, padding), (0, 0))),
                np.pad(batch_index[start : start + PEOPLE_BUCKETS[-1]], (0, padding)),
            )
            outputs = jax.device_get(outputs)
            count = len(part)
            parts.append(jax.tree.map(lambda x, n=count: x[:n], outputs))
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def _detect_stage(
        self, variables: Mapping[str, Any], inputs: Array, image_size_hw: Array, is_full: bool
    ) -> tuple[Features, Detections]:
        return self.model.apply(variables, inputs, image_size_hw, is_full, method=Detector.detect)

    def _decode_stage(self, variables: Mapping[str, Any], pyramid: Features) -> Features:
        return self.model.apply(variables, pyramid, method=Detector.decode)

    def _dense_stage(
        self,
        variables: Mapping[str, Any],
        surface_kernel: Array | None,
        decoded: Features,
        boxes: Array,
        batch_index: Array,
    ) -> DensePoseOutputs:
        return self.model.apply(
            variables,
            decoded,
            jnp.asarray(boxes),
            batch_index,
            surface_kernel,
            method=Detector.dense,
        )


class _LazilyDecoded:
    """A pyramid that is decoded once, when people are to be pooled from it, and then let go."""

    def __init__(self, pyramid: Features, decode: Callable[[Features], Features]):
        self._pyramid: Features | None = pyramid
        self._decode = decode

    def features(self) -> Features:
        """What people are pooled from."""
        if self._pyramid is not None:
            self._decoded, self._pyramid = self._decode(self._pyramid), None
        return self._decoded


def _to_device(value: Any) -> Array:
    """Copies an array to the device: an alias would keep a whole mapped checkpoint in memory."""
    return jax.block_until_ready(jax.device_put(np.array(value)))


def _surface_kernel(config: ConfigDict, variables: Mapping[str, Any]) -> Array | None:
    """Synthesises the surface kernel from the parameters that it depends on."""
    model = build_model(config)
    params = {name: variables["params"][name] for name in ("box_head", "predictor")}
    params["box_head"] = {
        name: value for name, value in params["box_head"].items() if not name.startswith("fc")
    }
    return jax.jit(lambda params: model.apply({"params": params}, method=Detector.surface_kernel))(
        params
    )


def to_result(
    person: Person,
    from_hw: tuple[int, int],
    to_hw: tuple[int, int],
    mask_threshold: float,
) -> PersonResult | None:
    """Brings a person from the resized image to the photo.

    Args:
        person: as the network found it.
        from_hw: size of the image that the network saw, without padding.
        to_hw: size of the photo.
        mask_threshold: see `charts.person_mask`.

    Returns:
        The person in pixels of the photo, or None where clipping left no box.
    """
    boxes, is_left = charts.rescale_boxes(person.box_xyxy[None], from_hw, to_hw)
    if not is_left[0]:
        return None
    maps = person.charts
    labels, uv = charts.chart_in_box(
        maps.coarse_segm,
        maps.fine_segm,
        maps.u,
        maps.v,
        charts.box_size_hw(boxes[0]),
        mask_threshold,
    )
    keypoints = None
    if maps.keypoints is not None:
        decoded = charts.decode_keypoints(maps.keypoints[None], person.box_xyxy[None])[0]
        scale = np.float32([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0], 1])
        keypoints = decoded[:, [0, 1, 3]] * scale
    return PersonResult(
        box_xyxy=boxes[0],
        score=person.score,
        keypoints=keypoints,
        iuv=charts.quantise(labels, uv),
    )


def choose_bucket(size_hw: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Chooses the smallest (height, width) that holds an image, or makes one for a larger image."""
    height, width = size_hw
    fitting = [tuple(b) for b in buckets if b[0] >= height and b[1] >= width]
    if fitting:
        return min(fitting, key=lambda bucket: bucket[0] * bucket[1])
    multiple = _NEW_BUCKET_MULTIPLE
    return (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def _without_transfer(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Drops what is only needed to synthesise the surface kernel."""
    params = dict(variables["params"])
    params["predictor"] = {
        name: value for name, value in params["predictor"].items() if name != "transfer"
    }
    return {**variables, "params": params}
