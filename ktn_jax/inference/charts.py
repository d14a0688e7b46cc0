"""From chart maps to I, U, V in a person's box, and keypoints. NumPy, on the host.

Sizes here are those of boxes in the image, so nothing is static and nothing is jitted.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from ml_collections import ConfigDict

from ktn_jax.modeling.person_branches import has_charts, has_embeddings
from ktn_jax.results import pictures
from ktn_jax.results.detection_checks import CONFIDENCES
from ktn_jax.results.styles import StyleSettings
from ktn_jax.structures import DensePoseOutputs

_LARGEST_LOGIT = 1e37  # a bicubic sum of several still fits float32
_LARGEST_EXPONENT = float(np.log(np.finfo(np.float32).max)) - 1e-5  # exp() of it fits float32


def box_size_hw(box_xyxy: np.ndarray) -> tuple[int, int]:
    """Height and width of a box in whole pixels, truncated, at least 1."""
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    return max(int(np.float32(y1) - np.float32(y0)), 1), max(
        int(np.float32(x1) - np.float32(x0)), 1
    )


def resize_maps(maps: np.ndarray, size_hw: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resizes maps [S, S, C] to [*size_hw, C], half-pixel centres, no anti-aliasing.

    Args:
        maps: float32.
        size_hw: target.
        interpolation: cv2.INTER_LINEAR or cv2.INTER_CUBIC (a = -0.75, as PyTorch's).
    """
    height, width = size_hw
    resized = cv2.resize(maps, (width, height), interpolation=interpolation)
    return resized.reshape(height, width, maps.shape[-1])


def check_mask_threshold(mask_threshold: float, num_channels: int) -> None:
    """Raises ValueError for another threshold than 0.5 with more than two channels."""
    if mask_threshold != 0.5 and num_channels != 2:
        raise ValueError(
            f"mask_threshold {mask_threshold} needs a two-channel mask, got {num_channels}"
        )


def person_mask(coarse: np.ndarray, mask_threshold: float) -> np.ndarray:
    """Decides person against background from resized coarse logits [h, w, 2 or 15].

    A threshold of 0.5 stands for the argmax of the logits; any other compares the softmax
    probability of channel 1, as the KTN fork does.

    Raises:
        ValueError: another threshold with more than two channels.
    """
    check_mask_threshold(mask_threshold, coarse.shape[-1])
    if mask_threshold == 0.5:
        if coarse.shape[-1] == 2:  # the same, in a fraction of the time
            return np.asarray(coarse[..., 1] > coarse[..., 0])
        return np.asarray(coarse.argmax(-1) > 0)
    # softmax over two channels is the sigmoid of their difference
    with np.errstate(over="ignore"):  # 1 / infinity is the right 0
        probability = 1 / (1 + np.exp(coarse[..., 0] - coarse[..., 1]))
    return np.asarray(probability > mask_threshold)


def chart_in_box(
    coarse: np.ndarray,
    fine: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    size_hw: tuple[int, int],
    mask_threshold: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a person's chart maps at the pixels of the box.

    Args:
        coarse: [S, S, 2 or 15] logits.
        fine: [S, S, 25] logits.
        u: [S, S, 25].
        v: [S, S, 25].
        size_hw: of the box in pixels.
        mask_threshold: see `person_mask`.

    Returns:
        labels uint8 [h, w], 0 for background, and uv float32 [2, h, w], 0 there, not yet clipped.
    """
    is_person = person_mask(resize_maps(coarse, size_hw, cv2.INTER_LINEAR), mask_threshold)
    labels = _largest_channel(fine, size_hw) * is_person
    uv = _read_channels((u, v), labels)
    np.copyto(uv, 0, where=labels == 0)
    return labels, uv


def _largest_channel(maps: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The argmax, uint8 [*size_hw], of maps [S, S, C] that are resized bilinearly.

    Channel by channel: half the time of resizing all and of an argmax over the last axis.
    """
    height, width = size_hw
    planes = _planes(maps)
    largest = cv2.resize(planes[0], (width, height), interpolation=cv2.INTER_LINEAR)
    values, labels = np.empty_like(largest), np.zeros(size_hw, np.uint8)
    is_larger = np.empty(size_hw, bool)
    number = is_larger.view(np.uint8)
    for channel in range(1, len(planes)):
        cv2.resize(planes[channel], (width, height), dst=values, interpolation=cv2.INTER_LINEAR)
        np.greater(values, largest, out=is_larger)
        np.maximum(largest, values, out=largest)
        np.multiply(number, np.uint8(channel), out=number)
        np.maximum(labels, number, out=labels)  # the last that was larger is the largest
    return labels


def _planes(maps: np.ndarray) -> np.ndarray:
    """Maps [S, S, C] as contiguous [C, S, S]."""
    side_y, side_x, channels = maps.shape
    transposed: np.ndarray = cv2.transpose(maps.reshape(-1, channels))
    return transposed.reshape(channels, side_y, side_x)


def check_pictures(
    config: ConfigDict,
    names: Sequence[str],
    settings: StyleSettings,
    *,
    with_template: bool = False,
) -> None:
    """Checks that pictures show what a model predicts, see `pictures.check_shown`.

    Args:
        config: a whole configuration.
        names: of the pictures, checked by `pictures.check_names`.
        settings: of detectron2's styles.
        with_template: whether vertices become charts by one.

    Raises:
        ValueError: they do not.
    """
    pictures.check_shown(
        names,
        settings,
        has_charts=with_template or has_charts(config.model),
        meshes=config.model.meshes.names if has_embeddings(config.model) else (),
    )


def check_confidences(config: ConfigDict) -> None:
    """Checks that a model predicts confidences.

    Args:
        config: a whole configuration.

    Raises:
        ValueError: it does not.
    """
    predictor = config.model.predictor
    if not predictor.uv_confidence and not predictor.has_segm_confidence:
        raise ValueError(
            f"the model of {config.name} predicts no confidences: take one that does, such as "
            "densepose_rcnn_R_50_FPN_WC2M_s1x (model.predictor.uv_confidence, has_segm_confidence)"
        )


def confidences_in_box(
    maps: DensePoseOutputs[np.ndarray], labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Reads a person's confidences at the pixels of the box, as they left the network.

    Args:
        maps: of one person, without the leading axis.
        labels: [h, w] patch of every pixel, from `chart_in_box`.

    Returns:
        {name: float32 [h, w]} of those of `CONFIDENCES` that the model predicts. A map of 25
        channels is read in that of the label and 0 on background; one of a single channel fills
        the box.
    """
    found = {}
    for name in CONFIDENCES:
        values = getattr(maps, name)
        if values is None:
            continue
        if values.shape[-1] == 1:
            found[name] = resize_maps(values, labels.shape, cv2.INTER_LINEAR)[..., 0]
        else:
            (read,) = _read_channels((values,), labels)
            np.copyto(read, 0, where=labels == 0)
            found[name] = read
    return found


def _read_channels(maps: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Bilinear values at every pixel of the channel that `labels` [h, w] names there.

    Args:
        maps: float32 [S, S, C] each, all of one shape.
        labels: uint8 [h, w].

    Returns:
        float32 [len(maps), h, w].
    """
    height, width = labels.shape
    side_y, side_x, channels = maps[0].shape
    y0, y1, wy = _bilinear_taps(height, side_y)
    x0, x1, wx = _bilinear_taps(width, side_x)
    wy, wx = wy[:, None], wx[None]
    # Places in the flat array: indexing by three arrays takes twice as long.
    left, right = (x * channels + labels for x in (x0, x1))
    row0, row1 = (y[:, None] * (side_x * channels) for y in (y0, y1))
    corners = (row0 + left, row0 + right, row1 + left, row1 + right)
    read = np.empty((len(maps), height, width), np.float32)
    for values, of_map in zip(maps, read, strict=True):
        top, right_top, bottom, right_bottom = (values.reshape(-1).take(at) for at in corners)
        for own, other in ((top, right_top), (bottom, right_bottom)):
            own *= 1 - wx
            other *= wx
            own += other
        top *= 1 - wy
        bottom *= wy
        np.add(top, bottom, out=of_map)
    return read


def _bilinear_taps(size_out: int, size_in: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale = np.float32(size_in) / np.float32(size_out)
    position = np.maximum((np.arange(size_out, dtype=np.float32) + 0.5) * scale - 0.5, 0)
    low = np.minimum(position.astype(int), size_in - 1)
    return low, np.minimum(low + 1, size_in - 1), (position - low).astype(np.float32)


def decode_keypoints(heatmaps: np.ndarray, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Decodes keypoints from heatmaps as detectron2 does.

    He et al., "Mask R-CNN" (ICCV 2017), section 5.

    Args:
        heatmaps: [N, S, S, K] logits.
        boxes_xyxy: [N, 4] that they cover, pixels.

    Returns:
        float32 [N, K, 4]: x, y in pixels, the logit there, and a score: the exponential of the best
        resized logit over the sum of those of the map, which can exceed a probability. All are
        finite: logits beyond 1e37 count as 1e37, also infinite ones, and a score beyond float32 as
        its largest number. Only NaN in a map makes its logit and score NaN.
    """
    heatmaps = np.clip(heatmaps, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    keypoints = np.zeros((len(heatmaps), heatmaps.shape[-1], 4), np.float32)
    for maps, (x0, y0, x1, y1), row in zip(heatmaps, boxes_xyxy, keypoints, strict=True):
        width, height = max(x1 - x0, 1), max(y1 - y0, 1)
        columns, rows = int(np.ceil(width)), int(np.ceil(height))
        resized = resize_maps(maps, (rows, columns), cv2.INTER_CUBIC).reshape(rows * columns, -1)
        best = resized.argmax(0)
        logit = resized[best, np.arange(resized.shape[1])]
        row[:, 0] = x0 + (best % columns + 0.5) * width / columns
        row[:, 1] = y0 + (best // columns + 0.5) * height / rows
        row[:, 2] = logit
        # Relative to the largest of the map, whose exponential is 1: no sum is 0 or overflows.
        planes = _planes(maps)
        highest = planes.max((1, 2))
        total = np.exp(planes - highest[:, None, None]).sum((1, 2), dtype=np.float64)
        exponent = logit - highest.astype(np.float64)
        row[:, 3] = np.exp(np.minimum(exponent, _LARGEST_EXPONENT)) / total
    return keypoints


def rescale_boxes(
    boxes_xyxy: np.ndarray, from_hw: Sequence[float], to_hw: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scales boxes [N, 4] between image sizes and clips them to the second.

    Returns:
        float32 [N, 4] and bool [N], False for boxes that clipping left empty.
    """
    scale = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]] * 2, np.float32)
    limit = np.array([to_hw[1], to_hw[0]] * 2, np.float32)
    boxes = np.clip(boxes_xyxy.astype(np.float32) * scale, 0, limit)
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
