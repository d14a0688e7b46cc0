"""A flat world whose every geodesic distance is known: predictions can be right to the last bit."""

import copy
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ktn_jax.evaluation import template_files
from ktn_jax.results.iuv_pictures import encode_iuv

GRID = 8  # vertices along a side of each patch; U and V step by 36 / 255
PATCH_METRES = 0.3
APART_METRES = 1.0  # between points of different patches
COLUMNS, ROWS = 6, 4  # patches side by side in a picture of a person


@dataclasses.dataclass(frozen=True)
class FlatWorld:
    """Annotations, the right predictions for them, and the template.

    Attributes:
        template_dir: in the project's format.
        annotations: COCO dictionary.
        entries: a result for every person, with `iuv` [3, h, w] beside the encoded picture.
    """

    template_dir: pathlib.Path
    annotations: dict
    entries: list

    def write(self, folder, entries=None, annotations=None):
        """Writes both files; returns the paths of results and annotations."""
        entries = self.entries if entries is None else entries
        results, truth = folder / "results.json", folder / "annotations.json"
        encoded = []
        for entry in copy.copy(entries):
            fields = {key: value for key, value in entry.items() if key != "iuv"}
            if "iuv" in entry:
                shape, text = entry["iuv"].shape, encode_iuv(np.ascontiguousarray(entry["iuv"]))
                fields |= {"uv_shape": list(shape), "uv_data": text}
            encoded.append(fields)
        results.write_text(json.dumps(encoded))
        truth.write_text(json.dumps(self.annotations if annotations is None else annotations))
        return results, truth


def flat_distance(rows_a, rows_b):
    """Geodesic distance between rows of the flat template, in metres."""
    patch_a, place_a = np.divmod(rows_a, GRID * GRID)
    patch_b, place_b = np.divmod(rows_b, GRID * GRID)
    steps = np.hypot(place_a // GRID - place_b // GRID, place_a % GRID - place_b % GRID)
    return np.where(patch_a == patch_b, steps * 36 / 255 * PATCH_METRES, APART_METRES)


def _write_template(folder):
    rows = np.arange(24 * GRID * GRID)
    place = rows % (GRID * GRID)
    vertices = np.stack([place % GRID, place // GRID, rows // (GRID * GRID)], axis=1) / GRID
    template_files.write_template(
        folder,
        u=place % GRID * 36 / 255,
        v=place // GRID * 36 / 255,
        part=rows // (GRID * GRID) + 1,
        row=rows,
        geodesics=(flat_distance(np.full(i, i), rows[:i]) for i in range(1, len(rows))),
        num_distances=len(rows) * (len(rows) - 1) // 2,
        origin="flat test template",
        vertices=vertices,
    )


def _person_picture(rng, scale):
    patches = rng.permutation(24).reshape(ROWS, COLUMNS) + 1
    row, column = np.mgrid[: ROWS * GRID, : COLUMNS * GRID]
    iuv = np.stack([patches[row // GRID, column // GRID], column % GRID * 36, row % GRID * 36])
    iuv = iuv.repeat(scale, axis=1).repeat(scale, axis=2).astype(np.uint8)
    height, width = iuv.shape[1:]
    y, x = np.mgrid[:height, :width]
    # An ellipse that touches the box: background in the corners, left-right symmetric.
    iuv[:, ((y + 0.5) / height * 2 - 1) ** 2 + ((x + 0.5) / width * 2 - 1) ** 2 > 1] = 0
    return iuv


def _person(rng, number, image_id, box, iuv):
    height, width = iuv.shape[1:]
    body = np.argwhere(iuv[0])
    y, x = body[rng.choice(len(body), 60, replace=False)].T
    picked = iuv[:, y, x]
    grid = np.minimum((np.arange(256) + 0.5) / 256, 1)
    sampled = iuv[0][(grid * height).astype(int)][:, (grid * width).astype(int)] > 0
    masks = []
    for half in (slice(0, 128), slice(128, 256)):
        mask = np.zeros((256, 256), np.uint8, order="F")
        mask[:, half] = sampled[:, half]
        rle = coco_mask.encode(mask)
        masks.append({"size": rle["size"], "counts": rle["counts"].decode()})
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": box,
        "area": float(width * height),
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        "dp_x": ((x + 0.5) / width * 255).tolist(),
        "dp_y": ((y + 0.5) / height * 255).tolist(),
        "dp_I": picked[0].tolist(),
        "dp_U": (picked[1] / 255).tolist(),
        "dp_V": (picked[2] / 255).tolist(),
        "dp_masks": [[]] * 12 + masks,
    }


@pytest.fixture(scope="session")
def flat_world(tmp_path_factory):
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("flat")
    _write_template(folder)
    images, annotations, entries = [], [], []
    for image_id in (7, 3, 12):
        images.append({"id": image_id, "height": 300, "width": 500, "file_name": f"{image_id}.png"})
        for scale, (left, top) in ((2, (20, 30)), (4, (250, 100))):
            iuv = _person_picture(rng, scale)
            box = [left, top, iuv.shape[2], iuv.shape[1]]
            number = len(annotations) + 1
            annotations.append(_person(rng, number, image_id, box, iuv))
            score = 0.9 - 0.01 * number
            entry = {"image_id": image_id, "category_id": 1, "score": score, "bbox": box}
            entries.append({**entry, "iuv": iuv})
    categories = [{"id": 1, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return FlatWorld(folder, content, entries)
