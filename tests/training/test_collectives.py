"""What the devices of a data-parallel step exchange, read from the program compiled for eight."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
    "batch_size": 8,
    "model.backbone.num_blocks": (1, 1, 1, 1),
    "model.backbone.stem_channels": 8,
    "model.backbone.width": 8,
    "model.backbone.res2_channels": 16,
    "model.backbone.hrnet_channels": ((4, 8), (4, 8, 16), (4, 8, 16, 32)),
    "model.backbone.hrnet_num_blocks": ((1, 1), (1, 1, 1), (1, 1, 1, 1)),
    "model.backbone.hrnet_num_modules": (1, 1, 1),
    "model.neck.channels": 32,
    "model.decoder.channels": 32,
    "model.decoder.out_channels": 32,
    "model.box_head.hidden_features": 16,
    "model.box_head.batch_size_per_image": 16,
    "model.densepose_head.channels": 32,
    "model.densepose_head.num_convs": 1,
    "model.densepose_head.pooled_size": 7,
    "model.mask_head.channels": 16,
    "model.keypoint_head.channels": (16,),
    "model.rpn.pre_nms_top_k_train": 30,
    "model.rpn.post_nms_top_k_train": 30,
    "model.rpn.batch_size_per_image": 16,
}
CASES = {
    "densepose_rcnn": ("densepose_rcnn:r50", {}),
    "densepose_rcnn in bfloat16": ("densepose_rcnn:r50", {"model.dtype": "bfloat16"}),
    "deeplab": ("densepose_rcnn:r50_dl", {}),
    "confidences": (
        "densepose_rcnn:r50",
        {
            "model.predictor.uv_confidence": "indep_aniso",
            "model.predictor.has_segm_confidence": True,
        },
    ),
    "hrnet": ("ktn:hrnet_w32", {"loss.ignore_padding": True}),
    "ktn, first version": ("ktn:v1_r50", {}),
    "ktn, batch norm": ("ktn:tiny", {"optimizer.ema_decay": 0.9}),
    "cascade": ("densepose_rcnn:cascade_tiny", {}),
    "teacher": ("teacher:tiny", {}),
    "embeddings": (
        "cse:tiny",
        {
            "model.meshes.names": ("cat", "dog"),
            "model.meshes.num_vertices": (12, 9),
            "model.meshes.num_features": (5, 0),
            "model.meshes.trains_features": (False, True),
            "model.meshes.trains": (True, True),
            "model.meshes.of_classes": ("cat", "dog"),
            "model.box_head.num_classes": 2,
            "data.with_person_masks": True,
            "loss.coarse_segm_from_masks": True,
            "loss.embedding.has_soft_targets": True,
            "loss.pixel_cycle.weight": 0.01,
            "loss.shape_cycle.weight": 0.01,
        },
    ),
    "accumulated": ("densepose_rcnn:r50", {"batch_size": 16, "training.accumulate": 2}),
    "all tasks": (
        "densepose_rcnn:r50",
        {
            "model.tasks": ("densepose", "keypoints", "masks"),
            "data.with_person_masks": True,
            "loss.coarse_segm_from_masks": True,
            "loss.densepose_people_only": False,
            "optimizer.clip": "global_norm",
        },
    ),
}
SCRIPT = """
import json, sys
sys.path.insert(0, "experiments/bench")
import hlo
from ktn_jax.data_pipelines.loading.configured import training_batch_spec
from ktn_jax.runtime.configuration import load_config
from ktn_jax.training import distributed
from ktn_jax.training.abstract_step import abstract_step
config = load_config(sys.argv[1], json.loads(sys.argv[2]))
side = 128 if config.model.backbone.name == "hrnet" else 64  # its pyramid loses borders
spec = training_batch_spec(config, (side, side))
step = abstract_step(config, distributed.make_mesh(8), spec)
text = step.take.lower(*step.arguments).compile().as_text()
found = [[each.kind, each.arrays, each.source] for each in hlo.collectives(text)]
print(json.dumps({"found": found, "trained_bytes": step.trained_bytes}))
"""


def exchanged(name, changes):
    """[(kind, [(type, bytes), ...], source), ...] of a step, and the bytes of what trains."""
    settings = [f"{key}={value!r}" for key, value in (SMALL | changes).items()]
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, json.dumps(settings)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    answer = json.loads(process.stdout.splitlines()[-1])
    return answer["found"], answer["trained_bytes"]


@pytest.mark.extended
def test_what_is_split_is_gathered_and_nothing_else():
    """Weights of the transfer stay where they are; other parameters are gathered for the step."""
    found, trained_bytes = exchanged("ktn:tiny", {"training.shard": "all"})
    kinds = {kind for kind, _, _ in found}
    assert kinds <= {"all-reduce", "all-gather", "reduce-scatter"}, kinds
    gathered = [size for kind, arrays, _ in found if kind == "all-gather" for _, size in arrays]
    # The transfer's is most of it.
    assert 0 < sum(gathered) < 0.5 * trained_bytes
    assert max(gathered) < 1_000_000


@pytest.mark.extended  # test_forward.py has one model on two devices
@pytest.mark.parametrize("case", CASES)
def test_devices_exchange_sums_only(case):
    name, changes = CASES[case]
    found, trained_bytes = exchanged(name, changes)
    others = [each for each in found if each[0] != "all-reduce"]
    assert not others, others
    # Gradients are added in float32, whatever computes them.
    assert {kind for _, arrays, _ in found for kind, _ in arrays} == {"f32"}
    sizes = [size for _, arrays, _ in found for _, size in arrays]
    # Parameters that train, and scalars, and moments; without knowledge transfer, all of them.
    assert sum(sizes) <= 1.05 * trained_bytes + 40_000
    if not name.startswith("ktn"):
        assert sum(sizes) > 0.95 * trained_bytes
