"""A small annotated dataset, a template to score it with, and weights of any model."""

import json

import numpy as np
import pytest
from PIL import Image

from ktn_jax.evaluation import template_files

SIZES = [(40, 60), (60, 40), (40, 60), (50, 50), (60, 40), (40, 60), (40, 60)]


@pytest.fixture
def dataset(tmp_path):
    """Images of one colour each, one person on each, ids that are not in order."""
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.png"
        Image.new("RGB", (width, height), (10 * number, 0, 0)).save(folder / name)
        images.append({"id": 70 - number, "file_name": name, "height": height, "width": width})
        annotations.append(
            {
                "id": number + 1,
                "image_id": 70 - number,
                "category_id": 7,
                "bbox": [5, 5, 20, 30],
                "area": 600,
                "iscrowd": 0,
                "dp_x": [100.0, 200.0],
                "dp_y": [100.0, 50.0],
                "dp_I": [2.0, 2.0],
                "dp_U": [0.2, 0.4],
                "dp_V": [0.1, 0.9],
                "dp_masks": [[]] * 14,
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "person"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def template_dir(tmp_path):
    """Three points on each patch, any two of them some distance apart."""
    count = 3 * 24
    template_files.write_template(
        tmp_path / "template",
        u=np.tile([0.0, 0.5, 1.0], 24),
        v=np.tile([0.0, 0.5, 1.0], 24),
        part=np.repeat(np.arange(1, 25), 3),
        row=np.arange(count),
        geodesics=[np.random.default_rng(0).uniform(0.05, 0.5, count * (count - 1) // 2)],
        num_distances=count * (count - 1) // 2,
        origin="points",
    )
    return tmp_path / "template"
