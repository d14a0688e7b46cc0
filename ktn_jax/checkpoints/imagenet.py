"""ImageNet backbones: their names as those of the detector's, and the configuration they need.

Both kinds are classifiers of which the ResNet is kept. They were trained on differently normalised
images and with the stride in different convolutions, so that a backbone under the wrong
configuration loads without an error and is much worse: the configuration is checked.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

State = dict[str, np.ndarray]

_BODY = "backbone.bottom_up"
_EPSILON = 1e-5  # of the norms
_TRUNKS: dict[str, dict[str, Any]] = {
    "caffe2": {
        "pixel_mean_bgr": (103.53, 116.28, 123.675),
        "pixel_std_bgr": (1.0, 1.0, 1.0),
        "backbone.stride_in_1x1": True,
    },
    "caffe2_resnext": {
        "pixel_mean_bgr": (103.53, 116.28, 123.675),
        "pixel_std_bgr": (57.375, 57.12, 58.395),
        "backbone.stride_in_1x1": False,
    },
    "torchvision": {
        # RGB (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225), of 0..1, as BGR of 0..255.
        "pixel_mean_bgr": (103.53, 116.28, 123.675),
        "pixel_std_bgr": (57.375, 57.12, 58.395),
        "backbone.stride_in_1x1": False,
    },
}
_CAFFE2_BRANCH = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE2_END = {"w": "weight", "bn_s": "norm.weight", "bn_b": "norm.bias"}


def find_kind(state: Mapping[str, np.ndarray]) -> str | None:
    """Recognises the origin of weights.

    Returns:
        "caffe2" (MSRA's ResNets), "caffe2_resnext" (detectron2's X-101-32x8d), "torchvision", or
        None for others.
    """
    if "conv1_w" in state and {"res2_0_branch2a_w", "res2_0_branch2b_w"} <= state.keys():
        first, second = (np.shape(state[f"res2_0_branch{name}_w"]) for name in ("2a", "2b"))
        is_grouped = len(first) == len(second) == 4 and second[1] < first[0]
        return "caffe2_resnext" if is_grouped else "caffe2"
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return "torchvision"
    return None


def check_backbone(config: ConfigDict, kind: str, source: str) -> None:
    """Checks that a configuration fits a backbone: its normalisation, strides and norms.

    Args:
        config: the `model` part of a configuration.
        kind: from `find_kind`.
        source: where the weights come from, for the message.

    Raises:
        ValueError: names the values to set.
    """
    if config.backbone.name != "resnet":
        raise ValueError(f"{source} is a ResNet, but model.backbone.name={config.backbone.name}")
    wrong = []
    for key, wanted in _TRUNKS[kind].items():
        actual: Any = config
        for name in key.split("."):
            actual = actual[name]
        if not np.allclose(actual, wanted, rtol=1e-3):
            wrong.append(f"--set 'model.{key}={wanted}'")
    if kind != "torchvision" and config.backbone.norm != "FrozenBN":
        # Its norms are affine maps with the statistics already inside.
        wrong.append("--set model.backbone.norm=FrozenBN")
    if wrong:
        raise ValueError(f"{source} is a {kind} ResNet, which needs {' '.join(wrong)}")


def rename(state: Mapping[str, np.ndarray], kind: str) -> tuple[State, list[str]]:
    """Gives an ImageNet backbone the names and conventions of the detector's.

    Args:
        state: of a classifier.
        kind: from `find_kind`.

    Returns:
        The backbone in detectron2's names, and the names that have no place in it.
    """
    translate = _from_torchvision if kind == "torchvision" else _from_caffe2
    renamed, unused = {}, []
    for name, array in state.items():
        target = translate(name)
        if target is None:
            unused.append(name)
        else:
            renamed[f"{_BODY}.{target}"] = array
    if kind == "torchvision":
        stem = f"{_BODY}.stem.conv1.weight"
        renamed[stem] = np.ascontiguousarray(renamed[stem][:, ::-1])  # RGB -> BGR
    else:
        for name in [name for name in renamed if name.endswith(".norm.weight")]:
            # The statistics are folded into scale and shift. detectron2 gives such a norm the
            # variance 1 - eps, which makes the factor exactly 1.
            norm, ones = name.removesuffix(".weight"), np.ones_like(renamed[name])
            renamed[f"{norm}.running_mean"] = np.zeros_like(ones)
            renamed[f"{norm}.running_var"] = ones - np.float32(_EPSILON)
    return renamed, sorted(unused)


def _from_caffe2(name: str) -> str | None:
    """res2_0_branch2a_bn_s -> res2.0.conv1.norm.weight, and the stem's two names."""
    stem = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res_conv1_bn_b": "stem.conv1.norm.bias",
    }
    match = re.fullmatch(r"res([2-5])_(\d+)_branch(1|2[abc])_(w|bn_s|bn_b)", name)
    if match is None:
        return stem.get(name)
    stage, block, branch, end = match.groups()
    return f"res{stage}.{block}.{_CAFFE2_BRANCH[branch]}.{_CAFFE2_END[end]}"


def _from_torchvision(name: str) -> str | None:
    """layer1.0.bn2.bias -> res2.0.conv2.norm.bias, and so on."""
    match = re.fullmatch(r"(?:layer([1-4])\.(\d+)\.)?(conv|bn|downsample\.)([0-3])\.(\w+)", name)
    if match is None:
        return None
    layer, block, kind, number, end = match.groups()
    place = "stem" if layer is None else f"res{int(layer) + 1}.{block}"
    if kind == "downsample.":
        return f"{place}.shortcut.weight" if number == "0" else f"{place}.shortcut.norm.{end}"
    return f"{place}.conv{number}.{end}" if kind == "conv" else f"{place}.conv{number}.norm.{end}"
