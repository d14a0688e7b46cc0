"""Cuts the operations file of the reference recordings to what the tests of `ktn_jax.ops` read.

Usage: python cut_ops.py path/to/ops.npz [path/to/ops_cut.npz]
"""

import pathlib
import sys

import numpy as np

# Left out: predictor outputs (chart), flipped annotations (hflip) and images (resize), which test
# other parts.
GROUPS = (
    "roi_align",
    "pooler",
    "nms",
    "anchors",
    "box_coding",
    "matcher",
    "rpn_select",
    "deconv",
    "conv",
    "interp",
    "pixel_shuffle",
    "space_to_depth",
    "norm",
    "keypoint",
    "smooth_l1",
    "uv_confidence",
    "points",
    "resample",
)
# Adaptive sampling has no static shape; the model resizes and resamples in no cubic or linear way.
UNSUPPORTED = ("sr0", "interp/bicubic", "resample/bilinear")


def is_kept(name: str) -> bool:
    """Whether an array of the full file, named group/..., belongs in the cut."""
    return name.split("/")[0] in GROUPS and not any(part in name for part in UNSUPPORTED)


def main(arguments: list[str]) -> None:
    """Reads the full file named first and writes the cut, beside this script unless named."""
    if len(arguments) not in (1, 2):
        raise SystemExit(__doc__)
    beside = pathlib.Path(__file__).with_name("ops_cut.npz")
    target = pathlib.Path(arguments[1]) if len(arguments) == 2 else beside
    with np.load(arguments[0]) as full:
        arrays = {name: full[name] for name in full.files if is_kept(name)}
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
