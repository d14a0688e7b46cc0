"""Rendered people for evaluation, from seeds that no training uses."""

import dataclasses
import json
import pathlib

from ktn_jax.data_pipelines.synthetic import dataset_files
from ktn_jax.data_pipelines.synthetic.scene import Scene
from ktn_jax.data_pipelines.synthetic.source import dataset_header

# The seeds from here on are for evaluation; training takes those below.
HELD_OUT_SEED = 1_000_000


@dataclasses.dataclass(frozen=True)
class HeldOutPeople:
    """A set of rendered images.

    Attributes:
        scene: what the images show.
        num_images: how many.
        seed: decides every image.
    """

    scene: Scene
    num_images: int = 100
    seed: int = HELD_OUT_SEED

    def describe(self) -> bytes:
        """Everything that decides the images, as `dataset.describe_run` takes it."""
        header = dataset_header(self.scene, self.num_images, self.seed)
        return json.dumps(header["info"], sort_keys=True).encode()

    def write(self, folder: pathlib.Path) -> None:
        """Renders what the folder lacks of the images and their annotations.

        Raises:
            ValueError: the folder holds something else.
        """
        dataset_files.write_dataset(folder, self.num_images, seed=self.seed, scene=self.scene)
