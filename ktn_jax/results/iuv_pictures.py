"""IUV pictures, uint8 [3, h, w] of patch 0..24, 255 U and 255 V: in results, and as labels."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ktn_jax.body import parts
from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.results.png_text import decode_png, encode_png
from ktn_jax.runtime.atomic_files import replacing
from ktn_jax.runtime.images import explain_error


def quantise(patches: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Packs patches [h, w] and U, V [2, h, w] as uint8 [3, h, w] of I, 255 U, 255 V, truncated."""
    levels = np.clip(uv * 255, 0, 255).astype(np.uint8)
    return np.concatenate([patches[None].astype(np.uint8), levels])


def check_iuv(iuv: np.ndarray) -> None:
    """Raises ResultsError unless an array has the shape and type of an IUV picture."""
    if iuv.ndim != 3 or iuv.shape[0] != 3 or iuv.dtype != np.uint8 or iuv.size == 0:
        raise ResultsError(f"iuv must be [3, h, w] uint8, got {iuv.shape} {iuv.dtype}")


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
    check_iuv(iuv)
    return encode_png(iuv.transpose(1, 2, 0))


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


def write_labels(path: pathlib.Path, iuv: np.ndarray, confidence: np.ndarray) -> None:
    """Writes labels of every pixel of a person, for training without a limit of points.

    Args:
        path: of the PNG; replaced only when the new one is complete.
        iuv: [3, h, w] uint8 of I, 255 U, 255 V, stretched over the person's box.
        confidence: [h, w] in 0..1, which becomes the alpha channel.

    Raises:
        ResultsError: not such a picture, or a confidence of another size.
    """
    check_iuv(iuv)
    if confidence.shape != iuv.shape[1:]:
        raise ResultsError(f"confidence must be {iuv.shape[1:]}, got {confidence.shape}")
    alpha = np.rint(np.clip(confidence, 0, 1) * 255).astype(np.uint8)
    pixels = np.concatenate([iuv, alpha[None]]).transpose(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="png")


def read_labels(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads what `write_labels` wrote.

    Returns:
        Patch uint8 [h, w], U and V float32 [2, h, w], the middles of their levels, and confidence
        float32 [h, w].

    Raises:
        ResultsError: no such file, damaged, or another picture; the message names it.
    """
    try:
        with Image.open(path, formats=["png"]) as png:
            mode, pixels = png.mode, np.array(png)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ResultsError(f"{os.fspath(path)}: {explain_error(error)}") from error
    if mode != "RGBA" or pixels[..., 0].max() > parts.NUM_PATCHES:
        raise ResultsError(
            f"{os.fspath(path)}: no labels: wanted RGBA of I (0..24), 255 U, 255 V and confidence"
        )
    # They were truncated.
    uv = np.minimum((pixels[..., 1:3].astype(np.float32) + 0.5) / 255, 1).transpose(2, 0, 1)
    return pixels[..., 0], uv, pixels[..., 3].astype(np.float32) / 255
