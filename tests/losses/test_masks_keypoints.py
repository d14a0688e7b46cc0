"""Losses of masks, and masks cut out for ROIs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.losses import masks_keypoints
from ktn_jax.losses.masks_keypoints import MaskTargets

GRID = 256


def test_mask_loss_is_the_mean_over_rois_and_cells():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 4)).astype(np.float32)
    labels = rng.random((3, 4, 4)) < 0.5
    entropy = np.logaddexp(0, logits) - labels * logits
    weight = np.array([1, 3, 0], np.float32)

    def loss(logits):
        return masks_keypoints.mask_loss(logits, MaskTargets(jnp.asarray(labels), weight)).value

    expected = (entropy[0].mean() + 3 * entropy[1].mean()) / 4
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    closed = (probability - labels) * weight[:, None, None] / 4 / 16
    np.testing.assert_allclose(gradient, closed, atol=1e-7)
    nobody = MaskTargets(jnp.asarray(labels), jnp.zeros(3))
    assert masks_keypoints.mask_loss(jnp.asarray(logits), nobody).value == 0


def test_cells_that_are_half_covered_are_the_persons():
    """A person fills the left 3/8 of the box; ROIs are moved and larger than it."""
    mask = np.zeros((4, GRID, GRID), np.uint8)
    mask[:, :, :96] = 1
    boxes = np.tile(np.float32([100, 50, 164, 114]), (4, 1))  # a cell is a quarter of a pixel
    rois = np.float32(
        [
            [100, 50, 164, 114],  # the box: 4 columns end at 116, 132, 148, 164; the person at 124
            [92, 50, 156, 114],  # ends at 108, 124: half of the first column is outside
            [60, 18, 188, 146],  # twice as large: the person is in 100..124, 50..114
            [0, 0, 0, 0],
        ]
    )
    labels = masks_keypoints.mask_labels(
        jnp.asarray(mask), jnp.asarray(boxes), jnp.asarray(rois), 4
    )
    columns = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    rows = np.array([[1] * 4, [1] * 4, [0, 1, 1, 0], [0] * 4], bool)
    # Of the third ROI: columns 60..92, 92..124 (24 of 32 pixels), rows 18..50, 50..82, 82..114.
    np.testing.assert_array_equal(labels, rows[:, :, None] & columns[:, None, :])


@pytest.mark.parity
@pytest.mark.parametrize("case", ["keypoint_mask_rcnn_r50_tiny", "densepose_r50_multitask_tiny"])
def test_masks_of_grids_are_nearly_those_of_the_original(golden_dir, case):
    """Both kinds of the original's targets, made exactly; ours from grids differ in few cells."""
    from ktn_jax.verification import mask_targets, samples
    from ktn_jax.verification.dump import Dump

    dump = Dump(golden_dir / f"{case}.npz")
    people = samples.read_samples(dump).people["masks"]
    rows = list(mask_targets.compare_targets(dump, samples.read_batch(dump), people))
    assert [row.key for row in rows] == [
        "train/mask/targets_polygon",
        "train/mask/targets_bitmask",
        "train/mask/targets",
        "train/mask/targets from grids",
    ]
    assert [row.error for row in rows[:3]] == [0, 0, 0]
    assert rows[3].error < 0.01
