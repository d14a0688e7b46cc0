"""PNG pictures, and their base64, as results files hold them."""

import base64
import io

import cv2
import numpy as np
from PIL import Image

from ktn_jax.results.detection_checks import ResultsError
from ktn_jax.runtime.images import explain_error


def compress_png(pixels: np.ndarray) -> bytes:
    """Makes a PNG of uint8 RGB [h, w, 3] or uint16 grey [h, w]."""
    if pixels.ndim == 3:  # OpenCV takes BGR; planes, because those of IUV pictures are contiguous
        pixels = cv2.merge([pixels[..., channel] for channel in (2, 1, 0)])
    # One filter for all rows, and run lengths, as OpenCV does by default: half the time of Pillow
    # at its fastest and a fifth of its default, for maps of people no longer than these.
    _, content = cv2.imencode(".png", pixels)
    return content.tobytes()


def encode_png(pixels: np.ndarray) -> str:
    """Encodes uint8 RGB [h, w, 3] or uint16 grey [h, w] as a PNG in base64."""
    return base64.b64encode(compress_png(pixels)).decode("ascii")


def decode_png(text: str) -> tuple[str, np.ndarray]:
    """Decodes a PNG in base64.

    Args:
        text: The base64, with or without line breaks.

    Returns:
        Pillow's mode of the picture, such as RGB, and its pixels, [h, w, channels] or [h, w].

    Raises:
        ResultsError: not base64, not a PNG, or damaged.
    """
    try:
        # Some writers break lines every 76 characters; any other stray character is damage.
        content = base64.b64decode("".join(text.split()), validate=True)
        with Image.open(io.BytesIO(content), formats=["png"]) as png:
            return png.mode, np.array(png)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ResultsError(f"not a PNG in base64: {explain_error(error)}") from error


def decode_grey(where: str, text: str, size_hw: tuple[int, ...]) -> np.ndarray:
    """Decodes a grey PNG of 16 bits in base64.

    Args:
        where: names record and field in messages.
        text: as `decode_png` takes it.
        size_hw: that it must have.

    Returns:
        [h, w], 0 to 65,535.

    Raises:
        ResultsError: damaged, or another picture.
    """
    try:
        mode, levels = decode_png(text)
    except ResultsError as error:
        raise ResultsError(f"{where}: {error}") from error
    if not mode.startswith("I") or levels.shape != size_hw:
        raise ResultsError(
            f"{where}: wanted a grey PNG of 16 bits and {size_hw} pixels, got {mode} {levels.shape}"
        )
    return levels
