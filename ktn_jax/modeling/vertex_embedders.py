"""Embeddings of the vertices of meshes, which the embeddings of pixels are compared with.

A vertex is embedded directly, by a vector that is learnt, or from features: numbers of each vertex,
such as eigenfunctions of the mesh's Laplacian, that a learnt matrix maps to the embedding
(Neverova et al., "Continuous Surface Embeddings", NeurIPS 2020, section 3).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ktn_jax.modeling.layers import parameter
from ktn_jax.ops.embeddings import normalise

Array = jax.Array


class VertexEmbedder(nn.Module):
    """Embeddings of the vertices of one mesh.

    detectron2 starts from zeros, which have no direction and learn slowly, or from a file. Here
    they start from normal random numbers.
    """

    num_vertices: int
    channels: int
    num_features: int = 0  # of a vertex; 0 for vertices that are embedded directly
    trains_features: bool = True
    trains: bool = True

    @nn.compact
    def __call__(self) -> Array:
        """Computes the embeddings [num_vertices, channels], of length 1; those of zeros are 0.

        No gradient reaches what does not train. Such parameters belong in `optimizer.frozen` too,
        for which `training.optimizer.frozen_patterns` provides: weight decay would change them.
        """
        init = nn.initializers.normal(1.0)
        if not self.num_features:
            embeddings = parameter(self, "embeddings", init, (self.num_vertices, self.channels))
        else:
            features = parameter(self, "features", init, (self.num_vertices, self.num_features))
            if not self.trains_features:
                features = jax.lax.stop_gradient(features)
            mapping = parameter(self, "embeddings", init, (self.num_features, self.channels))
            embeddings = jnp.dot(features, mapping, precision=jax.lax.Precision.HIGHEST)
        embeddings = normalise(embeddings)
        return embeddings if self.trains else jax.lax.stop_gradient(embeddings)


class VertexEmbedders(nn.Module):
    """Embeddings of the vertices of several meshes."""

    meshes: tuple[str, ...]
    num_vertices: tuple[int, ...]  # of each mesh; so are the others
    num_features: tuple[int, ...]
    trains_features: tuple[bool, ...]
    trains: tuple[bool, ...]
    channels: int

    def setup(self) -> None:
        rows = zip(
            self.meshes,
            self.num_vertices,
            self.num_features,
            self.trains_features,
            self.trains,
            strict=True,
        )
        self.embedders = [
            VertexEmbedder(
                num_vertices=num_vertices,
                channels=self.channels,
                num_features=num_features,
                trains_features=trains_features,
                trains=trains,
                name=name,
            )
            for name, num_vertices, num_features, trains_features, trains in rows
        ]

    def __call__(self) -> dict[str, Array]:
        """Computes the embeddings of every mesh, [V, channels] by its name."""
        return {
            name: embedder() for name, embedder in zip(self.meshes, self.embedders, strict=True)
        }
