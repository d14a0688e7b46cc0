"""The teacher: its losses against closed forms, and its parameters in files."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.checkpoints import weights
from ktn_jax.configs import base, teacher
from ktn_jax.modeling.compute import PLAIN
from ktn_jax.modeling.networks import build_network
from ktn_jax.modeling.teacher import Teacher
from ktn_jax.structures import DensePoseOutputs
from ktn_jax.training import distributed
from ktn_jax.training.teacher import make_loss_fn


def _batch():
    """Two crops of 32 x 32: one with three points of which one is padding, one with nobody."""
    points = {
        "point_is_valid": [[True, True, False]],
        "point_x": [[64.0, 128.0, 0.0]],
        "point_y": [[64.0, 128.0, 0.0]],
        "point_i": [[3, 5, 9]],
        "point_u": [[0.5, 0.25, 0.9]],
        "point_v": [[0.5, 0.75, 0.9]],
        "part_mask": np.full((1, 256, 256), 2, np.uint8),
        "boxes": [[0.0, 0.0, 32.0, 32.0]],
        "keypoints": np.zeros((1, 17, 3), np.float32),
        "has_densepose": [True],
        "is_valid": [True],
    }
    batch = {}
    for name, values in points.items():
        values = np.asarray(values)
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        values = values.astype(np.int32) if values.dtype == np.int64 else values
        batch[name] = jnp.asarray(np.stack([values, np.zeros_like(values)]))
    return batch | {"image": jnp.zeros((2, 32, 32, 3), jnp.uint8)}


def _loss(batch, loss):
    maps = [jnp.zeros((2, 16, 16, channels)) for channels in (15, 25, 25, 25)]
    model = types.SimpleNamespace(
        compute=PLAIN,
        clone=lambda compute: model,
        apply=lambda *_, **__: (DensePoseOutputs(*maps), {}),
    )
    training = base.get_config().training
    compute = jax.jit(make_loss_fn(model, loss, distributed.make_mesh(1), training))
    total, (losses, stats) = compute({}, {"kept": 1}, batch, jax.random.key(0))
    assert stats == {"kept": 1}
    return float(total), {name: float(value) for name, value in losses.items()}


def test_losses_are_those_of_the_points_and_parts():
    loss = teacher.get_config("tiny").loss
    total, losses = _loss(_batch(), loss)
    # Zero logits: every class is as likely. U and V: smooth L1 of beta 1, summed over the points.
    scale = loss.point_weight * loss.images_per_device / 2
    expected = {
        "fine_segm": loss.fine_segm_weight * np.log(25),
        "coarse_segm": loss.coarse_segm_weight * np.log(15),
        "u": scale * (0.5**2 + 0.25**2) / 2,
        "v": scale * (0.5**2 + 0.75**2) / 2,
    }
    assert losses == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(sum(expected.values()), rel=1e-5)


def test_nobody_teaches_nothing():
    batch = _batch()
    nobody = {name: jnp.zeros_like(values) for name, values in batch.items()}
    total, losses = _loss(nobody, teacher.get_config("tiny").loss)
    assert total == 0 and set(losses) == {"fine_segm", "coarse_segm", "u", "v"}


def test_a_teacher_that_sees_parts_reads_them_beside_the_colours():
    shapes = weights.abstract_variables(build_network(teacher.get_config("tiny").model))
    assert shapes["params"]["backbone"]["stem_conv1"]["conv"]["kernel"].shape[2] == 3 + 15


def test_a_teacher_needs_charts_that_are_learnt():
    config = teacher.get_config("tiny").model
    config.predictor.name = "ktn"
    with pytest.raises(ValueError, match="predictor.name 'chart'"):
        weights.abstract_variables(build_network(config))
    config.kind = "student"
    with pytest.raises(ValueError, match="model.kind 'student'"):
        build_network(config)
    crops = teacher.get_config("tiny").model
    model = build_network(crops)
    assert isinstance(model, Teacher)
