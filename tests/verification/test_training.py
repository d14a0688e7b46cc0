"""A training step of ours against the dumps of the original, and that a mistake does not pass."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.losses.masks_keypoints import mask_labels
from ktn_jax.modeling.detector import size_multiple
from ktn_jax.modeling.person_branches import has_embeddings
from ktn_jax.verification import dump as dumps
from ktn_jax.verification import mask_targets, training
from ktn_jax.verification.dump import Dump
from ktn_jax.verification.samples import read_batch, read_samples

pytestmark = pytest.mark.parity

LEGACY = "densepose_r50_legacy_tiny"


@pytest.mark.slow
def test_a_training_step_equals_the_original(dump_of_step, request):
    dump = dump_of_step
    if dump.path.stem == LEGACY:  # its step serves other tests too
        rows = _rows(*request.getfixturevalue("legacy"))
    else:
        rows = list(training.training(dump))
    failed = [row for row in rows if not row.is_ok]
    assert not failed, dumps.format_rows(failed)
    compared = {row.key.split(" ")[0] for row in rows}
    stored = {key for key in dump.keys if key.startswith(("train/losses", "train/after", "grad/"))}
    stored |= {f"train/grad_norms_json/{n}" for n in json.loads(str(dump["train/grad_norms_json"]))}
    stored |= {f"train/backbone_mean_std/{level}" for level in dump.under("infer/backbone")}
    stored |= {"train/box/cls_logits", "train/box/deltas"}
    stored |= {
        key
        for key in dump.keys
        if key in ("train/densepose/head", "train/densepose/embedding", "train/keypoint/lowres")
        or key.startswith(("train/mask/targets", "train/mask/logits"))
    }
    assert len(stored) > 50 and stored <= compared


@pytest.fixture(scope="module")
def legacy(golden_dir):
    """The smallest dump, and our step on it."""
    dump = Dump(golden_dir / f"{LEGACY}.npz")
    batch = read_batch(dump)
    return dump, batch, training.run_step(dump, batch, read_samples(dump))


def _rows(dump, batch, step):
    return list(training.compare_step(dump, batch, step))


@pytest.mark.extended
def test_a_wrong_or_missing_loss_shows(legacy):
    dump, batch, step = legacy

    def failing(**changes):
        slipped = dataclasses.replace(step, **changes)
        return {row.key for row in _rows(dump, batch, slipped) if not row.is_ok}

    key, losses = "train/losses/loss_densepose_U", dict(step.losses)
    assert failing(losses=losses | {"u": losses["u"] * 1.0002}) == {key}
    del losses["u"]
    assert failing(losses=losses) == {key}
    assert failing(total=step.total * 1.0002) == {"train/losses/total"}


@pytest.mark.extended
def test_wrong_gradients_show(legacy):
    dump, batch, step = legacy
    name = "roi_heads.densepose_predictor.u_lowres.weight"
    keys = {f"grad/{name}", f"train/grad_norms_json/{name}"}

    def failing(**changes):
        slipped = dataclasses.replace(step, gradients=dict(step.gradients) | changes)
        return {row.key.split(" ")[0] for row in _rows(dump, batch, slipped) if not row.is_ok}

    gradient = step.gradients[name]
    assert failing(**{name: gradient * 1.002}) == keys
    assert failing(**{name: gradient * 0}) == keys
    # However far rounding moves some of them here, that excuses none that is 3 % too small.
    smaller = {other: 0.97 * values for other, values in step.gradients.items()}
    rows = _rows(dump, batch, dataclasses.replace(step, gradients=smaller))
    rows = [row for row in rows if "grad" in row.key and "(" not in row.key]  # none that are zero
    assert len(rows) > 50 and not any(row.is_ok for row in rows)
    # A frozen parameter must get none, and a zero gradient must be zero.
    frozen, zero = "backbone.bottom_up.stem.conv1.weight", "backbone.fpn_output5.bias"
    for other in (frozen, zero):
        changed = step.gradients[other] + 1e-3
        assert f"train/grad_norms_json/{other}" in failing(**{other: changed})
    unknown = {key: value for key, value in step.gradients.items() if key != frozen}
    rows = _rows(dump, batch, dataclasses.replace(step, gradients=unknown))
    failed = [row.key for row in rows if not row.is_ok]
    assert failed == [f"train/grad_norms_json/{frozen} (not ours)"]


def test_a_dump_without_training_gives_no_rows(golden_dir, tmp_path):
    with np.load(golden_dir / f"{LEGACY}.npz") as file:
        arrays = {key: file[key] for key in file.files if not key.startswith(("grad", "train"))}
    np.savez(tmp_path / "dump.npz", **arrays)
    assert list(training.training(Dump(tmp_path / "dump.npz"))) == []


def test_the_stored_batch_and_samples_are_read_as_they_were(dump):
    batch, samples = read_batch(dump), read_samples(dump)
    height, width = batch["image"].shape[1:3]
    multiple = size_multiple(dump.config.model)
    sizes = batch["image_size_hw"]
    assert (height, width) == tuple(-(-sizes.max(0) // multiple) * multiple)
    assert (sizes[0] != sizes[1]).any()
    for image in (0, 1):
        h, w = sizes[image]
        assert not batch["image"][image, h:].any() and not batch["image"][image, :, w:].any()
        bgr = dump[f"train/input/{image}/image_bgr_uint8"]
        np.testing.assert_array_equal(batch["image"][image, :h, :w, 0], bgr[..., 2])
        # One person without DensePose, and the crowd left out.
        with_charts = 2 if "densepose" in samples.people else 0
        assert batch["is_valid"][image].sum() == 3
        assert batch["has_densepose"][image].sum() == with_charts
        np.testing.assert_array_equal(batch["boxes"][image], dump[f"train/gt/{image}/boxes"])
        people = np.flatnonzero(batch["has_densepose"][image])
        for stored, person in zip(dump.under(f"train/gt/{image}/dp_segm"), people, strict=True):
            expected = dump[f"train/gt/{image}/dp_segm/{stored}"]
            np.testing.assert_array_equal(batch["part_mask"][image, person], expected)
        rois = samples.rois
        own = batch["boxes"][image][rois.gt_index[image]]
        is_person = rois.is_foreground[image] & rois.is_valid[image]
        np.testing.assert_array_equal(own[is_person], rois.gt_boxes[image][is_person])
        if with_charts:
            people = samples.people["densepose"]
            index = people.gt_index[image][people.weight[image] > 0]
            expected = dump[f"train/densepose/{image}/has_densepose"]
            np.testing.assert_array_equal(batch["has_densepose"][image][index], expected)
    if with_charts:
        is_embedding = has_embeddings(dump.config.model)
        ours, theirs = ("point_vertex", "dp_vertex") if is_embedding else ("point_i", "dp_I")
        labels = batch[ours][batch["point_is_valid"]]
        records = json.loads(str(dump["train/annotations_json"]))["annotations"]
        stored = [record.get(theirs, ()) for record in records if not record["iscrowd"]]
        np.testing.assert_array_equal(labels, np.concatenate(stored))
        assert labels.max() > 250 if is_embedding else labels.max() == 24
    if "masks" in samples.people:
        count = np.asarray(samples.people["masks"].weight).sum(1)
        np.testing.assert_array_equal(count, dump["train/mask/roi_count"])
        assert 0.2 < batch["person_mask"].mean((2, 3)).min()


def test_people_that_do_not_fit_their_boxes_are_refused(golden_dir, tmp_path):
    with np.load(golden_dir / f"{LEGACY}.npz") as file:
        arrays = {key: file[key] for key in file.files if not key.startswith("grad")}
    arrays["train/gt/1/boxes"] = arrays["train/gt/1/boxes"][:2]
    np.savez(tmp_path / "dump.npz", **arrays)
    with pytest.raises(ValueError, match="image 1 has 2 boxes .* 3 people"):
        read_batch(Dump(tmp_path / "dump.npz"))


def test_person_against_background_is_cut_out_of_masks_as_in_the_original(golden_dir):
    """From a dump of another kind of model, which trains it by masks."""
    with np.load(golden_dir / "densepose_cse_r50_animals_tiny.npz") as file:
        arrays = {key: file[key] for key in file.files if key.startswith("train/")}
    expected = arrays["train/densepose/mask_targets"].astype(bool)
    exact, from_grids = [], []
    for image in (0, 1):
        masks, boxes = arrays[f"train/gt/{image}/masks"], arrays[f"train/gt/{image}/boxes"]
        rois = arrays[f"train/densepose/{image}/proposal_boxes"]
        own = arrays[f"train/densepose/{image}/gt_boxes"]
        index = np.abs(own[:, None] - boxes[None]).max(-1).argmin(-1)
        exact.append(mask_targets.cut_bitmasks(masks, index, rois, expected.shape[1]))
        grids = np.stack(mask_targets.grids_of_bitmasks(masks, boxes))[index]
        cut = mask_labels(grids, jnp.asarray(own), jnp.asarray(rois), expected.shape[1])
        from_grids.append(np.asarray(cut))
    np.testing.assert_array_equal(np.concatenate(exact), expected)
    differing = (np.concatenate(from_grids) != expected).mean()
    assert 0.05 < expected.mean() < 0.95 and differing < mask_targets.GRID_FRACTION
