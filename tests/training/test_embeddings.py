"""Training of embedding models on a minute one: what is drawn, what learns, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.checkpoints import weights
from ktn_jax.configs import cse
from ktn_jax.losses.embeddings import CycleSamples
from ktn_jax.modeling.detector import build_model
from ktn_jax.training import distributed, embeddings, objective, optimizer
from ktn_jax.training.loss_numbers import loss_numbers
from ktn_jax.training.targets import People

SIZE, PEOPLE, POINTS = 64, 3, 6
MESHES = {"cat": 12, "dog": 9}


def _config():
    config = cse.get_config("tiny")
    model = config.model
    model.backbone.stem_channels = model.backbone.width = 8
    model.backbone.res2_channels = 16
    model.neck.channels = model.decoder.channels = model.decoder.out_channels = 16
    model.box_head.hidden_features = 16
    model.densepose_head.channels, model.densepose_head.num_convs = 16, 1
    model.densepose_head.pooled_size = 7
    model.predictor.up_scale = 1
    model.rpn.anchor_sizes = ((8,), (16,), (32,), (48,), (64,))
    model.rpn.pre_nms_top_k_train = model.rpn.post_nms_top_k_train = 30
    model.rpn.batch_size_per_image = model.box_head.batch_size_per_image = 16
    cse.use_meshes(config, MESHES)
    # Of the cat only the matrix trains, of the dog everything.
    model.meshes.num_features, model.meshes.trains_features = (5, 0), (False, True)
    loss = config.loss
    loss.densepose_rois_per_image = 4
    loss.embedding.has_soft_targets = loss.coarse_segm_from_masks = True
    loss.pixel_cycle.weight = loss.shape_cycle.weight = 0.01
    loss.pixel_cycle.num_pixels, loss.shape_cycle.max_vertices = 10, 10
    return config


def _batch(images=2):
    rng = np.random.default_rng(0)
    people, points = (images, PEOPLE), (images, PEOPLE, POINTS)
    corner = rng.uniform(0, 20, (*people, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 40, (*people, 2))], axis=-1)
    masks = np.zeros((*people, 256, 256), np.uint8)
    masks[..., 50:200, 80:180] = 1
    return {
        "image": rng.integers(0, 255, (images, SIZE, SIZE, 3)).astype(np.uint8),
        "image_size_hw": np.full((images, 2), SIZE, np.int32),
        "image_id": np.arange(images, dtype=np.int32),
        "is_valid": np.broadcast_to(np.arange(PEOPLE) < 2, people),
        "boxes": boxes.astype(np.float32),
        "classes": np.broadcast_to(np.arange(PEOPLE) % 2, people).astype(np.int32),
        "mesh": np.broadcast_to(np.arange(PEOPLE) % 2, people).astype(np.int32),
        "keypoints": np.zeros((*people, 17, 3), np.float32),
        "has_densepose": np.broadcast_to(np.arange(PEOPLE) < 1, people),
        "has_person_mask": np.ones(people, bool),
        "person_mask": masks,
        "part_mask": masks,
        "point_is_valid": np.ones(points, bool),
        "point_i": np.zeros(points, np.int32),
        "point_vertex": rng.integers(0, 9, points).astype(np.int32),
        **{f"point_{name}": rng.uniform(60, 190, points).astype(np.float32) for name in "xyuv"},
    }


def _geodesics():
    rng = np.random.default_rng(1)
    return {name: rng.uniform(0, 1, (n, n)).astype(np.float32) for name, n in MESHES.items()}


@pytest.mark.extended
def test_what_trains_of_an_embedding_model_learns():
    """The cats have points; the dogs have only masks, and both cycles."""
    config, batch = _config(), _batch()
    model = build_model(config.model)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), weights.abstract_variables(model)
    )
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    mesh = distributed.make_mesh(1)
    loss_fn = objective.make_loss_fn(model, config.loss, mesh, config.training)
    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

    def step(batch):
        collections = (variables["params"], variables["batch_stats"])
        (total, (losses, _)), gradients = run(
            *collections, batch, jax.random.key(1), loss_numbers(config.loss), _geodesics()
        )
        assert np.isfinite(total) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
        return losses, gradients

    losses, gradients = step(batch)
    detector = {"rpn_objectness", "rpn_deltas", "box_class", "box_deltas"}
    surface = {"coarse_segm", "pixel_cycle", "shape_cycle", "embedding_cat", "embedding_dog"}
    assert set(losses) == detector | surface
    assert {name for name, loss in losses.items() if loss == 0} == {"embedding_dog"}
    largest = jax.tree.map(lambda g: float(np.abs(np.asarray(g)).max()), gradients)
    assert largest["embedder"]["cat"]["features"] == 0 < largest["embedder"]["cat"]["embeddings"]
    assert largest["embedder"]["dog"]["embeddings"] > 0  # by the shape cycle
    assert largest["embedding_predictor"]["embedding_kernel"] > 0
    assert largest["embedding_predictor"]["coarse_kernel"] > 0
    # Without a single point nothing of the surface is trained, as in detectron2.
    nobody = dict(batch, has_densepose=np.zeros_like(batch["has_densepose"]))
    losses, gradients = step(nobody)
    assert {name for name, loss in losses.items() if loss == 0} == surface
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradients["embedder"]))


def test_losses_say_what_they_lack():
    config = _config()
    with pytest.raises(ValueError, match=r"need the geodesic distances .*\['dog'\]"):
        embeddings._lengths(("cat", "dog"), {"cat": jnp.zeros((12, 12))})
    people = People(jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)))
    cse.use_meshes(config, {"cat": 12})
    batch, key = {name: x[:1] for name, x in _batch().items()}, jax.random.key(0)
    with pytest.raises(ValueError, match="shape_cycle compares two meshes"):
        embeddings.draw_cycles(key, key[None], people, batch, config.model, config.loss)
    del batch["person_mask"]
    with pytest.raises(ValueError, match="person_mask"):
        embeddings.draw_cycles(key, key[None], people, batch, config.model, config.loss)


def test_drawn_pixels_are_on_the_person_and_vertices_on_the_mesh():
    config = _config()
    batch = _batch()
    # The box of the second image's ROI is beside its person's mask.
    boxes = np.stack([batch["boxes"][:, 0], batch["boxes"][:, 1]], axis=1)
    boxes[1, 1] = [0, 0, 1, 1]
    index = jnp.broadcast_to(jnp.arange(2), (2, 2))
    people = People(jnp.asarray(boxes), index, jnp.ones((2, 2)))

    def draw(key, batch, people):
        keys = jax.random.split(key)
        return embeddings.draw_cycles(key, keys, people, batch, config.model, config.loss)

    drawn: CycleSamples = jax.jit(draw)(jax.random.key(0), batch, people)
    size = 2 * config.model.densepose_head.pooled_size * config.model.predictor.up_scale
    assert drawn.pixels.shape == (4, len(MESHES), 10)
    middles = (np.arange(size) + 0.5) / size * 256
    for roi in range(3):
        for mesh in range(2):
            pixels = np.asarray(drawn.pixels[roi, mesh])
            assert drawn.is_pixel[roi, mesh].all() and len(set(pixels)) == 10
            rows, columns = middles[pixels // size], middles[pixels % size]
            assert (rows > 45).all() and (rows < 205).all()
            assert (columns > 75).all() and (columns < 185).all()
    assert (drawn.pixels[0, 0] != drawn.pixels[0, 1]).any()  # anew for each mesh
    assert not drawn.is_pixel[3].any()
    assert int(drawn.pair) == 0
    assert [len(v) for v in drawn.vertices] == [10, 9]
    assert len(set(np.asarray(drawn.vertices[0]))) == 10
    assert sorted(np.asarray(drawn.vertices[0]))[-1] < 12
    np.testing.assert_array_equal(drawn.vertices[1], np.arange(9))


def test_embeddings_that_do_not_train_are_frozen():
    config = cse.get_config("tiny")
    meshes = {"a.b": 4, "c": 4, "d": 4, "e": 4}
    cse.use_meshes(config, meshes)
    section = config.model.meshes
    section.num_features = (3, 3, 0, 0)
    section.trains_features = (False, True, True, True)
    section.trains = (True, True, True, False)
    patterns = optimizer.frozen_patterns(config)
    params = {
        "embedder": {
            name: {"embeddings": np.zeros(1)} | ({"features": np.zeros(1)} if name < "d" else {})
            for name in meshes
        }
    }
    labels = optimizer.label_parameters(params, {}, patterns)["embedder"]
    frozen = {
        f"{mesh}/{name}"
        for mesh, kinds in labels.items()
        for name, label in kinds.items()
        if label == optimizer.FROZEN
    }
    assert frozen == {"a.b/features", "e/embeddings"}
