"""The network that a configuration describes: a detector, or the teacher that fills in labels."""

from ml_collections import ConfigDict

from ktn_jax.modeling.compute import Compute
from ktn_jax.modeling.detector import Detector, build_model
from ktn_jax.modeling.knowledge_transfer import Graph
from ktn_jax.modeling.teacher import Teacher, build_teacher

Network = Detector | Teacher

KINDS = ("detector", "teacher")  # of model.kind


def is_teacher(config: ConfigDict) -> bool:
    """Whether a `model` configuration describes a teacher.

    Raises:
        ValueError: another kind than those of `KINDS`.
    """
    if config.kind not in KINDS:
        raise ValueError(f"model.kind {config.kind!r}: one of {KINDS}")
    return bool(config.kind == "teacher")


def build_network(
    config: ConfigDict, *, compute: Compute | None = None, graph: Graph | None = None
) -> Network:
    """Builds what a `model` configuration describes; the arguments are `build_model`'s."""
    if is_teacher(config):
        return build_teacher(config, compute=compute)
    return build_model(config, compute=compute, graph=graph)
