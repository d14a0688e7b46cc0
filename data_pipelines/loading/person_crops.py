"""Crops around annotated people: what a teacher learns from and what it labels.

A crop is a window of the image around a person's box, enlarged and of a fixed shape, resized to a
fixed size; what of it is beyond the image is black. Frames are continuous pixels, as in
`transforms`.
"""

import dataclasses

import numpy as np
from PIL import Image

from ktn_jax.data_pipelines.coco.annotations import (
    ImageFacts,
    ImageRecord,
    PersonRecord,
)
from ktn_jax.data_pipelines.coco.part_masks import Segmentation
from ktn_jax.data_pipelines.loading.sources import Source


@dataclasses.dataclass(frozen=True)
class CropShape:
    """Size of crops, and how far they reach beyond the person's box."""

    size_hw: tuple[int, int]  # of the crop after resizing
    margin: float = 1.25  # sides of the window over those of the box, at least

    def __post_init__(self) -> None:
        """Checks the values; ValueError names the field."""
        if len(self.size_hw) != 2 or min(self.size_hw) < 1:
            raise ValueError(f"data.person_crops.size_hw must be (height, width): {self.size_hw}")
        if not self.margin >= 1:
            raise ValueError(f"data.person_crops.margin must be at least 1, got {self.margin}")

    def window(self, box_xywh: np.ndarray) -> np.ndarray:
        """The part of the image that a person's crop shows: xyxy float64, of the crop's shape.

        It has the box's middle, and holds the enlarged box as tightly as its shape allows.
        """
        height, width = self.size_hw
        box_width, box_height = np.maximum(box_xywh[2:], 1.0) * self.margin
        scale = max(box_width / width, box_height / height)
        half = np.array([width, height]) * scale / 2
        centre = box_xywh[:2] + box_xywh[2:] / 2
        return np.concatenate([centre - half, centre + half])


def cut_window(image: np.ndarray, window: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resizes a window of an image with Pillow's bilinear filter, which is wider when shrinking.

    Args:
        image: [H, W, 3] uint8 RGB.
        window: [4] xyxy, anywhere.
        size_hw: of the result.

    Returns:
        [*size_hw, 3] uint8, black beyond the image.
    """
    low = np.floor(window[:2]).astype(int)
    # Windows of a person near an edge reach beyond it; Pillow takes boxes inside the picture only.
    width, height = np.maximum(np.ceil(window[2:]).astype(int) - low, 1)
    padded = np.zeros((height, width, 3), np.uint8)
    first, last = np.maximum(low, 0), np.minimum(low + [width, height], image.shape[1::-1])
    if (last > first).all():
        target = first - low
        rows = slice(target[1], target[1] + last[1] - first[1])
        columns = slice(target[0], target[0] + last[0] - first[0])
        padded[rows, columns] = image[first[1] : last[1], first[0] : last[0]]
    box = (*(window[:2] - low), *np.minimum(window[2:] - low, [width, height]))
    resized = Image.fromarray(padded).resize(size_hw[::-1], Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def move_person(person: PersonRecord, window: np.ndarray, size_hw: tuple[int, int]) -> PersonRecord:
    """The person in pixels of the crop; DensePose stays on the grid over the box.

    A run-length mask is dropped: it covers the whole image.
    """
    scale = np.array(size_hw[::-1]) / (window[2:] - window[:2])
    box = np.concatenate([(person.box_xywh[:2] - window[:2]) * scale, person.box_xywh[2:] * scale])
    keypoints = person.keypoints.copy()
    is_labelled = keypoints[:, 2] > 0
    # Those of the file count pixels: 0 is the middle of the first one.
    middles = (keypoints[is_labelled, :2] + 0.5 - window[:2]) * scale - 0.5
    keypoints[is_labelled, :2] = middles
    return dataclasses.replace(
        person,
        box_xywh=box,
        area=person.area * float(scale.prod()),
        keypoints=keypoints,
        segmentation=_move_polygons(person.segmentation, window, scale),
    )


def _move_polygons(
    segmentation: Segmentation, window: np.ndarray, scale: np.ndarray
) -> Segmentation:
    if not isinstance(segmentation, list):
        return None
    return [
        ((np.reshape(ring, (-1, 2)) - window[:2]) * scale).ravel().tolist() for ring in segmentation
    ]


class PersonCrops:
    """The people with surface points of a source, each as an image of its own.

    Where a source does not know how many there are (people rendered on demand), an image has as
    many crops as people at most, and those over go through its people again; the crop of an image
    without anybody is black, with nobody in it.
    """

    def __init__(self, source: Source, shape: CropShape):
        """Takes the images and the shape of the crops."""
        self._source, self._shape = source, shape
        facts = source.facts()
        counts = facts.people if facts.with_surface is None else facts.with_surface
        self._facts = facts
        self._image = np.repeat(np.arange(len(counts)), counts)
        self._number = np.arange(len(self._image)) - np.repeat(np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        image, record = self._source[int(self._image[index])]
        height, width = self._shape.size_hw
        people = [person for person in record.people if person.has_surface]
        if not people:
            crop = np.zeros((height, width, 3), np.uint8)
            return crop, dataclasses.replace(record, height=height, width=width, people=())
        person = people[int(self._number[index]) % len(people)]
        window = self._shape.window(person.box_xywh)
        crop = cut_window(image, window, self._shape.size_hw)
        moved = move_person(person, window, self._shape.size_hw)
        return crop, dataclasses.replace(record, height=height, width=width, people=(moved,))

    def facts(self) -> ImageFacts:
        """Those of the crops: all of one size, with one person each, and its image's weight."""
        count = len(self)
        ones = np.ones(count, np.int32)
        weights = self._facts.weights
        return dataclasses.replace(
            self._facts,
            sizes_hw=np.tile(np.array(self._shape.size_hw, np.int32), (count, 1)),
            people=ones,
            with_keypoints=None,
            with_surface=ones,
            weights=None if weights is None else weights[self._image],
        )
