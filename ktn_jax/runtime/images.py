"""Reads and resizes images on the host, before the network; `image_files` finds them.

In memory an image is RGB uint8 [H, W, 3].
"""

import contextlib
import functools
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
# In these formats Pillow's 32-bit mode "I" holds 16-bit samples; in others white is unknown.
_FORMATS_OF_16_BIT_I = ("PNG", "PPM")
_ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF orientations that swap height and width
# Of these, further frames are no further pictures but previews, layers or sizes of the first.
_FORMATS_OF_ONE_PICTURE = ("MPO", "PSD", "ICO", "ICNS")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BYTES_IN_MEMORY = re.compile(r"<_io\.BytesIO object at 0x[0-9a-fA-F]+>")


class ImageError(ValueError):
    """An image file cannot be read. The message names the file and the reason."""


def read_image(
    path: str | os.PathLike[str], annotated_size_hw: tuple[int, int] | None = None
) -> np.ndarray:
    """Reads an image file as it is meant to be seen; see `decode_image`.

    Args:
        path: A file in any format that `open_image` reads.
        annotated_size_hw: See `decode_image`.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ImageError: the file is absent, unreadable, or one that `decode_image` refuses.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ImageError(f"{path}: not an image: {error.strerror}") from error
    return decode_image(content, os.fspath(path), annotated_size_hw)


def decode_image(
    content: bytes, name: str, annotated_size_hw: tuple[int, int] | None = None
) -> np.ndarray:
    """Decodes an image file as it is meant to be seen.

    The EXIF orientation is applied. Grey, palette, 1-bit and CMYK images become RGB; 16-bit grey is
    scaled to 8 bits (65535 becomes 255, rounded). An alpha channel is dropped, not composited: the
    colours stored under transparent pixels show, as in detectron2, whose numbers this project
    reproduces. Of an animation the first frame is read. Colour profiles are not applied.

    Args:
        content: The file's bytes, in any format that `open_image` reads.
        name: Of the file, for errors.
        annotated_size_hw: (height, width) of the image in its annotations. The image is then
            returned as it was annotated: without applying the EXIF orientation where only that
            gives this size, see `orient`.

    Returns:
        [H, W, 3] uint8 RGB.

    Raises:
        ImageError: no image, cut short, of no pixels, of so many that it looks like a decompression
            bomb (Pillow's limit, 179 million), of 32-bit samples, of which nothing says what white
            is, or of another size than annotated.
    """
    if not content:
        raise ImageError(f"{name}: not an image, or a damaged one: the file is empty")
    with _image_errors(name), open_image(io.BytesIO(content)) as file:
        image, _ = orient(file, annotated_size_hw)
        pixels = _to_rgb(image, file.format)
    pixels = _with_pixels(pixels, name)
    if annotated_size_hw is not None and pixels.shape[:2] != tuple(annotated_size_hw):
        height, width = annotated_size_hw
        raise ImageError(
            f"{name}: the image is {pixels.shape[0]} x {pixels.shape[1]} (height x width), the "
            f"annotations say {height} x {width}: is it the right folder?"
        )
    return pixels


def orient(
    image: Image.Image, annotated_size_hw: tuple[int, int] | None = None
) -> tuple[Image.Image, Literal["", "as stored", "unclear"]]:
    """Turns an image as its EXIF orientation says, unless its annotations were made without that.

    Annotation tools differ in whether they apply the orientation. The annotated size tells where
    the sides differ and the orientation swaps them. TIFF is always turned: Pillow does it itself.

    Args:
        image: As opened.
        annotated_size_hw: (height, width) in its annotations; None where there are none.

    Returns:
        The image in the frame of its annotations, and a remark on what was annotated: "as stored"
        where the orientation was not applied; "unclear" where there is one and either way gives the
        annotated size, so that it was applied; "" where nothing is in doubt.
    """
    shown = ImageOps.exif_transpose(image)
    is_turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if annotated_size_hw is None or not is_turned:
        return shown, ""
    annotated = (annotated_size_hw[1], annotated_size_hw[0])
    if shown.size == annotated:
        return shown, "unclear" if image.size == annotated else ""
    return (image, "as stored") if image.size == annotated else (shown, "")


def open_image(file: str | os.PathLike[str] | io.BytesIO) -> Image.Image:
    """Opens an image file as `PIL.Image.open` does, HEIC too where the extra `heif` is installed.

    Args:
        file: Its path, or its bytes.

    Returns:
        The image, not decoded yet; closing it closes the file.

    Raises:
        ImageError: it is HEIC, and no reader is installed; the message says what to install.
        PIL.UnidentifiedImageError: it is in no known format. Other errors are Pillow's.
    """
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
    if not _add_heif_reader():
        raise ImageError(
            "it is a HEIC image, for which a reader must be installed: pip install 'ktn_jax[heif]'"
        )
    return Image.open(file)


def _is_heif(file: str | os.PathLike[str] | io.BytesIO) -> bool:
    if isinstance(file, io.BytesIO):
        head = file.getvalue()[:12]
    else:
        with open(file, "rb") as opened:
            head = opened.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS


@functools.cache
def _add_heif_reader() -> bool:
    """Gives Pillow its reader of HEIC; False where it is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def count_frames(path: str | os.PathLike[str]) -> int:
    """Counts the frames of an animation or the pages of a TIFF; only the first is ever read.

    Args:
        path: Of an image file.

    Returns:
        1 for a still image, and for what cannot be read: reading it says why.
    """
    try:
        with open_image(path) as file:
            if file.format in _FORMATS_OF_ONE_PICTURE:
                return 1
            return int(getattr(file, "n_frames", 1))
    except Exception:  # Pillow's decoders raise nearly anything on damaged data
        return 1


def explain_error(error: Exception) -> str:
    """Says why an image could not be read, from what Pillow raised.

    Args:
        error: Of any type; the message may name the file that was in memory by its address.

    Returns:
        A part of a sentence without such names, never empty.
    """
    if isinstance(error, UnidentifiedImageError):
        return "its first bytes are not those of a known format"
    return _BYTES_IN_MEMORY.sub("the file", str(error)) or type(error).__name__


def to_image(photo: Any) -> np.ndarray:
    """Makes an image of what stands for a photo.

    Args:
        photo: The path of a file; a PIL image; or an array, uint8 [H, W, 3] RGB, [H, W, 4] RGBA, or
            [H, W] or [H, W, 1] grey. Files and PIL images are read as `decode_image` says; the
            alpha channel of an array is dropped too.

    Returns:
        [H, W, 3] uint8 RGB; an array that is one already is not copied.

    Raises:
        TypeError: It is something else, or an array of other values.
        ValueError: The array has another shape or no pixels; `ImageError` for files and PIL images.
    """
    if isinstance(photo, (str, os.PathLike)):
        return read_image(photo)
    if isinstance(photo, Image.Image):
        name = f"the PIL image ({photo.mode}, {photo.width} x {photo.height})"
        with _image_errors(name):
            pixels = _to_rgb(ImageOps.exif_transpose(photo), photo.format)
        return _with_pixels(pixels, name)
    if hasattr(photo, "__array__"):
        return _array_to_rgb(np.asarray(photo))
    raise TypeError(
        f"a photo is a path, a PIL image or a uint8 array [H, W, 3], got {type(photo).__name__}"
    )


def peek_size_hw(photo: Any) -> tuple[int, int] | None:
    """Says how large a photo is without decoding it: for planning, not to be relied on.

    Args:
        photo: What `to_image` takes.

    Returns:
        (height, width) with the EXIF orientation of most formats applied; None where that cannot
        be told, such as for what is no photo.
    """
    if hasattr(photo, "__array__") and not isinstance(photo, Image.Image):
        shape = np.shape(photo)
        return (shape[0], shape[1]) if len(shape) > 1 and min(shape) > 0 else None
    try:
        if isinstance(photo, Image.Image):
            return _oriented_size_hw(photo)
        with open_image(photo) as file:
            return _oriented_size_hw(file)
    except Exception:  # whatever it is, reading the photo raises it again with an explanation
        return None


def _oriented_size_hw(image: Image.Image) -> tuple[int, int] | None:
    width, height = image.size
    # A PNG would be decoded in search of its orientation.
    if image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE:
        width, height = height, width
    return (height, width) if height and width else None


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Turns what Pillow raises into an `ImageError` that names the image."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large to be a photo: {error}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        reason = explain_error(error)
        raise ImageError(f"{name}: not an image, or a damaged one: {reason}") from error


def _with_pixels(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.size == 0:
        raise ImageError(f"{name}: the image has no pixels ({pixels.shape[1]} x {pixels.shape[0]})")
    return pixels


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    what = f"got {array.dtype} of shape {array.shape}"
    if array.dtype != np.uint8:
        raise TypeError(f"an array must hold uint8, 0 to 255: {what}")
    if array.ndim == 4:
        raise ValueError(f"a photo is [H, W, 3]; of several give a list: {what}")
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        raise ValueError(f"an array must be [H, W, 3] RGB, [H, W, 4] RGBA or [H, W] grey: {what}")
    if array.size == 0:
        raise ValueError(f"the array has no pixels: {what}")
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=-1)
    return array[..., :3]


def _to_rgb(image: Image.Image, file_format: str | None) -> np.ndarray:
    is_deep_grey = image.mode in _DEEP_GREY_MODES or (
        image.mode == "I" and file_format in _FORMATS_OF_16_BIT_I
    )
    if image.mode in ("I", "F") and not is_deep_grey:
        raise ImageError(
            f"its samples are 32-bit ({image.mode!r}), and nothing says which value is white; "
            "save it with 8 or 16 bits"
        )
    if is_deep_grey:
        # convert("RGB") would clip everything above 255. 65535 = 255 x 257.
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB is the same, with a warning
    return np.array(image.convert("RGB"))


def shortest_edge_size(
    image_size_hw: tuple[int, int], short_side: int, max_side: int
) -> tuple[int, int]:
    """Computes the size that `resize_short_side` gives an image.

    Args:
        image_size_hw: (height, width) in pixels.
        short_side: Wanted length of the shorter side.
        max_side: Limit of the longer side; it wins over `short_side`.

    Returns:
        (height, width), each at least 1. Half pixels round up, as in detectron2.

    Raises:
        ValueError: a size is not positive.
    """
    height, width = image_size_hw
    if min(height, width, short_side, max_side) <= 0:
        raise ValueError(
            f"sizes must be positive, got image {height} x {width}, short side {short_side}, "
            f"long side at most {max_side}"
        )
    # In this order, and not through one common factor: the last bit decides how halves round.
    scale = short_side * 1.0 / min(height, width)
    if height < width:
        new_height, new_width = short_side * 1.0, scale * width
    else:
        new_height, new_width = scale * height, short_side * 1.0
    if max(new_height, new_width) > max_side:
        scale = max_side * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def resize_short_side(image: np.ndarray, short_side: int, max_side: int) -> np.ndarray:
    """Resizes an image to a short side, as detectron2's ResizeShortestEdge does, bit for bit.

    Args:
        image: [H, W, 3] uint8.
        short_side: Wanted length of the shorter side.
        max_side: Limit of the longer side.

    Returns:
        [h, w, 3] uint8 of `shortest_edge_size`: Pillow's bilinear filter, which averages when it
        shrinks.

    Raises:
        ValueError: not an image in memory, or a size that is not positive.
    """
    _check_image(image)
    height, width = shortest_edge_size(image.shape[:2], short_side, max_side)
    if (height, width) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image [H, W, 3] uint8, got {image.shape} {image.dtype}")
