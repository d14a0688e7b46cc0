"""What a step costs: traces of some steps for TensorBoard, and the share of a device's peak."""

import dataclasses
import pathlib
from typing import Any

import jax

# Dense products of bfloat16 a second and device, of the makers' data sheets, by the name that JAX
# gives the device.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,  # v6e
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def parse_steps(text: str) -> range:
    """Reads `training.profile_steps`: "10:15" for steps 10 to 14, counted from 0; "" for none.

    Raises:
        ValueError: it is something else.
    """
    if not text:
        return range(0)
    first, separator, last = text.partition(":")
    if not separator or not first.isdecimal() or not last.isdecimal() or int(first) >= int(last):
        raise ValueError(
            f"training.profile_steps {text!r} must be FIRST:LAST, such as 10:15 for steps 10 to 14"
        )
    return range(int(first), int(last))


class StepProfile:
    """Writes a trace of some steps of a run, which TensorBoard's profile plugin opens."""

    def __init__(self, steps: range, folder: pathlib.Path):
        """Names the steps and the folder, which is made when the first of them begins."""
        self._steps, self._folder = steps, folder
        self._is_running = False

    def before(self, step: int) -> None:
        """Begins the trace, or the part of it that is left, if it is time."""
        if step in self._steps and not self._is_running:
            jax.profiler.start_trace(self._folder)
            self._is_running = True

    def after(self, step: int, outputs: Any) -> None:
        """Ends the trace with the last step, for whose outputs it then waits."""
        if self._is_running and step + 1 >= self._steps.stop:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._is_running:
            jax.profiler.stop_trace()
            self._is_running = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step."""

    take: jax.stages.Compiled
    flops: float  # operations on one device; 0 where they are not known


def count_flops(program: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """Operations of a program on one device, a loop's once; 0 where XLA does not count them."""
    costs = program.cost_analysis() or {}
    return max(float(costs.get("flops", 0)), 0.0)


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Bytes that a compiled program takes on one device."""

    arguments: int
    temporaries: int
    outputs: int  # that do not take the place of arguments

    @property
    def peak(self) -> int:
        """Of all together."""
        return self.arguments + self.temporaries + self.outputs


def memory_of(program: jax.stages.Compiled) -> ProgramMemory:
    """What a compiled program takes; zeros where XLA does not say."""
    memory = program.memory_analysis()
    if memory is None:
        return ProgramMemory(0, 0, 0)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return ProgramMemory(memory.argument_size_in_bytes, memory.temp_size_in_bytes, outputs)
