"""The dumps of the originals that every comparison runs on."""

import pytest

from ktn_jax.verification.dump import Dump

# It compiles for tens of seconds. Heads and losses that it does not have, such as those of plain
# charts, are compared with their dumps one by one.
STEP = "ktnv2_r50_tiny"
# These for inference; their steps run with the extended tests, and losses of confidences and
# embeddings have tests of their own.
INFERENCE = ("densepose_r50_wc2_tiny", "densepose_cse_r50_animals_tiny")
# What is new in these, backbones, heads, predictors and groups of channels, has cheaper tests too.
COVERED = (
    "densepose_r50_legacy_tiny",
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
    "densepose_cse_r50_tiny",
    "densepose_cse_r50_soft_tiny",
)


def _params(cases):
    """All dumps; those but `cases`, which neighbours cover, run with the extended tests only."""
    others = (case for case in (STEP, *INFERENCE, *COVERED) if case not in cases)
    return [*cases, *(pytest.param(case, marks=pytest.mark.extended) for case in others)]


# Inference of the legacy model is that of the model of confidences without them.
@pytest.fixture(scope="module", params=_params([STEP, *INFERENCE]))
def dump(request, golden_dir):
    """Every dump, for inference."""
    return Dump(golden_dir / f"{request.param}.npz")


@pytest.fixture(scope="module", params=_params([STEP]))
def dump_of_step(request, golden_dir):
    """Every dump, for a training step."""
    return Dump(golden_dir / f"{request.param}.npz")
