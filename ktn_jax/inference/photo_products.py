"""What is written for each photo beside its people in the results file."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ktn_jax.body.surface import Template
from ktn_jax.inference.vertex_charts import VertexCharts
from ktn_jax.results import confidence_pictures, dumps, pictures
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import StyleSettings

USUAL_PICTURES = ("iuv", "instances", pictures.OVERLAY)
CONFIDENCE_ENDING = "_confidence.jpg"


@dataclasses.dataclass(frozen=True)
class Products:
    """The files of a photo.

    Attributes:
        pictures: names of `results.pictures`, written besides the usual ones.
        settings: of detectron2's styles.
        with_confidences: of a model that predicts them, a picture of confidences.
        with_dump: all arrays, see `results.dumps`.
        template: adds its vertices to the dump.
        charts: of a model with vertices, gives its people IUV pictures.

    Raises:
        ValueError: an unknown picture, or a style without the picture that it needs.
    """

    pictures: tuple[str, ...] = ()
    settings: StyleSettings = dataclasses.field(default_factory=StyleSettings)
    with_confidences: bool = False
    with_dump: bool = False
    template: Template | None = None
    charts: VertexCharts | None = None

    def __post_init__(self) -> None:
        """Checks the pictures, and adds the usual ones."""
        names = pictures.check_names((*USUAL_PICTURES, *self.pictures), self.settings)
        object.__setattr__(self, "pictures", names)

    @property
    def endings(self) -> tuple[str, ...]:
        """How the names of the files end."""
        return (
            *map(pictures.ending, self.pictures),
            *((CONFIDENCE_ENDING,) if self.with_confidences else ()),
            *(dumps.ENDINGS if self.with_dump else ()),
        )

    def options(self) -> list[Any]:
        """JSON values that differ where the files would.

        Raises:
            OSError: a file of a mesh cannot be read.
        """
        body = None
        if self.template is not None:
            arrays = (self.template.vertices, self.template.chart_uv, self.template.chart_faces)
            body = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        charts = None if self.charts is None else self.charts.digest
        drawn = [list(self.pictures), self.settings.facts()]
        return [*drawn, self.with_confidences, self.with_dump, body, charts]

    def write(
        self,
        folder: pathlib.Path,
        output_name: str,
        image: np.ndarray,
        dump: dumps.Dump,
        with_charts: bool,
    ) -> None:
        """Writes the files of a photo, or none of them.

        Args:
            folder: that exists.
            output_name: the files' names begin with it.
            image: uint8 [H, W, 3] RGB.
            dump: its people, best first, and what the photo is called.
            with_charts: False for a model without DensePose, which has no map of I, U and V.
        """
        people: Sequence[PersonResult] = dump.people
        names = [name for name in self.pictures if with_charts or name not in ("iuv", "labels")]
        with pictures.remove_unless_done([folder / f"{output_name}{e}" for e in self.endings]):
            pictures.write_pictures(folder, output_name, names, image, people, self.settings)
            if self.with_confidences:
                drawn = confidence_pictures.draw_confidences(image, people)
                pictures.write_jpeg(folder / f"{output_name}{CONFIDENCE_ENDING}", drawn)
            if self.with_dump:
                dumps.write_dump(folder, output_name, dump, self.template)
