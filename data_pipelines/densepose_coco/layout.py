"""The layout of the folder that a user fills by hand with the files of a dataset."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

_SHOWN = 3  # files named in a message


class MissingFilesError(ValueError):
    """Files that only the user can fetch are missing; the message says where each belongs."""


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """The annotation file of a split, under any of its published names, and its image folder."""

    annotations: tuple[str, ...]  # relative to the manual folder; the first name that is there
    images: str


COCO_SPLITS: Mapping[str, SplitFiles] = {
    "train": SplitFiles(
        ("annotations/densepose_train2014.json", "annotations/densepose_coco_2014_train.json"),
        "train2014",
    ),
    "valminusminival": SplitFiles(
        (
            "annotations/densepose_valminusminival2014.json",
            "annotations/densepose_coco_2014_valminusminival.json",
        ),
        "val2014",
    ),
    "minival": SplitFiles(
        ("annotations/densepose_minival2014.json", "annotations/densepose_coco_2014_minival.json"),
        "val2014",
    ),
}

ULTRAPOSE_SPLITS: Mapping[str, SplitFiles] = {
    "train": SplitFiles(("annotations/densepose_train2014.json",), "train2014"),
    "valminusminival": SplitFiles(("annotations/densepose_valminusminival2014.json",), "val2014"),
}

INSTRUCTIONS = """\
densepose_coco_2014 needs, in the manual folder:
  annotations/densepose_train2014.json            (or densepose_coco_2014_train.json)
  annotations/densepose_valminusminival2014.json  (or densepose_coco_2014_valminusminival.json)
  annotations/densepose_minival2014.json          (or densepose_coco_2014_minival.json)
      from the DensePose project's download page
  train2014/COCO_train2014_*.jpg, val2014/COCO_val2014_*.jpg
      unpacked from COCO's train2014.zip and val2014.zip
ultrapose needs, in the manual folder:
  annotations/densepose_train2014.json, annotations/densepose_valminusminival2014.json
  train2014/, val2014/
      unpacked from the UltraPose archive
custom takes any folder in the format:
  annotations.json and images/            (one split, named train), or
  annotations/SPLIT.json and images/      (a split for each file; images/SPLIT/ where it exists)
"""


@dataclasses.dataclass(frozen=True)
class FoundSplit:
    """A split whose files are there."""

    annotations: pathlib.Path
    images: pathlib.Path


def find_splits(
    manual_dir: pathlib.Path, splits: Mapping[str, SplitFiles]
) -> dict[str, FoundSplit]:
    """Finds the files of every split.

    Args:
        manual_dir: the folder that the user filled.
        splits: what should be in it; empty for a folder of the user's own.

    Returns:
        Annotation file and image folder by split.

    Raises:
        MissingFilesError: something is not there; all that is missing is named.
    """
    if not splits:
        return _find_custom(manual_dir)
    found, missing = {}, []
    for name, files in splits.items():
        present = [path for path in files.annotations if (manual_dir / path).is_file()]
        if not present:
            missing.append(" or ".join(files.annotations))
        if not (manual_dir / files.images).is_dir():
            missing.append(f"{files.images}/")
        if present:
            found[name] = FoundSplit(manual_dir / present[0], manual_dir / files.images)
    _raise_if_missing(manual_dir, missing)
    return found


def _find_custom(manual_dir: pathlib.Path) -> dict[str, FoundSplit]:
    images = manual_dir / "images"
    if (manual_dir / "annotations.json").is_file():
        found = {"train": FoundSplit(manual_dir / "annotations.json", images)}
    else:
        found = {
            path.stem: FoundSplit(
                path, images / path.stem if (images / path.stem).is_dir() else images
            )
            for path in sorted((manual_dir / "annotations").glob("*.json"))
        }
    missing = [] if found else ["annotations.json or annotations/SPLIT.json"]
    if not images.is_dir():
        missing.append("images/")
    _raise_if_missing(manual_dir, missing)
    return found


def find_annotation_files(folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path | None]:
    """Finds the annotation files that a folder holds, to check them all.

    Args:
        folder: laid out as for a build, or with any JSON files.

    Returns:
        By annotation file its image folder, None where there is none: annotations.json, or else
        annotations/*.json, or else *.json.

    Raises:
        MissingFilesError: there is no such file; those in its sub-folders are named.
    """
    for pattern in ("annotations.json", "annotations/*.json", "*.json"):
        files = sorted(folder.glob(pattern))
        if files:
            return {file: _image_folder(folder, file) for file in files}
    deeper = sorted(folder.glob("*/*.json")) or sorted(folder.glob("*/annotations/*.json"))
    advice = f"; did you mean {', '.join(map(str, deeper[:_SHOWN]))}?" if deeper else ""
    raise MissingFilesError(
        f"{folder} is a folder without annotations.json, annotations/*.json or *.json: name the "
        f"annotation file{advice}"
    )


def _image_folder(folder: pathlib.Path, annotations: pathlib.Path) -> pathlib.Path | None:
    """The folder of a file's images: where a published set has it, images/SPLIT/ or images/."""
    published = [
        files.images
        for files in (*COCO_SPLITS.values(), *ULTRAPOSE_SPLITS.values())
        if any(pathlib.PurePosixPath(name).name == annotations.name for name in files.annotations)
    ]
    names = [*published, f"images/{annotations.stem}", "images"]
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _raise_if_missing(manual_dir: pathlib.Path, missing: Sequence[str]) -> None:
    if missing:
        listed = "\n".join(f"  {manual_dir}/{path}" for path in dict.fromkeys(missing))
        raise MissingFilesError(f"not there:\n{listed}\n{INSTRUCTIONS}")
