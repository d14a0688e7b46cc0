"""Losses of embeddings against closed forms, in chunks and whole, with padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.losses import embeddings as losses
from ktn_jax.losses.densepose import DensePoseTargets
from ktn_jax.losses.embeddings import CycleSamples, PixelCycle

SIGMA = 0.1


def _unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def _softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _squared(a, b):
    return np.square(a[:, None].astype(float) - b[None].astype(float)).sum(-1)


def _case():
    points, table = _unit(11, 6), _unit(9, 6, seed=1)
    vertices = np.random.default_rng(2).integers(0, 9, 11)
    is_used = np.arange(11) % 3 != 0
    lengths = np.random.default_rng(3).uniform(0, 1, (9, 9)).astype(np.float32)
    return points, table, vertices, is_used, lengths


@pytest.mark.parametrize("is_soft", [False, True])
def test_chunks_change_neither_the_cross_entropy_nor_its_gradient(is_soft):
    points, table, vertices, is_used, lengths = _case()
    geodesics = jnp.asarray(lengths) if is_soft else None
    options = {"sigma": SIGMA, "geodesics": geodesics, "geodesic_sigma": 0.2}

    def total(points, table, chunk):
        entropy = losses.vertex_cross_entropy(
            points, jnp.asarray(vertices), jnp.asarray(is_used), table, chunk=chunk, **options
        )
        return (entropy * jnp.arange(1.0, 12)).sum(), entropy

    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
    results = [run(points, table, chunk) for chunk in (11, 2)]
    (_, entropy), gradients = results[0]
    wanted = np.eye(9)[vertices]
    if is_soft:
        wanted = _softmax(-lengths[vertices] / 0.2, 1)
    log_p = np.log(_softmax(-_squared(points, table) / SIGMA, 1))
    expected = np.where(is_used, -(wanted * log_p).sum(1), 0)
    np.testing.assert_allclose(entropy, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(results[1][0][1], entropy, rtol=1e-6, atol=1e-6)
    for whole, chunked in zip(gradients, results[1][1], strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-6 * np.abs(whole).max())
    # With respect to logits a cross-entropy has the gradient p - wanted.
    slope = (np.exp(log_p) - wanted) * (is_used * np.arange(1, 12))[:, None]
    by_points = 2 / SIGMA * slope @ table
    np.testing.assert_allclose(gradients[0], by_points, atol=1e-5 * np.abs(by_points).max())


def test_the_points_of_a_whole_batch_need_bounded_memory():
    """16 images of 32 people with 200 points each: all of the logits are 11 GB."""
    count, vertices = 16 * 32 * 200, 27_554

    def total(points, table, own, is_used):
        entropy = losses.vertex_cross_entropy(points, own, is_used, table, sigma=0.01)
        return entropy.sum()

    shapes = (
        jax.ShapeDtypeStruct((count, 16), jnp.float32),
        jax.ShapeDtypeStruct((vertices, 16), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.bool_),
    )
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 250e6


def _targets(rois=3, points=4):
    rng = np.random.default_rng(0)
    boxes = jnp.tile(jnp.array([[10.0, 20.0, 60.0, 100.0]]), (rois, 1))
    zeros = jnp.zeros((rois, points))
    return DensePoseTargets(
        boxes=boxes,
        weight=jnp.array([1.0, 1.0, 2.0])[:rois],
        gt_boxes=boxes,
        has_densepose=jnp.ones(rois, bool),
        point_is_valid=jnp.ones((rois, points), bool),
        point_x=jnp.asarray(rng.uniform(0, 250, (rois, points)), jnp.float32),
        point_y=jnp.asarray(rng.uniform(0, 250, (rois, points)), jnp.float32),
        point_i=zeros.astype(jnp.int32),
        point_u=zeros,
        point_v=zeros,
        part_mask=jnp.zeros((rois, 256, 256), jnp.uint8),
        keypoints=jnp.zeros((rois, 17, 3)),
        point_vertex=jnp.asarray(rng.integers(0, 7, (rois, points)), jnp.int32),
        mesh=jnp.array([0, 1, 0])[:rois],
    )


def test_every_mesh_has_the_mean_over_its_own_points():
    """A constant map: every point has the same embedding, whatever its length."""
    tables = [jnp.asarray(_unit(n, 4, seed=n)) for n in (7, 8, 9)]
    vector = 3 * _unit(4, seed=5)
    maps = jnp.broadcast_to(jnp.asarray(vector), (3, 6, 6, 4))
    targets = _targets()
    targets = dataclasses.replace(
        targets,
        # A point outside of its ROI, one that is padding, and a person without DensePose.
        point_x=targets.point_x.at[0, 0].set(300.0),
        point_is_valid=targets.point_is_valid.at[2, 1].set(False),
    )

    @jax.jit
    def run(targets):
        return [term.value for term in losses.vertex_losses(maps, targets, tables, sigma=SIGMA)]

    values = run(targets)
    direction = (vector / np.linalg.norm(vector))[None]
    expected = []
    for number, table in enumerate(tables):
        log_p = np.log(_softmax(-_squared(direction, np.asarray(table)) / SIGMA, 1))[0]
        total = weights = 0.0
        for roi, point in np.ndindex(3, 4):
            if int(targets.mesh[roi]) == number and (roi, point) not in ((0, 0), (2, 1)):
                weight = float(targets.weight[roi])
                total -= weight * log_p[int(targets.point_vertex[roi, point])]
                weights += weight
        expected.append(total / weights if weights else 0.0)
    assert expected[2] == 0 and min(expected[:2]) > 0
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    without = dataclasses.replace(targets, has_densepose=jnp.array([True, False, True]))
    assert float(run(without)[1]) == 0
    np.testing.assert_array_equal(losses.has_meshes(targets, 3), [True, True, False])
    np.testing.assert_array_equal(losses.has_meshes(without, 3), [True, False, False])
    with pytest.raises(ValueError, match="no point_vertex and mesh"):
        charts = dataclasses.replace(targets, point_vertex=None)
        losses.vertex_losses(maps, charts, tables, sigma=SIGMA)


def _pixel_cycle(embedding, pixels, table, power):
    flat = embedding.reshape(-1, embedding.shape[-1])[pixels]
    similar = flat / np.linalg.norm(flat, axis=1, keepdims=True) @ table.T
    cycle = _softmax(similar / 0.5, 1) @ _softmax(similar.T / 0.25, 1)
    size = embedding.shape[0]
    places = np.stack([pixels // size, pixels % size], 1)
    distance = np.square(places[:, None] - places[None]).sum(-1)
    return (np.abs(distance * cycle) ** power).sum() ** (1 / power)


def _cycles(pixels, is_pixel):
    return CycleSamples(jnp.asarray(pixels), jnp.asarray(is_pixel), jnp.asarray(0), ())


@pytest.mark.parametrize("power", [2, 3])
def test_pixels_return_as_the_closed_form_says(power):
    maps = np.random.default_rng(0).normal(size=(3, 4, 4, 5)).astype(np.float32)
    tables = [_unit(7, 5), _unit(8, 5, seed=1)]
    # Of the first ROI all five pixels, of the second two, of the third none; a fourth is padding.
    pixels = np.random.default_rng(1).permuted(np.tile(np.arange(16), (4, 2, 1)), axis=-1)[..., :5]
    count = np.array([5, 2, 0, 4])
    is_pixel = np.broadcast_to(np.arange(5) < count[:, None, None], pixels.shape)
    weight = jnp.array([1.0, 1.0, 1.0, 0.0])
    options = PixelCycle(norm=power, vertex_temperature=0.5, pixel_temperature=0.25)
    maps = np.concatenate([maps, np.full_like(maps[:1], np.nan)])

    def loss(maps, has_mesh):
        cycles = _cycles(pixels, is_pixel)
        return losses.pixel_cycle_loss(
            maps, weight, has_mesh, [jnp.asarray(t) for t in tables], cycles, options
        ).value

    run = jax.jit(jax.value_and_grad(loss))
    expected = np.array(
        [
            [_pixel_cycle(maps[r], pixels[r, m, : count[r]], tables[m], power) for m in (0, 1)]
            for r in (0, 1)
        ]
    )
    value, gradient = run(maps, jnp.array([True, True]))
    # The ROI without pixels counts with 0, as in the original.
    np.testing.assert_allclose(value, expected.sum() / 6, rtol=1e-5)
    assert np.isfinite(gradient[:3]).all() and np.abs(gradient[:2]).max() > 0
    assert not np.asarray(gradient[2:]).any()
    value, _ = run(maps, jnp.array([False, True]))
    np.testing.assert_allclose(value, expected[:, 1].sum() / 3, rtol=1e-5)
    assert float(run(maps, jnp.array([False, False]))[0]) == 0


def test_pixels_that_know_their_vertices_return_to_themselves():
    table = np.eye(6, dtype=np.float32)
    maps = np.zeros((1, 2, 3, 6), np.float32)
    square = (
        jnp.asarray(np.concatenate([maps, maps], axis=1)[:, :3])
        .at[0, :2]
        .set(np.eye(6).reshape(2, 3, 6))
    )
    pixels = np.arange(6)[None, None]
    loss = losses.pixel_cycle_loss(
        square,
        jnp.ones(1),
        jnp.ones(1, bool),
        [jnp.asarray(table)],
        _cycles(pixels, np.ones_like(pixels, bool)),
        PixelCycle(),
    )
    assert float(loss.value) < 1e-4


def test_vertices_return_as_the_closed_form_says():
    tables = [_unit(n, 5, seed=n) for n in (6, 7, 8)]
    lengths = [np.random.default_rng(n).uniform(0, 1, (n, n)) for n in (6, 7, 8)]
    drawn = [np.arange(6), np.array([4, 0, 2]), np.array([7, 1, 3, 5])]

    def loss(tables, pair):
        samples = CycleSamples(
            jnp.zeros((1, 3, 1), jnp.int32),
            jnp.zeros((1, 3, 1), bool),
            pair,
            tuple(jnp.asarray(d) for d in drawn),
        )
        geodesics = [jnp.asarray(length, jnp.float16) for length in lengths]
        return losses.shape_cycle_loss(tables, geodesics, samples, temperature=0.3).value

    run = jax.jit(jax.value_and_grad(loss))
    assert losses.mesh_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    for number, pair in enumerate(losses.mesh_pairs(3)):
        value, gradients = run([jnp.asarray(t) for t in tables], jnp.asarray(number))
        a, b = (tables[i][drawn[i]] for i in pair)
        there, back = _softmax(a @ b.T / 0.3, 1), _softmax(b @ a.T / 0.3, 1)
        expected = 0.0
        for i, cycle in zip(pair, (there @ back, back @ there), strict=True):
            expected += np.linalg.norm(lengths[i][np.ix_(drawn[i], drawn[i])] * cycle)
        np.testing.assert_allclose(value, expected, rtol=2e-3)  # float16 lengths
        trained = [bool(np.abs(gradient).max() > 0) for gradient in gradients]
        assert trained == [i in pair for i in range(3)]
