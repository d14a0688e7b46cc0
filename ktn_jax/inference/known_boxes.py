"""The second stage alone: people of photos whose boxes are known, not found."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from ktn_jax.evaluation.ground_truth import ImageTruth
from ktn_jax.inference import batching
from ktn_jax.inference.predictor import FoundPerson, to_result
from ktn_jax.inference.stages import Stages
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import images


class BoxedPhoto(NamedTuple):
    """A photo and the boxes of its people.

    Attributes:
        image: RGB uint8 [H, W, 3].
        boxes_xyxy: [N, 4] in its pixels.
        classes: [N] of each of them, or that of all.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray | int = 0


def scored_boxes(image: ImageTruth) -> np.ndarray:
    """The boxes xyxy [N, 4] of the people of an image who have surface points."""
    boxes = [person.box_xywh for person in image.people if person.points is not None]
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    array[:, 2:] += array[:, :2]
    return array


class KnownBoxPredictor:
    """Predicts charts, keypoints and masks in given boxes, without the errors of the detector."""

    def __init__(self, stages: Stages):
        """Takes the programs of a model."""
        self.stages = stages
        self.config = stages.config

    def __call__(self, photos: Sequence[BoxedPhoto]) -> list[list[PersonResult]]:
        """Describes people, each with score 1, in the order of their boxes.

        Args:
            photos: at most `test.batch_size`.

        Returns:
            The people of each photo, in its pixels; without those whose boxes are empty.
        """
        test, model = self.config.test, self.config.model
        resized = [
            images.resize_short_side(photo.image, test.short_side, test.max_side)
            for photo in photos
        ]
        height, width = np.max([image.shape[:2] for image in resized], axis=0).tolist()
        bucket = batching.choose_bucket((height, width), test.size_buckets)
        pyramid, _ = self.stages.detect(*batching.pad(resized, bucket, test.batch_size))
        boxes = [
            photo.boxes_xyxy * np.tile(np.divide(small.shape[1::-1], photo.image.shape[1::-1]), 2)
            for photo, small in zip(photos, resized, strict=True)
        ]
        rows = np.repeat(np.arange(len(photos)), [len(own) for own in boxes]).astype(np.int32)
        flat = np.concatenate(boxes).astype(np.float32)
        classes = np.concatenate(
            [np.broadcast_to(photo.classes, len(photo.boxes_xyxy)) for photo in photos]
        ).astype(np.int32)
        maps = self.stages.describe(pyramid, flat, rows, classes)
        people: list[list[PersonResult]] = [[] for _ in photos]
        for index, row in enumerate(rows.tolist()):
            own = jax.tree.map(lambda x, i=index: x[i], maps)
            found = FoundPerson(flat[index], 1.0, own, int(classes[index]))
            sizes = resized[row].shape[:2], photos[row].image.shape[:2]
            person = to_result(found, *sizes, model, self.stages.vertex_embeddings)
            people[row] += [] if person is None else [person]
        return people
