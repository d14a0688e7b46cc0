"""Builds the TFDS dataset `densepose_coco` and reads it back in any order.

The only module, with the builder itself, that needs TensorFlow Datasets.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

try:
    import tensorflow_datasets as tfds
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"TFDS datasets need TensorFlow Datasets ({error}): `pip install 'ktn_jax[tfds]'`, or read "
        "annotation files as they are, data.source=densepose_coco",
        name=error.name,
    ) from error

from ktn_jax.data_pipelines.coco.annotations import (
    DensePoseRecord,
    ImageFacts,
    ImageRecord,
    PersonRecord,
)
from ktn_jax.data_pipelines.coco.checks import PERSON
from ktn_jax.data_pipelines.densepose_coco import layout, origin
from ktn_jax.data_pipelines.densepose_coco.densepose_coco_dataset_builder import Builder
from ktn_jax.data_pipelines.loading.sources import SourceError
from ktn_jax.runtime import progress, stores
from ktn_jax.runtime.images import decode_image

# The format whose examples can be read in any order, which the plan of a batch needs.
_FILE_FORMAT = "array_record"


@dataclasses.dataclass(frozen=True)
class BuiltDataset:
    """A built dataset.

    Attributes:
        splits: by name the number of images and of what was skipped.
        was_complete: whether it was there already, made of the same files and options.
    """

    splits: dict[str, dict[str, Any]]
    was_complete: bool


def build(
    config: str,
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    on_bad: Literal["raise", "skip"] = "raise",
    max_skipped_fraction: float = 0.01,
    overwrite: bool = False,
    categories: Sequence[str] = (PERSON,),
) -> BuiltDataset:
    """Builds a dataset from local files; downloads nothing.

    Args:
        config: densepose_coco_2014, ultrapose or custom.
        manual_dir: folder with annotations and images; `docs/data.md` says which go where.
        data_dir: folder to build in. The same dataset, if it is built there, is left as it is.
        on_bad: "raise" stops at a bad record; "skip" leaves it out.
        max_skipped_fraction: share of bad records above which skipping stops too.
        overwrite: replace a dataset that was made of other files, once this one is complete.
        categories: names of those to take, in the order of the classes.

    Returns:
        The dataset's splits.

    Raises:
        MissingFilesError: a file is not there; all of them are named.
        DatasetError: bad records, or too many to skip.
        ValueError: an unknown config; or the folder holds a dataset of other files or options.
    """
    builder = _builder(config, data_dir)
    builder.on_bad = on_bad
    builder.max_skipped_fraction = max_skipped_fraction
    builder.categories = tuple(categories)
    built = pathlib.Path(builder.data_path)
    was_complete = built.is_dir()
    if was_complete:
        changes = _explain_changes(builder, pathlib.Path(manual_dir))
        if changes and not overwrite:
            raise ValueError(
                f"{built} was built of other files: {'; '.join(changes)}. Build it again with "
                "overwrite (--overwrite), or name another folder (--data-dir)"
            )
        was_complete = not changes
    if not was_complete:
        _prepare(builder, manual_dir)
    splits = {
        split: {"images": len(facts["image_ids"]), "skipped": facts["skipped"]}
        for split, facts in _builder(config, data_dir).info.metadata.items()
    }
    return BuiltDataset(splits, was_complete)


def _explain_changes(builder: Builder, manual_dir: pathlib.Path) -> list[str]:
    files = layout.find_splits(manual_dir, builder.builder_config.splits)
    metadata = builder.info.metadata or {}
    made_of = {split: facts.get("made_of", {}) for split, facts in metadata.items()}
    return origin.explain_changes(made_of, builder.describe_splits(files), files)


def _prepare(builder: Builder, manual_dir: str | os.PathLike[str]) -> None:
    """Builds beside the place of the dataset, and puts it there when it is complete."""
    built = pathlib.Path(builder.data_path)
    root = pathlib.Path(builder.data_dir_root)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=root) as folder:
        fresh = _builder(builder.builder_config.name, folder)
        fresh.on_bad, fresh.max_skipped_fraction = builder.on_bad, builder.max_skipped_fraction
        fresh.categories = builder.categories
        download_config = tfds.download.DownloadConfig(
            manual_dir=os.fspath(manual_dir), try_download_gcs=False
        )
        if not progress.has_bars():
            tfds.disable_progress_bar()
        fresh.download_and_prepare(download_config=download_config, file_format=_FILE_FORMAT)
        built.parent.mkdir(parents=True, exist_ok=True)
        if built.is_dir():
            os.replace(built, pathlib.Path(folder) / "old")
        os.replace(fresh.data_path, built)


def _builder(config: str, data_dir: str | os.PathLike[str]) -> Builder:
    names = [known.name for known in Builder.BUILDER_CONFIGS]
    if config not in names:
        raise ValueError(f"config must be one of {names}, got {config!r}")
    return Builder(config=config, data_dir=os.fspath(data_dir), file_format=_FILE_FORMAT)


class TfdsSource:
    """One split of a built dataset, read in any order and without TensorFlow's graph."""

    def __init__(self, config: str, split: str, data_dir: str | os.PathLike[str]):
        """Opens a split that `build` made.

        Args:
            config: as for `build`.
            split: train, valminusminival, minival, or a custom one.
            data_dir: as for `build`, or an address of a store, from which the whole is fetched into
                our caches.

        Raises:
            ValueError: it is not built, or has no such split.
        """
        # ArrayRecord reads local files only. Worker processes open those of this one.
        data_dir = stores.fetched(data_dir, only=f"{Builder.name}/{config}")
        self._arguments = (config, split, os.fspath(data_dir))
        builder = _builder(config, data_dir)
        if not pathlib.Path(builder.data_path).is_dir():
            raise ValueError(
                f"{builder.data_path} is not there: run `ktn data build` first (one that "
                "another version built is not read)"
            )
        if split not in builder.info.splits:
            raise ValueError(f"split must be one of {list(builder.info.splits)}, got {split!r}")
        # The image stays as bytes: `runtime.images` decodes it, as it does every other image.
        self._rows = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        self._metadata = builder.info.metadata[split]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as its arguments: a worker process opens the files itself."""
        return TfdsSource, self._arguments

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ImageRecord]:
        row = self._rows[index]
        record = _to_record(row)
        if record.image_id != self._metadata["image_ids"][index]:
            config, split, data_dir = self._arguments
            raise SourceError(
                f"{data_dir} {config}/{split}: example {index} is image {record.image_id}, its "
                f"metadata say {self._metadata['image_ids'][index]}: build the dataset again"
            )
        size_hw = (record.height, record.width)
        return decode_image(row["image"], record.file_name, size_hw), record

    def facts(self) -> ImageFacts:
        """Sizes and numbers of people, from the dataset's metadata."""
        return ImageFacts(
            sizes_hw=np.asarray(self._metadata["sizes_hw"], np.int32).reshape(-1, 2),
            people=np.asarray(self._metadata["people"], np.int32),
            max_points=self._metadata["max_points"],
            all_annotated=self._metadata["all_annotated"],
            with_keypoints=np.asarray(self._metadata["with_keypoints"], np.int32),
            with_surface=np.asarray(self._metadata["with_surface"], np.int32),
            vertices=self._metadata["vertices"],
        )


def _to_record(row: dict[str, Any]) -> ImageRecord:
    people, points = row["people"], row["points"]
    records = []
    for number in range(len(people["id"])):
        densepose = None
        if people["has_densepose"][number]:
            own = np.asarray(points["person"]) == number
            names = (*"xyiuv", "confidence")
            columns = {name: np.asarray(points[name], np.float32)[own] for name in names}
            columns["is_annotated"] = np.asarray(points["is_annotated"], bool)[own]
            part_mask = np.asarray(people["part_mask"][number])
            mesh = people["mesh"][number].decode()
            if mesh:
                columns["vertex"] = np.asarray(points["vertex"], np.int32)[own]
            densepose = DensePoseRecord(**columns, part_mask=part_mask, mesh=mesh)
        records.append(
            PersonRecord(
                annotation_id=int(people["id"][number]),
                box_xywh=np.asarray(people["box_xywh"][number]),
                is_crowd=bool(people["is_crowd"][number]),
                area=float(people["area"][number][0]),
                keypoints=np.asarray(people["keypoints"][number]),
                segmentation=json.loads(people["segmentation"][number]),
                densepose=densepose,
                class_index=int(people["class_index"][number]),
            )
        )
    return ImageRecord(
        image_id=int(row["image_id"]),
        file_name=row["file_name"].decode(),
        height=int(row["height"]),
        width=int(row["width"]),
        people=tuple(records),
    )
