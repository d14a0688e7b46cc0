"""The TFDS builder of DensePose-COCO, UltraPose and any folder in their format.

Examples keep the order of the annotation file, so that the numbers of a random-access source are
known: `metadata` holds, for every split, what batches are planned from.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from ktn_jax.body import parts
from ktn_jax.body.parts import PART_GRID
from ktn_jax.data_pipelines.coco import checks
from ktn_jax.data_pipelines.coco.annotations import (
    SKIP_ADVICE,
    Dataset,
    ImageRecord,
    is_above_ceiling,
    parse_dataset,
)
from ktn_jax.data_pipelines.coco.findings import Finding, is_error
from ktn_jax.data_pipelines.coco.image_checks import check_image_bytes
from ktn_jax.data_pipelines.densepose_coco import layout, origin

_POINT_FIELDS = ("x", "y", "i", "u", "v")


@dataclasses.dataclass
class DensePoseConfig(tfds.core.BuilderConfig):
    """Where the splits of one dataset are; none means a folder of the user's own."""

    splits: Mapping[str, layout.SplitFiles] = dataclasses.field(default_factory=dict)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Images with the people in them: boxes, keypoints, and DensePose on some.

    Attributes:
        on_bad: "raise" stops at a bad record; "skip" leaves it out.
        max_skipped_fraction: share of bad records above which skipping stops too.
        categories: names of those to take, in the order of the classes.
    """

    # TFDS would look beside the first package of this module's name, where the folder is not.
    pkg_dir_path = epath.Path(__file__).parent
    VERSION = tfds.core.Version("1.2.0")
    RELEASE_NOTES = {
        "1.2.0": "Vertices of the points, their mesh, and classes other than people.",
        "1.1.0": "Whether an annotator or a model set a point, and the model's confidence.",
        "1.0.0": "First release.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = layout.INSTRUCTIONS
    BUILDER_CONFIGS = [
        DensePoseConfig(
            name="densepose_coco_2014",
            description="DensePose-COCO on the COCO 2014 images.",
            splits=layout.COCO_SPLITS,
        ),
        DensePoseConfig(
            name="ultrapose",
            description="UltraPose: synthetic people with dense points.",
            splits=layout.ULTRAPOSE_SPLITS,
        ),
        DensePoseConfig(name="custom", description="Any folder in the DensePose-COCO format."),
    ]
    on_bad: Literal["raise", "skip"] = "raise"
    max_skipped_fraction = 0.01
    categories: tuple[str, ...] = (checks.PERSON,)

    def _info(self) -> tfds.core.DatasetInfo:
        # tf.train.Example keeps numbers as float32 unless they are bytes.
        exact = tfds.features.Encoding.BYTES
        person = {
            "id": np.int64,
            "box_xywh": tfds.features.Tensor(shape=(4,), dtype=np.float64, encoding=exact),
            "is_crowd": np.bool_,
            "area": tfds.features.Tensor(shape=(1,), dtype=np.float64, encoding=exact),
            "keypoints": tfds.features.Tensor(shape=(parts.NUM_KEYPOINTS, 3), dtype=np.float32),
            "segmentation": tfds.features.Text(),  # JSON: polygons, a run-length mask or null
            "class_index": np.int32,
            "has_densepose": np.bool_,
            "mesh": tfds.features.Text(),  # that the points' vertices are on; "" without any
            "part_mask": tfds.features.Tensor(
                shape=(PART_GRID, PART_GRID), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
            ),
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": np.int64,
            "file_name": tfds.features.Text(),
            "height": np.int32,
            "width": np.int32,
            "people": tfds.features.Sequence(person),
            # Flat, with the number of the person: a sequence in a sequence would be ragged.
            "points": tfds.features.Sequence(
                {"person": np.int32, "is_annotated": np.bool_, "vertex": np.int32}
                | {name: np.float32 for name in (*_POINT_FIELDS, "confidence")}
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "People with boxes, COCO keypoints and, on some of them, the DensePose annotation: "
                "points with surface patch, U and V, and a mask of 14 body parts."
            ),
            features=tfds.features.FeaturesDict(features),
            homepage="http://densepose.org",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def describe_splits(self, found: Mapping[str, layout.FoundSplit]) -> dict[str, dict[str, Any]]:
        """What each split would be built of now, see `origin.describe_split`."""
        options = {
            "on_bad": self.on_bad,
            "max_skipped_fraction": self.max_skipped_fraction,
            "categories": list(self.categories),
        }
        return {name: origin.describe_split(files, options) for name, files in found.items()}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir = pathlib.Path(dl_manager.manual_dir)
        found = layout.find_splits(manual_dir, self.builder_config.splits)
        origins = self.describe_splits(found)  # before reading: what changes later is noticed
        return {
            name: self._generate_examples(name, files.annotations, files.images, origins[name])
            for name, files in found.items()
        }

    def _generate_examples(
        self,
        split: str,
        annotations: pathlib.Path,
        images: pathlib.Path,
        made_of: Mapping[str, Any],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        dataset = parse_dataset(
            annotations, self.on_bad, self.max_skipped_fraction, categories=self.categories
        )
        facts = dataset.images.facts()
        kept, bad_images = [], 0
        for number, record in enumerate(dataset.images):
            content, finding = self._read(images, record, annotations)
            if finding is not None:
                bad_images += 1
                self._refuse_if_too_many(dataset, bad_images, finding)
                continue
            kept.append(number)
            yield record.image_id, _to_example(record, content)
        skipped = dataclasses.asdict(dataset.skipped)
        skipped["images"] += bad_images
        self.info.metadata[split] = {
            "image_ids": [dataset.images[number].image_id for number in kept],
            "sizes_hw": facts.sizes_hw[kept].tolist(),
            "people": facts.people[kept].tolist(),
            "max_points": facts.max_points,
            "all_annotated": facts.all_annotated,
            "with_keypoints": np.asarray(facts.with_keypoints)[kept].tolist(),
            "with_surface": np.asarray(facts.with_surface)[kept].tolist(),
            "vertices": dict(facts.vertices),
            "skipped": skipped,
            "made_of": dict(made_of),
        }

    def _read(
        self, images: pathlib.Path, record: ImageRecord, annotations: pathlib.Path
    ) -> tuple[bytes, Finding | None]:
        path = images / record.file_name
        content = path.read_bytes() if path.is_file() else b""
        wrong = check_image_bytes(content, record.height, record.width)
        if not path.is_file():
            wrong = ("image_missing", f"no file {path}")
        if wrong is None or not is_error(wrong[0]):
            return content, None
        name = f"image {record.image_id}"
        message = f"{record.file_name}: {wrong[1]}"
        return content, Finding(wrong[0], str(annotations), name, "file_name", message)

    def _refuse_if_too_many(self, dataset: Dataset, bad_images: int, finding: Finding) -> None:
        """Raises where a bad image may not be skipped, or one too many was."""
        report = dataclasses.replace(dataset.report, findings=(*dataset.report.findings, finding))
        if self.on_bad == "raise":
            raise checks.DatasetError(f"{finding}\n{SKIP_ADVICE}", report)
        skipped = dataset.skipped.total + bad_images
        records = report.counts["images"] + report.counts["annotations"]
        if is_above_ceiling(skipped, self.max_skipped_fraction, records):
            limit = f"above {self.max_skipped_fraction:.2%}"
            raise checks.DatasetError(
                f"{skipped} of {records} records are bad, {limit}; the last: {finding}", report
            )


def _to_example(record: ImageRecord, content: bytes) -> dict[str, Any]:
    points: list[dict[str, Any]] = []
    people = []
    for number, person in enumerate(record.people):
        dense = person.densepose
        people.append(
            {
                "id": person.annotation_id,
                "box_xywh": person.box_xywh,
                "is_crowd": person.is_crowd,
                "area": np.array([person.area]),
                "keypoints": person.keypoints,
                "segmentation": json.dumps(person.segmentation),
                "class_index": person.class_index,
                "has_densepose": dense is not None,
                "mesh": "" if dense is None else dense.mesh,
                "part_mask": np.zeros((PART_GRID, PART_GRID), np.uint8)
                if dense is None
                else dense.part_mask,
            }
        )
        if dense is not None:
            names = (*_POINT_FIELDS, "is_annotated", "confidence")
            columns = zip(*(getattr(dense, name) for name in names), strict=True)
            vertices = np.full(len(dense.x), -1) if dense.vertex is None else dense.vertex
            points += [
                {"person": number, "vertex": int(vertex)} | dict(zip(names, values, strict=True))
                for values, vertex in zip(columns, vertices, strict=True)
            ]
    return {
        "image": io.BytesIO(content),
        "image_id": record.image_id,
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        "people": people,
        "points": points,
    }
