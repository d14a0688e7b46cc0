"""The predictor, from photos to people: the host code around the stages of the detector.

Photos are padded to a few sizes and people to a few counts, so a folder of photos compiles few
programs.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, overload

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.inference import batching, charts
from ktn_jax.inference.inputs import Photo, Photos, PhotoStream, map_photos
from ktn_jax.inference.masks import paste_mask
from ktn_jax.inference.stages import PEOPLE_BUCKETS, Stages, people_bucket
from ktn_jax.inference.surfaces import vertices_in_box
from ktn_jax.results.categories import category_ids
from ktn_jax.results.iuv_pictures import quantise
from ktn_jax.results.people import People
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import images
from ktn_jax.structures import PersonMaps


@dataclasses.dataclass(frozen=True)
class FoundPerson:
    """One detection in the resized image.

    Attributes:
        box_xyxy: float32 [4] in pixels of the resized image.
        score: probability of the class.
        maps: of the box, float32 NumPy arrays without the leading axis.
        class_index: 0 for "person" in a model of one class.
    """

    box_xyxy: np.ndarray
    score: float
    maps: PersonMaps[np.ndarray]
    class_index: int = 0


class Predictor:
    """Finds the people of photos. It can be pickled, with its weights.

    Several threads may call it at once: a call keeps nothing in the predictor, and JAX's programs
    may be run from any thread. Only `stages.replace_variables` must not be called meanwhile.
    """

    def __init__(self, stages: Stages):
        """Takes the programs of a model, whose configuration says how photos are resized."""
        self.stages = stages
        self.config = stages.config

    @overload
    def __call__(self, photos: Photo) -> People: ...

    @overload
    def __call__(self, photos: Photos) -> list[People]: ...

    @overload
    def __call__(self, photos: PhotoStream) -> Iterator[People]: ...

    def __call__(
        self, photos: Photo | Photos | PhotoStream
    ) -> People | list[People] | Iterator[People]:
        """Finds the people of a photo, or of each of several.

        Args:
            photos: a path, a PIL image, or an array, RGB uint8 [H, W, 3] (or grey, or RGBA: see
                `images.to_image`); or a list, a tuple or an iterator of these, of any sizes.

        Returns:
            The people of the photo, best first, in its own pixels, which can be drawn and saved; a
            list of these for a list or tuple; an iterator of these for an iterator, which may be
            endless: photos are taken as their people are asked for, and a few batches ahead.

        Raises:
            TypeError: `photos` is not a photo, or contains something that is not.
            ValueError: an array of a wrong shape, or a file that cannot be read (`ImageError`).
        """
        people = map_photos(
            photos,
            test=self.config.test,
            prepare=self._resize,
            find=self._find_resized,
            finish=self._bring,
        )
        return people

    def _resize(self, photo: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The resized photo, and the photo's own size."""
        test = self.config.test
        resized = images.resize_short_side(photo, test.short_side, test.max_side)
        return resized, photo.shape[:2]

    def _find_resized(
        self, batch: Sequence[tuple[np.ndarray, tuple[int, int]]]
    ) -> list[list[FoundPerson]]:
        return self.find([resized for resized, _ in batch])

    def _bring(
        self, photo: tuple[np.ndarray, tuple[int, int]], people: Sequence[FoundPerson]
    ) -> list[PersonResult]:
        resized, size_hw = photo
        model, surfaces = self.config.model, self.stages.vertex_embeddings
        results = [to_result(p, resized.shape[:2], size_hw, model, surfaces) for p in people]
        return [result for result in results if result is not None]

    def find(self, resized: Sequence[np.ndarray]) -> list[list[FoundPerson]]:
        """Runs the network on images that are resized already, in batches.

        Args:
            resized: uint8 [H, W, 3] RGB.

        Returns:
            The people of each image, best first, in its pixels.
        """
        test = self.config.test

        def bucket_of(index: int) -> batching.Size:
            return batching.choose_bucket(resized[index].shape[:2], test.size_buckets)

        found: list[list[FoundPerson]] = [[] for _ in resized]
        for batch in batching.batches_of_one_size(range(len(resized)), bucket_of, test.batch_size):
            people = self._find_in_batch([resized[i] for i in batch], bucket_of(batch[0]))
            for index, persons in zip(batch, people, strict=True):
                found[index] = persons
        return found

    def _find_in_batch(
        self, batch: Sequence[np.ndarray], bucket: batching.Size
    ) -> list[list[FoundPerson]]:
        inputs, sizes = batching.pad(batch, bucket, self.config.test.batch_size)
        pyramid, detections = self.stages.detect(inputs, sizes)
        detections = jax.device_get(detections)
        rows, columns = np.nonzero(detections.is_valid[: len(batch)])
        boxes = detections.boxes[rows, columns]
        classes = detections.classes[rows, columns]
        outputs = self.stages.describe(pyramid, boxes, rows.astype(np.int32), classes)
        people: list[list[FoundPerson]] = [[] for _ in batch]
        for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
            maps = jax.tree.map(lambda x, i=index: x[i], outputs)
            score = float(detections.scores[row, column])
            people[row].append(FoundPerson(boxes[index], score, maps, int(classes[index])))
        return people

    def warm_up(
        self, sizes_hw: Iterable[tuple[int, int]], people: int | Iterable[int] = PEOPLE_BUCKETS[-1]
    ) -> None:
        """Compiles and runs the programs for photos of some sizes, so that no later call compiles.

        Args:
            sizes_hw: (height, width) of the photos. Sizes that are resized and padded to the same
                input share programs.
            people: the largest number of people in a photo, or all numbers of people in a batch
                that will occur.
        """
        test, batch_size = self.config.test, self.config.test.batch_size
        most = batch_size * self.config.model.box_head.max_detections
        if not isinstance(people, Iterable):
            people = range(1, batch_size * people + 1)
        rows = rows_of(people, most)
        programs = set()
        for size_hw in sizes_hw:
            height, width = images.shortest_edge_size(size_hw, test.short_side, test.max_side)
            bucket = batching.choose_bucket((height, width), test.size_buckets)
            image = np.zeros((height, width, 3), np.uint8)
            inputs, sizes = batching.pad([image], bucket, batch_size)
            program = (bucket, self.stages.is_full(inputs, sizes))
            if program in programs:
                continue
            programs.add(program)
            pyramid, detections = self.stages.detect(inputs, sizes)
            jax.device_get(detections)
            for count in rows:
                boxes = np.tile(np.array([0, 0, width, height], np.float32), (count, 1))
                self.stages.describe(pyramid, boxes, np.zeros(count, np.int32))


def rows_of(people: Iterable[int], most: int) -> list[int]:
    """The different numbers of rows that the second stage has for these numbers of people.

    Args:
        people: numbers of people in a batch.
        most: largest number that can be found.
    """
    rows = set()
    for count in people:
        whole, rest = divmod(min(count, most), PEOPLE_BUCKETS[-1])
        rows |= {PEOPLE_BUCKETS[-1]} if whole else set()
        rows |= {people_bucket(rest)} if rest else set()
    return sorted(rows)


def to_result(
    person: FoundPerson,
    from_hw: tuple[int, int],
    to_hw: tuple[int, int],
    config: ConfigDict,
    vertex_embeddings: Mapping[str, jax.Array] = MappingProxyType({}),
) -> PersonResult | None:
    """Brings a person from the resized image to the photo.

    Args:
        person: as the network found it.
        from_hw: size of the resized image, without padding.
        to_hw: size of the photo.
        config: the `model` part of the configuration.
        vertex_embeddings: of a model with embeddings, see `Stages.vertex_embeddings`.

    Returns:
        The person in pixels of the photo, or None where clipping left no box.
    """
    boxes, is_left = charts.rescale_boxes(person.box_xyxy[None], from_hw, to_hw)
    if not is_left[0]:
        return None
    found: dict[str, Any] = {}
    maps, heatmaps, mask = person.maps.charts, person.maps.heatmaps, person.maps.mask
    if maps is not None:
        labels, uv = charts.chart_in_box(
            coarse=maps.coarse_segm,
            fine=maps.fine_segm,
            u=maps.u,
            v=maps.v,
            size_hw=charts.box_size_hw(boxes[0]),
            mask_threshold=config.predictor.mask_threshold,
        )
        found["iuv"], found["uv"] = quantise(labels, uv), uv
        found["confidences"] = charts.confidences_in_box(maps, labels)
    if person.maps.embeddings is not None:
        mesh = config.meshes.of_classes[person.class_index]
        size_hw = charts.box_size_hw(boxes[0])
        found["mesh"] = mesh
        found["vertices"] = vertices_in_box(
            person.maps.embeddings,
            vertex_embeddings[mesh],
            size_hw,
            config.predictor.mask_threshold,
        )
        confidence = person.maps.embeddings.coarse_segm_confidence
        if confidence is not None:
            read = charts.resize_maps(confidence, size_hw, cv2.INTER_LINEAR)[..., 0]
            found["confidences"] = {"coarse_segm_confidence": read}
    if heatmaps is not None:
        decoded = charts.decode_keypoints(heatmaps[None], person.box_xyxy[None])[0]
        scale = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0], 1], np.float32)
        found["keypoints"] = decoded[:, [0, 1, 3]] * scale
    if mask is not None:
        found["mask"] = paste_mask(mask, boxes[0], to_hw)
    return PersonResult(
        box_xyxy=boxes[0],
        score=person.score,
        category_id=category_ids(config.box_head.num_classes)[person.class_index],
        **found,
    )
