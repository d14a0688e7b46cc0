"""IUV pictures, uint8 [3, h, w] of patch 0..24, 255 U and 255 V, and how results hold them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ktn_jax.body import parts
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.png_text import decode_png, encode_png


def quantise(patches: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Packs patches [h, w] and U, V [2, h, w] as uint8 [3, h, w] of I, 255 U, 255 V, truncated."""
    levels = np.clip(uv * 255, 0, 255).astype(np.uint8)
    return np.concatenate([patches[None].astype(np.uint8), levels])


def encode_iuv(iuv: np.ndarray) -> str:
    """Encodes an IUV picture as the results format does.

    Args:
        iuv: [3, h, w] uint8.

    Returns:
        Base64 of an RGB PNG whose channels are I, 255 U, 255 V. Decoding gives back the same
        pixels; the text itself depends on the version of the compression library.

    Raises:
        ResultsError: not such a picture.
    """
    if iuv.ndim != 3 or iuv.shape[0] != 3 or iuv.dtype != np.uint8 or iuv.size == 0:
        raise ResultsError(f"iuv must be [3, h, w] uint8, got {iuv.shape} {iuv.dtype}")
    return encode_png(np.ascontiguousarray(iuv.transpose(1, 2, 0)))


def decode_iuv(text: str) -> np.ndarray:
    """Decodes an IUV picture of the results format.

    Args:
        text: Base64 of an RGB PNG.

    Returns:
        [3, h, w] uint8 of I, 255 U, 255 V.

    Raises:
        ResultsError: not base64, not a PNG, damaged, not RGB, or a patch above 24.
    """
    mode, iuv = decode_png(text)
    if mode != "RGB":
        raise ResultsError(f"the PNG is {mode}, not RGB with the channels I, 255 U, 255 V")
    if iuv[..., 0].max() > parts.NUM_PATCHES:
        raise ResultsError(
            f"patch {iuv[..., 0].max()} in the PNG, wanted 0..24: are its channels I, U, V?"
        )
    return iuv.transpose(2, 0, 1)


def decode_record(where: str, record: Mapping[str, Any]) -> np.ndarray:
    """Decodes the IUV picture of a record that `check_record` gave.

    Args:
        where: names the record in messages.
        record: with `uv_shape` and `uv_data`.

    Returns:
        See `decode_iuv`.

    Raises:
        ResultsError: the picture is damaged, or not of the shape that the record says.
    """
    try:
        iuv = decode_iuv(record["uv_data"])
    except ResultsError as error:
        raise ResultsError(f"{where}: uv_data: {error}") from error
    if list(iuv.shape) != list(record["uv_shape"]):
        raise ResultsError(
            f"{where}: uv_shape {record['uv_shape']} is not that of uv_data, {list(iuv.shape)}"
        )
    return iuv
