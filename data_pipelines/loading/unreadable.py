"""What becomes of images that cannot be read while a run trains on them.

Another image takes the place of one that cannot be read: a row without people would train too, the
detector on background and batch norms on black, and smaller batches would be further shapes to
compile. Which one it is depends on nothing but the files, so that a resumed run, another loader or
another number of workers makes the same batches.
"""

import logging
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from ktn_jax.data_pipelines.coco.annotations import is_above_ceiling
from ktn_jax.data_pipelines.loading.sources import SourceError

_LOG = logging.getLogger(__name__)
_SHOWN = 3  # images named in a message


class StandIns:
    """Which images take the place of one that cannot be read."""

    def __init__(self, sizes_hw: np.ndarray):
        """Takes [N, 2], height and width of every image of the source."""
        self._sizes_hw = np.asarray(sizes_hw)
        self._is_portrait = self._sizes_hw[:, 0] > self._sizes_hw[:, 1]

    def after(self, example: int) -> Iterator[int]:
        """Yields the images to try: the next ones of the same orientation, then all others.

        Args:
            example: number of the image that cannot be read.

        Yields:
            Numbers of images in the order of the source, from its start after its end.
        """
        others = np.roll(np.arange(len(self._sizes_hw)), -example - 1)[:-1]
        is_alike = self._is_portrait[others] == self._is_portrait[example]
        yield from others[is_alike].tolist()
        yield from others[~is_alike].tolist()

    def resized_hw(
        self, example: int, planned_hw: tuple[int, int], canvas_hw: tuple[int, int]
    ) -> tuple[int, int]:
        """The size for an image in place of one that was to be resized to `planned_hw`.

        Args:
            example: number of the image that can be read.
            planned_hw: (height, width) of the other one after resizing.
            canvas_hw: what the image must fit into.

        Returns:
            (height, width): short side as planned, or shorter so that the image fits.
        """
        size_hw = self._sizes_hw[example].tolist()
        scale = min(
            min(planned_hw) / min(size_hw), canvas_hw[0] / size_hw[0], canvas_hw[1] / size_hw[1]
        )
        height, width = (max(int(side * scale + 0.5), 1) for side in size_hw)
        return min(height, canvas_hw[0]), min(width, canvas_hw[1])


class UnreadableImages:
    """Counts images that could not be read, names each once, and stops a run with too many."""

    def __init__(self, num_images: int, max_fraction: float):
        """Takes the ceiling.

        Args:
            num_images: in the source.
            max_fraction: share of them that may be unreadable; one always may.
        """
        self._num_images = num_images
        self._max_fraction = max_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def add(self, reasons: Mapping[int, str]) -> None:
        """Adds images, from any thread.

        Args:
            reasons: why an image cannot be read, with its file, by number in the source.

        Raises:
            SourceError: there are too many.
        """
        with self._lock:
            for example in reasons.keys() - self._reasons.keys():
                self._reasons[example] = reasons[example]
                count = len(self._reasons)
                share = f"{count} of {self._num_images} images cannot be read"
                if is_above_ceiling(count, self._max_fraction, self._num_images):
                    shown = "\n".join(list(self._reasons.values())[:_SHOWN])
                    raise SourceError(
                        f"{share}, above max_skipped_fraction={self._max_fraction:g}, such as\n"
                        f"{shown}"
                    )
                _LOG.warning("left out: %s (%s)", reasons[example], share)
