"""Losses of the branches: each has the weight that the configuration names after it."""

import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.configs import ktn
from ktn_jax.structures import BranchOutputs
from ktn_jax.training.branch_losses import branch_losses
from ktn_jax.training.targets import People


def test_keypoints_of_the_head_weigh_what_they_do_in_detectron2():
    """KTN's heatmaps beside them weigh less. Of equal scores the cross-entropy is known."""
    batch = {"image": jnp.zeros((1, 32, 32, 3)), "keypoints": jnp.zeros((1, 1, 17, 3))}
    batch["keypoints"] = batch["keypoints"].at[0, 0, 3].set(jnp.array([9.0, 9.0, 2.0]))
    whole = jnp.array([[[0.0, 0.0, 32.0, 32.0]]])
    people = {"keypoints": People(whole, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)))}
    scores = BranchOutputs(features={}, keypoint_scores=jnp.zeros((1, 4, 4, 17)))
    loss = ktn.get_config("cascade").loss
    assert loss.keypoint_weight == 0.1
    found = branch_losses([scores, scores], (1.0, 0.5), people, batch, loss)
    first = np.log(8 * 8)  # cells of the upsampled heatmap
    values = {name: float(term.value) for name, term in found.items()}
    assert values == pytest.approx({"keypoint_head": first, "stage2/keypoint_head": first / 2})
