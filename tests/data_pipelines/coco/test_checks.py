"""Every kind of damage is reported with file, record and field, and never crashes."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ktn_jax.data_pipelines.coco import annotations, checks, findings
from ktn_jax.data_pipelines.loading.sources import FolderSource

BAD_RLE = {"size": [256, 256], "counts": "0000"}


def _set(*path_and_value):
    """A change of one value deep in the annotations."""
    *path, last, value = path_and_value

    def change(raw):
        target = raw
        for key in path:
            target = target[key]
        target[last] = value

    return change


def _annotation(*path_and_value):
    return _set("annotations", 0, *path_and_value)


def _image(*path_and_value):
    return _set("images", 7, *path_and_value)


def _marked(key, last):
    """Ones for the points of the first person, but for the last of them."""

    def change(raw):
        person = raw["annotations"][0]
        person[key] = [1] * (len(person["dp_x"]) - 1) + [last]

    return change


def _vertices(**changes):
    """Vertices for the points of the first person, with changes of the annotation."""

    def change(raw):
        person = raw["annotations"][0]
        person |= {"dp_vertex": [7] * len(person["dp_x"]), "ref_model": "cat_5001"} | changes
        for key in [key for key, value in person.items() if value is None]:
            del person[key]

    return change


def _drop(section, index, key):
    return lambda raw: raw[section][index].pop(key)


def _repeat(section):
    return lambda raw: raw[section].append(dict(raw[section][7]))


PERSON, IMAGE = "annotation 1000", "image 107"

# kind, change, record, field. Annotation 0 carries everything; image 107 is the last.
DAMAGE = [
    ("not_an_object", _set("annotations", 0, "person"), "annotations[0]", "(record)"),
    ("not_an_object", _set("images", 7, None), "images[7]", "(record)"),
    ("missing_key", _drop("annotations", 0, "bbox"), PERSON, "bbox"),
    ("missing_key", _drop("annotations", 0, "id"), "annotations[0]", "id"),
    ("missing_key", _drop("images", 7, "width"), IMAGE, "width"),
    ("wrong_type", _annotation("id", "1000"), "annotations[0]", "id"),
    ("wrong_type", _annotation("image_id", True), PERSON, "image_id"),
    ("wrong_type", _annotation("segmentation", "polygon"), PERSON, "segmentation"),
    ("wrong_type", _image("height", 48.0), IMAGE, "height"),
    ("wrong_type", _image("file_name", 12), IMAGE, "file_name"),
    ("id_range", _image("id", 2**31), f"image {2**31}", "id"),
    ("id_range", _image("id", -1), "image -1", "id"),
    ("duplicate_image", _repeat("images"), IMAGE, "id"),
    ("duplicate_annotation", _repeat("annotations"), "annotation 1040", "id"),
    ("image_size", _image("height", 0), IMAGE, "height"),
    ("file_name", _image("file_name", "../../etc/passwd"), IMAGE, "file_name"),
    ("file_name", _image("file_name", "/tmp/a.jpg"), IMAGE, "file_name"),
    ("file_name", _image("file_name", ""), IMAGE, "file_name"),
    ("unknown_image", _annotation("image_id", 999), PERSON, "image_id"),
    ("unknown_category", _annotation("category_id", 3), PERSON, "category_id"),
    ("box_length", _annotation("bbox", [1, 2, 3]), PERSON, "bbox"),
    ("box_length", _annotation("bbox", [1, 2, 3, "4"]), PERSON, "bbox"),
    ("box_length", _annotation("bbox", None), PERSON, "bbox"),
    ("box_length", _annotation("bbox", [1, 2, 3, 10**400]), PERSON, "bbox"),
    ("box_not_finite", _annotation("bbox", [1, 2, float("nan"), 4]), PERSON, "bbox"),
    ("box_empty", _annotation("bbox", [1, 2, 0, 4]), PERSON, "bbox"),
    ("box_empty", _annotation("bbox", [9, 2, -3, 4]), PERSON, "bbox"),
    ("box_outside", _annotation("bbox", [60, 2, 9, 4]), PERSON, "bbox"),
    ("box_outside", _annotation("bbox", [-2, 2, 9, 4]), PERSON, "bbox"),
    ("area", _annotation("area", -1), PERSON, "area"),
    ("area", _annotation("area", float("inf")), PERSON, "area"),
    ("crowd_flag", _annotation("iscrowd", 2), PERSON, "iscrowd"),
    ("crowd_flag", _annotation("iscrowd", [1]), PERSON, "iscrowd"),
    ("crowd_flag", _annotation("iscrowd", "0"), PERSON, "iscrowd"),
    ("keypoints_length", _annotation("keypoints", [0] * 50), PERSON, "keypoints"),
    ("keypoints_length", _annotation("keypoints", [[0, 0, 0]] * 17), PERSON, "keypoints"),
    ("keypoints_not_finite", _annotation("keypoints", 0, float("nan")), PERSON, "keypoints"),
    ("keypoint_visibility", _annotation("keypoints", 2, 3), PERSON, "keypoints"),
    ("keypoint_visibility", _annotation("keypoints", 2, -1), PERSON, "keypoints"),
    ("keypoint_confidence", _annotation("keypoints", 2, 0.1), PERSON, "keypoints"),
    ("keypoint_outside", _annotation("keypoints", [70, 9, 2] * 17), PERSON, "keypoints"),
    ("keypoint_count", _annotation("num_keypoints", 3), PERSON, "num_keypoints"),
    ("polygon_length", _annotation("segmentation", [[1, 2, 3, 4]]), PERSON, "segmentation[0]"),
    ("polygon_length", _annotation("segmentation", [[1] * 7]), PERSON, "segmentation[0]"),
    (
        "polygon_not_finite",
        _annotation("segmentation", [[float("inf")] * 6]),
        PERSON,
        "segmentation[0]",
    ),
    ("polygon_length", _annotation("segmentation", [1, 2, 3, 4, 5, 6]), PERSON, "segmentation"),
    (
        "polygon_outside",
        _annotation("segmentation", [[1, 1, 1e9, 1, 5, 5]]),
        PERSON,
        "segmentation[0]",
    ),
    ("ignore_regions", _image("ignore_regions_x", [[1, 2, 3]]), IMAGE, "ignore_regions_y"),
    ("id_range", _annotation("id", 2**63), f"annotation {2**63}", "id"),
    ("image_size", _image("width", 2**16 + 1), IMAGE, "width"),
    ("segmentation_rle", _annotation("segmentation", BAD_RLE), PERSON, "segmentation"),
    ("densepose_incomplete", _drop("annotations", 0, "dp_V"), PERSON, "dp_V"),
    ("densepose_incomplete", _drop("annotations", 0, "dp_masks"), PERSON, "dp_masks"),
    ("densepose_incomplete", _annotation("dp_masks", []), PERSON, "dp_masks"),
    ("densepose_incomplete", _annotation("dp_x", None), PERSON, "dp_x"),
    ("densepose_type", _annotation("dp_x", "1, 2"), PERSON, "dp_x"),
    ("densepose_lengths", _annotation("dp_y", [1.0]), PERSON, "dp_x"),
    ("densepose_lengths", _vertices(dp_vertex=[1, 2]), PERSON, "dp_vertex"),
    ("densepose_type", _vertices(dp_vertex="1"), PERSON, "dp_vertex"),
    ("densepose_incomplete", _vertices(dp_U=None, ref_model=None), PERSON, "ref_model"),
    (
        "densepose_incomplete",
        _vertices(dp_U=None, dp_masks=None, segmentation=None),
        PERSON,
        "dp_masks",
    ),
    ("vertex_not_integer", _vertices(dp_vertex=[0.5]), PERSON, "dp_vertex"),
    ("vertex_range", _vertices(dp_vertex=[-1]), PERSON, "dp_vertex"),
    ("vertex_range", _vertices(dp_vertex=[5001]), PERSON, "dp_vertex"),
    ("mesh_name", _vertices(ref_model=7), PERSON, "ref_model"),
    ("point_not_finite", _annotation("dp_x", 0, float("nan")), PERSON, "dp_x"),
    ("point_range", _annotation("dp_y", 0, 256.5), PERSON, "dp_y"),
    ("point_range", _annotation("dp_x", 0, -0.5), PERSON, "dp_x"),
    ("patch_not_integer", _annotation("dp_I", 0, 3.5), PERSON, "dp_I"),
    ("patch_not_integer", _annotation("dp_I", 0, float("nan")), PERSON, "dp_I"),
    ("patch_range", _annotation("dp_I", 0, 25), PERSON, "dp_I"),
    ("patch_range", _annotation("dp_I", 0, -1), PERSON, "dp_I"),
    ("uv_not_finite", _annotation("dp_U", 0, float("nan")), PERSON, "dp_U"),
    ("uv_range", _annotation("dp_V", 0, 1.01), PERSON, "dp_V"),
    ("uv_range", _annotation("dp_U", 0, -0.01), PERSON, "dp_U"),
    ("annotated_flag", _annotation("dp_annotated", [1]), PERSON, "dp_annotated"),
    ("annotated_flag", _annotation("dp_annotated", "1"), PERSON, "dp_annotated"),
    ("annotated_flag", _marked("dp_annotated", 2), PERSON, "dp_annotated"),
    ("annotated_flag", _marked("dp_annotated", True), PERSON, "dp_annotated"),
    ("point_confidence", _annotation("dp_confidence", [0.5]), PERSON, "dp_confidence"),
    ("point_confidence", _marked("dp_confidence", 1.1), PERSON, "dp_confidence"),
    ("point_confidence", _marked("dp_confidence", float("nan")), PERSON, "dp_confidence"),
    ("picture_name", _annotation("dp_iuv", "/a.png"), PERSON, "dp_iuv"),
    ("picture_name", _annotation("dp_iuv", [1]), PERSON, "dp_iuv"),
    ("masks_type", _annotation("dp_masks", {"0": []}), PERSON, "dp_masks"),
    ("masks_type", _annotation("dp_masks", 3, "abc"), PERSON, "dp_masks[3]"),
    ("masks_count", _annotation("dp_masks", [[]] * 15), PERSON, "dp_masks"),
    (
        "mask_size",
        _annotation("dp_masks", 3, {"size": [255, 256], "counts": []}),
        PERSON,
        "dp_masks[3]",
    ),
    ("mask_undecodable", _annotation("dp_masks", 3, BAD_RLE), PERSON, "dp_masks[3]"),
    (
        "mask_undecodable",
        _annotation("dp_masks", 3, {"size": [256, 256], "counts": "~~"}),
        PERSON,
        "dp_masks[3]",
    ),
    ("mask_undecodable", _annotation("dp_masks", 3, {"size": [256, 256]}), PERSON, "dp_masks[3]"),
]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def _other_size(path):
    Image.new("RGB", (10, 12)).save(path)


def _turned(orientation, transpose):
    """Stores what is seen turned, with the orientation that turns it back."""

    def write(path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(path) as image:
            stored = image.transpose(transpose) if transpose is not None else image.copy()
        stored.save(path, exif=exif, quality=95)

    return write


IMAGE_DAMAGE = [
    ("annotated_as_stored", _turned(6, None)),
    ("orientation_unclear", _turned(3, Image.Transpose.ROTATE_180)),
    ("image_missing", lambda path: path.unlink()),
    ("image_unreadable", lambda path: path.write_bytes(b"")),
    ("image_unreadable", lambda path: path.write_bytes(b"<html>not found</html>")),
    ("image_truncated", _cut),
    ("image_size_mismatch", _other_size),
]

FILE_DAMAGE = [
    ("file_missing", None, "(whole file)"),
    ("file_unreadable", b'{"images": "\xff\xfe\xfa"}', "(whole file)"),
    ("not_json", b'{"images": [', "(whole file)"),
    ("not_json", b"", "(whole file)"),
    ("not_json", b"[" * 200_000, "(whole file)"),
    ("wrong_top_level", b"[]", "(whole file)"),
    ("wrong_top_level", b"null", "(whole file)"),
    ("missing_section", b'{"images": [], "categories": []}', "annotations"),
    ("missing_section", b'{"images": {}, "annotations": [], "categories": []}', "images"),
    ("no_person_category", b'{"images": [], "annotations": [], "categories": []}', "categories"),
]


def test_every_kind_is_tried():
    tried = {case[0] for case in [*DAMAGE, *IMAGE_DAMAGE, *FILE_DAMAGE]}
    assert tried == set(findings.KINDS)
    assert len(tried - findings.WARNINGS) >= 25


def test_good_dataset_has_no_findings(folder):
    report = checks.check_file(folder / "annotations.json", folder / "images")
    assert report.findings == () and report.ok
    counts = dict(report.counts)
    assert counts["images"] == 8 and counts["annotations"] == 17 and counts["people"] == 16
    assert counts["crowd regions"] == 1 and counts["annotations of other categories"] == 1
    assert report.format().endswith("ok: 0 errors, 0 warnings")


@pytest.mark.parametrize(
    "kind,change,record,field", DAMAGE, ids=[f"{i}-{case[0]}" for i, case in enumerate(DAMAGE)]
)
def test_damage_is_named_and_skipped(tmp_path, raw, kind, change, record, field):
    change(raw)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(raw))
    report = checks.check_file(path)
    found = [(f.kind, f.file, f.record, f.field) for f in report.findings]
    assert (kind, str(path), record, field) in found
    assert f"damaged.json: {record}: {field}:" in report.format()
    dataset = annotations.parse_dataset(path, "skip", max_skipped_fraction=1)
    if kind in findings.WARNINGS:
        assert dataset.skipped.total == 0
        return
    assert dataset.skipped.total >= 1
    people = [person for image in dataset.images for person in image.people]
    if kind in findings.DENSEPOSE_KINDS:
        assert len(people) == 16 and dataset.skipped.densepose == 1
    else:
        assert len(people) < 16 or "duplicate" in kind
    with pytest.raises(checks.DatasetError) as caught:
        annotations.parse_dataset(path)
    assert f"[{kind}]" in str(caught.value)


@pytest.mark.parametrize("kind,damage", IMAGE_DAMAGE)
def test_damaged_image_is_named_and_skipped(folder, kind, damage):
    damage(folder / "images" / "107.jpg")
    report = checks.check_file(folder / "annotations.json", folder / "images")
    assert [(f.kind, f.record, f.field) for f in report.findings] == [(kind, IMAGE, "file_name")]
    assert "107.jpg" in report.findings[0].message
    dataset = annotations.parse_dataset(folder / "annotations.json", "skip", 1, folder / "images")
    is_kept = kind in findings.WARNINGS
    assert (107 in [image.image_id for image in dataset.images]) == is_kept
    assert len(dataset.images) == 7 + is_kept


def test_sides_that_are_exchanged_are_told(folder):
    path = folder / "images" / "107.jpg"
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(path)
    (finding,) = checks.check_file(folder / "annotations.json", folder / "images").findings
    assert finding.kind == "image_size_mismatch"
    assert "height and width are exchanged" in finding.message


def test_annotations_of_a_stored_photo_are_used_with_it(cases_dir):
    folder = cases_dir / "data" / "exif"
    report = checks.check_file(folder / "annotations.json", folder / "images")
    assert report.ok
    assert [(f.kind, f.record) for f in report.findings] == [("annotated_as_stored", "image 1")]
    source = FolderSource(annotations.parse_dataset(folder / "annotations.json"), folder / "images")
    image, record = source[0]
    with Image.open(folder / "images" / record.file_name) as file:
        np.testing.assert_array_equal(image, np.asarray(file))
    assert image.shape == (96, 128, 3)


@pytest.mark.parametrize("kind,content,field", FILE_DAMAGE)
def test_unreadable_file_is_named(tmp_path, kind, content, field):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    report = checks.check_file(path)
    assert [(f.kind, f.file, f.field) for f in report.findings] == [(kind, str(path), field)]
    with pytest.raises(checks.DatasetError, match=kind):  # there are no records to skip
        annotations.parse_dataset(path, "skip", max_skipped_fraction=1)


def test_turned_photo_has_the_size_it_is_seen_at(folder):
    path = folder / "images" / "101.jpg"
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = image.getexif()
        exif[0x0112] = 6  # turn clockwise to see it upright
        turned.save(path, exif=exif)
    report = checks.check_file(folder / "annotations.json", folder / "images")
    assert report.ok, report.format()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_value_in_any_field_is_survived(raw, data):
    section = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    entry = dict(raw[section][0])
    key = data.draw(
        st.sampled_from(
            [*sorted(entry), "iscrowd", "dp_annotated", "dp_confidence", "dp_vertex", "ref_model"]
        )
    )
    entry[key] = data.draw(_JSON)
    changed = raw | {section: [entry, *raw[section][1:]]}
    report = checks.check_dataset(changed)
    if report.is_readable:
        dataset = annotations.parse_dataset(changed, "skip", max_skipped_fraction=1)
        for image in dataset.images:
            assert all(person.keypoints.shape == (17, 3) for person in image.people)


NO_DENSEPOSE = dict.fromkeys(("dp_x", "dp_y", "dp_I", "dp_U", "dp_V", "dp_masks"))


@pytest.mark.parametrize("nothing", [None, [], {}])
@pytest.mark.parametrize("field", ["keypoints", "segmentation", "iscrowd", "area", "DensePose"])
def test_null_or_empty_is_absent(raw, field, nothing):
    names = NO_DENSEPOSE if field == "DensePose" else [field]
    absent, empty = json.loads(json.dumps(raw)), json.loads(json.dumps(raw))
    for name in names:
        absent["annotations"][0].pop(name, None)
        empty["annotations"][0][name] = nothing
    assert checks.check_dataset(empty).format() == checks.check_dataset(absent).format()
    for left, right in zip(
        annotations.parse_dataset(absent).images,
        annotations.parse_dataset(empty).images,
        strict=True,
    ):
        for one, other in zip(left.people, right.people, strict=True):
            assert (one.densepose is None) == (other.densepose is None)
            np.testing.assert_array_equal(one.keypoints, other.keypoints)
            assert (one.area, one.is_crowd, one.segmentation) == (
                other.area,
                other.is_crowd,
                other.segmentation,
            )


def test_other_categories_are_not_judged(raw):
    before = dict(checks.check_dataset(raw).counts)
    dog = {"id": [], "category_id": 18, "bbox": "?", "segmentation": 7, "image_id": "none"}
    raw["annotations"].append(dog)
    report = checks.check_dataset(raw)
    assert report.ok
    assert report.counts["people"] == before["people"]
    assert report.counts["annotations of other categories"] == 2


def test_two_categories_of_people(raw):
    raw["categories"].append({"id": 5, "name": "person"})
    raw["annotations"][0]["category_id"] = 5
    assert checks.check_dataset(raw).classes == {1: 0, 5: 0}
    people = [person for image in annotations.parse_dataset(raw).images for person in image.people]
    assert len(people) == 16


def test_a_person_category_without_a_number_is_named(raw):
    raw["categories"] = [{"id": "1", "name": "person"}, {"id": 18, "name": "dog"}]
    report = checks.check_dataset(raw)
    assert not report.is_readable
    assert "id of 'person' must be an integer, got '1'" in report.format()


def test_report_writes_as_many_findings_as_asked(raw):
    for annotation in raw["annotations"][:5]:
        annotation["bbox"] = [0, 0, 0, 0]
    report = checks.check_dataset(raw, "some.json")
    assert report.format().count("[box_empty]") == 5
    short = report.format(max_findings=2)
    assert short.count("[box_empty]") == 2 and "... and 3 more" in short
    assert short.endswith("BAD: 5 errors, 0 warnings")


@pytest.mark.parametrize("missing", ["", "dp_U", "dp_vertex", "dp_I dp_U dp_V", "dp_masks dp_U"])
def test_charts_or_vertices_are_enough(raw, missing):
    _vertices(**dict.fromkeys(missing.split()))(raw)
    assert checks.check_dataset(raw).ok
    person = annotations.parse_dataset(raw).images[0].people[0]
    dense, count = person.densepose, len(raw["annotations"][0]["dp_x"])
    has_vertices = missing != "dp_vertex"
    assert (dense.vertex is not None, dense.mesh) == (has_vertices, "cat_5001" * has_vertices)
    if has_vertices:
        np.testing.assert_array_equal(dense.vertex, [7] * count)
        assert dense.take(np.arange(count) < 2).vertex.tolist() == [7, 7]
    assert dense.has_charts == bool(dense.i.any()) == ("dp_U" not in missing)
    # The segmentation is the box: it takes the place of the part masks as that of the body.
    assert (dense.part_mask == 15).all() == ("dp_masks" in missing)


def test_animals_are_read_as_lvis_has_them(raw):
    """Several categories, addresses in place of file names, vertices without charts."""
    raw["categories"] = [{"id": 1, "name": "zebra"}, {"id": 18, "name": "cat"}]
    raw["categories"] += [{"id": 9, "name": "banana"}]
    for image in raw["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
    raw["annotations"][-1] |= {
        "dp_x": [3.0, 200.5],
        "dp_y": [7.0, 9.0],
        "dp_vertex": [5000, 0],
        "ref_model": "cat_5001",
        "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
    }
    (finding,) = checks.check_dataset(raw).findings
    assert finding.kind == "no_person_category" and "'zebra', 'cat', 'banana'" in finding.message
    report = checks.check_dataset(raw, categories=("cat", "zebra"))
    assert report.ok, report.format()
    assert (report.counts["people"], report.counts["people with vertices"]) == (17, 1)
    images = annotations.parse_dataset(raw, categories=("cat", "zebra")).images
    assert images[1].file_name == "train2017/101.jpg"
    classes = [person.class_index for person in images[1].people]
    assert classes == [1] * (len(classes) - 1) + [0]
    assert images.facts().vertices == {"cat_5001": 5001}
    # Without zebras.
    (cat,) = annotations.parse_dataset(raw, categories=("cat",)).images[1].people
    np.testing.assert_array_equal(cat.densepose.vertex, [5000, 0])
    assert cat.densepose.is_on_surface and not cat.densepose.i.any()
