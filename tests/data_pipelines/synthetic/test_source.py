"""Synthetic annotations and datasets: exact, reproducible, and readable by others."""

import dataclasses
import hashlib
import json
import pickle

import cv2
import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from ktn_jax.body import parts
from ktn_jax.data_pipelines.coco import annotations
from ktn_jax.data_pipelines.synthetic import dataset_files, labels
from ktn_jax.data_pipelines.synthetic import source as synthetic
from ktn_jax.data_pipelines.synthetic.scene import EASY, Scene

# pycocotools' decoder on current NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = dataclasses.replace(
    Scene(), image_size_hw=(128, 160), crowd_probability=0.9, min_densepose_pixels=150
)


@pytest.fixture(scope="module")
def source():
    return synthetic.SyntheticSource(8, seed=21, scene=SMALL)


@pytest.fixture(scope="module")
def pictures(source):
    return [source.picture(index) for index in range(len(source))]


@pytest.fixture(scope="module")
def examples(source, pictures):
    return [source.example(index, picture) for index, picture in enumerate(pictures)]


def singles(example):
    return [a for a in example.annotations if not a["iscrowd"]]


def image_points(record):
    """Row and column of the pixel that each surface point lies in."""
    x, y, width, height = record["bbox"]
    column = x + np.array(record["dp_x"]) * width / 256
    row = y + np.array(record["dp_y"]) * height / 256
    # Points are the centres of pixels; files hold four decimals of the grid.
    np.testing.assert_allclose(np.concatenate([row, column]) % 1, 0.5, atol=1e-3)
    return row.astype(int), column.astype(int)


def test_points_tell_the_dense_truth(pictures, examples):
    people = 0
    for picture, example in zip(pictures, examples, strict=True):
        ids = np.flatnonzero(~picture.is_crowd) + 1
        for instance_id, record in zip(ids, singles(example), strict=True):
            if "dp_I" not in record:
                continue
            people += 1
            row, column = image_points(record)
            truth = picture.truth
            assert (truth.instance[row, column] == instance_id).all()
            np.testing.assert_array_equal(truth.patch[row, column], record["dp_I"])
            # Files hold six decimals.
            np.testing.assert_allclose(truth.u[row, column], record["dp_U"], atol=6e-7)
            np.testing.assert_allclose(truth.v[row, column], record["dp_V"], atol=6e-7)
            assert 0 <= min(record["dp_x"] + record["dp_y"])
            assert max(record["dp_x"] + record["dp_y"]) <= 255
    assert people >= 6


def test_points_have_the_nearest_vertex(source, examples):
    """Of the face that the pixel shows: no other vertex is much nearer on the surface."""
    template = source.body.template
    records = [one for example in examples for one in singles(example) if "dp_x" in one]
    columns = ("dp_I", "dp_U", "dp_V", "dp_vertex")
    patch, u, v, vertex = (np.concatenate([one[key] for one in records]) for key in columns)
    assert {one["ref_model"] for one in records} == {"body"} and len(vertex) > 300
    found = template.iuv_to_surface(patch.astype(int), u, v)
    points = template.surface_to_point(found.face, found.barycentric)
    own = np.linalg.norm(points - template.vertices[vertex], axis=1)
    nearest = np.linalg.norm(points[:, None] - template.vertices[None], axis=-1)
    # A vertex of a neighbouring face, or across a fold, may be a little nearer.
    assert np.mean(vertex == nearest.argmin(axis=1)) > 0.9
    assert (own - nearest.min(axis=1)).max() < 0.02


def test_points_are_shared_out_over_the_parts_and_spread():
    dense = synthetic.SyntheticSource(5, seed=2, scene=EASY)
    whole = 0
    for index in range(len(dense)):
        picture = dense.picture(index)
        for record in singles(dense.example(index, picture)):
            coarse = parts.FINE_TO_COARSE[np.array(record["dp_I"], int)]
            counts = np.bincount(coarse, minlength=15)[1:]
            assert counts.max() <= EASY.points_per_part
            row, column = image_points(record)
            assert len(set(zip(row, column, strict=True))) == len(row)
            masked = [bool(entry) for entry in record["dp_masks"]]
            # A part that covers pixels has points, but for one seen at the box's last column only.
            assert (counts > 0).sum() >= sum(masked) - 1
            if sum(masked) >= 12 and record["area"] > 5000:
                whole += 1
                assert 80 <= len(row) <= 180
    assert whole >= 2


def test_spread_points_is_even():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(20)), axis=-1).reshape(-1, 2)
    chosen = grid[labels.spread_points(grid, 14, rng)]
    assert 12 <= len(chosen) <= 14
    gaps = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    # Fourteen even cells of 800 pixels are 7.6 wide; points drawn at random come within 1 or 2.
    assert gaps.min() > 3.5
    reach = np.linalg.norm(grid[:, None] - chosen[None], axis=-1).min(axis=1)
    assert reach.max() < 11
    assert len(labels.spread_points(grid[:5], 14, rng)) == 5


def test_part_masks_are_the_parts_on_the_box_grid(pictures, examples):
    checked = 0
    for picture, example in zip(pictures, examples, strict=True):
        ids = np.flatnonzero(~picture.is_crowd) + 1
        for instance_id, record in zip(ids, singles(example), strict=True):
            if "dp_masks" not in record:
                continue
            assert len(record["dp_masks"]) == 14
            drawn = np.zeros((256, 256), int)
            for part, entry in enumerate(record["dp_masks"], start=1):
                if entry:
                    assert entry["size"] == [256, 256] and isinstance(entry["counts"], str)
                    drawn += part * pycocotools.mask.decode(entry).astype(int)
            x, y, width, height = record["bbox"]
            row = (y + (np.arange(256) + 0.5) * height / 256).astype(int)[:, None]
            column = (x + (np.arange(256) + 0.5) * width / 256).astype(int)
            truth = picture.truth
            coarse = np.where(truth.instance == instance_id, parts.FINE_TO_COARSE[truth.patch], 0)
            np.testing.assert_array_equal(drawn, coarse[row, column])
            checked += 1
    assert checked >= 6


def test_boxes_areas_and_polygons_fit_the_visible_person(pictures, examples):
    for picture, example in zip(pictures, examples, strict=True):
        ids = np.flatnonzero(~picture.is_crowd) + 1
        for instance_id, record in zip(ids, singles(example), strict=True):
            mask = picture.truth.instance == instance_id
            rows, columns = np.nonzero(mask)
            x, y, width, height = record["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert record["area"] == mask.sum()
            decoded = pycocotools.mask.decode(
                pycocotools.mask.merge(
                    pycocotools.mask.frPyObjects(record["segmentation"], *mask.shape)
                )
            )
            union = (decoded | mask).sum()
            # Outlines are simplified and holes filled: an arm on a hip opens one.
            assert (decoded & mask).sum() / union > 0.75
            assert record["num_keypoints"] == sum(v > 0 for v in record["keypoints"][2::3])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_exact_polygons_decode_to_the_mask(seed):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal((24, 31)), (0, 0), 1.5)
    blobs = (noise > 0.05).astype(np.uint8)
    outlines, _ = cv2.findContours(blobs, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(blobs), outlines, -1, 1, cv2.FILLED)
    polygons = labels.mask_to_polygons(filled > 0, tolerance=0)
    encoded = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, 24, 31))
    np.testing.assert_array_equal(pycocotools.mask.decode(encoded), filled)


def test_crowds_are_one_region_with_run_lengths(pictures, examples):
    found = 0
    for picture, example in zip(pictures, examples, strict=True):
        crowds = [a for a in example.annotations if a["iscrowd"]]
        assert len(crowds) == bool(picture.is_crowd.any())
        for record in crowds:
            found += 1
            members = np.isin(picture.truth.instance, np.flatnonzero(picture.is_crowd) + 1)
            assert isinstance(record["segmentation"]["counts"], list)
            runs = pycocotools.mask.frPyObjects(record["segmentation"], *members.shape)
            decoded = pycocotools.mask.decode(runs).astype(bool)
            assert decoded[members].all()
            assert decoded.sum() == record["area"] < 3 * members.sum() + 400
            assert record["num_keypoints"] == 0 and not any(record["keypoints"])
            assert "dp_I" not in record
    assert found >= 2


def test_keypoints_are_the_pixels_of_the_truth(pictures, examples):
    for picture, example in zip(pictures, examples, strict=True):
        ids = np.flatnonzero(~picture.is_crowd)
        for index, record in zip(ids, singles(example), strict=True):
            written = np.array(record["keypoints"]).reshape(17, 3)
            truth = picture.truth.keypoints[index]
            np.testing.assert_array_equal(written[:, 2], truth[:, 2])
            labelled = written[:, 2] > 0
            inside = truth[labelled, :2] - written[labelled, :2]
            assert (inside >= 0).all() and (inside < 1).all()
            assert all(isinstance(number, int) for number in record["keypoints"])


def test_examples_depend_on_seed_and_index_only(source, examples):
    longer = synthetic.SyntheticSource(100, seed=21, scene=SMALL)
    again = pickle.loads(pickle.dumps(longer))[5]  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(again.image, examples[5].image)
    assert again.annotations == examples[5].annotations
    other = synthetic.SyntheticSource(8, seed=22, scene=SMALL)[5]
    assert other.annotations != examples[5].annotations
    with pytest.raises(IndexError, match="8"):
        source[8]
    with pytest.raises(ValueError, match="seed"):
        synthetic.SyntheticSource(1, seed=-1)


def test_fraction_of_people_with_surface_points():
    for fraction in (0.0, 1.0):
        settings_ = dataclasses.replace(SMALL, densepose_fraction=fraction)
        records = [
            record
            for example in synthetic.SyntheticSource(3, 21, settings_)
            for record in singles(example)
            if record["area"] >= SMALL.min_densepose_pixels
        ]
        assert records and all(("dp_I" in record) == bool(fraction) for record in records)


def file_hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "one"
    dataset_files.write_dataset(folder, 8, seed=21, scene=SMALL)
    return folder


def test_files_are_the_examples(written, source, examples):
    dataset = json.loads((written / "annotations.json").read_text())
    expected = synthetic.dataset_header(source.scene, len(source), source.seed) | {
        "images": [example.image_record for example in examples],
        "annotations": [record for example in examples for record in example.annotations],
    }
    assert dataset == json.loads(json.dumps(expected))
    for example in examples:
        image = cv2.imread(str(written / "images" / example.image_record["file_name"]))
        difference = np.abs(image[..., ::-1].astype(int) - example.image)
        assert difference.mean() < 6  # JPEG of a noisy image; with its channels swapped 15 or more
    assert sorted(p.name for p in written.iterdir()) == ["annotations.json", "images"]


def test_pycocotools_opens_the_dataset(written, capsys):
    coco = COCO(str(written / "annotations.json"))
    capsys.readouterr()
    assert len(coco.getImgIds()) == 8
    assert coco.loadCats(1)[0]["keypoints"] == list(parts.KEYPOINT_NAMES)
    assert coco.loadCats(1)[0]["skeleton"][0] == [16, 14]
    for record in coco.loadAnns(coco.getAnnIds()):
        image = coco.loadImgs(record["image_id"])[0]
        assert coco.annToMask(record).shape == (image["height"], image["width"])


def test_our_reader_finds_nothing_wrong(written, examples):
    dataset = annotations.parse_dataset(written / "annotations.json", on_bad="raise")
    assert len(dataset.images) == 8
    people = [person for image in dataset.images for person in image.people]
    expected = [record for example in examples for record in example.annotations]
    assert len(people) == len(expected)
    assert sum(p.densepose is not None for p in people) == sum("dp_I" in a for a in expected)
    assert sum(p.is_crowd for p in people) == sum(a["iscrowd"] for a in expected)


def test_the_number_of_processes_changes_nothing(written, tmp_path):
    dataset_files.write_dataset(tmp_path / "two", 8, seed=21, scene=SMALL, num_processes=2)
    assert file_hashes(tmp_path / "two") == file_hashes(written)


def test_an_interrupted_dataset_resumes(written, tmp_path, monkeypatch):
    folder = tmp_path / "resumed"
    calls = []
    write_image = dataset_files._write_image

    def stop_at_third(source, output_dir, index):
        calls.append(index)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write_image(source, output_dir, index)

    monkeypatch.setattr(dataset_files, "_write_image", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        dataset_files.write_dataset(folder, 8, seed=21, scene=SMALL)
    assert not (folder / "annotations.json").exists()
    calls.clear()
    calls.extend([None] * 10)
    dataset_files.write_dataset(folder, 8, seed=21, scene=SMALL)
    assert calls[10:] == [3, 4, 5, 6, 7]
    assert file_hashes(folder) == file_hashes(written)
    calls.clear()
    dataset_files.write_dataset(folder, 8, seed=21, scene=SMALL)
    assert calls == []


def test_a_folder_of_something_else_is_left_alone(written, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        dataset_files.write_dataset(tmp_path, 1, seed=0)
    with pytest.raises(ValueError, match="other settings"):
        dataset_files.write_dataset(written, 8, seed=22, scene=SMALL)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "annotations.json").write_text("[")
    with pytest.raises(ValueError, match="no dataset"):
        dataset_files.write_dataset(tmp_path / "broken", 1, seed=0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_importing_the_source_needs_neither_tensorflow_nor_jax():
    import subprocess
    import sys

    code = (
        "import sys;"
        "from ktn_jax.data_pipelines.synthetic import dataset_files, source;"
        "sys.exit(any(m in sys.modules for m in ('tensorflow', 'jax', 'flax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
