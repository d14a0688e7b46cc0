"""Labels and samples of a training step: counts, masks, keys, and what stands for what."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ktn_jax.losses.detection import RoiTargets
from ktn_jax.ops import boxes as box_ops
from ktn_jax.structures import Proposals
from ktn_jax.training import targets

SIZE, PEOPLE, POINTS = 128.0, 4, 3
ANCHORS = jnp.asarray(
    box_ops.grid_anchors((8, 8), 16, box_ops.cell_anchors((16.0, 48.0), (0.5, 1.0, 2.0)))
)


def _batch(boxes, is_valid, has_densepose=None):
    """A batch of people without images; annotations tell which person they belong to."""
    boxes = jnp.asarray(boxes, jnp.float32)
    place = boxes.shape[:2]
    person = jnp.arange(place[0] * place[1]).reshape(place)
    is_valid = jnp.asarray(is_valid)
    points = jnp.broadcast_to(person[..., None], (*place, POINTS))
    return {
        "boxes": boxes,
        "is_valid": is_valid,
        "has_densepose": is_valid if has_densepose is None else jnp.asarray(has_densepose),
        "keypoints": jnp.broadcast_to(person[..., None, None], (*place, 17, 3)).astype(float),
        "part_mask": jnp.broadcast_to(person[..., None, None], (*place, 2, 2)).astype(jnp.uint8),
        "point_is_valid": jnp.ones(points.shape, bool),
        "point_i": points,
        **{f"point_{name}": points.astype(jnp.float32) for name in "xyuv"},
    }


def _proposals(boxes, is_valid):
    boxes = jnp.asarray(boxes, jnp.float32)
    return Proposals(boxes, jnp.zeros(boxes.shape[:2]), jnp.asarray(is_valid))


def _keys(key, batch):
    return jax.random.split(key, len(batch["boxes"]))


@functools.partial(jax.jit, static_argnames=("number",))
def _label(key, batch, number=16):
    return targets.label_anchors(
        _keys(key, batch),
        ANCHORS,
        batch,
        iou_thresholds=(0.3, 0.7),
        num_samples=number,
        positive_fraction=0.5,
    )


@jax.jit
def _sample(key, proposals, batch):
    return targets.sample_rois(
        _keys(key, batch),
        proposals,
        batch,
        iou_threshold=0.5,
        num_samples=12,
        positive_fraction=0.25,
    )


@functools.partial(jax.jit, static_argnames=("number", "threshold"))
def _choose(key, rois, has_annotation, number, threshold=0.6):
    qualifies = targets.densepose_rois(rois, has_annotation, threshold)
    return targets.choose_people(jax.random.split(key, len(qualifies)), rois, qualifies, number)


@st.composite
def _people(draw):
    """Boxes of all sizes, from a pixel to beyond the image, with padding and empty ones."""
    rows = []
    for _ in range(2 * PEOPLE):
        x, y = draw(st.floats(-10, SIZE)), draw(st.floats(-10, SIZE))
        width, height = (draw(st.sampled_from([0.0, 1.0, 7.0, 40.0, 200.0])) for _ in "xy")
        rows.append([x, y, x + width, y + height])
    is_valid = draw(st.lists(st.booleans(), min_size=2 * PEOPLE, max_size=2 * PEOPLE))
    boxes = np.reshape(np.asarray(rows, np.float32), (2, PEOPLE, 4))
    return _batch(boxes, np.reshape(is_valid, (2, PEOPLE)))


_settings = hypothesis.settings(max_examples=25, deadline=None)


@_settings
@hypothesis.given(batch=_people(), seed=st.integers(0, 2**31))
def test_anchor_labels_are_bounded_and_only_of_real_people(batch, seed):
    labelled = _label(jax.random.key(seed), batch)
    labels, matched = np.asarray(labelled.labels), np.asarray(labelled.boxes)
    iou = np.asarray(box_ops.pairwise_iou(batch["boxes"], jnp.stack([ANCHORS, ANCHORS])))
    usable = np.asarray(targets.usable_people(batch))
    for image in range(2):
        real = np.where(usable[image][:, None], iou[image], -1)
        positive, negative = labels[image] == 1, labels[image] == 0
        assert set(np.unique(labels[image])) <= {-1, 0, 1}
        assert positive.sum() <= 8 and (positive | negative).sum() <= 16
        if not usable[image].any():
            assert not positive.any() and negative.sum() == 16
            continue
        assert (real[:, negative].max(0) < 0.3).all()
        assert (real[:, positive].max(0) > 0).all()
        own = box_ops.pairwise_iou(matched[image][:, None], ANCHORS[:, None])[:, 0, 0]
        np.testing.assert_allclose(np.asarray(own)[positive], real[:, positive].max(0), atol=1e-6)


def test_what_a_model_was_not_sure_of_is_no_background():
    """A person on the left, somebody unsure on the right: nothing there is background."""
    boxes = np.zeros((2, PEOPLE, 4), np.float32)
    boxes[:, 0] = [8, 8, 40, 100]
    is_valid = np.arange(PEOPLE) < 1
    batch = _batch(boxes, np.broadcast_to(is_valid, (2, PEOPLE)))
    regions = np.zeros((2, PEOPLE, 4), np.float32)
    regions[0, 1] = [70, 20, 110, 110]
    batch["ignored_boxes"] = jnp.asarray(regions)
    labelled = _label(jax.random.key(0), batch, number=2 * len(ANCHORS))
    iou = np.asarray(box_ops.pairwise_iou(regions[0, 1:2], ANCHORS))[0]
    coverage = np.asarray(box_ops.pairwise_coverage(regions[0, 1:2], ANCHORS))[0]
    is_open = (iou >= 0.3) | (coverage >= 0.5)
    plain = np.asarray(labelled.labels[1])  # the same image without the region
    np.testing.assert_array_equal(
        np.asarray(labelled.labels[0]), np.where((plain == 0) & is_open, -1, plain)
    )
    assert (is_open & (plain == 0)).sum() > 5 and (plain == 1).any()
    proposals = jnp.concatenate([ANCHORS, ANCHORS]).reshape(2, -1, 4)
    rois = _sample(
        jax.random.key(0), _proposals(proposals, np.ones(proposals.shape[:2], bool)), batch
    )
    background = np.asarray(rois.boxes[0])[np.asarray(rois.is_valid & ~rois.is_foreground)[0]]
    assert len(background) >= 9
    covered = np.asarray(box_ops.pairwise_coverage(regions[0, 1:2], background))
    assert (covered < 0.5).all()


def test_every_person_has_an_anchor_however_small():
    rng = np.random.default_rng(0)
    corner = rng.uniform(8, 110, (2, PEOPLE, 2))
    boxes = np.concatenate([corner, corner + [1.0, 1.0]], axis=-1)
    batch = _batch(boxes, np.ones((2, PEOPLE), bool))
    labelled = _label(jax.random.key(0), batch, number=2 * len(ANCHORS))
    for image in range(2):
        found = np.asarray(labelled.boxes[image])[np.asarray(labelled.labels[image]) == 1]
        assert {tuple(box) for box in found} == {tuple(box) for box in np.float32(boxes[image])}


def test_unusable_anchors_never_train():
    batch = _batch([[[0, 0, 48, 48.0]]], [[True]])
    is_usable = jnp.arange(len(ANCHORS))[None] % 3 == 0
    labelled = targets.label_anchors(
        jax.random.split(jax.random.key(0), 1),
        ANCHORS,
        batch,
        iou_thresholds=(0.3, 0.7),
        num_samples=1000,
        positive_fraction=0.5,
        is_usable=is_usable,
    )
    trains = np.asarray(labelled.labels) >= 0
    assert trains.any() and not (trains & ~np.asarray(is_usable)).any()


@_settings
@hypothesis.given(batch=_people(), seed=st.integers(0, 2**31), shift=st.floats(-20, 20))
def test_rois_are_bounded_and_match_real_people(batch, seed, shift):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, SIZE, (2, 9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 60, (2, 9, 2))], axis=-1)
    boxes[:, :PEOPLE] = np.asarray(batch["boxes"]) + shift
    proposals = _proposals(boxes, rng.random((2, 9)) < 0.7)
    rois = jax.device_get(_sample(jax.random.key(seed), proposals, batch))
    usable = np.asarray(targets.usable_people(batch))
    is_valid = np.asarray(proposals.is_valid)
    for image in range(2):
        available = is_valid[image].sum() + usable[image].sum()
        valid, foreground = rois.is_valid[image], rois.is_foreground[image]
        assert foreground.sum() <= 3 and valid.sum() <= min(12, available)
        assert (foreground <= valid).all() and (np.diff(valid.astype(int)) <= 0).all()
        # People are proposals of themselves, so each image with people has foreground.
        assert foreground.any() == usable[image].any()
        assert usable[image][rois.gt_index[image][foreground]].all()
        own = batch["boxes"][image][rois.gt_index[image]]
        np.testing.assert_array_equal(rois.gt_boxes[image][foreground], own[foreground])
        iou = np.asarray(box_ops.pairwise_iou(rois.boxes[image], batch["boxes"][image]))
        iou = np.where(usable[image], iou, 0)
        of_own = iou[np.arange(len(iou)), rois.gt_index[image]]
        assert (of_own == iou.max(1))[foreground].all() and (of_own[foreground] >= 0.5).all()
        assert (iou.max(1)[valid & ~foreground] < 0.5).all()
        np.testing.assert_array_equal(rois.boxes[image][~valid], 0)


def test_sampling_follows_the_key_and_nothing_else():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (2, 40, 2))
    boxes = np.concatenate([corner, corner + 20], axis=-1)
    batch = _batch(boxes[:, :PEOPLE], np.ones((2, PEOPLE), bool))
    proposals = _proposals(boxes, np.ones((2, 40), bool))
    one, again = (_sample(jax.random.key(5), proposals, batch) for _ in range(2))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (np.asarray(_sample(jax.random.key(6), proposals, batch).boxes) != one.boxes).any()
    # Images of one batch draw apart: equal images do not draw alike.
    twins = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), (proposals, batch))
    drawn = _sample(jax.random.key(5), *twins).boxes
    assert (np.asarray(drawn[0]) != np.asarray(drawn[1])).any()


def _rois(count, people=2):
    """One image whose first `count` ROIs overlap their people by IoUs that fall slowly."""
    width = 20 - jnp.arange(count) * 0.1
    corner = jnp.stack([jnp.zeros(count), jnp.arange(count) * 30.0], axis=1)
    gt_boxes = jnp.concatenate([corner, corner + 20], axis=1)
    boxes = gt_boxes.at[:, 2].set(width)
    index = jnp.arange(count) % people
    valid = jnp.ones((1, count), bool)
    return RoiTargets(boxes[None], valid, valid, gt_boxes[None], index[None])


def test_choice_keeps_the_order_and_takes_iou_above_the_threshold():
    rois = _rois(8)
    # IoUs are 1, .995, .99, ...: the fifth is on the threshold and stays out.
    threshold = float(np.float32(19.6) * 20 / 400)
    rois = dataclasses.replace(
        rois, is_foreground=rois.is_foreground.at[0, 1].set(False), is_valid=rois.is_valid
    )
    people = _choose(jax.random.key(0), rois, jnp.ones((1, 2), bool), 6, threshold)
    np.testing.assert_array_equal(people.weight[0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(people.boxes[0, :3], rois.boxes[0, jnp.array([0, 2, 3])])
    np.testing.assert_array_equal(people.gt_index[0], [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(people.boxes[0, 3:], 0)


def test_people_without_annotation_are_masked():
    people = _choose(jax.random.key(0), _rois(8), jnp.array([[False, True]]), 6)
    np.testing.assert_array_equal(people.gt_index[0, :4], 1)
    np.testing.assert_array_equal(people.weight[0], [1, 1, 1, 1, 0, 0])
    nobody = _choose(jax.random.key(0), _rois(8), jnp.zeros((1, 2), bool), 6)
    np.testing.assert_array_equal(nobody.weight, 0)


def test_a_subset_stands_for_all_in_expectation():
    rois = _rois(10)
    value = np.random.default_rng(0).normal(size=10)
    table = jnp.asarray(value, jnp.float32)

    def total(key):
        people = _choose(key, rois, jnp.ones((1, 2), bool), 4)
        which = jnp.argmax((people.boxes[0][:, None] == rois.boxes[0][None]).all(-1), axis=1)
        return (people.weight[0] * table[which]).sum(), people.weight[0]

    totals, weights = jax.vmap(total)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(weights, 10 / 4)
    # Of 4 drawn from 10 without replacement.
    deviation = 10 * value.std(ddof=1) * np.sqrt((1 / 4 - 1 / 10) / 4000)
    assert abs(np.mean(totals) - value.sum()) < 4 * deviation
    assert np.std(totals) > 1


def test_teachers_depend_on_the_switches():
    batch = _batch(np.full((1, 4, 4), [0, 0, 9, 9]), [[True, True, True, False]])
    batch["has_densepose"] = jnp.array([[True, False, False, True]])
    batch["boxes"] = batch["boxes"].at[0, 2].set(jnp.array([3.0, 3, 3, 8]))  # empty

    def teachers(batch, **switches):
        defaults = {"densepose_people_only": True, "from_masks": False}
        return np.asarray(targets.teachers(batch, **defaults | switches))[0].tolist()

    assert teachers(batch) == [True, False, False, False]
    assert teachers(batch, densepose_people_only=False) == [True, True, False, False]
    with pytest.raises(ValueError, match="has_person_mask"):
        teachers(batch, from_masks=True)
    masks = {"person_mask": batch["part_mask"], "has_person_mask": jnp.ones((1, 4), bool)}
    assert teachers(batch | masks, from_masks=True) == [True, True, False, False]


def test_each_roi_gets_the_annotations_of_its_person():
    batch = _batch(np.arange(48).reshape(2, 6, 4), np.ones((2, 6), bool))
    people = targets.People(
        boxes=jnp.ones((2, 3, 4)),
        gt_index=jnp.array([[4, 0, 4], [2, 5, 0]]),
        weight=jnp.array([[1.0, 2, 0], [1, 1, 0]]),
    )
    laid = targets.densepose_targets(people, batch)
    person = np.array([4, 0, 4, 8, 11, 6])
    np.testing.assert_array_equal(laid.weight, [1, 2, 0, 1, 1, 0])
    np.testing.assert_array_equal(laid.gt_boxes, np.arange(48).reshape(12, 4)[person])
    for name in ("point_i", "point_x", "point_y", "point_u", "point_v", "part_mask", "keypoints"):
        values = np.asarray(getattr(laid, name)).reshape(6, -1)
        np.testing.assert_array_equal(values, np.repeat(person[:, None], values.shape[1], 1))
    assert laid.mask_labels is None and laid.point_weight is None and laid.label_weight is None


def test_points_of_a_model_weigh_their_confidence():
    """Three people: an annotator's and others' points, a model's alone, and none."""
    batch = _batch(np.arange(12).reshape(1, 3, 4), np.ones((1, 3), bool), [[True, True, False]])
    shape = batch["point_i"].shape
    is_annotated, is_valid = np.zeros(shape, bool), np.ones(shape, bool)
    is_annotated[0, 0, 1], is_valid[0, 1, 2] = True, False
    confidence = np.full(shape, 0.5, np.float32)
    confidence[0, 1] = 0.75
    confidence[0, 1, 2] = 0.9  # padding
    batch |= {
        "point_is_annotated": jnp.asarray(is_annotated),
        "point_confidence": jnp.asarray(confidence),
        "point_is_valid": jnp.asarray(is_valid),
        "person_mask": jnp.zeros((1, 3, 256, 256), jnp.uint8),
        "has_person_mask": jnp.ones((1, 3), bool),
    }
    weights = np.where(is_annotated, 1, 0.2 * confidence)
    np.testing.assert_allclose(targets.point_weights(batch, 0.2), weights, rtol=1e-6)
    np.testing.assert_allclose(targets.label_weights(batch, 0.2), [[1, 0.15, 1]], rtol=1e-6)
    people = targets.People(
        boxes=jnp.ones((1, 2, 4)), gt_index=jnp.array([[1, 0]]), weight=jnp.array([[2.0, 1.0]])
    )
    laid = targets.densepose_targets(people, batch, dense_weight=0.2)
    np.testing.assert_allclose(laid.point_weight, weights[0, [1, 0]], rtol=1e-6)
    np.testing.assert_allclose(laid.label_weight, [0.15, 1], rtol=1e-6)
    np.testing.assert_array_equal(laid.weight, [2, 1])
    np.testing.assert_allclose(
        targets.mask_targets(people, batch, 4, dense_weight=0.2).weight, [0.3, 1], rtol=1e-6
    )
    del batch["point_is_annotated"], batch["point_confidence"]
    assert targets.densepose_targets(people, batch).point_weight is None


def test_rois_are_cut_out_of_the_masks_of_their_people():
    """A mask on the left half of its person: an ROI a quarter further right has it on a quarter."""
    batch = _batch(np.full((1, 2, 4), [8.0, 0, 40, 32]), np.ones((1, 2), bool))
    mask = np.zeros((1, 2, 256, 256), np.uint8)
    mask[0, 1, :, :128] = 1
    people = targets.People(
        boxes=jnp.array([[[8.0, 0, 40, 32], [16, 0, 48, 32], [8, 0, 40, 32]]]),
        gt_index=jnp.array([[1, 1, 0]]),
        weight=jnp.ones((1, 3)),
    )
    with pytest.raises(ValueError, match=r"person_mask.*data\.with_person_masks"):
        targets.densepose_targets(people, batch, mask_size=8)
    batch |= {"person_mask": jnp.asarray(mask), "has_person_mask": jnp.array([[False, True]])}
    laid = targets.densepose_targets(people, batch, mask_size=8)
    np.testing.assert_array_equal(laid.has_person_mask, [True, True, False])
    expected = np.zeros((3, 8, 8), bool)
    expected[0, :, :4] = expected[1, :, :2] = True
    np.testing.assert_array_equal(laid.mask_labels, expected)


def test_rois_of_keypoints_show_one_and_those_of_masks_have_one():
    """Four ROIs of two people: keypoints on the border count, hidden and outside ones do not."""
    boxes = jnp.array([[[0.0, 0, 20, 20], [40, 40, 60, 60]]])
    batch = _batch(boxes, [[True, True]])
    keypoints = np.zeros((1, 2, 17, 3), np.float32)
    keypoints[0, 0, 3] = [20, 10, 2]  # on the right border of the first ROI
    keypoints[0, 0, 4] = [5, 5, 0]  # hidden
    batch["keypoints"] = jnp.asarray(keypoints)
    rois = RoiTargets(
        boxes=jnp.array([[[0.0, 0, 20, 20], [0, 0, 19, 20], [40, 40, 60, 60], [0, 0, 20, 20]]]),
        is_valid=jnp.array([[True, True, True, True]]),
        is_foreground=jnp.array([[True, True, True, False]]),
        gt_boxes=jnp.zeros((1, 4, 4)),
        gt_index=jnp.array([[0, 0, 1, 0]]),
    )
    shown = targets.keypoint_rois(rois, batch)
    np.testing.assert_array_equal(shown, [[True, False, False, False]])
    with pytest.raises(ValueError, match="masks in model.tasks needs .*with_person_masks"):
        targets.mask_rois(rois, batch)
    masks = {"person_mask": batch["part_mask"], "has_person_mask": jnp.array([[False, True]])}
    np.testing.assert_array_equal(
        targets.mask_rois(rois, batch | masks), [[False, False, True, False]]
    )
    np.testing.assert_array_equal(targets.classes_of(rois.gt_index, batch), [[0, 0, 0, 0]])
    of_classes = targets.classes_of(rois.gt_index, batch | {"classes": jnp.array([[7, 2]])})
    np.testing.assert_array_equal(of_classes, [[7, 7, 2, 7]])
