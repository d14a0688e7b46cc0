"""The dumps of the originals that every comparison runs on."""

import pytest

from ktn_jax.verification.dump import Dump

# Each compiles for tens of seconds.
CASES = (
    "ktnv2_r50_tiny",
    "densepose_r50_wc2_tiny",
    "densepose_r50_legacy_tiny",
)
# What is new in these, backbones, heads, predictors and groups of channels, has cheaper tests too.
COVERED = (
    "ktnv2_hrnet_tiny",
    "ktnv2_hrnet_v3_tiny",
    "densepose_r50_dl_nonlocal_tiny",
    "densepose_r50_tiny",
    "densepose_r50_dl_tiny",
    "densepose_r50_wc1_tiny",
    "ktnv1_r50_tiny",
    "ktnv1_r50_kptktn_tiny",
    "ktnv1_hrnet_tiny",
    "ktnv2_x101_tiny",
    "densepose_hrfpn_w32_tiny",
    "densepose_r50_multitask_tiny",
    "keypoint_mask_rcnn_r50_tiny",
)


@pytest.fixture(
    scope="module",
    params=[*CASES, *(pytest.param(case, marks=pytest.mark.extended) for case in COVERED)],
)
def dump(request, golden_dir):
    """Every dump; those that a neighbour covers run with the extended tests only."""
    return Dump(golden_dir / f"{request.param}.npz")
