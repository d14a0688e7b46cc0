"""Rewrites for speed change nothing: folded norms, Winograd, full buckets, rounded factors."""

import jax
import numpy as np
import pytest

from ktn_jax.checkpoints import weights
from ktn_jax.inference.folding import fold_norms, without_norms
from ktn_jax.inference.stages import Stages
from ktn_jax.modeling import branches
from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.ops import winograd
from ktn_jax.runtime.configuration import load_config
from ktn_jax.verification import intermediates, people, training
from ktn_jax.verification.dump import Dump

# Each compiles for tens of seconds. Each rewrite has tests of its own, as has what takes it.
DUMPS = (
    "ktnv2_r50_tiny",
    "ktnv2_hrnet_tiny",
    "ktnv2_hrnet_v3_tiny",
    "densepose_r50_tiny",
    "densepose_r50_legacy_tiny",
    "densepose_r50_dl_nonlocal_tiny",
)


@pytest.mark.extended
@pytest.mark.parity
@pytest.mark.parametrize("name", DUMPS)
def test_every_stage_matches_the_original_with_all_rewrites(golden_dir, name, monkeypatch):
    # On a dump's small maps they would not pay; here the numbers count.
    monkeypatch.setattr(winograd, "is_worth_while", lambda *_: True)
    monkeypatch.setattr(branches, "_BAND_BYTES", 2**16)
    dump = Dump(golden_dir / f"{name}.npz")
    dump.variables = fold_norms(dump.config.model, dump.variables)
    dump.config.model = without_norms(dump.config.model)
    assert dump.config.model.backbone.norm == ""
    rows = list(intermediates.compare_stages(dump, Compute(winograd=True, bands=True, chunks=True)))
    assert len(rows) > 20
    assert [row.key for row in rows if not row.is_ok] == []


@pytest.mark.extended
@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    ["ktnv2_r50_tiny", "densepose_r50_tiny"],
)
def test_people_of_a_photo_match_the_original_with_all_rewrites(golden_dir, name, monkeypatch):
    monkeypatch.setattr(winograd, "is_worth_while", lambda *_: True)
    monkeypatch.setattr(branches, "_BAND_BYTES", 2**16)
    rows = list(people.end_to_end(Dump(golden_dir / f"{name}.npz")))
    assert rows and [row.key for row in rows if not row.is_ok] == []


@pytest.mark.extended
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("densepose_r50_tiny", Compute(winograd=True, chunks=True)),
        ("ktnv2_r50_tiny", Compute(winograd=True, chunks=True)),
        ("ktnv2_r50_tiny", Compute(products=True)),
    ],
)
def test_a_training_step_matches_the_original_in_other_forms(
    golden_dir, name, compute, monkeypatch
):
    monkeypatch.setattr(winograd, "is_worth_while", lambda *_: True)
    rows = list(training.training(Dump(golden_dir / f"{name}.npz"), compute))
    assert len(rows) > 50
    assert [row.key for row in rows if not row.is_ok] == []


def _random_norms(variables, spread=2.0):
    """Norms that do something, so that folding them wrongly shows."""
    rng = np.random.default_rng(0)

    def draw(path, value):
        name = path[-1].key
        if name in ("var", "scale"):
            return np.float32(rng.uniform(1 / spread, spread, value.shape))
        return np.float32(rng.normal(0, 0.3, value.shape)) if name in ("mean", "bias") else value

    return jax.tree_util.tree_map_with_path(draw, jax.device_get(variables))


@pytest.mark.extended
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_folded_norms_change_nothing(norm):
    config = load_config("configs/ktn.py:tiny", [f"model.backbone.norm={norm}"]).model
    model = build_model(config)
    variables = _random_norms(weights.initialise(load_config("configs/ktn.py:tiny"), seed=0))
    if norm == "FrozenBN":  # has no count; the rest is the same
        variables["batch_stats"] = {
            name: value for name, value in variables["batch_stats"].items() if name != "count"
        }
    inputs = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype(np.float32)
    expected = model.apply(variables, inputs, method=Detector.extract)
    folded_config, folded = without_norms(config), fold_norms(config, variables)
    assert "backbone" not in folded.get("batch_stats", {})
    actual = build_model(folded_config).apply(folded, inputs, method=Detector.extract)
    for level, maps in expected.maps.items():
        np.testing.assert_allclose(actual.maps[level], maps, atol=1e-5 * float(maps.std()))


def test_other_norms_are_not_folded():
    config = load_config("configs/ktn.py:tiny", ["model.backbone.norm=GN"]).model
    variables = {"params": {"backbone": {}}}
    assert fold_norms(config, variables) == variables and without_norms(config) == config


@pytest.mark.parametrize("height", [1, 6, 7, 11])
def test_rows_in_bands_are_those_of_the_whole_map(height, monkeypatch):
    monkeypatch.setattr(branches, "_BAND_BYTES", 4 * 2 * 5 * (3 + 4) * 3)  # three rows
    rng = np.random.default_rng(height)
    shapes = [(2, height, 5, 3), (2, height, 5, 4)]
    maps = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    whole = branches.BranchProjection(6)
    banded = branches.BranchProjection(6, compute=Compute(bands=True))
    sides = [
        branches.Branch(x, *rng.normal(size=(2, 2, 1, 1, x.shape[-1])).astype(np.float32))
        for x in maps
    ]
    variables = whole.init(jax.random.key(0), sides)
    expected = whole.apply(variables, sides)
    actual = jax.jit(banded.apply)(variables, sides)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    kernel = np.asarray(variables["params"]["kernel"])[0, 0]
    parts = [np.maximum(side.x * side.factor + side.shift, 0) for side in sides]
    np.testing.assert_allclose(expected, np.concatenate(parts, -1) @ kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.extended
def test_rounded_factors_stay_within_two_percent():
    config = load_config("configs/ktn.py:tiny")
    # Norms of a wide spread amplify any rounding, the original's too.
    variables = _random_norms(weights.initialise(config, seed=0), spread=1.2)
    photo = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    boxes = np.float32([[20, 30, 150, 240], [100, 60, 200, 200]])
    outputs = []
    for dtype in ("float32", "bfloat16"):
        config.test.matmul_dtype = dtype
        stages = Stages(config, variables)
        pyramid, _ = stages.detect(photo, np.full((1, 2), 256, np.int32))
        outputs.append(stages.describe(pyramid, boxes, np.zeros(2, np.int32)).charts)
    for expected, actual in zip(*map(jax.tree.leaves, outputs), strict=True):
        error = np.sqrt(np.square(actual - expected).mean()) / expected.std()
        assert 1e-4 < error < 0.02  # rounded indeed, and not by much


@pytest.mark.extended
def test_a_full_bucket_needs_no_masks():
    config = load_config("configs/ktn.py:tiny")
    stages = Stages(config, weights.initialise(config, seed=0))
    photos = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    full_sizes = np.int32([[250, 230], [256, 256]])  # the reference pads both to 256
    masked_sizes = np.int32([[250, 230], [200, 256]])  # for the sake of the second photo
    assert stages.is_full(photos, full_sizes) and not stages.is_full(photos, masked_sizes)
    (full, found_full), (masked, found) = (
        stages.detect(photos, sizes) for sizes in (full_sizes, masked_sizes)
    )
    for level, maps in masked.roi_features().decoded.maps.items():
        actual = full.roi_features().decoded.maps[level][0]
        np.testing.assert_allclose(actual, maps[0], atol=1e-4 * float(maps[0].std()))
    np.testing.assert_allclose(found_full.boxes[0], found.boxes[0], atol=1e-2)
    assert (np.asarray(found_full.scores[1]) != np.asarray(found.scores[1])).any()
