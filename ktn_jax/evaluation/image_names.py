"""Whether the file names of results and of annotations mean the same images."""

import pathlib
import re
from collections.abc import Iterable

# Releases of COCO differ in the prefix of the number: COCO_val2014_000000000785.jpg.
_COCO_PREFIX = re.compile(r"COCO_\w+?_(?=\d)")


class AnnotatedNames:
    """The file names of annotated images, to be compared with those of results.

    Names are the same if their last parts are, apart from suffix, COCO's prefix and leading zeros.
    Folders count only where they tell annotated images of the same name apart: photos are often
    kept elsewhere than an annotation file says.
    """

    def __init__(self, names: Iterable[tuple[int, str]]):
        """Takes image ids with file names."""
        self._by_id = dict(names)
        self._by_last: dict[str, list[int]] = {}
        for image_id, name in self._by_id.items():
            self._by_last.setdefault(_last_part(name), []).append(image_id)

    def contradicts(self, image_id: int, given: str) -> bool:
        """Whether a file name shows that its image is not the annotated one of this id.

        Args:
            image_id: of the annotations.
            given: path or name of the image that a result is of.
        """
        same_name = self._by_last.get(_last_part(given), [])
        if image_id not in same_name:
            return True
        shared = {other: _shared_folders(given, self._by_id[other]) for other in same_name}
        return shared[image_id] < max(shared.values())


def _parts(name: str) -> tuple[str, ...]:
    return pathlib.PurePosixPath(name.replace("\\", "/")).parts


def _last_part(name: str) -> str:
    parts = _parts(name)
    stem = pathlib.PurePosixPath(parts[-1]).stem if parts else ""
    stem = _COCO_PREFIX.sub("", stem, count=1)
    return stem.lstrip("0") if stem.isdecimal() else stem


def _shared_folders(given: str, annotated: str) -> int:
    """How many folders before the name are the same, from the name on."""
    count = 0
    for ours, theirs in zip(_parts(given)[-2::-1], _parts(annotated)[-2::-1], strict=False):
        if ours != theirs:
            break
        count += 1
    return count
