"""Knowledge transfer (KTM): surface classifiers made from keypoint, part and box classifiers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.body import parts
from ktn_jax.modeling.layers import msra_init, parameter

Array = jax.Array
Graph = Mapping[str, Array | np.ndarray]  # edges [25, K_s] by source

NUM_SOURCE_NODES = {
    "keypoint": parts.NUM_KEYPOINTS,
    "box": 2 + 4,  # person, background, and the deltas of a person's box
    "part": parts.NUM_COARSE_CHANNELS,
}


class KnowledgeTransfer(nn.Module):
    """Casts classifiers learnt on plentiful 2-D labels as surface classifiers.

    Wang et al., "KTN: Knowledge Transfer Network for Multi-person DensePose Estimation" (ACM MM
    2020), section 3.3: messages from each source's classifiers along the body graph are
    concatenated and go through a two-layer perceptron. The graph's edges train; they start from the
    graph given. The perceptron starts as the original's: Kaiming with fan-out and zero biases, or
    for KTN's first version as PyTorch's `Linear` does.
    """

    out_features: int  # input channels x kernel area of the surface classifier
    sources: tuple[str, ...] = ("keypoint", "box", "part")  # checkpoints fix the order
    has_torch_init: bool = False
    graph: Graph | None = None  # initial edges [25, K_s]; None for small noise

    @nn.compact
    def __call__(self, classifiers: Mapping[str, Array]) -> Array:
        """Maps classifiers[s] [K_s, D_s] to surface classifiers [25, out_features]."""
        messages = []
        for source in self.sources:
            shape = (parts.NUM_PATCH_CHANNELS, NUM_SOURCE_NODES[source])
            edges = parameter(self, f"edges_{source}", self._initial_edges(source), shape)
            messages.append(edges @ classifiers[source])
        hidden = self._dense("fc1", jnp.concatenate(messages, axis=-1))
        hidden = nn.leaky_relu(hidden, negative_slope=0.02)  # the reference's; Flax's is 0.01
        return self._dense("fc2", hidden)

    def _dense(self, name: str, x: Array) -> Array:
        kernel_init, bias_init = msra_init, nn.initializers.zeros_init()
        if self.has_torch_init:
            # Both uniform within 1 / sqrt(inputs).
            kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            bound = x.shape[-1] ** -0.5

            def bias_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
                return jax.random.uniform(key, shape, dtype, -bound, bound)

        dense = nn.Dense(self.out_features, kernel_init=kernel_init, bias_init=bias_init, name=name)
        return dense(x)

    def _initial_edges(self, source: str) -> nn.initializers.Initializer:
        if self.graph is None:
            return nn.initializers.normal(0.001)
        edges = self.graph[source]

        def from_graph(key: Array, shape: tuple[int, ...]) -> Array:
            del key
            if edges.shape != shape:
                raise ValueError(
                    f"the body graph's {source!r} matrix must be {shape}, got {edges.shape}"
                )
            return jnp.asarray(edges, jnp.float32)

        return from_graph
