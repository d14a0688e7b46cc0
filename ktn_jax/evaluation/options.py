"""Options of scoring."""

import dataclasses
from typing import Literal

import numpy as np

from ktn_jax.evaluation.precision_recall import similarity_thresholds

MODES = ("upstream", "ktn")


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """How detections are scored.

    Attributes:
        mode: "upstream" scores as today's detectron2, "ktn" as the KTNv2 code, which published
            KTN numbers come from.
        min_iou: lowest threshold of the averages over GPS, GPSm and IoU, in (0, 0.95].
        workers: scoring processes; None for one per available core, or none at all for few images.
        on_bad: "raise" stops at an annotation file with errors, "skip" leaves bad records out and
            notes how many.
        mesh_files: the user's own meshes, on which vertices are annotated, see `meshes.load_mesh`;
            others are known by name.
        categories: names of the categories that are scored, see `evaluation.categories` for
            several. A file with a single category may call it anything.
    """

    mode: Literal["upstream", "ktn"] = "upstream"
    min_iou: float = 0.5
    workers: int | None = None
    on_bad: Literal["raise", "skip"] = "raise"
    mesh_files: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("person",)

    def __post_init__(self) -> None:
        """Checks the options before any work is done.

        Raises:
            ValueError: an option is out of range.
        """
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {self.mode!r}")
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"categories must be different names, got {self.categories}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        similarity_thresholds(self.min_iou)

    @property
    def thresholds(self) -> np.ndarray:
        """[T] similarity thresholds from `min_iou` to 0.95."""
        return similarity_thresholds(self.min_iou)


DEFAULT_OPTIONS = ScoringOptions()
