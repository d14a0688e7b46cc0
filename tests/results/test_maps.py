"""Full-size maps: who is in front, what is cut off, and what the PNG files hold."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ktn_jax.results import maps
from ktn_jax.results.palette import PERSON_COLOURS
from ktn_jax.results.records import PersonResult


def _person(x0, y0, width, height, score, patch):
    iuv = np.zeros((3, max(int(height), 1), max(int(width), 1)), np.uint8)
    iuv[:] = np.array([patch, 10 * patch, 200])[:, None, None]
    return PersonResult([x0, y0, x0 + width, y0 + height], score, iuv)


def test_picture_stands_at_the_truncated_corner():
    iuv, instances = maps.paste_iuv([_person(2.9, 1.75, 2.5, 3.5, 0.5, 7)], (6, 8))
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 2:4] = 1
    np.testing.assert_array_equal(instances, expected)
    assert instances.dtype == np.uint8
    np.testing.assert_array_equal(iuv, expected[..., None] * np.array([7, 70, 200]))


def test_higher_score_is_in_front_and_number_one():
    people = [_person(0, 0, 2, 1, 0.2, 1), _person(1, 0, 2, 1, 0.9, 2), _person(2, 0, 2, 1, 0.5, 3)]
    for order in (people, people[::-1]):
        iuv, instances = maps.paste_iuv(order, (1, 5))
        assert iuv[0, :, 0].tolist() == [1, 2, 2, 3, 0]
        assert instances.tolist() == [[3, 1, 1, 2, 0]]


def test_background_of_one_person_shows_the_other():
    front, behind = _person(0, 0, 3, 1, 0.9, 2), _person(0, 0, 3, 1, 0.1, 5)
    front.iuv[:, 0, 1] = [0, 255, 255]  # U and V without a patch mean nothing
    iuv, instances = maps.paste_iuv([front, behind], (1, 3))
    assert iuv[0].tolist() == [[2, 20, 200], [5, 50, 200], [2, 20, 200]]
    assert instances.tolist() == [[1, 2, 1]]


def test_equal_scores_keep_the_given_order():
    people = [_person(0, 0, 1, 1, 0.5, 3), _person(0, 0, 1, 1, 0.5, 4)]
    iuv, instances = maps.paste_iuv(people, (1, 1))
    assert iuv[0, 0, 0] == 3 and instances[0, 0] == 1


@pytest.mark.parametrize(
    "corner,columns,rows",
    [
        ((-2, -1), slice(0, 2), slice(0, 2)),
        ((4, 3), slice(4, 5), slice(3, 4)),
        ((-9, 0), slice(0, 0), slice(0, 0)),
        ((5, 0), slice(0, 0), slice(0, 0)),
        ((99, 99), slice(0, 0), slice(0, 0)),
    ],
)
def test_what_lies_outside_is_cut_off(corner, columns, rows):
    person = _person(*corner, 4, 3, 0.5, 1)
    person.iuv[1] = np.arange(12).reshape(3, 4)
    iuv, instances = maps.paste_iuv([person], (4, 5))
    expected = np.zeros((4, 5), np.uint8)
    expected[rows, columns] = 1
    np.testing.assert_array_equal(instances, expected)
    for row, column in zip(*np.nonzero(expected), strict=True):
        assert iuv[row, column, 1] == (row - corner[1]) * 4 + column - corner[0]


def test_no_people_and_a_crowd():
    iuv, instances = maps.paste_iuv([], (2, 3))
    assert not iuv.any() and iuv.shape == (2, 3, 3) and instances.shape == (2, 3)
    crowd = [_person(number, 0, 1, 1, 1 - number / 999, 1) for number in range(300)]
    _, instances = maps.paste_iuv(crowd, (1, 300))
    assert instances.dtype == np.uint16
    np.testing.assert_array_equal(instances[0], np.arange(1, 301))
    _, instances = maps.paste_iuv(crowd[:255], (1, 300))
    assert instances.dtype == np.uint8 and instances.max() == 255
    _, instances = maps.paste_iuv(crowd[:256], (1, 300))
    assert instances.dtype == np.uint16 and instances.max() == 256


def test_iuv_png_is_i_u_v_in_red_green_blue(tmp_path):
    iuv, _ = maps.paste_iuv([_person(1, 0, 2, 1, 0.5, 9)], (2, 4))
    path = tmp_path / "a_iuv.png"
    maps.write_iuv_png(path, iuv)
    png = Image.open(path)
    assert png.mode == "RGB" and png.size == (4, 2)
    assert png.getpixel((1, 0)) == (9, 90, 200)
    np.testing.assert_array_equal(np.asarray(png), iuv)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], iuv)


def test_viewers_show_people_in_colours_and_programs_read_their_numbers(tmp_path):
    instances = np.array([[0, 1], [2, 255]], np.uint8)
    maps.write_instances_png(tmp_path / "a.png", instances)
    with Image.open(tmp_path / "a.png") as png:
        assert png.mode == "P"
        np.testing.assert_array_equal(np.asarray(png), instances)
    shown = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    np.testing.assert_array_equal(shown, PERSON_COLOURS[instances])
    assert len(np.unique(PERSON_COLOURS, axis=0)) == 256


def test_instances_of_a_crowd_and_labels_are_grey(tmp_path):
    for write, numbers in (
        (maps.write_instances_png, np.array([[0, 1], [2, 300]], np.uint16)),
        (maps.write_labels_png, np.array([[0, 1], [2, 24]], np.uint8)),
    ):
        write(tmp_path / "a.png", numbers)
        read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        assert read.dtype == numbers.dtype
        np.testing.assert_array_equal(read, numbers)


def test_maps_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"iuv must be \[H, W, 3\] uint8, got \(3, 4, 4\)"):
        maps.write_iuv_png(tmp_path / "a.png", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"instances must be .* int64"):
        maps.write_instances_png(tmp_path / "a.png", np.zeros((4, 4), np.int64))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        maps.write_iuv_png(tmp_path / "b" / "a.png", np.zeros((4, 4, 3), np.uint8))
