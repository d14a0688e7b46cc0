"""The published tables, written out: the module derives them from names."""

import numpy as np
import pytest

from ktn_jax.body import parts

COARSE_OF_PATCH = (
    {1: (1, 2), 2: (3,), 3: (4,), 4: (5,), 5: (6,), 6: (7, 9), 7: (8, 10), 8: (11, 13)}
    | {9: (12, 14), 10: (15, 17), 11: (16, 18), 12: (19, 21), 13: (20, 22), 14: (23, 24)}
)  # fmt: skip


def test_fine_to_coarse_is_the_published_map():
    expected = np.zeros(25, int)
    for coarse, patches in COARSE_OF_PATCH.items():
        expected[list(patches)] = coarse
    np.testing.assert_array_equal(parts.FINE_TO_COARSE, expected)


def test_patch_flip_is_the_published_map():
    expected = [0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21]
    np.testing.assert_array_equal(parts.PATCH_FLIP, [*expected, 24, 23])


def test_coarse_flip_is_the_published_map():
    np.testing.assert_array_equal(
        parts.COARSE_FLIP, [0, 1, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 14]
    )


def test_keypoint_flip_is_cocos():
    np.testing.assert_array_equal(
        parts.KEYPOINT_FLIP, [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    )


@pytest.mark.parametrize("flip", [parts.PATCH_FLIP, parts.COARSE_FLIP, parts.KEYPOINT_FLIP])
def test_flipping_twice_is_the_identity(flip):
    np.testing.assert_array_equal(flip[flip], np.arange(len(flip)))


def test_flip_commutes_with_the_coarse_map():
    np.testing.assert_array_equal(
        parts.FINE_TO_COARSE[parts.PATCH_FLIP], parts.COARSE_FLIP[parts.FINE_TO_COARSE]
    )


def test_skeleton_is_symmetric():
    edges = {frozenset(edge) for edge in parts.KEYPOINT_SKELETON}
    mirrored = {frozenset(parts.KEYPOINT_FLIP[list(edge)].tolist()) for edge in edges}
    assert edges == mirrored and len(edges) == 19


def test_tables_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        parts.PATCH_FLIP[1] = 2
