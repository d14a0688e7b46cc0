"""Checks of an image file against its record."""

import io
import os
import pathlib

from PIL import Image, UnidentifiedImageError

from ktn_jax.runtime.images import ImageError, explain_error, open_image, orient


def check_image_bytes(content: bytes, height: int, width: int) -> tuple[str, str] | None:
    """Decodes an image file to its last row and compares its size.

    Args:
        content: the file's bytes.
        height: rows that its record promises.
        width: columns that its record promises.

    Returns:
        (kind, message) of what is wrong or in doubt, or None.
    """
    try:
        with open_image(io.BytesIO(content)) as image:
            image.load()
            stored = image.size
            oriented, remark = orient(image, (height, width))
            found = oriented.size
    except (UnidentifiedImageError, Image.DecompressionBombError, ImageError) as error:
        return "image_unreadable", explain_error(error)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        return "image_truncated", f"{explain_error(error)} ({len(content)} bytes)"
    if found != (width, height):
        return "image_size_mismatch", _describe_mismatch(stored, found, (width, height))
    if remark == "as stored":
        return "annotated_as_stored", (
            f"the record's {width}x{height} is the size without the EXIF orientation: the image is "
            "read as it is stored, for the boxes to fit"
        )
    if remark == "unclear":
        return "orientation_unclear", (
            "has an EXIF orientation, which is applied; the size does not say whether the record "
            "was made with it: `ktn data show` does"
        )
    return None


def _describe_mismatch(
    stored: tuple[int, int], shown: tuple[int, int], annotated: tuple[int, int]
) -> str:
    text = f"file is {shown[0]}x{shown[1]}, record {annotated[0]}x{annotated[1]}"
    if stored != shown:
        return f"{text}; without its EXIF orientation the file is {stored[0]}x{stored[1]}"
    if shown[::-1] == annotated:
        return (
            f"{text}: height and width are exchanged in the record, or it was made of the image "
            "before that was turned"
        )
    return text


def check_image_file(
    path: str | os.PathLike[str], height: int, width: int
) -> tuple[str, str] | None:
    """`check_image_bytes` of a file, which may also be missing."""
    try:
        content = pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        return "image_missing", f"no file {path}"
    except OSError as error:
        return "image_unreadable", str(error)
    return check_image_bytes(content, height, width)
