"""Checks and conversions of JSON values."""

from typing import Any, TypeGuard

import numpy as np

_NUMBERS = {int, float}
_CONTAINERS = {list, tuple, dict}


def is_absent(value: Any) -> bool:
    """Whether an optional field's value means that the field is missing: null or empty."""
    return value is None or (not value and type(value) in _CONTAINERS)


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer; true and false are not."""
    return type(value) is int


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number; true and false are not."""
    return type(value) in _NUMBERS


def are_numbers(value: Any) -> bool:
    """Whether a JSON value is a list of numbers."""
    return type(value) in (list, tuple) and _NUMBERS.issuperset(map(type, value))


def to_numbers(value: Any) -> np.ndarray | None:
    """Reads a JSON list of numbers as [N] float64; None where it is anything else."""
    if not are_numbers(value):
        return None
    try:
        return np.array(value, np.float64)
    except OverflowError:  # an integer beyond the range of float64
        return None
