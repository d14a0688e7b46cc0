"""ROIAlign and NMS of the PyTorch side: torchvision's, or the C of `roi_ops.c` without it."""

import ctypes
import functools
import importlib.util
import os
import pathlib
import subprocess
import tempfile

import torch

try:
    import torchvision.ops as torchvision_ops
except (ImportError, RuntimeError):  # RuntimeError: built for another PyTorch
    torchvision_ops = None


def describe() -> str:
    """What the PyTorch side is made of."""
    model = "plain torch.nn layers of detectron2's sizes and order"
    if importlib.util.find_spec("detectron2"):
        model += " (detectron2 is installed, and not used)"
    ops = "torchvision" if torchvision_ops else "C like torchvision's, one thread (roi_ops.c)"
    return f"PyTorch {torch.__version__}: {model}; ROIAlign and NMS: {ops}"


@functools.cache
def _library() -> ctypes.CDLL:
    source = pathlib.Path(__file__).with_name("roi_ops.c")
    target = pathlib.Path(tempfile.mkdtemp()) / "roi_ops.so"
    compiler = os.environ.get("CC", "cc")
    # What torchvision's wheels are built with: no -march.
    command = [compiler, "-O3", "-shared", "-fPIC", os.fspath(source), "-o", os.fspath(target)]
    subprocess.run([*command, "-lm"], check=True)
    library = ctypes.CDLL(os.fspath(target))
    library.roi_align.argtypes = [
        *(ctypes.c_void_p,) * 3,
        *(ctypes.c_int,) * 6,
        ctypes.c_float,
        *(ctypes.c_int,) * 2,
    ]
    library.nms.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_float]
    return library


class _RoiAlign(torch.autograd.Function):
    @staticmethod
    def _run(maps, boxes, pooled, settings, is_gradient):
        bins, scale, ratio, aligned = settings
        _library().roi_align(
            *(tensor.data_ptr() for tensor in (maps, boxes, pooled)),
            len(boxes),
            *maps.shape[1:],
            bins,
            ratio,
            scale,
            aligned,
            is_gradient,
        )

    @staticmethod
    def forward(ctx, maps, boxes, *settings):
        maps, boxes = maps.contiguous(), boxes.contiguous()
        pooled = maps.new_empty(len(boxes), maps.shape[1], settings[0], settings[0])
        _RoiAlign._run(maps, boxes, pooled, settings, False)
        ctx.save_for_backward(boxes)
        ctx.shape, ctx.settings = maps.shape, settings
        return pooled

    @staticmethod
    def backward(ctx, gradient):
        (boxes,) = ctx.saved_tensors
        maps = gradient.new_zeros(ctx.shape)
        _RoiAlign._run(maps, boxes, gradient.contiguous(), ctx.settings, True)
        return maps, None, None, None, None, None


def roi_align(maps, boxes, bins, scale, ratio, aligned):
    """Pools boxes [R, 5] (image, xyxy) from maps [B, C, H, W]: [R, C, bins, bins]."""
    if torchvision_ops:
        return torchvision_ops.roi_align(maps, boxes, bins, scale, ratio, aligned)
    return _RoiAlign.apply(maps, boxes, bins, scale, ratio, aligned)


def nms(boxes, scores, threshold):
    """Indices of the boxes [N, 4] that greedy suppression keeps, best first."""
    if torchvision_ops:
        return torchvision_ops.nms(boxes, scores, threshold)
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].contiguous()
    is_kept = torch.empty(len(boxes), dtype=torch.uint8)
    _library().nms(boxes.data_ptr(), is_kept.data_ptr(), len(boxes), threshold)
    return order[is_kept.bool()]


def multilevel_roi_align(levels, strides, boxes, bins, ratio, aligned):
    """Pools boxes [R, 5] from the pyramid level of each, as detectron2's ROIPooler."""
    if len(levels) == 1:
        return roi_align(levels[0], boxes, bins, 1 / strides[0], ratio, aligned)
    side = ((boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])).sqrt()
    level = torch.floor(4 + torch.log2(side / 224 + 1e-8)).clamp(2, 1 + len(levels)) - 2
    pooled = levels[0].new_zeros(len(boxes), levels[0].shape[1], bins, bins)
    for index, (maps, stride) in enumerate(zip(levels, strides, strict=True)):
        rows = (level == index).nonzero().squeeze(1)
        if len(rows):
            one = roi_align(maps, boxes[rows], bins, 1 / stride, ratio, aligned)
            pooled = pooled.index_put((rows,), one)
    return pooled
