"""A small hand-made dataset in the DensePose-COCO format, shared by the data tests."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

# Landscape, portrait, square and a panorama; height, width.
SIZES_HW = ((48, 64), (64, 48), (40, 40), (30, 60), (48, 64), (48, 72), (64, 48), (50, 64))


def _mask_rle(rng, x0):
    mask = np.zeros((256, 256), np.uint8)
    mask[rng.integers(0, 100) : rng.integers(140, 256), x0 : x0 + 90] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _person(rng, number, image_id, size_hw, dense):
    height, width = size_hw
    box = [4.0, 3.0, width * 0.5, height * 0.75]
    keypoints = np.zeros((17, 3), int)
    seen = rng.permutation(17)[:9]
    keypoints[seen] = np.stack(
        [rng.integers(5, width // 2, 9), rng.integers(4, height // 2, 9), rng.integers(1, 3, 9)], -1
    )
    x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    person = {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": box,
        "area": 0.5 * box[2] * box[3],
        "num_keypoints": 9,
        "keypoints": keypoints.reshape(-1).tolist(),
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }
    if dense:
        count = int(rng.integers(5, 20))
        masks = [[] for _ in range(14)]
        masks[0], masks[2], masks[9] = _mask_rle(rng, 10), _mask_rle(rng, 60), _mask_rle(rng, 150)
        person |= {
            "dp_x": rng.uniform(0, 255, count).round(3).tolist(),
            "dp_y": rng.uniform(0, 255, count).round(3).tolist(),
            "dp_I": rng.integers(0, 25, count).astype(float).tolist(),
            "dp_U": rng.uniform(0, 1, count).round(5).tolist(),
            "dp_V": rng.uniform(0, 1, count).round(5).tolist(),
            "dp_masks": masks,
        }
    return person


def _make():
    rng = np.random.default_rng(7)
    raw = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    for index, (height, width) in enumerate(SIZES_HW):
        image_id = 100 + index
        raw["images"].append(
            {"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width}
        )
        for k in range(index % 3 + 1):
            dense = (index + k) % 2 == 0
            number = 10 * image_id + k
            raw["annotations"].append(_person(rng, number, image_id, (height, width), dense))
    crowd = np.zeros((48, 64), np.uint8)
    crowd[5:20, 30:50] = 1
    crowd_counts = np.diff(np.flatnonzero(np.diff(crowd.T.reshape(-1), prepend=2, append=2)))
    raw["annotations"].append(
        {
            "id": 1900,
            "image_id": 100,
            "category_id": 1,
            "iscrowd": 1,
            "bbox": [30.0, 5.0, 20.0, 15.0],
            "area": 300.0,
            "segmentation": {"size": [48, 64], "counts": crowd_counts.tolist()},
        }
    )
    raw["annotations"].append(
        {"id": 1901, "image_id": 101, "category_id": 18, "bbox": [1.0, 1.0, 9.0, 9.0]}
    )
    return raw


_RAW = _make()


@pytest.fixture
def raw():
    """DensePose-COCO JSON of 8 small images, as a dict that the test may change."""
    return copy.deepcopy(_RAW)


def write_images(folder, images):
    """Writes a JPEG for every image entry: smooth colour, different for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in images:
        rng = np.random.default_rng(entry["id"])
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = (entry["width"], entry["height"])
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
            folder / entry["file_name"], quality=95
        )


@pytest.fixture
def folder(tmp_path, raw):
    """The same dataset on disk: `annotations.json` and `images/`."""
    write_images(tmp_path / "images", raw["images"])
    (tmp_path / "annotations.json").write_text(json.dumps(raw))
    return tmp_path


@pytest.fixture(scope="session")
def dataset_writer():
    """Writes the images of some ids and their annotations: (root, json path, image folder, ids)."""

    def write(root, annotation_file, image_folder, ids):
        wanted = set(ids)
        images = [image for image in _RAW["images"] if image["id"] in wanted]
        people = [person for person in _RAW["annotations"] if person["image_id"] in wanted]
        write_images(root / image_folder, images)
        (root / annotation_file).parent.mkdir(parents=True, exist_ok=True)
        (root / annotation_file).write_text(
            json.dumps(_RAW | {"images": images, "annotations": people})
        )

    return write
