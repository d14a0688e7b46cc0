"""A configuration's `data` section opens the sources that it names."""

import itertools
import json

import numpy as np
import pytest

from ktn_jax.configs import base, keypoint_mid
from ktn_jax.data_pipelines.loading import configured
from ktn_jax.data_pipelines.loading.sources import ConcatenatedSource


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
    batches = configured.make_training_data(config).batches_from(0)
    first, *_ = list(itertools.islice(batches, 3))
    batches.close()
    assert first["image"].shape == (2, 64, 64, 3) and first["is_valid"].any()


def test_folders_are_joined(folder):
    files = (str(folder / "annotations.json"),) * 2
    config = _config(annotations=files, images=(str(folder / "images"),) * 2)
    source = configured.make_source(config.data)
    assert isinstance(source, ConcatenatedSource) and len(source) == 16
    assert configured.make_training_data(config).steps_per_epoch == 8


def test_built_datasets_give_the_same_people_as_their_folder(folder, tmp_path):
    builder = pytest.importorskip(
        "ktn_jax.data_pipelines.densepose_coco.builder", reason="TensorFlow Datasets builds"
    )
    builder.build("custom", folder, tmp_path)
    config = _config(source="tfds")
    config.data.tfds.update({"config": "custom", "dir": str(tmp_path), "splits": ("train",)})
    built = configured.make_source(config.data)
    files = (str(folder / "annotations.json"),)
    plain = configured.make_source(
        _config(annotations=files, images=(str(folder / "images"),)).data
    )
    assert len(built) == len(plain) == 8
    by_id = {record.image_id: image for image, record in (plain[i] for i in range(8))}
    for index in range(8):
        image, record = built[index]
        np.testing.assert_array_equal(image, by_id[record.image_id])


def test_annotations_without_a_surface_point_are_refused_where_it_trains(folder, tmp_path):
    """People are counted; models without losses of the surface train."""
    content = json.loads((folder / "annotations.json").read_text())
    files = {"annotations": (str(tmp_path / "a.json"),), "images": (str(folder / "images"),)}
    config = _config(**files)
    (tmp_path / "a.json").write_text(json.dumps(content))
    whole = configured.make_training_data(config)
    assert whole.summary == "8 images, 15 people: 15 with keypoints, 8 with surface points"
    for person in content["annotations"]:
        if "dp_I" in person:
            person["dp_I"] = [0.0] * len(person["dp_I"])
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="0 of 15 people have surface points .*keypoint_mid"):
        configured.make_training_data(config)
    weights = {name: 0.0 for name in keypoint_mid.get_config("tiny").loss if "_weight" in name}
    config.loss.update({**weights, "keypoint_weight": 1.0})
    keypoints = configured.make_training_data(config)
    assert keypoints.summary == "8 images, 15 people: 15 with keypoints, 0 with surface points"
    config = _config(**files, needs_surface=False)
    assert configured.make_training_data(config).steps_per_epoch == 4


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="data.source 'web'"):
        configured.make_source(_config(source="web").data)
    with pytest.raises(ValueError, match="one folder for each file"):
        configured.make_source(_config(images=("one",)).data)


def test_all_that_is_missing_is_named_with_its_setting(folder, monkeypatch):
    names = str(folder / "annotations.json"), "no/a.json"
    config = _config(annotations=names, images=("no/images", str(folder / "images")))
    config.data.update({"flip_probability": 0.5, "symmetry": "no/symmetry.mat"})
    with pytest.raises(FileNotFoundError) as caught:
        configured.make_source(config.data)
    listed = str(caught.value).splitlines()[1:4]
    assert listed == [
        "  data.annotations: no/a.json",
        "  data.images: no/images",
        "  data.symmetry: no/symmetry.mat",
    ]
    assert "docs/data.md" in str(caught.value)
    monkeypatch.setenv("HOME", str(folder))
    config.data.update({"annotations": ("~/annotations.json",), "images": ("~/images",)})
    config.data.flip_probability = 0.0
    assert len(configured.make_source(config.data)) == 8
    config.data.annotations = ("~/images",)
    with pytest.raises(ValueError, match="is a folder: name the annotation file in it"):
        configured.make_source(config.data)
