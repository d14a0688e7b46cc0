"""The people of one photo, as arrays, pictures, records and files."""

import base64
import contextlib
import io
import os
import pathlib
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from PIL import Image

from ktn_jax.results import drawing, maps, pictures, records
from ktn_jax.results.categories import CATEGORY_NAMES
from ktn_jax.results.records import PersonResult
from ktn_jax.results.styles import StyleSettings
from ktn_jax.runtime import atomic_files, images

if TYPE_CHECKING:
    import supervision

_NOTEBOOK_SIDE = 800  # pixels: a notebook's width


class People(list[PersonResult]):
    """The people of one photo, best first.

    people = model("photo.jpg")
    people[0].box_xyxy, people[0].score
    people.boxes, people.scores, people.iuv, people.masks
    people.save("drawn.jpg", style="contour+bbox", background="black")

    A slice of them is `People` too. Notebooks show them as a picture and a table.
    """

    def __init__(
        self,
        people: Iterable[PersonResult] = (),
        photo: Any = None,
        image_size_hw: Sequence[int] | None = None,
    ):
        """Takes the people of a photo.

        Args:
            people: in its pixels.
            photo: a path, a PIL image or an array; None where it is not known. A photo in memory is
                not kept there: it can be drawn on while something else keeps it.
            image_size_hw: (height, width) of the photo; None to ask the photo when it is needed.
        """
        super().__init__(people)
        self._path = photo if isinstance(photo, (str, os.PathLike)) else None
        self._in_memory: weakref.ref[Any] | None = None
        self._size_hw = None if image_size_hw is None else tuple(image_size_hw)
        if photo is not None and self._path is None:
            with contextlib.suppress(TypeError):  # some objects that are arrays cannot be watched
                self._in_memory = weakref.ref(photo)
            if self._size_hw is None:
                self._size_hw = images.peek_size_hw(photo)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self._path, self._size_hw)

    def __repr__(self) -> str:
        scores = ", ".join(f"{person.score:.2f}" for person in self)
        return f"<People: {len(self)}{f', scores {scores}' if scores else ''}>"

    @overload
    def __getitem__(self, index: SupportsIndex) -> PersonResult: ...

    @overload
    def __getitem__(self, index: slice) -> "People": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "PersonResult | People":
        if isinstance(index, slice):
            return self.replaced(super().__getitem__(index))
        return super().__getitem__(index)

    def replaced(self, people: Iterable[PersonResult]) -> "People":
        """Other people of the same photo, such as those that a tracker has numbered."""
        return People(people, self._photo(), self._size_hw)

    def _photo(self) -> Any:
        return self._path if self._in_memory is None else self._in_memory()

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the photo.

        Raises:
            ValueError: they are not known.
        """
        if self._size_hw is None and self._path is not None:
            self._size_hw = images.peek_size_hw(self._path)
        if self._size_hw is None:
            raise ValueError("the photo's size is not known: give it, People(people, photo)")
        return self._size_hw[0], self._size_hw[1]

    @property
    def boxes(self) -> np.ndarray:
        """float32 [N, 4] xyxy in pixels of the photo."""
        return np.array([person.box_xyxy for person in self], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        """float32 [N]."""
        return np.array([person.score for person in self], np.float32)

    @property
    def keypoints(self) -> np.ndarray | None:
        """float32 [N, 17, 3], see `PersonResult`; None without people or where some have none."""
        found = [person.keypoints for person in self if person.keypoints is not None]
        return np.stack(found) if found and len(found) == len(self) else None

    @property
    def iuv(self) -> np.ndarray:
        """uint8 [H, W, 3] of the whole photo, as `NAME_iuv.png`, see `maps.paste_iuv`."""
        return maps.paste_iuv(self, self.image_size_hw)[0]

    @property
    def instances(self) -> np.ndarray:
        """[H, W] of the whole photo, as `NAME_instances.png`, see `maps.paste_iuv`."""
        return maps.paste_iuv(self, self.image_size_hw)[1]

    @property
    def masks(self) -> np.ndarray | None:
        """bool [N, H, W], each person's pixels, also those that someone else hides.

        They are those of the mask head, else those on which the IUV picture or the vertices show
        body; None if somebody has none of them.
        """
        if any(person.mask is None and person.is_body is None for person in self):
            return None
        masks = np.zeros((len(self), *self.image_size_hw), bool)
        for mask, person in zip(masks, self, strict=True):
            if person.mask is not None:
                person.mask.check_image_size(mask.shape)
                mask[person.mask.slices] = person.mask.mask
            elif person.is_body is not None:
                place, own = maps.overlap(person, self.image_size_hw)
                mask[place] = person.is_body[own]
        return masks

    def draw(self, style: str = pictures.OVERLAY, photo: Any = None, **options: Any) -> np.ndarray:
        """Draws the people over their photo.

        Args:
            style: a name of `results.pictures`, such as overlay, fine_segm or contour+bbox.
            photo: a path, a PIL image or an array; None for the one that the people were found in.
            **options: of `drawing.draw_people` for the overlay, else of `styles.StyleSettings`.

        Returns:
            [H, W, 3] uint8 RGB; of labels and instances [H, W].

        Raises:
            ValueError: the photo is not known any more, cannot be read, or an unknown style.
            TypeError: an unknown option, or a photo in the place of the style.
        """
        if not isinstance(style, str):
            kind = type(style).__name__
            raise TypeError(f"style: a name, got {kind}; people.draw(photo=...) takes the photo")
        photo = self._photo() if photo is None else photo
        if photo is None:
            raise ValueError("the photo is not known any more: give it, people.draw(photo=...)")
        if style == pictures.OVERLAY:
            return drawing.draw_people(images.to_image(photo), self, **options)
        settings = StyleSettings(**options)
        names = pictures.check_names([style], settings)
        ((_, drawn),) = pictures.draw_pictures(names, images.to_image(photo), self, settings)
        return drawn

    def save(
        self,
        path: str | os.PathLike[str],
        style: str = pictures.OVERLAY,
        photo: Any = None,
        **options: Any,
    ) -> None:
        """Saves a drawing, or with the suffix .json the people as a results file (image id 1).

        Args:
            path: the file to write; an older one is replaced.
            style: as `draw` takes it. The maps iuv, labels and instances need the suffix .png.
            photo: as `draw` takes it.
            **options: as `draw` takes them.

        Raises:
            ValueError: as `draw`, or an unknown suffix.
            FileNotFoundError: the folder does not exist.
        """
        path = pathlib.Path(path)
        suffix = path.suffix.lower()
        if suffix == ".json":
            records.write_results(path, self.to_records(with_confidences=True))
            return
        if suffix not in Image.registered_extensions():
            raise ValueError(f"{path}: give a name that ends as pictures do, or in .json")
        if style in pictures.MAPS:
            if suffix != ".png":
                raise ValueError(f"{path}: {style} needs every bit of it: give a name in .png")
            pictures.write_picture(path, style, self.draw(style, photo, **options))
            return
        picture = Image.fromarray(self.draw(style, photo, **options))
        with atomic_files.replacing(path) as temporary:
            picture.save(temporary)

    def to_records(self, image_id: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """The people in the DensePose-COCO results format, see `records.people_to_records`."""
        return records.people_to_records(image_id, self, **fields)

    def to_supervision(self) -> "supervision.Detections":
        """The people as detections of the package supervision, which is installed separately.

        Returns:
            Detections whose `class_id` is COCO's category id (1 is person), with `class_name` in
            their data, masks as `masks` has them, and `tracker_id` if all people have a number.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision  # large, and few need it
        except ImportError as error:
            raise ImportError(
                "to_supervision needs supervision: pip install supervision"
            ) from error
        categories = [person.category_id for person in self]
        tracks = [person.track_id for person in self if person.track_id is not None]
        names = [CATEGORY_NAMES.get(category, str(category)) for category in categories]
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks if self else None,
            confidence=self.scores,
            class_id=np.array(categories, int),
            tracker_id=np.array(tracks, int) if len(tracks) == len(self) else None,
            data={"class_name": np.array(names, str)},
        )

    def _repr_png_(self) -> bytes | None:
        """What notebooks show: the drawing, no larger than a notebook; None without the photo."""
        try:
            picture = Image.fromarray(self.draw())
        except (ValueError, OSError):  # the photo has gone
            return None
        picture.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        with io.BytesIO() as file:
            picture.save(file, format="png")
            return file.getvalue()

    def _repr_html_(self) -> str:
        """What notebooks show: the drawing and a table."""
        png = self._repr_png_()
        shown = ""
        if png is not None:
            shown = f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}"/>'
        header = "".join(f"<th>{name}</th>" for name in ("", "what", "score", "x0, y0, x1, y1"))
        rows = []
        for number, person in zip(maps.person_numbers(self), self, strict=True):
            what = CATEGORY_NAMES.get(person.category_id, str(person.category_id))
            box = ", ".join(f"{value:.1f}" for value in person.box_xyxy)
            cells = (str(number), what, f"{person.score:.3f}", box)
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
        lines = "".join(f"<tr>{row}</tr>" for row in (header, *rows))
        return f"<div>{shown}<table>{lines}</table></div>"
