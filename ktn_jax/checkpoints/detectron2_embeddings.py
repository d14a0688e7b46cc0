"""Translates what a detectron2 configuration says of continuous surface embeddings."""

from typing import Any

from ml_collections import ConfigDict

from ktn_jax.checkpoints.detectron2_tree import Tree, short
from ktn_jax.modeling.person_branches import EMBEDDING

SECTION = "MODEL.ROI_DENSEPOSE_HEAD.CSE."
PREDICTORS = dict.fromkeys(
    ("DensePoseEmbeddingPredictor", "DensePoseEmbeddingWithConfidencePredictor"), EMBEDDING
)
LOSSES = ("DensePoseCseLoss",)

_EMBEDDERS = f"{SECTION}EMBEDDERS"
_CLASSES = "DATASETS.CLASS_TO_MESH_NAME_MAPPING"
_KINDS = {"vertex_direct": False, "vertex_feature": True}  # whether vertices have features
_SOFT = {"EmbeddingLoss": False, "SoftEmbeddingLoss": True}
_CYCLES = {
    "pixel_cycle": (
        "PIX_TO_SHAPE_CYCLE_LOSS",
        {
            "norm": "NORM_P",
            "has_all_meshes": "USE_ALL_MESHES_NOT_GT_ONLY",
            "num_pixels": "NUM_PIXELS_TO_SAMPLE",
            "vertex_temperature": "TEMPERATURE_PIXEL_TO_VERTEX",
            "pixel_temperature": "TEMPERATURE_VERTEX_TO_PIXEL",
        },
    ),
    "shape_cycle": (
        "SHAPE_TO_SHAPE_CYCLE_LOSS",
        {"norm": "NORM_P", "temperature": "TEMPERATURE", "max_vertices": "MAX_NUM_VERTICES"},
    ),
}
_RATES = {"FEATURES_LR_FACTOR": "features", "EMBEDDING_LR_FACTOR": "embeddings"}


def translate_embeddings(tree: Tree, config: ConfigDict) -> None:
    """Sets the meshes, the losses and the rates of an embedding model.

    Args:
        tree: detectron2's settings; what is missing or not supported is noted there.
        config: gets ours.
    """
    config.model.predictor.embedding_channels = tree.get(f"{SECTION}EMBED_SIZE")
    _meshes(tree, config.model.meshes, config.model.box_head.num_classes)
    config.training.vertex_init = tuple(
        tree.get_like(f"{_EMBEDDERS}.{name}.INIT_FILE", "") for name in config.model.meshes.names
    )
    loss = config.loss.embedding
    loss.weight = tree.get(f"{SECTION}EMBED_LOSS_WEIGHT")
    loss.sigma = tree.get(f"{SECTION}EMBEDDING_DIST_GAUSS_SIGMA")
    loss.geodesic_sigma = tree.get(f"{SECTION}GEODESIC_DIST_GAUSS_SIGMA")
    loss.has_soft_targets = tree.choose(f"{SECTION}EMBED_LOSS_NAME", _SOFT)
    for ours, (theirs, keys) in _CYCLES.items():
        cycle = config.loss[ours]
        weight = float(tree.get(f"{SECTION}{theirs}.WEIGHT"))
        cycle.weight = weight if tree.get(f"{SECTION}{theirs}.ENABLED") else 0.0
        for key, name in keys.items():
            cycle[key] = tree.get(f"{SECTION}{theirs}.{name}")
    # Nothing in detectron2 reads it.
    tree.find(f"{SECTION}PIX_TO_SHAPE_CYCLE_LOSS.PIXEL_SIGMA", None)
    factors = {ours: float(tree.get(f"{SECTION}{theirs}")) for theirs, ours in _RATES.items()}
    config.optimizer.rate_factors = tuple(
        (f"embedder/[^/]+/{ours}", factor) for ours, factor in factors.items() if factor != 1
    )


def _meshes(tree: Tree, meshes: ConfigDict, num_classes: int) -> None:
    names = tree.names_under(_EMBEDDERS)
    if not names:
        tree.problems.append(f"{_EMBEDDERS} names no mesh")
    rows = [_embedder(tree, f"{_EMBEDDERS}.{name}") for name in names]
    meshes.names = tuple(names)
    for key in ("num_vertices", "num_features", "trains_features", "trains"):
        meshes[key] = tuple(row[key] for row in rows)
    of_classes = [tree.find(f"{_CLASSES}.{index}", None) for index in range(num_classes)]
    for index, name in enumerate(of_classes):
        if name not in names:
            tree.problems.append(f"{_CLASSES}.{index} {short(name)}: one of the meshes {names}")
    meshes.of_classes = tuple(str(name) for name in of_classes)


def _embedder(tree: Tree, section: str) -> dict[str, Any]:
    has_features = tree.choose(f"{section}.TYPE", _KINDS)
    values = {"NUM_VERTICES": 1, "IS_TRAINABLE": True}
    if has_features:
        values |= {"FEATURE_DIM": 1, "FEATURES_TRAINABLE": False}
    read = {name: tree.get_like(f"{section}.{name}", like) for name, like in values.items()}
    return {
        "num_vertices": read["NUM_VERTICES"],
        "num_features": read.get("FEATURE_DIM", 0),
        "trains_features": read.get("FEATURES_TRAINABLE", True),
        "trains": read["IS_TRAINABLE"],
    }
