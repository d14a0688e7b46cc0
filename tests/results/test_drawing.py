"""Pictures: exact colours where they are promised, and nothing changed where nothing was found."""

import itertools

import numpy as np
import pytest

from ktn_jax.body import parts
from ktn_jax.results import drawing, maps, records
from ktn_jax.results.drawing import draw_iuv, draw_people, side_by_side
from ktn_jax.results.palette import PATCH_COLOURS
from ktn_jax.results.records import PersonResult

RNG = np.random.default_rng(0)
PLAIN = {"show_boxes": False, "show_scores": False}
LINES_ONLY = {"show_parts": False, "show_scores": False, "show_boxes": False}


def _image(height=60, width=80):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def _person(x0, y0, width, height, score=0.5, patch=2, keypoints=None):
    iuv = np.zeros((3, height, width), np.uint8)
    iuv[0] = patch
    iuv[1] = np.linspace(0, 255, width).astype(np.uint8)
    iuv[2] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return PersonResult([x0, y0, x0 + width, y0 + height], score, iuv, keypoints)


def _keypoints(**at):
    keypoints = np.full((17, 3), -1, np.float32)
    for name, values in at.items():
        keypoints[parts.KEYPOINT_NAMES.index(name)] = values
    return keypoints


def test_parts_are_mixed_with_the_image_exactly():
    image = _image()
    person = _person(10, 20, 8, 6, patch=7)
    person.iuv[0, 0] = 0  # its first row is background
    drawn = draw_people(image, [person], opacity=0.25, **PLAIN)
    expected = image.copy()
    area = np.s_[21:26, 10:18]
    expected[area] = np.rint(0.75 * image[area] + 0.25 * PATCH_COLOURS[7])
    np.testing.assert_array_equal(drawn, expected)
    opaque = draw_people(image, [person], opacity=1.0, **PLAIN)
    assert (opaque[area] == PATCH_COLOURS[7]).all()


def test_no_people_and_no_side_effects():
    image = _image()
    before = image.copy()
    drawn = draw_people(image, [])
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image
    drawn[:] = 0
    draw_people(image, [_person(0, 0, 40, 40)], show_isolines=True)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(60, 80), (1200, 900)])
def test_nothing_changes_outside_the_boxes(size):
    image = _image(*size)
    inside = np.zeros(size, bool)
    everywhere = np.array([[x, y, 1] for x, y in RNG.uniform(-50, max(size), (17, 2))], np.float32)
    people = [
        _person(5.7, 3.2, 40, 35, 0.9, 1, everywhere),
        _person(30, 20, 9, 4, 0.8, 5, everywhere),
        _person(-6, size[0] - 20, 30, 50, 0.7, 23, everywhere),
        _person(size[1] - 4, -3, 50, 10, 0.6, 12, everywhere),
        _person(9, size[0] - 9, 1, 1, 0.5, 3, everywhere),
        _person(size[1] + 5, 5, 9, 9, 0.4, 3, everywhere),  # wholly outside
    ]
    for person in people:
        x0, y0 = int(person.box_xyxy[0]), int(person.box_xyxy[1])
        _, height, width = person.iuv.shape
        inside[max(y0, 0) : max(y0 + height, 0), max(x0, 0) : max(x0 + width, 0)] = True
    assert 0 < inside.sum() < inside.size / 2
    drawn = draw_people(image, people, show_keypoints=True, show_isolines=True)
    np.testing.assert_array_equal(drawn[~inside], image[~inside])
    assert (drawn[inside] != image[inside]).any(axis=-1).mean() > 0.9


def test_box_is_an_outline_from_inside():
    image = np.zeros((60, 80, 3), np.uint8)
    drawn = draw_people(image, [_person(10, 20, 30, 20)], show_parts=False, show_scores=False)
    outline = np.zeros((60, 80), bool)
    outline[20:40, 10:40] = True
    outline[21:39, 11:39] = False
    np.testing.assert_array_equal(drawn.any(axis=-1), outline)


def test_box_beyond_the_border_is_closed_at_the_border():
    image = np.zeros((60, 80, 3), np.uint8)
    drawn = draw_people(image, [_person(-6, -4, 30, 20)], show_parts=False, show_scores=False)
    outline = np.zeros((60, 80), bool)
    outline[:16, :24] = True
    outline[1:15, 1:23] = False
    np.testing.assert_array_equal(drawn.any(axis=-1), outline)


def test_box_of_the_higher_score_is_in_front():
    image = np.zeros((60, 80, 3), np.uint8)
    best, other = _person(5, 5, 30, 30, 0.9), _person(20, 20, 30, 30, 0.3)
    for order in ([best, other], [other, best]):
        drawn = draw_people(image, order, show_parts=False, show_scores=False)
        assert (drawn[20, 34] == drawn[5, 5]).all()  # where the outlines cross
        assert (drawn[49, 49] != drawn[5, 5]).any()


def test_lines_grow_with_the_image():
    widths = []
    for side in (100, 500, 2000):
        image = np.zeros((side, side, 3), np.uint8)
        person = _person(10, 10, side // 2, side // 2)
        drawn = draw_people(image, [person], show_parts=False, show_scores=False)
        widths.append(int(drawn[side // 4, : side // 4].any(axis=-1).sum()))
    assert widths == [1, 2, 8]


def test_score_is_written_into_the_emptiest_corner():
    image = np.zeros((200, 200, 3), np.uint8)
    person = _person(20, 10, 100, 150)
    person.iuv[0] = 0
    person.iuv[0, :60] = 1  # the top
    person.iuv[0, :, :40] = 1  # and the left
    drawn = draw_people(image, [person], show_parts=False, show_boxes=False)
    rows, columns, _ = np.nonzero(drawn)
    assert rows.max() == 159 and columns.max() == 119
    assert rows.min() > 130 and columns.min() > 70
    label = drawn[rows.min() : 160, columns.min() : 120]
    is_text = (label < 64).all(axis=-1)
    assert 0.05 < is_text.mean() < 0.5
    other = draw_people(image, [_person(20, 10, 100, 150, 0.87)], show_parts=False)
    assert (other != drawn).any()


def test_score_is_left_out_where_it_cannot_be_read():
    image = np.zeros((200, 200, 3), np.uint8)
    for size in ((12, 100), (100, 12), (100, 30)):  # 30: it would hide half of the person
        drawn = draw_people(image, [_person(5, 5, *size)], show_parts=False, show_boxes=False)
        assert not drawn.any()


def test_higher_score_is_in_front():
    image = np.zeros((50, 50, 3), np.uint8)
    people = [_person(5, 5, 30, 30, 0.3, 9), _person(15, 15, 30, 30, 0.9, 10)]
    for order in (people, people[::-1]):
        drawn = draw_people(image, order, opacity=1, **PLAIN)
        assert (drawn[20, 20] == PATCH_COLOURS[10]).all()
        assert (drawn[10, 10] == PATCH_COLOURS[9]).all()


def test_skeleton_has_the_sides_colours():
    image = np.zeros((100, 100, 3), np.uint8)
    keypoints = _keypoints(
        left_shoulder=(80, 20, 1),
        left_elbow=(80, 60, 1),
        right_shoulder=(20, 20, 1),
        right_elbow=(20, 60, 1),
        right_wrist=(20, 90, 0.01),
        left_wrist=(np.nan, 90, 1),
    )
    person = _person(0, 0, 100, 100, keypoints=keypoints)
    drawn = draw_people(image, [person], show_keypoints=True, **LINES_ONLY)
    left, right, middle = drawn[40, 80].astype(int), drawn[40, 20].astype(int), drawn[20, 50]
    assert left[2] > left[0] + 100  # cool
    assert right[0] > right[2] + 100  # warm
    assert middle.any() and (middle != left).any() and (middle != right).any()
    assert not drawn[75:].any()  # the wrists: too low a score, and nowhere
    shown = draw_people(image, [person], show_keypoints=True, min_keypoint_score=0.01, **LINES_ONLY)
    assert shown[75, 20].any()
    assert not draw_people(image, [person], **LINES_ONLY).any()


def test_keypoints_are_placed_relative_to_the_image():
    image = np.zeros((100, 100, 3), np.uint8)
    person = _person(30.5, 40.5, 40, 30, keypoints=_keypoints(nose=(50.9, 55.2, 1)))
    rows, columns, _ = np.nonzero(draw_people(image, [person], show_keypoints=True, **LINES_ONLY))
    # OpenCV's smoothed circles lean by a fraction of a pixel.
    assert rows.mean() == pytest.approx(55, abs=0.7) and columns.mean() == pytest.approx(
        50, abs=0.7
    )


def test_isolines_lie_where_u_and_v_pass_an_eighth():
    image = np.full((90, 80, 3), 100, np.uint8)
    iuv = np.zeros((3, 64, 64), np.uint8)
    iuv[0, :, :32], iuv[0, :, 32:] = 1, 2
    iuv[1] = np.arange(64) * 4  # U = column / 64
    iuv[2] = 255  # V constant: no line of its own
    person = PersonResult([8, 16, 72, 80], 0.5, iuv)
    drawn = draw_people(image, [person], show_isolines=True, **LINES_ONLY)
    # Every eighth column; column 32 is a seam between two patches and no line.
    expected = np.zeros((90, 80), bool)
    expected[16:80, [8 + column for column in (8, 16, 24, 40, 48, 56)]] = True
    np.testing.assert_array_equal((drawn != image).any(axis=-1), expected)
    assert (drawn[expected] == 255).all()
    iuv[1:] = iuv[2:0:-1]
    drawn = draw_people(image, [person], show_isolines=True, **LINES_ONLY)
    assert (drawn[expected] == 20).all()


def test_colours_are_distinct_and_tell_left_from_right():
    assert PATCH_COLOURS.shape == (25, 3) and not PATCH_COLOURS[0].any()
    colours = PATCH_COLOURS[1:].astype(int)
    distances = [np.abs(a - b).sum() for a, b in itertools.combinations(colours, 2)]
    assert min(distances) >= 60
    for name, (red, green, blue) in zip(parts.PATCH_NAMES[1:], colours, strict=True):
        if name.startswith("right"):
            assert red > blue and red > green, name
        elif name.startswith("left"):
            assert red < max(green, blue), name
        else:
            assert blue > red > green, name


def test_the_torso_is_seen_on_clothes_of_any_shade():
    for opacity, least in ((0.6, 40), (1.0, 70)):
        for torso in PATCH_COLOURS[1:3].astype(float):
            for clothes in np.linspace(0, 255, 18):  # black to white
                mixed = (1 - opacity) * clothes + opacity * torso
                assert mixed.max() - mixed.min() >= least  # these are grey, and the torso is not


def test_draw_iuv_exactly():
    iuv = np.array([[[0, 255, 255], [7, 255, 0], [7, 0, 0], [24, 255, 255]]], np.uint8)
    base = PATCH_COLOURS.astype(float)
    expected = [
        np.zeros(3),
        base[7],
        0.45 * base[7],
        base[24] + 0.45 * (255 - base[24]),
    ]
    np.testing.assert_array_equal(draw_iuv(iuv)[0], np.rint(expected))
    with pytest.raises(ValueError, match="patch 25 in iuv"):
        draw_iuv(np.full((2, 2, 3), 25, np.uint8))


def test_side_by_side():
    first, second = _image(100, 40), _image(50, 30)
    row = side_by_side([first, second])
    assert row.shape == (100, 40 + 2 + 60, 3)
    np.testing.assert_array_equal(row[:, :40], first)
    assert (row[:, 40:42] == 255).all()
    titled = side_by_side([first, first], ["a", "a much longer title that must shrink"])
    bar = titled.shape[0] - 100
    assert bar > 10
    np.testing.assert_array_equal(titled[bar:, 42:], first)
    for columns in (np.s_[:40], np.s_[42:]):
        text = (titled[:bar, columns] < 200).any(axis=-1)
        assert text.any() and not text[:, 0].any() and not text[:, -1].any()


def test_bad_arguments():
    image = _image()
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\] uint8"):
        draw_people(image.astype(np.float32), [])
    with pytest.raises(ValueError, match=r"iuv must be \[H, W, 3\] uint8"):
        draw_iuv(image[..., 0])
    with pytest.raises(ValueError, match="opacity must be 0 to 1, got 60"):
        draw_people(image, [], opacity=60)
    with pytest.raises(ValueError, match="1 titles for 2 images"):
        side_by_side([image, image], ["one"])
    with pytest.raises(ValueError, match="at least one image"):
        side_by_side([])


@pytest.mark.parity
def test_published_results_lie_on_their_photo(real_dir):
    from ktn_jax.runtime.images import read_image

    image = read_image(real_dir / "pairs" / "000000000785.jpg")
    found = records.read_results(real_dir / "pairs" / "example_results.json")
    people = records.records_to_people(found)[785]
    iuv, instances = maps.paste_iuv(people, image.shape[:2])
    drawn = draw_people(image, people, opacity=1, **PLAIN)
    np.testing.assert_array_equal(drawn[instances > 0], PATCH_COLOURS[iuv[instances > 0][:, 0]])
    np.testing.assert_array_equal(drawn[instances == 0], image[instances == 0])
    # The skier stands in snow: the body is much darker than what is around it.
    assert image[instances == 0].mean() > image[instances > 0].mean() + 60
    assert drawing.draw_iuv(iuv)[instances == 0].max() == 0
