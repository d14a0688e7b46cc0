"""Nothing is compiled for photos of the sizes and numbers of people that were warmed up."""

import numpy as np
import pytest

from ktn_jax.inference.augmentation import AugmentedPredictor
from ktn_jax.inference.predictor import Predictor, rows_of
from ktn_jax.inference.stages import Stages
from ktn_jax.runtime.configuration import load_config

CHANGES = [
    "test.short_side=96",
    "test.max_side=128",
    "test.size_buckets=((96,128),(128,96))",
    "model.box_head.max_detections=3",
    "test.augmentation.short_sides=(64,96)",
    "test.augmentation.max_side=128",
    "test.augmentation.flip=False",
]
# Resized to 96 x 128, which fills its bucket, and to 96 x 96, which does not.
FULL, PADDED = (90, 120), (90, 90)


def _photo(size_hw):
    return np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)


def _stages(draw_variables, *changes):
    config = load_config("configs/ktn.py:tiny", [*CHANGES, *changes])
    return Stages(config, draw_variables(config))


@pytest.mark.extended
@pytest.mark.parametrize("batch_size", [1, 2])
def test_calls_compile_nothing_after_the_warm_up(draw_variables, count_traces, batch_size):
    model = Predictor(_stages(draw_variables, f"test.batch_size={batch_size}"))
    model.warm_up([FULL, PADDED], people=3)
    with count_traces() as traced:
        people = [model(_photo(size)) for size in (FULL, PADDED, (180, 240), (50, 60))]
        people += model([_photo(size) for size in (FULL, PADDED, PADDED, FULL, FULL)])
        pyramid, _ = model.stages.detect(
            np.zeros((batch_size, 96, 128, 3), np.uint8), np.int32([[96, 100]] * batch_size)
        )
        for count in range(1, 3 * batch_size + 1):
            boxes = np.float32([[0, 0, 50, 60]] * count)
            model.stages.describe(pyramid, boxes, np.zeros(count, np.int32))
    assert traced == []
    assert all(len(found) == 3 for found in people)
    with count_traces() as traced:
        model(_photo(FULL).transpose(1, 0, 2))
    assert traced  # of another bucket: what is counted above does count


def test_only_the_numbers_asked_for_are_warmed_up(draw_variables, count_traces):
    stages = _stages(draw_variables)
    Predictor(stages).warm_up([FULL], people=(0, 1))
    pyramid, _ = stages.detect(np.zeros((1, 96, 128, 3), np.uint8), np.int32([[96, 128]]))
    for count, is_known in ((1, True), (2, False)):
        with count_traces() as traced:
            boxes = np.float32([[0, 0, 50, 60]] * count)
            stages.describe(pyramid, boxes, np.zeros(count, np.int32))
        assert (traced == []) == is_known


@pytest.mark.extended
def test_views_compile_nothing_after_the_warm_up(draw_variables, count_traces):
    model = AugmentedPredictor(_stages(draw_variables), None)
    model.warm_up([FULL], people=range(4))
    with count_traces() as traced:
        people = model([_photo(FULL), _photo(FULL)])
    assert traced == []
    assert all(1 <= len(found) <= 3 for found in people)


def test_rows_of_the_second_stage():
    assert rows_of([0, 1, 3, 4], most=100) == [1, 4]
    assert rows_of([5, 9], most=6) == [8]
    assert rows_of([100], most=200) == [100]
    assert rows_of([103, 250], most=200) == [4, 100]
    assert rows_of([], most=5) == []
