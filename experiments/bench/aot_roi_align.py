"""Compiles ROIAlign with its gradient for a TPU that is not here, in both of its forms.

    python experiments/bench/aot_roi_align.py                               # of the box head
    python experiments/bench/aot_roi_align.py --rois 8 --bins 28 --levels 1 # of people

One image, whose levels are those of --size. See `aot.py` for what must be installed.
"""

import argparse
import sys
import time

import aot  # before jax: it says that no device is to be looked for
import hlo
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def pool(form, maps, boxes, bins, ratio):
    """Pools boxes [1, R, 4] from maps [1, H, W, C] of strides 4, 8, ... by one of the forms."""
    from ktn_jax.ops.roi_align import multilevel_roi_align
    from ktn_jax.ops.roi_products import multilevel_roi_align_by_products

    strides = [4 * 2**level for level in range(len(maps))]
    if form == "products":
        return multilevel_roi_align_by_products(maps, strides, boxes, bins, ratio, True)[0]
    index = jnp.zeros(boxes.shape[1], jnp.int32)
    return multilevel_roi_align(maps, strides, boxes[0], index, bins, ratio, True)


def compile_gradient(form, mesh, arguments):
    """Compiles the pooled values and the gradient of the maps; the figures of the program."""
    height, width = (int(side) for side in arguments.size.split("x"))
    own = NamedSharding(mesh, PartitionSpec())
    shapes = [
        (1, height >> level, width >> level, arguments.channels)
        for level in range(2, 2 + arguments.levels)
    ]
    maps = [jax.ShapeDtypeStruct(shape, arguments.dtype, sharding=own) for shape in shapes]
    boxes = jax.ShapeDtypeStruct((1, arguments.rois, 4), jnp.float32, sharding=own)
    pooled = (arguments.rois, arguments.bins, arguments.bins, arguments.channels)
    cotangent = jax.ShapeDtypeStruct(pooled, arguments.dtype, sharding=own)

    def run(maps, boxes, cotangent):
        values, pull = jax.vjp(
            lambda maps: pool(form, maps, boxes, arguments.bins, arguments.ratio), maps
        )
        return values, pull(cotangent)

    start = time.perf_counter()
    compiled = jax.jit(run).lower(maps, boxes, cotangent).compile()
    seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    counts = hlo.irregular(compiled.as_text())
    return [
        form,
        f"{memory.temp_size_in_bytes / 1e6:.0f} MB",
        f"{cost.get('flops', 0) / 1e9:.1f}",
        f"{cost.get('bytes accessed', 0) / 1e9:.2f}",
        ", ".join(f"{number:,} {kind}" for kind, number in counts.items() if number) or "none",
        f"{seconds:.0f} s",
    ]


def main():
    """Compiles what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--size", default="800x1344", help="HEIGHTxWIDTH of the image")
    parser.add_argument("--rois", type=int, default=512)
    parser.add_argument("--bins", type=int, default=7)
    parser.add_argument("--ratio", type=int, default=2, help="reads of a bin; 0 for adaptive")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    mesh = Mesh(aot.make_mesh(arguments.topology).devices.flat[:1], ("data",))
    lines = ["| form | temporaries | GFLOP | GB moved | irregular | compiling |"]
    lines.append("|---|---|---|---|---|---|")
    for form in ("gathers", "products"):
        lines.append("| " + " | ".join(compile_gradient(form, mesh, arguments)) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
