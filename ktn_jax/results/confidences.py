"""Confidences of a person as a results file holds them: one grey picture of 16 bits a map.

A map covers the pixels of a person's box, with values as they left the network (Neverova et al.,
"Correlated Uncertainty for Learning Dense Correspondences from Noisy Labels", NeurIPS 2019):
`sigma` is the variance of U and V before the softplus, (`kappa_u`, `kappa_v`) the direction in
which they vary more; the two confidences of the segmentation are factors of its logits, greater
than 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.png_text import decode_grey, encode_png

ON_BODY = ("sigma", "kappa_u", "kappa_v")
"""Those that belong to a patch: 0 on background."""

_LEVELS = 65_535  # of 16 bits


def encode_confidences(
    confidences: Mapping[str, np.ndarray], is_body: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Encodes a person's confidences for a results file.

    Args:
        confidences: {name: float [h, w]}.
        is_body: bool [h, w], False for background.

    Returns:
        {name: {"range": [low, high], "data": base64 of a grey PNG of 16 bits}}; 0 is low and 65,535
        is high. Values are rounded to that; the zeros of `ON_BODY` on background stay zeros.

    Raises:
        ResultsError: a map has another shape than `is_body`, or a value is not finite.
    """
    encoded = {}
    for name, values in confidences.items():
        values = np.asarray(values, np.float32)
        if values.shape != is_body.shape or not np.isfinite(values).all():
            raise ResultsError(
                f"{name} must be finite, [h, w] as the person's picture, {is_body.shape}; got "
                f"{values.shape}"
            )
        counted = values[is_body] if name in ON_BODY else values
        low, high = (float(f(counted)) if counted.size else 0.0 for f in (np.min, np.max))
        levels = (np.clip(values.astype(np.float64), low, high) - low) * _scale(low, high)
        data = encode_png(np.rint(levels).astype(np.uint16))
        encoded[name] = {"range": [low, high], "data": data}
    return encoded


def _scale(low: float, high: float) -> float:
    return _LEVELS / (high - low) if high > low else 0.0


def decode_confidences(
    where: str, encoded: Mapping[str, Mapping[str, Any]], is_body: np.ndarray
) -> dict[str, np.ndarray]:
    """Decodes the confidences of a record that `check_record` gave.

    Args:
        where: names the record in messages.
        encoded: see `encode_confidences`.
        is_body: bool [h, w] of the same record.

    Returns:
        {name: float32 [h, w]}.

    Raises:
        ResultsError: a picture is damaged, or not grey with 16 bits and of the shape of `is_body`.
    """
    decoded = {}
    for name, entry in encoded.items():
        levels = decode_grey(f"{where}: {name}", entry["data"], is_body.shape)
        low, high = entry["range"]
        values = low + levels.astype(np.float64) * ((high - low) / _LEVELS)
        if name in ON_BODY:
            values = np.where(is_body, values, 0)
        decoded[name] = values.astype(np.float32)
    return decoded
