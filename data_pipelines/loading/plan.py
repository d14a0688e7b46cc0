"""Which images make up which batch, by index arithmetic alone.

A batch is a function of (seed, step): no state, so a run resumes at step k by asking for step k. An
epoch's plan is a few sorts of image numbers; no image is read to make it.

Shapes. XLA compiles once for each shape, so images are padded to a few canvases. A canvas belongs
to an orientation, a bin of aspect ratios and a level of the short side. A batch has one canvas.

Random numbers are raw values of counter-based Philox streams, keyed by (seed, epoch, purpose):
NumPy promises that these stay the same from version to version, but not its permutations.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from ktn_jax.runtime.images import shortest_edge_size

# Purposes of the random streams.
_ORDER, _SHORT_SIDE, _FLIP, _ROTATION, _ZOOM, _BATCH_ORDER = range(6)
_CHOICE = 16  # which images of a source with a fractional weight
_COLOURS, _POINTS = (6, 7, 8), 9  # brightness, contrast and saturation; points of pictures


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is varied from epoch to epoch, and the shapes that follow from it."""

    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_long_side: int = 1333
    flip_probability: float = 0.5
    max_rotation_degrees: float = 0.0
    zoom_range: tuple[float, float] = (1.0, 1.0)
    colour_jitter: float = 0.0  # largest change of brightness, contrast and saturation, of 1
    aspect_limits: tuple[float, ...] = (1.0, 1.35)  # COCO: square, 4:3, and the rest
    canvas_levels: int = 2  # canvases for each aspect bin; one for every so many short sides
    size_divisor: int = 32  # canvas sides are multiples: the coarsest stride that must divide them

    def __post_init__(self) -> None:
        """Checks the values; ValueError names the field."""
        if not self.short_sides or min(self.short_sides) <= 0:
            raise ValueError(f"short_sides must be positive, got {self.short_sides}")
        if self.max_long_side < max(self.short_sides):
            raise ValueError(
                f"max_long_side {self.max_long_side} is below short side {max(self.short_sides)}"
            )
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be in 0..1, got {self.flip_probability}")
        if not 0 < self.zoom_range[0] <= self.zoom_range[1]:
            raise ValueError(f"zoom_range must be (low, high) above 0, got {self.zoom_range}")
        if not 0 <= self.colour_jitter < 1:
            raise ValueError(f"colour_jitter must be in 0..1, below 1, got {self.colour_jitter}")
        if any(limit < 1 for limit in self.aspect_limits):
            raise ValueError(f"aspect_limits are long / short, >= 1, got {self.aspect_limits}")
        if self.canvas_levels < 1 or self.size_divisor < 1:
            raise ValueError("canvas_levels and size_divisor must be at least 1")


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """One global batch, whose rows are images."""

    examples: np.ndarray  # [B] int64 number of the image in its source
    resized_hw: np.ndarray  # [B, 2] int64 size after resizing
    is_flipped: np.ndarray  # [B] bool
    rotation_degrees: np.ndarray  # [B] float64
    zoom: np.ndarray  # [B] float64
    colours: np.ndarray  # [B, 3] float64 factors of brightness, contrast and saturation
    point_seeds: np.ndarray  # [B] uint64, of points that are drawn from pictures of labels
    canvas_hw: tuple[int, int]  # what all are padded to


def canvases_for(augmentation: Augmentation) -> tuple[tuple[int, int], ...]:
    """Lists every canvas (height, width) that batches can have, smallest area first."""
    limits = (*augmentation.aspect_limits, math.inf)
    levels = np.array_split(sorted(augmentation.short_sides), augmentation.canvas_levels)
    canvases = set()
    for short_side in (int(level[-1]) for level in levels if len(level)):
        for limit in limits:
            # The rounding of the resize, so that the longest image of the bin fits to the pixel.
            long_side = min(short_side * limit, augmentation.max_long_side) + 0.5
            sides = [_round_up(side, augmentation) for side in (short_side, int(long_side))]
            canvases |= {(sides[0], sides[1]), (sides[1], sides[0])}
    return tuple(sorted(canvases, key=lambda hw: (hw[0] * hw[1], hw)))


def _round_up(side: int, augmentation: Augmentation) -> int:
    return -(-side // augmentation.size_divisor) * augmentation.size_divisor


def resized_sizes_hw(
    sizes_hw: np.ndarray, short_sides: np.ndarray, max_long_side: int
) -> np.ndarray:
    """`shortest_edge_size` of many images: sizes [N, 2] and short sides [N] to sizes [N, 2]."""
    wanted = np.column_stack([sizes_hw, short_sides])
    distinct, place = np.unique(wanted, axis=0, return_inverse=True)
    resized = [
        shortest_edge_size((height, width), short_side, max_long_side)
        for height, width, short_side in distinct.tolist()
    ]
    return np.asarray(resized, np.int64).reshape(-1, 2)[place.reshape(-1)]


class TrainingPlan:
    """The endless order of training batches.

    In an epoch every image comes once, or as often as its weight says: with weight 2.25 twice, and
    a quarter of the images of that weight, drawn anew for every epoch, a third time. Each time is a
    row with its own augmentation, and fewer than `batch_size` rows repeat others to fill the last
    batches. Images of one aspect bin fill batches together; what is left over in the bins is put
    together by orientation. If what is then left of both orientations fits one batch, it holds them
    all, and those that fit no common canvas are made smaller: fewer than `batch_size` images an
    epoch. So batches need no further canvas and an epoch always has the same number of steps, which
    makes (epoch, batch) of a step a division.
    """

    def __init__(
        self,
        sizes_hw: np.ndarray,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        weights: np.ndarray | None = None,
    ):
        """Plans over images.

        Args:
            sizes_hw: [N, 2] height and width of every image.
            augmentation: what is varied.
            batch_size: of all processes together.
            seed: of everything random.
            weights: [N] how often an epoch has each image; None for once.

        Raises:
            ValueError: no image, or none with a weight that brings it into an epoch, or a batch
                size below 1.
        """
        self._sizes_hw = np.asarray(sizes_hw, np.int64).reshape(-1, 2)
        if not len(self._sizes_hw) or batch_size < 1:
            raise ValueError(f"got {len(self._sizes_hw)} images, batch_size {batch_size}")
        self._augmentation = augmentation
        self._batch_size = batch_size
        self._seed = seed
        self.canvases = canvases_for(augmentation)
        self._is_portrait, self._bins = _aspect_bins(self._sizes_hw, augmentation.aspect_limits)
        # Rounding for each weight makes the number of rows that of every epoch.
        weights = np.ones(len(self._sizes_hw)) if weights is None else weights
        self._weights, self._weight_of, counts = np.unique(
            weights, return_inverse=True, return_counts=True
        )
        self._rows_of_weight = (self._weights * counts + 0.5).astype(np.int64)
        rows = int(self._rows_of_weight.sum())
        if not rows:
            raise ValueError(f"weights {self._weights} bring none of {len(weights)} images")
        self.steps_per_epoch = -(-rows // batch_size)
        # Two epochs: batches of the next one are asked for while the last of this one are made.
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __getitem__(self, step: int) -> PlannedBatch:
        """The batch of a step, counted from 0 at the start of training."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _raw(self, epoch: int, purpose: int, count: int) -> np.ndarray:
        """[count] uint64 of one stream."""
        key = [self._seed & (2**64 - 1), (epoch << 8) | purpose]
        return np.random.Philox(key=np.array(key, np.uint64)).random_raw(count)

    def _uniform(self, epoch: int, purpose: int, count: int) -> np.ndarray:
        """[count] float64 in [0, 1)."""
        return (self._raw(epoch, purpose, count) >> np.uint64(11)) * 2.0**-53

    def _images_of(self, epoch: int) -> np.ndarray:
        """[R] the image of each row of an epoch, ascending."""
        times = np.floor(self._weights).astype(np.int64)[self._weight_of]
        priority = self._raw(epoch, _CHOICE, len(times))
        for number, rows in enumerate(self._rows_of_weight):
            members = np.flatnonzero(self._weight_of == number)
            once_more = np.argsort(priority[members], kind="stable")[: rows - times[members].sum()]
            times[members[once_more]] += 1
        return np.repeat(np.arange(len(times)), times)

    def _plan_epoch(self, epoch: int) -> tuple[PlannedBatch, ...]:
        settings = self._augmentation
        images = self._images_of(epoch)
        count = len(images)
        short_sides = np.asarray(settings.short_sides)
        choice = (self._uniform(epoch, _SHORT_SIDE, count) * len(short_sides)).astype(np.int64)
        resized = resized_sizes_hw(
            self._sizes_hw[images], short_sides[choice], settings.max_long_side
        )
        is_flipped = self._uniform(epoch, _FLIP, count) < settings.flip_probability
        rotation = (2 * self._uniform(epoch, _ROTATION, count) - 1) * settings.max_rotation_degrees
        low, high = np.log(settings.zoom_range)  # as often half the size as twice
        zoom = np.exp(low + (high - low) * self._uniform(epoch, _ZOOM, count))
        jitter = [self._uniform(epoch, purpose, count) for purpose in _COLOURS]
        colours = 1 + (2 * np.stack(jitter, axis=-1) - 1) * settings.colour_jitter
        point_seeds = self._raw(epoch, _POINTS, count)
        batches = []
        for rows in self._group(epoch, images, resized):
            canvas_hw = _smallest_canvas(self.canvases, resized[rows])
            batches.append(
                PlannedBatch(
                    examples=images[rows],
                    resized_hw=_shrink_to(resized[rows], canvas_hw),
                    is_flipped=is_flipped[rows],
                    rotation_degrees=rotation[rows],
                    zoom=zoom[rows],
                    colours=colours[rows],
                    point_seeds=point_seeds[rows],
                    canvas_hw=canvas_hw,
                )
            )
        order = np.argsort(self._raw(epoch, _BATCH_ORDER, len(batches)), kind="stable")
        return tuple(batches[index] for index in order)

    def _group(self, epoch: int, images: np.ndarray, resized: np.ndarray) -> list[np.ndarray]:
        """Splits the epoch's rows into arrays of batch_size that need similar canvases."""
        order = np.argsort(self._raw(epoch, _ORDER, len(images)), kind="stable")
        is_tall, bins = self._is_portrait[images], self._bins[images]
        batches: list[np.ndarray] = []
        leftovers = []
        for is_portrait in (False, True):
            rest = []
            for aspect_bin in range(len(self._augmentation.aspect_limits) + 1):
                is_member = (is_tall == is_portrait) & (bins == aspect_bin)
                members = order[is_member[order]]
                # Stable by size: rows of a level meet, in an order that is still random.
                level = self._level(resized[members].min(axis=1))
                rest.append(self._take_full(members[np.argsort(level, kind="stable")], batches))
            leftovers.append(self._take_full(np.concatenate(rest), batches))
        # Each orientation fills a batch of its own, unless one batch holds them both.
        together = np.concatenate(leftovers)
        last = leftovers if len(together) > self._batch_size else [together]
        return batches + [self._fill_up(rest, order, is_tall) for rest in last if len(rest)]

    def _fill_up(self, members: np.ndarray, order: np.ndarray, is_tall: np.ndarray) -> np.ndarray:
        """Repeats rows in the orientation of most members until these are a batch."""
        is_portrait = is_tall[members].mean() > 0.5
        others = order[(is_tall[order] == is_portrait) & ~np.isin(order, members)]
        repeats = others if len(others) else members
        return np.concatenate([members, np.resize(repeats, self._batch_size - len(members))])

    def _level(self, short_side: np.ndarray) -> np.ndarray:
        """[M] canvas level of short sides."""
        split = np.array_split(
            sorted(self._augmentation.short_sides), self._augmentation.canvas_levels
        )
        return np.searchsorted([part[-1] for part in split if len(part)], short_side)

    def _take_full(self, members: np.ndarray, batches: list[np.ndarray]) -> np.ndarray:
        """Moves full batches from the front of `members` to `batches`; returns what is left."""
        full = len(members) // self._batch_size * self._batch_size
        batches += np.split(members[:full], full // self._batch_size) if full else []
        return members[full:]


def _aspect_bins(sizes_hw: np.ndarray, limits: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """[N] whether each image is taller than wide, and [N] its bin of long / short side."""
    height, width = sizes_hw.astype(np.float64).T
    aspect = np.maximum(height, width) / np.minimum(height, width)
    return height > width, np.searchsorted(np.asarray(limits), aspect)


def _smallest_canvas(canvases: Sequence[tuple[int, int]], sizes_hw: np.ndarray) -> tuple[int, int]:
    """The smallest canvas that fits all sizes [B, 2]; else the one that shrinks the fewest."""
    needed = sizes_hw.max(axis=0)
    for canvas in canvases:
        if needed[0] <= canvas[0] and needed[1] <= canvas[1]:
            return canvas
    shrinkage = np.array([_shrinkage(sizes_hw, canvas) for canvas in canvases])
    return canvases[int(np.lexsort((-shrinkage.mean(axis=1), (shrinkage < 1).sum(axis=1)))[0])]


def _shrinkage(sizes_hw: np.ndarray, canvas_hw: tuple[int, int]) -> np.ndarray:
    """[B] the factor, at most 1, by which each image must shrink to fit."""
    factor: np.ndarray = (np.asarray(canvas_hw) / sizes_hw).min(axis=-1)
    return factor.clip(max=1)


def _shrink_to(sizes_hw: np.ndarray, canvas_hw: tuple[int, int]) -> np.ndarray:
    shrunk: np.ndarray = sizes_hw * _shrinkage(sizes_hw, canvas_hw)[:, None]
    return shrunk.astype(np.int64).clip(min=1)
