"""A configuration's `data` section opens the sources that it names."""

import itertools
import json

import numpy as np
import pytest

from ktn_jax.configs import base, keypoint_mid
from ktn_jax.data_pipelines.loading import configured
from ktn_jax.data_pipelines.loading.few_labels import FewLabels
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
    config.loss.coarse_segm_from_masks = True
    data = configured.make_training_data(config)
    batches = data.batches_from(0)
    first, *_ = list(itertools.islice(batches, 3))
    batches.close()
    assert first["image"].shape == (2, 64, 64, 3) and first["is_valid"].any()
    assert first["has_person_mask"].any()
    for spec in data.specs:
        assert spec == configured.training_batch_spec(config, spec["image"].shape[1:3])


def test_folders_are_joined(folder):
    files = (str(folder / "annotations.json"),) * 2
    config = _config(annotations=files, images=(str(folder / "images"),) * 2)
    source = configured.make_source(config.data)
    assert isinstance(source, ConcatenatedSource) and len(source) == 16
    assert configured.make_training_data(config).steps_per_epoch == 8
    config.data.weights = (1.0, 0.5)
    assert configured.make_training_data(config).steps_per_epoch == 6
    config.data.weights = (1.0,)
    with pytest.raises(ValueError, match=r"data\.weights: wanted 2 weights"):
        configured.make_source(config.data)
    config.data.source = "synthetic"
    with pytest.raises(ValueError, match=r"data\.weights .* are of files"):
        configured.make_source(config.data)


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


def _files(folder):
    return {"annotations": (str(folder / "annotations.json"),), "images": (str(folder / "images"),)}


def _with_surface(source):
    """(image id, annotation id) of who has surface points, for every image in order."""
    return [
        (record.image_id, person.annotation_id)
        for _, record in (source[index] for index in range(len(source)))
        for person in record.people
        if person.densepose is not None
    ]


def test_few_people_keep_their_surface_points(folder):
    files = {
        "annotations": (str(folder / "annotations.json"),),
        "images": (str(folder / "images"),),
    }
    source = configured.make_source(_config(**files).data)
    everybody = set(_with_surface(source))
    assert len(everybody) == 8
    chosen = [_with_surface(FewLabels(source, count, seed=3)) for count in range(1, 9)]
    for count, people in enumerate(chosen, 1):
        assert len(people) == len(set(people)) == count
    assert all(set(few) < set(more) for few, more in itertools.pairwise(chosen))
    assert set(chosen[-1]) == everybody
    assert len({_with_surface(FewLabels(source, 1, seed))[0] for seed in range(12)}) > 2
    # Nothing else changes.
    for index in range(8):
        before, after = source[index][1], FewLabels(source, 2, 0)[index][1]
        assert [p.annotation_id for p in after.people] == [p.annotation_id for p in before.people]
        np.testing.assert_array_equal(
            [p.keypoints for p in after.people], [p.keypoints for p in before.people]
        )


def test_images_of_few_people_weigh_more(folder):
    source = configured.make_source(_config(**_files(folder)).data)
    few = FewLabels(source, 2, seed=0, share=0.75)
    images = {image for image, _ in _with_surface(few)}
    facts, is_shown = few.facts(), [few[index][1].image_id in images for index in range(8)]
    np.testing.assert_array_equal(facts.with_surface > 0, is_shown)
    assert facts.with_surface.sum() == 2
    np.testing.assert_allclose(facts.weights[is_shown].sum() / facts.weights.sum(), 0.75)
    np.testing.assert_array_equal(facts.weights[np.invert(is_shown)], 1)
    config = _config(**_files(folder), labelled_people=2, labelled_share=0.75)
    made = configured.make_training_data(config)
    assert made.summary == "8 images, 15 people: 15 with keypoints, 2 with surface points"
    assert made.steps_per_epoch == -(-round(facts.weights.sum()) // 2)
    # Weights of files stay what they are beside each other.
    two = {name: files * 2 for name, files in _files(folder).items()}
    source = configured.make_source(_config(**two, weights=(1.0, 2.0)).data)
    facts = FewLabels(source, 4, seed=0, share=0.5).facts()
    is_shown = facts.with_surface > 0
    np.testing.assert_allclose(facts.weights[is_shown].sum() * 2, facts.weights.sum())
    assert set(facts.weights[~is_shown]) == {1.0, 2.0}
    # Where all images show somebody who is labelled there is nothing to weigh them against.
    content = json.loads((folder / "annotations.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] != 103]
    content["annotations"] = [p for p in content["annotations"] if p["image_id"] != 103]
    (folder / "all.json").write_text(json.dumps(content))
    files = _files(folder) | {"annotations": (str(folder / "all.json"),)}
    every = FewLabels(configured.make_source(_config(**files).data), 8, seed=0, share=0.5)
    assert every.facts().with_surface.all()
    np.testing.assert_array_equal(every.facts().weights, np.ones(7))
    with pytest.raises(ValueError, match="labelled_share must be in"):
        FewLabels(source, 2, seed=0, share=1.0)
    with pytest.raises(ValueError, match="labelled_people is 17, but 16 people"):
        FewLabels(source, 17, seed=0)
    rendered = _config(source="synthetic", labelled_people=2)
    with pytest.raises(ValueError, match="labelled_people.*ktn data synth"):
        configured.make_training_data(rendered)


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
    names = keypoint_mid.get_config("tiny").loss
    weights = {name: 0.0 for name in names if name.endswith("_weight")}
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


def test_all_that_is_missing_is_named_with_its_setting(folder):
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
    images = (str(folder / "images"),)
    config.data.update({"annotations": images, "images": images, "flip_probability": 0.0})
    with pytest.raises(ValueError, match="is a folder: name the annotation file in it"):
        configured.make_source(config.data)
