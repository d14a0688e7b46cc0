"""Test-time augmentation: averages people and charts over scales, mirrored and rotated images.

As in detectron2's DensePoseGeneralizedRCNNWithTTA, NMS runs over the boxes of all views together
but the rotated ones, whose boxes would be too large; every view predicts the charts and masks of
the boxes that remain, and logits, U and V and the probabilities of masks are averaged. What
differs: views are resized from the photo itself (detectron2's evaluation resizes the image that was
resized for the plain run); charts are turned back by the rotation itself (there in coordinates that
follow the sides of the box, which shears charts of boxes that are not square); and keypoints and
confidences, which it does not support, are averaged too.

Of embedding models, which it does not support either, a pixel shows the vertex v whose embedding is
nearest to the pixel's in the plain views, while that of v's mirror image is nearest in the mirrored
ones: both squared distances are added, by a search of embeddings of twice the length.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.body import parts
from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.inference import batching
from ktn_jax.inference.inputs import Photo, Photos, PhotoStream, map_photos
from ktn_jax.inference.mirroring import (
    doubled_embeddings,
    keep_averaged,
    mirror_boxes,
    mirror_outputs,
)
from ktn_jax.inference.predictor import FoundPerson, to_result
from ktn_jax.inference.rotation import Rotation
from ktn_jax.inference.stages import PEOPLE_BUCKETS, Pyramid, Stages, people_bucket
from ktn_jax.inference.symmetries import Symmetry, needs_symmetry
from ktn_jax.ops.nms import nms
from ktn_jax.results.people import People
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import images
from ktn_jax.structures import PersonMaps

_PEOPLE_AT_A_TIME = 32  # whose maps are in memory together, about 6 MB for each person and view
_MIN_SCORE = 1e-8  # detectron2's; all boxes passed the detector's own threshold before
_BUCKET_MULTIPLE = 32  # pixels; sizes of views are padded to buckets of this step
_NO_SYMMETRY = "mirrored views need the body's UV symmetry tables, or those of the meshes, got None"


@dataclasses.dataclass(frozen=True)
class _View:
    """One scale of a photo after the first stage: row 0 plain, row 1 mirrored; or one rotated."""

    size_hw: tuple[int, int]  # of the resized photo, without padding, before it is rotated
    rotation: Rotation | None
    pyramid: Pyramid
    boxes: np.ndarray  # [rows, R, 4] as found
    scores: np.ndarray  # [rows, R]
    is_valid: np.ndarray  # [rows, R]
    classes: np.ndarray  # [rows, R]


class AugmentedPredictor:
    """A predictor that averages over several scales of every photo, mirrored and rotated.

    It is called like `Predictor` and can be pickled. Photos are processed one by one; the decoder's
    maps of all views of a photo stay on the device until its people are done (1.1 GB with the
    default scales).
    """

    def __init__(self, stages: Stages, symmetry: Symmetry | None):
        """Takes the programs of a model, and what mirrors its surfaces.

        Args:
            stages: `test.augmentation` of their configuration sets the views.
            symmetry: of the charts or the meshes that the model predicts, from
                `symmetries.load_symmetry`; None is allowed without flip, and for a model without
                either.

        Raises:
            ValueError: flip without symmetry, or no scales.
        """
        self.stages = stages
        self.config = stages.config
        augmentation = self.config.test.augmentation
        if needs_symmetry(self.config) and symmetry is None:
            raise ValueError(_NO_SYMMETRY)
        if not augmentation.short_sides:
            raise ValueError("test.augmentation.short_sides is empty: give at least one scale")
        self._symmetry = symmetry
        self._vertex_embeddings = stages.vertex_embeddings
        if isinstance(symmetry, Mapping) and augmentation.flip:
            self._vertex_embeddings = {
                mesh: jnp.concatenate([table, table[mirror]], axis=1)
                for mesh, mirror in symmetry.items()
                for table in [stages.vertex_embeddings[mesh]]
            }
        box_head = self.config.model.box_head
        self._suppress = jax.jit(
            functools.partial(
                nms,
                iou_threshold=box_head.nms_threshold,
                max_outputs=box_head.max_detections,
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return AugmentedPredictor, (self.stages, self._symmetry)

    @overload
    def __call__(self, photos: Photo) -> People: ...

    @overload
    def __call__(self, photos: Photos) -> list[People]: ...

    @overload
    def __call__(self, photos: PhotoStream) -> Iterator[People]: ...

    def __call__(
        self, photos: Photo | Photos | PhotoStream
    ) -> People | list[People] | Iterator[People]:
        """Finds the people of a photo, or of each of several; see `Predictor`."""
        people = map_photos(
            photos,
            self.config.test,
            prepare=lambda photo: photo,
            find=lambda batch: [self._people(photo) for photo in batch],
            finish=lambda _, people: people,
        )
        return people

    def _people(self, photo: np.ndarray) -> list[PersonResult]:
        frame_hw, photo_hw = self.frame_size(photo.shape[:2]), photo.shape[:2]
        results = (
            to_result(person, frame_hw, photo_hw, self.config.model, self._vertex_embeddings)
            for person in self.find_augmented(photo)
        )
        return [result for result in results if result is not None]

    def warm_up(
        self, sizes_hw: Iterable[tuple[int, int]], people: int | Iterable[int] = PEOPLE_BUCKETS[-1]
    ) -> None:
        """Compiles and runs the programs for photos of some sizes, so that no later call compiles.

        Args:
            sizes_hw: (height, width) of photos as they will come.
            people: the largest number of people in a photo, or all numbers that will occur.
        """
        most = self.config.model.box_head.max_detections
        if not isinstance(people, Iterable):
            people = range(1, people + 1)
        # In groups of the same size as in `find_augmented`.
        chunks = set()
        for count in people:
            whole, rest = divmod(min(count, most), _PEOPLE_AT_A_TIME)
            chunks |= ({_PEOPLE_AT_A_TIME} if whole else set()) | ({rest} if rest else set())
        for size_hw in dict.fromkeys((height, width) for height, width in sizes_hw):
            photo, frame_hw = np.zeros((*size_hw, 3), np.uint8), self.frame_size(size_hw)
            views = self._views(photo)
            self._merge(views, frame_hw)
            for count in self._counts(views, sorted(chunks)):
                box = np.array([0, 0, frame_hw[1], frame_hw[0]], np.float32)
                boxes, classes = np.tile(box, (count, 1)), np.zeros(count, np.int32)
                self._average(views, boxes, classes, frame_hw)

    def frame_size(self, photo_hw: tuple[int, int]) -> tuple[int, int]:
        """Size of the common frame of the views: that of a plain predictor's resized image.

        Boxes are merged and keypoints read in this frame, so that a single view of this size gives
        exactly the plain result.
        """
        test = self.config.test
        return images.shortest_edge_size(photo_hw, test.short_side, test.max_side)

    def find_augmented(self, photo: np.ndarray) -> Iterator[FoundPerson]:
        """Yields the people of a photo, best first, in pixels of `frame_size`."""
        frame_hw = self.frame_size(photo.shape[:2])
        views = self._views(photo)
        boxes, scores, classes = self._merge(views, frame_hw)
        for start in range(0, len(boxes), _PEOPLE_AT_A_TIME):
            part = slice(start, start + _PEOPLE_AT_A_TIME)
            outputs = self._average(views, boxes[part], classes[part], frame_hw)
            for index, box in enumerate(boxes[part]):
                maps = jax.tree.map(lambda x, i=index: x[i], outputs)
                at = start + index
                yield FoundPerson(box, float(scores[at]), maps, int(classes[at]))

    def _views(self, photo: np.ndarray) -> list[_View]:
        augmentation, test = self.config.test.augmentation, self.config.test
        views = []
        for side in augmentation.short_sides:
            small = images.resize_short_side(photo, side, augmentation.max_side)
            rows = [small, small[:, ::-1]] if augmentation.flip else [small]
            views.append(self._view(rows, self._buckets(side)))
        plain = images.resize_short_side(photo, test.short_side, test.max_side)
        for degrees in augmentation.rotation_degrees:
            rotation = Rotation(plain.shape[:2], degrees)
            turned = [rotation.image(plain)]
            views.append(self._view(turned, self._rotated_buckets(degrees), rotation))
        return views

    def _view(
        self,
        rows: Sequence[np.ndarray],
        buckets: Sequence[tuple[int, int]],
        rotation: Rotation | None = None,
    ) -> _View:
        size = rows[0].shape[:2]
        inputs, sizes = batching.pad(rows, batching.choose_bucket(size, buckets), len(rows))
        pyramid, found = self.stages.detect(inputs, sizes)
        found = jax.device_get(found)
        return _View(
            size_hw=(size[0], size[1]) if rotation is None else rotation.size_hw,
            rotation=rotation,
            pyramid=pyramid,
            boxes=found.boxes,
            scores=found.scores,
            is_valid=found.is_valid,
            classes=found.classes,
        )

    def _buckets(self, short_side: int) -> list[tuple[int, int]]:
        """The configured buckets, scaled as the images are, so that few programs are compiled."""
        test = self.config.test
        if short_side == test.short_side:
            return [(height, width) for height, width in test.size_buckets]
        step = _BUCKET_MULTIPLE
        scale = short_side / test.short_side
        return [
            (int(np.ceil(height * scale / step)) * step, int(np.ceil(width * scale / step)) * step)
            for height, width in test.size_buckets
        ]

    def _rotated_buckets(self, degrees: float) -> list[tuple[int, int]]:
        """The configured buckets, rotated, so that photos share programs when they are rotated."""
        step = _BUCKET_MULTIPLE
        buckets = []
        for height, width in self.config.test.size_buckets:
            sides = Rotation((height, width), degrees).canvas_hw
            buckets.append((-(-sides[0] // step) * step, -(-sides[1] // step) * step))
        return buckets

    @staticmethod
    def _counts(views: Sequence[_View], chunks: Sequence[int]) -> list[int]:
        """Of numbers of people, one for each set of programs that the second stage needs."""
        rows = [len(view.boxes) for view in views]
        return list({tuple(people_bucket(n * c) for n in rows): c for c in chunks}.values())

    def _merge(
        self, views: Sequence[_View], frame_hw: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs NMS over the boxes of all views in the frame: boxes [N, 4], scores, classes [N]."""
        views = [view for view in views if view.rotation is None]
        rows = [(view, row) for view in views for row in range(len(view.boxes))]
        boxes = np.concatenate(
            [
                move_boxes(_mirror_if(row, v.boxes[row], v.size_hw), v.size_hw, frame_hw)
                for v, row in rows
            ]
        )
        limit = np.array([frame_hw[1], frame_hw[0]] * 2, np.float32)
        boxes = np.clip(boxes, 0, limit)
        scores = np.concatenate([view.scores[row] for view, row in rows])
        is_valid = np.concatenate([view.is_valid[row] for view, row in rows])
        classes = np.concatenate([view.classes[row] for view, row in rows])
        index, is_kept = jax.device_get(
            self._suppress(boxes, scores, is_valid & (scores > _MIN_SCORE), groups=classes)
        )
        kept = index[is_kept]
        return boxes[kept], scores[kept], classes[kept]

    def _average(
        self,
        views: Sequence[_View],
        boxes: np.ndarray,
        classes: np.ndarray,
        frame_hw: tuple[int, int],
    ) -> PersonMaps[np.ndarray]:
        """Predicts the maps of boxes [N, 4] of the frame in every view, and averages them."""
        total: PersonMaps[np.ndarray] | None = None
        count = sum(len(view.boxes) for view in views)
        num_mirrored = sum(len(view.boxes) - 1 for view in views)
        for view in views:
            num_rows = len(view.boxes)
            moved = move_boxes(boxes, frame_hw, view.size_hw)
            stacked = [_mirror_if(row, moved, view.size_hw) for row in range(num_rows)]
            if view.rotation is not None:
                stacked = [view.rotation.boxes(moved)]
            outputs = self.stages.describe(
                view.pyramid,
                np.concatenate(stacked),
                np.repeat(np.arange(num_rows, dtype=np.int32), len(boxes)),
                np.tile(classes, num_rows),
            )
            if outputs is None:
                raise ValueError("there are no boxes to describe")
            if outputs.charts is not None:
                outputs = dataclasses.replace(outputs, charts=keep_averaged(outputs.charts))
            for row in range(num_rows):
                part = slice(row * len(boxes), (row + 1) * len(boxes))
                maps = jax.tree.map(lambda x, part=part: x[part], outputs)
                if maps.embeddings is not None and num_mirrored:
                    # Each half becomes the mean over its own views.
                    share = np.float32(count / (num_mirrored if row else count - num_mirrored))
                    doubled = doubled_embeddings(maps.embeddings, share, is_mirrored=row > 0)
                    maps = dataclasses.replace(maps, embeddings=doubled)
                if row:
                    maps = self._mirror_back(maps)
                if view.rotation is not None:
                    maps = _rotate_back(maps, view.rotation, moved, stacked[0])
                if total is None:
                    total = maps
                else:
                    total = jax.tree.map(np.add, total, _with_kappa_like(total, maps))
        mean: PersonMaps[np.ndarray] = jax.tree.map(lambda x: x / np.float32(count), total)
        return mean

    def _mirror_back(self, mirrored: PersonMaps[np.ndarray]) -> PersonMaps[np.ndarray]:
        charts, keypoints, mask = mirrored.charts, mirrored.keypoints, mirrored.mask
        if charts is not None:
            if not isinstance(self._symmetry, UVSymmetry):
                raise ValueError(_NO_SYMMETRY)
            charts = mirror_outputs(charts, self._symmetry)
        if keypoints is not None:
            keypoints = keypoints[:, :, ::-1, parts.KEYPOINT_FLIP]
        return PersonMaps(
            charts,
            keypoints,
            None if mask is None else mask[:, :, ::-1],
            jax.tree.map(lambda x: x[:, :, ::-1], mirrored.embeddings),
        )


def move_boxes(
    boxes_xyxy: np.ndarray, from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> np.ndarray:
    """Scales boxes [..., 4] float32 from one size of an image to another, without clipping."""
    scale = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]] * 2)
    return np.asarray(boxes_xyxy * scale, np.float32)


def _mirror_if(is_mirrored: int, boxes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return mirror_boxes(boxes, size_hw[1]) if is_mirrored else boxes


def _rotate_back(
    maps: PersonMaps[np.ndarray],
    rotation: Rotation,
    boxes_xyxy: np.ndarray,
    canvas_boxes_xyxy: np.ndarray,
) -> PersonMaps[np.ndarray]:
    """Turns maps back to boxes [N, 4] of the image that was rotated."""

    def turn_back(values: np.ndarray) -> np.ndarray:
        if values.ndim == 3:  # masks have no channels
            return rotation.turn_back(values[..., None], boxes_xyxy, canvas_boxes_xyxy)[..., 0]
        return rotation.turn_back(values, boxes_xyxy, canvas_boxes_xyxy)

    turned: PersonMaps[np.ndarray] = jax.tree.map(turn_back, maps)
    return turned


def _with_kappa_like(
    reference: PersonMaps[np.ndarray], maps: PersonMaps[np.ndarray]
) -> PersonMaps[np.ndarray]:
    """Turns kappa around where it points away from the reference's: k and -k say the same."""
    theirs, ours = reference.charts, maps.charts
    if theirs is None or ours is None or theirs.kappa_u is None or ours.kappa_u is None:
        return maps
    if theirs.kappa_v is None or ours.kappa_v is None:
        return maps
    along = theirs.kappa_u * ours.kappa_u + theirs.kappa_v * ours.kappa_v
    sign = np.where(along < 0, np.float32(-1), np.float32(1))
    charts = dataclasses.replace(ours, kappa_u=sign * ours.kappa_u, kappa_v=sign * ours.kappa_v)
    return dataclasses.replace(maps, charts=charts)
