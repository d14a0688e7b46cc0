"""Losses of the proposal network and the box head against closed forms and the original."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.losses import detection
from ktn_jax.losses.detection import AnchorTargets, RoiTargets
from ktn_jax.losses.terms import values_of

CASES = (
    "ktnv2_r50_tiny",
    "ktnv2_hrnet_tiny",
    "ktnv2_hrnet_v3_tiny",
    "densepose_r50_tiny",
    "densepose_r50_dl_tiny",
    "densepose_r50_dl_nonlocal_tiny",
    "densepose_r50_legacy_tiny",
)


def rpn_losses(*arguments, **options):
    return values_of(detection.rpn_losses(*arguments, **options))


def box_losses(*arguments, **options):
    return values_of(detection.box_losses(*arguments, **options))


def _anchors():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 20, 10], [5, 5, 10, 10]])
    targets = AnchorTargets(
        labels=jnp.array([[1, 0, -1], [0, -1, 1]]),
        boxes=jnp.array([[[0.0, 0, 20, 10]] * 3, [[5, 5, 10, 10]] * 3]),
    )
    return anchors, targets


def test_rpn_losses_are_sums_over_what_could_have_been_sampled():
    anchors, targets = _anchors()
    logits = jnp.array([[0.5, -1.0, 9.0], [2.0, 9.0, 0.0]])
    deltas = jnp.zeros((2, 3, 4)).at[0, 0].set(jnp.array([0.5, 0.25, 0.0, 1.0]))
    losses = rpn_losses(logits, deltas, anchors, targets, batch_size_per_image=8)
    softplus = np.log1p(np.exp([-0.5, -1.0, 2.0, 0.0]))
    np.testing.assert_allclose(losses["rpn_objectness"], softplus.sum() / 16, rtol=1e-6)
    # The first anchor is half as wide as its person: its centre moves by half its width.
    distance = np.abs([0.5 - 0.5, 0.25, np.log(2.0), 1.0]).sum()
    np.testing.assert_allclose(losses["rpn_deltas"], distance / 16, rtol=1e-6)


def test_anchors_that_do_not_train_change_nothing():
    anchors, targets = _anchors()

    def total(logits, deltas):
        losses = rpn_losses(logits, deltas, anchors, targets, batch_size_per_image=8)
        return losses["rpn_objectness"] + losses["rpn_deltas"]

    logits, deltas = jnp.full((2, 3), 3.0), jnp.full((2, 3, 4), -2.0)
    of_logits, of_deltas = jax.grad(total, argnums=(0, 1))(logits, deltas)
    np.testing.assert_array_equal(of_logits != 0, targets.labels >= 0)
    np.testing.assert_array_equal((of_deltas != 0).any(-1), targets.labels == 1)


def _rois():
    boxes = jnp.array([[[0.0, 0, 10, 10], [4, 4, 8, 8], [1, 1, 9, 9]]])
    return RoiTargets(
        boxes=boxes,
        is_valid=jnp.array([[True, True, True]]),
        is_foreground=jnp.array([[True, False, False]]),
        gt_boxes=jnp.array([[[1.0, 0, 11, 10], [0, 0, 0, 0], [0, 0, 0, 0]]]),
        gt_index=jnp.array([[1, 0, 0]]),
    )


def test_box_losses_divide_by_all_rois():
    logits = jnp.array([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    deltas = jnp.zeros((1, 3, 4)).at[0, 1].set(5.0)
    losses = box_losses(logits, deltas, _rois())
    entropy = np.log1p(np.exp([-1.0, -2.0, 3.0]))
    np.testing.assert_allclose(losses["box_class"], entropy.mean(), rtol=1e-6)
    # One pixel of ten to the right, times the weight 10 of the coding.
    np.testing.assert_allclose(losses["box_deltas"], 1.0 / 3, rtol=1e-6)


def test_each_class_has_its_own_deltas():
    rois = _rois()
    logits = jnp.zeros((1, 3, 4)).at[0, 0, 1].set(2.0)
    own = jnp.arange(12.0).reshape(1, 1, 12) * jnp.ones((1, 3, 1))
    classes = dataclasses.replace(rois, classes=jnp.array([[1, 0, 0]]))
    losses = box_losses(logits, own, classes)
    alone = box_losses(logits[..., :2], own[..., 4:8], rois)
    np.testing.assert_allclose(losses["box_deltas"], alone["box_deltas"], rtol=1e-6)
    # The background is the last of four; the first ROI is of the second class.
    entropy = [np.log(3 + np.exp(2)) - 2, np.log(4), np.log(4)]
    np.testing.assert_allclose(losses["box_class"], np.mean(entropy), rtol=1e-6)
    shared = box_losses(logits, own[..., 4:8], classes)
    np.testing.assert_allclose(shared["box_deltas"], alone["box_deltas"], rtol=1e-6)


def test_padding_of_rois_changes_nothing():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(1, 3, 2)), jnp.float32)
    deltas = jnp.asarray(rng.normal(size=(1, 3, 4)), jnp.float32)

    def pad(x, value):
        return jnp.concatenate([x, jnp.full((1, 2, *x.shape[2:]), value, x.dtype)], axis=1)

    rois = _rois()
    # Rows of padding may claim anything but to be valid.
    padded = RoiTargets(
        boxes=pad(rois.boxes, 0),
        is_valid=pad(rois.is_valid, False),
        is_foreground=pad(rois.is_foreground, True),
        gt_boxes=pad(rois.gt_boxes, 3),
        gt_index=pad(rois.gt_index, 9),
    )
    expected = box_losses(logits, deltas, rois)
    actual = box_losses(pad(logits, 40), pad(deltas, -7), padded)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6)


@pytest.mark.parametrize("is_valid", [True, False])
def test_without_foreground_the_regressor_gets_a_zero_gradient(is_valid):
    rois = dataclasses.replace(
        _rois(), is_valid=jnp.full((1, 3), is_valid), is_foreground=jnp.zeros((1, 3), bool)
    )

    def total(logits, deltas):
        return sum(box_losses(logits, deltas, rois).values())

    logits, deltas = jnp.ones((1, 3, 2)), jnp.ones((1, 3, 4))
    value, (of_logits, of_deltas) = jax.value_and_grad(total, argnums=(0, 1))(logits, deltas)
    np.testing.assert_allclose(value, np.log(2) if is_valid else 0, rtol=1e-6)
    assert np.isfinite(of_logits).all() and (np.asarray(of_logits) != 0).any() == is_valid
    np.testing.assert_array_equal(of_deltas, 0)


def test_one_pixel_boxes_give_finite_losses():
    rois = dataclasses.replace(
        _rois(), gt_boxes=jnp.array([[[2.0, 2, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]]])
    )
    loss, gradient = jax.value_and_grad(
        lambda deltas: box_losses(jnp.zeros((1, 3, 2)), deltas, rois)["box_deltas"]
    )(jnp.zeros((1, 3, 4)))
    # Centre off by 2.5 of 10 pixels on both axes, a tenth as large.
    np.testing.assert_allclose(loss, (2 * 2.5 + 2 * 5 * np.log(10)) / 3, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_box_losses_equal_the_original_on_its_outputs(golden_dir, case):
    with np.load(golden_dir / f"{case}.npz") as file:
        stored = {name: file[f"train/box/{name}"] for name in ("cls_logits", "deltas")}
        expected = [file[f"train/losses/{name}"] for name in ("loss_cls", "loss_box_reg")]
        images = [
            {
                name: file[f"train/roi/{i}/{name}"]
                for name in ("proposal_boxes", "gt_classes", "gt_boxes", "gt_index")
            }
            for i in (0, 1)
        ]
    rois = [
        RoiTargets(
            boxes=image["proposal_boxes"],
            is_valid=np.ones(len(image["gt_classes"]), bool),
            is_foreground=image["gt_classes"] == 0,
            gt_boxes=image["gt_boxes"],
            gt_index=image["gt_index"],
        )
        for image in images
    ]
    rois = jax.tree.map(lambda *rows: jnp.concatenate(rows)[None], *rois)
    losses = box_losses(stored["cls_logits"][None], stored["deltas"][None], rois)
    np.testing.assert_allclose(losses["box_class"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(losses["box_deltas"], expected[1], rtol=1e-5)
