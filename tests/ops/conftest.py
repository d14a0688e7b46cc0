"""Set-up for tests of array functions: strict dtypes, and a tolerance of rounding."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module", autouse=True)
def strict_dtype_promotion():
    """Makes mixed dtypes an error: an int64 or float64 that slips in is a bug here."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def assert_rounding():
    """Compares with a reference within 1e-5 of its largest value: float32 summed in another order.

    The smallest slip that was planted, half a cell or one tap, is off by more than 1e-2.
    """

    def check(actual, expected, tolerance=1e-5):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-30)
        )

    return check
