"""Continuous surface embeddings as detectron2 ships them: `--config cse:r50`.

Instead of charts, the model learns an embedding of every pixel and of every vertex of a mesh
(Neverova et al., NeurIPS 2020). Variants: r50, r101, r50_dl, r101_dl (DeepLab head), of people on
SMPL's mesh; r50_soft, r101_soft, r50_dl_soft, r101_dl_soft, whose targets are all vertices near the
annotated one; animals (nine classes and meshes, with the pixel cycle). Their training starts from
ImageNet, that of animals from a model of people: `--weights R-50.pkl`. Of the project's own body,
from scratch: tiny (small enough for tests) and demo (learns rendered people in minutes on a CPU).
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from ktn_jax.configs import base, ktn

# Meshes that were released with detectron2's models, with their numbers of vertices.
PERSON = {"smpl_27554": 27_554}
ANIMALS = {
    "cat_7466": 7466,
    "dog_7466": 7466,
    "sheep_5004": 5004,
    "horse_5004": 5004,
    "zebra_5002": 5002,
    "giraffe_5002": 5002,
    "elephant_5002": 5002,
    "cow_5002": 5002,
    "bear_4936": 4936,
}
BODY = {"body": 3122}
# Smooth functions on each mesh, which detectron2 computed.
_FEATURES = "https://dl.fbaipublicfiles.com/densepose/data/cse/lbo/phi_{}_256.pkl"
# Of the classes, in their order.
_CLASSES = ("bear", "cow", "cat", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
_DEPTHS = {"r50": 50, "r101": 101, "r50_dl": 50, "r101_dl": 101}
_SOFT = {f"{name}_soft": depth for name, depth in _DEPTHS.items()}
VARIANTS = (*_DEPTHS, *_SOFT, "animals", "tiny", "demo")


def get_config(variant: str = "r50") -> ConfigDict:
    """Returns one of the variants.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: one of {list(VARIANTS)}")
    config = base.get_config()
    config.name = f"cse_{variant}"
    config.model.predictor.name = "embedding"
    config.model.backbone.depth = (_DEPTHS | _SOFT).get(variant, 50)
    if "_dl" in variant:
        config.model.densepose_head.name = "deeplab"
        config.model.densepose_head.norm = "GN"
    use_meshes(config, PERSON)
    config.loss.embedding.has_soft_targets = variant.endswith("_soft")
    config.optimizer.clip = "norm"
    if variant == "animals":
        _use_animals(config)
    if variant == "tiny":
        ktn.shrink(config)
        use_meshes(config, BODY, num_features=0)
    if variant == "demo":
        _fit_rendered_people(config)
    return config


def _fit_rendered_people(config: ConfigDict) -> None:
    """For the people of `ktn:demo`, learnt from scratch as fast."""
    ktn.fit_rendered_people(config)
    # What a point teaches its neighbours makes up for the short time: features are smooth, and all
    # vertices near the annotated one are right.
    use_meshes(config, BODY, num_features=64)
    config.training.vertex_init = ("laplacian",)
    embedding = config.loss.embedding
    embedding.has_soft_targets = True
    embedding.sigma, embedding.geodesic_sigma = 0.05, 0.05


def use_meshes(config: ConfigDict, meshes: Mapping[str, int], num_features: int = 256) -> None:
    """Sets meshes, one for each class.

    Args:
        config: to change.
        meshes: numbers of vertices by the meshes' names.
        num_features: fixed ones of each vertex; 0 for vertices that are embedded directly.
    """
    names, number = tuple(meshes), len(meshes)
    section = config.model.meshes
    section.names, section.num_vertices = names, tuple(meshes.values())
    section.num_features = (num_features,) * number
    section.trains_features = (num_features == 0,) * number
    section.trains = (True,) * number
    section.of_classes = names
    is_released = bool(num_features) and not BODY.keys() & meshes.keys()
    config.training.vertex_init = tuple(_FEATURES.format(name) for name in names if is_released)
    config.model.box_head.num_classes = number


def _use_animals(config: ConfigDict) -> None:
    use_meshes(config, ANIMALS)
    mesh_of = {name.partition("_")[0]: name for name in ANIMALS}
    config.model.meshes.of_classes = tuple(mesh_of[name] for name in _CLASSES)
    config.data.categories = _CLASSES
    loss = config.loss
    loss.embedding.has_soft_targets = True
    loss.embedding.sigma = loss.embedding.geodesic_sigma = 0.1
    loss.pixel_cycle.weight = 1e-4
    loss.coarse_segm_from_masks = config.data.with_person_masks = True
    config.total_steps, config.optimizer.decay_steps = 16_000, (12_000, 14_000)
