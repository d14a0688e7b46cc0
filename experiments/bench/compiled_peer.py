"""The PyTorch side as somebody makes it who cares about speed: compiled, by stage.

The layers are those of `torch_peer`. The batch norms of the backbone are folded into its
convolutions, the surface classifier is synthesised once, images and kernels are channels-last, and
every stage that has a fixed shape is exported with its weights as constants and compiled: by
`torch.compile`, which may choose layouts and pack weights ahead, or by OpenVINO. What stays: NMS
and ROIAlign (C, float32), and the linear layers of the boxes, whose number changes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from ml_collections import ConfigDict
from torch_peer import BATCH_NORM_EPSILON, Peer

Tensor = torch.Tensor


class CompiledPeer(Peer):
    """`Peer` with compiled stages; a program is for the shapes of its first call."""

    def __init__(
        self,
        config: ConfigDict,
        state: dict[str, np.ndarray],
        engine: str,
        dtype: torch.dtype = torch.float32,
    ):
        """Takes a `model` configuration and the original's state dict, which it empties.

        Args:
            config: The `model` configuration.
            state: The original's state dict.
            engine: One of `ENGINES`.
            dtype: float32 or bfloat16, of weights and maps. OpenVINO's programs take and return
                float32 and choose what they compute in bfloat16.
        """
        super().__init__(config, state)
        self.engine, self.dtype = engine, dtype
        self._programs: dict[str, Callable[..., Any]] = {}
        self._fold_norms()
        if self.is_ktn:
            self._surface_weight = self._cast("surface", super().surface_weight())
            for name in list(self.weights):
                if "parameter_transformer" in name or "_crgk_matrix" in name:
                    del self.weights[name]
        self.weights = {name: self._cast(name, value) for name, value in self.weights.items()}

    def _fold_norms(self) -> None:
        for name in list(self.weights):
            layer = name.removesuffix(".norm.running_var")
            if layer == name:
                continue
            weight, bias, mean, var = (
                self.weights.pop(f"{layer}.norm.{part}")
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight * (var + BATCH_NORM_EPSILON).rsqrt()
            self.weights[f"{layer}.weight"] *= scale.reshape(-1, 1, 1, 1)
            self.weights[f"{layer}.bias"] = bias - mean * scale

    def _cast(self, name: str, value: Tensor) -> Tensor:
        if self.engine == "tuned" or name.startswith("roi_heads.box_"):
            value = value.to(self.dtype)
        return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value

    def conv_norm(self, x: Tensor, name: str, **options: int) -> Tensor:
        return self.conv(x, name, **options)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return super().linear(x.to(self.weights[f"{name}.weight"].dtype), name)

    def surface_weight(self) -> Tensor:
        return self._surface_weight

    def normalise(self, image: np.ndarray, size_hw: tuple[int, int]) -> Tensor:
        return self._enter(super().normalise(image, size_hw))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        return self._run("pyramid", super().pyramid, x)

    def rpn_heads(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = self._run("rpn_heads", super().rpn_heads, levels)
        return [x.float() for x in logits], [x.float() for x in deltas]

    def classify(self, levels: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().classify([x.float() for x in levels], boxes)
        return logits.float(), deltas.float()

    def decode_pyramid(self, levels: list[Tensor]) -> Tensor:
        return self._run("decoder", super().decode_pyramid, levels[:4])

    def pool_people(self, decoded: Tensor, boxes: Tensor) -> Tensor:
        return self._enter(super().pool_people(decoded.float(), boxes))

    def head(self, x: Tensor) -> Tensor:
        return self._run("head", super().head, x)

    def predict(self, features: Tensor) -> dict[str, Tensor]:
        maps = self._run("predictor", super().predict, features)
        return {name: x.float() for name, x in maps.items()}

    def _enter(self, x: Tensor) -> Tensor:
        """Brings a map into the type and layout of the programs."""
        dtype = self.dtype if self.engine == "tuned" else torch.float32
        return x.to(dtype).contiguous(memory_format=torch.channels_last)

    def _run(self, name: str, stage: Callable[..., Any], *values: Any) -> Any:
        if name not in self._programs:
            exported = torch.export.export(_Stage(stage), values, strict=False)
            self._programs[name] = ENGINES[self.engine](exported, self.dtype)
        return self._programs[name](*values)


class _Stage(torch.nn.Module):
    """A method as a module, which is what can be exported."""

    def __init__(self, stage: Callable[..., Any]):
        super().__init__()
        self.stage = stage

    def forward(self, *values: Any) -> Any:
        return self.stage(*values)


def _compile_by_inductor(
    exported: torch.export.ExportedProgram, dtype: torch.dtype
) -> Callable[..., Any]:
    del dtype  # that of the weights
    # Frozen weights are packed for oneDNN when the program is compiled.
    return torch.compile(exported.module(), options={"freezing": True, "max_autotune": True})


def _compile_by_openvino(
    exported: torch.export.ExportedProgram, dtype: torch.dtype
) -> Callable[..., Any]:
    import openvino
    from openvino.properties import hint, inference_num_threads

    settings = {
        hint.inference_precision: {
            torch.float32: openvino.Type.f32,
            torch.bfloat16: openvino.Type.bf16,
        }[dtype],
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        inference_num_threads: torch.get_num_threads(),
    }
    program = openvino.Core().compile_model(openvino.convert_model(exported), "CPU", settings)
    request = program.create_infer_request()
    structure = exported.call_spec.out_spec

    def run(*values: Any) -> Any:
        inputs = [x.contiguous().numpy() for x in pytree.tree_leaves(values)]
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        maps = [torch.from_numpy(results[index]) for index in range(len(program.outputs))]
        return pytree.tree_unflatten(maps, structure)

    return run


ENGINES: dict[str, Callable[[torch.export.ExportedProgram, torch.dtype], Callable[..., Any]]] = {
    "tuned": _compile_by_inductor,
    "openvino": _compile_by_openvino,
}
