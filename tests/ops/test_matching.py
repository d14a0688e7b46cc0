import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktn_jax.ops import matching

FIXED = settings(deadline=None, derandomize=True, max_examples=30)
RULES = {"rpn": ((0.3, 0.7), (0, -1, 1), True), "roi": ((0.5,), (0, 1), False)}

run_match = jax.jit(matching.match, static_argnums=(2, 3, 4))
run_subsample = jax.jit(matching.subsample, static_argnums=(2, 3))
run_sample_proposals = jax.jit(matching.sample_proposals, static_argnums=(3, 4))


@pytest.mark.parity
@pytest.mark.parametrize("rule", ["rpn", "roi"])
def test_matches_pytorch_with_padding_between(golden, rule):
    quality = golden["matcher/quality"]
    # Padding rows that would win every comparison, in front, in the middle and at the end.
    padded = np.insert(quality, [0, 2, 5], np.float32(0.99), axis=0)
    is_valid = np.array([False, True, True, False, True, True, True, False])
    matches, labels = run_match(padded, is_valid, *RULES[rule])
    original_row = np.array([-1, 0, 1, -1, 2, 3, 4, -1])
    np.testing.assert_array_equal(original_row[matches], golden[f"matcher/{rule}_match"])
    np.testing.assert_array_equal(labels, golden[f"matcher/{rule}_label"])


@FIXED
@given(
    hnp.arrays(np.float32, (4, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    hnp.arrays(bool, 4),
    st.booleans(),
)
def test_equals_matching_the_valid_rows_alone(iou, is_valid, allow_low_quality):
    rule = ((0.25, 0.75), (0, -1, 1), allow_low_quality)
    matches, labels = run_match(iou, is_valid, *rule)
    real = iou[is_valid]
    if not len(real):
        expected_matches, expected_labels = np.zeros(9), np.zeros(9)
    else:
        best = real.max(axis=0)
        expected_matches = np.flatnonzero(is_valid)[real.argmax(axis=0)]
        expected_labels = np.where(best >= 0.75, 1, np.where(best >= 0.25, -1, 0))
        if allow_low_quality:
            for row in real:
                if row.max() > 0:
                    expected_labels[row == row.max()] = 1
    np.testing.assert_array_equal(matches, expected_matches)
    np.testing.assert_array_equal(labels, expected_labels)


def test_no_ground_truth_is_all_background():
    everything_padded = run_match(
        np.full((2, 3), 0.9, np.float32), np.zeros(2, bool), *RULES["rpn"]
    )
    no_rows = run_match(np.zeros((0, 3), np.float32), np.zeros(0, bool), *RULES["rpn"])
    for matches, labels in (everything_padded, no_rows):
        np.testing.assert_array_equal(matches, [0, 0, 0])
        np.testing.assert_array_equal(labels, [0, 0, 0])


def test_ground_truth_that_touches_nothing_promotes_nothing():
    iou = np.array([[0, 0, 0], [0, 0.1, 0.2]], np.float32)
    matches, labels = run_match(iou, np.ones(2, bool), *RULES["rpn"])
    np.testing.assert_array_equal(labels, [0, 0, 1])
    np.testing.assert_array_equal(matches, [0, 1, 1])


def test_wrong_rules_are_named():
    iou, is_valid = jnp.zeros((2, 3)), jnp.ones(2, bool)
    with pytest.raises(ValueError, match="one label more"):
        matching.match(iou, is_valid, (0.3, 0.7), (0, 1), False)
    with pytest.raises(ValueError, match="ascending"):
        matching.match(iou, is_valid, (0.7, 0.3), (0, -1, 1), False)
    with pytest.raises(ValueError, match="iou"):
        matching.match(iou, jnp.ones(3, bool), (0.5,), (0, 1), False)


@FIXED
@given(
    hnp.arrays(np.int32, 40, elements=st.sampled_from([-1, 0, 1])),
    st.integers(0, 1000),
    st.sampled_from([(16, 0.5), (16, 0.25), (60, 0.5), (7, 0.0), (7, 1.0)]),
)
def test_subsample_keeps_as_many_as_allowed(labels, seed, budget):
    num_samples, fraction = budget
    sampled = np.asarray(run_subsample(jax.random.key(seed), labels, num_samples, fraction))
    is_kept = sampled != -1
    np.testing.assert_array_equal(sampled[is_kept], labels[is_kept])
    positives = min((labels == 1).sum(), int(num_samples * fraction))
    assert (sampled == 1).sum() == positives
    assert (sampled == 0).sum() == min((labels == 0).sum(), num_samples - positives)


def test_subsample_with_another_background_label():
    labels = np.array([0, 1, 2, 2, 2, -1], np.int32)
    sampled = np.asarray(matching.subsample(jax.random.key(0), labels, 3, 0.67, background_label=2))
    assert (sampled[:2] == [0, 1]).all() and (sampled == 2).sum() == 1


def test_subsample_is_uniform():
    labels = np.repeat(np.array([1, -1, 0], np.int32), [10, 5, 30])
    keys = jax.random.split(jax.random.key(3), 4000)
    sampled = jax.jit(jax.vmap(lambda key: matching.subsample(key, labels, 8, 0.5)))(keys)
    rate = np.asarray(sampled != -1).mean(axis=0)
    # 4 of 10 and 4 of 30; five standard deviations of a share over 4000 draws are below 0.04.
    np.testing.assert_allclose(rate[:10], 0.4, atol=0.04)
    np.testing.assert_array_equal(rate[10:15], 0)
    np.testing.assert_allclose(rate[15:], 4 / 30, atol=0.027)


@FIXED
@given(
    hnp.arrays(bool, 20),
    hnp.arrays(bool, 20),
    st.integers(0, 1000),
    st.sampled_from([(8, 0.25), (8, 1.0), (8, 0.0), (32, 0.5)]),
)
def test_sampled_proposals_fill_their_slots(is_foreground, is_valid, seed, budget):
    num_samples, fraction = budget
    indices, sampled_foreground, filled = map(
        np.asarray,
        run_sample_proposals(jax.random.key(seed), is_foreground, is_valid, num_samples, fraction),
    )
    assert indices.shape == sampled_foreground.shape == filled.shape == (num_samples,)
    foreground = min((is_foreground & is_valid).sum(), int(num_samples * fraction))
    background = min((~is_foreground & is_valid).sum(), num_samples - foreground)
    np.testing.assert_array_equal(filled, np.arange(num_samples) < foreground + background)
    np.testing.assert_array_equal(sampled_foreground, np.arange(num_samples) < foreground)
    drawn = indices[filled]
    assert len(set(drawn)) == len(drawn)
    assert is_valid[drawn].all()
    np.testing.assert_array_equal(is_foreground[drawn], sampled_foreground[filled])
    assert not indices[~filled].any()


def test_sampled_proposals_are_uniform_and_differ_under_vmap():
    is_foreground, is_valid = np.arange(30) < 10, np.arange(30) < 25
    keys = jax.random.split(jax.random.key(5), 4000)
    indices, _, filled = jax.jit(
        jax.vmap(lambda key: matching.sample_proposals(key, is_foreground, is_valid, 8, 0.5))
    )(keys)
    assert filled.all()
    rate = np.bincount(np.asarray(indices).ravel(), minlength=30) / 4000
    np.testing.assert_allclose(rate[:10], 4 / 10, atol=0.04)
    np.testing.assert_allclose(rate[10:25], 4 / 15, atol=0.036)
    np.testing.assert_array_equal(rate[25:], 0)


@pytest.mark.parametrize(("num_samples", "fraction"), [(0, 0.5), (8, 1.5), (8, -0.1)])
def test_impossible_budgets_are_named(num_samples, fraction):
    key, flags = jax.random.key(0), jnp.ones(4, bool)
    with pytest.raises(ValueError, match="num_samples"):
        matching.subsample(key, jnp.zeros(4, jnp.int32), num_samples, fraction)
    with pytest.raises(ValueError, match="num_samples"):
        matching.sample_proposals(key, flags, flags, num_samples, fraction)
