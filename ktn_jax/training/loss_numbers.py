"""Numbers of the losses that a compiled step takes as arguments, so that changing one is free.

What decides which operations there are stays in the program: a weight of a cycle loss that is 0,
which leaves that loss out, the thresholds of the smooth L1 distances, where 0 is another formula,
and the powers of norms.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.losses.terms import is_on

Array = jax.Array
Numbers = Mapping[str, Array | np.ndarray]  # by dotted key of a configuration's `loss`

_KEYS = (
    "rpn_weight",
    "rpn_delta_weight",
    "box_delta_weight",
    "point_weight",
    "images_per_device",
    "fine_segm_weight",
    "dense_weight",
    "coarse_segm_weight",
    "body_mask_weight",
    "keypoint_weight",
    "keypoint_head_weight",
    "mask_weight",
    "min_uv_variance",
    "densepose_iou_threshold",
    "stage_weights",
    "embedding.weight",
    "embedding.sigma",
    "embedding.geodesic_sigma",
    "pixel_cycle.vertex_temperature",
    "pixel_cycle.pixel_temperature",
    "shape_cycle.temperature",
)
_SWITCHES = ("pixel_cycle.weight", "shape_cycle.weight")


def loss_numbers(loss: ConfigDict) -> dict[str, np.ndarray]:
    """The numbers of the `loss` part of a configuration that are arguments of a step.

    Args:
        loss: that part.

    Returns:
        float32 arrays, all [] but "stage_weights", by dotted key.
    """
    keys = (*_KEYS, *(key for key in _SWITCHES if is_on(_read(loss, key))))
    return {key: np.asarray(_read(loss, key), np.float32) for key in keys}


def with_numbers(loss: ConfigDict, numbers: Numbers | None) -> ConfigDict:
    """The `loss` part of a configuration with arguments in the place of its numbers.

    Args:
        loss: that part.
        numbers: those of `loss_numbers`; None leaves the configuration as it is.
    """
    if numbers is None:
        return loss
    replaced = ConfigDict(loss.to_dict())
    for key, value in numbers.items():
        section, _, name = key.rpartition(".")
        parent = replaced[section] if section else replaced
        with parent.ignore_type():  # arrays in the place of numbers
            parent[name] = value
    return replaced


def _read(loss: ConfigDict, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return loss[section][name] if section else loss[name]
