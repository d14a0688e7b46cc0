"""Pictures of annotations: the right colour at the right pixel, and nothing elsewhere."""

import json

import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.body import parts
from ktn_jax.data_pipelines.coco import annotations, show
from ktn_jax.data_pipelines.coco.annotations import DensePoseRecord, ImageRecord, PersonRecord
from ktn_jax.data_pipelines.loading.sources import FolderSource
from ktn_jax.results.palette import PATCH_COLOURS

HEIGHT, WIDTH = 60, 100
LEFT_WRIST, RIGHT_WRIST = (
    parts.KEYPOINT_NAMES.index(f"{side}_wrist") for side in ("left", "right")
)


def _record():
    """One person in the box x 20..84, y 10..42: a grid cell is 1/4 pixel wide, 1/8 high."""
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[LEFT_WRIST] = [30, 20, 2]
    keypoints[RIGHT_WRIST] = [70, 30, 1]
    mask = np.zeros((256, 256), np.uint8)
    mask[:128, :64] = parts.COARSE_NAMES.index("right_upper_leg")  # x 20..36, y 10..26
    dense = DensePoseRecord(
        *np.float32([[22, 202], [44, 204], [9, 0], [0, 0.3], [1, 0.3]]),
        part_mask=mask,
        is_annotated=np.ones(2, bool),
        confidence=np.ones(2, np.float32),
    )
    box = np.array([20.0, 10.0, 64.0, 32.0])
    outline = [[20.0, 10.0, 84.0, 10.0, 84.0, 42.0]]
    person = PersonRecord(5, box, False, 900.0, keypoints, outline, dense)
    crowd = PersonRecord(6, np.array([2.0, 50, 30, 8]), True, 9.0, np.zeros((17, 3), np.float32))
    return ImageRecord(77, "a.jpg", HEIGHT, WIDTH, (person, crowd))


@pytest.fixture
def grey():
    return np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def test_point_has_the_colour_of_its_patch_at_its_pixel(grey):
    drawn = show.draw_points(grey, _record())
    # x = 20 + 22 / 4 = 25.5, y = 10 + 44 / 8 = 15.5
    np.testing.assert_array_equal(drawn[15, 25], PATCH_COLOURS[9])
    np.testing.assert_array_equal(drawn[15, 32], [60, 60, 60])
    ring = drawn[35 - 3 : 35 + 4, 70 - 3 : 70 + 4]  # the background point: x 70.5, y 35.5
    np.testing.assert_array_equal(ring[3, 3], [60, 60, 60])
    assert ring.max() > 200
    np.testing.assert_array_equal(grey, 100)  # the image itself stays


def test_u_and_v_run_from_blue_to_yellow(grey):
    low = show.draw_points(grey, _record(), "u")[15, 25].astype(int)
    high = show.draw_points(grey, _record(), "v")[15, 25].astype(int)
    assert low[2] > low[1] and high[0] > 200 and high[1] > 200 and high[2] < 100


def test_part_mask_fills_its_half_of_the_box(grey):
    drawn = show.draw_part_masks(grey, _record())
    changed = (drawn != 100).any(axis=-1)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[10:26, 20:36] = True
    np.testing.assert_array_equal(changed, expected)
    front = parts.PATCH_NAMES.index("right_upper_leg_front")
    mixed = np.rint(0.45 * 100 + 0.55 * PATCH_COLOURS[front])
    np.testing.assert_array_equal(drawn[12, 22], mixed)


def test_part_mask_of_a_box_that_leaves_the_image_is_cut(grey):
    record = _record()
    person = record.people[0]
    moved = PersonRecord(
        5, np.array([-8.0, -4, 64, 32]), False, 1.0, person.keypoints, None, person.densepose
    )
    drawn = show.draw_part_masks(grey, ImageRecord(1, "a.jpg", HEIGHT, WIDTH, (moved,)))
    changed = (drawn != 100).any(axis=-1)
    assert changed[:12, :8].all() and changed.sum() == 12 * 8


def test_keypoints_are_left_blue_right_orange_and_hollow_when_hidden(grey):
    drawn = show.draw_keypoints(grey, _record()).astype(int)
    assert drawn[20, 30, 2] > drawn[20, 30, 0]  # left wrist, filled
    np.testing.assert_array_equal(drawn[30, 70], [100, 100, 100])  # right wrist, a ring
    ring = drawn[27:34, 67:74].reshape(-1, 3)
    strongest = ring[np.abs(ring - 100).sum(axis=1).argmax()]
    assert strongest[0] > strongest[2]


def test_boxes_of_crowds_are_red(grey):
    drawn = show.draw_boxes(grey, _record()).astype(int)
    assert drawn[50, 10, 0] > 200 and drawn[50, 10, 1] < 100
    assert drawn[10, 50, 1] > 150 > drawn[10, 50, 0]


def test_panels_are_laid_out_in_rows_of_three(grey):
    one = show.draw_annotations(grey, _record(), ("boxes",))
    six = show.draw_annotations(grey, _record())
    assert six.shape[0] == 2 * one.shape[0] and six.shape[1] > 3 * WIDTH
    four = show.draw_annotations(grey, _record(), ("boxes", "parts", "u", "v"))
    assert four.shape == six.shape and (four[-HEIGHT:, -WIDTH:] == 255).all()


def test_what_is_not_known_is_refused(grey):
    with pytest.raises(ValueError, match="panels"):
        show.draw_annotations(grey, _record(), ("depth",))
    with pytest.raises(ValueError, match="panels"):
        show.draw_annotations(grey, _record(), ())
    with pytest.raises(ValueError, match="colour_by"):
        show.draw_points(grey, _record(), "i")


def test_pictures_are_written_by_image_id(tmp_path, grey):
    source = [(grey, _record())]
    written = show.write_pictures(source, tmp_path / "pictures")
    assert [path.name for path in written] == ["000000000077.png"]
    with Image.open(written[0]) as picture:
        np.testing.assert_array_equal(np.asarray(picture), show.draw_annotations(grey, _record()))
    with pytest.raises(IndexError, match="image 3 of 1"):
        show.write_pictures(source, tmp_path, [3])


def test_an_image_that_cannot_be_read_is_named_and_left_out(tmp_path, grey, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    Image.fromarray(grey).save(folder / "whole.png")
    size = {"height": HEIGHT, "width": WIDTH}
    images = [
        {"id": 1, "file_name": "cut.jpg", **size},
        {"id": 2, "file_name": "whole.png", **size},
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = [tmp_path / "a.json", "--images", folder, "--output", tmp_path / "pictures"]
    assert cli.main(["data", "show", *map(str, arguments)]) == 1
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["000000000002.png"]
    assert "cut.jpg" in capsys.readouterr().err


def test_real_photos_draw(real_dir):
    folder = real_dir / "coco_keypoints"
    source = FolderSource(annotations.parse_dataset(folder / "test_coco.json"), folder)
    for index in range(len(source)):
        image, record = source[index]
        drawn = show.draw_keypoints(image, record)
        assert drawn.shape == image.shape and (drawn != image).any()
