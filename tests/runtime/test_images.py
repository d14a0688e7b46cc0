"""Reading and resizing images."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ktn_jax.runtime import images
from ktn_jax.runtime.images import ImageError, read_image

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
# Two rows, three columns, no symmetry: every rotation and flip shows.
SCENE = np.array([[RED, GREEN, BLUE], [GREY, RED, (255, 255, 255)]], np.uint8)


def _save(path, image, **options):
    image.save(path, **options)
    return path


# The tag says how the stored rows and columns lie; the inverse is what a writer would store.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),  # camera turned: a viewer turns it 90 degrees clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTATIONS[orientation](SCENE))
    path = _save(tmp_path / "photo.png", Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(read_image(path), SCENE)


def test_jpeg_is_rgb_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:, :32] = RED  # the left half, which becomes the top
    path = _save(tmp_path / "photo.JPG", Image.fromarray(stored), exif=exif, quality=95)
    pixels = read_image(path)
    assert pixels.shape == (64, 32, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[:24].reshape(-1, 3).mean(0), RED, atol=3)
    assert pixels[40:].max() < 10


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.ppm", "big_endian.tif"])
def test_16_bit_grey_is_scaled_not_clipped(name, tmp_path):
    grey = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], np.uint16)
    if name.startswith("big"):
        path = tmp_path / name
        _write_big_endian_tiff(path, grey)
    else:
        path = _save(tmp_path / name, Image.fromarray(grey))
    expected = np.array([[0, 0, 1, 1], [128, 254, 255, 255]])  # v / 257, rounded
    np.testing.assert_array_equal(read_image(path), expected[..., None].repeat(3, -1))


def _write_big_endian_tiff(path, grey):
    height, width = grey.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1)]
    tags += [(278, height), (279, grey.nbytes)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(content.ljust(200, b"\0") + grey.astype(">u2").tobytes())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_annotations_decide_whether_the_orientation_is_applied(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](SCENE)))
    path = _save(tmp_path / f"photo.{kind}", stored, exif=exif)
    shown = read_image(path)
    with Image.open(path) as file:
        as_stored = np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(read_image(path, shown.shape[:2]), shown)
    swaps = orientation > 4
    expected = as_stored if swaps else shown
    np.testing.assert_array_equal(read_image(path, as_stored.shape[:2]), expected)
    remarks = []
    for size in (shown.shape[:2], as_stored.shape[:2], (7, 7), None):
        with Image.open(path) as file:
            remarks.append(images.orient(file, size)[1])
    unclear = "unclear" if 1 < orientation <= 4 else ""
    assert remarks == [unclear, "as stored" if swaps else unclear, "", ""]
    with pytest.raises(ImageError, match="photo.*the annotations say 7 x 7: is it the right"):
        read_image(path, (7, 7))


def test_16_bit_grey_turns_with_its_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    grey = np.array([[0, 257], [514, 65535]], np.uint16)
    path = _save(tmp_path / "grey.png", Image.fromarray(grey), exif=exif)
    np.testing.assert_array_equal(read_image(path)[..., 0], [[255, 2], [1, 0]])


def test_16_bit_colour(tmp_path):
    # Pillow cannot write this: a PNG by hand, colour type 2, depth 16, one pixel.
    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x0100)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixel)), chunk(b"IEND", b""))
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(read_image(path), [[[255, 128, 1]]])


def test_other_modes_become_rgb(tmp_path):
    grey = Image.fromarray(SCENE).convert("L")
    as_rgb = np.asarray(grey)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "l.png", grey)), as_rgb)
    with_alpha = grey.convert("LA")
    with_alpha.putalpha(10)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "la.png", with_alpha)), as_rgb)
    one_bit = Image.fromarray(np.array([[True, False]]))
    expected = [[[255] * 3, [0] * 3]]
    np.testing.assert_array_equal(read_image(_save(tmp_path / "1.png", one_bit)), expected)
    # CMYK (0, 255, 255, 0) is no cyan, all magenta and yellow: red.
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for name in ("cmyk.tif", "cmyk.jpg"):
        pixels = read_image(_save(tmp_path / name, cmyk))
        np.testing.assert_allclose(pixels, np.broadcast_to(RED, (16, 16, 3)), atol=3)


def test_alpha_is_dropped_not_composited(tmp_path):
    colours = np.dstack([SCENE, np.array([[0, 255, 3], [128, 0, 0]], np.uint8)])
    path = _save(tmp_path / "rgba.png", Image.fromarray(colours))
    np.testing.assert_array_equal(read_image(path), SCENE)


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_palette(transparency, tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    path = _save(tmp_path / "palette.png", image, **options)
    np.testing.assert_array_equal(read_image(path), [[RED, GREEN, BLUE]])


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    path = _save(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(GREEN, (4, 4, 3)))
    assert images.count_frames(path) == 2
    assert images.count_frames(_save(tmp_path / "still.gif", frames[0])) == 1
    assert images.count_frames(_save(tmp_path / "still.jpg", frames[0])) == 1
    assert images.count_frames(tmp_path / "none.gif") == 1


def test_avif_and_jfif_are_read(tmp_path):
    scene = Image.new("RGB", (32, 16), RED)
    for name, options in (("photo.avif", {"quality": 95}), ("photo.jfif", {"format": "jpeg"})):
        path = _save(tmp_path / name, scene, **options)
        np.testing.assert_allclose(read_image(path), np.broadcast_to(RED, (16, 32, 3)), atol=4)
        assert images.peek_size_hw(path) == (16, 32)


@pytest.fixture
def forget_heif_reader():
    images._add_heif_reader.cache_clear()
    yield
    images._add_heif_reader.cache_clear()


def test_heic_is_read_with_its_extra(tmp_path, forget_heif_reader):
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 32), RED)).save(path, quality=95)
    np.testing.assert_allclose(read_image(path), np.broadcast_to(RED, (32, 64, 3)), atol=4)
    assert images.peek_size_hw(path) == (32, 64)


def test_heic_without_its_extra_names_it(tmp_path, monkeypatch, forget_heif_reader):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(ImageError, match=r"photo\.heic: .*pip install 'ktn_jax\[heif\]'"):
        read_image(path)
    assert images.peek_size_hw(path) is None


def test_bad_files_are_named(tmp_path, monkeypatch):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole, "jpeg")
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "png")
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "cut.jpg": whole.getvalue()[: len(whole.getvalue()) // 2],
        "cut.png": png.getvalue()[: len(png.getvalue()) // 2],
        "header_only.png": png.getvalue()[:20],
        "garbled.png": png.getvalue()[:60] + bytes(50) + png.getvalue()[110:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            ImageError, match=f"{name}: not an image, or a damaged one: .+"
        ) as caught:
            read_image(tmp_path / name)
        assert "BytesIO" not in str(caught.value)
    with pytest.raises(ImageError, match=r"the file is empty"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match=r"absent\.jpg: there is no such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path)
    (tmp_path / "bomb.png").write_bytes(png.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ImageError, match=r"bomb\.png: too large to be a photo"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_refused(mode, tmp_path):
    path = _save(tmp_path / "depth.tif", Image.new(mode, (2, 2), 300))
    with pytest.raises(ImageError, match=r"depth\.tif: its samples are 32-bit"):
        read_image(path)


def test_file_without_pixels(tmp_path):
    path = tmp_path / "zero.ppm"
    path.write_bytes(b"P6 0 4 255\n")
    with pytest.raises(ImageError, match=r"zero\.ppm"):
        read_image(path)


@pytest.mark.parity
@pytest.mark.parametrize("short_side,max_side", [(96, 200), (200, 230), (133, 1000)])
def test_resize_matches_detectron2(golden_dir, short_side, max_side):
    with np.load(golden_dir / "ops.npz") as golden:
        image = golden["resize/image"]
        expected = golden[f"resize/short{short_side}_max{max_side}"]
    resized = images.resize_short_side(image, short_side, max_side)
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize(
    "size_hw,short_side,max_side,expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),  # COCO's usual size; 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),  # 1199.06
        ((400, 1000), 800, 1333, (533, 1333)),  # the long side wins: 533.2
        ((500, 500), 800, 1333, (800, 800)),
        ((2, 5), 1, 9, (1, 3)),  # 2.5 rounds up
        ((1, 4000), 800, 1333, (1, 1333)),  # 0.33 would round to nothing
    ],
)
def test_shortest_edge_size(size_hw, short_side, max_side, expected):
    assert images.shortest_edge_size(size_hw, short_side, max_side) == expected


@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(1, 1500),
    st.integers(1, 3000),
)
def test_shortest_edge_size_keeps_its_promises(size_hw, short_side, max_side):
    height, width = images.shortest_edge_size(size_hw, short_side, max_side)
    assert 1 <= min(height, width) <= max(short_side, 1) and max(height, width) <= max_side
    assert min(height, width) == short_side or max(height, width) == max_side
    assert images.shortest_edge_size(size_hw[::-1], short_side, max_side) == (width, height)
    # The aspect ratio is right to half a pixel of either side.
    scale = max(height, width) / max(size_hw)
    if min(height, width) > 1:
        assert (
            abs(min(size_hw) * scale - min(height, width))
            <= 0.5 + 0.5 * min(size_hw) / max(size_hw) + 1e-6
        )


def test_sizes_and_images_are_checked():
    with pytest.raises(ValueError, match="sizes must be positive, got image 0 x 5"):
        images.shortest_edge_size((0, 5), 800, 1333)
    for bad in (np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"expected an image \[H, W, 3\] uint8"):
            images.resize_short_side(bad, 8, 8)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["path", "PIL"])
def test_what_is_peeked_at_has_the_size_of_what_is_read(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "photo.jpg", Image.new("RGB", (48, 32)), exif=exif)
    photo = path if kind == "path" else Image.open(path)
    assert images.peek_size_hw(photo) == images.to_image(photo).shape[:2]
    assert images.peek_size_hw(photo) == ((48, 32) if orientation > 4 else (32, 48))
    if kind == "PIL":
        photo.close()


def test_nothing_is_said_of_what_cannot_be_peeked_at(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    empty = np.zeros((0, 4, 3), np.uint8)
    for photo in (tmp_path / "bad.jpg", tmp_path / "none.jpg", None, 3, empty, np.uint8(1)):
        assert images.peek_size_hw(photo) is None
    assert images.peek_size_hw(np.zeros((4, 5, 3), np.uint8)) == (4, 5)


def test_photos_in_memory_become_rgb():
    alpha = np.full(SCENE.shape[:2], 7, np.uint8)
    assert images.to_image(SCENE) is SCENE or np.shares_memory(images.to_image(SCENE), SCENE)
    for photo in (np.dstack([SCENE, alpha]), Image.fromarray(np.dstack([SCENE, alpha]))):
        np.testing.assert_array_equal(images.to_image(photo), SCENE)
    grey = np.dstack([alpha] * 3)
    for photo in (alpha, alpha[..., None], Image.fromarray(alpha)):
        np.testing.assert_array_equal(images.to_image(photo), grey)
    turned = Image.fromarray(SCENE)
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(images.to_image(turned), np.rot90(SCENE, -1))


def test_what_is_no_photo_in_memory_is_said():
    for photo, error, text in (
        (None, TypeError, "got NoneType"),
        (SCENE / 255, TypeError, r"uint8, 0 to 255: got float64 of shape \(2, 3, 3\)"),
        (SCENE[None], ValueError, "of several give a list"),
        (SCENE[..., :2], ValueError, r"\[H, W\] grey"),
        (SCENE[:0], ValueError, "no pixels"),
        (Image.new("RGB", (0, 3)), ImageError, "the PIL image .RGB, 0 x 3.*no pixels"),
        (Image.new("I", (2, 3)), ImageError, "32-bit"),
    ):
        with pytest.raises(error, match=text):
            images.to_image(photo)
