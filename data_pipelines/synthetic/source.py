"""Synthetic people: images with exact truth, in memory or as files in the DensePose-COCO format.

Image i of a seed is the same in memory and on disk, on any number of processes. Sets that must not
share people, clothes or backgrounds, such as training and test sets, take different seeds.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.procedural import assembly, posing
from ktn_jax.data_pipelines.synthetic import labels, scene_picture, textures
from ktn_jax.data_pipelines.synthetic.scene import Scene
from ktn_jax.data_pipelines.synthetic.scene_picture import Picture
from ktn_jax.results.categories import PERSON_CATEGORY


@dataclasses.dataclass(frozen=True)
class SyntheticExample:
    """An image with its annotations.

    Attributes:
        image: [H, W, 3] uint8 RGB.
        image_record: The entry of the dataset's "images": id, file_name, height, width, license.
        annotations: The image's entries of "annotations".
    """

    image: np.ndarray
    image_record: dict[str, Any]
    annotations: list[dict[str, Any]]


@functools.cache
def _landmarks() -> textures.Landmarks:
    """Where clothes begin and end on the project's body."""
    body = assembly.make_body()
    rest = body.pose(posing.Shape(), posing.rest_pose())
    template = body.template
    return textures.find_landmarks(
        template.vertices, template.faces, template.face_patch, rest.keypoints
    )


class SyntheticSource(Sequence[SyntheticExample]):
    """A dataset of synthetic people, rendered on demand. It can be pickled."""

    def __init__(self, num_images: int, seed: int, scene: Scene | None = None):
        """Describes the dataset; renders nothing yet.

        Args:
            num_images: Its length.
            seed: Decides every image, from 0 on.
            scene: The settings, by default `Scene()`.

        Raises:
            ValueError: num_images or seed is negative.
        """
        if num_images < 0 or seed < 0:
            raise ValueError(f"num_images and seed must be >= 0, got {num_images} and {seed}")
        self.num_images, self.seed = num_images, seed
        self.scene = Scene() if scene is None else scene

    @property
    def body(self) -> assembly.Body:
        """The body of all people."""
        return assembly.make_body()

    def __len__(self) -> int:
        return self.num_images

    def _streams(self, index: int) -> tuple[np.random.SeedSequence, np.random.SeedSequence]:
        if not 0 <= index < self.num_images:
            raise IndexError(f"image {index} of a dataset of {self.num_images}")
        picture, annotation = np.random.SeedSequence([self.seed, index]).spawn(2)
        return picture, annotation

    def picture(self, index: int) -> Picture:
        """Renders image index with its dense truth: charts, people, camera and posed bodies.

        Raises:
            IndexError: index is outside 0..num_images - 1.
        """
        stream, _ = self._streams(index)
        return scene_picture.make_picture(self.body, _landmarks(), self.scene, stream)

    def example(self, index: int, picture: Picture) -> SyntheticExample:
        """Annotates a picture that `picture(index)` returned."""
        _, stream = self._streams(index)
        height, width = picture.image.shape[:2]
        image_id = index + 1
        record = {
            "id": image_id,
            "file_name": f"{image_id:012d}.jpg",
            "height": height,
            "width": width,
            "license": 1,
        }
        annotations = labels.annotate_picture(
            picture, self.scene, image_id, np.random.default_rng(stream)
        )
        return SyntheticExample(picture.image, record, annotations)

    def __getitem__(self, index: int) -> SyntheticExample:  # type: ignore[override]  # no slices
        return self.example(index, self.picture(index))


def dataset_header(scene: Scene, num_images: int, seed: int) -> dict[str, Any]:
    """Makes the parts of a DensePose-COCO JSON that do not depend on its images.

    Args:
        scene: The settings.
        num_images: Number of images.
        seed: The seed.

    Returns:
        info, licenses and categories. The info holds all that is needed to make the dataset again.
    """
    return {
        "info": {
            "description": "Synthetic people with exact surface coordinates",
            "version": "1.0",
            "num_images": num_images,
            "seed": seed,
            "scene": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(scene).items()
            },
        },
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/"}],
        "categories": [
            {
                "id": PERSON_CATEGORY,
                "name": "person",
                "supercategory": "person",
                "keypoints": list(parts.KEYPOINT_NAMES),
                "skeleton": [[a + 1, b + 1] for a, b in parts.KEYPOINT_SKELETON],
            }
        ],
    }
