"""Configurations open the sources that they name."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import builder, configured
from data_pipelines.sources import ConcatenatedSource


def _config(**changes):
    small = {
        "batch_size": 2,
        "eval_batch_size": 2,
        "eval_short_side": 64,
        "short_sides": (64,),
        "max_long_side": 120,
        "loader": "threads",
        "workers": 2,
        "uv_symmetry": "procedural",
    }
    return ConfigDict(configured.default_config() | small | changes)


def test_synthetic_people_need_no_files():
    config = _config(
        source="synthetic",
        synthetic_train_images=3,
        synthetic_eval_images=2,
        synthetic_image_size_hw=(64, 64),
        synthetic_keep=True,
    )
    datasets = configured.open_datasets(config)
    batches = datasets.train(0)
    first, *_ = list(itertools.islice(batches, 3))
    batches.close()
    assert first["image"].shape == (2, 64, 64, 3) and first["is_valid"].any()
    (evaluated,) = list(datasets.evaluate())
    assert sorted(evaluated["image_id"]) == [1, 2]


def test_folders_are_joined(folder):
    pair = (str(folder / "annotations.json"), str(folder / "images"))
    config = _config(source="folder", folder_train=(pair, pair), folder_eval=(pair,))
    source = configured.open_source(config, "train")
    assert isinstance(source, ConcatenatedSource) and len(source) == 16
    assert configured.open_datasets(config).steps_per_epoch == 8


def test_built_datasets_are_opened(folder, tmp_path):
    builder.build("custom", folder, tmp_path / "built")
    config = _config(
        source="tfds",
        tfds_config="custom",
        tfds_data_dir=str(tmp_path / "built"),
        tfds_train=("train",),
        tfds_eval=("train",),
    )
    datasets = configured.open_datasets(config, for_training=False)
    ids = np.concatenate([batch["image_id"] for batch in datasets.evaluate()])
    assert sorted(ids[ids >= 0]) == list(range(100, 108)) and datasets.train is None


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"source": "web"}, "source must be one of"),
        ({"source": "folder"}, "folder_train names no data"),
        ({"source": "tfds", "tfds_train": ()}, "tfds_train names no data"),
        ({"bacth_size": 3}, r"unknown \['bacth_size'\]"),
        ({"short_sides": (0,)}, "short_sides"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        configured.open_datasets(_config(**changes))


def test_keys_that_are_missing_are_named():
    config = configured.default_config()
    del config["seed"]
    with pytest.raises(ValueError, match=r"missing \['seed'\]"):
        configured.open_datasets(config)
