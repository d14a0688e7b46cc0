"""What the step of a configuration takes, found by compiling it without data and weights."""

import dataclasses
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from ktn_jax.training import distributed, profiling
from ktn_jax.training.abstract_step import AbstractStep, abstract_step

# Parts by what is in the path of an array, or in the names around an operation; the first counts.
OTHERS = "samples and losses"
_PARTS = (
    ("optimizer", r"\boptimizer\b"),
    ("knowledge transfer", r"\btransfer\b|surface_kernel"),
    ("decoder", r"\bdecoder\b|Detector\.decode"),
    ("RPN", r"\brpn_head\b|proposals"),
    ("box head", r"\bbox_head\b|pool_boxes|Detector\.classify"),
    (
        "heads of people",
        r"densepose_head|predictor|keypoint_head|mask_head|embedder|run_stages|Detector\.pool\b"
        r"|cascade",
    ),
    ("backbone and FPN", r"\bbackbone\b|\bneck\b|Detector\.extract|normalise"),
)
PARTS = (*(name for name, _ in _PARTS), OTHERS)
_COMPILED = [(name, re.compile(pattern)) for name, pattern in _PARTS]


@dataclasses.dataclass(frozen=True)
class PartCost:
    """What one part of the model takes, on one device."""

    parameters: int  # numbers, of all devices together
    state_bytes: int  # parameters, their average, and what the optimizer keeps of them
    flops: int  # of products and convolutions, with gradients


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a step takes on one device."""

    devices: str  # number and kind
    image_hw: tuple[int, int]
    batch_size: int  # of all devices
    parts: Mapping[str, PartCost]  # by the names of PARTS; those without anything are left out
    argument_bytes: int  # state, batch and tables
    temporary_bytes: int
    peak_bytes: int  # both together, and outputs that are no arguments
    lower_seconds: float
    compile_seconds: float

    def report(self) -> str:
        """The figures as lines of text."""
        height, width = self.image_hw
        rows = [("", "parameters", "bytes of state", "GFLOP"), *map(self._row, self.parts)]
        total = [
            sum(getattr(cost, field.name) for cost in self.parts.values())
            for field in dataclasses.fields(PartCost)
        ]
        rows.append(_cells("all", PartCost(*total)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [f"a step of {self.batch_size} images of {height} x {width} on {self.devices}"]
        if not self.devices.startswith("1 "):
            lines.append("memory and operations are those of one device")
        lines += [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(
            [
                *lines,
                f"memory: {_gib(self.argument_bytes)} of arguments, "
                f"{_gib(self.temporary_bytes)} of temporaries, {_gib(self.peak_bytes)} at once",
                f"time: {self.lower_seconds:.1f} s to trace, {self.compile_seconds:.1f} s to "
                "compile",
            ]
        )

    def _row(self, name: str) -> tuple[str, ...]:
        return _cells(name, self.parts[name])


def _cells(name: str, cost: PartCost) -> tuple[str, ...]:
    return name, f"{cost.parameters:,}", _gib(cost.state_bytes), f"{cost.flops / 1e9:,.1f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f} GiB"


def measure_step(
    config: ConfigDict, batch_spec: Mapping[str, Any], image_hw: tuple[int, int]
) -> StepCost:
    """Compiles the step of a configuration.

    Args:
        config: a whole configuration.
        batch_spec: shapes and types of the global batch, see `examples.batch_spec` of the data
            pipeline.
        image_hw: of its images.

    Raises:
        ValueError: a value of the configuration that does not fit.
    """
    mesh = distributed.make_mesh(config.training.num_devices)
    distributed.check_batch_size(config.batch_size, mesh, config.training.accumulate)
    step = abstract_step(config, mesh, batch_spec)
    start = time.perf_counter()
    traced = step.take.trace(*step.arguments)
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    memory = profiling.memory_of(lowered.compile())
    compile_seconds = time.perf_counter() - lowered_at
    return StepCost(
        devices=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        image_hw=image_hw,
        batch_size=config.batch_size,
        parts=cost_of_parts(step, traced.jaxpr.jaxpr),
        argument_bytes=memory.arguments,
        temporary_bytes=memory.temporaries,
        peak_bytes=memory.peak,
        lower_seconds=lowered_at - start,
        compile_seconds=compile_seconds,
    )


def cost_of_parts(step: AbstractStep, program: Any) -> dict[str, PartCost]:
    """Divides what a step takes by the parts of the model.

    Args:
        step: the step.
        program: its jaxpr.
    """
    parameters: Counter[str] = Counter()
    state_bytes: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.state.params):
        parameters[part_of(jax.tree_util.keystr(path))] += math.prod(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.state):
        own = leaf.sharding.shard_shape(leaf.shape)
        size = math.prod(own) * leaf.dtype.itemsize
        state_bytes[part_of(jax.tree_util.keystr(path))] += size
    flops = count_products(program)
    found = {name: PartCost(parameters[name], state_bytes[name], flops[name]) for name in PARTS}
    return {name: cost for name, cost in found.items() if any(dataclasses.astuple(cost))}


def part_of(text: str) -> str:
    """The part that a path of an array, or the names around an operation, belong to."""
    return next((name for name, pattern in _COMPILED if pattern.search(text)), OTHERS)


def count_products(program: Any) -> Counter[str]:
    """Counts the operations of products and convolutions of a jaxpr by part.

    An addition and a multiplication are two; zeros of padding count, of branches the largest, and a
    loop as often as it runs, once where only the running program knows. Within `shard_map` arrays
    are those of one device.
    """
    return _count(program, "")


def _count(program: Any, names: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for equation in program.eqns:
        own = f"{names}/{equation.source_info.name_stack}"
        kind, parameters = equation.primitive.name, equation.params
        if kind in ("dot_general", "conv_general_dilated"):
            counts[part_of(own)] += _products(kind, equation)
            continue
        found = [_count(inner, own) for inner in _programs_in(parameters)]
        if kind == "cond":
            found = [max(found, key=lambda each: each.total())]
        times = parameters["length"] if kind == "scan" else 1
        for each in found:
            counts.update({name: times * number for name, number in each.items()})
    return counts


def _programs_in(parameters: Mapping[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def _products(kind: str, equation: Any) -> int:
    outputs: int = math.prod(equation.outvars[0].aval.shape)
    left, right = (each.aval.shape for each in equation.invars[:2])
    if kind == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        added: int = math.prod(left[axis] for axis in contracted)
    else:
        kernel_outputs = equation.params["dimension_numbers"].rhs_spec[0]
        added = math.prod(right) // max(right[kernel_outputs], 1)
    return 2 * outputs * added
