"""Masks that are kept as the part of an image that holds them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ktn_jax.runtime import rle


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedMask:
    """A mask and its position, within the image.

    Attributes:
        top: row of the image of the mask's first row.
        left: column of the image of the mask's first column.
        mask: [h, w] bool.
        image_size_hw: of the image.
    """

    top: int
    left: int
    mask: np.ndarray
    image_size_hw: tuple[int, int]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image that `mask` covers."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def check_image_size(self, image_size_hw: tuple[int, ...]) -> None:
        """Raises ValueError if the mask is not of an image of this size, (height, width)."""
        if tuple(self.image_size_hw) != tuple(image_size_hw):
            raise ValueError(
                f"a person's mask is of an image of {self.image_size_hw} (height, width), not of "
                f"{tuple(image_size_hw)}"
            )

    def whole(self) -> np.ndarray:
        """The mask on the whole image, [H, W] bool."""
        canvas = np.zeros(self.image_size_hw, bool, order="F")
        canvas[self.slices] = self.mask
        return canvas

    def to_rle(self) -> dict[str, Any]:
        """Encodes the mask on the whole image, in COCO's compressed format; counts are text."""
        encoded = coco_mask.encode(self.whole().view(np.uint8))
        return {"size": list(self.image_size_hw), "counts": encoded["counts"].decode("ascii")}

    @classmethod
    def from_rle(cls, encoded: Mapping[str, Any]) -> "PlacedMask":
        """Decodes a mask of COCO's format, of any origin.

        Raises:
            ktn_jax.runtime.rle.RleError: it describes no mask.
        """
        return cls.from_whole(rle.decode_rle(encoded))

    @classmethod
    def from_whole(cls, whole: np.ndarray) -> "PlacedMask":
        """Cuts a mask on the whole image, [H, W], to the part that holds it."""
        rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
        size_hw = (whole.shape[0], whole.shape[1])
        if not len(rows):
            return cls(0, 0, np.zeros((0, 0), bool), size_hw)
        top, left = int(rows[0]), int(columns[0])
        part = whole[top : rows[-1] + 1, left : columns[-1] + 1]
        return cls(top, left, part.copy(), size_hw)
