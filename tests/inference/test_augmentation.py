"""Test-time augmentation: mirrored charts to the original's numbers, and what must not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktn_jax.body import parts
from ktn_jax.body.loading import load_uv_symmetry
from ktn_jax.body.symmetry import UVSymmetry
from ktn_jax.inference import augmentation, mirroring, symmetries
from ktn_jax.inference.augmentation import AugmentedPredictor
from ktn_jax.inference.predictor import Predictor
from ktn_jax.inference.stages import Stages
from ktn_jax.runtime.configuration import load_config
from ktn_jax.structures import DensePoseOutputs, Detections, EmbeddingOutputs, PersonMaps

FAST = [
    "test.short_side=128",
    "test.max_side=192",
    "test.size_buckets=((160, 160),)",
    "model.box_head.max_detections=5",
    "model.densepose_head.channels=32",
    "model.neck.channels=32",
    "model.decoder.channels=32",
    "model.decoder.out_channels=32",
]
# Cells of a table are 1/255 wide; averaging with one mirrored view halves what is rounded.
CELL = 1 / 255


def _identity_symmetry():
    """Tables that leave U and V as they are, to within a cell: the mirror is its own inverse."""
    centres = np.minimum((np.arange(256) + 0.5) / 255, 1)
    v, u = np.meshgrid(centres, centres, indexing="ij")
    return UVSymmetry(np.tile(u, (24, 1, 1)), np.tile(v, (24, 1, 1)))


def _config(*changes):
    return load_config("configs/ktn.py:tiny", [*FAST, *changes])


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(_config())


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (15, 20, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def mirrored(variables):
    """One scale, and its mirror."""
    config = _config("test.augmentation.short_sides=(128,)", "test.augmentation.max_side=192")
    return AugmentedPredictor(Stages(config, variables), _identity_symmetry())


def _outputs(coarse, fine, u, v, keypoints=None):
    """Maps [N, C, S, S] of the reference in our layout."""
    maps = (np.moveaxis(x, 1, -1) for x in (coarse, fine, u, v))
    return DensePoseOutputs(*maps, keypoints=keypoints)


@pytest.mark.parametrize("case", ["coarse2", "coarse15", "ops"])
def test_mirrored_charts_are_the_originals(golden_dir, case):
    symmetry = load_uv_symmetry(golden_dir / "uv_symmetry_synthetic.mat")
    if case == "ops":
        with np.load(golden_dir / "ops.npz") as stored:
            given_ = [stored[n] for n in ("hflip/output_S_in", "chart/I", "chart/U", "chart/V")]
            expected = [stored[f"hflip/output_{name}"] for name in "SIUV"]
    else:
        with np.load(golden_dir / "ops_upstream_chart.npz") as stored:
            given_ = [stored[f"{case}/{name}"] for name in "SIUV"]
            expected = [stored[f"{case}/hflip_{name}"] for name in "SIUV"]
    actual = mirroring.mirror_outputs(_outputs(*given_), symmetry)
    wanted = _outputs(*expected)
    for name in ("coarse_segm", "fine_segm", "u", "v"):
        left, right = getattr(actual, name), getattr(wanted, name)
        assert left.dtype == np.float32
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_mirrored_keypoints_and_confidences_change_sides_and_other_outputs_go():
    rng = np.random.default_rng(1)
    maps = {name: rng.random((1, 4, 4, 25), np.float32) for name in ("fine_segm", "u", "v")}
    outputs = DensePoseOutputs(
        coarse_segm=rng.random((1, 4, 4, 2), np.float32),
        keypoints=rng.random((1, 4, 4, 17), np.float32),
        sigma=rng.random((1, 4, 4, 25), np.float32),
        coarse_segm_confidence=rng.random((1, 4, 4, 1), np.float32),
        part_segm=np.ones((1, 4, 4, 15), np.float32),
        **maps,
    )
    actual = mirroring.mirror_outputs(outputs, _identity_symmetry())
    left, right = (parts.KEYPOINT_NAMES.index(f"{side}_wrist") for side in ("left", "right"))
    np.testing.assert_array_equal(
        actual.keypoints[0, :, 0, left], outputs.keypoints[0, :, 3, right]
    )
    nose = parts.KEYPOINT_NAMES.index("nose")
    np.testing.assert_array_equal(actual.keypoints[0, :, 1, nose], outputs.keypoints[0, :, 2, nose])
    left, right = (parts.PATCH_NAMES.index(f"{side}_hand") for side in ("left", "right"))
    np.testing.assert_array_equal(actual.sigma[0, :, 0, left], outputs.sigma[0, :, 3, right])
    np.testing.assert_array_equal(
        actual.coarse_segm_confidence, outputs.coarse_segm_confidence[:, :, ::-1]
    )
    assert actual.part_segm is None


def test_mirrored_directions_follow_u_and_v():
    """Where the mirror is (u, v) -> (1 - v, u), a step of (1, 2) becomes one of (-2, 1)."""
    centres = (np.arange(256) + 0.5) / 255
    v, u = np.meshgrid(centres, centres, indexing="ij")
    symmetry = UVSymmetry(np.tile(1 - v, (24, 1, 1)), np.tile(u, (24, 1, 1)))
    maps = np.zeros((1, 3, 4, 25), np.float32)
    kappa = np.arange(25, dtype=np.float32) * np.ones_like(maps)
    outputs = DensePoseOutputs(maps[..., :2], maps, maps, maps, kappa_u=kappa, kappa_v=2 * kappa)
    actual = mirroring.mirror_outputs(outputs, symmetry)
    expected = np.broadcast_to(parts.PATCH_FLIP, maps.shape)[..., 1:]
    np.testing.assert_allclose(actual.kappa_u[..., 1:], -2 * expected, rtol=1e-6)
    np.testing.assert_allclose(actual.kappa_v[..., 1:], expected, rtol=1e-6)


@pytest.mark.extended
def test_one_view_as_it_is_equals_plain_inference(variables, photo):
    config = _config(
        "test.augmentation.short_sides=(128,)",
        "test.augmentation.max_side=192",
        "test.augmentation.flip=False",
    )
    stages = Stages(config, variables)
    plain = Predictor(stages)(photo)
    augmented = AugmentedPredictor(stages, None)(photo)
    assert len(plain) == len(augmented) == 5
    assert len({person.score for person in plain}) == 5
    for one, other in zip(plain, augmented, strict=True):
        np.testing.assert_array_equal(one.box_xyxy, other.box_xyxy)
        np.testing.assert_array_equal(one.iuv, other.iuv)
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        assert one.score == other.score


@pytest.mark.extended
def test_a_mirrored_photo_gives_the_mirrored_people(mirrored, photo):
    here = list(mirrored.find_augmented(photo))
    there = list(mirrored.find_augmented(np.ascontiguousarray(photo[:, ::-1])))
    assert len(here) == len(there) == 5
    width = mirrored.frame_size(photo.shape[:2])[1]
    for one, other in zip(here, there, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        back = mirroring.mirror_boxes(other.box_xyxy, width)
        np.testing.assert_allclose(one.box_xyxy, back, atol=1e-2)
        lifted = DensePoseOutputs(
            **{
                name: getattr(other.maps.charts, name)[None]
                for name in ("coarse_segm", "fine_segm", "u", "v", "keypoints")
            }
        )
        turned = mirroring.mirror_outputs(lifted, _identity_symmetry())
        for name in ("coarse_segm", "fine_segm", "keypoints"):
            expected = getattr(turned, name)[0]
            scale = max(float(expected.std()), 1e-6)
            np.testing.assert_allclose(getattr(one.maps.charts, name), expected, atol=2e-3 * scale)
        for name in ("u", "v"):
            expected = getattr(turned, name)[0][..., 1:]
            values = getattr(one.maps.charts, name)[..., 1:]
            assert 0.1 < values.min() < 0.4 < 0.6 < values.max() < 0.9
            np.testing.assert_allclose(values, expected, atol=1.01 * CELL)


def _fake_network(predictor, monkeypatch, found):
    """Replaces both stages: `found(width)` [rows] of (boxes, scores); charts tell their boxes."""
    drawn = []

    def detect(inputs, sizes):
        boxes, scores = (np.float32(x) for x in found(int(sizes[0, 1])))
        assert len(boxes) == len(inputs)
        return inputs.shape, Detections(boxes, scores, scores > 0, np.zeros(scores.shape, np.int32))

    def describe(pyramid, boxes, rows, classes):
        drawn.append((pyramid, boxes, rows))
        maps = np.broadcast_to(boxes[:, :1, None, None], (len(boxes), 2, 2, 25))
        return PersonMaps(DensePoseOutputs(maps[..., :2], maps, maps, maps))

    monkeypatch.setattr(predictor.stages, "detect", detect)
    monkeypatch.setattr(predictor.stages, "describe", describe)
    return drawn


def test_boxes_of_all_views_are_merged_and_drawn_in_each(mirrored, monkeypatch):
    monkeypatch.setattr(
        mirrored,
        "config",
        _config("test.augmentation.short_sides=(64, 256)", "test.augmentation.max_side=400"),
    )

    def found(width):  # of an image of 160 x 320, seen as 64 x 128 and, limited, 200 x 400
        if width == 128:
            plain, mirror = [12, 16, 40, 48], [88, 16, 116, 48]  # the same person
            return [[plain, [0] * 4], [mirror, [0] * 4]], [[0.6, 0], [0.9, 0]]
        assert width == 400
        other = [300, 50, 400, 150]
        return [[[0] * 4] * 2, [other, [0] * 4]], [[0, 0], [0.7, 0]]

    drawn = _fake_network(mirrored, monkeypatch, found)
    photo = np.zeros((160, 320, 3), np.uint8)
    assert mirrored.frame_size((160, 320)) == (96, 192)
    people = list(mirrored.find_augmented(photo))
    # The best of both views of the first person stays; the mirror turns the other's box around.
    np.testing.assert_allclose([p.score for p in people], [0.9, 0.7])
    np.testing.assert_allclose(people[0].box_xyxy, [18, 24, 60, 72])
    np.testing.assert_allclose(people[1].box_xyxy, [0, 24, 48, 72])
    (small, boxes, rows), (large, large_boxes, _) = drawn
    assert small == (2, 64, 128, 3) and large == (2, 256, 448, 3)
    np.testing.assert_array_equal(rows, [0, 0, 1, 1])
    np.testing.assert_allclose(boxes[0], [12, 16, 40, 48])
    np.testing.assert_allclose(boxes[2], [88, 16, 116, 48])
    np.testing.assert_allclose(large_boxes[3], [300, 50, 400, 150])
    # Logits are averaged over the four views: here each is the left edge of its box.
    np.testing.assert_allclose(
        people[0].maps.charts.fine_segm, (12 + 88 + 37.5 + 275) / 4, rtol=1e-6
    )


def test_opposite_directions_are_the_same(mirrored, monkeypatch):
    """k and -k describe one covariance: views that differ in the sign do not cancel."""
    monkeypatch.setattr(mirrored, "config", _config("test.augmentation.short_sides=(128,)"))
    _fake_network(mirrored, monkeypatch, lambda width: ([[[9, 9, 50, 90]]] * 2, [[0.9]] * 2))

    def describe(pyramid, boxes, rows, classes):
        maps = np.ones((len(boxes), 2, 2, 25), np.float32)
        sign = np.where(rows == 0, 1, -1).reshape(-1, 1, 1, 1).astype(np.float32)
        kappas = {"kappa_u": sign * maps, "kappa_v": 0 * maps}
        outputs = DensePoseOutputs(maps[..., :2], maps, maps, maps, sigma=sign * maps, **kappas)
        return PersonMaps(outputs)

    monkeypatch.setattr(mirrored.stages, "describe", describe)
    person, *_ = mirrored.find_augmented(np.zeros((128, 170, 3), np.uint8))
    np.testing.assert_allclose(person.maps.charts.sigma, 0)
    np.testing.assert_allclose(person.maps.charts.kappa_u, 1, atol=1e-2)  # of an identity of cells
    np.testing.assert_allclose(person.maps.charts.kappa_v, 0, atol=1e-2)


def test_rotated_views_see_the_same_people_and_their_charts_are_turned_back(mirrored, monkeypatch):
    """A network whose charts tell where on the photo a cell is gives the same in every view."""
    changes = ("short_sides=(96,)", "flip=False", "rotation_degrees=(90, -30)")
    config = _config("test.max_side=160", *(f"test.augmentation.{change}" for change in changes))
    monkeypatch.setattr(mirrored, "config", config)
    photo = np.zeros((128, 160, 3), np.uint8)
    frame_hw = mirrored.frame_size(photo.shape[:2])
    seen = []

    def detect(inputs, sizes):
        seen.append(tuple(sizes[0].tolist()))
        # Boxes of rotated views are not taken.
        scores = np.float32([[0.9 if len(seen) == 1 else 0.95]])
        box = np.float32([[[30, 20, 70, 90]]]) * (96 / 128 if len(seen) == 1 else 1)
        return seen[-1], Detections(box, scores, scores > 0, np.zeros((1, 1), np.int32))

    def describe(view_hw, boxes, rows, classes):
        number, (box,) = seen.index(view_hw), boxes
        cells = (np.arange(16) + 0.5) / 16
        x, y = np.meshgrid(*(box[i] + cells * (box[i + 2] - box[i]) for i in (0, 1)))
        at = np.stack([x, y], axis=-1)
        if number == 0:
            at = at * 128 / 96
        else:  # to the offset from the centre, and back by the angle
            angle = np.deg2rad((90, -30)[number - 1])
            offset = at - np.array(view_hw[::-1]) / 2
            back = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
            at = offset @ back + np.array(frame_hw[::-1]) / 2
        maps = np.repeat(at[None], 13, axis=-1)[..., :25].astype(np.float32)
        charts = DensePoseOutputs(maps[..., 12:14], maps, maps, maps)
        return PersonMaps(charts, keypoints=maps[..., :17], mask=maps[..., 0])

    monkeypatch.setattr(mirrored.stages, "detect", detect)
    monkeypatch.setattr(mirrored.stages, "describe", describe)
    (person,) = mirrored.find_augmented(photo)
    assert frame_hw == (128, 160) and seen == [(96, 120), (160, 128), (191, 203)]
    assert person.score == pytest.approx(0.9)
    np.testing.assert_allclose(person.box_xyxy, [30, 20, 70, 90], rtol=1e-6)
    cells = (np.arange(16) + 0.5) / 16
    x = np.broadcast_to(30 + 40 * cells, (16, 16))
    y = np.broadcast_to(20 + 70 * cells[:, None], (16, 16))
    found = person.maps
    for maps in (found.charts.fine_segm, found.charts.u, found.keypoints):
        np.testing.assert_allclose(maps[..., 0], x, atol=1e-4)
        np.testing.assert_allclose(maps[..., 13], y, atol=1e-4)
    np.testing.assert_allclose(found.mask, x, atol=1e-4)


def test_many_people_are_drawn_a_few_at_a_time(mirrored, monkeypatch):
    monkeypatch.setattr(augmentation, "_PEOPLE_AT_A_TIME", 2)
    places = [[[30 * i, 10, 30 * i + 20, 90] for i in range(5)], [[0] * 4] * 5]
    scores = [[0.9, 0.8, 0.7, 0.6, 0.5], [0] * 5]
    drawn = _fake_network(mirrored, monkeypatch, lambda width: (places, scores))
    people = list(mirrored.find_augmented(np.zeros((128, 170, 3), np.uint8)))
    assert [len(boxes) for _, boxes, _ in drawn] == [4, 4, 2]
    np.testing.assert_allclose([p.box_xyxy for p in people], places[0])
    np.testing.assert_allclose([p.score for p in people], scores[0])


def test_nobody_found(mirrored, photo, monkeypatch):
    _fake_network(mirrored, monkeypatch, lambda width: (np.zeros((2, 5, 4)), np.zeros((2, 5))))
    assert mirrored([photo, photo]) == [[], []]


boxes = st.lists(st.tuples(*[st.floats(0, 500, width=32)] * 4), min_size=1, max_size=4).map(
    lambda rows: np.float32(rows)
)


@given(boxes, st.integers(1, 1200), st.integers(1, 1200), st.integers(1, 1200))
def test_boxes_come_back(corners, height, width, new_width):
    there = augmentation.move_boxes(corners, (height, width), (2 * height, new_width))
    # Pixels: numbers next to zero may underflow on the way.
    np.testing.assert_allclose(there[:, 1], 2 * corners[:, 1], rtol=1e-6, atol=1e-6)
    back = augmentation.move_boxes(there, (2 * height, new_width), (height, width))
    np.testing.assert_allclose(back, corners, rtol=1e-6, atol=1e-6)
    twice = mirroring.mirror_boxes(mirroring.mirror_boxes(corners, width), width)
    np.testing.assert_allclose(twice, corners, atol=1e-3)


def test_a_mirrored_box_by_hand():
    box = np.float32([[10, 20, 30, 60]])
    np.testing.assert_array_equal(mirroring.mirror_boxes(box, 100), [[70, 20, 90, 60]])


def test_what_is_missing_is_said(variables, tmp_path):
    with pytest.raises(ValueError, match="symmetry tables"):
        AugmentedPredictor(Stages(_config(), variables), None)
    no_views = Stages(_config("test.augmentation.short_sides=()"), variables)
    with pytest.raises(ValueError, match="short_sides is empty"):
        AugmentedPredictor(no_views, _identity_symmetry())
    config = load_config("configs/ktn.py:r50", [f"data.symmetry={tmp_path / 'none.mat'}"])
    with pytest.raises(ValueError, match="none.mat.*flip=False"):
        symmetries.load_symmetry(config)
    config.test.augmentation.flip = False
    assert symmetries.load_symmetry(config) is None


def test_synthetic_people_are_mirrored_by_their_own_body(golden_dir):
    own = symmetries.load_symmetry(load_config("configs/ktn.py:tiny"))
    # The back lies on itself; a hand's counterpart is the other hand.
    assert own.u.shape == own.v.shape == (24, 256, 256)
    assert ((own.u >= 0) & (own.u <= 1)).all()
    path = golden_dir / "uv_symmetry_synthetic.mat"
    config = load_config("configs/ktn.py:r50", [f"data.symmetry={path}"])
    np.testing.assert_array_equal(symmetries.load_symmetry(config).u, load_uv_symmetry(path).u)


def test_mirrored_views_of_meshes_need_a_mirror_table(tmp_path):
    own = symmetries.load_symmetry(load_config("configs/cse.py:tiny"))
    (mirror,) = own.values()
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    assert (mirror != np.arange(len(mirror))).mean() > 0.5
    file = tmp_path / "thing.npz"
    np.savez(file, vertices=np.eye(3), faces=[[0, 1, 2]])
    changes = [f"model.meshes.{key}=('thing',)" for key in ("names", "of_classes")]
    changes.append(f"model.meshes.files=('{file}',)")
    config = load_config("configs/cse.py:tiny", changes)
    with pytest.raises(ValueError, match="mesh thing has no mirror table.*flip=False"):
        symmetries.load_symmetry(config)
    np.savez(file, vertices=np.eye(3), faces=[[0, 1, 2]], mirror=[0, 2, 1])
    with pytest.raises(ValueError, match="mesh thing has 3 vertices and the model"):
        symmetries.load_symmetry(config)
    config.test.augmentation.flip = False
    assert symmetries.load_symmetry(config) is None


def test_embeddings_of_mirrored_views_are_compared_with_those_of_mirrored_vertices():
    """Both views point to vertex 1, but for noise that either alone would follow."""
    table = np.eye(4, dtype=np.float32)
    mirror = np.array([1, 0, 3, 2])
    doubled = np.concatenate([table, table[mirror]], axis=1)
    plain = np.float32([[[[0, 0.5, 0.6, 0]]]])  # vertex 2 for itself
    back = np.float32([[[[0.5, 0, 0.6, 0]]]])  # vertex 3 for itself
    total = 0
    for embedding, is_mirrored in ((plain, False), (back, True)):
        maps = EmbeddingOutputs(coarse_segm=np.zeros((1, 1, 1, 2), np.float32), embedding=embedding)
        share = np.float32(2)
        total += mirroring.doubled_embeddings(maps, share, is_mirrored).embedding
    distances = np.square(total[0, 0] / 2 - doubled).sum(axis=1)
    separate = np.square(plain[0, 0] - table).sum(1) + np.square(back[0, 0] - table[mirror]).sum(1)
    np.testing.assert_allclose(distances, separate, rtol=1e-6)
    assert distances.argmin() == 1


@pytest.mark.extended
def test_vertices_of_a_mirrored_photo_are_the_mirrored_vertices(draw_variables, photo):
    changes = [
        *(change for change in FAST if "decoder" not in change),
        *("test.augmentation.short_sides=(128,)", "test.augmentation.max_side=192"),
    ]
    config = load_config("configs/cse.py:tiny", changes)
    (mirror,) = symmetries.load_symmetry(config).values()
    stages = Stages(config, draw_variables(config))
    predict = AugmentedPredictor(stages, {"body": mirror})
    photo = photo[:, : photo.shape[1] // 2 * 2]
    people, mirrored = predict([photo, photo[:, ::-1]])
    assert len(people) == len(mirrored) > 0
    agreeing = []
    for person, other in zip(people, mirrored, strict=True):
        assert person.score == pytest.approx(other.score, abs=1e-5)
        if person.vertices.shape != other.vertices.shape:  # a side that rounds otherwise
            continue
        flipped = other.vertices[:, ::-1]
        is_body = (person.vertices >= 0) & (flipped >= 0)
        agreeing.append((mirror[flipped] == person.vertices)[is_body].mean())
    assert agreeing and np.mean(agreeing) > 0.95
