"""The meshes that a model knows, as batches count them, and what mirrors their vertices."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class KnownMeshes:
    """Meshes that annotated points may be on.

    Attributes:
        num_vertices: by name, in the order of `model.meshes.names`.
        mirrors: [V] int32 by name, the vertex that takes each one's place in a mirror; of those
            that have it.
    """

    num_vertices: Mapping[str, int]
    mirrors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def number(self, name: str) -> int:
        """The number of a mesh in batches."""
        return list(self.num_vertices).index(name)

    def check(self, largest: Mapping[str, int], with_flips: bool, is_needed: bool) -> None:
        """Checks that points of a dataset can be trained on.

        Args:
            largest: the largest vertex + 1 by mesh of the dataset, see `ImageFacts`.
            with_flips: whether images are mirrored.
            is_needed: whether it is an error that there are none.

        Raises:
            ValueError: no point has a vertex, a mesh is not known, a vertex is not on its mesh, or
                one that cannot be mirrored should be.
        """
        if is_needed and not largest:
            raise ValueError(
                "nobody in the training data has points on a mesh (dp_vertex and ref_model), which "
                "an embedding model learns: `ktn data convert-cse` makes them of dp_I, dp_U, dp_V"
            )
        for name, count in largest.items():
            if name not in self.num_vertices:
                raise ValueError(
                    f"the training data has points on the mesh {name!r}, which is none of "
                    f"model.meshes.names, {list(self.num_vertices)}"
                )
            if count > self.num_vertices[name]:
                raise ValueError(
                    f"the training data has vertex {count - 1} of the mesh {name!r}, and "
                    f"model.meshes.num_vertices is {self.num_vertices[name]}"
                )
            if with_flips and name not in self.mirrors:
                raise ValueError(
                    f"the mesh {name!r} has no mirrored vertices, which flips need: set "
                    "data.flip_probability=0"
                )
