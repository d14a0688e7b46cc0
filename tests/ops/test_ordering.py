"""A zero that depends on an array, whatever is in it."""

import numpy as np
import pytest

from ktn_jax.ops.ordering import zero_after


@pytest.mark.parametrize("value", [0.0, -3.0, np.inf, -np.inf, np.nan])
def test_it_is_zero_whatever_the_array(value):
    assert zero_after(np.full((2, 1), value, np.float32)) == 0
    assert zero_after(np.float32(value)) == 0
