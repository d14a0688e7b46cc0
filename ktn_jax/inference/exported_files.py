"""Writes predictors that run without this package: programs, weights, and what both mean.

A program is compiled for images of one size, its canvas, and a few platforms. Its weights are its
first argument: they stand beside the programs once, where each program would repeat them if they
were its constants.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from ml_collections import ConfigDict

from ktn_jax.checkpoints import files, saved_model
from ktn_jax.inference import export_manifest, standalone
from ktn_jax.inference.stages import Stages, choose_compute
from ktn_jax.modeling.compute import Compute
from ktn_jax.runtime import atomic_files, progress

FORMATS = ("stablehlo", "savedmodel", "onnx")
PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
VERTICES_FILE = "vertex_embeddings.safetensors"
_SUFFIX = ".jax_export"
_NO_ONNX = (
    "ONNX cannot be written: jax2onnx 0.17.1 refuses loops whose number of turns is computed "
    "(lax.fori_loop with a traced bound), which non-maximum suppression and the loop over people "
    "are; docs/export.md has more. Write stablehlo or savedmodel"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is exported.

    Attributes:
        canvases: (height, width) of the images that programs take.
        platforms: that programs are compiled for, of `PLATFORMS`.
        max_people: of an image, whom programs return.
    """

    canvases: Sequence[tuple[int, int]]
    platforms: Sequence[str]
    max_people: int


@dataclasses.dataclass(frozen=True)
class _Export:
    canvas_hw: tuple[int, int]
    platforms: tuple[str, ...]
    exported: export.Exported


def make_settings(
    config: ConfigDict,
    canvases: Sequence[tuple[int, int]] = (),
    platforms: Sequence[str] = PLATFORMS,
    max_people: int = 0,
) -> Settings:
    """Checks what is exported, and fills in what is not said.

    Args:
        config: a whole configuration.
        canvases: (height, width); empty for `test.size_buckets`.
        platforms: of `PLATFORMS`.
        max_people: 0 for all that the model finds, `model.box_head.max_detections`.

    Raises:
        ValueError: an unknown platform, a canvas whose sides are no multiples of 32, or another
            number of people than the model can find.
    """
    most = int(config.model.box_head.max_detections)
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"platforms {', '.join(unknown) or 'missing'}: some of {PLATFORMS}")
    if not 0 <= max_people <= most:
        raise ValueError(
            f"max_people {max_people}: 1 to {most} (model.box_head.max_detections), 0 for all"
        )
    chosen = [(int(height), int(width)) for height, width in canvases or config.test.size_buckets]
    odd = [f"{height}x{width}" for height, width in chosen if height % 32 or width % 32]
    if odd or any(min(canvas) < 32 for canvas in chosen):
        raise ValueError(f"canvas {', '.join(odd) or '0x0'}: sides are multiples of 32")
    return Settings(
        canvases=tuple(dict.fromkeys(chosen)),
        platforms=tuple(dict.fromkeys(platforms)),
        max_people=max_people or most,
    )


def writer(name: str) -> Callable[[Stages, pathlib.Path, Settings], list[str]]:
    """The function that writes a format, of `FORMATS`.

    Raises:
        ValueError: an unknown format, or ONNX: the message says what stands against it.
    """
    if name == "onnx":
        raise ValueError(_NO_ONNX)
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: one of {FORMATS}")
    return write_stablehlo if name == "stablehlo" else write_saved_model


def write_stablehlo(stages: Stages, output: pathlib.Path, settings: Settings) -> list[str]:
    """Writes serialised programs of `jax.export`, in a new folder.

    The folder has `manifest.json`, `weights.safetensors`, programs that the manifest names, and for
    models of embeddings `vertex_embeddings.safetensors`.

    Args:
        stages: the programs of a model, for its weights.
        output: a folder that is not there yet, or is empty.
        settings: from `make_settings`.

    Returns:
        The names of the files.

    Raises:
        ValueError: the folder holds something.
    """
    weights = standalone.weights_of(stages)
    programs: list[dict[str, Any]] = []
    with atomic_files.creating_folder(output) as folder:
        files.write_state_dict(folder / WEIGHTS_FILE, weights)
        groups = _groups(stages.config, settings.platforms)
        for part in _exports(stages.config, weights, settings, groups):
            height, width = part.canvas_hw
            name = f"{height}x{width}_{'_'.join(part.platforms)}{_SUFFIX}"
            (folder / name).write_bytes(part.exported.serialize())
            programs.append(
                {"file": name, "canvas_hw": part.canvas_hw, "platforms": part.platforms}
            )
            outputs = jax.tree.unflatten(part.exported.out_tree, part.exported.out_avals)
        head = {"format": "stablehlo", "weights": WEIGHTS_FILE, "programs": programs}
        return _finish(folder, stages, head, outputs, settings)


def write_saved_model(stages: Stages, output: pathlib.Path, settings: Settings) -> list[str]:
    """Writes a TensorFlow SavedModel with a signature for each canvas, in a new folder.

    All platforms share a program there, which takes images one after the other: that for CPUs if
    it is the only platform, else that for GPUs.

    Args:
        stages: the programs of a model, for its weights.
        output: a folder that is not there yet, or is empty.
        settings: from `make_settings`.

    Returns:
        The names of the files and folders in it.

    Raises:
        ValueError: the folder holds something.
        ImportError: TensorFlow is not installed, or is of a version that cannot be used.
    """
    weights = standalone.weights_of(stages)
    is_for_cpus = tuple(settings.platforms) == ("cpu",)
    # One image after the other: TensorFlow 2.21 fails at lax.top_k of a batch of unknown size.
    group = (("cpu" if is_for_cpus else "cuda"), list(settings.platforms))
    with atomic_files.creating_folder(output) as folder:
        saved_model.check_libraries()
        parts = {
            f"find_{part.canvas_hw[0]}x{part.canvas_hw[1]}": part
            for part in _exports(stages.config, weights, settings, [group], one_by_one=True)
        }
        saved_model.write(folder, {name: part.exported for name, part in parts.items()}, weights)
        programs = [
            {"signature": name, "canvas_hw": part.canvas_hw, "platforms": part.platforms}
            for name, part in parts.items()
        ]
        last = list(parts.values())[-1].exported
        outputs = jax.tree.unflatten(last.out_tree, last.out_avals)
        head = {"format": "savedmodel", "programs": programs}
        return _finish(folder, stages, head, outputs, settings)


def _finish(
    folder: pathlib.Path,
    stages: Stages,
    head: Mapping[str, Any],
    outputs: Mapping[str, Any],
    settings: Settings,
) -> list[str]:
    """Writes what all formats have; the names of all files."""
    vertices = {name: np.asarray(x) for name, x in stages.vertex_embeddings.items()}
    content = {**head, **export_manifest.describe(stages.config, outputs, settings.max_people)}
    if vertices:
        files.write_state_dict(folder / VERTICES_FILE, vertices)
        content["vertex_embeddings"] = VERTICES_FILE
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


def _groups(config: ConfigDict, platforms: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Groups platforms by how the model computes on them, under the first of each group.

    One program for all would be the plain one, and the forms that are fast on CPUs are others.
    """
    groups: dict[Compute, list[str]] = {}
    for platform in platforms:
        groups.setdefault(choose_compute(config, platform), []).append(platform)
    return [(group[0], group) for group in groups.values()]


def _exports(
    config: ConfigDict,
    weights: Mapping[str, np.ndarray],
    settings: Settings,
    groups: Sequence[tuple[str, list[str]]],
    one_by_one: bool = False,
) -> Iterator[_Export]:
    """Exports a program of each canvas that computes as on a platform, for several platforms."""
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(weights))
    total = len(groups) * len(settings.canvases)
    with progress.Progress("export", "programs", total=total) as bar:
        for form, platforms in groups:
            most = settings.max_people
            program = jax.jit(standalone.make_program(config, form, most, one_by_one))
            for canvas in settings.canvases:
                exported = export.export(program, platforms=platforms)(specs, *_image_specs(canvas))
                yield _Export(canvas, tuple(platforms), exported)
                bar.advance()


def _image_specs(canvas_hw: tuple[int, int]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Of a symbolic batch of images and of their sizes."""
    (batch,) = export.symbolic_shape("batch")
    return (
        jax.ShapeDtypeStruct((batch, *canvas_hw, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    )
