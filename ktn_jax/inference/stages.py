"""The jitted programs of a detector, with its weights on the device.

Shapes in brackets: B images padded to one size, R detections an image, N people in a flat batch,
S side of a chart map. Boxes are xyxy float32 in pixels of the padded network input.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ktn_jax.inference.folding import fold_norms, without_norms
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import Detector, build_model, size_multiple
from ktn_jax.runtime import configuration, host_memory, jax_setup, program_store
from ktn_jax.runtime.program_store import ProgramStore
from ktn_jax.structures import (
    DensePoseOutputs,
    Detections,
    EmbeddingOutputs,
    Features,
    PersonMaps,
    RoiFeatures,
)

Array = jax.Array
Variables = Mapping[str, Any]
Output = TypeVar("Output")
# The surface kernels of a model with knowledge transfer, and the embeddings of vertices by mesh.
Constants = tuple[tuple[Array | None, ...], Mapping[str, Array]]

# The second stage runs on as many rows as there are people, rounded up to one of these; more
# people than the last take several calls.
PEOPLE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 100)
_AXIS = "data"

program_store.register(
    Features, RoiFeatures, Detections, DensePoseOutputs, EmbeddingOutputs, PersonMaps
)


class Pyramid:
    """The first stage's maps for the second; decoded when people are first pooled from them.

    Attributes:
        images_per_device: how many of the images each device has, the first ones the first.
    """

    def __init__(
        self,
        levels: Features,
        decode: Callable[[Features], RoiFeatures],
        images_per_device: int,
    ):
        """Takes the backbone's pyramid, and the function that runs the decoder."""
        self._levels: Features | None = levels
        self._decode = decode
        self.images_per_device = images_per_device

    def roi_features(self) -> RoiFeatures:
        """The maps that people are pooled from: [B, H / stride, W / stride, C] for each level.

        Levels of the pyramid that no branch reads are freed here.
        """
        if self._levels is not None:
            self._features, self._levels = self._decode(self._levels), None
        return self._features


class Stages:
    """The programs of a model, each compiled when it is first called with arrays of new shapes.

    Norms with fixed statistics are folded into the backbone's convolutions. The kernels that
    knowledge transfer synthesises and the embeddings of vertices are constants of the weights: they
    are computed once, and the parameters behind them are freed.

    With `test.num_devices` a batch is split over the devices of this process, and each runs both
    stages for its own images.

    Stages can be pickled: pickles hold the configuration and the weights, and programs are compiled
    again.

    Attributes:
        config: the whole configuration.
        model: the detector as it runs, without the norms that are folded.
        variables: of `model`, on each device.
        surface_kernels: of each stage of the branches, [k, k, C, 25] on each device; None where the
            model learns its own.
        vertex_embeddings: [V, D] by mesh on the device; empty for models of charts.
    """

    variables: Variables
    surface_kernels: tuple[Array | None, ...]
    vertex_embeddings: Mapping[str, Array]

    def __init__(
        self, config: ConfigDict, variables: Variables, programs: ProgramStore | None = None
    ):
        """Takes a whole configuration and the variables of its model (see `checkpoints.weights`).

        Args:
            config: the configuration.
            variables: they are copied.
            programs: where traced programs are kept for other processes. Programs that run on
                several devices are not.

        Raises:
            ValueError: the configuration describes no model, or there are fewer devices than it
                asks for.
        """
        self._build(config, programs)
        self._shapes = _shapes(variables)
        self._put(*self._fold(variables))
        host_memory.return_freed()

    def _build(self, config: ConfigDict, programs: ProgramStore | None) -> None:
        self.config, self._programs = config, programs
        self._mesh = _make_mesh(config.test.num_devices)
        compute = choose_compute(config, self._mesh.devices.flat[0].platform)
        self.model = build_model(without_norms(config.model), compute=compute)
        whole = build_model(config.model)
        self._synthesise = self._jit(
            "synthesise",
            lambda params: whole.apply({"params": params}, method=_constants_of_weights),
        )
        same, own = PartitionSpec(), PartitionSpec(_AXIS)
        self._run_detect = {
            is_full: self._jit_on_each(
                f"detect {is_full}",
                functools.partial(self._apply_detect, is_full),
                (same, own, own),
            )
            for is_full in (False, True)
        }
        self._run_decode = self._jit_on_each("decode", self._apply_decode, (same, own))
        self._run_describe = self._jit_on_each(
            "describe", self._apply_describe, (same, same, own, own, own, own)
        )

    def _jit(self, name: str, program: Callable[..., Any]) -> Callable[..., Any]:
        if self._programs is None:
            return jax.jit(program)
        model = configuration.as_json(self.config.model)
        compute = dataclasses.asdict(self.model.compute)
        settings = {"program": name, "model": model, "compute": compute}
        return self._programs.jit(program, settings)

    def _jit_on_each(
        self, name: str, program: Callable[..., Any], placements: tuple[PartitionSpec, ...]
    ) -> Callable[..., Any]:
        """Compiles a program that each device runs on its own rows of what is split."""
        if self._mesh.size == 1:
            return self._jit(name, program)
        on_each = jax.shard_map(
            program,
            mesh=self._mesh,
            in_specs=placements,
            out_specs=PartitionSpec(_AXIS),
            check_vma=False,  # carries of loops begin as constants
        )
        return jax.jit(on_each)

    def _fold(self, variables: Variables) -> tuple[Variables, Constants]:
        """Makes the folded variables and the constants from the whole model's variables."""
        # To the host: they may be sharded over the devices of a training run.
        variables = jax.tree.map(np.asarray, _collections(variables))
        constants = self._synthesise(_synthesis_params(variables["params"]))
        return fold_norms(self.config.model, _without_synthesis(variables)), constants

    def _put(self, variables: Variables, constants: Constants) -> None:
        # On the device once: arrays of the host would travel with every call.
        self.variables = jax.tree.map(self._to_devices, variables)
        self.surface_kernels, self.vertex_embeddings = jax.tree.map(self._to_devices, constants)

    def _to_devices(self, value: Any) -> Array:
        """Copies an array: an alias would keep a whole mapped checkpoint in memory."""
        place = NamedSharding(self._mesh, PartitionSpec()) if self._mesh.size > 1 else None
        array: Array = jax.block_until_ready(jax.device_put(np.array(value), place))
        return array

    def replace_variables(self, variables: Variables) -> None:
        """Replaces the weights; nothing is compiled again.

        Args:
            variables: of the same model, on the host or on any devices. They are copied, so
                training may continue to change its own.

        Raises:
            ValueError: they are not of the same names and shapes.
        """
        ours, theirs = self._shapes, _shapes(variables)
        differing = sorted(
            name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
        )
        if differing:
            name = differing[0]
            raise ValueError(
                f"the variables are of another model: {len(differing)} differ, such as {name}: "
                f"{theirs.get(name, 'missing')}, wanted {ours.get(name, 'none')}"
            )
        self._put(*self._fold(variables))
        host_memory.return_freed()

    def detect(self, images: np.ndarray, image_size_hw: np.ndarray) -> tuple[Pyramid, Detections]:
        """Runs the first stage; the decoder runs when people are first pooled.

        Args:
            images: uint8 [B, H, W, 3] RGB, zero beyond each image.
            image_size_hw: int32 [B, 2] height and width of each image without padding.

        Returns:
            What `describe` needs, and the people found: boxes [B, R, 4], scores, is_valid and
            classes [B, R] on the device.
        """
        variables, is_full = self.variables, self.is_full(images, image_size_hw)
        number = len(images)
        per_device = -(-number // self._mesh.size)
        missing = per_device * self._mesh.size - number
        if missing:  # the last image again, so that sizes are those of images
            last = np.minimum(np.arange(number + missing), number - 1)
            images, image_size_hw = images[last], image_size_hw[last]
        levels, found = self._run_detect[is_full](variables, images, image_size_hw)
        if missing:
            found = jax.tree.map(lambda rows: rows[:number], found)
        decode = functools.partial(self._run_decode, variables)
        return Pyramid(levels, decode, per_device), found

    def is_full(self, images: np.ndarray, image_size_hw: np.ndarray) -> bool:
        """Whether images fill the input up to the original's own padding, so need no masks.

        Both cases are different programs; the arguments are those of `detect`.
        """
        multiple = size_multiple(self.model.config)
        padded = -(-image_size_hw // multiple) * multiple
        return bool((padded == images.shape[1:3]).all())

    def describe(
        self,
        pyramid: Pyramid,
        boxes_xyxy: np.ndarray,
        batch_index: np.ndarray,
        classes: np.ndarray | None = None,
    ) -> PersonMaps[np.ndarray] | None:
        """Runs the second stage on people: the branches of `model.tasks`.

        Args:
            pyramid: from `detect`.
            boxes_xyxy: [N, 4]; any number of people.
            batch_index: int32 [N] the image of each.
            classes: int32 [N] of each; None for the first class, person.

        Returns:
            Their maps [N, S, S, C], NumPy; None without people.
        """
        if classes is None:
            classes = np.zeros(len(boxes_xyxy), np.int32)
        people = (boxes_xyxy, batch_index % pyramid.images_per_device, classes)
        # Who is on each device; most often there is one, and everybody is.
        owner = batch_index // pyramid.images_per_device
        of_device = [np.flatnonzero(owner == device) for device in range(self._mesh.size)]
        longest = max(len(own) for own in of_device)
        parts: list[PersonMaps[np.ndarray]] = []
        described: list[np.ndarray] = []
        for start in range(0, longest, PEOPLE_BUCKETS[-1]):
            rows = [own[start : start + PEOPLE_BUCKETS[-1]] for own in of_device]
            bucket = people_bucket(max(len(own) for own in rows))
            arguments = [
                np.concatenate([_padded(values[own], bucket) for own in rows]) for values in people
            ]
            features = pyramid.roi_features()
            outputs = jax.device_get(
                self._run_describe(self.variables, self.surface_kernels, features, *arguments)
            )
            for device, own in enumerate(rows):
                kept = slice(device * bucket, device * bucket + len(own))
                parts.append(jax.tree.map(lambda x, kept=kept: x[kept], outputs))
                described.append(own)
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate(described))
        whole: PersonMaps[np.ndarray] = jax.tree.map(
            lambda *arrays: np.concatenate(arrays)[order], *parts
        )
        return whole

    def _apply_detect(
        self, is_full: bool, variables: Variables, images: Array, image_size_hw: Array
    ) -> tuple[Features, Detections]:
        return self._apply(Detector.detect, variables, images, image_size_hw, is_full)

    def _apply_decode(self, variables: Variables, levels: Features) -> RoiFeatures:
        return self._apply(Detector.roi_features, variables, levels)

    def _apply_describe(
        self,
        variables: Variables,
        surface_kernels: tuple[Array | None, ...],
        features: RoiFeatures,
        boxes: Array,
        batch_index: Array,
        classes: Array,
    ) -> PersonMaps[Array]:
        arguments = (features, jnp.asarray(boxes), batch_index, classes, surface_kernels)
        return self._apply(Detector.describe, variables, *arguments)

    def _apply(
        self, method: Callable[..., Output], variables: Variables, *arguments: Any
    ) -> Output:
        output = self.model.apply(variables, *arguments, method=method)
        return cast(Output, output)  # Flax adds the type of a call that changes variables

    def __getstate__(self) -> dict[str, Any]:
        constants = (self.surface_kernels, self.vertex_embeddings)
        arrays = {"variables": self.variables, "constants": constants}
        kept = {"config": self.config, "programs": self._programs, "shapes": self._shapes}
        return {**kept, **jax.device_get(arrays)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # A worker process may call nothing else that sets JAX up.
        jax_setup.prepare()
        self._build(state["config"], state["programs"])
        self._shapes = state["shapes"]
        self._put(state["variables"], state["constants"])


def choose_compute(config: ConfigDict, platform: str) -> Compute:
    """How the model of a configuration computes without gradients.

    Args:
        config: a whole configuration.
        platform: as `jax.default_backend()` or `jax.export` names it.
    """
    test = config.test
    return Compute.choose(
        config.model.dtype,
        platform=platform,
        winograd=test.winograd,
        bands=True,
        matmul_dtype=test.matmul_dtype,
    )


def people_bucket(count: int) -> int:
    """How many rows the second stage runs on for 1 to `PEOPLE_BUCKETS[-1]` people."""
    return min(size for size in PEOPLE_BUCKETS if size >= count)


def _make_mesh(num_devices: int) -> Mesh:
    """The devices of this process that share a batch, 0 for all.

    Raises:
        ValueError: there are fewer.
    """
    devices = jax.local_devices()
    number = num_devices or len(devices)
    if number > len(devices):
        raise ValueError(f"test.num_devices is {num_devices}, but there are {len(devices)}")
    return Mesh(np.array(devices[:number]), (_AXIS,))


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    """Adds zero rows."""
    return np.pad(values, [(0, rows - len(values))] + [(0, 0)] * (values.ndim - 1))


def _collections(variables: Variables) -> dict[str, Any]:
    """The collections of a checkpoint that the model has; constants come from the configuration."""
    return {name: dict(variables[name]) for name in ("params", "batch_stats") if name in variables}


def _shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(_collections(variables), sep="/")
    return {name: tuple(np.shape(value)) for name, value in flat.items()}


def _constants_of_weights(model: Detector) -> Constants:
    return model.surface_kernels(), model.vertex_embeddings()


def _synthesis_params(params: Variables) -> dict[str, Any]:
    """The parameters that the constants of the weights depend on, and few others."""
    flat = traverse_util.flatten_dict(dict(params))
    kept = {
        path: value
        for path, value in flat.items()
        if {"predictor", "embedder"} & set(path)
        or (path[0] == "box_head" and not path[1].startswith("fc"))
    }
    nested: dict[str, Any] = traverse_util.unflatten_dict(kept)
    return nested


def _without_synthesis(variables: Variables) -> dict[str, Any]:
    """Drops the parameters that are only needed to compute the constants of the weights."""
    flat = traverse_util.flatten_dict(dict(variables["params"]))
    kept = {path: value for path, value in flat.items() if not {"transfer", "embedder"} & set(path)}
    return {**variables, "params": traverse_util.unflatten_dict(kept)}
