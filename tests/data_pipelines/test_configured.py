"""A configuration's `data` section opens the sources that it names."""

import itertools

import pytest

from configs import base
from data_pipelines import configured
from data_pipelines.sources import ConcatenatedSource


def _config(**changes):
    config = base.get_config()
    config.batch_size = 2
    config.seed = 0
    config.data.update(
        {"short_sides": (64,), "max_long_side": 120, "workers": 2, "flip_probability": 0.0}
    )
    config.data.update(changes)
    return config


def test_synthetic_people_need_no_files():
    config = _config(source="synthetic", flip_probability=0.5)
    config.data.synthetic.update({"num_images": 3, "image_size_hw": (64, 64), "keep": True})
    batches = configured.make_training_data(config).train(0)
    first, *_ = list(itertools.islice(batches, 3))
    batches.close()
    assert first["image"].shape == (2, 64, 64, 3) and first["is_valid"].any()


def test_folders_are_joined(folder):
    files = (str(folder / "annotations.json"),) * 2
    config = _config(annotations=files, images=(str(folder / "images"),) * 2)
    source = configured.make_source(config.data)
    assert isinstance(source, ConcatenatedSource) and len(source) == 16
    assert configured.make_training_data(config).steps_per_epoch == 8


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="data.source 'web'"):
        configured.make_source(_config(source="web").data)
    with pytest.raises(ValueError, match="one folder for each file"):
        configured.make_source(_config(images=("one",)).data)
