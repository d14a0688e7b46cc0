import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktn_jax.ops import boxes as box_ops
from ktn_jax.ops import nms

FIXED = settings(deadline=None, derandomize=True, max_examples=40)


@functools.partial(jax.jit, static_argnums=(3, 4))
def run_nms(boxes, scores, is_valid, iou_threshold, max_outputs):
    return nms.nms(boxes, scores, is_valid, iou_threshold, max_outputs)


pairwise_iou = jax.jit(box_ops.pairwise_iou)


def kept(result):
    """The indices in filled slots; checks that empty ones follow and hold 0."""
    indices, is_kept = map(np.asarray, result)
    number = is_kept.sum()
    assert is_kept[:number].all() and not indices[number:].any()
    return indices[:number]


def greedy(boxes, scores, is_valid, iou_threshold):
    """The textbook loop."""
    iou = np.asarray(pairwise_iou(boxes, boxes))
    survivors = []
    for i in np.argsort(-scores, kind="stable"):
        if is_valid[i] and not any(iou[i, j] > iou_threshold for j in survivors):
            survivors.append(i)
    return np.array(survivors, int)


def random_boxes(seed, number, extent=100, side=30):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-extent, extent, (number, 2))
    size = rng.uniform(1, side, (number, 2))
    return np.concatenate([low, low + size], axis=1).astype(np.float32), rng


@pytest.mark.parity
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", ["n200", "n1200"])
def test_matches_torchvision(golden, name, threshold):
    boxes, scores = golden[f"nms/{name}/boxes"], golden[f"nms/{name}/scores"]
    result = run_nms(boxes, scores, np.ones(len(boxes), bool), threshold, len(boxes))
    np.testing.assert_array_equal(kept(result), golden[f"nms/{name}/keep_{threshold}"])


@pytest.mark.parity
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_one_class_at_a_time_matches_torchvision(golden, threshold):
    boxes, scores, classes = (
        golden[f"nms/n1200/{name}"] for name in ("boxes", "scores", "classes")
    )
    each = [
        kept(run_nms(boxes, scores, classes == one, threshold, 1200)) for one in np.unique(classes)
    ]
    survivors = np.sort(np.concatenate(each))
    best_first = survivors[np.argsort(-scores[survivors], kind="stable")]
    np.testing.assert_array_equal(best_first, golden[f"nms/n1200/batched_keep_{threshold}"])


@pytest.mark.parity
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_torchvision_s_class_offsets_are_plain_nms_of_moved_boxes(golden, threshold):
    """Below 1000 boxes torchvision moves classes apart before one NMS of all."""
    boxes, scores, classes = (golden[f"nms/n200/{name}"] for name in ("boxes", "scores", "classes"))
    offsets = classes.astype(np.float32) * (boxes.max() + np.float32(1))
    moved = boxes + offsets[:, None]
    result = run_nms(moved, scores, np.ones(200, bool), threshold, 200)
    np.testing.assert_array_equal(kept(result), golden[f"nms/n200/batched_keep_{threshold}"])


@pytest.mark.parity
@pytest.mark.parametrize("image", [0, 1])
def test_proposal_selection_matches_pytorch(golden, image):
    """Per level the best 100, clipped, no empty ones, NMS per level, then the best 60 of all."""
    size = jnp.asarray(golden["rpn_select/image_sizes"][image].astype(np.int32))
    level_boxes, level_scores = [], []
    for level in range(3):
        scores = jnp.asarray(golden[f"rpn_select/logits{level}"][image])
        best, index = jax.lax.top_k(scores, min(100, len(scores)))
        proposals = jnp.asarray(golden[f"rpn_select/proposals{level}"][image])[index]
        boxes = box_ops.clip_boxes(proposals, size)
        index = kept(run_nms(boxes, best, box_ops.box_area(boxes) > 0, 0.7, len(index)))
        level_boxes.append(boxes[index])
        level_scores.append(best[index])
    scores, index = jax.lax.top_k(jnp.concatenate(level_scores), 60)
    np.testing.assert_array_equal(scores, golden[f"rpn_select/out{image}_logits"])
    boxes = jnp.concatenate(level_boxes)[index]
    np.testing.assert_array_equal(boxes, golden[f"rpn_select/out{image}_boxes"])


@FIXED
@given(
    st.lists(
        st.tuples(
            st.tuples(*[st.integers(-2, 6)] * 2, *[st.integers(0, 6)] * 2),  # x, y, width, height
            st.integers(0, 3),  # few values, so that scores tie
            st.booleans(),
        ),
        min_size=12,
        max_size=12,
    ),
    st.sampled_from([0.0, 0.25, 0.6]),
)
def test_equals_the_greedy_loop(rows, threshold):
    xywh, scores, is_valid = (np.array(column) for column in zip(*rows, strict=True))
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    scores = scores.astype(np.float32)
    actual = kept(run_nms(boxes, scores, is_valid, threshold, 12))
    np.testing.assert_array_equal(actual, greedy(boxes, scores, is_valid, threshold))


@pytest.mark.parametrize("number", [255, 256, 257, 700])
def test_equals_the_greedy_loop_across_tiles(number):
    boxes, rng = random_boxes(number, number)
    scores, is_valid = rng.random(number).astype(np.float32), rng.random(number) < 0.9
    expected = greedy(boxes, scores, is_valid, 0.3)
    assert number / 5 < len(expected) < number * 0.85  # something to suppress, something to keep
    actual = kept(run_nms(boxes, scores, is_valid, 0.3, number))
    np.testing.assert_array_equal(actual, expected)


def test_long_chains_of_suppression_alternate():
    """Every box overlaps only its neighbours: greedy keeps every other one, 300 rounds deep."""
    low = np.arange(600, dtype=np.float32)
    boxes = np.stack([low, low * 0, low + 2, low * 0 + 1], axis=1)  # neighbours' IoU is 1/3
    scores = -low
    actual = kept(run_nms(boxes, scores, np.ones(600, bool), 0.3, 600))
    np.testing.assert_array_equal(actual, np.arange(0, 600, 2))


def test_overlap_of_exactly_the_threshold_survives():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)
    scores, is_valid = np.array([2, 1], np.float32), np.ones(2, bool)
    np.testing.assert_array_equal(kept(run_nms(boxes, scores, is_valid, 0.5, 2)), [0, 1])
    np.testing.assert_array_equal(kept(run_nms(boxes, scores, is_valid, 0.49, 2)), [0])


# IoU, two boxes' areas whose float32 quotient it is.
FRACTIONS = {
    0.2: (1, 5),
    0.3: (3, 10),
    0.4: (2, 5),
    0.6: (3, 5),
    0.8: (4, 5),
    1 / 3: (1, 3),
    0.7: (7, 10),
}


@pytest.mark.parametrize("threshold", FRACTIONS)
def test_float32_overlaps_are_compared_with_the_float64_threshold(threshold):
    """As torchvision does: it depends on which way the fraction is rounded."""
    small, large = FRACTIONS[threshold]
    boxes = np.array([[0, 0, large, 1], [0, 0, small, 1]], np.float32)
    iou = np.float32(small) / np.float32(large)
    scores, is_valid = np.array([2, 1], np.float32), np.ones(2, bool)
    expected = [0] if float(iou) > threshold else [0, 1]
    np.testing.assert_array_equal(kept(run_nms(boxes, scores, is_valid, threshold, 2)), expected)
    # A float64 is above none of the float32 that it is rounded to.
    both = kept(run_nms(boxes, scores, is_valid, float(iou), 2))
    np.testing.assert_array_equal(both, [0, 1])


def test_padding_with_the_best_score_neither_survives_nor_suppresses():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 0, 0], [0, 0, 9, 9]], np.float32)
    scores = np.array([5, 1, 9, np.nan], np.float32)
    result = run_nms(boxes, scores, np.array([False, True, False, False]), 0.5, 3)
    np.testing.assert_array_equal(kept(result), [1])


def test_a_valid_score_of_minus_infinity_still_counts():
    boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32)
    scores = np.full(2, -np.inf, np.float32)
    result = run_nms(boxes, scores, np.array([False, True]), 0.5, 2)
    np.testing.assert_array_equal(kept(result), [1])


@pytest.mark.parametrize("max_outputs", [0, 3, 40])
def test_output_size_is_what_was_asked_for(max_outputs):
    boxes, rng = random_boxes(0, 20)
    scores, is_valid = rng.random(20).astype(np.float32), np.ones(20, bool)
    result = run_nms(boxes, scores, is_valid, 0.5, max_outputs)
    assert result[0].shape == result[1].shape == (max_outputs,)
    assert result[0].dtype == jnp.int32
    expected = greedy(boxes, scores, is_valid, 0.5)[:max_outputs]
    np.testing.assert_array_equal(kept(result), expected)


def test_no_boxes_and_no_valid_boxes():
    empty = nms.nms(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, bool), 0.5, 4)
    assert len(kept(empty)) == 0 and empty[0].shape == (4,)
    boxes, _ = random_boxes(0, 5)
    assert len(kept(run_nms(boxes, np.ones(5, np.float32), np.zeros(5, bool), 0.5, 4))) == 0


def test_vmap_equals_one_by_one():
    both = [random_boxes(seed, 300) for seed in (1, 2)]
    boxes = np.stack([boxes for boxes, _ in both])
    scores = np.stack([rng.random(300).astype(np.float32) for _, rng in both])
    is_valid = np.stack([np.ones(300, bool), np.arange(300) < 40])
    indices, is_kept = jax.jit(jax.vmap(lambda b, s, v: nms.nms(b, s, v, 0.4, 200)))(
        boxes, scores, is_valid
    )
    for image in range(2):
        expected = greedy(boxes[image], scores[image], is_valid[image], 0.4)[:200]
        np.testing.assert_array_equal(kept((indices[image], is_kept[image])), expected)


def test_differentiating_through_the_selection_is_finite():
    boxes, rng = random_boxes(0, 20)
    scores = jnp.asarray(rng.random(20).astype(np.float32))

    def total(scores):
        indices, is_kept = nms.nms(jnp.asarray(boxes), scores, jnp.ones(20, bool), 0.5, 8)
        return jnp.sum(jnp.where(is_kept, scores[indices], 0))

    gradient = jax.jit(jax.grad(total))(scores)
    assert sorted(np.unique(gradient)) == [0, 1] and gradient.sum() == 8


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"want boxes \[N, 4\]"):
        nms.nms(jnp.zeros((3, 4)), jnp.zeros(2), jnp.ones(3, bool), 0.5, 2)
    with pytest.raises(ValueError, match="max_outputs"):
        nms.nms(jnp.zeros((3, 4)), jnp.zeros(3), jnp.ones(3, bool), 0.5, -1)
