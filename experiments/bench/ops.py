"""Times single operations against PyTorch's, in turn.

ROIAlign, NMS, convolutions, norms, resizing, and the nearest vertices of embeddings.

    python experiments/bench/ops.py
    python experiments/bench/ops.py --only roi_align nms --repeats 20

Sizes are those of one photo of 800 x 1344 in the R50 models; float32, two threads, ours in NHWC and
theirs in NCHW. Ratios are of medians of pairs that ran one after the other, ours over theirs.
"""

import argparse
import functools
import math

import common
import numpy as np

STRIDES = (4, 8, 16, 32)
CHANNELS = 256


def make_pyramid(rng):
    """Maps [1, H, W, C] of p2 .. p5."""
    shapes = [(1, 800 // stride, 1344 // stride, CHANNELS) for stride in STRIDES]
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def make_boxes(rng, number):
    """Boxes [number, 4] of all sizes, as proposals have."""
    size = np.exp(rng.uniform(math.log(24), math.log(600), (number, 2)))
    corner = rng.uniform(0, 1, (number, 2)) * np.maximum((1344, 800) - size, 1)
    return np.float32(np.concatenate([corner, corner + size], 1))


class Pair:
    """One operation on both sides: what to call, and what the inputs are."""

    def __init__(self, ours, theirs, arrays, differentiate=None):
        """Takes functions of `arrays`, NHWC maps; both also as gradients by argument number."""
        import jax
        import torch

        if differentiate is not None:
            ours = jax.grad(lambda *a, run=ours: (run(*a) ** 2).sum(), argnums=differentiate)
        compiled = jax.jit(ours)
        on_device = [jax.device_put(array) for array in arrays]
        self._ours = functools.partial(compiled, *on_device)
        self._theirs = theirs
        self._tensors = [torch.from_numpy(to_nchw(array)) for array in arrays]
        self._differentiate = differentiate

    def ours(self):
        """Runs our side."""
        import jax

        jax.block_until_ready(self._ours())

    def theirs(self):
        """Runs the PyTorch side."""
        import torch

        if self._differentiate is None:
            with torch.no_grad():
                self._theirs(*self._tensors)
            return
        for index in self._differentiate:
            self._tensors[index].requires_grad_().grad = None
        (self._theirs(*self._tensors) ** 2).sum().backward()


def to_nchw(array):
    """Brings maps [B, H, W, C] and kernels [k, k, C, D] to PyTorch's order."""
    if array.ndim != 4:
        return array
    is_kernel = array.shape[0] == array.shape[1]
    return np.ascontiguousarray(array.transpose((3, 2, 0, 1) if is_kernel else (0, 3, 1, 2)))


def roi_align_pairs(rng):
    """Pooling for the box head and for the DensePose head."""
    import jax
    import jax.numpy as jnp
    import torch
    import torch_ops

    from ktn_jax.ops.roi_align import cache_sized_chunk, multilevel_roi_align

    is_cpu = jax.default_backend() == "cpu"

    def pair(levels, boxes, bins, differentiate=None):
        strides = STRIDES[: len(levels)]
        boxes = make_boxes(rng, boxes)
        with_image = torch.from_numpy(np.concatenate([boxes[:, :1] * 0, boxes], 1))

        def ours(*maps):
            index = jnp.zeros(len(boxes), jnp.int32)
            return multilevel_roi_align(
                maps,
                strides,
                jnp.asarray(boxes),
                index,
                output_size=bins,
                sampling_ratio=2,
                aligned=False,
                chunk_size=cache_sized_chunk(bins, 2, maps[0].shape[-1]) if is_cpu else None,
            )

        def theirs(*maps):
            return torch_ops.multilevel_roi_align(maps, strides, with_image, bins, 2, False)

        return Pair(ours, theirs, levels, differentiate)

    levels = make_pyramid(rng)
    return {
        "1000 boxes, 7x7, four levels": pair(levels, 1000, 7),
        "1000 boxes, 7x7, with gradient": pair(levels, 1000, 7, (0, 1, 2, 3)),
        "8 people, 28x28, one level": pair(levels[:1], 8, 28),
        "32 people, 28x28, with gradient": pair(levels[:1], 32, 28, (0,)),
    }


def nms_pairs(rng):
    """Suppression of the proposals of each level."""
    import torch_ops

    from ktn_jax.ops.nms import nms

    def pair(number):
        boxes = make_boxes(rng, number)
        scores = np.sort(rng.random(number, np.float32))[::-1].copy()
        is_valid = np.ones(number, bool)
        return Pair(
            functools.partial(nms, iou_threshold=0.7, max_outputs=number),
            lambda boxes, scores, _: torch_ops.nms(boxes, scores, 0.7),
            [boxes, scores, is_valid],
        )

    return {f"{number} boxes": pair(number) for number in (1000, 2000)}


def convolution_pairs(rng):
    """Convolutions as inference runs them, and with their gradients as training does."""
    import torch.nn.functional as F

    from ktn_jax.modeling.compute import PLAIN, Compute
    from ktn_jax.modeling.layers import convolve

    def pair(shape, features, size, dilation=1, groups=1, compute=PLAIN, differentiate=None):
        x = rng.standard_normal(shape, np.float32)
        kernel = rng.standard_normal((size, size, shape[-1] // groups, features), np.float32)

        def ours(x, kernel):
            return convolve(x, kernel / 50, dilation=dilation, groups=groups, compute=compute)

        def theirs(x, kernel):
            padding = dilation * (size // 2)
            return F.conv2d(x, kernel / 50, padding=padding, dilation=dilation, groups=groups)

        return Pair(ours, theirs, [x, kernel], differentiate)

    fast = Compute(winograd=True)
    map_, rois = (1, 200, 336, 256), (8, 28, 28, 512)
    small = (2, 64, 64, 256)
    split = Compute(split_groups=True)
    return {
        "3x3, 256, 200x336, plain": pair(map_, 256, 3),
        "3x3, 256, 200x336, Winograd": pair(map_, 256, 3, compute=fast),
        "3x3, 256, 200x336, dilation 3": pair(map_, 256, 3, 3, compute=fast),
        "3x3, 512, 8 of 28x28, Winograd": pair(rois, 512, 3, compute=fast),
        "3x3, 32 groups of 8, 200x336, XLA's": pair(map_, 256, 3, groups=32),
        "3x3, 32 groups of 8, 200x336, split": pair(map_, 256, 3, groups=32, compute=split),
        "3x3, 32 groups of 32, 50x84, XLA's": pair((1, 50, 84, 1024), 1024, 3, groups=32),
        "3x3, 32 groups of 32, 50x84, split": pair(
            (1, 50, 84, 1024), 1024, 3, groups=32, compute=split
        ),
        "3x3, 32 groups of 8, 2 of 64x64, gradients, split": pair(
            small, 256, 3, groups=32, compute=split, differentiate=(0, 1)
        ),
        "1x1, 256, 200x336": pair(map_, 256, 1),
        "1x1, 256, 200x336, bfloat16 dots": pair(
            map_, 256, 1, compute=Compute(matmul_dtype="bfloat16")
        ),
        "3x3, 256, 2 of 64x64, gradients, plain": pair(small, 256, 3, differentiate=(0, 1)),
        "3x3, 256, 2 of 64x64, gradients, Winograd": pair(
            small, 256, 3, compute=fast, differentiate=(0, 1)
        ),
    }


def other_pairs(rng):
    """What reads memory rather than multiplies."""
    import torch.nn.functional as F

    from ktn_jax.modeling.layers import GroupNorm
    from ktn_jax.ops import interpolate

    x = rng.standard_normal((1, 200, 336, 256), np.float32)
    people = rng.standard_normal((8, 28, 28, 512), np.float32)
    maps = rng.standard_normal((8, 56, 56, 109), np.float32)
    kernel = rng.standard_normal((4, 4, 512, 109), np.float32)
    ones = {"params": {"scale": np.ones(256, np.float32), "bias": np.zeros(256, np.float32)}}
    norm = functools.partial(GroupNorm().apply, ones)

    def deconvolve(x, kernel):
        return interpolate.conv_transpose(x, kernel, stride=2, padding=1)

    def their_deconvolve(x, kernel):  # as conv kernels, [D, C, k, k]
        return F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)

    def resize(x):
        return interpolate.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))

    def their_resize(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    return {
        "group norm, 256, 200x336": Pair(norm, lambda x: F.group_norm(x, 32), [x]),
        "deconvolution 4x4, 512 -> 109, 8 of 28x28": Pair(
            deconvolve, their_deconvolve, [people, kernel]
        ),
        "bilinear x2, 109, 8 of 56x56": Pair(resize, their_resize, [maps]),
        "pixel shuffle, 256, 200x336": Pair(
            functools.partial(interpolate.pixel_shuffle, factor=2),
            lambda x: F.pixel_shuffle(x, 2).contiguous(),
            [x],
        ),
    }


def nearest_pairs(rng):
    """Vertices of SMPL's mesh whose embeddings are nearest to those of pixels."""
    import torch

    from ktn_jax.inference import surfaces
    from ktn_jax.ops.embeddings import nearest_vertices

    def theirs(pixels, vertices):  # as detectron2: 10,000 pixels at a time
        found = []
        for part in pixels.split(10_000):
            distances = torch.mm(-2 * part, vertices.t())
            distances += (part * part).sum(1, keepdim=True)
            distances += (vertices * vertices).sum(1, keepdim=True).t()
            found.append(distances.argmin(1))
        return torch.cat(found)

    # Vertices on a surface in the space of embeddings, and pixels beside it.
    place = rng.standard_normal((27_554, 2)) @ rng.standard_normal((2, 16))
    vertices = np.float32(np.sin(place) / np.linalg.norm(np.sin(place), axis=1, keepdims=True))
    own = rng.integers(0, len(vertices), 128 * 128)
    pixels = vertices[own] + np.float32(0.05) * rng.standard_normal((len(own), 16), np.float32)
    search = functools.partial(nearest_vertices, block=surfaces.block())
    return {"128x128 pixels, 27,554 vertices": Pair(search, theirs, [pixels, vertices])}


GROUPS = {
    "roi_align": roi_align_pairs,
    "nms": nms_pairs,
    "convolution": convolution_pairs,
    "other": other_pairs,
    "nearest": nearest_pairs,
}


def main():
    """Measures what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, repeats=9)
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS))
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX takes every core")
    arguments = parser.parse_args()
    common.prepare()
    import torch
    import torch_ops

    torch.set_num_threads(arguments.threads)
    report = common.Report("ops", arguments.output)
    report.say(torch_ops.describe())
    for group in arguments.only:
        rows, ratios = [], {}
        for name, pair in GROUPS[group](np.random.default_rng(0)).items():
            calls = {"ours": pair.ours, "PyTorch": pair.theirs}
            seconds = common.take_turns(calls, arguments.repeats, warm_up=2)
            rows += [common.Row(f"{name}: {side}", seconds[side]) for side in calls]
            ratios[f"ratio, {name}"] = common.median_ratio(seconds["ours"], seconds["PyTorch"])
        report.section(group, rows, **ratios)
    report.close()


if __name__ == "__main__":
    main()
